"""Conforming: FreeSurfer's grid, and voxels where an independent resampler puts them."""

import itertools

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

from images import DIRECTIONS
from medsegai.io import to_sitk
from medsegai.preprocessing.conform import conform, conformed_geometry, head_box
from medsegai.volume import Geometry, Volume


def smooth_scan(directions: str) -> Volume:
    """A blob off the centre on an anisotropic, non-cubic grid."""
    grid = Geometry.from_spacing(
        (30, 44, 52), (1.1, 0.9, 2.2), (-20.0, 11.0, 5.0), DIRECTIONS[directions]
    )
    k, j, i = np.meshgrid(*[np.linspace(-1, 1, size) for size in grid.shape], indexing="ij")
    blob = np.exp(-4 * ((k - 0.2) ** 2 + (j + 0.3) ** 2 + 1.5 * (i - 0.1) ** 2))
    return Volume((1000 * blob).astype(np.float32), grid)


@pytest.mark.parametrize("directions", DIRECTIONS)
def test_conformed_voxels_are_those_of_simpleitk(directions: str) -> None:
    scan = smooth_scan(directions)
    grid = conformed_geometry(scan.geometry, (96, 96, 96), (1.0, 1.0, 1.0))
    ours = conform(scan, grid, antialias=False)

    target = to_sitk(Volume(np.zeros(grid.shape, np.float32), grid))
    reference = sitk.GetArrayFromImage(
        sitk.Resample(to_sitk(scan), target, sitk.Transform(), sitk.sitkLinear, -1.0)
    )
    # SimpleITK gives -1 outside, and the edge value on the last half voxel, where we give the minimum.
    both = ndimage.binary_erosion(reference >= 0, iterations=3)
    assert both.mean() > 0.02
    assert np.abs(ours - reference)[both].max() < 0.5
    assert (ours[reference == -1] == scan.voxels.min()).all()


@pytest.mark.parametrize("directions", DIRECTIONS)
def test_conformed_grid_is_lia_around_the_middle(directions: str) -> None:
    scan = smooth_scan(directions)
    grid = conformed_geometry(scan.geometry, (96, 96, 96), (1.5, 1.5, 1.5))
    assert nibabel.aff2axcodes(grid.ijk_to_ras) == ("L", "I", "A")
    np.testing.assert_allclose(grid.center_ras, scan.geometry.center_ras, atol=1e-9)


@pytest.mark.parametrize("directions", DIRECTIONS)
def test_voxels_stored_in_another_order_are_conformed_to_the_same(directions: str) -> None:
    """All 48 ways to store a scan: its axes in any order, counted from either end."""
    scan = smooth_scan(directions)
    grid = conformed_geometry(scan.geometry, (48, 48, 48), (1.5, 1.5, 1.5))
    conformed = conform(scan, grid, antialias=True)
    for order in itertools.permutations(range(3)):
        for ends in itertools.product((False, True), repeat=3):
            flipped = [axis for axis in range(3) if ends[axis]]
            geometry = scan.geometry.permuted(order).flipped(*flipped)
            other = conformed_geometry(geometry, (48, 48, 48), (1.5, 1.5, 1.5))
            assert other.shape == grid.shape
            np.testing.assert_allclose(other.ijk_to_ras, grid.ijk_to_ras, atol=1e-9)
    voxels = np.flip(scan.voxels.transpose(order), flipped)
    same = conform(Volume(np.ascontiguousarray(voxels), geometry), other, antialias=True)
    assert np.abs(same - conformed).max() < 1e-2


def test_a_conformed_scan_stays_as_it_is() -> None:
    directions = DIRECTIONS["LIA"]
    grid = Geometry.from_spacing((64, 64, 64), (1, 1, 1), (30.0, -20.0, 40.0), directions)
    scan = Volume(np.random.default_rng(0).integers(0, 255, grid.shape, dtype=np.uint8), grid)
    conformed = conformed_geometry(grid, (64, 64, 64), (1.0, 1.0, 1.0))
    assert conformed.matches(grid)
    np.testing.assert_allclose(conform(scan, conformed, antialias=False), scan.voxels, atol=1e-3)


def test_the_grid_grows_with_the_field_of_view() -> None:
    scan = Geometry.from_spacing((60, 300, 200), (1.0, 1.0, 2.0))
    grid = conformed_geometry(scan, (256, 256, 256), (1.0, 1.0, 1.0))
    assert max(grid.shape) >= 300
    assert all(size % 16 == 0 for size in grid.shape)
    corners = np.array([[i, j, k, 1] for i in (0, 199) for j in (0, 299) for k in (0, 59)]).T
    inside = (grid.ras_to_ijk @ scan.ijk_to_ras @ corners)[:3]
    assert inside.min() >= -0.5
    assert (inside.max(axis=1) <= np.array(grid.shape[::-1]) - 0.5).all()


def test_antialiasing_keeps_the_mean_and_removes_what_the_grid_cannot_hold() -> None:
    grid = Geometry.from_spacing((64, 64, 64), (0.5, 0.5, 0.5))
    noise = Volume(np.random.default_rng(0).normal(100, 20, grid.shape).astype(np.float32), grid)
    coarse = conformed_geometry(grid, (16, 16, 16), (2.0, 2.0, 2.0))
    inner = (slice(4, 12),) * 3
    plain = conform(noise, coarse, antialias=False)[inner]
    smoothed = conform(noise, coarse, antialias=True)[inner]
    assert smoothed.std() < 0.4 * plain.std()
    assert smoothed.mean() == pytest.approx(100, abs=1.0)


def test_head_box_holds_the_head_in_steps_of_the_stride_and_ignores_specks() -> None:
    scaled = np.zeros((96, 96, 96), np.float32)
    scaled[30:60, 40:70, 20:50] = 0.8
    scaled[2, 2, 2] = 1.0
    box = head_box(scaled, margin=4)
    assert [part.start for part in box] == [16, 32, 16]
    assert [part.stop for part in box] == [64, 80, 64]


def test_head_box_of_an_empty_scan_is_all_of_it() -> None:
    assert head_box(np.zeros((32, 48, 16), np.float32), 4) == (
        slice(0, 32),
        slice(0, 48),
        slice(0, 16),
    )

"""The arrays behind segments, against SciPy and SimpleITK."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

from medsegai.volume import Geometry
from MedSegAILib.scene.layers import (
    Layer,
    Packer,
    boxes,
    digest,
    grid_around,
    offset_in,
    on_grid,
)
from scene_images import PLACES, SHAPE, two_blocks


def as_itk(voxels: np.ndarray, geometry: Geometry) -> sitk.Image:
    image = sitk.GetImageFromArray(voxels)
    to_lps = np.diag([-1, -1, 1, 1]) @ geometry.ijk_to_ras
    image.SetSpacing(geometry.spacing_mm)
    image.SetOrigin(to_lps[:3, 3].tolist())
    image.SetDirection((to_lps[:3, :3] / geometry.spacing_mm).ravel().tolist())
    return image


@pytest.mark.parametrize("place", ["LPS", "oblique", "oblique and swapped"])
def test_labels_come_to_another_grid_as_simpleitk_brings_them(place: str) -> None:
    own = Geometry(SHAPE, PLACES[place])
    grid = Geometry.from_spacing((13, 12, 17), (0.83, 1.17, 1.91), own.center_ras - (7, 6, 12))
    voxels = np.random.default_rng(3).integers(0, 5, SHAPE).astype(np.uint8)
    expected = sitk.GetArrayFromImage(
        sitk.Resample(
            as_itk(voxels, own),
            as_itk(np.zeros(grid.shape, np.uint8), grid),
            sitk.Transform(),
            sitk.sitkNearestNeighbor,
            0,
        )
    )
    found = on_grid(voxels, own, grid)
    assert (found > 0).sum() > 100
    assert (found != expected).mean() < 1e-3, "but for ties"


def test_on_one_lattice_voxels_are_copied_and_never_interpolated() -> None:
    own = Geometry(SHAPE, PLACES["oblique and swapped"])
    voxels = np.random.default_rng(3).integers(0, 5, SHAPE)
    for start, shape in [((-2, 1, 3), (20, 4, 5)), ((0, 0, 0), SHAPE), ((3, -4, 2), (4, 30, 30))]:
        grid = own.cropped(start, shape)
        found = on_grid(voxels, own, grid)
        for k, j, i in np.ndindex(*shape):
            at = (k + start[0], j + start[1], i + start[2])
            inside = all(0 <= x < size for x, size in zip(at, SHAPE, strict=True))
            assert found[k, j, i] == (voxels[at] if inside else 0)
        assert offset_in(grid, own) == tuple(-x for x in start)
    away = own.cropped((50, 50, 50), (2, 2, 2))
    assert not on_grid(voxels, own, away).any()


def test_a_lattice_grows_around_what_lies_on_it_alone() -> None:
    own = Geometry(SHAPE, PLACES["oblique"])
    part, other = own.cropped((-3, 2, 5), (5, 30, 4)), Geometry(SHAPE, PLACES["plain"])
    grid = grid_around(own, [part, other])
    assert offset_in(own, grid) == (-3, 0, 0)
    assert grid.shape == (12, 32, 14)


def test_boxes_are_those_of_scipy() -> None:
    voxels = ndimage.zoom(np.random.default_rng(7).integers(0, 6, (4, 5, 6)), 3, order=0)
    voxels[voxels == 2] = 0
    expected = {n + 1: box for n, box in enumerate(ndimage.find_objects(voxels)) if box}
    assert boxes(voxels) == expected
    assert boxes(np.zeros(SHAPE, np.uint16)) == {}


def test_a_digest_tells_shapes_apart_and_not_where_the_box_was_cut() -> None:
    mask = two_blocks() == 3
    wide = np.pad(mask, ((3, 1), (0, 2), (4, 0)))
    assert digest(wide) == digest(mask)
    other = mask.copy()
    other[1, 2, 3] = False
    line, upright = np.ones((1, 1, 8), bool), np.ones((8, 1, 1), bool)
    contents = [digest(each) for each in (mask, other, line, upright, np.zeros(SHAPE, bool))]
    assert len(set(contents)) == 5


def test_masks_are_packed_into_as_few_label_maps_as_can_be() -> None:
    grid = Geometry(SHAPE, PLACES["plain"])
    base = np.zeros(SHAPE, np.uint8)
    base[0, 0, :5] = 3
    packer = Packer(grid, [Layer(base, grid, {"mine": 3})])
    wanted = {"beside": (3, slice(6, 9)), "far": (700, slice(9, 12)), "over": (3, slice(0, 2))}
    for name, (value, where) in wanted.items():
        box = (slice(0, 1), slice(0, 1), where)
        packer.add(name, np.ones((1, 1, where.stop - where.start), bool), box, value)
    first, second = packer.layers()
    assert set(first.values) == {"mine", "beside", "far"}
    assert first.values["far"] == 700
    assert set(second.values) == {"over"}
    assert len(set(first.values.values())) == 3, "a value stands for one segment"
    for layer in (first, second):
        for name, value in layer.values.items():
            where = wanted.get(name, (3, slice(0, 5)))[1]
            expected = np.zeros(SHAPE, bool)
            expected[0, 0, where] = True
            np.testing.assert_array_equal(layer.voxels == value, expected, name)

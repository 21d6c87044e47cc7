"""The ways in which `Testing/bench/spoiled.py` spoils scans: references stay where the anatomy is."""

import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from images import DIRECTIONS
from medsegai.volume import Geometry, Volume

BENCH = Path(__file__).resolve().parents[1] / "bench"
sys.path.insert(0, str(BENCH))

import spoiled  # noqa: E402

GRID = Geometry.from_spacing((44, 52, 60), (1.2, 1.0, 1.1), (20, -30, 10), DIRECTIONS["oblique"])


def head() -> tuple[Volume, Volume]:
    """A brain with a bright structure off the centre, which is label 7."""
    k, j, i = np.indices(GRID.shape)
    brain = ((k - 22) / 20) ** 2 + ((j - 26) / 23) ** 2 + ((i - 30) / 27) ** 2 < 1
    part = (k - 26) ** 2 + (j - 20) ** 2 + (i - 34) ** 2 < 30
    voxels = np.where(part, 900, np.where(brain, 400, 0)).astype(np.int16)
    return Volume(voxels, GRID), Volume((7 * part).astype(np.uint16), GRID)


def middle_of(volume: Volume, mask: np.ndarray) -> np.ndarray:
    """World position in the middle of a mask, in mm."""
    k, j, i = (hit.mean() for hit in np.nonzero(mask))
    return (volume.geometry.ijk_to_ras @ [i, j, k, 1])[:3]


@pytest.mark.parametrize("way", spoiled.WAYS)
def test_the_reference_stays_on_the_anatomy(way: str) -> None:
    scan, truth = head()
    worse, reference = spoiled.WAYS[way](scan, truth)
    assert reference.geometry.matches(worse.geometry)
    assert set(np.unique(reference.voxels)) == {0, 7}
    assert np.isfinite(worse.voxels).all()
    where = middle_of(reference, reference.voxels == 7)
    before = middle_of(truth, truth.voxels == 7)
    center = GRID.center_ras
    if way == "turned by 20 degrees":
        assert np.linalg.norm(where - center) == pytest.approx(np.linalg.norm(before - center))
        assert np.linalg.norm(where - before) > 1.0
    else:
        assert np.linalg.norm(where - before) < 1.0
    inside = reference.voxels == 7
    ring = ndimage.binary_dilation(inside, iterations=3) & ~ndimage.binary_dilation(inside)
    assert (np.median(worse.voxels[inside]) < np.median(worse.voxels[ring])) == (
        way == "inverted contrast"
    )


@pytest.mark.parametrize("way", [way for way in spoiled.WAYS if way != "as it is"])
def test_every_way_changes_the_scan_and_none_its_source(way: str) -> None:
    scan, truth = head()
    voxels = scan.voxels.copy()
    worse, _ = spoiled.WAYS[way](scan, truth)
    np.testing.assert_array_equal(scan.voxels, voxels)
    same = worse.geometry.matches(scan.geometry) and np.array_equal(worse.voxels, voxels)
    assert not same


def test_dice_is_that_of_the_values_that_the_reference_has() -> None:
    truth = np.array([[1, 1, 2, 0, 24]])
    found = np.array([[1, 0, 2, 2, 3]])
    assert spoiled.dice_of(found, truth) == {1: pytest.approx(2 / 3), 2: pytest.approx(2 / 3)}

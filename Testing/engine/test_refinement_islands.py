"""Islands and cavities, against SciPy and SimpleITK on the whole volume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy import ndimage

from medsegai.io import read_labelmap
from medsegai.models.refinement import Refinement
from medsegai.refinements import Draft, apply_refinement
from medsegai.refinements._components import components
from medsegai.volume import Volume
from refinement_cases import candidates_of, draft_of, grid, noisy


def itk_components(mask: NDArray[np.bool_], fully: bool) -> NDArray[Any]:
    """Components by falling size."""
    image = sitk.GetImageFromArray(mask.astype(np.uint8))
    found = sitk.RelabelComponent(sitk.ConnectedComponent(image, fully))
    return sitk.GetArrayFromImage(found)


def freed(voxels: NDArray[Any], value: int, smallest: float, fully: bool) -> NDArray[np.bool_]:
    parts = itk_components(voxels == value, fully)
    sizes = np.bincount(parts.ravel())
    small = np.flatnonzero(sizes < smallest)
    return np.isin(parts, small[small > 1])


@pytest.mark.parametrize("connectivity", ["6", "26"])
@pytest.mark.parametrize("place", ["straight", "oblique and mirrored"])
def test_what_goes_is_what_simpleitk_finds_below_the_volume(connectivity: str, place: str) -> None:
    voxels = noisy(seed=5)
    draft = draft_of(voxels, place)
    smallest = 0.05 / (0.8 * 1.1 * 2.3 / 1000)
    found = apply_refinement(draft, Refinement("islands", {"connectivity": connectivity})).labels
    for value in range(1, 5):
        gone = freed(voxels, value, smallest, connectivity == "26")
        assert gone.any()
        np.testing.assert_array_equal((voxels == value) & (found != value), gone)


def test_what_is_left_has_no_island(shared_data: Path) -> None:
    """On labels of a real head, cropped, in the file's own orientation."""
    path = sorted((shared_data / "brain-label-maps").glob("*.nii.gz"))[0]
    whole, labels = read_labelmap(path)
    k, j, i = (size // 2 for size in whole.geometry.shape)
    box = (slice(k - 24, k + 24), slice(j - 30, j + 30), slice(i - 28, i + 28))
    geometry = whole.geometry.cropped([part.start for part in box], (48, 60, 56))
    draft = Draft(Volume(whole.voxels[box], geometry), labels)
    found = apply_refinement(draft, Refinement("islands", {"keep": 1})).labels
    for value in np.unique(found)[1:]:
        assert ndimage.label(found == value, np.ones((3, 3, 3)))[1] == 1
    assert set(np.unique(found)) == set(np.unique(whole.voxels[box]))


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_so_many_of_the_largest_parts_are_kept(keep: int) -> None:
    voxels = np.zeros((5, 6, 30), np.uint8)
    for number, size in enumerate((3, 1, 4, 2)):
        voxels[2, 3, 7 * number : 7 * number + size] = 1
    settings = Refinement("islands", {"keep": keep, "smallest_ml": 0.0})
    found = apply_refinement(draft_of(voxels), settings).labels
    sizes = np.bincount(ndimage.label(found)[0].ravel())[1:]
    assert sorted(sizes, reverse=True) == [4, 3, 2, 1][:keep]


def test_the_largest_part_stays_unless_it_may_go() -> None:
    voxels = np.zeros((5, 6, 7), np.uint8)
    voxels[2, 2, 2] = 1
    assert apply_refinement(draft_of(voxels), Refinement("islands")).voxels == 0
    refined = apply_refinement(draft_of(voxels), Refinement("islands", {"spare_largest": False}))
    assert not refined.labels.any()
    assert "nothing is left" in refined.words("islands")[0]


def test_joined_labels_are_one_structure() -> None:
    voxels = np.zeros((5, 6, 12), np.uint8)
    voxels[2, 2, 1:4], voxels[2, 2, 4], voxels[2, 2, 10] = 1, 2, 2
    settings = Refinement("islands", {"keep": 1, "smallest_ml": 0.0})
    apart = apply_refinement(draft_of(voxels), settings).labels
    assert (apart == 2).sum() == 1
    joined = apply_refinement(draft_of(voxels), settings.with_options(joined=True)).labels
    expected = voxels.copy()
    expected[2, 2, 10] = 0
    np.testing.assert_array_equal(joined, expected)


def test_freed_voxels_go_to_the_runner_up() -> None:
    voxels = np.full((7, 8, 9), 1, np.uint8)
    voxels[:, :, 5:] = 2
    voxels[:, :, :2] = 3
    voxels[3, 4, 1], voxels[3, 4, 0] = 2, 2  # an island of 2 within 3, beside 1
    second = np.full_like(voxels, 1)
    found = apply_refinement(
        draft_of(voxels, candidates=candidates_of(voxels, second)), Refinement("islands")
    )
    assert found.labels[3, 4, 1] == 1  # the runner-up, which is connected there
    assert found.labels[3, 4, 0] == 1
    without = apply_refinement(draft_of(voxels), Refinement("islands")).labels
    assert without[3, 4, 0] == without[3, 4, 1] == 3  # most faces touch 3


def test_a_runner_up_that_would_be_an_island_itself_is_passed_over() -> None:
    voxels = np.full((7, 8, 20), 1, np.uint8)
    voxels[:, :, 10:] = 2
    voxels[:2, :2, :2] = 3
    voxels[4, 4, 4] = 2
    second = np.full_like(voxels, 3)
    found = apply_refinement(
        draft_of(voxels, candidates=candidates_of(voxels, second)), Refinement("islands")
    )
    assert found.labels[4, 4, 4] == 1


def test_an_island_within_an_island_ends_where_the_outer_one_does() -> None:
    voxels = np.full((9, 9, 20), 1, np.uint8)
    voxels[:, :, 12:14], voxels[:, :, 14:] = 2, 3
    voxels[2:5, 2:5, 2:5], voxels[3, 3, 3] = 2, 3
    found = apply_refinement(draft_of(voxels), Refinement("islands", {"smallest_ml": 0.1})).labels
    assert (found[:, :, :12] == 1).all()


def test_islands_are_found_at_the_border_and_twice_changes_nothing() -> None:
    voxels = np.zeros((6, 7, 8), np.uint8)
    voxels[1:4, 1:4, 1:4] = 1
    for corner in np.ndindex(2, 2, 2):
        voxels[tuple(-part for part in corner)] = 1
    once = apply_refinement(draft_of(voxels), Refinement("islands", {"connectivity": "6"})).labels
    assert once.sum() == 27
    again = draft_of(noisy(seed=9))
    first = apply_refinement(again, Refinement("islands")).labels
    second = apply_refinement(draft_of(first), Refinement("islands"))
    assert second.voxels == 0


@pytest.mark.parametrize(("connectivity", "rank"), [("6", 1), ("18", 2), ("26", 3)])
@pytest.mark.parametrize("shape", [(14, 18, 22), (1, 9, 30), (12, 1, 1), (5, 40, 2)])
def test_components_of_all_labels_at_once_are_those_of_scipy(
    connectivity: str, rank: int, shape: tuple[int, int, int]
) -> None:
    labels = np.random.default_rng(3).integers(0, 4, shape).astype(np.uint8)
    found = components(labels, np.arange(4), connectivity, lambda: None)
    numbers = np.full(labels.size, -1)
    places, part = found.voxels(np.ones(len(found.size), bool))
    numbers[places] = part
    numbers = numbers.reshape(shape)
    for value in range(4):
        expected, count = ndimage.label(labels == value, ndimage.generate_binary_structure(3, rank))
        assert (found.value == value).sum() == count
        pairs = np.unique(np.stack([expected, numbers])[:, labels == value], axis=1)
        assert pairs.shape[1] == count  # one number here for one number there
        sizes = np.bincount(expected.ravel())[pairs[0]]
        np.testing.assert_array_equal(found.size[pairs[1]], sizes)


# Cavities


@pytest.mark.parametrize("place", ["straight", "oblique and mirrored"])
def test_cavities_are_those_of_scipy(place: str) -> None:
    voxels = noisy(seed=11)
    found = apply_refinement(draft_of(voxels, place), Refinement("holes")).labels
    count = 0
    for value in range(1, 5):
        # SciPy fills what other labels are in as well: look at complements made of background alone
        complement, _ = ndimage.label(voxels != value)
        open_parts = {0, *complement[voxels != value][voxels[voxels != value] > 0]}
        for axis in range(3):
            open_parts |= set(complement.take((0, -1), axis).ravel())
        expected = ~np.isin(complement, list(open_parts))
        assert (expected <= (ndimage.binary_fill_holes(voxels == value) & (voxels == 0))).all()
        np.testing.assert_array_equal((voxels == 0) & (found == value), expected)
        count += expected.sum()
    assert count > 0
    assert (found[voxels > 0] == voxels[voxels > 0]).all()


def cavity() -> NDArray[np.uint8]:
    voxels = np.zeros((9, 10, 11), np.uint8)
    voxels[1:8, 1:9, 1:10] = 1
    voxels[3:5, 3:5, 3:5] = 0
    return voxels


def test_a_cavity_up_to_the_volume_is_filled() -> None:
    ml = 8 * grid().voxel_volume_ml
    for largest, left in ((ml * 0.99, 8), (ml, 0), (0.0, 0)):
        found = apply_refinement(
            draft_of(cavity()), Refinement("holes", {"largest_ml": largest})
        ).labels
        assert (found[1:8, 1:9, 1:10] == 0).sum() == left


def test_an_open_cavity_and_another_structure_stay() -> None:
    opened = cavity()
    opened[:4, 3, 3] = 0
    assert apply_refinement(draft_of(opened), Refinement("holes")).voxels == 0
    filled = cavity()
    filled[3, 3, 3] = 2
    assert apply_refinement(draft_of(filled), Refinement("holes")).voxels == 0
    at_border = np.ones((4, 5, 6), np.uint8)
    at_border[0, 2, 2] = 0
    assert apply_refinement(draft_of(at_border), Refinement("holes")).voxels == 0


def test_what_two_structures_enclose_is_filled_when_they_are_joined() -> None:
    voxels = cavity()
    voxels[5:][voxels[5:] == 1] = 2
    assert apply_refinement(draft_of(voxels), Refinement("holes")).voxels == 0
    settings = Refinement("holes", {"joined": True})
    assert (apply_refinement(draft_of(voxels), settings).labels[3:5, 3:5, 3:5] == 1).all()
    second = np.full_like(voxels, 2)
    likely = draft_of(voxels, candidates=candidates_of(voxels, second))
    assert (apply_refinement(likely, settings).labels[3:5, 3:5, 3:5] == 2).all()

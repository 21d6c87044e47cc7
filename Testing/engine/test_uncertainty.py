"""Entropy and agreement against whole-volume sums written out, SciPy, and cases counted by hand."""

import math
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from medsegai.inference.agreement import Agreement

MEASURES = ("volume_cv", "pairwise_dice", "iou", "mean_entropy", "mutual_information")


def whole_volume_measures(
    members: NDArray[Any],
    fused: NDArray[Any],
    voxel_entropy: NDArray[Any],
    information: NDArray[Any],
    value: int,
) -> dict[str, float]:
    """The definitions, one structure at a time, on whole volumes and without any shortcut."""
    masks = [member == value for member in members]
    volumes = [int(mask.sum()) for mask in masks]
    pairs = [
        2 * int((one & two).sum()) / (int(one.sum()) + int(two.sum()))
        for one, two in combinations(masks, 2)
        if one.any() or two.any()
    ]
    mean = sum(volumes) / len(volumes)
    deviation = math.sqrt(sum((volume - mean) ** 2 for volume in volumes) / len(volumes))
    inside = fused == value
    return {
        "volume_cv": deviation / mean if mean else math.nan,
        "pairwise_dice": sum(pairs) / len(pairs) if pairs else math.nan,
        "iou": np.logical_and.reduce(masks).sum() / np.logical_or.reduce(masks).sum()
        if mean
        else math.nan,
        "mean_entropy": float(voxel_entropy[inside].mean()) if inside.any() else math.nan,
        "mutual_information": float(information[inside].mean()) if inside.any() else math.nan,
    }


def noisy_members(
    count: int, dtype: type[np.generic]
) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.float32]]:
    shape = (9, 14, 11)
    rng = np.random.default_rng(5)
    k, j, i = np.indices(shape)
    truth = (k // 3 * 4 + j // 5 * 2 + i // 6).astype(dtype)
    members = np.repeat(truth[None], count, axis=0)
    swapped = rng.random(members.shape) < rng.uniform(0.02, 0.4, (count, 1, 1, 1))
    members[swapped] = rng.integers(0, 13, swapped.sum())
    fused = np.where(rng.random(shape) < 0.9, truth, members[-1])
    return members, fused, rng.random(shape, dtype=np.float32)


@pytest.mark.parametrize("count", [2, 3, 15])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int64])
def test_slabs_give_what_the_whole_volume_gives(count: int, dtype: type[np.generic]) -> None:
    members, fused, voxel_entropy = noisy_members(count, dtype)
    labels = [12, 1, 5, 30, 7]  # neither sorted nor complete; no voxel has 30
    agreement = Agreement(count, labels)
    information = voxel_entropy**2
    for start, stop in ((0, 4), (4, 5), (5, 9)):
        part = slice(start, stop)
        agreement.add(members[:, part], fused[part], voxel_entropy[part], information[part])
    for value in labels:
        expected = whole_volume_measures(members, fused, voxel_entropy, information, value)
        assert agreement.measures(value) == pytest.approx(expected, rel=1e-6, nan_ok=True)


def test_slabs_larger_than_one_matrix_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medsegai.inference.agreement._COLUMNS", 100)
    members, fused, voxel_entropy = noisy_members(4, np.uint8)
    agreement = Agreement(4, [1, 5])
    information = voxel_entropy**2
    agreement.add(list(members), fused, voxel_entropy, information)
    for value in (1, 5):
        expected = whole_volume_measures(members, fused, voxel_entropy, information, value)
        assert agreement.measures(value) == pytest.approx(expected, rel=1e-6)


def test_measures_counted_by_hand() -> None:
    members = np.zeros((3, 1, 1, 8), np.uint8)
    members[0, 0, 0, 0:4] = 3  # volume 4
    members[1, 0, 0, 2:4] = 3  # volume 2
    members[2, 0, 0, 2:8] = 3  # volume 6
    fused = members[0]
    voxel_entropy = np.arange(8, dtype=np.float32).reshape(1, 1, 8)
    agreement = Agreement(3, [3])
    agreement.add(members, fused, voxel_entropy)
    measures = agreement.measures(3)
    assert measures["volume_cv"] == pytest.approx(math.sqrt(8 / 3) / 4)
    assert measures["pairwise_dice"] == pytest.approx((4 / 6 + 4 / 10 + 4 / 8) / 3)
    assert measures["iou"] == pytest.approx(2 / 8)
    assert measures["mean_entropy"] == pytest.approx(1.5)
    assert math.isnan(measures["mutual_information"])  # nobody measured it
    assert all(type(value) is float for value in measures.values())


def test_equal_members_agree_perfectly() -> None:
    members, fused, _ = noisy_members(1, np.uint8)
    agreement = Agreement(4, [5])
    agreement.add(np.repeat(members, 4, axis=0), fused)
    measures = agreement.measures(5)
    assert (measures["volume_cv"], measures["pairwise_dice"], measures["iou"]) == (0, 1, 1)


def test_a_pair_without_the_structure_is_left_out() -> None:
    members = np.zeros((3, 1, 1, 4), np.uint8)
    members[0, ..., 0] = 2
    agreement = Agreement(3, [2])
    agreement.add(members, members[0])
    assert agreement.measures(2)["pairwise_dice"] == 0
    assert agreement.measures(2)["iou"] == 0


def test_a_structure_nobody_found_is_undefined() -> None:
    empty = np.zeros((2, 3, 3, 3), np.uint8)
    agreement = Agreement(2, [1, 200])
    agreement.add(empty, empty[0], np.zeros((3, 3, 3), np.float32))
    for value in (1, 200):
        assert set(agreement.measures(value)) == set(MEASURES)
        assert all(math.isnan(figure) for figure in agreement.measures(value).values())


def test_one_member_has_entropy_but_nobody_to_agree_with() -> None:
    labels = np.ones((1, 2, 2, 2), np.uint8)
    agreement = Agreement(1, [1])
    agreement.add(labels, labels[0], np.full((2, 2, 2), 0.5, np.float32))
    measures = agreement.measures(1)
    assert measures["mean_entropy"] == 0.5
    assert all(math.isnan(measures[name]) for name in MEASURES[:3])


def test_entropy_of_a_structure_without_entropy_is_undefined() -> None:
    labels = np.ones((2, 2, 2, 2), np.uint8)
    agreement = Agreement(2, [1])
    agreement.add(labels, labels[0])
    assert math.isnan(agreement.measures(1)["mean_entropy"])


def test_misfits_are_refused() -> None:
    agreement = Agreement(2, [1])
    slab = np.zeros((2, 2, 2), np.uint8)
    with pytest.raises(ValueError, match="2 members"):
        agreement.add([slab, slab, slab], slab)
    with pytest.raises(ValueError, match="2 members"):
        agreement.add([slab, slab[:1]], slab)
    with pytest.raises(ValueError, match="Entropy"):
        agreement.add([slab, slab], slab, np.zeros((1, 2, 2)))
    for members, labels in ((0, [1]), (2, []), (2, [0])):
        with pytest.raises(ValueError, match="labels"):
            Agreement(members, labels)

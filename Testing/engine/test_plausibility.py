"""Whether labels are like anatomy: each check on made structures whose answer is known, and on real ones."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import numpy as np
import pytest
import SimpleITK as sitk
from numpy.typing import NDArray

from medsegai.labels import Label
from medsegai.measurements import plausibility
from medsegai.measurements.plausibility import remarks
from medsegai.models.quality import Reference
from medsegai.volume import Geometry, Volume

LEFT, RIGHT, LIVER = (
    Label(1, "Left kidney", (200, 0, 0)),
    Label(2, "Right kidney", (180, 0, 0)),
    Label(7, "Liver", (120, 60, 30)),
)
LABELS = (LEFT, RIGHT, LIVER)
SHAPE = (24, 30, 40)
ML = 0.8 * 0.9 * 2.5 / 1000
REFERENCE = Reference(
    "made up",
    {1: (300 * ML, 600 * ML), 2: (300 * ML, 600 * ML), 7: (800 * ML, 2000 * ML)},
    {1: (-20.0, 20.0)},
    {1: 0.9, 2: 0.9, 7: 0.5},
)


def turned(degrees: float = 25.0) -> Geometry:
    """Oblique and anisotropic; i runs to the left, j to the back, k up, each roughly."""
    angle = math.radians(degrees)
    c, s = math.cos(angle), math.sin(angle)
    about_s = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    about_r = np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    directions = about_s @ about_r @ np.diag([-1, -1, 1])
    return Geometry.from_spacing(SHAPE, (0.8, 0.9, 2.5), (7, -30, 12), directions)


def organs() -> NDArray[np.uint8]:
    """Plausible ones: 400, 420 and 1000 voxels, none at a border."""
    voxels = np.zeros(SHAPE, np.uint8)
    voxels[5:15, 5:15, 4:8] = 1
    voxels[5:15, 15:22, 20:26] = 2
    voxels[5:15, 5:15, 28:38] = 7
    return voxels


def said_of(voxels: NDArray[np.uint8], reference: Reference | None = REFERENCE) -> dict[int, str]:
    found = remarks(Volume(voxels, turned()), LABELS, reference)
    return {value: "; ".join(words) for value, words in found.items()}


def changed(change: Callable[[NDArray[np.uint8]], None]) -> NDArray[np.uint8]:
    voxels = organs()
    change(voxels)
    return voxels


def test_nothing_is_said_of_plausible_structures() -> None:
    assert said_of(organs()) == {}
    assert said_of(organs(), None) == {}


def test_a_volume_out_of_its_range_is_said_with_the_range() -> None:
    voxels = organs()
    voxels[5:15, 5:12, 28:38] = 0
    assert said_of(voxels) == {7: "volume 0.54 ml, where 1.44 to 3.6 ml is plausible"}
    assert said_of(voxels, None) == {}


def test_sides_that_differ_are_said_of_both() -> None:
    voxels = organs()
    voxels[5:15, 15:22, 25] = 0  # 350 voxels on the right: (400 - 350) / 375
    assert said_of(voxels) == {}
    voxels[5:15, 5:15, 8] = 1  # 500 on the left: (500 - 350) / 425
    words = "left minus right volume is +35 % of the mean of both, where -20 to +20 % is plausible"
    assert said_of(voxels) == {1: words, 2: words}
    assert said_of(voxels, None) == {}


def test_a_missing_structure_is_said_if_it_is_expected() -> None:
    voxels = organs()
    voxels[voxels == 2] = 0
    assert said_of(voxels) == {2: "not found, although it is to be expected"}
    assert said_of(voxels, None) == {}
    may_be_missing = Reference("made up", {2: (0.0, 600 * ML)})
    assert said_of(voxels, may_be_missing) == {}


def test_an_empty_prediction_misses_all_that_is_expected() -> None:
    empty = np.zeros(SHAPE, np.uint8)
    assert said_of(empty).keys() == {1, 2, 7}
    assert said_of(empty, None) == {}
    assert remarks(Volume(empty, turned()), (), REFERENCE) == {}


@pytest.mark.parametrize(
    ("axis", "high", "side"),
    [
        (0, False, "inferior"),
        (0, True, "superior"),
        (1, False, "anterior"),
        (1, True, "posterior"),
        (2, False, "right"),
        (2, True, "left"),
    ],
)
@pytest.mark.parametrize("reference", [REFERENCE, None])
def test_a_structure_at_a_border_is_told_the_side_and_not_measured(
    axis: int, high: bool, side: str, reference: Reference | None
) -> None:
    voxels = np.where(organs() == 7, 0, organs()).astype(np.uint8)
    place = [slice(8, 10), slice(8, 10), slice(12, 14)]
    place[axis] = slice(-1, None) if high else slice(0, 1)
    voxels[tuple(place)] = 7
    said = said_of(voxels, reference)[7]
    assert f"touches the {side} border" in said
    assert "plausible" not in said


def test_all_borders_are_named_and_the_sides_are_not_compared() -> None:
    voxels = np.full(SHAPE, 1, np.uint8)
    voxels[organs() == 2] = 2
    voxels[organs() == 7] = 7
    found = said_of(voxels)
    assert list(found) == [1]
    named = "anterior, inferior, left, posterior, right and superior border"
    assert f"touches the {named}" in found[1]


def test_the_sides_at_which_structures_together_are_cut() -> None:
    def both(voxels: NDArray[np.uint8]) -> None:
        voxels[-1, 3, 3] = 1
        voxels[5, 5, 0] = 2

    assert plausibility.cut_sides(Volume(organs(), turned()), [1, 2, 7]) == ""
    cut = Volume(changed(both), turned())
    assert plausibility.cut_sides(cut, [1, 2, 7]) == "superior and right"
    assert plausibility.cut_sides(cut, [7]) == ""
    assert plausibility.cut_sides(cut, [5]) == ""


def test_one_slice_has_no_border_before_and_behind_it() -> None:
    voxels = np.zeros((1, 30, 40), np.uint8)
    voxels[0, 10:15, 10:15] = 7
    grid = Geometry.from_spacing(voxels.shape, (1, 1, 5))
    assert remarks(Volume(voxels, grid), LABELS) == {}
    voxels[0, 0, 10] = 7
    (words,) = remarks(Volume(voxels, grid), LABELS)[7]
    assert "touches the posterior border" in words


def test_parts_that_lie_apart_are_said() -> None:
    def doubled(voxels: NDArray[np.uint8]) -> None:
        voxels[18:22, 5:10, 10:20] = 1  # 200 voxels more, 4 slices away

    voxels = changed(doubled)
    assert said_of(voxels)[1].startswith("left minus right volume is +35 % of the mean of both")
    assert said_of(voxels)[1].endswith(
        "in 2 parts, of which the largest holds 67 %; at least 90 % is plausible"
    )
    assert said_of(voxels, None) == {
        1: "in 2 parts, of which the largest holds 67 %; at least 80 % is usual"
    }


def test_parts_that_touch_by_a_corner_are_one() -> None:
    voxels = np.zeros(SHAPE, np.uint8)
    voxels[5:8, 5:8, 5:8] = voxels[8:11, 8:11, 8:11] = 7
    assert said_of(voxels, None) == {}
    voxels[8:11, 8:11, 8] = 0
    voxels[8, 8:11, 8:11] = 0
    assert "in 2 parts" in said_of(voxels, None)[7]


def test_one_voxel() -> None:
    voxels = np.where(organs() == 7, 0, organs()).astype(np.uint8)
    voxels[8, 8, 30] = 7
    assert said_of(voxels) == {7: "volume 0.0018 ml, where 1.44 to 3.6 ml is plausible"}
    assert said_of(voxels, None) == {}


def test_what_the_reference_does_not_speak_of_is_not_judged() -> None:
    def spoilt(voxels: NDArray[np.uint8]) -> None:
        voxels[voxels == 7] = 0
        voxels[0, 0, 0] = voxels[20, 20, 20] = 7

    kidneys = Reference("made up", {1: REFERENCE.volumes_ml[1], 2: REFERENCE.volumes_ml[2]})
    assert said_of(changed(spoilt), kidneys) == {}
    assert said_of(changed(spoilt)).keys() == said_of(changed(spoilt), None).keys() == {7}


def awkward() -> NDArray[np.uint8]:
    """Something of every check."""
    voxels = organs()
    voxels[0:2, 3:6, 4:8] = 1
    voxels[5:15, 15:22, 23] = 0
    voxels[voxels == 7] = 0
    voxels[20, 28, 20:22] = 7
    return voxels


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 0, 2), (2, 1, 0)])
@pytest.mark.parametrize("flips", [(), (0,), (1, 2), (0, 1, 2)])
def test_the_order_of_the_voxels_changes_nothing(
    order: tuple[int, ...], flips: tuple[int, ...]
) -> None:
    grid = turned()
    voxels = np.flip(awkward().transpose(order), flips)
    there = Volume(voxels, grid.permuted(order).flipped(*flips))
    found = remarks(there, LABELS, REFERENCE)
    assert found == remarks(Volume(awkward(), grid), LABELS, REFERENCE)
    assert found.keys() == {1, 2, 7}


def test_the_order_of_the_labels_changes_nothing() -> None:
    volume = Volume(awkward(), turned())
    assert remarks(volume, LABELS[::-1], REFERENCE) == remarks(volume, LABELS, REFERENCE)


def scattered(count: int) -> NDArray[np.uint16]:
    """So many labels, each of one to four balls somewhere in 256³."""
    random = np.random.default_rng(4)
    voxels = np.zeros((256, 256, 256), np.uint16)
    ball = np.linalg.norm(np.indices((13, 13, 13)) - 6, axis=0) <= 6
    for value in range(1, count + 1):
        for place in random.integers(0, 243, (1 + value % 4, 3)):
            box = tuple(slice(start, start + 13) for start in place)
            voxels[box][ball] = value
    return voxels


def largest_by_itk(voxels: NDArray[np.uint16], value: int) -> float:
    """Share of the largest part, by ITK's own components."""
    mask = (voxels == value).astype(np.uint8)
    parts = sitk.ConnectedComponent(sitk.GetImageFromArray(mask), True)
    sizes = np.bincount(sitk.GetArrayViewFromImage(parts).ravel())[1:]
    return float(sizes.max() / sizes.sum())


@pytest.mark.parametrize(("count", "most_runs"), [(300, plausibility.MOST_RUNS), (30, 0)])
def test_three_hundred_labels_are_judged_as_itk_would(
    count: int, most_runs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once, and, as where there is more noise than memory, one by one."""
    monkeypatch.setattr(plausibility, "MOST_RUNS", most_runs)
    voxels = scattered(count)
    labels = [Label(value, f"Part {value}", (1, 2, 3)) for value in range(1, count + 1)]
    start = time.process_time()
    found = remarks(Volume(voxels, Geometry.from_spacing(voxels.shape, (1, 1, 1))), labels)
    assert time.process_time() - start < 3
    for value in range(1, count + 1, count // 10):
        share = largest_by_itk(voxels, value)
        said = [words for words in found.get(value, ()) if "parts" in words]
        assert bool(said) == (share < plausibility.USUAL_LARGEST_PART)
        assert not said or f"holds {100 * share:.0f} %" in said[0]

"""What holds for every refinement, found by looking into the folder: a new one is tested without an edit here."""

from __future__ import annotations

import itertools
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from medsegai.cli import main
from medsegai.errors import RequestError
from medsegai.io import read_labelmap, write_volume
from medsegai.models.refinement import Refinement
from medsegai.refinements import (
    Draft,
    apply_refinement,
    level_set,
    option_fields,
    options_of,
    refinement_names,
)
from medsegai.request import Candidates
from medsegai.volume import Volume
from refinement_cases import draft_of, grid, image_of, noisy

NAMES = refinement_names()
WAYS = [
    *map(Refinement, NAMES),
    Refinement("largest_component", {"labels": [[1, 2]]}),
    *(Refinement("level_set", {"method": method}) for method in level_set.METHODS[1:]),
    Refinement("islands", {"keep": 1, "joined": True}),
    Refinement("holes", {"joined": True, "connectivity": "6"}),
]
SECONDS = 0.5
"""Of processor time, after which a refinement must have asked whether to go on."""

BYTES = 32
"""Of memory that a refinement may take for each voxel of the volume, however many structures there are."""


def named(way: Refinement) -> str:
    others = (str(value) for key, value in way.options.items() if key != "labels")
    return ",".join([way.name, *others])


def whole_draft(voxels: NDArray[Any], seed: int = 0) -> Draft:
    """With a scan, and with candidates whose doubt differs from voxel to voxel."""
    rng = np.random.default_rng(seed)
    steps = rng.integers(0, 128, voxels.shape).astype(np.uint8)
    second = np.where(steps > 0, np.roll(voxels, 1, 2), 0).astype(voxels.dtype)
    candidates = Candidates(voxels.copy(), second, (255 - steps).astype(np.uint8), steps)
    return draft_of(voxels, image=image_of(voxels), candidates=candidates)


def arrays_of(draft: Draft) -> list[NDArray[Any]]:
    assert draft.image is not None
    assert draft.candidates is not None
    return [draft.labelmap.voxels, draft.image.voxels, *vars(draft.candidates).values()]


# Orientation


def stored(draft: Draft, order: tuple[int, ...], flips: tuple[int, ...]) -> Draft:
    """The same head, its axes stored in another order and from the other end; every voxel stays where it lies."""
    place = draft.labelmap.geometry.permuted(order).flipped(*flips)
    labels, image, *others = (turned(array, order, flips) for array in arrays_of(draft))
    return Draft(Volume(labels, place), (), Volume(image, place), Candidates(*others))


def turned(array: NDArray[Any], order: tuple[int, ...], flips: tuple[int, ...]) -> NDArray[Any]:
    return np.ascontiguousarray(np.flip(array.transpose(order), flips))


@pytest.mark.parametrize("way", WAYS, ids=named)
def test_the_same_voxels_change_however_the_head_is_stored(way: Refinement) -> None:
    draft = whole_draft(noisy(seed=10, shape=(12, 14, 16)))
    expected = apply_refinement(draft, way).labels
    assert (expected != draft.labelmap.voxels).any()
    ways = itertools.product(itertools.permutations(range(3)), ((), (0,), (1, 2), (0, 1, 2)))
    for order, flips in ways:
        found = apply_refinement(stored(draft, order, flips), way).labels
        np.testing.assert_array_equal(found, turned(expected, order, flips))


@pytest.mark.parametrize("way", WAYS, ids=named)
@pytest.mark.parametrize("kind", [np.uint16, np.uint32])
def test_the_type_of_the_labels_changes_nothing(way: Refinement, kind: Any) -> None:
    voxels = noisy(seed=6)
    draft, wide = whole_draft(voxels), whole_draft(voxels.astype(kind))
    found = apply_refinement(wide, way).labels
    assert found.dtype == kind
    np.testing.assert_array_equal(found, apply_refinement(draft, way).labels)


# What is given


@pytest.mark.parametrize("way", WAYS, ids=named)
def test_what_is_given_is_never_written_to(way: Refinement) -> None:
    draft = whole_draft(noisy(seed=7))
    before = [array.copy() for array in arrays_of(draft)]
    for array in arrays_of(draft):
        array.flags.writeable = False  # who writes here raises
    refined = apply_refinement(draft, way)
    assert refined.voxels > 0
    for array, copy in zip(arrays_of(draft), before, strict=True):
        np.testing.assert_array_equal(array, copy)


@pytest.mark.parametrize("way", WAYS, ids=named)
def test_labels_of_which_no_change_is_told_are_the_same_bit_for_bit(way: Refinement) -> None:
    voxels = noisy(seed=8)
    voxels[:3, :3, :3] = 9  # a separate block that touches the border of the volume
    named_ones = [1, 2]
    refined = apply_refinement(whole_draft(voxels), way.with_options(labels=named_ones))
    told = {change.label.value for change in refined.changes}
    assert told
    for value in set(np.unique(voxels)) - told - {0}:
        np.testing.assert_array_equal(refined.labels == value, voxels == value)
    lost = {change.label.value for change in refined.changes if change.lost}
    assert lost <= set(named_ones)


# Time and memory


def large() -> Draft:
    """A million voxels, 24 structures, and stray voxels that reach everywhere."""
    shape = (96, 100, 104)
    rng = np.random.default_rng(2)
    middles = rng.uniform(0.15, 0.85, (24, 3)) * shape
    k, j, i = (index.astype(np.float32) for index in np.indices(shape, sparse=True))
    voxels, nearest = np.zeros(shape, np.uint8), np.full(shape, 18.0**2, np.float32)
    for value, (at_k, at_j, at_i) in enumerate(middles, start=1):
        apart = (k - at_k) ** 2 + (j - at_j) ** 2 + (i - at_i) ** 2
        voxels[apart < nearest] = value
        np.minimum(nearest, apart, out=nearest)
    stray = rng.random(shape) < 1e-3
    voxels[stray] = rng.integers(0, 25, int(stray.sum()))
    return whole_draft(voxels)


@pytest.fixture(scope="module")
def big() -> Draft:
    return large()


def longest(work: Callable[[Callable[[float], None]], Any]) -> float:
    """Processor time between two questions whether to go on, at most."""
    asked = [time.process_time()]
    work(lambda part: asked.append(time.process_time()))
    return max(np.diff([*asked, time.process_time()]))


@pytest.mark.parametrize("name", NAMES)
def test_it_asks_often_whether_to_go_on(name: str, big: Draft) -> None:
    way = Refinement(name)
    times = (longest(lambda step: apply_refinement(big, way, step)) for _ in range(3))
    assert any(found < SECONDS for found in times)


@pytest.mark.parametrize("name", NAMES)
def test_memory_grows_with_the_volume_alone(name: str, big: Draft) -> None:
    way = Refinement(name)
    apply_refinement(whole_draft(noisy()), way)  # what is loaded at the first call is not counted
    tracemalloc.start()
    apply_refinement(big, way)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < BYTES * big.labelmap.voxels.size


# Bad input


BOUNDED = [
    (name, item) for name in NAMES for item in option_fields(name) if item.metadata["bounds"]
]


@pytest.mark.parametrize(("name", "item"), BOUNDED, ids=lambda part: getattr(part, "name", part))
def test_no_option_takes_what_is_out_of_its_bounds(name: str, item: Any) -> None:
    kind = type(item.default)
    low, high = (kind(bound) for bound in item.metadata["bounds"])
    for value in (low, high):
        options_of(Refinement(name, {item.name: value}))
    wrong = [low - 1, high + 1] + ([float("nan"), float("inf")] if kind is float else [])
    for value in wrong:
        with pytest.raises(RequestError, match=f"{name}:{item.name} must lie between"):
            options_of(Refinement(name, {item.name: value}))
    for value in ("much", None, True, [1]):
        with pytest.raises(RequestError, match=f"{name}:{item.name} must be"):
            options_of(Refinement(name, {item.name: value}))


def one_voxel() -> NDArray[np.uint16]:
    voxels = np.zeros((7, 8, 9), np.uint16)
    voxels[3, 4, 5], voxels[0, 0, 0], voxels[6, 7, 8] = 1, 2, 3
    return voxels


def three_hundred() -> NDArray[np.uint16]:
    blocks = np.arange(1, 301, dtype=np.uint16).reshape(5, 6, 10)
    return np.kron(blocks, np.ones((2, 3, 2), np.uint16))


def full() -> NDArray[np.uint16]:
    voxels = np.ones((6, 7, 8), np.uint16)
    voxels[3:] = 2
    return voxels


CASES: dict[str, Callable[[], NDArray[np.uint16]]] = {
    "empty": lambda: np.zeros((5, 6, 7), np.uint16),
    "structures of one voxel": one_voxel,
    "300 labels": three_hundred,
    "labels at every border": full,
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", NAMES)
def test_the_command_takes_every_segmentation(name: str, case: str, tmp_path: Path) -> None:
    voxels = CASES[case]()
    place = grid("oblique and mirrored", voxels.shape)
    source, scan, out = (tmp_path / f"{part}.nii.gz" for part in ("labels", "scan", "out"))
    write_volume(source, Volume(voxels, place))
    write_volume(scan, image_of(voxels, "oblique and mirrored"))
    there = sorted(set(np.unique(voxels).tolist()) - {0})
    text = f"{name}:labels={'+'.join(map(str, there[-2:]))}" if there else name
    words = ["refine", source, "--image", scan, "--refinement", text, "-o", out, "-q"]
    assert main([str(word) for word in words]) == 0
    found, _ = read_labelmap(out)
    assert found.geometry.matches(place)
    assert set(np.unique(found.voxels)) == set(np.unique(voxels))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("smoothing:sigma_mm=1000", "must lie between"),
        ("islands:labels=7", "names label 7"),
        ("polish", "no refinement"),
        ("snap", "needs the scan"),
        ("level_set", "needs the scan"),
    ],
)
def test_the_command_says_what_is_wrong(
    text: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "labels.nii.gz", tmp_path / "out.nii.gz"
    write_volume(source, Volume(full(), grid("oblique", (6, 7, 8))))
    command = ["refine", source, "--refinement", text, "-o", out]
    assert main([str(word) for word in command]) == 2
    assert words in capsys.readouterr().err
    assert not out.exists()


# Level sets run where there is something to move


def test_a_stray_voxel_changes_nothing_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    voxels = np.zeros((40, 42, 44), np.uint8)
    voxels[6:16, 6:17, 6:18] = 1
    voxels[6:16, 6:17, 18:24] = 2
    alone = apply_refinement(
        draft_of(voxels, image=image_of(voxels, noise=30.0)), Refinement("level_set")
    )
    sizes: list[int] = []
    distance = level_set.signed_distance

    def spy(mask: NDArray[np.bool_], spacing: Any) -> NDArray[np.float32]:
        sizes.append(mask.size)
        return distance(mask, spacing)

    monkeypatch.setattr(level_set, "signed_distance", spy)
    strays = voxels.copy()
    strays[39, 41, 43] = strays[30, 1, 40] = 1
    draft = draft_of(strays, image=image_of(voxels, noise=30.0))
    refined = apply_refinement(draft, Refinement("level_set"))
    assert alone.voxels > 0
    assert refined.voxels == alone.voxels
    near = (slice(0, 28),) * 3
    np.testing.assert_array_equal(refined.labels[near], alone.labels[near])
    assert refined.labels[39, 41, 43] == 1
    assert max(sizes) < voxels.size / 4


def test_parts_of_one_structure_that_lie_together_share_a_box(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    voxels = np.zeros((20, 30, 60), np.uint8)
    for start in (4, 11, 44):
        voxels[6:14, 8:20, start : start + 6] = 1
    boxes: list[tuple[int, ...]] = []
    distance = level_set.signed_distance

    def spy(mask: NDArray[np.bool_], spacing: Any) -> NDArray[np.float32]:
        boxes.append(mask.shape)
        assert mask.sum() in (8 * 12 * 6, 2 * 8 * 12 * 6)
        return distance(mask, spacing)

    monkeypatch.setattr(level_set, "signed_distance", spy)
    apply_refinement(
        draft_of(voxels, image=image_of(voxels)), Refinement("level_set", {"move_mm": 1.0})
    )
    assert len(boxes) == 2

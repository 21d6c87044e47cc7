"""Objects told apart, measured, and compared with a reference."""

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from medsegai.cli import main
from medsegai.errors import ModelError
from medsegai.evaluation.instances import instance_scores
from medsegai.measurements.instances import separated
from medsegai.models.card import load_card
from medsegai.models.catalogue import BUNDLED_MODELS
from medsegai.request import objects_summary
from medsegai.training.unet2d.data import inside_and_border


def discs(seed: int, count: int = 9) -> np.ndarray:
    """Numbered discs that touch and cover each other."""
    random = np.random.default_rng(seed)
    j, i = np.mgrid[:60, :80]
    objects = np.zeros((60, 80), np.int32)
    for number in range(1, count + 1):
        middle, radius = random.uniform(5, (55, 75)), random.uniform(5, 9)
        objects[(j - middle[0]) ** 2 + (i - middle[1]) ** 2 < radius**2] = number
    return objects


@given(st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_every_pixel_of_a_whole_belongs_to_one_object(seed: int) -> None:
    random = np.random.default_rng(seed)
    inside, border = random.random((2, 20, 30)) > 0.7
    border &= ~inside
    objects = separated(inside, border)
    np.testing.assert_array_equal(objects > 0, inside | border)
    assert set(np.unique(objects)) == set(range(objects.max() + 1))


@given(st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_insides_that_do_not_touch_are_never_one_object(seed: int) -> None:
    random = np.random.default_rng(seed)
    inside, border = random.random((2, 20, 30)) > 0.7
    parts, count = ndimage.label(inside, np.ones((3, 3)))
    for waist in (0.5, 1.0, 1000.0):
        objects = separated(inside, border & ~inside, waist=waist)
        pairs = set(zip(parts[inside].tolist(), objects[inside].tolist(), strict=True))
        assert len({found for _, found in pairs}) == len(pairs)
        assert waist < 1000 or len(pairs) == count, "without a waist none is split"


def test_objects_that_grew_together_are_parted_at_their_waist() -> None:
    j, i = np.mgrid[:40, :80]
    ends = [(j - 20) ** 2 + (i - middle) ** 2 < 14**2 for middle in (25, 48)]
    grown = ends[0] | ends[1]
    nothing = np.zeros_like(grown)
    objects = separated(grown, nothing)
    assert objects.max() == 2
    assert objects[20, 25] != objects[20, 48]
    sizes = np.bincount(objects.ravel())[1:]
    assert sizes.min() > 0.9 * sizes.max(), "they are alike, and parted half-way"
    assert separated(grown, nothing, waist=1000).max() == 1
    assert separated(ends[0], nothing).max() == 1, "a disc has no waist"


def test_objects_that_touch_are_told_apart() -> None:
    objects = np.zeros((12, 20), np.int32)
    objects[2:10, 2:10], objects[2:10, 10:18] = 1, 2
    target = inside_and_border(objects)
    np.testing.assert_array_equal(separated(target == 1, target == 2), objects)


def test_small_objects_are_left_out() -> None:
    inside = np.zeros((10, 10), bool)
    inside[1:3, 1:3] = inside[5:9, 5:9] = True
    found = separated(inside, np.zeros_like(inside), smallest=5)
    assert found.max() == 1
    assert (found == 1).sum() == 16


@pytest.mark.parametrize("seed", range(5))
def test_the_reference_scores_one_against_itself(seed: int) -> None:
    objects = discs(seed)
    scores = instance_scores(objects, objects)
    assert (scores.aji, scores.pq, scores.f1) == (1, 1, 1)


def brute_aji(found: np.ndarray, expected: np.ndarray) -> float:
    """As in the article: each true nucleus with the answer of the best overlap, each of which may serve twice."""
    answers = [found == n for n in np.unique(found) if n]
    inner = outer = 0
    used = set()
    for number in np.unique(expected):
        if number:
            true = expected == number
            ratios = [(true & own).sum() / (true | own).sum() for own in answers]
            best = int(np.argmax(ratios))
            if ratios[best] == 0:
                outer += true.sum()
                continue
            inner += (true & answers[best]).sum()
            outer += (true | answers[best]).sum()
            used.add(best)
    return inner / (outer + sum(own.sum() for n, own in enumerate(answers) if n not in used))


def brute_pq(found: np.ndarray, expected: np.ndarray) -> tuple[float, float]:
    overlaps = []
    answers, truths = ([m == n for n in np.unique(m) if n] for m in (found, expected))
    for true in truths:
        overlaps += [r for own in answers if (r := (true & own).sum() / (true | own).sum()) > 0.5]
    f1 = 2 * len(overlaps) / (len(answers) + len(truths))
    return sum(overlaps) / ((len(answers) + len(truths)) / 2), f1


@pytest.mark.parametrize("seed", range(8))
def test_scores_are_those_of_their_definitions(seed: int) -> None:
    expected, found = discs(seed), np.roll(discs(seed), (2, 3), (0, 1))
    found[discs(seed + 100, 2) > 0] = 50
    scores = instance_scores(found, expected)
    assert scores.aji == pytest.approx(brute_aji(found, expected))
    assert (scores.pq, scores.f1) == pytest.approx(brute_pq(found, expected))
    assert scores.expected == len(np.unique(expected)) - 1


def test_nothing_to_find_and_nothing_found() -> None:
    nothing, something = np.zeros((60, 80), np.int32), discs(0)
    assert np.isnan(instance_scores(nothing, nothing).aji)
    for scores in (instance_scores(nothing, something), instance_scores(something, nothing)):
        assert (scores.aji, scores.pq, scores.f1) == (0, 0, 0)


def test_the_command_writes_a_map_and_a_table(tmp_path: Path) -> None:
    objects = discs(1)
    Image.fromarray(inside_and_border(objects)).save(tmp_path / "labels.png")
    colours = np.dstack([objects * 10, objects * 5, np.full_like(objects, 7)]).astype(np.uint8)
    Image.fromarray(colours).save(tmp_path / "image.png")
    arguments = [
        "objects",
        "labels.png",
        "--image",
        "image.png",
        "-o",
        "out.png",
        "--table",
        "t.csv",
    ]
    arguments = [str(tmp_path / a) if "." in a else a for a in arguments]
    assert main([*arguments, "--smallest", "1"]) == 0
    found = np.array(Image.open(tmp_path / "out.png"))
    rows = list(csv.DictReader((tmp_path / "t.csv").open()))
    assert len(rows) == found.max() > 5
    for row in rows:
        mask = found == int(row["number"])
        assert int(row["pixels"]) == mask.sum()
        assert float(row["row"]) == pytest.approx(mask.nonzero()[0].mean(), abs=0.01)
        assert float(row["mean_1"]) == pytest.approx(colours[mask][:, 0].mean(), abs=0.01)
        assert row["area_mm2"] == "", "the size of a pixel of a photograph is not known"
    assert main(arguments) == 5, "files that are there are kept"
    missing = [*arguments[:3], str(tmp_path / "none.png"), *arguments[4:], "--overwrite"]
    assert main(missing) == 3


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (("--inside", "9", "--border", "8"), 2, "neither the label 9 (--inside) nor 8"),
        (("--smallest", "-1"), 2, "--smallest must be at least 0 pixels"),
    ],
)
def test_objects_of_labels_and_sizes_that_cannot_be_are_refused(
    options: tuple[str, ...],
    code: int,
    words: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    Image.fromarray(inside_and_border(discs(1))).save(tmp_path / "labels.png")
    command = ["objects", str(tmp_path / "labels.png"), "-o", str(tmp_path / "out.png")]
    assert main([*command, *options]) == code
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out.png").exists()


def test_objects_are_asked_of_models_that_separate_them_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "tile.png")
    for flag, name in (("--objects", "objects.png"), ("--object-table", "objects.csv")):
        command = ["segment", str(tmp_path / "tile.png"), "-o", str(tmp_path / "labels.nrrd")]
        assert main([*command, flag, str(tmp_path / name)]) != 0
        assert "brain does not separate objects" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["tile.png"]


@pytest.mark.parametrize(
    "named", [{"inside": 1}, {"inside": 1, "border": 1}, {"inside": 1, "border": 9}, [1, 2], 1]
)
def test_a_card_names_two_of_its_labels_as_inside_and_border(named: Any) -> None:
    card = load_card(BUNDLED_MODELS / "nuclei")
    assert card.object_labels == (1, 2)
    with pytest.raises(ModelError, match="instances must name two of its labels"):
        replace(card, settings={**card.settings, "instances": named})


def test_many_objects_are_counted_in_the_report() -> None:
    rows = [{"pixels": n, "area_mm2": None} for n in (10, 30, 20)]
    assert objects_summary(rows) == {"count": 3, "median_pixels": 20.0, "median_area_mm2": None}
    assert objects_summary([]) == {"count": 0, "median_pixels": None, "median_area_mm2": None}

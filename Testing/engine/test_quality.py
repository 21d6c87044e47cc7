"""What agreement of members tells of a structure: the Dice to expect, and whether to look at it."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest

from medsegai.labels import Label
from medsegai.models.quality import (
    SCORES,
    Calibration,
    Expected,
    Reference,
    expected_dice,
    quality_of,
    remarks,
    sentences,
)
from medsegai.request import StructureMeasures

HIPPOCAMPUS = Label(17, "Left hippocampus", (220, 216, 20))
AMYGDALA = Label(18, "Left amygdala", (103, 255, 255))
MEMBERS = ("axial", "coronal", "sagittal")
BY_IOU = Calibration(
    1.0, "40 cases", MEMBERS, "iou", {17: Expected(dice=0.8, score=0.7, slope=0.5, limit=0.5)}
)
BY_CV = Calibration(
    1.0, "40 cases", MEMBERS, "volume_cv", {17: Expected(dice=0.8, score=0.1, slope=-2, limit=0.2)}
)
BY_BOTH = replace(BY_IOU, structures={17: BY_IOU.structures[17], 18: BY_IOU.structures[17]})
JARGON = re.compile(r"(?i)\b(dice|iou|entropy|members?|cv|nats|calibrat\w*)\b")


def measured(label: Label = HIPPOCAMPUS, **values: float | None) -> StructureMeasures:
    return StructureMeasures(label, 100, 0.1, **values)


@pytest.mark.parametrize(
    ("calibration", "values", "dice"),
    [
        (BY_IOU, {"iou": 0.7}, 0.8),
        (BY_IOU, {"iou": 0.5}, 0.7),
        (BY_IOU, {"iou": 0.9}, 0.9),
        (BY_CV, {"volume_cv": 0.2}, 0.6),
        (BY_CV, {"volume_cv": 0.6}, 0.0),
        (BY_CV, {"volume_cv": 0.0}, 1.0),
    ],
)
def test_dice_is_expected_along_a_line_through_the_means(
    calibration: Calibration, values: dict[str, float], dice: float
) -> None:
    assert expected_dice(measured(**values), calibration) == pytest.approx(dice)


@pytest.mark.parametrize(
    ("measures", "calibration"),
    [
        (measured(iou=0.5), None),
        (measured(), BY_IOU),
        (measured(iou=math.nan), BY_IOU),
        (measured(volume_cv=0.1), BY_IOU),
        (measured(AMYGDALA, iou=0.5), BY_IOU),
        (measured(iou=0.5), Calibration()),
    ],
)
def test_no_dice_is_expected_where_nothing_is_known(
    measures: StructureMeasures, calibration: Calibration | None
) -> None:
    assert expected_dice(measures, calibration) is None


def test_a_score_beyond_its_limit_is_remarked_in_words() -> None:
    assert remarks(measured(iou=0.5), BY_IOU) == ()
    (said,) = remarks(measured(iou=0.4), BY_IOU)
    assert said == "poor quality is expected, because the networks disagree"
    (said,) = remarks(measured(volume_cv=0.25), BY_CV)
    assert said == "poor quality is expected, because the networks disagree"
    entropy = {17: Expected(dice=0.9, score=0.1, slope=-0.1, limit=0.2)}
    (said,) = remarks(
        measured(mean_entropy=0.3), Calibration(1, "", MEMBERS, "mean_entropy", entropy)
    )
    assert said == "lower quality than usual is expected, because the networks are unsure"


def test_a_poor_dice_that_is_to_be_expected_is_remarked_within_the_limit_too() -> None:
    assert remarks(measured(volume_cv=0.15), BY_CV) == ()
    (said,) = remarks(measured(volume_cv=0.16), BY_CV)
    assert said == "poor quality is expected, because the networks disagree"
    weak = {17: Expected(dice=0.55, score=0.7, slope=0.5, limit=0.1)}
    (said,) = remarks(measured(iou=0.8), Calibration(1.0, "", MEMBERS, "iou", weak))
    assert "poor quality" in said


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("dice", [0.5, 0.69, 0.71, 0.95])
def test_remarks_are_understood_by_somebody_who_never_heard_of_dice(
    score: str, dice: float
) -> None:
    """Of every measure, and of structures good and bad; the same words for all, so that they stand together."""
    _, high_is_bad = SCORES[score]
    expected = {17: Expected(dice=dice, score=0.5, slope=0.0, limit=0.4 if high_is_bad else 0.6)}
    bad = measured(**{score: 0.5})
    said = remarks(bad, Calibration(1.0, "", MEMBERS, score, expected))
    said += remarks(measured(AMYGDALA, iou=0.4, volume_cv=0.4), None)
    assert len(said) == 3
    assert not JARGON.search(" ".join(said))
    assert not re.search(r"\d", said[0])


@pytest.mark.parametrize(
    ("known", "remarked", "word"),
    [
        ({"expected_dice": 0.95}, False, "good"),
        ({"expected_dice": 0.95}, True, "check"),
        ({"expected_dice": 0.69}, True, "poor"),
        ({"expected_dice": 0.69}, False, "poor"),
        ({"iou": 0.9, "volume_cv": 0.1}, False, "good"),
        ({"iou": 0.3, "expected_dice": None}, True, "check"),
        ({"mean_entropy": 0.1}, False, ""),
        ({"mean_entropy": 0.1}, True, "check"),
        ({"iou": math.nan, "expected_dice": math.nan}, False, ""),
        ({}, True, "check"),
        ({}, False, ""),
    ],
)
def test_quality_is_one_word(known: dict[str, float | None], remarked: bool, word: str) -> None:
    """Doubt alone, for which there are no general limits, is no reason to call a structure good."""
    assert quality_of(known, remarked) == word


def test_structures_of_which_the_same_is_expected_stand_in_one_sentence() -> None:
    both = [
        replace(item, remarks=remarks(item, BY_BOTH))
        for item in (measured(iou=0.2), measured(AMYGDALA, iou=0.25))
    ]
    assert sentences(both)[0] == (
        "Left hippocampus, Left amygdala: poor quality is expected, because the networks disagree."
    )


def test_the_limit_of_a_model_replaces_the_general_ones() -> None:
    shaky = measured(iou=0.55, volume_cv=0.5)
    assert remarks(shaky, BY_IOU) == ()
    assert len(remarks(shaky, None)) == 2


@pytest.mark.parametrize("calibration", [None, Calibration(), BY_IOU])
def test_general_limits_hold_where_there_are_no_others(calibration: Calibration | None) -> None:
    assert remarks(measured(AMYGDALA, iou=0.6, volume_cv=0.2), calibration) == ()
    agreement, volumes = remarks(measured(AMYGDALA, iou=0.43, volume_cv=0.31), calibration)
    assert "43 %" in agreement
    assert "31 %" in volumes


@pytest.mark.parametrize("calibration", [None, BY_IOU, BY_CV])
def test_what_was_not_measured_is_not_remarked(calibration: Calibration | None) -> None:
    assert remarks(measured(), calibration) == ()
    assert remarks(measured(iou=math.nan, volume_cv=math.nan), calibration) == ()


def test_limits_hold_for_the_members_that_were_looked_at() -> None:
    assert BY_IOU.holds_for(["sagittal", "axial", "coronal"])
    assert not BY_IOU.holds_for(["axial", "coronal"])
    assert not BY_IOU.holds_for([*MEMBERS, "axial pass 2"])
    assert not Calibration(members=MEMBERS).holds_for(MEMBERS)


def test_what_is_known_follows_labels_to_other_values() -> None:
    assert BY_IOU.renamed({17: 4, 18: 5}).structures == {4: BY_IOU.structures[17]}
    reference = Reference("15 adults", {17: (2, 6)}, {17: (-20, 20)}, {17: 0.9, 18: 0.8})
    assert reference.renamed({17: 4, 18: 5}) == Reference(
        "15 adults", {4: (2, 6)}, {4: (-20, 20)}, {4: 0.9, 5: 0.8}
    )


def structures(count: int, *said: str) -> list[StructureMeasures]:
    """So many, of which the first ones have one remark each."""
    plain = [measured(Label(value, f"Part {value}", (1, 2, 3))) for value in range(1, count + 1)]
    remarked = [replace(item, remarks=(text,)) for item, text in zip(plain, said, strict=False)]
    return remarked + plain[len(said) :]


def test_remarks_become_sentences_that_take_alike_ones_together() -> None:
    lines = sentences(structures(20, "1 ml is plausible", "not found", "not found"), ["15 adults."])
    assert lines == [
        "Part 1: 1 ml is plausible.",
        "Part 2, Part 3: not found.",
        "What is plausible: 15 adults.",
    ]
    assert sentences(structures(20, "not found"), ["15 adults."]) == ["Part 1: not found."]
    assert sentences(structures(20), ["15 adults."]) == []
    assert sentences([]) == []


def test_a_case_with_many_remarks_is_told_in_few_sentences() -> None:
    lines = sentences(structures(20, *["not found"] * 12))
    assert lines[0] == "Part 1, Part 2, Part 3, Part 4, Part 5, Part 6 and 6 more: not found."
    assert lines[1].startswith("12 of 20 structures have remarks: look at this case first")
    lines = sentences(structures(40, *(f"remark {number}" for number in range(12))))
    assert len(lines) == 9
    assert lines[-1] == "There are 4 more remarks in the table of structures."
    lines = sentences(structures(40, *(f"remark {number}" for number in range(9))))
    assert lines[-1] == "There is 1 more remark in the table of structures."

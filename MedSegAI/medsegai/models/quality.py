"""What is known of a model's results: how good they were on held-out cases, and what anatomy is like.

`Calibration` and `Reference` stand in the model's card. A calibration turns the agreement of members into an
expected Dice and tells which structures a person should look at; a reference says which volumes are plausible
(`medsegai.measurements.plausibility` compares).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

from medsegai.errors import ModelError, listed
from medsegai.labels import Label
from medsegai.models.json_fields import number, words

if TYPE_CHECKING:
    from medsegai.request import StructureMeasures  # needs NumPy; `doctor` reads cards without it

DISAGREE = "the networks disagree"
UNSURE = "the networks are unsure"

SCORES = {
    "iou": (DISAGREE, False),
    "pairwise_dice": (DISAGREE, False),
    "volume_cv": (DISAGREE, True),
    "mean_entropy": (UNSURE, True),
    "mutual_information": (DISAGREE, True),
}
"""Measures of uncertainty that can stand for quality: what a bad one means, and whether high values are bad."""

GOOD, CHECK, POOR = "good", "check", "poor"
"""What is said of the quality of a structure, on the screen and in reports."""

LEGEND = (
    f"{POOR} where a low agreement with an expert is expected, {CHECK} where there is another remark, {GOOD} "
    "otherwise."
)
"""What the words mean, where a table of them stands by itself."""

JUDGED = ("expected_dice", "iou", "volume_cv")
"""Measures that have limits; a structure of which none is known is not called good."""

PLAUSIBLE = "plausible"
"""A word of every remark that rests on a reference."""

SENTENCES = 8
"""How many remarks the warnings of a case spell out; the table of its structures has all."""

NAMED_AT_MOST = 6
"""Structures that a sentence names."""

POOR_DICE = 0.7
"""Below it agreement with a person is called poor (A. Zijdenbos et al., Morphometric analysis of white matter
lesions in MR images, IEEE Trans Med Imaging 13, 1994, 716-724: above it is excellent)."""

IOU_DOUBTFUL = 0.6
"""Members that share less than this part of what any of them found disagree on the structure, whatever the model.
Two members of Dice 0.75 share 0.6 of their union."""

CV_DOUBTFUL = 0.2
"""The same for standard deviation over mean of their volumes: two volumes of 1 and 1.5 ml."""

MANY = 0.5
"""Part of the structures that makes a case one to look at first."""


@dataclass(frozen=True)
class Expected:
    """One structure on held-out cases.

    Attributes:
        dice: its mean Dice there.
        score: its mean score there.
        slope: Dice per unit of score, within the structure.
        limit: the score beyond which a person should look at it.
    """

    dice: float
    score: float
    slope: float
    limit: float

    def __post_init__(self) -> None:
        number(self.dice, "dice", 0, 1)

    def dice_at(self, score: float) -> float:
        """The Dice to expect, from 0 to 1: a straight line through the means."""
        return min(max(self.dice + self.slope * (score - self.score), 0.0), 1.0)

    def is_beyond(self, score: float, measure: str) -> bool:
        """Whether a score, which is one of `SCORES`, lies on the bad side of the limit."""
        _, high_is_bad = SCORES[measure]
        return score > self.limit if high_is_bad else score < self.limit

    def flags(self, score: float, measure: str) -> bool:
        """Whether a person should look at the structure: the score is beyond the limit, or means a poor Dice."""
        return self.is_beyond(score, measure) or self.dice_at(score) < POOR_DICE


@dataclass(frozen=True)
class Calibration:
    """What held-out cases tell of a model's probabilities and of its members' agreement.

    Attributes:
        temperature: what logits are divided by, so that probabilities are as sure as they are right.
        source: which held-out cases, and how many, in words.
        members: names of the members whose agreement was looked at; the limits hold for these alone.
        score: the measure of `SCORES` that stands for quality; "" for none.
        structures: what to expect of a structure, by label value.
    """

    temperature: float = 1.0
    source: str = ""
    members: tuple[str, ...] = ()
    score: str = ""
    structures: Mapping[int, Expected] = field(default_factory=dict)

    def __post_init__(self) -> None:
        number(self.temperature, "calibration: temperature", 0.01, 100)
        if self.score and self.score not in SCORES:
            raise ModelError(
                f"calibration: the score must be one of {', '.join(SCORES)}, not {self.score!r}."
            )
        if self.structures and not self.score:
            raise ModelError("calibration: structures need a score that their limits are of.")

    def renamed(self, values: Mapping[int, int]) -> Calibration:
        """The same where the labels have other values, as in a result of several models."""
        return replace(self, structures=_renamed(self.structures, values))

    def holds_for(self, members: Collection[str]) -> bool:
        """Whether the limits are those of just these members."""
        return bool(self.structures) and set(members) == set(self.members)


@dataclass(frozen=True)
class Reference:
    """What is plausible of the structures of a model.

    Attributes:
        source: whose structures were measured, how many, and what the ranges mean; in words for a clinician.
        volumes_ml: least and largest volume, by label value.
        asymmetry_percent: least and largest of left minus right volume in per cent of the mean of both, by the
            value of the left structure.
        largest_part: least share of a structure's volume in its largest connected part, by label value.
    """

    source: str
    volumes_ml: Mapping[int, tuple[float, float]] = field(default_factory=dict)
    asymmetry_percent: Mapping[int, tuple[float, float]] = field(default_factory=dict)
    largest_part: Mapping[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        words(self.source, "reference: source")
        _check_ranges("volumes_ml", self.volumes_ml, 0, math.inf)
        _check_ranges("asymmetry_percent", self.asymmetry_percent, -200, 200)
        for value, part in self.largest_part.items():
            number(part, f"largest_part of {value}", 0, 1)

    def renamed(self, values: Mapping[int, int]) -> Reference:
        """The same where the labels have other values, as in a result of several models."""
        parts = (self.volumes_ml, self.asymmetry_percent, self.largest_part)
        return Reference(self.source, *(_renamed(part, values) for part in parts))

    @property
    def label_values(self) -> set[int]:
        """All values that something is said of."""
        return {*self.volumes_ml, *self.asymmetry_percent, *self.largest_part}


def expected_dice(measures: StructureMeasures, calibration: Calibration | None) -> float | None:
    """The Dice that held-out cases let one expect of a structure, from 0 to 1; None where they say nothing.

    Args:
        measures: of the structure, by the members that the calibration is of (`Calibration.holds_for`).
        calibration: of the model; None if it does not hold for these members.
    """
    found = _score(measures, calibration)
    if found is None:
        return None
    score, expected = found
    return expected.dice_at(score)


def quality_of(measures: Mapping[str, float | None], remarked: bool) -> str:
    """The quality of a structure in one word: `GOOD`, `CHECK` or `POOR`; "" where nothing is known of it.

    Args:
        measures: of the structure, by the names of `StructureMeasures`; unknown ones are left out, None or NaN.
        remarked: whether there are remarks on the structure.
    """
    known = {
        name: value
        for name in JUDGED
        if (value := measures.get(name)) is not None and not math.isnan(value)
    }
    if known.get("expected_dice", math.inf) < POOR_DICE:
        return POOR
    if remarked:
        return CHECK
    return GOOD if known else ""


def remarks(measures: StructureMeasures, calibration: Calibration | None) -> tuple[str, ...]:
    """Why a person should look at a structure first, by how far members agree on it; in plain words.

    The words have no numbers of the structure, so that `sentences` can say the same of many at once; the
    number is what `expected_dice` gives.

    The limits are the calibration's, and a poor Dice that is to be expected; where it has none for the structure,
    those that hold for any model. Nothing is said where uncertainty was not measured.

    Args:
        measures, calibration: as `expected_dice` takes them.
    """
    found = _score(measures, calibration)
    if found is None or calibration is None:
        return tuple(_general_remarks(measures))
    score, expected = found
    if not expected.flags(score, calibration.score):
        return ()
    why, _ = SCORES[calibration.score]
    if expected.dice_at(score) < POOR_DICE:
        return (f"poor quality is expected, because {why}",)
    return (f"lower quality than usual is expected, because {why}",)


class Remarked(Protocol):
    """A structure of which something may be said, such as `StructureMeasures`."""

    @property
    def label(self) -> Label: ...
    @property
    def remarks(self) -> tuple[str, ...]: ...


def sentences(structures: Sequence[Remarked], sources: Sequence[str] = ()) -> list[str]:
    """What the remarks on structures come to, for a person who reads no table.

    Structures of which the same is said stand together.

    Args:
        structures: all of the case, also those without remarks.
        sources: of the references; named at the end where a remark rests on one.
    """
    names = _by_remark(structures)
    said = list(itertools.islice(names.items(), SENTENCES))
    lines = [f"{listed(together, NAMED_AT_MOST)}: {remark}." for remark, together in said]
    if len(names) > SENTENCES:
        lines.append(_more_remarks(len(names) - SENTENCES))
    lines += _many_remarked(structures)
    if any(PLAUSIBLE in remark for remark in names):
        lines += [f"What is plausible: {source.rstrip('.')}." for source in sources]
    return lines


def _by_remark(structures: Sequence[Remarked]) -> dict[str, list[str]]:
    names: dict[str, list[str]] = {}
    for item in structures:
        for remark in item.remarks:
            names.setdefault(remark, []).append(item.label.name)
    return names


def _many_remarked(structures: Sequence[Remarked]) -> list[str]:
    count = sum(bool(item.remarks) for item in structures)
    if count <= MANY * len(structures) or len(structures) < 2:
        return []
    return [
        f"{count} of {len(structures)} structures have remarks: look at this case first, and check whether "
        "the image is of the kind that the model was made for."
    ]


def _more_remarks(count: int) -> str:
    if count == 1:
        return "There is 1 more remark in the table of structures."
    return f"There are {count} more remarks in the table of structures."


def _general_remarks(measures: StructureMeasures) -> list[str]:
    found = []
    if measures.iou is not None and measures.iou < IOU_DOUBTFUL:
        found.append(f"the networks agree on only {100 * measures.iou:.0f} % of it")
    if measures.volume_cv is not None and measures.volume_cv > CV_DOUBTFUL:
        found.append(f"the networks differ by {100 * measures.volume_cv:.0f} % in its volume")
    return found


def _score(
    measures: StructureMeasures, calibration: Calibration | None
) -> tuple[float, Expected] | None:
    """The structure's score and what is expected of it; None where either is unknown."""
    expected = calibration and calibration.structures.get(measures.label.value)
    if not calibration or not expected:
        return None
    score = getattr(measures, calibration.score)
    return None if score is None or math.isnan(score) else (float(score), expected)


def _renamed(items: Mapping[int, Any], values: Mapping[int, int]) -> dict[int, Any]:
    return {values[value]: item for value, item in items.items()}


def _check_ranges(
    name: str, ranges: Mapping[int, tuple[float, float]], low: float, high: float
) -> None:
    for value, (least, largest) in ranges.items():
        for part in (least, largest):
            number(part, f"{name} of {value}", low, high)
        if least >= largest:
            raise ModelError(f"{name} of {value}: {least:g} must be less than {largest:g}.")

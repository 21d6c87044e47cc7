"""What held-out cases show about a model: its calibration, the signs of a bad result, and helpful refinements."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from medsegai.errors import ModelError, OutputError
from medsegai.evaluation import refining
from medsegai.evaluation.calibration import (
    Reliability,
    cross_fitted,
    fit_temperature,
    reliability,
)
from medsegai.evaluation.drawing import new_figure, save_figure
from medsegai.evaluation.held_out import Record
from medsegai.evaluation.refining import AS_PREDICTED, Worth
from medsegai.evaluation.scores import (
    Correlation,
    Flags,
    Scored,
    choose_score,
    correlation,
    cross_fitted_flags,
    expectations,
)
from medsegai.io import atomic_path, write_card
from medsegai.labels import Label
from medsegai.models.card import CARD_NAME, ModelCard, load_card
from medsegai.models.json_fields import to_json
from medsegai.models.quality import SCORES, Calibration
from medsegai.refinements import parse

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Findings:
    """All findings about a model.

    Attributes:
        calibration: the calibration for the card; its temperature is fitted to all cases.
        before: reliability of the probabilities as predicted.
        after: reliability with each case at the temperature that was fitted to the cases of the other groups.
        refinements: the worth of each refinement; the first entry is the prediction without one.
        chosen: the refinement to add to the card's suggestions; None if none helps.
        correlations: the correlation of each measure with Dice.
        flags: which bad results the limits of the calibration's score find.
        cases: number of cases.
    """

    calibration: Calibration
    before: Reliability
    after: Reliability
    refinements: tuple[Worth, ...]
    chosen: Worth | None
    correlations: Mapping[str, Correlation]
    flags: Flags | None
    cases: int

    def to_dict(self) -> dict[str, Any]:
        """All findings as JSON values."""
        return {
            "cases": self.cases,
            "calibration": to_json(self.calibration),
            "reliability before": self.before.to_dict(),
            "reliability after, cross-fitted": self.after.to_dict(),
            "correlation with Dice": {
                name: item.to_dict() for name, item in self.correlations.items()
            },
            "flags, cross-fitted": None if self.flags is None else self.flags.to_dict(),
            "refinements": [item.to_dict() for item in self.refinements],
            "chosen refinement": None if self.chosen is None else self.chosen.name,
        }


def find(
    records: Sequence[Record], groups: Sequence[int], labels: Sequence[Label], source: str
) -> Findings:
    """Compute the findings from the records of all cases.

    The refinement is chosen first, so that the expected Dice is that of the final, refined result.

    Args:
        records: the records of the cases.
        groups: a number for each case; cases with the same number are never used to judge each other.
        labels: the labels of the figures in the records, in their order.
        source: a description of the cases for the card.
    """
    decisions = [record.decisions for record in records]
    temperatures = cross_fitted(decisions, groups)
    worths = refining.worth(
        [record.table for record in records], [record.changed_ml for record in records], labels
    )
    chosen = refining.best_of(worths)
    rows = scored(records, groups, labels, AS_PREDICTED if chosen is None else chosen.name)
    score = choose_score(rows)
    found = {measure: correlation(rows, measure) for measure in SCORES}
    members = {record.members for record in records}
    return Findings(
        calibration=Calibration(
            temperature=round(fit_temperature(decisions), 4),
            source=source,
            members=next(iter(members)) if len(members) == 1 else (),
            score=score,
            structures=expectations(rows, score) if score else {},
        ),
        before=reliability((item, 1.0) for item in decisions),
        after=reliability(zip(decisions, temperatures, strict=True)),
        refinements=tuple(worths),
        chosen=chosen,
        correlations={name: item for name, item in found.items() if item is not None},
        flags=cross_fitted_flags(rows, score) if score else None,
        cases=len(records),
    )


def scored(
    records: Sequence[Record],
    groups: Sequence[int],
    labels: Sequence[Label],
    row: str = AS_PREDICTED,
) -> list[Scored]:
    """Each structure of each case with its Dice after the refinement `row`."""
    return [
        Scored(record.case, label.value, float(figures[0]), record.measures[label.value], group)
        for record, group in zip(records, groups, strict=True)
        for label, figures in zip(labels, record.table[row], strict=True)
        if label.value in record.measures
    ]


def write_into_card(card: ModelCard, findings: Findings) -> None:
    """Write the calibration and the chosen refinement, if any, into the model's card.json.

    Raises:
        ModelError: the folder of the model does not hold a card, or the card cannot be read.
        OutputError: the card cannot be written.
    """
    known = load_card(writable_card(card))
    suggested = known.suggested_refinements
    if findings.chosen is not None:
        suggested = (*suggested, parse(findings.chosen.name))
    write_card(
        replace(known, calibration=findings.calibration, suggested_refinements=suggested),
        card.folder,
    )


def writable_card(card: ModelCard) -> Path:
    """The path of the model's card.json.

    Raises:
        ModelError: the model is a results folder of nnU-Net that is used in place, which has no card.
        OutputError: the file cannot be written.
    """
    path = card.folder / CARD_NAME
    if card.in_place or not path.is_file():
        raise ModelError(
            f"{card.folder} is used as nnU-Net left it and has no {CARD_NAME} to write into. Make a model of it "
            f"with `medsegai models import {card.folder}`."
        )
    try:
        with path.open("r+b"):
            return path
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error}.") from error


def draw_reliability(before: Reliability, after: Reliability, path: Path) -> bool:
    """Draw both reliabilities into a PNG file.

    Returns:
        Whether the file was written; without matplotlib it is not, which is logged.
    """
    figure = new_figure(8.4, 4.0)
    if figure is None:
        return False
    left, right = figure.subplots(1, 2)
    _draw_reliability(left, before, "as the network says")
    _draw_reliability(right, after, "calibrated")
    with atomic_path(path) as partial:
        save_figure(figure, partial)
    return True


def _draw_reliability(axes: Any, found: Reliability, title: str) -> None:
    axes.plot([0, 1], [0, 1], color="0.5", linewidth=1.0, linestyle="--")
    shares = [count / found.decisions for count in found.counts]
    width = 1.0 / len(shares)
    middles = [(number + 0.5) * width for number in range(len(shares))]
    axes.bar(middles, shares, 0.9 * width, color="0.85", label="share of voxels")
    axes.plot(found.confidence, found.accuracy, marker="o", markersize=4, label="accuracy")
    error = f"{title}: expected calibration error {found.error:.3f}"
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", title=error)
    axes.title.set_fontsize(10)
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left")

"""The figures of all cases: means over the cases, and their table, CSV and JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from medsegai.evaluation.measures import FIGURES, StructureFigures
from medsegai.io import atomic_path, write_table
from medsegai.labels import Label

_COLUMNS = {
    "dice": ("Dice", ".3f"),
    "iou": ("IoU", ".3f"),
    "hd95_mm": ("HD95 mm", ".2f"),
    "assd_mm": ("ASSD mm", ".2f"),
    "signed_mm": ("Signed mm", "+.2f"),
    "volume_difference_ml": ("Volume ml", "+.2f"),
    "volume_difference_percent": ("Volume %", "+.1f"),
}
"""The heading and the number format of each figure in the text table."""


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation (n - 1) of the defined values, and their count."""

    mean: float
    sd: float
    count: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Compute mean, standard deviation and count of the values that are not NaN."""
        known = [value for value in values if not math.isnan(value)]
        mean = float(np.mean(known)) if known else math.nan
        return cls(mean, float(np.std(known, ddof=1)) if len(known) > 1 else math.nan, len(known))


@dataclass(frozen=True)
class CaseFigures:
    """The figures of one prediction compared with its reference."""

    name: str
    structures: tuple[StructureFigures, ...]
    prediction: str = ""
    reference: str = ""

    def spread(self, figure: str, leave_out: Collection[int] = ()) -> Spread:
        """Mean and spread of a figure over the structures of this case that have it."""
        kept = [item for item in self.structures if item.label.value not in leave_out]
        return Spread.of(getattr(item, figure) for item in kept)


@dataclass(frozen=True)
class StructureSummary:
    """One structure over all cases: the spread of each of `FIGURES` over the cases that have it."""

    label: Label
    spreads: Mapping[str, Spread]


@dataclass(frozen=True)
class Evaluation:
    """The figures of each case and structure; `notes` hold what the reader of the figures should know."""

    cases: tuple[CaseFigures, ...]
    notes: tuple[str, ...] = field(default=())

    def structures(self) -> tuple[StructureSummary, ...]:
        """Every structure of any case with its spreads over the cases, in the order of their first occurrence."""
        found: dict[int, list[StructureFigures]] = {}
        for case in self.cases:
            for item in case.structures:
                found.setdefault(item.label.value, []).append(item)
        return tuple(
            StructureSummary(
                items[0].label,
                {name: Spread.of(getattr(item, name) for item in items) for name in FIGURES},
            )
            for items in found.values()
        )

    def overall(self, figure: str, leave_out: Collection[int] = ()) -> Spread:
        """Mean over the structures of their means over the cases, so that each structure has the same weight.

        Args:
            figure: one of `FIGURES`.
            leave_out: label values to exclude.

        Returns:
            The mean; `count` is the number of structures, and `sd` is the spread over structures, not over cases.
        """
        return Spread.of(
            summary.spreads[figure].mean
            for summary in self.structures()
            if summary.label.value not in leave_out
        )

    def over_cases(self, figure: str, leave_out: Collection[int] = ()) -> Spread:
        """Mean and spread over the cases of the mean over each case's structures."""
        return Spread.of(case.spread(figure, leave_out).mean for case in self.cases)

    def table(self) -> str:
        """The text table: a line for each structure, their mean, a line for each case, and the notes."""
        several = len(self.cases) > 1
        lines = _aligned([*self._structure_rows(several), self._mean_row(several)])
        if several:
            lines += ["", *_aligned(self._case_rows())]
        return "\n".join([*lines, "", *_explained(several), *self.notes])

    def to_dict(self) -> dict[str, Any]:
        """All figures as JSON values; a figure that is not defined is None."""
        return {
            "cases": [
                {
                    "case": case.name,
                    "prediction": case.prediction,
                    "reference": case.reference,
                    "mean": {name: _plain(case.spread(name).mean) for name in FIGURES},
                    "structures": [_named(item.label, item.to_dict()) for item in case.structures],
                }
                for case in self.cases
            ],
            "structures": [_summarised(summary) for summary in self.structures()],
            "mean": {name: _plain(self.overall(name).mean) for name in FIGURES},
            "notes": list(self.notes),
        }

    def write_json(self, path: Path | str) -> None:
        """Write `to_dict` as a JSON file. Raises OutputError if the file cannot be written."""
        with atomic_path(path) as partial:
            text = json.dumps(self.to_dict(), indent=1, allow_nan=False, ensure_ascii=False)
            partial.write_text(text + "\n", encoding="utf-8")

    def write_csv(self, path: Path | str) -> None:
        """Write one row for each case and structure, then the rows of the case `mean`.

        A figure that is not defined is an empty cell. The last column is the number of cases over which the Dice
        was averaged, which is 1 or 0 in the rows of single cases.

        Raises:
            OutputError: the file cannot be written.
        """
        write_table(path, ("case", "value", "name", *FIGURES, "cases"), self._cells())

    def _cells(self) -> Iterator[dict[str, Any]]:
        for case in self.cases:
            for item in case.structures:
                values = item.to_dict()
                figures = {name: values[name] for name in FIGURES}
                counted = int(not math.isnan(item.dice))
                yield {"case": case.name, **_named(item.label, figures), "cases": counted}
        for summary in self.structures():
            counted = summary.spreads["dice"].count
            means = _part(summary, "mean")
            yield {"case": "mean", **_named(summary.label, means), "cases": counted}

    def _structure_rows(self, several: bool) -> list[list[str]]:
        rows = [["Structure", *(heading for heading, _ in _COLUMNS.values())]]
        rows[0] += ["Cases"] if several else []
        for summary in self.structures():
            cells = [_cell(summary.spreads[name], spec) for name, (_, spec) in _COLUMNS.items()]
            counted = [str(summary.spreads["dice"].count)] if several else []
            rows.append([summary.label.name, *cells, *counted])
        return rows

    def _mean_row(self, several: bool) -> list[str]:
        counted = self.overall("dice").count
        means = [_number(self.overall(name).mean, spec) for name, (_, spec) in _COLUMNS.items()]
        return [f"Mean of {counted}", *means, *([str(len(self.cases))] if several else [])]

    def _case_rows(self) -> list[list[str]]:
        rows = [["Case", "Dice", "Structures", "Lowest Dice"]]
        for case in self.cases:
            known = [item for item in case.structures if not math.isnan(item.dice)]
            worst = min(known, key=lambda item: item.dice, default=None)
            spread = case.spread("dice")
            lowest = f"{worst.dice:.3f} {worst.label.name}" if worst else "-"
            rows.append([case.name, _number(spread.mean, ".3f"), str(spread.count), lowest])
        return rows


def _explained(several: bool) -> list[str]:
    lines = [
        "Volume: prediction minus reference. A structure absent from both has no figures; absent "
        "from one, Dice and IoU are 0 and distances undefined (-)."
    ]
    if several:
        lines.append("± is the standard deviation over cases; Cases counts those with a Dice.")
    return lines


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]


def _cell(spread: Spread, spec: str) -> str:
    spread_of_cases = "" if math.isnan(spread.sd) else f" ± {format(spread.sd, spec.lstrip('+'))}"
    return _number(spread.mean, spec) + spread_of_cases


def _number(value: float, spec: str) -> str:
    return "-" if math.isnan(value) else format(value, spec)


def _plain(value: float) -> float | None:
    return None if math.isnan(value) else value


def _part(summary: StructureSummary, part: str) -> dict[str, float | None]:
    return {name: _plain(getattr(summary.spreads[name], part)) for name in FIGURES}


def _summarised(summary: StructureSummary) -> dict[str, Any]:
    parts = {part: _part(summary, part) for part in ("mean", "sd", "count")}
    return _named(summary.label, parts)


def _named(label: Label, figures: Mapping[str, Any]) -> dict[str, Any]:
    plain = {
        name: _plain(value) if isinstance(value, float) else value
        for name, value in figures.items()
    }
    return {"value": label.value, "name": label.name} | plain

"""A batch as a whole: a table with a row for each case, and the outliers among them."""

from __future__ import annotations

import functools
import json
import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medsegai.io import write_table
from medsegai.io.atomic import write_json
from medsegai.io.tables import explained
from medsegai.output.layouts import BatchFiles
from medsegai.worker.batch_events import CaseState, Entry

FEWEST = 5
"""The smallest number of cases among which outliers are reported."""

FAR = 3.5
"""The modified z-score, 0.6745 times the distance from the median over the median absolute deviation, above which
a value stands out (B. Iglewicz and D. Hoaglin, How to detect and handle outliers, 1993)."""

LARGEST = 1e15
"""The size from which numbers are not volumes in ml or counts of anything."""

NORMAL = 0.6745
"""The median absolute deviation of a normal distribution, in standard deviations."""


@dataclass(frozen=True)
class CaseRow:
    """One case.

    Attributes:
        entry: the line of the case in the table of the batch.
        structures: the structures in the report of the run; empty unless the case is done.
        intracranial_ml: the intracranial volume in ml, if the model measures it.
        page: the page of the case, if there is one.
        objects: the number of separate objects and the medians of their sizes, as in `request.objects_summary`;
            empty if the model does not separate objects.
    """

    entry: Entry
    structures: tuple[Mapping[str, Any], ...] = ()
    intracranial_ml: float | None = None
    page: Path | None = None
    objects: Mapping[str, float | None] = field(default_factory=dict)

    def remarks(self) -> dict[str, list[str]]:
        """Return each remark with its structures, because many structures have the same remark."""
        names: dict[str, list[str]] = {}
        for item in self.structures:
            for remark in item["remarks"]:
                names.setdefault(str(remark), []).append(str(item["name"]))
        return names

    @property
    def flagged(self) -> tuple[str, ...]:
        """Return the names of the structures that a person should look at."""
        return tuple(str(item["name"]) for item in self.structures if item["remarks"])


@dataclass(frozen=True)
class Cohort:
    """All cases of a batch.

    Attributes:
        rows: the cases in the order of the batch.
        left_out: the messages about scans that did not become cases.
    """

    rows: tuple[CaseRow, ...]
    left_out: tuple[str, ...] = ()

    def values(self, name: str, key: str) -> dict[str, float]:
        """Return a measure of a structure by case, for cases in which it was found."""
        return {
            case: float(item[key])
            for case, item in self._by_name[name]
            if item.get(key) is not None and item["voxels"]
        }

    @functools.cached_property
    def _by_name(self) -> dict[str, list[tuple[str, Mapping[str, Any]]]]:
        """The cases of each structure: thousands of cases are not searched for each of hundreds of structures."""
        found: dict[str, list[tuple[str, Mapping[str, Any]]]] = {}
        for row in self.rows:
            for item in row.structures:
                found.setdefault(item["name"], []).append((row.entry.case, item))
        return found

    def of_objects(self, key: str) -> dict[str, float]:
        """Return a figure of the separate objects by case, for cases in which it is known."""
        return {
            row.entry.case: float(value)
            for row in self.rows
            if (value := row.objects.get(key)) is not None
        }

    def names(self) -> list[str]:
        """Return the names of the structures, in the order of the model."""
        return list(self._by_name)

    def outliers(self) -> dict[str, dict[str, float]]:
        """Return the structures of each case whose volume stands out, with scores, which are negative if it is
        small.

        Logarithms are compared, as in the reference ranges of models, because volumes vary more above the median.
        """
        found: dict[str, dict[str, float]] = {}
        for name in self.names():
            volumes = self.values(name, "volume_ml").items()
            logarithms = {case: math.log(volume) for case, volume in volumes if volume > 0}
            for case, score in scores(logarithms).items():
                if abs(score) > FAR:
                    found.setdefault(case, {})[name] = score
        return found


def scores(values: Mapping[str, float]) -> dict[str, float]:
    """Return the modified z-score of each value; empty for fewer than `FEWEST` values.

    Up to half of the values may be arbitrary without changing the scores of the others much.
    """
    if len(values) < FEWEST:
        return {}
    middle = statistics.median(values.values())
    spread = statistics.median(abs(value - middle) for value in values.values())
    if not spread:
        return {}
    return {case: NORMAL * (value - middle) / spread for case, value in values.items()}


def read_cohort(
    entries: Iterable[Entry], files: BatchFiles, left_out: Sequence[str] = ()
) -> Cohort:
    """Read the cases of a batch with their reports. A report that cannot be read is among `left_out`."""
    rows, unread = [], []
    for entry in entries:
        try:
            rows.append(_row(entry, files))
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
            rows.append(CaseRow(entry))
            unread.append(
                f"{entry.case}: its report cannot be read, so its volumes are missing here. Remove its files, and "
                "run the batch again with --resume."
            )
    return Cohort(tuple(rows), (*left_out, *unread))


def _row(entry: Entry, files: BatchFiles) -> CaseRow:
    """Read the report of a case, which people may have edited. Raises what a wrong one raises."""
    if entry.state != CaseState.DONE:
        return CaseRow(entry)
    report = json.loads(files.report(entry.case).read_text(encoding="utf-8"))
    structures = tuple(map(_structure, report["structures"]))
    whole = _number(report.get("intracranial_ml"))
    objects = {str(name): _number(value) for name, value in (report.get("objects") or {}).items()}
    page = files.outputs(entry.case).page
    there = page if page is not None and page.is_file() else None
    return CaseRow(entry, structures, whole, there, objects)


def _structure(item: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the page and the table need of a structure."""
    numbers = {key: _number(item.get(key)) for key in ("voxels", "volume_ml", "expected_dice")}
    remarks = item["remarks"]
    if not isinstance(remarks, list):
        raise TypeError("remarks are not a list")
    return {"name": str(item["name"]), **numbers, "remarks": [str(remark) for remark in remarks]}


def _number(value: object) -> float | None:
    """Return a finite number as it is; None without one, for example if the size of a pixel is unknown."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError("a number is something else")
    return value if abs(value) < LARGEST else None


@dataclass(frozen=True)
class _Columns:
    """The headings of the table, with their meanings and units."""

    explained: dict[str, tuple[str, str | None]] = field(default_factory=dict)

    def add(self, name: str, words: str, unit: str | None = None) -> str:
        """Add a column, and return its unique heading."""
        plain, number = name, 2
        while name in self.explained:
            name, number = f"{plain}_{number}", number + 1
        self.explained[name] = (words, unit)
        return name


def write_cohort_table(path: Path, cohort: Cohort) -> None:
    """Write a row for each case: state, remarks, intracranial volume, volume and expected Dice of each structure.

    If the model separates objects, their number and the medians of their sizes follow.

    Beside a .tsv file, a .json file explains the columns, as in BIDS.

    Raises:
        OutputError: a file cannot be written.
    """
    columns = _Columns()
    fixed, measures = _fixed_columns(columns), _measure_columns(columns, cohort.names())
    separate = _object_columns(columns) if any(row.objects for row in cohort.rows) else {}
    outliers = cohort.outliers()
    rows = (
        _cells(row, fixed, measures, outliers) | _object_cells(row, separate) for row in cohort.rows
    )
    write_table(path, list(columns.explained), rows)
    if path.suffix == ".tsv":
        write_json(path.with_suffix(".json"), explained(columns.explained))


def _object_cells(row: CaseRow, columns: Mapping[str, str]) -> dict[str, Any]:
    return {column: row.objects.get(key) for key, column in columns.items()}


def _fixed_columns(columns: _Columns) -> list[str]:
    """The columns of every table."""
    return [
        columns.add("case", "Name of the case."),
        columns.add("state", "State of the case: waiting, running, done or failed."),
        columns.add("flags", "Number of structures that a person should look at."),
        columns.add("flagged", "Names of these structures."),
        columns.add(
            "outliers", "Structures whose volume stands out among the cases of this table."
        ),
        columns.add("intracranial_ml", "Volume of everything inside the skull.", "mL"),
        columns.add("message", "The reason why the case failed, or a remark about it."),
    ]


def _measure_columns(columns: _Columns, names: Iterable[str]) -> list[tuple[str, str, str]]:
    """For each structure its name and its columns: volume and expected Dice."""
    measures = []
    for name in names:
        heading = re.sub(r"\W+", "_", name).strip("_").lower()
        volume = columns.add(f"{heading}_ml", f"Volume of: {name}.", "mL")
        dice = columns.add(
            f"{heading}_expected_dice",
            f"Expected Dice coefficient with a manual segmentation of: {name}.",
            "1",
        )
        measures.append((name, volume, dice))
    return measures


def _object_columns(columns: _Columns) -> dict[str, str]:
    """The columns of separate objects, by the names of their figures."""
    area = "Median of their areas, if the size of a pixel is known."
    return {
        "count": columns.add("objects", "Number of separate objects."),
        "median_pixels": columns.add("objects_median_pixels", "Median of their pixels."),
        "median_area_mm2": columns.add("objects_median_area_mm2", area, "mm^2"),
    }


def _cells(
    row: CaseRow,
    fixed: Sequence[str],
    measures: Sequence[tuple[str, str, str]],
    outliers: Mapping[str, Mapping[str, float]],
) -> dict[str, Any]:
    entry = row.entry
    standing_out = list(outliers.get(entry.case, ())) or None
    values = (
        *(entry.case, entry.state, entry.remarks, list(row.flagged) or None),
        *(standing_out, row.intracranial_ml, entry.message or None),
    )
    by_name = {item["name"]: item for item in row.structures}
    cells = dict(zip(fixed, values, strict=True))
    for name, volume, dice in measures:
        item = by_name.get(name, {})
        cells |= {volume: item.get("volume_ml"), dice: item.get("expected_dice")}
    return cells

"""The page of a batch: which cases to check first, how volumes are distributed, and which scans were left out."""

from __future__ import annotations

import functools
import os
import statistics
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medsegai import __version__
from medsegai.errors import counted
from medsegai.export.report import STYLE
from medsegai.io import atomic_path
from medsegai.output.cohort import FAR, FEWEST, CaseRow, Cohort
from medsegai.request import NOT_FOR_DIAGNOSIS
from medsegai.system.outside_text import page_text
from medsegai.worker.batch_events import CaseState

MOST_POINTS = 300
"""The largest number of cases that all have a point in the plots; with more, only outliers have one."""

WIDTH, HEIGHT, MARGIN = 320, 22, 6

MORE_STYLE = """
svg { vertical-align: middle; } svg .box { fill: #c9d8ee; stroke: #44618f; } svg line { stroke: #44618f; }
svg circle { fill: #44618f; fill-opacity: .35; } svg .far { fill: #b00020; fill-opacity: 1; }
.range { white-space: nowrap; } .words, thead th.words { text-align: left; overflow-wrap: anywhere; }
.cases :is(td, th):nth-child(2) { text-align: left; }
"""


def cohort_page(cohort: Cohort, folder: Path) -> str:
    """Return the page as HTML; its links are relative to `folder`."""
    outliers = cohort.outliers()
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>Cohort report</title><style>{STYLE}{MORE_STYLE}</style></head><body>",
            "<h1>Cohort report</h1>",
            f'<p class="source">{_summary(cohort)}</p>',
            f'<p class="notice">{page_text(NOT_FOR_DIAGNOSIS)}</p>',
            "<h2>Look at these first</h2>",
            *_flagged(cohort, outliers, folder),
            "<h2>Not in the figures</h2>",
            *_excluded(cohort),
            "<h2>Distributions</h2>",
            *_distributions(cohort, folder),
            *_objects(cohort, folder),
            "<h2>All cases</h2>",
            *_all(cohort, folder),
            f"<p>Written by MedSegAI {__version__}.</p>",
            "</body></html>\n",
        ]
    )


def write_cohort_page(path: Path, cohort: Cohort) -> None:
    """Write `cohort_page`. Raises OutputError."""
    page = cohort_page(cohort, path.parent)
    with atomic_path(path) as partial:
        partial.write_text(page, encoding="utf-8")


def _summary(cohort: Cohort) -> str:
    states = [row.entry.state for row in cohort.rows]
    done, failed = states.count(CaseState.DONE), states.count(CaseState.FAILED)
    words = [f"{done} of {counted(len(states), 'case is', 'cases are')} done", f"{failed} failed"]
    waiting = len(states) - done - failed
    return ", ".join([*words, *([f"{waiting} waiting"] if waiting else [])]) + "."


def _flagged(
    cohort: Cohort, outliers: Mapping[str, Mapping[str, float]], folder: Path
) -> Iterator[str]:
    """Return a table of the cases with remarks or outliers, those with most at the top."""

    def weight(row: CaseRow) -> int:
        return len(set(row.flagged) | set(outliers.get(row.entry.case, ())))

    first = sorted((row for row in cohort.rows if weight(row)), key=weight, reverse=True)
    if not first:
        yield "<p>There are no cases with remarks or outlying volumes.</p>"
        return
    yield (
        "<table><thead><tr><th>Case</th><th>Structures</th><th class='words'>Remarks</th>"
        "<th class='words'>Volume stands out</th></tr></thead><tbody>"
    )
    for row in first:
        yield _flagged_row(row, outliers.get(row.entry.case, {}), weight(row), folder)
    yield "</tbody></table>"


def _flagged_row(row: CaseRow, outliers: Mapping[str, float], weight: int, folder: Path) -> str:
    remarks = "; ".join(f"{', '.join(names)}: {why}" for why, names in row.remarks().items())
    far = "; ".join(
        f"{name}: {'large' if score > 0 else 'small'}" for name, score in outliers.items()
    )
    return (
        f"<tr><td>{_link(row, folder)}</td><td>{weight}</td>"
        f'<td class="words">{page_text(remarks) or "–"}</td>'
        f'<td class="words">{page_text(far) or "–"}</td></tr>'
    )


def _excluded(cohort: Cohort) -> Iterator[str]:
    """Return the list of scans without figures: cases that failed or wait, and scans that did not become cases."""
    absent = [row.entry for row in cohort.rows if row.entry.state != CaseState.DONE]
    if not absent and not cohort.left_out:
        yield "<p>No scan was left out.</p>"
        return
    yield "<ul>"
    for entry in absent:
        why = f"{entry.state}. {entry.message}" if entry.message else entry.state
        yield f"<li><b>{page_text(entry.case)}</b>: {page_text(why)}</li>"
    yield from (f"<li>{page_text(words)}</li>" for words in cohort.left_out)
    yield "</ul>"


EXPLAINED = (
    "<p>Box: the middle half of the cases, with the median. Red: the volume stands out, "
    "because the modified z-score of its logarithm (distance from the median over the "
    f"median absolute deviation) exceeds {FAR:g}; this needs at least {FEWEST} cases. A "
    "case can stand out because of the person rather than an error.</p>"
)
"""What is said below the table of volumes."""


def _distributions(cohort: Cohort, folder: Path) -> Iterator[str]:
    pages = _pages(cohort, folder)
    yield (
        "<table><thead><tr><th>Structure</th><th>Cases</th><th>Median (ml)</th><th>Middle half (ml)</th>"
        "<th>Volumes, from least to largest</th><th>Expected Dice (median)</th></tr></thead><tbody>"
    )
    far = cohort.outliers()
    for name in cohort.names():
        standing_out = {case for case, names in far.items() if name in names}
        yield _distribution(cohort, name, standing_out, pages)
    yield "</tbody></table>"
    yield EXPLAINED


@dataclass(frozen=True)
class _Unit:
    """The unit of numbers, and how many of their digits after the point are shown."""

    name: str
    digits: int

    def text(self, value: float) -> str:
        return f"{value:.{self.digits}f}"


OBJECT_FIGURES = {
    "count": ("Number in a case", _Unit("objects", 0)),
    "median_pixels": ("Median size (pixels)", _Unit("pixels", 0)),
    "median_area_mm2": ("Median size (mm²)", _Unit("mm²", 4)),
}
"""The headings and units of the figures of separate objects."""


def _objects(cohort: Cohort, folder: Path) -> Iterator[str]:
    """Return how many separate objects there are and how large they are; nothing if the model has none."""
    counts = cohort.of_objects("count")
    if not counts:
        return
    in_all = counted(int(sum(counts.values())), "object", "objects")
    yield f"<h2>Objects</h2><p>{in_all} in {counted(len(counts), 'case', 'cases')}.</p>"
    yield (
        "<table><thead><tr><th>Objects</th><th>Cases</th><th>Median</th><th>Middle half</th>"
        "<th>Cases, from least to largest</th></tr></thead><tbody>"
    )
    for key, (name, unit) in OBJECT_FIGURES.items():
        values = cohort.of_objects(key)
        if values:
            yield f"<tr>{_spread(name, values, unit, set(), _pages(cohort, folder))}</tr>"
    yield "</tbody></table>"


def _pages(cohort: Cohort, folder: Path) -> dict[str, str]:
    """Return the link to the page of each case; "" where there is none."""
    return {row.entry.case: _address(row, folder) for row in cohort.rows}


def _spread(
    name: str,
    values: Mapping[str, float],
    unit: _Unit,
    far: set[str],
    pages: Mapping[str, str],
) -> str:
    """Return the cells of a line: name, number of cases, median, middle half, and a plot."""
    low, middle, high = map(unit.text, _quartiles(list(values.values())))
    return (
        f"<td>{page_text(name)}</td><td>{len(values)}</td><td>{middle}</td>"
        f'<td class="range">{low} to {high}</td><td>{_plot(values, unit, far, pages)}</td>'
    )


def _distribution(cohort: Cohort, name: str, far: set[str], pages: Mapping[str, str]) -> str:
    """Return the row of a structure."""
    volumes = cohort.values(name, "volume_ml")
    if not volumes:
        return f"<tr><td>{page_text(name)}</td><td>0</td>{'<td>–</td>' * 4}</tr>"
    dice = list(cohort.values(name, "expected_dice").values())
    return (
        f"<tr>{_spread(name, volumes, _Unit('ml', 2), far, pages)}"
        f"<td>{f'{statistics.median(dice):.2f}' if dice else '–'}</td></tr>"
    )


def _quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def _plot(values: Mapping[str, float], unit: _Unit, far: set[str], pages: Mapping[str, str]) -> str:
    """Return a box plot with points, each of which names its case and links to its page."""
    least, most = min(values.values()), max(values.values())
    ends = f"{unit.text(least)} to {unit.text(most)} {unit.name}"
    x = functools.partial(_place, least=least, most=most)
    low, middle, high = map(x, _quartiles(list(values.values())))
    shown = values if len(values) <= MOST_POINTS else {case: values[case] for case in far}
    marks = [
        f'<svg width="{WIDTH}" height="{HEIGHT}" role="img" aria-label="{ends}">',
        f'<line x1="{x(least)}" x2="{x(most)}" y1="{HEIGHT / 2}" y2="{HEIGHT / 2}"/>',
        f'<rect class="box" x="{low}" width="{max(high - low, 1):.1f}" y="4" height="{HEIGHT - 8}"/>',
        f'<line x1="{middle}" x2="{middle}" y1="4" y2="{HEIGHT - 4}"/>',
    ]
    for case, value in sorted(shown.items(), key=lambda item: item[0] in far):
        title = f"{case}: {unit.text(value)} {unit.name}"
        marks.append(_point(title, x(value), case in far, pages[case]))
    return "".join([*marks, "</svg>"])


def _place(value: float, least: float, most: float) -> float:
    part = (value - least) / (most - least) if most > least else 0.5
    return round(MARGIN + part * (WIDTH - 2 * MARGIN), 1)


def _point(title: str, x: float, far: bool, page: str) -> str:
    kind = ' class="far"' if far else ""
    name = f"<title>{page_text(title)}</title>"
    mark = f'<circle{kind} cx="{x}" cy="{HEIGHT / 2}" r="3">{name}</circle>'
    return f'<a href="{page}">{mark}</a>' if page else mark


def _all(cohort: Cohort, folder: Path) -> Iterator[str]:
    yield (
        '<table class="cases"><thead><tr><th>Case</th><th>State</th><th>Remarks</th><th>Intracranial (ml)</th>'
        "<th>Seconds</th></tr></thead><tbody>"
    )
    for row in cohort.rows:
        entry = row.entry
        cells = (
            "–" if entry.remarks is None else str(entry.remarks),
            "–" if row.intracranial_ml is None else f"{row.intracranial_ml:.0f}",
            "–" if entry.seconds is None else f"{entry.seconds:.1f}",
        )
        rest = "".join(f"<td>{cell}</td>" for cell in cells)
        yield f"<tr><td>{_link(row, folder)}</td><td>{page_text(entry.state)}</td>{rest}</tr>"
    yield "</tbody></table>"


def _link(row: CaseRow, folder: Path) -> str:
    name, address = page_text(row.entry.case), _address(row, folder)
    return f'<a href="{address}">{name}</a>' if address else name


def _address(row: CaseRow, folder: Path) -> str:
    """Return the link from the page of the cohort to the page of a case; "" if there is none."""
    if row.page is None:
        return ""
    path = os.path.relpath(row.page, folder).replace(os.sep, "/")
    return page_text(urllib.parse.quote(os.fsencode(path)))

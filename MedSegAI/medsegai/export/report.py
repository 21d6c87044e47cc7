"""A report of one case: pictures, table, warnings and provenance, in one HTML file.

The page is self-contained: it does not load fonts or pictures, and only has scripts if it contains a viewer,
together with the scan. A browser prints it as A4 pages, or a PDF, with the notice on each. It does not contain
patient data, because it does not use the scan's header.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medsegai import __version__
from medsegai.export import viewer
from medsegai.export.case import Case
from medsegai.io import atomic_path
from medsegai.measurements.structures import Measurement
from medsegai.models.quality import LEGEND
from medsegai.output.preview import render_preview
from medsegai.request import NOT_FOR_DIAGNOSIS
from medsegai.system.outside_text import page_text
from medsegai.volume import Volume

COLUMNS = {
    "volume_ml": ("Volume (ml)", ".2f"),
    "surface_mm2": ("Surface (mm²)", ".0f"),
    "mean": ("Mean", "z.1f"),
    "sd": ("SD", "z.1f"),
    "r_mm": ("R (mm)", "z.1f"),
    "a_mm": ("A (mm)", "z.1f"),
    "s_mm": ("S (mm)", "z.1f"),
    "asymmetry_percent": ("Asymmetry (%)", "+z.1f"),
}

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1c1c1c; max-width: 62em; margin: 2em auto; padding: 0 1em;
  overflow-wrap: break-word; }
h1 { font-size: 1.5em; margin: 0; } h2 { font-size: 1.1em; margin: 1.6em 0 .4em; }
.notice { border: 2px solid #b00020; border-radius: 4px; padding: .4em .8em; font-weight: 600; color: #b00020; }
.source { color: #555; overflow-wrap: anywhere; margin: .2em 0 1em; }
img { width: 100%; height: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .15em .5em; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; } thead th { border-bottom: 2px solid #888; }
td:first-child { overflow-wrap: anywhere; min-width: 7em; }
.swatch { display: inline-block; width: .8em; height: .8em; margin-right: .5em; border-radius: 2px;
  border: 1px solid #888; print-color-adjust: exact; -webkit-print-color-adjust: exact; }
dl { display: grid; grid-template-columns: fit-content(16em) 1fr; gap: .1em 1.2em; }
dt { color: #555; } dd { margin: 0; } :is(dt, dd) { overflow-wrap: anywhere; }
@page { size: A4; margin: 15mm 15mm 18mm; @bottom-left { content: "NOTICE"; font: 9px system-ui, sans-serif; }
  @bottom-right { content: counter(page) " / " counter(pages); font: 9px system-ui, sans-serif; } }
@media print { body { font-size: 11px; margin: 0; max-width: none; } tr, img { break-inside: avoid; }
  h2 { break-after: avoid; } thead { display: table-header-group; } }
""".replace("NOTICE", NOT_FOR_DIAGNOSIS)  # also at the foot of each printed page


@dataclass(frozen=True)
class Content:
    """The content of a report.

    Attributes:
        case: the labels and, for the pictures, the scan.
        rows: the measurements of the case.
        warnings: the warnings, in words.
        provenance: names and values, such as model and version, which are shown unchanged.
        title: the heading.
        qualities: the quality of each row in a word of `models.quality`, or "" if it is unknown; empty to omit the
            column.
        viewer: whether the page contains the scan and an interactive viewer.
        entropy: uncertainty in nats on the grid of the labels, for the viewer; None if it was not measured.
    """

    case: Case
    rows: Sequence[Measurement]
    warnings: Sequence[str] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)
    title: str = "Segmentation report"
    qualities: Sequence[str] = ()
    viewer: bool = False
    entropy: Volume | None = None


def case_report(content: Content) -> str:
    """Return the report as HTML.

    Raises:
        MedSegAIError: see `viewer.check_viewer`, if a viewer is wanted.
    """
    text = page_text
    shown = viewer.Shown.of(content.case, content.entropy) if content.viewer else None
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            *_policy(content),
            f"<title>{text(content.title)}</title>",
            f"<style>{STYLE}{viewer.STYLE if content.viewer else ''}</style></head><body>",
            f"<h1>{text(content.title)}</h1>",
            f'<p class="source">{text(Path(content.case.labelmap.source).name)}</p>',
            f'<p class="notice">{text(NOT_FOR_DIAGNOSIS)}</p>',
            *_warnings(content.warnings),
            *(viewer.section(shown) if shown else ()),
            *_pictures(content.case),
            "<h2>Structures</h2>",
            _table(content, _links(content.case, shown)),
            f"<p>{_legend(content)}</p>",
            "<h2>Provenance</h2>",
            _provenance({"Written by": f"MedSegAI {__version__}"} | dict(content.provenance)),
            *(viewer.scripts(shown) if shown else ()),
            "</body></html>\n",
        ]
    )


def _policy(content: Content) -> list[str]:
    """Return the policy that prevents a browser from loading anything for the page, if it has scripts."""
    if not content.viewer:
        return []
    return [f'<meta http-equiv="Content-Security-Policy" content="{viewer.POLICY}">']


def write_report(path: Path | str, content: Content) -> None:
    """Write `case_report`. Raises OutputError."""
    page = case_report(content)
    with atomic_path(path) as partial:
        partial.write_text(page, encoding="utf-8")


def _warnings(warnings: Sequence[str]) -> list[str]:
    if not warnings:
        return ["<h2>Warnings</h2>", "<p>None.</p>"]
    items = "".join(f"<li>{page_text(warning)}</li>" for warning in warnings)
    return ["<h2>Warnings</h2>", f"<ul>{items}</ul>"]


def _pictures(case: Case) -> list[str]:
    if case.image is None:
        return ["<p>There are no pictures, because the scan was not named.</p>"]
    file = io.BytesIO()
    render_preview(case.image, case.labelmap, case.labels).save(file, "PNG")
    data = base64.b64encode(file.getvalue()).decode()
    alt = "Axial, coronal and sagittal slices with the outlines of the structures"
    return ["<h2>Pictures</h2>", f'<img alt="{alt}" src="data:image/png;base64,{data}">']


def _table(content: Content, links: Mapping[int, str]) -> str:
    """Return the table with the columns for which at least one structure has a number."""
    rows, qualities = content.rows, content.qualities
    shown = {
        name: spec
        for name, (_, spec) in COLUMNS.items()
        if any(not math.isnan(getattr(row, name)) for row in rows)
    }
    judged = qualities if any(qualities) else [None] * len(rows)
    head = "<th>Quality</th>" * any(qualities)
    head += "".join(f"<th>{page_text(COLUMNS[name][0])}</th>" for name in shown)
    body = "\n".join(
        _row(row, quality, shown, links.get(row.label.value, ""))
        for row, quality in zip(rows, judged, strict=True)
    )
    return f"<table><thead><tr><th>Structure</th>{head}</tr></thead><tbody>{body}</tbody></table>"


def _row(row: Measurement, quality: str | None, shown: Mapping[str, str], link: str) -> str:
    color = "#{:02x}{:02x}{:02x}".format(*row.label.color)
    swatch = f'<span class="swatch" style="background:{color}"></span>'
    name = swatch + page_text(row.label.name)
    cells = "" if quality is None else f"<td>{page_text(quality) or '–'}</td>"
    cells += "".join(f"<td>{_number(getattr(row, key), spec)}</td>" for key, spec in shown.items())
    name = viewer.eye(row.label) + name if link else name
    return f"<tr{link}><td>{name}</td>{cells}</tr>"


def _links(case: Case, shown: viewer.Shown | None) -> dict[int, str]:
    """Return the attributes that link a row of the table to its structure in the viewer, by label value."""
    if shown is None:
        return {}
    number = viewer.numbers(case.labels)
    return {
        value: f' data-mm="{r:.3f} {a:.3f} {s:.3f}" data-value="{number[value]}" tabindex="0"'
        for value, (r, a, s) in shown.places().items()
    }


def _legend(content: Content) -> str:
    """Return the explanation of columns."""
    paired = any(not math.isnan(row.asymmetry_percent) for row in content.rows)
    words = f"Quality: {LEGEND} " if any(content.qualities) else ""
    if paired:
        words += "Asymmetry: left minus right volume, in per cent of the mean of both. "
    return f"{words}R, A, S: the centroid, in mm towards right, anterior and superior."


def _number(value: float, spec: str) -> str:
    return "–" if math.isnan(value) else format(value, spec)


def _provenance(values: Mapping[str, Any]) -> str:
    items = "".join(
        f"<dt>{page_text(name)}</dt><dd>{page_text(_words(value))}</dd>"
        for name, value in values.items()
    )
    return f"<dl>{items}</dl>"


def _words(value: object) -> str:
    """Return JSON values in readable form: `device: cpu; threads: 2`."""
    if isinstance(value, Mapping):
        return "; ".join(f"{name}: {_words(part)}" for name, part in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(_words(part) for part in value) or "–"
    return "–" if value is None else str(value)

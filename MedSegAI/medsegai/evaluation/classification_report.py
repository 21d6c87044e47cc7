"""The evaluation of a classifier as one HTML page: figures, curves, and the worst mistakes with heat maps.

Like the report of a case, the page is self-contained: it loads no scripts, fonts or pictures.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medsegai import __version__
from medsegai.decoding.slides import Pixels
from medsegai.evaluation.classification import ClassificationFigures, ClassifiedPictures, roc_curve
from medsegai.evaluation.drawing import new_figure, save_figure
from medsegai.evaluation.heat_maps import over_picture
from medsegai.export.report import STYLE
from medsegai.io import atomic_path
from medsegai.request import NOT_FOR_DIAGNOSIS
from medsegai.system.outside_text import page_text

WORST = 12
"""The largest number of mistakes that are shown."""

SIDE = 320
"""The longer side of a picture on the page, in pixels."""

LOOK = (
    STYLE
    + """
.curves { display: grid; grid-template-columns: repeat(3, 1fr); gap: 1em; }
.mistakes { display: grid; grid-template-columns: repeat(auto-fill, minmax(22em, 1fr)); gap: 1em; }
.mistakes figure { margin: 0; } .mistakes div { display: flex; gap: 2px; } .mistakes img { width: 33%; }
figcaption { font-size: .85em; overflow-wrap: anywhere; }
"""
)


@dataclass(frozen=True, eq=False)
class ShownPicture:
    """A picture with the heat maps that show what the classifier looks at.

    Attributes:
        pixels: RGB, uint8 (row, column, 3).
        heat: heat maps of the decided class by name, each float32 from 0 to 1 (row, column).
    """

    pixels: Pixels
    heat: Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True, eq=False)
class ReportContent:
    """The content of the page.

    Attributes:
        show: returns the picture of a number with its heat maps; it is called for the worst mistakes only.
        notes: what the reader should know about the pictures or the figures.
        provenance: names and values that say how the figures were made.
    """

    title: str
    judged: ClassifiedPictures
    figures: ClassificationFigures
    show: Callable[[int], ShownPicture] | None = None
    notes: Sequence[str] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)


def write_classification_report(path: Path | str, content: ReportContent) -> None:
    """Write the page. Raises OutputError if the file cannot be written."""
    page = classification_report(content)
    with atomic_path(path) as partial:
        partial.write_text(page, encoding="utf-8")


def classification_report(content: ReportContent) -> str:
    """The page as HTML."""
    title = page_text(content.title)
    figures = "".join(
        f"<tr><td>{page_text(name)}</td><td>{page_text(value)}</td></tr>"
        for name, value in content.figures.rows()
    )
    notes = "".join(f"<li>{page_text(note)}</li>" for note in content.notes)
    facts = {"Written by": f"MedSegAI {__version__}"} | dict(content.provenance)
    return "\n".join(
        [
            '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{title}</title><style>{LOOK}</style></head><body>",
            f"<h1>{title}</h1>",
            f'<p class="notice">{page_text(NOT_FOR_DIAGNOSIS)}</p>',
            f"<ul>{notes}</ul>" if notes else "",
            "<h2>Figures</h2>",
            f"<table><tbody>{figures}</tbody></table>",
            "<p>In brackets: the 95 % interval of a bootstrap over patients or slides.</p>",
            *_curves(content),
            "<h2>Confusion</h2>",
            _confusion(content.figures),
            *_mistakes(content),
            "<h2>Provenance</h2>",
            _facts(facts),
            "</body></html>\n",
        ]
    )


def _facts(values: Mapping[str, Any]) -> str:
    items = "".join(
        f"<dt>{page_text(name)}</dt><dd>{page_text(value)}</dd>" for name, value in values.items()
    )
    return f"<dl>{items}</dl>"


def _confusion(figures: ClassificationFigures) -> str:
    names = [page_text(name) for name in figures.classes]
    head = "".join(f"<th>decided {name}</th>" for name in names)
    lines = []
    for name, row in zip(names, figures.confusion, strict=True):
        total = max(int(row.sum()), 1)
        cells = "".join(f"<td>{count} ({100 * count / total:.0f} %)</td>" for count in row)
        lines.append(f"<tr><td>{name}</td>{cells}</tr>")
    return (
        f"<table><thead><tr><th>true</th>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
    )


def _curves(content: ReportContent) -> list[str]:
    """Confusion matrix, ROC curve and calibration as pictures, or a sentence if matplotlib is not installed."""
    drawings = {
        "Confusion matrix": _draw_confusion,
        "ROC curve": _draw_roc,
        "Calibration": _draw_calibration,
    }
    found = [_drawn(content, draw, alt) for alt, draw in drawings.items()]
    if None in found:
        return ["<p>No curves: matplotlib is not installed.</p>"]
    return [f'<div class="curves">{"".join(filter(None, found))}</div>']


def _drawn(
    content: ReportContent, draw: Callable[[Any, ReportContent], None], alt: str
) -> str | None:
    figure = new_figure(4.0, 3.6)
    if figure is None:
        return None
    draw(figure.subplots(), content)
    file = io.BytesIO()
    save_figure(figure, file)
    return _picture(file.getvalue(), alt)


def _draw_confusion(axes: Any, content: ReportContent) -> None:
    matrix, classes = content.figures.confusion, content.figures.classes
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.ndindex(*matrix.shape):
        colour = "white" if shares[row, column] > 0.5 else "black"
        axes.text(column, row, str(matrix[row, column]), ha="center", va="center", color=colour)
    axes.set_xticks(range(len(classes)), classes, rotation=30, ha="right")
    axes.set_yticks(range(len(classes)), classes)
    axes.set(xlabel="decided", ylabel="true", title="Confusion")


def _draw_roc(axes: Any, content: ReportContent) -> None:
    judged = content.judged
    numbers = [1] if len(judged.classes) == 2 else range(len(judged.classes))
    for number in numbers:
        false, true = roc_curve(
            (judged.truth == number).astype(int), judged.probabilities[:, number]
        )
        axes.plot(false, true, label=judged.classes[number])
    axes.plot([0, 1], [0, 1], color="grey", linewidth=0.8, linestyle=":")
    axes.set(xlabel="1 - specificity", ylabel="sensitivity", title=f"AUC {content.figures.auc}")
    axes.title.set_fontsize(9)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")


def _draw_calibration(axes: Any, content: ReportContent) -> None:
    found = content.figures.calibration
    there = [n for n, count in enumerate(found.counts) if count]
    axes.plot([found.confidence[n] for n in there], [found.accuracy[n] for n in there], marker="o")
    axes.plot([0, 1], [0, 1], color="grey", linewidth=0.8, linestyle=":")
    axes.set(xlabel="confidence", ylabel="share that is correct", xlim=(0, 1), ylim=(0, 1.02))
    axes.set_title(f"Calibration error {found.error:.3f}", fontsize=9)
    axes.grid(alpha=0.3)


def _mistakes(content: ReportContent) -> list[str]:
    """The misclassified pictures with the largest losses, each with the heat maps of the decided class."""
    judged = content.judged
    losses = judged.losses()
    wrong = np.flatnonzero(judged.decided != judged.truth)
    worst = wrong[np.argsort(-losses[wrong])][:WORST]
    if not len(worst):
        return [
            "<h2>Worst mistakes</h2>",
            "<p>There are none, because every picture was classified correctly.</p>",
        ]
    figures = [_mistake(content, int(number), float(losses[number])) for number in worst]
    heading = f"<h2>Worst mistakes ({len(worst)} of {len(wrong)})</h2>"
    return [heading, f'<div class="mistakes">{"".join(figures)}</div>']


def _mistake(content: ReportContent, number: int, loss: float) -> str:
    judged = content.judged
    decided, truth = int(judged.decided[number]), int(judged.truth[number])
    sure = judged.probabilities[number, decided]
    words = (
        f"{judged.names[number]}: {judged.classes[truth]}, classified as {judged.classes[decided]} with "
        f"{sure:.2f} (loss {loss:.2f})"
    )
    images = ""
    if content.show is not None:
        shown = content.show(number)
        images = _picture(_encoded(shown.pixels), "picture")
        for name, heat in shown.heat.items():
            images += _picture(_encoded(over_picture(shown.pixels, heat)), name)
        words += f". Beside it: {', '.join(shown.heat)}." if shown.heat else ""
    return f"<figure><div>{images}</div><figcaption>{page_text(words)}</figcaption></figure>"


def _encoded(pixels: Pixels) -> bytes:
    image = Image.fromarray(pixels)
    image.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=85)
    return file.getvalue()


def _picture(data: bytes, alt: str) -> str:
    kind = "jpeg" if data[:2] == b"\xff\xd8" else "png"
    text = base64.b64encode(data).decode()
    return f'<img alt="{page_text(alt)}" src="data:image/{kind};base64,{text}">'

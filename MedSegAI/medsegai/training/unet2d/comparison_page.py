"""A comparison of networks as a self-contained HTML page, and as JSON."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from medsegai.errors import counted
from medsegai.export.report import STYLE
from medsegai.io import atomic_path
from medsegai.request import NOT_FOR_DIAGNOSIS
from medsegai.system.outside_text import page_text
from medsegai.training.checkpoint import best_weights_name, load_weights
from medsegai.training.unet2d.comparison import (
    ComparisonConfig,
    Difference,
    Trained,
    summary,
    trainings,
)
from medsegai.training.unet2d.config import Training2DConfig
from medsegai.training.unet2d.data import PictureCase, read_cases
from medsegai.training.unet2d.fold import Fold, Ready, made_ready
from medsegai.training.unet2d.run import CURVES

MOST_DIFFERENT = 4
"""The number of cases that are shown."""

SIDE = 256
"""The longer side of a picture in the page, in pixels."""

EXPLAINED = (
    "Differences are between scores of the same cases. Their intervals come from a bootstrap over groups and are "
    "corrected for the number of pairs (95 % together). They show how much the result depends on the choice of "
    "cases; how much it depends on the random start, they show only if several seeds were trained."
)

LOOK = STYLE + ".pictures img { width: 23%; margin: 0 1% 1em 0; } td { white-space: nowrap; }"

COLOURS = {
    "expected": (80, 200, 120),
    "only the first": (70, 130, 230),
    "only the second": (230, 110, 60),
}


def write_comparison(
    folder: Path,
    networks: Sequence[Trained],
    found: Sequence[Difference],
    config: ComparisonConfig | None,
) -> tuple[Path, Path]:
    """Write comparison.html and comparison.json; with `config`, with the cases that differ most.

    Raises:
        OutputError: the folder cannot be written.
        InputError: the pictures cannot be read.
    """
    page, values = folder / "comparison.html", folder / "comparison.json"
    pictures = [] if config is None else most_different(config, networks, folder)
    with atomic_path(page) as partial:
        partial.write_text(_page(networks, found, pictures), encoding="utf-8")
    with atomic_path(values) as partial:
        text = json.dumps(summary(networks, found), indent=1)
        partial.write_text(text + "\n", encoding="utf-8")
    return page, values


def _verdict(found: Sequence[Difference]) -> str:
    real = [item for item in found if item.real]
    if not real:
        return "No difference is real: every interval includes zero."
    differences = counted(len(found), "difference is", "differences are")
    return f"{len(real)} of {differences} real: their interval excludes zero."


def _cells(item: Difference) -> list[str]:
    interval = f"{item.low:+.4f} to {item.high:+.4f}"
    real = "yes" if item.real else "no"
    return [item.first, item.second, f"{item.mean:+.4f}", interval, str(item.cases), real]


NETWORK_COLUMNS = ("network", "Dice", "IoU", "Dice of each fold", "million weights", "minutes")
DIFFERENCE_COLUMNS = ("better", "than", "by (Dice)", "interval", "cases", "real")


def _page(networks: Sequence[Trained], found: Sequence[Difference], pictures: Sequence[str]) -> str:
    ordered = sorted(networks, key=lambda network: -network.mean)
    return "\n".join(
        [
            '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">',
            f"<title>Comparison of networks</title><style>{LOOK}</style></head><body>",
            "<h1>Comparison of networks</h1>",
            f'<p class="notice">{page_text(NOT_FOR_DIAGNOSIS)}</p>',
            _table(NETWORK_COLUMNS, [_row(network) for network in ordered]),
            f"<h2>Differences</h2><p><b>{_verdict(found)}</b></p>",
            _table(DIFFERENCE_COLUMNS, [_cells(item) for item in found]),
            f"<p>{EXPLAINED}</p>",
            *pictures,
            "<h2>Curves</h2>",
            *(_curve(network) for network in ordered),
            "</body></html>\n",
        ]
    )


def _row(network: Trained) -> list[str]:
    return [
        network.name,
        f"{network.mean:.4f}",
        f"{np.mean(list(network.iou.values())):.4f}",
        " ".join(f"{value:.4f}" for value in network.folds.values()),
        f"{network.parameters / 1e6:.2f}",
        f"{network.seconds / 60:.1f}",
    ]


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{page_text(c)}</{tag}>" for c in cells) + "</tr>"

    body = "".join(line(row, "td") for row in rows)
    return f"<table><thead>{line(header, 'th')}</thead><tbody>{body}</tbody></table>"


def _curve(network: Trained) -> str:
    path = network.runs[0] / CURVES
    if not path.is_file():
        return ""
    data = base64.b64encode(path.read_bytes()).decode()
    name = page_text(network.name)
    return f'<h3>{name}</h3><img alt="curves of {name}" src="data:image/png;base64,{data}">'


def most_different(
    config: ComparisonConfig, networks: Sequence[Trained], folder: Path
) -> list[str]:
    """Return the cases in which the two best networks differ most: image, both results, and their differences."""
    first, second = sorted(networks, key=lambda network: -network.mean)[:2]
    apart = {name: first.dice[name] - second.dice[name] for name in first.dice}
    chosen = sorted(apart, key=lambda name: -abs(apart[name]))[:MOST_DIFFERENT]
    files = {network.folder(seed): training for network, seed, training in trainings(config)}
    both = [files[item.runs[0].name] for item in (first, second)]
    cases = {case.name: case for case in read_cases(both[0])}
    return [
        f"<h2>Where they differ most</h2><p>{page_text(first.name)} and {page_text(second.name)}: the image "
        "with the outline of the reference (green), both results, and the pixels that only the first (blue) or "
        "only the second (orange) found.</p>",
        *(_case(cases[name], (first, second), both) for name in chosen),
    ]


def _case(
    case: PictureCase, networks: Sequence[Trained], trainings: Sequence[Training2DConfig]
) -> str:
    """Return one case with the results of two networks, whose trainings are given."""
    ready = made_ready(trainings[0], [case])[0]
    masks = [
        _answer(training, network.runs[0], case.name, ready)
        for training, network in zip(trainings, networks, strict=True)
    ]
    figures = " and ".join(f"{network.dice[case.name]:.4f}" for network in networks)
    return f"<h3>{page_text(case.name)}: Dice {figures}</h3>" + _side_by_side(ready, masks)


def _answer(training: Training2DConfig, place: Path, name: str, ready: Ready) -> NDArray[np.bool_]:
    """Return where a network that did not learn from a case finds a structure in it."""
    rows = json.loads((place / "scores.json").read_text(encoding="utf-8"))["cases"]
    number = next(int(row["fold"]) for row in rows if row["case"] == name)
    plain = replace(training, network=replace(training.network, pretrained=""))
    fold = Fold(plain, number, torch.device("cpu"))
    fold.network.load_state_dict(load_weights(place / best_weights_name(fold.name)))
    return np.asarray(fold.probabilities(ready.image, ready.case.target.shape).argmax(0) > 0)


def _side_by_side(ready: Ready, masks: Sequence[NDArray[np.bool_]]) -> str:
    image = np.moveaxis(ready.case.image, 0, -1)
    grey = np.repeat(image[..., :1], 3, axis=2) if image.shape[2] != 3 else image
    base = (255 * grey).astype(np.uint8)
    expected = ready.case.target > 0
    views = [_outlined(base, expected)]
    views += [_filled(base, mask, "expected") for mask in masks]
    only = _filled(base, masks[0] & ~masks[1], "only the first")
    views.append(_filled(only, masks[1] & ~masks[0], "only the second"))
    return '<div class="pictures">' + "".join(map(_embedded, views)) + "</div>"


def _outlined(base: NDArray[np.uint8], mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    inner = mask.copy()
    inner[1:-1, 1:-1] &= mask[:-2, 1:-1] & mask[2:, 1:-1] & mask[1:-1, :-2] & mask[1:-1, 2:]
    result = base.copy()
    result[mask & ~inner] = COLOURS["expected"]
    return result


def _filled(base: NDArray[np.uint8], mask: NDArray[np.bool_], what: str) -> NDArray[np.uint8]:
    result = base.copy()
    result[mask] = (0.5 * base[mask] + 0.5 * np.array(COLOURS[what])).astype(np.uint8)
    return result


def _embedded(pixels: NDArray[np.uint8]) -> str:
    image = Image.fromarray(pixels)
    image.thumbnail((SIDE, SIDE))
    stream = io.BytesIO()
    image.save(stream, format="PNG")
    data = base64.b64encode(stream.getvalue()).decode()
    return f'<img alt="" src="data:image/png;base64,{data}">'

"""A picture of what a refinement changed: one slice of it before and after, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

from medsegai.labels import Label
from medsegai.output import preview
from medsegai.volume import Volume

SIDE_MM = 56
"""What is shown, so that single voxels can be seen."""

PIXELS_PER_MM = 7
GAP, TITLE_HEIGHT = 8, 22
PAPER, INK = (255, 255, 255), (0, 0, 0)
AXIAL = preview.PLANES[0]


def render(
    image: Volume,
    before: Volume,
    after: Volume,
    labels: Sequence[Label],
    names: Sequence[str],
) -> Image.Image:
    """The axial slice in which some structures lost most, around the place where that is.

    Args:
        image: the scan.
        before, after: label maps on its grid.
        labels: colours of the label values.
        names: of the structures that matter.
    """
    scan, spacing = preview._towards_sar(image)
    codes = [preview._codes(preview._towards_sar(item)[0], labels) for item in (before, after)]
    wanted = [number for number, label in enumerate(labels, 1) if label.name in names]
    changed = (codes[0] != codes[1]) & np.isin(codes[0], wanted)
    window = preview._window(scan)
    index, rows, columns = _where(changed, spacing)
    paint = preview._Paint.of(labels, np.bincount(codes[1].ravel(), minlength=len(labels) + 1))
    size = (SIDE_MM * PIXELS_PER_MM, SIDE_MM * PIXELS_PER_MM)
    grey = preview._grey(scan[index, rows, columns][::-1, ::-1], window, size)
    panels = []
    for values in codes:
        shown = values[index, rows, columns][::-1, ::-1]
        shown = preview._resized(shown, size, Image.Resampling.NEAREST)
        panels.append(paint.outlined(grey, shown))
    return _side_by_side(panels, ("before", "after"))


def _where(changed: NDArray[np.bool_], spacing: NDArray[np.float64]) -> tuple[int, slice, slice]:
    """The slice with most changes, and rows and columns of a square around where they are densest."""
    index = int(changed.sum((1, 2)).argmax())
    reach = [round(SIDE_MM / float(length)) for length in spacing[1:]]
    density = ndimage.uniform_filter(changed[index].astype(np.float64), reach, mode="constant")
    middle = np.unravel_index(int(density.argmax()), density.shape)
    spans = []
    for center, length, size in zip(middle, reach, density.shape, strict=True):
        start = min(max(int(center) - length // 2, 0), max(size - length, 0))
        spans.append(slice(start, start + length))
    return index, spans[0], spans[1]


def _side_by_side(panels: Sequence[NDArray[Any]], titles: Sequence[str]) -> Image.Image:
    height, width = panels[0].shape[:2]
    size = (len(panels) * (width + GAP) - GAP, height + TITLE_HEIGHT)
    sheet = Image.new("RGB", size, PAPER)
    pen = ImageDraw.Draw(sheet)
    for number, (panel, title) in enumerate(zip(panels, titles, strict=True)):
        left = number * (width + GAP)
        pen.text((left + 4, 3), title, INK, preview._font())
        sheet.paste(Image.fromarray(panel.astype(np.uint8)), (left, TITLE_HEIGHT))
    return sheet

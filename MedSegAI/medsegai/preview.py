"""A picture of a segmentation: three planes, coloured outlines, side letters, a legend.

Drawn as 3D Slicer shows it: axial and coronal with the patient's right on the left of the picture,
sagittal with the nose to the left. Oblique grids are shown along their own axes, each named after the
anatomical direction it is closest to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from medsegai.labels import Label
from medsegai.request import NOT_FOR_DIAGNOSIS
from medsegai.volume import Geometry, Volume, check_same_grid

LONGEST_SIDE = 420
"""Pixels of the scan's longest side, in mm, on the picture; the other sides follow in scale."""

Color = tuple[int, int, int]
BACKGROUND: Color = (24, 24, 24)
SMALLEST_PANEL = 140
GAP = 8
FONT_SIZE = 14
LINE_HEIGHT = 20
LEGEND_ROWS = 9
FILL = 0.25
"""Opacity of the colour inside an outline."""

WINDOW_PERCENTILES = (0.5, 99.5)
MAX_SAMPLES = 2_000_000
"""Voxels from which the grey window is taken; more would not move the percentiles."""


@dataclass(frozen=True)
class Plane:
    """One anatomical plane of a volume whose axes are (S, A, R), each growing towards its letter.

    Attributes:
        name: as Slicer names it.
        axis: the array axis that the plane cuts.
        left, right, top, bottom: what lies at each border of the picture.
    """

    name: str
    axis: int
    left: str
    right: str
    top: str
    bottom: str

    def cut(self, voxels: NDArray[Any], index: int) -> NDArray[Any]:
        """Rows from top to bottom, columns from left to right of the picture."""
        return np.take(voxels, index, axis=self.axis)[::-1, ::-1]

    def size(self, shape: tuple[int, ...], scale: NDArray[np.float64]) -> tuple[int, int]:
        """(width, height) in pixels, from the pixels per voxel along each axis."""
        rows, columns = (axis for axis in range(3) if axis != self.axis)
        width, height = shape[columns] * scale[columns], shape[rows] * scale[rows]
        return max(1, round(width)), max(1, round(height))


PLANES = (
    Plane("Axial", axis=0, left="R", right="L", top="A", bottom="P"),
    Plane("Coronal", axis=1, left="R", right="L", top="S", bottom="I"),
    Plane("Sagittal", axis=2, left="A", right="P", top="S", bottom="I"),
)


def render_preview(
    image: Volume, labelmap: Volume, labels: Sequence[Label], entropy: Volume | None = None
) -> Image.Image:
    """Draw `labelmap` over `image`, and `entropy`, if given, in a second row.

    Args:
        image: the scan, (k, j, i), any number type.
        labelmap: label values on the same grid.
        labels: names and colours; values without a label are not drawn.
        entropy: uncertainty in nats on the same grid.

    Returns:
        An RGB picture. Each plane cuts where it shows most of the structures.

    Raises:
        GeometryError: the volumes do not lie on one grid.
    """
    for other in (labelmap, entropy):
        if other is not None:
            check_same_grid(
                other.geometry,
                image.geometry,
                "The result",
                "the scan",
                "A picture needs both on one grid: name the scan that was segmented.",
            )
    scan, spacing = _towards_sar(image)
    codes = _codes(_towards_sar(labelmap)[0], labels)
    areas = [_areas(codes, axis, len(labels)) for axis in range(3)]
    window = _window(scan[_box(areas)])
    doubts = None if entropy is None else _towards_sar(entropy)[0]
    scale = LONGEST_SIDE / max(np.multiply(scan.shape, spacing))
    colors = np.array([(0, 0, 0), *(label.color for label in labels)], dtype=np.float64)

    top, bottom = [], []
    shown: set[int] = set()
    for plane in PLANES:
        index = _best_cut(areas[plane.axis])
        size = plane.size(scan.shape, spacing * scale)
        grey = _grey(plane.cut(scan, index), window, size)
        coded = _resized(plane.cut(codes, index), size, Image.Resampling.NEAREST)
        shown |= set(np.flatnonzero(areas[plane.axis][index]).tolist())
        top.append(_panel(_outlined(grey, coded, colors), plane))
        if doubts is not None:
            heat = _resized(plane.cut(doubts, index), size, Image.Resampling.BILINEAR)
            bottom.append(_panel(_heated(grey, heat, np.log(len(labels) + 1)), plane))
    legend = [(labels[code - 1].name, labels[code - 1].color) for code in sorted(shown - {0})]
    return _sheet([row for row in (top, bottom) if row], legend)


def _areas(codes: NDArray[np.uint16], axis: int, count: int) -> NDArray[np.int64]:
    """Voxels of background and of each structure, in each slice along `axis`: (slice, 1 + count)."""
    slices = np.moveaxis(codes, axis, 0)
    return np.array([np.bincount(plane.ravel(), minlength=count + 1) for plane in slices])


def _best_cut(areas: NDArray[np.int64]) -> int:
    """The slice where most structures show much of themselves; the middle if there is no structure.

    Each structure counts with its area relative to its largest area in any slice, so that small ones
    count as much as large ones.
    """
    structures = areas[:, 1:]
    if not structures.any():
        return len(areas) // 2
    shares = (structures / np.maximum(structures.max(axis=0), 1)).sum(axis=1)
    best = np.flatnonzero(np.isclose(shares, shares.max()))
    return int(best[len(best) // 2])


def _box(areas: Sequence[NDArray[np.int64]]) -> tuple[slice, ...]:
    """The box around all structures; everything if there are none."""
    filled = [np.flatnonzero(along[:, 1:].any(axis=1)) for along in areas]
    if filled[0].size == 0:
        return (slice(None), slice(None), slice(None))
    return tuple(slice(int(indices[0]), int(indices[-1]) + 1) for indices in filled)


def _towards_sar(volume: Volume) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Voxels as a view with axes (S, A, R) growing, and the spacing of those axes in mm."""
    order, flips = closest_axes(volume.geometry)
    voxels = volume.voxels.transpose(order)
    voxels = voxels[tuple(slice(None, None, -1 if flip else 1) for flip in flips)]
    spacing = np.array(volume.geometry.spacing_mm[::-1])[list(order)]
    return voxels, spacing


def closest_axes(geometry: Geometry) -> tuple[tuple[int, int, int], tuple[bool, bool, bool]]:
    """Which array axis (k, j, i) runs along S, A and R, and whether it runs against it.

    Each voxel axis goes to one anatomical axis, so that the sum of the cosines is largest.
    """
    matrix = geometry.ijk_to_ras[:3, :3] / np.array(geometry.spacing_mm)
    cosines = matrix[::-1, ::-1]  # rows S, A, R; columns k, j, i
    order = max(
        permutations(range(3)), key=lambda p: sum(abs(cosines[row, p[row]]) for row in range(3))
    )
    first, second, third = order
    flips = [bool(cosines[row, column] < 0) for row, column in enumerate(order)]
    return (first, second, third), (flips[0], flips[1], flips[2])


def _codes(values: NDArray[Any], labels: Sequence[Label]) -> NDArray[np.uint16]:
    """Label values as positions in `labels`, from 1; 0 for everything else."""
    lookup = np.zeros(
        max(int(values.max(initial=0)), *(label.value for label in labels)) + 1, np.uint16
    )
    for position, label in enumerate(labels, start=1):
        lookup[label.value] = position
    return lookup[values]


def _window(voxels: NDArray[Any]) -> tuple[float, float]:
    """The grey values that become black and white."""
    stride = max(1, round((voxels.size / MAX_SAMPLES) ** (1 / 3)))
    sample = voxels[::stride, ::stride, ::stride].astype(np.float64)
    sample = sample[np.isfinite(sample)]
    if sample.size == 0:
        return 0.0, 1.0
    low, high = np.percentile(sample, WINDOW_PERCENTILES)
    return float(low), float(max(high, low + 1e-6))


def _grey(
    plane: NDArray[Any], window: tuple[float, float], size: tuple[int, int]
) -> NDArray[np.float64]:
    """The slice as RGB 0-255, (height, width, 3)."""
    low, high = window
    shades = np.clip((np.nan_to_num(plane.astype(np.float64)) - low) / (high - low), 0, 1) * 255
    shades = _resized(shades, size, Image.Resampling.BILINEAR).astype(np.float64)
    return np.repeat(shades[:, :, np.newaxis], 3, axis=2)


def _resized(plane: NDArray[Any], size: tuple[int, int], how: Image.Resampling) -> NDArray[Any]:
    """The slice at (width, height); codes pass through 32-bit integers unharmed."""
    kind = np.float32 if plane.dtype.kind == "f" else np.int32
    picture = Image.fromarray(np.ascontiguousarray(plane, dtype=kind))
    return np.asarray(picture.resize(size, how))


def _outlined(
    grey: NDArray[np.float64], codes: NDArray[Any], colors: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Colour inside each structure lightly, and its border fully."""
    border = np.zeros(codes.shape, dtype=bool)
    border[1:] |= codes[1:] != codes[:-1]
    border[:-1] |= codes[1:] != codes[:-1]
    border[:, 1:] |= codes[:, 1:] != codes[:, :-1]
    border[:, :-1] |= codes[:, 1:] != codes[:, :-1]
    opacity = np.where(codes > 0, np.where(border, 1.0, FILL), 0.0)[:, :, np.newaxis]
    return grey * (1 - opacity) + colors[codes] * opacity


def _heated(grey: NDArray[np.float64], entropy: NDArray[Any], most: float) -> NDArray[np.float64]:
    """Doubt from black over red and yellow to white, over a darkened slice.

    The scale ends at half of `most`, the entropy of a uniform guess: real maps hardly reach further.
    """
    doubt = np.clip(np.nan_to_num(entropy) / (most / 2), 0, 1)
    heat = np.stack([np.clip(doubt * 3 - step, 0, 1) for step in range(3)], axis=2) * 255
    opacity = np.clip(doubt * 4, 0, 1)[:, :, np.newaxis]
    return grey * 0.5 * (1 - opacity) + heat * opacity


def _panel(pixels: NDArray[np.float64], plane: Plane) -> Image.Image:
    """The plane in the middle of a black panel, with its name and side letters."""
    picture = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    width, height = (max(side, SMALLEST_PANEL) for side in picture.size)
    panel = Image.new("RGB", (width, height))
    panel.paste(picture, ((width - picture.width) // 2, (height - picture.height) // 2))
    draw = ImageDraw.Draw(panel)
    for text, place, anchor in (
        (plane.left, (4, height // 2), "lm"),
        (plane.right, (width - 4, height // 2), "rm"),
        (plane.top, (width // 2, 4), "mt"),
        (plane.bottom, (width // 2, height - 4), "mb"),
        (plane.name, (4, 4), "lt"),
    ):
        draw.text(
            place, text, (255, 255, 255), _font(), anchor, stroke_width=2, stroke_fill=(0, 0, 0)
        )
    return panel


def _sheet(rows: list[list[Image.Image]], legend: list[tuple[str, Color]]) -> Image.Image:
    """Rows of panels over the legend and the notice."""
    width = max(sum(panel.width + GAP for panel in row) + GAP for row in rows)
    panels = sum(max(panel.height for panel in row) + GAP for row in rows) + GAP
    columns = min(len(legend), _legend_columns(legend, width)) or 1
    legend = _fitted(legend, columns * LEGEND_ROWS)
    lines = -(-len(legend) // columns) + 1
    sheet = Image.new("RGB", (width, panels + lines * LINE_HEIGHT + GAP), BACKGROUND)
    top = GAP
    for row in rows:
        left = GAP
        height = max(panel.height for panel in row)
        for panel in row:
            sheet.paste(panel, (left, top + (height - panel.height) // 2))
            left += panel.width + GAP
        top += height + GAP
    draw = ImageDraw.Draw(sheet)
    step = (width - GAP) // columns
    for number, (name, color) in enumerate(legend):
        left, line = GAP + number % columns * step, panels + number // columns * LINE_HEIGHT
        draw.rectangle((left, line + 2, left + FONT_SIZE - 2, line + FONT_SIZE), fill=color)
        draw.text((left + FONT_SIZE + 4, line), name, (230, 230, 230), _font())
    notice = NOT_FOR_DIAGNOSIS
    if len(rows) > 1:
        notice += " Second row: uncertainty (entropy), from red to white."
    draw.text((GAP, panels + (lines - 1) * LINE_HEIGHT), notice, (170, 170, 170), _font())
    return sheet


def _legend_columns(legend: list[tuple[str, Color]], width: int) -> int:
    longest = max((_font().getlength(name) for name, _ in legend), default=1.0)
    return max(1, (width - GAP) // (round(longest) + FONT_SIZE + 4 + GAP))


def _fitted(legend: list[tuple[str, Color]], room: int) -> list[tuple[str, Color]]:
    """The legend, or as much of it as there is room for and the number of those left out."""
    if len(legend) <= room:
        return legend
    return [*legend[: room - 1], (f"and {len(legend) - room + 1} more", BACKGROUND)]


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(FONT_SIZE)

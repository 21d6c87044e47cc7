"""A printable picture of a segmentation: three planes with outlines and positions, a legend, and uncertainty.

Drawn as 3D Slicer shows it: axial and coronal with the patient's right on the left of the picture, sagittal with
the nose to the left. Oblique grids are shown along their own axes, each named after the anatomical direction it is
closest to. Regions far from all structures are cropped; all planes have the same scale.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from medsegai.labels import Label, counterparts, without_side
from medsegai.request import NOT_FOR_DIAGNOSIS
from medsegai.volume import Geometry, Scalar, Volume, check_same_grid

LONGEST_SIDE = 480
"""The pixels of the longest side that is shown; the other sides have the same scale: 6 cm at 200 dpi."""

MARGIN_MM = 8.0
"""The margin in mm that is shown around the structures."""

Color = tuple[int, int, int]
PAPER: Color = (255, 255, 255)
INK: Color = (30, 30, 30)
FAINT: Color = (110, 110, 110)
SMALLEST_PANEL = 140
GAP = 12
FONT_SIZE = 16
LINE_HEIGHT = 23
LEGEND_ROWS = 9
FILLS = (0.06, 0.35)
"""The smallest and largest opacity of the colour inside an outline."""

SMALL = 0.02
"""The share of all labelled voxels up to which a structure has the largest opacity. Larger ones have less, because
they would hide the tissue of half the picture."""

BAR_WIDTH, BAR_HEIGHT = 360, 16
"""The size of the scale of uncertainty in pixels."""

TICK_NATS = 0.5
EVEN_CHOICE_NATS = float(np.log(2))

LENGTHS_MM = (1, 2, 5, 10, 20, 50, 100, 200, 500)
"""The possible lengths of the scale bar in mm."""

WINDOW_PERCENTILES = (0.5, 99.5)
HEADROOM = 0.15
"""The part of the window above the brightest tissue, which becomes light grey under the colours."""

SMALLEST_STEP = 1e-30
"""The least width of the window: between any values of a scan, and wide enough to divide by."""

MAX_SAMPLES = 2_000_000
"""The number of voxels from which the grey window is computed; more would not change the percentiles."""


@dataclass(frozen=True)
class Plane:
    """One anatomical plane of a volume whose axes are (S, A, R), each growing towards its letter.

    Attributes:
        name: the name of the plane in Slicer.
        axis: the array axis that the plane cuts.
        along: the letter of that axis, which names the position of a slice.
        left, right, top, bottom: the letters at the borders of the picture.
    """

    name: str
    axis: int
    along: str
    left: str
    right: str
    top: str
    bottom: str

    def cut(self, voxels: NDArray[Scalar], index: int) -> NDArray[Scalar]:
        """Return rows from top to bottom, columns from left to right of the picture."""
        return np.take(voxels, index, axis=self.axis)[::-1, ::-1]

    def size(self, shape: tuple[int, ...], scale: NDArray[np.float64]) -> tuple[int, int]:
        """Return (width, height) in pixels, from the pixels per voxel along each axis."""
        rows, columns = (axis for axis in range(3) if axis != self.axis)
        width, height = shape[columns] * scale[columns], shape[rows] * scale[rows]
        return max(1, round(width)), max(1, round(height))


PLANES = (
    Plane("Axial", axis=0, along="S", left="R", right="L", top="A", bottom="P"),
    Plane("Coronal", axis=1, along="A", left="R", right="L", top="S", bottom="I"),
    Plane("Sagittal", axis=2, along="R", left="A", right="P", top="S", bottom="I"),
)


@dataclass(frozen=True)
class Panel:
    """One slice as it is drawn, and its caption."""

    picture: Image.Image
    caption: str


def render_preview(
    image: Volume, labelmap: Volume, labels: Sequence[Label], entropy: Volume | None = None
) -> Image.Image:
    """Draw `labelmap` over `image`, and `entropy`, if given, in a second row.

    Args:
        image: the scan, (k, j, i), of any number type.
        labelmap: label values on the same grid.
        labels: the labels with names and colours; values without a label are not drawn.
        entropy: uncertainty in nats on the same grid.

    Returns:
        An RGB picture. Each plane is placed where it shows most of the structures.

    Raises:
        GeometryError: the volumes do not have the same grid.
    """
    _check_on_grid(image, labelmap, entropy)
    scan, spacing = _towards_sar(image)
    codes = _codes(_towards_sar(labelmap)[0], labels)
    areas = [_areas(codes, axis, len(labels)) for axis in range(3)]
    planes = _planes_of(scan.shape)
    cuts = [_best_cut(areas[plane.axis]) for plane in planes]
    window = _window(scan[_box(areas)])
    box = _shown(areas, spacing)
    sheet = _Sheet(image.geometry, box, spacing, LONGEST_SIDE / _longest_mm(box, spacing, planes))
    doubts = None if entropy is None else _towards_sar(entropy)[0]
    most = float(np.log(len(labels) + 1)) / 2
    paint = _Paint.of(labels, areas[0].sum(axis=0))
    top, bottom = [], []
    for plane, index in zip(planes, cuts, strict=True):
        grey = _grey(sheet.cut(scan, plane, index), window, sheet.size(plane))
        coded = _resized(sheet.cut(codes, plane, index), sheet.size(plane), NEAREST)
        top.append(sheet.panel(paint.outlined(grey, coded), plane, index))
        if doubts is not None:
            heat = _resized(sheet.cut(doubts, plane, index), sheet.size(plane), BILINEAR)
            bottom.append(sheet.panel(_heated(grey, heat, most), plane, index))
    shown = {
        int(code)
        for plane, cut in zip(planes, cuts, strict=True)
        for code in _there(areas, plane, cut)
    }
    return _page([row for row in (top, bottom) if row], list(_legend(labels, shown)), most)


def _check_on_grid(image: Volume, *others: Volume | None) -> None:
    """Raise GeometryError if a volume does not have the grid of the scan."""
    for other in others:
        if other is not None:
            check_same_grid(
                other.geometry,
                image.geometry,
                "The result",
                "the scan",
                "A picture needs both on the same grid, so name the scan that was segmented.",
            )


def _longest_mm(
    box: Sequence[slice], spacing: NDArray[np.float64], planes: Sequence[Plane]
) -> float:
    """Return the longest side that is shown, in mm, of the axes that a plane shows."""
    return max(
        (part.stop - part.start) * length
        for axis, (part, length) in enumerate(zip(box, spacing, strict=True))
        if any(axis != plane.axis for plane in planes)
    )


def _planes_of(shape: Sequence[int]) -> Sequence[Plane]:
    """Return the planes that are drawn; for an image of one slice, only that of the slice."""
    flat = [plane for plane in PLANES if shape[plane.axis] == 1]
    return flat if len(flat) == 1 else PLANES


NEAREST, BILINEAR = Image.Resampling.NEAREST, Image.Resampling.BILINEAR


def _there(areas: Sequence[NDArray[np.int64]], plane: Plane, index: int) -> NDArray[np.intp]:
    """Return the positions of the structures in a slice, from 1."""
    return np.flatnonzero(areas[plane.axis][index][1:]) + 1


@dataclass(frozen=True)
class _Sheet:
    """How slices are drawn on the page.

    Attributes:
        geometry: the grid of the scan.
        box: the range of the axes (S, A, R) that is shown.
        spacing: the spacing of these axes in mm.
        scale: the number of pixels per mm.
    """

    geometry: Geometry
    box: tuple[slice, ...]
    spacing: NDArray[np.float64]
    scale: float

    def cut(self, voxels: NDArray[Scalar], plane: Plane, index: int) -> NDArray[Scalar]:
        """Return the shown part of a slice: rows from top to bottom, columns from left to right of the picture."""
        part: list[slice | int] = list(self.box)
        part[plane.axis] = index
        return np.asarray(voxels[tuple(part)][::-1, ::-1])

    def size(self, plane: Plane) -> tuple[int, int]:
        """Return (width, height) in pixels."""
        sizes = np.array([part.stop - part.start for part in self.box]) * self.spacing * self.scale
        height, width = (sizes[axis] for axis in range(3) if axis != plane.axis)
        return max(1, round(width)), max(1, round(height))

    def panel(self, pixels: NDArray[np.float64], plane: Plane, index: int) -> Panel:
        """Return the slice in the middle of a black panel, with side letters and a scale bar."""
        picture = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
        width, height = (max(side, SMALLEST_PANEL) for side in picture.size)
        panel = Image.new("RGB", (width, height))
        panel.paste(picture, ((width - picture.width) // 2, (height - picture.height) // 2))
        draw = ImageDraw.Draw(panel)
        for text, place, anchor in (
            (plane.left, (6, height // 2), "lm"),
            (plane.right, (width - 6, height // 2), "rm"),
            (plane.top, (width // 2, 6), "mt"),
            (plane.bottom, (width // 2, height - 6), "mb"),
        ):
            _write(draw, place, text, anchor)
        self._scale_bar(draw, width, height)
        draw.rectangle((0, 0, width - 1, height - 1), outline=(0, 0, 0))
        position = self.position_mm(plane, index)
        return Panel(panel, f"{plane.name}, {plane.along} {position:+.1f} mm")

    def _scale_bar(self, draw: ImageDraw.ImageDraw, width: int, height: int) -> None:
        lengths = [length for length in LENGTHS_MM if length * self.scale <= width / 4]
        if not lengths:
            return
        left, down = 10, height - 12
        right = left + round(lengths[-1] * self.scale)
        draw.line((left, down, right, down), fill=PAPER, width=3)
        _write(draw, (left, down - 6), f"{lengths[-1]} mm", "lb")

    def position_mm(self, plane: Plane, index: int) -> float:
        """Return the position of the middle of the shown slice along R, A or S, as Slicer shows it."""
        order, flips = closest_axes(self.geometry)
        shown = [(part.start + part.stop - 1) / 2 for part in self.box]
        shown[plane.axis] = index
        place = [0.0, 0.0, 0.0]
        for axis, flip, at in zip(order, flips, shown, strict=True):
            place[axis] = self.geometry.shape[axis] - 1 - at if flip else at
        world = self.geometry.ijk_to_ras @ [*place[::-1], 1.0]
        return float(world["RAS".index(plane.along)])


def _write(draw: ImageDraw.ImageDraw, place: tuple[int, int], text: str, anchor: str) -> None:
    """Write white letters that are readable on any picture."""
    draw.text(place, text, PAPER, _font(), anchor, stroke_width=2, stroke_fill=(0, 0, 0))


def _shown(areas: Sequence[NDArray[np.int64]], spacing: NDArray[np.float64]) -> tuple[slice, ...]:
    """Return the box around all structures with a margin; everything if there are none."""
    margins = [round(MARGIN_MM / length) for length in spacing]
    return tuple(
        slice(
            max((part.start or 0) - margin, 0), min((part.stop or len(along)) + margin, len(along))
        )
        for part, margin, along in zip(_box(areas), margins, areas, strict=True)
    )


def _areas(codes: NDArray[np.uint16], axis: int, count: int) -> NDArray[np.int64]:
    """Return the voxels of background and of each structure, in each slice along `axis`: (slice, 1 + count)."""
    slices = np.moveaxis(codes, axis, 0)
    return np.array([np.bincount(plane.ravel(), minlength=count + 1) for plane in slices])


def _best_cut(areas: NDArray[np.int64]) -> int:
    """Return the slice that shows most of the structures; the middle if there are none.

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
    """Return the box around all structures; everything if there are none."""
    filled = [np.flatnonzero(along[:, 1:].any(axis=1)) for along in areas]
    if filled[0].size == 0:
        return (slice(None), slice(None), slice(None))
    return tuple(slice(int(indices[0]), int(indices[-1]) + 1) for indices in filled)


def _towards_sar(volume: Volume) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Return voxels as a view with growing axes (S, A, R), and the spacing of those axes in mm."""
    order, flips = closest_axes(volume.geometry)
    voxels = volume.voxels.transpose(order)
    voxels = voxels[tuple(slice(None, None, -1 if flip else 1) for flip in flips)]
    spacing = np.array(volume.geometry.spacing_mm[::-1])[list(order)]
    return voxels, spacing


def closest_axes(geometry: Geometry) -> tuple[tuple[int, int, int], tuple[bool, bool, bool]]:
    """Return which array axis (k, j, i) runs along S, A and R, and whether in the opposite direction.

    Each voxel axis is assigned to one anatomical axis, so that the sum of the cosines is largest.
    """
    matrix = geometry.ijk_to_ras[:3, :3] / np.array(geometry.spacing_mm)
    cosines = matrix[::-1, ::-1]  # rows S, A, R; columns k, j, i
    order = max(
        permutations(range(3)), key=lambda p: sum(abs(cosines[row, p[row]]) for row in range(3))
    )
    first, second, third = order
    flips = [bool(cosines[row, column] < 0) for row, column in enumerate(order)]
    return (first, second, third), (flips[0], flips[1], flips[2])


def _codes(values: NDArray[np.integer], labels: Sequence[Label]) -> NDArray[np.uint16]:
    """Return label values as positions in `labels`, from 1; 0 for everything else."""
    highest = max(int(values.max(initial=0)), *(label.value for label in labels))
    lookup = np.zeros(highest + 1, np.uint16)
    for position, label in enumerate(labels, start=1):
        lookup[label.value] = position
    return lookup[values]


def _window(voxels: NDArray[np.number]) -> tuple[float, float]:
    """Return the grey values that become black and white."""
    stride = max(1, round((voxels.size / MAX_SAMPLES) ** (1 / 3)))
    sample = voxels[::stride, ::stride, ::stride].astype(np.float64)
    sample = sample[np.isfinite(sample)]
    if sample.size == 0:
        return 0.0, 1.0
    low, high = np.percentile(sample, WINDOW_PERCENTILES)
    narrowest = max(abs(np.spacing(low)), SMALLEST_STEP)
    return float(low), float(max(high + HEADROOM * (high - low), low + narrowest))


def _grey(
    plane: NDArray[np.number], window: tuple[float, float], size: tuple[int, int]
) -> NDArray[np.float64]:
    """Return the slice as RGB 0-255, (height, width, 3)."""
    low, high = window
    shades = np.clip((np.nan_to_num(plane.astype(np.float64)) - low) / (high - low), 0, 1) * 255
    shades = _resized(shades, size, Image.Resampling.BILINEAR).astype(np.float64)
    return np.repeat(shades[:, :, np.newaxis], 3, axis=2)


def _resized(
    plane: NDArray[np.number], size: tuple[int, int], how: Image.Resampling
) -> NDArray[Any]:
    """Resize the slice to (width, height); codes are exact as 32-bit integers."""
    kind = np.float32 if plane.dtype.kind == "f" else np.int32
    picture = Image.fromarray(np.ascontiguousarray(plane, dtype=kind))
    return np.asarray(picture.resize(size, how))


@dataclass(frozen=True)
class _Paint:
    """The colours (class, 3), and opacities (class,) inside the outlines, by position in the labels, from 1."""

    colors: NDArray[np.float64]
    fills: NDArray[np.float64]

    @classmethod
    def of(cls, labels: Sequence[Label], voxels: NDArray[np.int64]) -> _Paint:
        """Return the colours of labels, given the numbers of voxels of the background and of each label."""
        colors = np.array([(0, 0, 0), *(label.color for label in labels)], dtype=np.float64)
        shares = voxels / max(int(voxels[1:].sum()), 1)
        fills = FILLS[1] * np.sqrt(SMALL / np.maximum(shares, SMALL))
        fills = np.maximum(fills, FILLS[0])
        fills[0] = 0.0
        return cls(colors, fills)

    def outlined(
        self, grey: NDArray[np.float64], codes: NDArray[np.integer]
    ) -> NDArray[np.float64]:
        """Colour inside each structure lightly, and along its border fully."""
        border = np.zeros(codes.shape, dtype=bool)
        border[1:] |= codes[1:] != codes[:-1]
        border[:-1] |= codes[1:] != codes[:-1]
        border[:, 1:] |= codes[:, 1:] != codes[:, :-1]
        border[:, :-1] |= codes[:, 1:] != codes[:, :-1]
        opacity = np.where(border & (codes > 0), 1.0, self.fills[codes])[:, :, np.newaxis]
        return grey * (1 - opacity) + self.colors[codes] * opacity


def _heat(doubt: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return uncertainty from 0 to 1 as RGB 0-255: from black over red and yellow to white."""
    return np.stack([np.clip(doubt * 3 - step, 0, 1) for step in range(3)], axis=-1) * 255


def _heated(
    grey: NDArray[np.float64], entropy: NDArray[np.floating], most: float
) -> NDArray[np.float64]:
    """Draw uncertainty over a darkened slice.

    The scale ends at `most`, half the entropy of a uniform guess, because real maps rarely exceed it.
    """
    doubt = np.clip(np.nan_to_num(entropy) / most, 0, 1)
    opacity = np.clip(doubt * 4, 0, 1)[:, :, np.newaxis]
    return grey * 0.5 * (1 - opacity) + _heat(doubt) * opacity


def _legend(labels: Sequence[Label], shown: set[int]) -> Iterator[tuple[str, Color]]:
    """Return names and colours of the visible structures; those with one colour on both sides are listed once."""
    pairs = dict(counterparts(labels)) | {right: left for left, right in counterparts(labels)}
    named: set[int] = set()
    for number in sorted(code - 1 for code in shown):
        other = pairs.get(number)
        label = labels[number]
        alike = other is not None and labels[other].color == label.color
        if other in named and alike:
            continue
        named.add(number)
        yield without_side(label.name) if alike else label.name, label.color


def _paste_row(
    page: Image.Image, draw: ImageDraw.ImageDraw, row: Sequence[Panel], top: int
) -> None:
    left = GAP
    for panel in row:
        draw.text((left, top), panel.caption, INK, _font())
        page.paste(panel.picture, (left, top + LINE_HEIGHT))
        left += panel.picture.width + GAP


def _draw_legend(
    draw: ImageDraw.ImageDraw,
    legend: Sequence[tuple[str, Color]],
    top: int,
    columns: int,
    step: int,
) -> None:
    for number, (name, color) in enumerate(legend):
        left, line = GAP + number % columns * step, top + number // columns * LINE_HEIGHT
        draw.rectangle((left, line + 3, left + FONT_SIZE - 1, line + 2 + FONT_SIZE), color, FAINT)
        draw.text((left + FONT_SIZE + 8, line), name, INK, _font())


def _page(
    rows: Sequence[Sequence[Panel]], legend: list[tuple[str, Color]], most: float
) -> Image.Image:
    """Return the page: rows of panels, the scale of uncertainty below the second, the legend and the notice."""
    width = max(sum(panel.picture.width + GAP for panel in row) + GAP for row in rows)
    heights = [max(panel.picture.height for panel in row) + LINE_HEIGHT + GAP for row in rows]
    doubt = len(rows) > 1
    columns = min(len(legend), _legend_columns(legend, width)) or 1
    legend = _fitted(legend, columns * LEGEND_ROWS)
    lines = -(-len(legend) // columns) + 1
    bar = 2 * LINE_HEIGHT if doubt else 0
    height = GAP + sum(heights) + bar + lines * LINE_HEIGHT + GAP
    page = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(page)
    top = GAP
    for row, down in zip(rows, heights, strict=True):
        _paste_row(page, draw, row, top)
        top += down
    if doubt:
        _draw_scale(page, draw, top, most)
        top += bar
    _draw_legend(draw, legend, top, columns, (width - GAP) // columns)
    draw.text((GAP, top + (lines - 1) * LINE_HEIGHT), NOT_FOR_DIAGNOSIS, FAINT, _font())
    return page


def _draw_scale(page: Image.Image, draw: ImageDraw.ImageDraw, top: int, most: float) -> None:
    """Draw the colours of uncertainty with numbers under them, and their meaning."""
    width = min(BAR_WIDTH, page.width - 2 * GAP)
    ramp = np.broadcast_to(np.linspace(0, 1, width), (BAR_HEIGHT, width))
    page.paste(Image.fromarray(_heat(ramp).astype(np.uint8)), (GAP, top))
    draw.rectangle((GAP, top, GAP + width, top + BAR_HEIGHT), outline=FAINT)
    for nats in np.arange(0, most + 1e-9, TICK_NATS):
        at = GAP + round(nats / most * width)
        draw.line((at, top + BAR_HEIGHT, at, top + BAR_HEIGHT + 5), fill=INK)
        anchor = "la" if nats == 0 else "ma"
        draw.text((at, top + BAR_HEIGHT + 6), f"{nats:g}", INK, _font(), anchor)
    meaning = f"Uncertainty: entropy in nats ({EVEN_CHOICE_NATS:.2f} is an even choice between two structures)"
    draw.text((2 * GAP + width, top - 3), meaning, INK, _font())


def _legend_columns(legend: list[tuple[str, Color]], width: int) -> int:
    longest = max((_font().getlength(name) for name, _ in legend), default=1.0)
    return max(1, (width - GAP) // (round(longest) + FONT_SIZE + 8 + GAP))


def _fitted(legend: list[tuple[str, Color]], room: int) -> list[tuple[str, Color]]:
    """Return the legend, or the part of it that fits and the number of omitted entries."""
    if len(legend) <= room:
        return legend
    return [*legend[: room - 1], (f"and {len(legend) - room + 1} more", PAPER)]


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(FONT_SIZE)

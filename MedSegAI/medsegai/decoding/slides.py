"""The two libraries that read slides, each behind `Levels`: OpenSlide for scanners' formats, tifffile for TIFF.

The decoding process keeps the slides open that were read last. A request for a part does not depend on earlier
requests, so a crashed process can be replaced by a new one.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from medsegai.decoding import PARSER_ERRORS
from medsegai.errors import InputError

Pixels = NDArray[np.uint8]
Found = TypeVar("Found")

PIXEL_MM = (1e-5, 0.02)
"""The plausible sizes of a slide's pixels in mm. Image editors and printers write 72 to 1200 dots per inch."""

LARGEST_SEGMENT = 1 << 26
"""The largest tile or strip that is decoded at once, in bytes."""

WHITE = 255

TIFF_ENDINGS = (".tif", ".tiff", ".btf")

COLOURS = {0: "MINISWHITE", 1: "MINISBLACK", 2: "RGB", 6: "YCBCR"}
"""The photometric interpretations of TIFF for pictures in grey or colour."""

SUBIFD_UNITS_MM = {"nm": 1e-6, "µm": 1e-3, "μm": 1e-3, "um": 1e-3, "mm": 1.0, "cm": 10.0, "m": 1e3}
"""The units of OME's PhysicalSizeX; the micrometre has two characters in Unicode, and is the default."""


@dataclass(frozen=True)
class Level:
    """One size in which a slide is stored.

    Attributes:
        rows, columns: the number of rows and columns.
        downsample: the number of finest pixels along one side of a pixel of this level.
    """

    rows: int
    columns: int
    downsample: float


@dataclass(frozen=True)
class Box:
    """A box of pixels of one level: its first row and column, and their numbers."""

    top: int
    left: int
    rows: int
    columns: int

    def within(self, rows: int, columns: int) -> Box | None:
        """Return the part inside an image of a size; None if there is none."""
        top, left = max(self.top, 0), max(self.left, 0)
        bottom, right = min(self.top + self.rows, rows), min(self.left + self.columns, columns)
        return Box(top, left, bottom - top, right - left) if bottom > top and right > left else None


class Levels(Protocol):
    """One open slide, as a library reads it.

    Attributes:
        levels: the levels, the finest first.
        spacing_mm: the size of the finest pixels, across and down; None if the file does not state it.
        bounds: the part of the finest level that was scanned.
    """

    levels: tuple[Level, ...]
    spacing_mm: tuple[float, float] | None
    bounds: Box

    def read(self, number: int, box: Box) -> Pixels:
        """Return RGB (row, column, 3) of a box inside a level; unscanned parts are white.

        Raises:
            InputError: pixels cannot be decoded.
        """
        ...

    def close(self) -> None: ...


def open_levels(path: Path) -> Levels:
    """Open a slide with the library that knows its format.

    Raises:
        InputError: libraries are not installed or do not support the file, or it is damaged.
    """
    openslide, what = _openslide(), f"{path} cannot be read as a slide"
    vendor = openslide and _refusing(what, lambda: openslide.OpenSlide.detect_format(str(path)))
    if vendor and vendor != "generic-tiff":
        return _refusing(what, lambda: OpenSlideLevels(path, openslide))
    if path.name.lower().endswith(TIFF_ENDINGS):
        return _refusing(what, lambda: TiffLevels(path))
    if openslide is None:
        raise InputError(
            f"{path} cannot be opened without OpenSlide. Run pip install 'medsegai[slides]'."
        )
    raise InputError(
        f"{path} is not a slide that OpenSlide {openslide.__library_version__} or tifffile can read. Export it as "
        "a tiled TIFF or OME-TIFF."
    )


OPEN: dict[tuple[str, int, int], Levels] = {}
"""The open slides, by path, size and time, the most recently read one last."""

MOST_OPEN = 4


def opened(path: str) -> dict[str, Any]:
    """Return the attributes of `Levels` for a slide.

    Raises:
        InputError: see `open_levels`.
    """
    slide = _open(path)
    return {
        "levels": [[level.rows, level.columns, level.downsample] for level in slide.levels],
        "spacing_mm": slide.spacing_mm,
        "bounds": astuple(slide.bounds),
    }


def part(path: str, number: int, box: list[int]) -> Pixels:
    """See `Levels.read`."""
    return _open(path).read(number, Box(*box))


def closed(path: str) -> dict[str, Any]:
    """Close the file."""
    for key in [key for key in OPEN if key[0] == path]:
        OPEN.pop(key).close()
    return {}


def tiled(path: str, large: int) -> dict[str, Any]:
    """See `is_tiled_tiff`."""
    return {"tiled": is_tiled_tiff(Path(path), large)}


def _open(path: str) -> Levels:
    state = os.stat(path)
    key = (path, state.st_size, state.st_mtime_ns)
    slide = OPEN.pop(key, None) or open_levels(Path(path))
    OPEN[key] = slide
    while len(OPEN) > MOST_OPEN:
        OPEN.pop(next(iter(OPEN))).close()
    return slide


def _openslide() -> Any:
    """Return the module, or None if it or its library is not installed."""
    try:
        import openslide
    except (ImportError, OSError):
        return None
    return openslide


def _refusing(what: str, work: Callable[[], Found]) -> Found:
    """Return the result of `work`; exceptions of libraries for damaged files become errors that name the file."""
    openslide = _openslide()
    own = (openslide.OpenSlideError,) if openslide else ()
    try:
        return work()
    except (*PARSER_ERRORS, ImportError, *own) as error:
        raise InputError(
            f"{what}: {error}. The file is damaged or truncated, so copy or export it again."
        ) from error


def _decoding(path: Path, number: int, box: Box, read: Callable[[], Pixels]) -> Pixels:
    what = f"{path}: level {number} cannot be decoded at row {box.top}, column {box.left}"
    return _refusing(what, read)


class OpenSlideLevels:
    """A slide in the format of a scanner, read by OpenSlide."""

    def __init__(self, path: Path, openslide: Any) -> None:
        self._path = path
        self._slide = openslide.OpenSlide(str(path))
        sizes = zip(self._slide.level_dimensions, self._slide.level_downsamples, strict=True)
        self.levels = tuple(Level(rows, columns, factor) for (columns, rows), factor in sizes)
        properties = self._slide.properties
        across, down = (_positive(properties.get(f"openslide.mpp-{axis}")) for axis in "xy")
        self.spacing_mm = plausible_spacing(across / 1000, down / 1000) if across and down else None
        whole = self.levels[0]
        given = [
            properties.get(f"openslide.bounds-{name}") for name in ("y", "x", "height", "width")
        ]
        numbers = [int(text) for text in given if text is not None and text.isdigit()]
        found = Box(*numbers).within(whole.rows, whole.columns) if len(numbers) == 4 else None
        self.bounds = found or Box(0, 0, whole.rows, whole.columns)

    def read(self, number: int, box: Box) -> Pixels:
        """Read the pixels of a box of one level, (row, column, channel)."""
        level = self.levels[number]
        corner = (round(box.left * level.downsample), round(box.top * level.downsample))

        def read() -> Pixels:
            image = self._slide.read_region(corner, number, (box.columns, box.rows))
            return over_white(np.asarray(image))

        return _decoding(self._path, number, box, read)

    def close(self) -> None:
        """Close the file."""
        self._slide.close()


class TiffLevels:
    """A tiled TIFF or OME-TIFF, of which tifffile decodes only the requested tiles."""

    def __init__(self, path: Path) -> None:
        tifffile = _tifffile(path)
        self._path = path
        with contextlib.ExitStack() as undone:
            self._file = undone.enter_context(tifffile.TiffFile(path))
            self._pages = list(_pyramid(path, self._file))
            self.spacing_mm = _tiff_spacing(self._file, self._pages[0])
            undone.pop_all()
        whole = self._pages[0]
        self.levels = tuple(
            Level(page.imagelength, page.imagewidth, _downsample(whole, page))
            for page in self._pages
        )
        self.bounds = Box(0, 0, whole.imagelength, whole.imagewidth)

    def read(self, number: int, box: Box) -> Pixels:
        """Read the pixels of a box of one level, (row, column, channel)."""
        page = self._pages[number]
        result = np.full((box.rows, box.columns, 3), WHITE, np.uint8)

        def read() -> Pixels:
            for index, tile, channel in _segments(page, box):
                pixels = self._decoded(page, index)
                if pixels is not None:
                    _paste(result, box, pixels, tile, channel)
            return result

        return _decoding(self._path, number, box, read)

    def _decoded(self, page: Any, index: int) -> Pixels | None:
        """Return one tile or strip (row, column, sample); None if the file omits it, which means white."""
        size = page.databytecounts[index]
        if size == 0:
            return None
        handle = self._file.filehandle
        handle.seek(page.dataoffsets[index])
        data = handle.read(size)
        if len(data) < size:
            raise ValueError("the file ends before this tile")
        decoded = page.decode(data, index, jpegtables=page.jpegtables)[0]
        if decoded is None:
            return None
        return WHITE - decoded[0] if page.photometric == 0 else decoded[0]

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def is_tiled_tiff(path: Path, large: int) -> bool:
    """Whether a TIFF is stored in tiles, and is large, has several pages or sizes, or states its magnification.

    It is large with more than `large` pixels along a side. Pixels that slides do not have, such as those of 16
    bits, are those of a picture, even if their size is stated. The result is False if it cannot be opened, because
    another reader then reports why.
    """
    try:
        import tifffile

        with tifffile.TiffFile(path) as file:
            first = file.pages[0]
            several = len(file.pages) > 1 or bool(first.subifds)
            magnified = first.dtype == np.uint8 and _tiff_spacing(file, first) is not None
            large_or_known = several or max(first.shape[:2]) > large or magnified
            return bool(first.is_tiled) and large_or_known
    except (*PARSER_ERRORS, ImportError):
        return False


def _tifffile(path: Path) -> Any:
    try:
        import tifffile
    except ImportError:
        raise InputError(
            f"{path} cannot be opened without tifffile. Run pip install 'medsegai[slides]'."
        ) from None
    return tifffile


def _pyramid(path: Path, file: Any) -> Iterator[Any]:
    """Return the pages of one picture in falling size; unsupported pages are refused.

    OME stores smaller sizes below the first page, other programs after it; pages of other proportions, such as a
    picture of the label, do not belong to it.
    """
    first = file.pages[0]
    _check_one_plane(path, file)
    check_page(path, first)
    yield first
    smaller = first.pages or [] if first.subifds else list(file.pages)[1:]
    width, ratio = first.imagewidth, first.imagelength / first.imagewidth
    for page in map(_whole_page, smaller):
        slack = 1.5 / page.imagewidth * (1 + ratio)
        if page.imagewidth < width and abs(page.imagelength / page.imagewidth - ratio) <= slack:
            check_page(path, page)
            width = page.imagewidth
            yield page


def _check_one_plane(path: Path, file: Any) -> None:
    planes = len(file.series[0].levels[0].pages) if file.is_ome else 1
    if planes > 1:
        raise InputError(
            f"{path} has {planes} planes (axes {file.series[0].axes}), but a slide is one "
            "picture in colour or grey. Export the wanted plane or the merged colours."
        )


def _downsample(whole: Any, page: Any) -> float:
    """Return how many pixels of `whole` one of `page` covers: a whole number if rounded sizes agree with it."""
    ratio = whole.imagewidth / page.imagewidth
    factor = round(ratio)
    sides = ((whole.imagewidth, page.imagewidth), (whole.imagelength, page.imagelength))
    if all(size in (full // factor, -(-full // factor)) for full, size in sides):
        return float(factor)
    return float(ratio)


def _whole_page(page: Any) -> Any:
    """Return a page with all of its tags, because tifffile may read only differences from the previous page."""
    return page.aspage() if hasattr(page, "aspage") else page


def check_page(path: Path, page: Any) -> None:
    """Refuse pixels that are not a picture in eight bits, and pages that cannot be read in parts.

    Raises:
        InputError: the pixels are not supported.
    """
    _check_pixels(path, page)
    rows, columns = _segment_shape(page)
    planes = page.samplesperpixel if page.planarconfig == 2 else 1
    pieces = planes * math.ceil(page.imagelength / rows) * math.ceil(page.imagewidth / columns)
    if not len(page.dataoffsets) == len(page.databytecounts) == pieces:
        raise InputError(
            f"{path} is damaged: its header promises {pieces} tiles, but lists "
            f"{len(page.dataoffsets)}. Copy or export it again."
        )
    _check_segment(path, rows * columns * page.samplesperpixel)


def _check_pixels(path: Path, page: Any) -> None:
    usual = page.samplesperpixel in (1, 3, 4) and page.photometric in COLOURS
    if page.dtype != np.uint8 or not usual:
        raise InputError(
            f"{path} has {page.samplesperpixel} values of type {page.dtype} per pixel ({page.photometric.name}), "
            "but a slide must have red, green and blue, or grey, of 8 bits. Export it in this form."
        )


def _check_segment(path: Path, segment: int) -> None:
    if segment > LARGEST_SEGMENT:
        raise InputError(
            f"{path} is stored in pieces of {segment / 1e6:.0f} MB, which cannot be read in parts. Save it as a "
            "tiled TIFF, for example with vips tiffsave IN OUT --tile --pyramid."
        )


def _segment_shape(page: Any) -> tuple[int, int]:
    """Return rows and columns of a tile or strip."""
    if page.is_tiled:
        return int(page.tilelength), int(page.tilewidth)
    return min(int(page.rowsperstrip), int(page.imagelength)), int(page.imagewidth)


def _segments(page: Any, box: Box) -> Iterator[tuple[int, Box, int | None]]:
    """Yield the tiles or strips that a box touches: index, box, and channel if channels are stored separately."""
    rows, columns = _segment_shape(page)
    across = math.ceil(page.imagewidth / columns)
    each = across * math.ceil(page.imagelength / rows)
    planes = min(page.samplesperpixel, 3) if page.planarconfig == 2 else 1
    for plane in range(planes):
        for row in range(box.top // rows, (box.top + box.rows - 1) // rows + 1):
            for column in range(box.left // columns, (box.left + box.columns - 1) // columns + 1):
                place = Box(row * rows, column * columns, rows, columns)
                yield plane * each + row * across + column, place, plane if planes > 1 else None


def _paste(result: Pixels, box: Box, pixels: Pixels, tile: Box, channel: int | None) -> None:
    """Copy the part of a tile inside a box to its place in `result`."""
    rows, columns = pixels.shape[:2]  # fewer than in `tile` at the edge of the picture
    top, left = max(tile.top, box.top), max(tile.left, box.left)
    bottom = min(tile.top + rows, box.top + box.rows)
    right = min(tile.left + columns, box.left + box.columns)
    part = pixels[top - tile.top : bottom - tile.top, left - tile.left : right - tile.left]
    place = result[top - box.top : bottom - box.top, left - box.left : right - box.left]
    if channel is not None:
        place[..., channel] = part[..., 0]
    elif part.shape[-1] == 4:
        place[...] = over_white(part)
    else:
        place[...] = part


def over_white(pixels: Pixels) -> Pixels:
    """Blend RGBA (row, column, 4) with white, to RGB (row, column, 3)."""
    colours, opacity = pixels[..., :3], pixels[..., 3:]
    if (opacity == WHITE).all():
        return np.ascontiguousarray(colours)
    mixed = colours.astype(np.uint16) * opacity + WHITE * (WHITE - opacity.astype(np.uint16))
    return ((mixed + WHITE // 2) // WHITE).astype(np.uint8)


def _tiff_spacing(file: Any, page: Any) -> tuple[float, float] | None:
    """Return the size of a pixel in mm, across and down, from OME or the resolution tags."""
    if file.is_ome:
        pixels = re.search(r"<(?:\w+:)?Pixels\b[^>]*>", file.ome_metadata or "")
        text = pixels.group() if pixels else ""
        sizes = [_ome_length(text, axis) for axis in "XY"]
        return plausible_spacing(*sizes) if all(sizes) else None
    unit_mm = {2: 25.4, 3: 10.0}.get(int(getattr(page, "resolutionunit", 1)))
    across, down = page.resolution
    if unit_mm is None or not across or not down:
        return None
    return plausible_spacing(unit_mm / across, unit_mm / down)


def _ome_length(text: str, axis: str) -> float:
    size = re.search(rf'\bPhysicalSize{axis}="([^"]*)"', text)
    unit = re.search(rf'\bPhysicalSize{axis}Unit="([^"]*)"', text)
    factor = SUBIFD_UNITS_MM.get(unit.group(1) if unit else "µm", 0.0)
    return factor * _positive(size.group(1) if size else None)


def plausible_spacing(across_mm: float, down_mm: float) -> tuple[float, float] | None:
    """Return the size of a pixel, or None if it is not plausible for a slide."""
    low, high = PIXEL_MM
    return (across_mm, down_mm) if all(low <= v <= high for v in (across_mm, down_mm)) else None


def _positive(text: Any) -> float:
    """Return a positive number, or 0 for anything else."""
    with contextlib.suppress(TypeError, ValueError):
        value = float(text)
        return value if math.isfinite(value) and value > 0 else 0.0
    return 0.0

"""Microscope slides: pictures that do not fit into memory, and are read in parts at any magnification.

Only the requested part is decoded, from the stored size that is nearest to the requested one.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import astuple, dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
from PIL import Image

from medsegai.decoding.slides import (
    TIFF_ENDINGS,
    WHITE,
    Box,
    Level,
    Levels,
    Pixels,
)
from medsegai.errors import InputError
from medsegai.io.decoder import asked, decoded, let_go
from medsegai.io.files import check_memory, check_name, check_regular, unreadable
from medsegai.io.pictures import channel_planes
from medsegai.system.regular_files import open_regular
from medsegai.volume import Geometry, Volume

SLIDE_ENDINGS = (
    ".svs",
    ".ndpi",
    ".mrxs",
    ".scn",
    ".vms",
    ".bif",
    ".svslide",
    ".ome.tif",
    ".ome.tiff",
)
"""Endings that only slides have; a TIFF is a slide if it is requested as one."""

LONGEST_OVERVIEW = 4096
"""The pixels along the longer side of the overview that represents a slide as a volume."""

SAME_SIZE = 0.1
"""A stored size is used without scaling if the magnification differs by at most a tenth."""

SOURCE_PIXELS = 1 << 24
"""The largest number of stored pixels that are read at once when they are averaged."""


@dataclass(frozen=True)
class SlideGrid:
    """The pixels of a slide at one magnification.

    Attributes:
        rows, columns: the number of rows and columns of the whole slide.
        downsample: the number of finest pixels along one side of a pixel of this grid.
    """

    rows: int
    columns: int
    downsample: float


class Slide:
    """An open slide. Use it as a context manager, or close it.

    Attributes:
        path: the file.
        levels: the sizes in which it is stored, finest first.
        spacing_mm: the size of the finest pixels, across and down; None if the file does not state it.
        bounds: the part of the finest level that was scanned.
        notes: what is questionable about the file, as sentences for the user.
    """

    def __init__(self, path: Path, levels: Levels) -> None:
        self.path = path
        self._source = levels
        self.levels = levels.levels
        self.spacing_mm = levels.spacing_mm
        self.bounds = levels.bounds
        self.notes = tuple(_notes(self))

    def __enter__(self) -> Slide:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self._source.close()

    def grid(self, downsample: float) -> SlideGrid:
        """Return the grid whose pixels are `downsample` finest pixels long, or that of a similar stored size."""
        near = min(self.levels, key=lambda level: abs(math.log(level.downsample / downsample)))
        if abs(near.downsample / downsample - 1) <= SAME_SIZE:
            return SlideGrid(near.rows, near.columns, near.downsample)
        whole = self.levels[0]
        rows, columns = (max(1, math.ceil(n / downsample)) for n in (whole.rows, whole.columns))
        return SlideGrid(rows, columns, downsample)

    def grid_of(self, spacing_mm: float) -> SlideGrid:
        """Return the grid whose pixels are nearest to a size in mm.

        Raises:
            InputError: the file does not state the size of its pixels.
        """
        if self.spacing_mm is None:
            raise InputError(
                f"{self.path} does not state the size of its pixels, so its magnification is "
                "unknown. Export it with its resolution."
            )
        return self.grid(spacing_mm / math.sqrt(math.prod(self.spacing_mm)))

    def overview_grid(self, longest: int) -> SlideGrid:
        """Return the finest grid whose sides have at most `longest` pixels."""
        whole = self.levels[0]
        fitting = [level for level in self.levels if max(level.rows, level.columns) <= longest]
        factor = max(whole.rows, whole.columns) / longest
        if fitting and fitting[0].downsample <= 2 * factor:
            return SlideGrid(fitting[0].rows, fitting[0].columns, fitting[0].downsample)
        return self.grid(max(1.0, factor * (1 + SAME_SIZE)))

    def read(self, grid: SlideGrid, box: Box) -> Pixels:
        """Return RGB (row, column, 3) of a box on a grid of this slide; it is white outside the slide.

        Raises:
            InputError: pixels cannot be decoded.
        """
        result = np.full((box.rows, box.columns, 3), WHITE, np.uint8)
        inside = box.within(grid.rows, grid.columns)
        if inside is None:
            return result
        number = self._level_for(grid.downsample)
        factor = grid.downsample / self.levels[number].downsample
        if abs(factor - 1) < 1e-9:
            pixels = self._source.read(number, inside)
        else:
            pixels = self._averaged(number, factor, inside)
        top, left = inside.top - box.top, inside.left - box.left
        result[top : top + inside.rows, left : left + inside.columns] = pixels
        return result

    def overview(self, grid: SlideGrid, box: Box | None = None) -> Pixels:
        """Return RGB (row, column, 3) of the whole grid or a box of it, which must fit into memory."""
        return self.read(grid, box or Box(0, 0, grid.rows, grid.columns))

    def geometry(
        self, grid: SlideGrid, box: Box | None = None, thickness_mm: float = 1.0
    ) -> Geometry:
        """Return the geometry of a grid, or a box of it, as a volume of one slice: columns run left, rows down.

        The first pixel of the finest level is the origin, as in other pictures. If the size of pixels is unknown,
        a finest pixel counts as a millimetre.
        """
        box = box or Box(0, 0, grid.rows, grid.columns)
        across, down = self.spacing_mm or (1.0, 1.0)
        step = (across * grid.downsample, down * grid.downsample, thickness_mm)
        corner = (across / 2, down / 2)
        origin = (
            corner[0] - step[0] * (box.left + 0.5),
            corner[1] - step[1] * (box.top + 0.5),
            0.0,
        )
        shape = (1, box.rows, box.columns)
        return Geometry.from_spacing(shape, step, origin, np.diag([-1.0, -1.0, 1.0]))

    def _level_for(self, downsample: float) -> int:
        """Return the coarsest stored size that is at least as fine."""
        fine = [
            n for n, level in enumerate(self.levels) if level.downsample <= downsample * (1 + 1e-9)
        ]
        return max(fine, key=lambda n: self.levels[n].downsample, default=0)

    def _averaged(self, number: int, factor: float, box: Box) -> Pixels:
        """Return a box of a grid whose pixels are `factor` stored pixels long, in parts to bound memory."""
        side = max(1, int(math.sqrt(SOURCE_PIXELS) / factor))
        result = np.empty((box.rows, box.columns, 3), np.uint8)
        for row in range(0, box.rows, side):
            for column in range(0, box.columns, side):
                rows, columns = min(side, box.rows - row), min(side, box.columns - column)
                part = Box(box.top + row, box.left + column, rows, columns)
                result[row : row + rows, column : column + columns] = self._resized(
                    number, factor, part
                )
        return result

    def _resized(self, number: int, factor: float, box: Box) -> Pixels:
        level = self.levels[number]
        wanted = _range(box, factor)
        stored = wanted.within(level.rows, level.columns)
        assert stored is not None
        missing = ((0, wanted.rows - stored.rows), (0, wanted.columns - stored.columns), (0, 0))
        # The last pixel may reach beyond the picture, whose own last pixels then stand for what is not there.
        image = Image.fromarray(np.pad(self._source.read(number, stored), missing, "edge"))
        edges = (
            box.left * factor - wanted.left,
            box.top * factor - wanted.top,
            (box.left + box.columns) * factor - wanted.left,
            (box.top + box.rows) * factor - wanted.top,
        )
        # The mean of whole pixels; otherwise weights that fall off, because Pillow's box rounds.
        whole = factor == round(factor)
        how = Image.Resampling.BOX if whole else Image.Resampling.BILINEAR
        return np.asarray(image.resize((box.columns, box.rows), how, box=edges))


def _range(box: Box, factor: float) -> Box:
    """Return the stored pixels that a box needs, of which one is as wide as 1 / `factor` of its pixels."""
    margin = math.ceil(factor) + 1  # the range of the weights of the outermost pixels
    top = max(int(box.top * factor) - margin, 0)
    left = max(int(box.left * factor) - margin, 0)
    bottom = math.ceil((box.top + box.rows) * factor) + margin
    right = math.ceil((box.left + box.columns) * factor) + margin
    return Box(top, left, bottom - top, right - left)


def open_slide(path: Path | str) -> Slide:
    """Open a slide: a scanner file that OpenSlide reads, a tiled TIFF, or an OME-TIFF.

    Raises:
        InputError: the file is missing, damaged or truncated, has an unknown format, is not 8-bit colour or grey,
            or is stored in one piece that is too large to be read.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path} does not exist. Check the name.")
    check_regular(path)
    check_name(path)
    if path.is_dir():
        raise InputError(f"{path} is a folder. Name a slide in it.")
    _check_named_files(path)
    return Slide(path, _Decoded(path))


KEYS = b"irtual Microscope Specimen]"
"""The beginning of Hamamatsu's key files, which name the pictures of a slide."""

KEYS_BYTES = 8 << 20
"""More bytes than any key file has."""


def _check_named_files(path: Path) -> None:
    """Refuse slides that name other files than regular ones beside or below them, as for other images.

    Raises:
        InputError: a key file of Hamamatsu or 3DHISTECH names a file that exists elsewhere, or a pipe.
    """
    keys = path.with_suffix("") / "Slidedat.ini" if path.suffix.lower() == ".mrxs" else path
    if not keys.is_file():
        return
    with open_regular(keys) as file:
        content = file.read(4096)
        if keys == path and KEYS not in content:
            return
        content += file.read(KEYS_BYTES)
    _check_names(path, keys.resolve().parent, content.decode("utf-8", errors="replace"))


def _check_names(path: Path, folder: Path, keys: str) -> None:
    """Refuse a slide whose key file names something that is not in its folder, or is neither file nor folder."""
    for line in keys.splitlines():
        name = line.partition("=")[2].strip().replace("\\", "/")
        with contextlib.suppress(OSError, ValueError):  # not a possible file name
            named = (folder / name).resolve()
            if named.exists() and not (
                named.is_relative_to(folder) and (named.is_file() or named.is_dir())
            ):
                raise InputError(
                    f"{path} names {name[:100]!r}, but only regular files beside or below it "
                    "are read. Copy the whole slide into one folder."
                )


class _Decoded:
    """`Levels` of a slide that another process reads, because a damaged slide may crash it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            found = asked("slides.opened", path)
        except ValueError as error:
            raise unreadable(path, error, "a slide") from error
        self.levels = tuple(Level(*level) for level in found["levels"])
        spacing = found["spacing_mm"]
        self.spacing_mm = None if spacing is None else (spacing[0], spacing[1])
        self.bounds = Box(*found["bounds"])

    def read(self, number: int, box: Box) -> Pixels:
        expected = 3 * box.rows * box.columns
        try:
            return decoded("slides.part", self._path, expected, number=number, box=astuple(box))
        except ValueError as error:
            raise unreadable(self._path, error, "a slide") from error

    def close(self) -> None:
        let_go("slides.closed", self._path)


@dataclass(frozen=True, eq=False)
class SlideChannel(Volume):
    """Red, green or blue of the overview of a slide, whose finer pixels are read from the file.

    Attributes:
        slide: the file.
    """

    slide: Path = Path()


def read_slide(path: Path, longest: int = LONGEST_OVERVIEW) -> tuple[SlideChannel, ...]:
    """Read the overview of a slide as red, green and blue, each a volume of one slice.

    Args:
        path: the slide.
        longest: the largest number of pixels along the longer side.

    Raises:
        InputError: see `open_slide`.
    """
    with open_slide(path) as slide:
        return slide_channels(slide, slide.overview_grid(longest))


def slide_channels(
    slide: Slide, grid: SlideGrid, box: Box | None = None
) -> tuple[SlideChannel, ...]:
    """Read a grid of a slide, or a box of it, as red, green and blue.

    Raises:
        InputError: it does not fit into memory, or pixels cannot be decoded.
    """
    box = box or Box(0, 0, grid.rows, grid.columns)
    check_memory(slide.path, 3 * box.rows * box.columns)
    planes, geometry = channel_planes(slide.overview(grid, box)), slide.geometry(grid, box)
    return tuple(
        SlideChannel(
            plane,
            geometry,
            str(slide.path),
            slide.notes,
            size_known=slide.spacing_mm is not None,
            slide=slide.path,
        )
        for plane in planes
    )


def is_slide(path: Path) -> bool:
    """Whether a file is a slide by its name, or is a tiled TIFF that is large or also has smaller sizes.

    Raises:
        InputError: the process that reads it crashed.
    """
    if path.name.lower().endswith(SLIDE_ENDINGS):
        return True
    if not path.name.lower().endswith(TIFF_ENDINGS):
        return False
    try:
        return bool(asked("slides.tiled", path, large=LONGEST_OVERVIEW)["tiled"])
    except ValueError:
        return False  # the reader of pictures reports the fault


def _notes(slide: Slide) -> list[str]:
    whole = slide.levels[0]
    notes = []
    if slide.spacing_mm is None:
        notes.append(
            f"{slide.path} does not state the size of its pixels, so lengths are in pixels, not millimetres."
        )
    if len(slide.levels) == 1 and max(whole.rows, whole.columns) > 20_000:
        notes.append(
            f"{slide.path} is stored in full size only, so each overview reads the whole "
            "file. Save it with a pyramid (vips tiffsave IN OUT --tile --pyramid)."
        )
    return notes

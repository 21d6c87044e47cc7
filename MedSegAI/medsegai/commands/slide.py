"""`medsegai slide`: describe a microscope slide, or write a part of it as a colour volume for 3D Slicer."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from medsegai.commands.console import print_written
from medsegai.commands.parsing import add_overwrite
from medsegai.errors import OutputError, RequestError

if TYPE_CHECKING:
    from medsegai.commands.console import Subparsers
    from medsegai.decoding.slides import Box
    from medsegai.io.slides import Slide, SlideGrid

LONGEST = 2048


def add_parser(subparsers: Subparsers) -> None:
    """Add `medsegai slide` to the command line."""
    parser = subparsers.add_parser(
        "slide",
        help="describe a microscope slide, or write a part of it as a colour volume",
        description="Print the sizes in which a slide is stored, and the size of its pixels. With -o, "
        "write the whole slide or a region, at one of these sizes or smaller, as a colour "
        "volume that 3D Slicer opens. It is aligned with segmentations of the slide.",
    )
    parser.add_argument(
        "slide", metavar="SLIDE", type=Path, help="file of a scanner, tiled TIFF or OME-TIFF"
    )
    parser.add_argument(
        "-o", "--output", type=Path, metavar="VOLUME", help="colour volume: .nrrd or .mha"
    )
    _add_part(parser)
    add_overwrite(parser, "replace an existing output")
    parser.set_defaults(run=run)


def _add_part(parser: argparse.ArgumentParser) -> None:
    """Add the options for which part of the slide is written, and in which size."""
    parser.add_argument("--level", type=int, metavar="N", help="stored size to write, 0 the finest")
    parser.add_argument(
        "--longest",
        type=int,
        default=LONGEST,
        metavar="PIXELS",
        help=f"largest number of pixels of the longer side, if no level is named (default: {LONGEST})",
    )
    parser.add_argument(
        "--region",
        type=_region,
        default=(),
        metavar="R0,R1,A0,A1",
        help="only this box: lowest and highest R and A in mm, as of a Slicer ROI; write "
        "--region=-1,0,… if the first is negative",
    )


def _region(text: str) -> tuple[float, ...]:
    try:
        r0, r1, a0, a1 = (float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not four numbers with commas") from None
    if not (r0 < r1 and a0 < a1):
        raise argparse.ArgumentTypeError("the lowest must come before the highest")
    return r0, r1, a0, a1


def run(arguments: argparse.Namespace) -> int:
    """Carry out the command and return its exit code."""
    from medsegai.io import write_colours
    from medsegai.io.slides import open_slide, slide_channels

    with open_slide(arguments.slide) as slide:
        if arguments.output is None:
            print(describe(slide))
            return 0
        if arguments.output.exists() and not arguments.overwrite:
            raise OutputError(
                f"{arguments.output} exists already. Name another file, or add --overwrite."
            )
        grid, box = chosen_part(slide, arguments)
        write_colours(arguments.output, slide_channels(slide, grid, box))
    print_written([arguments.output])
    return 0


def describe(slide: Slide) -> str:
    """Return levels, pixel sizes and notes as text."""
    lines = []
    for number, level in enumerate(slide.levels):
        size = "unknown"
        if slide.spacing_mm is not None:
            across, down = (1000 * step * level.downsample for step in slide.spacing_mm)
            size = f"{across:.4g} x {down:.4g} micrometres"
        lines.append(f"level {number}: {level.columns} x {level.rows} pixels, each {size}")
    return "\n".join([*lines, *slide.notes])


def chosen_part(slide: Slide, arguments: argparse.Namespace) -> tuple[SlideGrid, Box | None]:
    """Return the requested grid and the part of it; None for the whole grid.

    Without a level, it is the finest grid on which the part is not longer than `--longest`.

    Raises:
        RequestError: the level does not exist, or the region lies outside the slide.
    """
    if arguments.level is not None:
        grid = _level_grid(slide, arguments)
        return grid, _box(slide, grid, arguments)
    if arguments.longest < 1:
        raise RequestError(f"--longest must be at least 1, not {arguments.longest}.")
    whole = _box(slide, slide.grid(1.0), arguments)
    finest = slide.levels[0]
    rows, columns = (finest.rows, finest.columns) if whole is None else (whole.rows, whole.columns)
    factor = max(1.0, max(rows, columns) / arguments.longest)
    grid = slide.grid(factor)
    return grid, _box(slide, grid, arguments)


def _level_grid(slide: Slide, arguments: argparse.Namespace) -> SlideGrid:
    if not 0 <= arguments.level < len(slide.levels):
        raise RequestError(
            f"{arguments.slide} has the levels 0 to {len(slide.levels) - 1}, but not level {arguments.level}."
        )
    return slide.grid(slide.levels[arguments.level].downsample)


def _box(slide: Slide, grid: SlideGrid, arguments: argparse.Namespace) -> Box | None:
    from medsegai.decoding.slides import Box

    if not arguments.region:
        return None
    found = slide.geometry(grid).box_around((*arguments.region, -1.0, 1.0))
    if found is None:
        raise RequestError(f"The region lies outside {arguments.slide}. Move it onto the slide.")
    _, rows, columns = found
    return Box(rows.start, columns.start, rows.stop - rows.start, columns.stop - columns.start)

"""`medsegai measure`: measure volume, surface, position and grey values of every structure."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from medsegai.commands.console import print_written, table
from medsegai.commands.parsing import add_overwrite, add_path, add_quiet
from medsegai.errors import OutputError, RequestError
from medsegai.system.locks import reserved
from medsegai.system.outside_text import one_line

if TYPE_CHECKING:
    from medsegai.commands.console import Subparsers
    from medsegai.measurements.structures import Measurement

SHOWN = {
    "volume_ml": ("ml", ".2f"),
    "surface_mm2": ("mm²", ".0f"),
    "mean": ("mean", ".1f"),
    "sd": ("SD", ".1f"),
    "asymmetry_percent": ("asymmetry %", "+.1f"),
}
"""The columns of the printed table: heading and number format. The files have all columns."""


def add_parser(subparsers: Subparsers) -> None:
    """Add `medsegai measure` to the command line."""
    parser = subparsers.add_parser(
        "measure",
        help="measure volume, surface, position and grey values of every structure",
        description="Measure every structure of the current state of a segmentation. Asymmetry is left "
        "minus right volume, in per cent of the mean of both.",
    )
    add_segmentation(parser)
    add_path(
        parser, "--image", "SCAN", "the scan that was segmented, for mean and SD of its grey values"
    )
    for flag in ("--csv", "--json"):
        name = flag[2:].upper()
        parser.add_argument(flag, type=Path, metavar=name, help=f"write all columns as {name}")
    add_overwrite(parser, "replace existing outputs")
    add_quiet(parser, "do not print the table")
    parser.set_defaults(run=run)


def add_segmentation(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "segmentation",
        metavar="SEGMENTATION",
        type=Path,
        help=".seg.nrrd, DICOM SEG, or a labelmap: .nii.gz, .nii, .nrrd, .mha, .mgz",
    )
    parser.add_argument(
        "--model",
        metavar="ID",
        help="model that the labels belong to: its card names the values of a labelmap, and has "
        "the plausible volumes",
    )


def run(arguments: argparse.Namespace) -> int:
    """Carry out the command and return its exit code."""
    outputs = [path for path in (arguments.csv, arguments.json) if path is not None]
    inputs = [path for path in (arguments.segmentation, arguments.image) if path is not None]
    with reserved(outputs):
        check_files(outputs, inputs, arguments.overwrite)
        return _measure(arguments, outputs)


def _measure(arguments: argparse.Namespace, outputs: list[Path]) -> int:
    from medsegai.export import load_case
    from medsegai.io import check_output
    from medsegai.measurements.structures import measure, warnings_of, write_csv, write_json

    for path, ending in ((arguments.csv, ".csv"), (arguments.json, ".json")):
        if path is not None:
            check_output(path, (ending,))
    case = load_case(arguments.segmentation, arguments.image, arguments.model)
    rows = measure(case.labelmap, case.labels, case.image, case.reference)
    for path, write in ((arguments.csv, write_csv), (arguments.json, write_json)):
        if path is not None:
            write(path, rows)
    for warning in (*case.notes, *warnings_of(rows, case.reference)):
        print(f"medsegai: warning: {one_line(warning)}", file=sys.stderr)
    if not arguments.quiet:
        print(measurement_table(rows))
        if outputs:
            print_written(outputs)
    return 0


def check_files(outputs: list[Path], inputs: list[Path], overwrite: bool) -> None:
    """Refuse outputs that are inputs, are named twice, or exist already.

    Raises:
        RequestError, OutputError: an output is refused; the message has its name.
    """
    taken = {path.resolve() for path in inputs}
    for path in outputs:
        if path.resolve() in taken:
            raise RequestError(f"{path} is named twice. Name another file to write.")
        taken.add(path.resolve())
        if path.exists() and not overwrite:
            raise OutputError(f"{path} exists already. Name another file, or add --overwrite.")


def measurement_table(rows: tuple[Measurement, ...]) -> str:
    """Return the columns of `SHOWN` that at least one structure has."""
    known = [name for name in SHOWN if any(_known(getattr(row, name)) for row in rows)]
    lines = [
        [row.label.name, *(_cell(getattr(row, name), SHOWN[name][1]) for name in known)]
        for row in rows
    ]
    return table(["structure", *(SHOWN[name][0] for name in known)], lines)


def _known(value: float) -> bool:
    return value == value


def _cell(value: float, spec: str) -> str:
    return format(value, spec) if _known(value) else "-"

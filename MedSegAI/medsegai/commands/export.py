"""`medsegai export`: a segmentation for other systems: DICOM SEG and SR, surfaces, tables, a report."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from medsegai.commands.console import print_written, shown_progress
from medsegai.commands.measure import add_segmentation
from medsegai.commands.parsing import add_overwrite, add_path, add_quiet, add_switch
from medsegai.system.locks import reserved
from medsegai.system.outside_text import one_line

if TYPE_CHECKING:
    from medsegai.commands.console import Subparsers
    from medsegai.export.files import Exports, Inputs


def add_parser(subparsers: Subparsers) -> None:
    """Add `medsegai export` to the command line."""
    parser = subparsers.add_parser(
        "export",
        help="export a segmentation as DICOM SEG and SR, surfaces, tables and a report",
        description="Write the current state of a segmentation for other systems. Either all outputs are "
        "written, or none.",
    )
    add_segmentation(parser)
    _add_inputs(parser.add_argument_group("sources of the segmentation"))
    _add_outputs(parser.add_argument_group("outputs"))
    add_overwrite(parser, "replace existing outputs")
    add_quiet(parser, "print neither progress nor what was written")
    parser.set_defaults(run=run)


def _add_inputs(group: argparse._ArgumentGroup) -> None:
    for flag, metavar, text in (
        ("--dicom", "FOLDER", "DICOM series that was segmented; for --seg, --sr and --rtstruct"),
        ("--image", "SCAN", "the scan, if it is not DICOM; for pictures and grey values"),
    ):
        group.add_argument(flag, type=Path, metavar=metavar, help=text)
    group.add_argument(
        "--run",
        dest="run_report",  # `run` is the function of the command
        type=Path,
        metavar="JSON",
        help="report of the run, from medsegai segment --report; it has the model, options and warnings",
    )
    add_path(
        group,
        "--uncertainty",
        "IMAGE",
        "entropy map of the run, from medsegai segment --uncertainty; it becomes a layer of the viewer",
    )
    add_switch(
        group, "--corrected", "a person changed the segmentation, so it counts as semi-automatic"
    )


def _add_outputs(group: argparse._ArgumentGroup) -> None:
    for flag, metavar, text in (
        ("--seg", "DCM", "DICOM segmentation"),
        ("--sr", "DCM", "DICOM structured report (TID 1500) of the measurements; needs --seg"),
        ("--rtstruct", "DCM", "DICOM RT Structure Set, which has contours for radiotherapy"),
        ("--report", "HTML", "HTML page with pictures, table, warnings and provenance"),
        ("--csv", "CSV", "table of measurements"),
        ("--json", "JSON", "the same table as JSON"),
        ("--surfaces", "FOLDER", "folder for a closed surface per structure, in mm"),
    ):
        group.add_argument(flag, type=Path, metavar=metavar, help=text)
    add_switch(
        group,
        "--viewer",
        "put the scan into the report, with a viewer of three planes and 3D; needs --report and the scan",
    )
    _add_forms(group)


def _add_forms(group: argparse._ArgumentGroup) -> None:
    """Add the options for how DICOM and surfaces are written."""
    group.add_argument(
        "--encoding",
        choices=("binary", "labelmap"),
        default="binary",
        help="type of --seg: binary, which every viewer reads, or the newer labelmap (default: binary)",
    )
    group.add_argument(
        "--formats",
        default="stl",
        metavar="NAMES",
        help="formats of --surfaces: stl, obj and glb, separated by commas (default: stl)",
    )
    group.add_argument(
        "--tolerance",
        type=float,
        default=0.1,
        metavar="MM",
        help="largest distance in mm by which surfaces move when points are left out (default: 0.1)",
    )
    group.add_argument(
        "--space",
        choices=("LPS", "RAS"),
        default="LPS",
        help="coordinate system of --surfaces; 3D Slicer assumes LPS (default: LPS)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Carry out the command and return its exit code."""
    from medsegai.export.files import export

    inputs, exports = _inputs(arguments), _exports(arguments)
    with reserved(exports.files().values()), shown_progress(arguments.quiet) as progress:
        warnings = export(inputs, exports, progress, arguments.overwrite)
    for warning in warnings:
        print(f"medsegai: warning: {one_line(warning)}", file=sys.stderr)
    if not arguments.quiet:
        print_written([*exports.files().values(), exports.surfaces])
    return 0


def _inputs(arguments: argparse.Namespace) -> Inputs:
    from medsegai.export.files import Inputs

    return Inputs(
        arguments.segmentation,
        arguments.dicom,
        arguments.image,
        arguments.run_report,
        arguments.model,
        arguments.corrected,
        arguments.uncertainty,
    )


def _exports(arguments: argparse.Namespace) -> Exports:
    from medsegai.export.files import Exports

    return Exports(
        arguments.seg,
        arguments.sr,
        arguments.report,
        arguments.csv,
        arguments.json,
        arguments.surfaces,
        arguments.encoding,
        tuple("." + name.strip().lower() for name in arguments.formats.split(",")),
        arguments.tolerance,
        arguments.space,
        arguments.viewer,
        arguments.rtstruct,
    )

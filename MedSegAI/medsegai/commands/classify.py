"""`medsegai classify`: evaluate a classifier on pictures whose classes are known."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from medsegai.commands.console import print_written, shown_progress
from medsegai.commands.parsing import add_device, add_output, add_path
from medsegai.errors import RequestError

if TYPE_CHECKING:
    from medsegai.commands.console import Subparsers
    from medsegai.io.picture_sets import PictureSet


def add_parser(subparsers: Subparsers) -> None:
    """Add `medsegai classify` to the command line."""
    parser = subparsers.add_parser(
        "classify",
        help="evaluate a classifier on labelled pictures",
        description="Classify pictures that a model of the family patches has not seen, and evaluate it "
        "on them: accuracy, AUC with its interval, sensitivity, confusion, calibration, and "
        "the worst mistakes with heat maps. PICTURES is a folder or table as for `medsegai "
        "train patches`; its classes must be those of the model.",
    )
    parser.add_argument(
        "pictures", metavar="PICTURES", type=Path, help="folder or table of pictures"
    )
    parser.add_argument(
        "--model", required=True, metavar="MODEL", help="id, or folder of the model"
    )
    add_output(parser, "folder of report and tables", metavar="FOLDER")
    parser.add_argument("--part", metavar="NAME", help="only this part of the set, such as test")
    parser.add_argument(
        "--specificity",
        type=float,
        default=0.9,
        metavar="SHARE",
        help="specificity at which the sensitivity is reported (default: 0.9)",
    )
    add_path(
        parser,
        "--groups",
        "CSV",
        "table with the columns picture and patient, from which the intervals are computed",
    )
    add_device(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Carry out the command and return its exit code."""
    from medsegai.evaluation.classifying import Classifying, classify
    from medsegai.io.picture_sets import read_pictures

    pictures = read_pictures(arguments.pictures, arguments.groups)
    if arguments.part is not None:
        pictures = _part(pictures, arguments)
    settings = Classifying(
        arguments.model, arguments.output, arguments.device, arguments.specificity
    )
    with shown_progress() as progress:
        found = classify(pictures, settings, progress)
    print(found.figures.table())
    print_written(found.files)
    return 0


def _part(pictures: PictureSet, arguments: argparse.Namespace) -> PictureSet:
    if arguments.part not in pictures.parts:
        raise RequestError(
            f"{arguments.pictures} does not have the part {arguments.part!r}. Its parts "
            f"are: {', '.join(pictures.parts) or 'none'}."
        )
    return pictures.part(arguments.part)

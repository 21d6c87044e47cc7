"""`medsegai evaluate`: measure how well segmentations agree with references."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from medsegai.commands.console import Subparsers


def add_parser(subparsers: Subparsers) -> None:
    """Add `medsegai evaluate` to the command line."""
    parser = subparsers.add_parser(
        "evaluate",
        help="compare segmentations with references",
        description="Compute Dice, IoU, 95th percentile Hausdorff distance, average surface "
        "distance and volumes, per structure. Two files, or two folders whose files have the same names. "
        "Grids that differ are refused, never resampled.",
    )
    parser.add_argument(
        "predictions", metavar="PREDICTIONS", type=Path, help="label map, or folder of them"
    )
    parser.add_argument(
        "references", metavar="REFERENCES", type=Path, help="label map, or folder of them"
    )
    parser.add_argument(
        "--mapping",
        type=Path,
        metavar="CSV",
        help="table that translates reference values: columns reference and evaluated",
    )
    parser.add_argument(
        "--common",
        action="store_true",
        help="evaluate the cases that are in both folders, and leave out the others",
    )
    parser.add_argument("--model", metavar="ID", help="evaluate the structures of this model only")
    parser.add_argument(
        "--csv", type=Path, metavar="CSV", help="write one row per case and structure"
    )
    parser.add_argument(
        "--json", type=Path, metavar="JSON", help="write all figures and their means"
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="do not print the table")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Carry out the command and return its exit code."""
    from medsegai.evaluation import EvaluationFiles, run_evaluation

    if not arguments.quiet:
        logging.basicConfig(level=logging.INFO, format="%(message)s")  # one line per finished case
    evaluation = run_evaluation(
        arguments.predictions,
        arguments.references,
        mapping=arguments.mapping,
        files=EvaluationFiles(arguments.csv, arguments.json),
        model=arguments.model,
        common=arguments.common,
    )
    if not arguments.quiet:
        print(evaluation.table())
    return 0

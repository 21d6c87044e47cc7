"""`medsegai evaluate`: measure how well segmentations agree with references."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from medsegai.commands.parsing import add_path, add_quiet, add_switch

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
    _add_selection(parser)
    add_path(parser, "--csv", "CSV", "write one row per case and structure")
    add_path(parser, "--json", "JSON", "write all figures and their means")
    add_quiet(parser, "do not print the table")
    parser.set_defaults(run=run)


def _add_selection(parser: argparse.ArgumentParser) -> None:
    """Add the options for what is compared with what."""
    add_path(
        parser,
        "--mapping",
        "CSV",
        "table that translates reference values: columns reference and evaluated",
    )
    add_switch(
        parser, "--common", "evaluate the cases that are in both folders, and leave out the others"
    )
    parser.add_argument("--model", metavar="ID", help="evaluate the structures of this model only")


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

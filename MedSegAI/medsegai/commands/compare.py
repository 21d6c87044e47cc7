"""`medsegai compare`: a grid of networks on the same folds, and which of their differences are real."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from medsegai.commands.console import print_written, shown_progress, table
from medsegai.commands.parsing import add_device, add_output

if TYPE_CHECKING:
    import argparse

    from medsegai.commands.console import Subparsers


def add_parser(subparsers: Subparsers) -> None:
    """Add `medsegai compare` to the command line."""
    parser = subparsers.add_parser(
        "compare",
        help="train a grid of 2D networks and compare them",
        description="Train and cross-validate every combination of encoders, decoders and initial "
        "weights that CONFIG names, and report their differences with intervals. Networks "
        "that are already trained are not trained again.",
    )
    parser.add_argument("config", metavar="CONFIG", type=Path, help="comparison file (TOML)")
    add_output(parser, "folder of the trainings and the report")
    add_device(parser)
    parser.set_defaults(run=run_compare)


def run_compare(arguments: argparse.Namespace) -> int:
    """Train, compare, write the report, and print the differences."""
    from medsegai.training.unet2d.comparison import differences, load_comparison, run
    from medsegai.training.unet2d.comparison_page import write_comparison

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    config = load_comparison(arguments.config)
    with shown_progress() as progress:
        networks = run(config, arguments.output, arguments.device, progress)
    found = differences(networks)
    rows = [
        [
            *(item.first, item.second, f"{item.mean:+.4f}", f"{item.low:+.4f} to {item.high:+.4f}"),
            "yes" if item.real else "no",
        ]
        for item in found
    ]
    print(table(["better", "than", "by (Dice)", "interval", "real"], rows))
    print_written(write_comparison(arguments.output, networks, found, config))
    return 0

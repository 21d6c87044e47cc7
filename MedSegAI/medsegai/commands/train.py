"""`medsegai train quicknat`: networks of one's own from a training file."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from medsegai.commands.console import ProgressBar, stoppable
from medsegai.progress import Progress

if TYPE_CHECKING:
    from medsegai.commands.console import Subparsers


def add_parser(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser("train", help="train a model")
    families = parser.add_subparsers(title="families", metavar="FAMILY", required=True)
    quicknat = families.add_parser(
        "quicknat",
        help="one network per view",
        description="Train one network per view, as CONFIG describes. Ctrl-C stops it, --resume goes "
        "on exactly where it stopped. Several GPUs: torchrun -m medsegai train quicknat CONFIG",
    )
    quicknat.add_argument("config", metavar="CONFIG", type=Path, help="training file (TOML)")
    quicknat.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("training"),
        help="folder of checkpoints, weights and log (default: training)",
    )
    quicknat.add_argument(
        "--data", type=Path, help="folder of images and label maps, instead of data.root in CONFIG"
    )
    quicknat.add_argument("--views", nargs="+", metavar="VIEW", help="train these views only")
    quicknat.add_argument("--steps", type=int, help="number of steps, instead of that in CONFIG")
    quicknat.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    quicknat.add_argument(
        "--resume", action="store_true", help="go on from the last checkpoint in the output folder"
    )
    quicknat.set_defaults(run=run_quicknat)


def run_quicknat(arguments: argparse.Namespace) -> int:
    from medsegai.training.config import configured
    from medsegai.training.quicknat import train_quicknat

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    bar = ProgressBar()
    progress = Progress(bar)
    try:
        with stoppable(progress):
            folder = train_quicknat(
                configured(arguments),
                arguments.output,
                arguments.resume,
                arguments.device,
                progress,
            )
    finally:
        bar.clear()
    print(f"Trained networks, log and checkpoints: {folder}")
    return 0

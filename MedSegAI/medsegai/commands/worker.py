"""`medsegai worker`: the engine as a process to which a panel sends jobs."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from medsegai.commands.console import Subparsers


def add_parser(subparsers: Subparsers) -> None:
    """Add `medsegai worker` to the command line."""
    parser = subparsers.add_parser(
        "worker",
        help="serve jobs on standard input and output (for the panel in 3D Slicer)",
        description="Read jobs as JSON lines from standard input, and write events to standard output, "
        "until the input ends. See medsegai.worker.protocol.",
    )
    parser.set_defaults(run=run)


def run(_arguments: argparse.Namespace) -> int:
    """Carry out the command and return its exit code."""
    from medsegai.worker.server import main

    main()
    return 0

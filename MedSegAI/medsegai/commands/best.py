"""`medsegai best`: find the best members and postprocessing by cross-validation, and make a model of them."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from medsegai.commands.crossval import add_options, figures_table, validated

if TYPE_CHECKING:
    from medsegai.commands.console import Subparsers


def add_parser(subparsers: Subparsers) -> None:
    """Add `medsegai best` to the command line."""
    parser = subparsers.add_parser(
        "best",
        help="make a model of the best members",
        description="Run `medsegai crossval`, take the best candidate, find which removal of small parts "
        "improves it, and write it as a model into the folder `model` in OUTPUT.",
    )
    add_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Carry out the command and return its exit code."""
    from medsegai.evaluation.crossval import best_of
    from medsegai.evaluation.postprocessing import determine_postprocessing
    from medsegai.evaluation.recipe import MODEL, write_recipe

    validation, figures = validated(arguments)
    number = best_of(figures)
    candidate = validation.candidates[number]
    decision = determine_postprocessing(lambda: validation.pairs(candidate), figures[number])
    folders = write_recipe(validation, candidate, figures, decision, arguments.output / MODEL)
    print(f"\nBest: {candidate.name}")
    if decision.groups:
        groups = "; ".join(" and ".join(map(str, group)) for group in decision.groups)
        print(f"For these labels only the largest part is kept: {groups}")
        print(figures_table([decision.figures]))
    names = ",".join(str(folder) for folder in folders)
    print(f"Model: {names} (medsegai segment SCAN --model {names} -o OUT)")
    return 0

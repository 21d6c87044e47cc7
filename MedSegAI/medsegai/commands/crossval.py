"""`medsegai crossval`: the Dice of each configuration, view and pair of them on cases that they have not seen."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from medsegai.commands.console import shown_progress, table
from medsegai.commands.parsing import add_device, add_output, add_path
from medsegai.commands.segment import comma_list
from medsegai.errors import Cancelled, RequestError, counted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from medsegai.commands.console import Subparsers
    from medsegai.evaluation.crossval import CrossValidation, Figures
    from medsegai.evaluation.folds import Split

FIGURES = "figures.json"


def add_parser(subparsers: Subparsers) -> None:
    """Add `medsegai crossval` to the command line."""
    parser = subparsers.add_parser(
        "crossval",
        help="compare members by cross-validation",
        description="Segment every case of a training dataset by the folds that have not seen it, and compare "
        "the mean Dice of configurations, views, and pairs of them. Finished predictions are kept, and the same "
        "command resumes after Ctrl-C.",
    )
    add_options(parser)
    parser.set_defaults(run=run)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that `crossval` and `best` share."""
    add_dataset(parser)
    _add_models(parser)
    add_output(parser, "folder (default: crossval)", default=Path("crossval"))
    parser.add_argument(
        "--folds",
        type=comma_list,
        default=[],
        metavar="N",
        help="folds to compare on (default: all)",
    )
    _add_folds(parser)
    add_running(parser)


def _add_models(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        dest="models",
        type=comma_list,
        action="extend",
        required=True,
        metavar="NAME",
        help="models to compare, by id or folder; {fold} in a name stands for the number of the "
        "fold, if each fold is a separate model; separated by commas",
    )


def _add_folds(parser: argparse.ArgumentParser) -> None:
    """Add the options for how the cases were shared out among the folds."""
    cases = parser.add_mutually_exclusive_group()
    add_path(
        cases,
        "--splits",
        "JSON",
        "nnU-Net's splits_final.json (default: that of the training, else nnU-Net's own splits)",
    )
    add_path(
        cases,
        "--groups",
        "CSV",
        "table with the columns case and patient, if the folds were made from it",
    )


def add_dataset(parser: argparse.ArgumentParser) -> None:
    """Add the option for the dataset."""
    parser.add_argument(
        "dataset",
        metavar="DATASET",
        type=Path,
        help="raw nnU-Net folder: dataset.json, imagesTr, labelsTr",
    )


def add_running(parser: argparse.ArgumentParser) -> None:
    """Add the options for how networks run."""
    add_device(parser)
    parser.add_argument(
        "--precision", choices=("auto", "fp32", "mixed"), default="auto", help="default: auto"
    )
    parser.add_argument(
        "--mirroring",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="also predict mirrored images, if a model was trained for it (nnU-Net)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Carry out the command and return its exit code."""
    validated(arguments)
    print(f"\nFigures: {arguments.output / FIGURES}")
    return 0


def validated(arguments: argparse.Namespace) -> tuple[CrossValidation, list[Figures]]:
    """Predict the missing cases and compare the members; print the table and write the figures."""
    validation = cross_validation(arguments)
    try:
        with shown_progress(weights={"cross-validation": 1.0}) as progress:
            validation.predict(progress)
    except Cancelled:
        raise Cancelled(
            "Stopped by the user. Finished predictions are kept, and the same command resumes."
        ) from None
    figures = [validation.figures(candidate) for candidate in validation.candidates]
    print(figures_table(figures))
    write_figures(arguments.output / FIGURES, figures)
    return validation, figures


def cross_validation(arguments: argparse.Namespace) -> CrossValidation:
    """Return the cross-validation that the command line describes."""
    from medsegai.evaluation.crossval import CrossValidation, Task, candidates_of, read_parts
    from medsegai.evaluation.folds import dataset_cases

    cases = {case.name: case for case in dataset_cases(arguments.dataset)}
    splits = find_splits(arguments, sorted(cases))
    chosen = arguments.folds or [str(number) for number in range(len(splits))]
    return CrossValidation(
        Task.of(arguments.dataset),
        cases,
        {fold: splits[fold_number(fold, splits)] for fold in chosen},
        candidates_of(read_parts(arguments.models, chosen)),
        arguments.output,
        {name: getattr(arguments, name) for name in ("device", "precision", "mirroring")},
    )


def find_splits(arguments: argparse.Namespace, cases: Sequence[str]) -> list[Split]:
    """Return the held-out cases of each fold: from a named file, from the training, or as nnU-Net splits them."""
    from medsegai.evaluation import folds

    if arguments.groups is not None:
        return folds.patient_folds(folds.read_groups(arguments.groups, cases))
    splits = arguments.splits or splits_of_training(arguments.models, arguments.dataset)
    return folds.default_folds(cases) if splits is None else folds.read_splits(splits, cases)


def splits_of_training(models: Sequence[str], dataset: Path) -> Path | None:
    """Return the file with the held-out cases of each fold of a training; None if it is not found."""
    places = [Path(name).absolute().parent / "preprocessed" for name in models]
    places += map(Path, filter(None, [os.environ.get("nnUNet_preprocessed")]))  # noqa: SIM112
    found = [path / dataset.name / "splits_final.json" for path in places]
    return next((path for path in found if path.is_file()), None)


def fold_number(fold: str, splits: Sequence[Split]) -> int:
    """Return the number of a fold. Raises RequestError: the fold does not exist."""
    if not fold.isdigit() or int(fold) >= len(splits):
        there = counted(len(splits), "fold", "folds")
        raise RequestError(
            f"Fold {fold} does not exist, because there are {there}, numbered from 0."
        )
    return int(fold)


def figures_table(figures: Sequence[Figures]) -> str:
    """Return a line for each candidate with its mean Dice and the Dice of each structure."""
    names = list(figures[0].dice())
    rows = [
        [item.name, f"{item.mean_dice():.4f}", *(f"{value:.4f}" for value in item.dice().values())]
        for item in figures
    ]
    return table(["candidate", "mean Dice", *names], rows)


def write_figures(path: Path, figures: Sequence[Figures]) -> None:
    from medsegai.io.atomic import write_json

    content = {item.name: item.to_dict() for item in figures}
    write_json(path, content)

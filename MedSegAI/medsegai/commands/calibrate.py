"""`medsegai calibrate`: measure how reliable a model is, on cases that it has not seen."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from medsegai.commands.console import shown_progress, table
from medsegai.commands.crossval import add_dataset, add_running, fold_number, splits_of_training
from medsegai.commands.parsing import add_output, add_path, add_switch
from medsegai.commands.segment import comma_list
from medsegai.errors import Cancelled, RequestError, counted

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from medsegai.commands.console import Subparsers
    from medsegai.evaluation.findings import Findings
    from medsegai.evaluation.folds import TrainingCase
    from medsegai.evaluation.held_out import HeldOut, PredictionJob, Record
    from medsegai.models.card import ModelCard

REPORT, DIAGRAM = "report.json", "reliability.png"
ALL = "all"
GROUPS = 5
"""The number of parts of the cases; each is judged by the others."""


DESCRIPTION = (
    "Segment cases that the model has not seen and compare with their labels: how often its "
    "probabilities are right, and the temperature that makes them so; how well the agreement of its members "
    "predicts the Dice, and below which score a person should check a structure; and which refinement helps. "
    "With --write all results are written into the model's card. Finished cases are kept, and the same "
    "command resumes after Ctrl-C."
)


def add_parser(subparsers: Subparsers) -> None:
    """Add `medsegai calibrate` to the command line."""
    parser = subparsers.add_parser(
        "calibrate",
        help="measure how reliable a model is",
        description=DESCRIPTION,
    )
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="id or folder; {fold} in it stands for the number of the fold, if each fold is a separate model",
    )
    add_dataset(parser)
    _add_cases(parser)
    _add_outputs(parser)
    _add_comparisons(parser)
    add_running(parser)
    parser.set_defaults(run=run)


def _add_outputs(parser: argparse.ArgumentParser) -> None:
    add_output(parser, "folder (default: calibration)", default=Path("calibration"))
    add_switch(parser, "--write", "write the results into the model's card")


def _add_comparisons(parser: argparse.ArgumentParser) -> None:
    """Add the options for what is compared: labels, members, refinements and dropout passes."""
    add_path(
        parser,
        "--mapping",
        "CSV",
        "table that translates labels of the dataset into labels of the model: columns reference and "
        "evaluated, as for `medsegai evaluate` (default: labels are matched by name)",
    )
    parser.add_argument(
        "--members",
        type=comma_list,
        default=[],
        metavar="NAME",
        help="only these members of the model, such as 3d_fullres",
    )
    parser.add_argument(
        "--refinement",
        dest="rows",
        action="extend",
        type=comma_list,
        metavar="NAME[:OPTION=VALUE;…]",
        help="refinements to try; `none` for none (default: all)",
    )
    parser.add_argument(
        "--dropout-passes",
        type=int,
        default=0,
        metavar="N",
        help="Monte-Carlo dropout passes per member",
    )


def _add_cases(parser: argparse.ArgumentParser) -> None:
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument(
        "--cases",
        type=comma_list,
        metavar="NAME",
        help="names of cases that the model has not seen; `all` for the whole dataset",
    )
    chosen.add_argument(
        "--fold",
        dest="folds",
        type=comma_list,
        metavar="N",
        help="use the cases that these folds of the training held out, each predicted by its own fold",
    )
    add_path(
        parser,
        "--splits",
        "JSON",
        "nnU-Net's splits_final.json (default: that of the training, if it is beside the model)",
    )
    add_path(
        parser,
        "--groups",
        "CSV",
        "table with the columns case and patient: cases of one patient are never used to judge each other",
    )


def run(arguments: argparse.Namespace) -> int:
    """Carry out the command and return its exit code."""
    from medsegai.evaluation.findings import draw_reliability, find, write_into_card
    from medsegai.io.atomic import write_json

    held_out, groups = planned(arguments)
    if arguments.write:
        _check_writable(arguments, held_out.card)
    records = _records(held_out)
    findings = find(records, groups, held_out.truth.labels, _source(arguments, len(records)))
    print(text_of(findings))
    write_json(arguments.output / REPORT, findings.to_dict())
    draw_reliability(findings.before, findings.after, arguments.output / DIAGRAM)
    print(f"\nReport: {arguments.output / REPORT}")
    if arguments.write:
        write_into_card(held_out.card, findings)
        print(f"Written into the card of {held_out.card.id} in {held_out.card.folder}.")
    return 0


def _check_writable(arguments: argparse.Namespace, card: ModelCard) -> None:
    from medsegai.evaluation.findings import writable_card

    if "{fold}" in arguments.model:
        raise RequestError("--write needs one model, not one per fold. Name the model of one fold.")
    writable_card(card)


def _records(held_out: HeldOut) -> list[Record]:
    try:
        with shown_progress(weights={"held-out cases": 1.0}) as progress:
            return held_out.records(progress)
    except Cancelled:
        raise Cancelled(
            "Stopped by the user. Finished cases are kept, and the same command resumes."
        ) from None


def planned(arguments: argparse.Namespace) -> tuple[HeldOut, list[int]]:
    """Return the held-out cases that the command line describes, and a group for each.

    Raises:
        RequestError: the options do not say which cases the model has not seen, or contradict each other.
        InputError, ModelError: dataset, table, splits or model cannot be used.
    """
    from medsegai.evaluation.crossval import Task
    from medsegai.evaluation.folds import dataset_cases, read_groups
    from medsegai.evaluation.held_out import HeldOut, Truth, groups_of
    from medsegai.evaluation.mapping import read_mapping
    from medsegai.models.catalogue import find_card

    cases = {case.name: case for case in dataset_cases(arguments.dataset)}
    jobs, folds = _jobs(arguments, cases)
    card = find_card(jobs[0].model)
    mapping = None if arguments.mapping is None else read_mapping(arguments.mapping)
    task = Task.of(arguments.dataset)
    truth = Truth.of_dataset(card, task) if mapping is None else Truth.of_mapping(card, mapping)
    rows = chosen_rows(arguments.rows)
    names = [job.case.name for job in jobs]
    owners: Mapping[str, str | int] = dict(folds) if len(set(folds.values())) > 1 else {}
    if arguments.groups is not None:
        owners = read_groups(arguments.groups, names)
    options = {
        name: getattr(arguments, name)
        for name in ("device", "precision", "mirroring", "dropout_passes")
    }
    held_out = HeldOut(card, jobs, truth, mapping, rows, arguments.output, options)
    return held_out, list(groups_of(names, owners, GROUPS))


def chosen_rows(asked: Sequence[str] | None) -> list[str]:
    """Return the refinements to try.

    Raises:
        RequestError: a refinement or an option is unknown.
    """
    from medsegai.evaluation.refining import ROWS
    from medsegai.refinements import parse

    rows = [] if asked == ["none"] else list(asked or ROWS)
    for text in rows:
        parse(text)
    return rows


def _jobs(
    arguments: argparse.Namespace, cases: Mapping[str, TrainingCase]
) -> tuple[list[PredictionJob], dict[str, str]]:
    """Return the model and members for each case, and the fold of each case."""
    from medsegai.evaluation.held_out import PredictionJob

    members = tuple(arguments.members)
    if arguments.cases:
        names = _named_cases(arguments, cases)
        return [PredictionJob(cases[name], arguments.model, members) for name in names], {}
    _check_folds_given(arguments)
    splits = _splits(arguments, sorted(cases))
    jobs, folds = [], {}
    for fold in arguments.folds:
        held_out = splits[fold_number(fold, splits)]
        model = arguments.model.replace("{fold}", fold)
        own = _of_fold(model, members, fold)
        jobs += [PredictionJob(cases[name], model, own) for name in held_out]
        folds.update(dict.fromkeys(held_out, fold))
    return jobs, folds


def _check_folds_given(arguments: argparse.Namespace) -> None:
    if not arguments.folds:
        raise RequestError(
            "The cases that the model has not seen are not known. Use --fold N for those "
            "that its training held out, or --cases."
        )


def _named_cases(arguments: argparse.Namespace, cases: Mapping[str, object]) -> list[str]:
    if "{fold}" in arguments.model:
        raise RequestError("{fold} in the name of the model needs --fold, not --cases.")
    names = sorted(cases) if arguments.cases == [ALL] else arguments.cases
    unknown = sorted(set(names) - set(cases))
    if unknown:
        raise RequestError(
            f"{arguments.dataset} does not have the cases {', '.join(unknown[:10])}. Check "
            "the names in --cases."
        )
    return names


def _splits(arguments: argparse.Namespace, cases: Sequence[str]) -> Sequence[Sequence[str]]:
    from medsegai.evaluation.folds import read_splits

    found = arguments.splits or splits_of_training([arguments.model], arguments.dataset)
    if found is None:
        raise RequestError(
            "The files beside the model do not say which cases its training held out. Name "
            "nnU-Net's splits_final.json with --splits, or the cases with --cases."
        )
    return read_splits(found, cases)


def _of_fold(model: str, members: tuple[str, ...], fold: str) -> tuple[str, ...]:
    """Return the members that have not seen the cases of a fold: those of this fold, if members have folds.

    Raises:
        ModelError: the model has folds, but not this one.
    """
    from medsegai.evaluation.crossval import FOLD_MEMBER
    from medsegai.models.catalogue import find_card

    card = find_card(model)
    if not any(FOLD_MEMBER.fullmatch(member.name) for member in card.members):
        return members
    chosen = (*members, f"fold_{fold}")
    _all_of_fold(card, chosen, fold)
    return chosen


def _all_of_fold(card: ModelCard, chosen: Sequence[str], fold: str) -> None:
    others = [
        member.name
        for member in card.chosen_members(chosen)
        if not member.name.endswith(f"/fold_{fold}")
    ]
    if others:
        raise RequestError(
            f"{', '.join(others)} of {card.id} may have seen cases of fold {fold}. Choose members "
            "of this fold with --members."
        )


def _source(arguments: argparse.Namespace, count: int) -> str:
    """Describe the cases for the card."""
    which = f"{counted(count, 'case', 'cases')} of {arguments.dataset.resolve().name}"
    if arguments.folds:
        return f"{which} that fold {' and '.join(arguments.folds)} of the training held out"
    return f"{which} that the training did not see"


def text_of(findings: Findings) -> str:
    """Return the findings as text for a terminal."""
    before, after = findings.before, findings.after
    rows = [
        [name, f"{item.error:.4f}", f"{item.likelihood_loss:.4f}"]
        for name, item in (("uncalibrated", before), ("calibrated", after))
    ]
    lines = [
        f"Temperature {findings.calibration.temperature:.3f}, from {counted(findings.cases, 'case', 'cases')}. "
        "Calibrated figures use, for each case, the temperature of the other cases.",
        table(["probabilities", "calibration error", "log loss"], rows),
        "",
        _correlations(findings),
    ]
    lines += _flagged(findings)
    return "\n".join([*lines, "", _refinements(findings)])


def _flagged(findings: Findings) -> list[str]:
    """Return how well the flags find the worst results, if the model has a score."""
    flags = findings.flags
    if flags is None:
        return []
    return [
        f"Score: {findings.calibration.score}. Of {flags.results} results the worst {flags.bad}: "
        f"{flags.caught} are among the {flags.flagged} flagged; AUC {flags.auc:.2f}. Expected Dice is off by "
        f"{flags.error:.3f} (the structure's mean by {flags.error_of_means:.3f})."
    ]


def _correlations(findings: Findings) -> str:
    rows = [
        [
            name,
            f"{item.pooled_pearson:.2f}",
            f"{item.pooled_spearman:.2f}",
            f"{item.within_pearson:.2f}",
            f"{item.within_spearman:.2f}",
        ]
        for name, item in findings.correlations.items()
    ]
    heading = ["correlation with Dice", "Pearson", "Spearman", "Pearson within", "Spearman within"]
    return table(heading, rows)


def _refinements(findings: Findings) -> str:
    chosen = None if findings.chosen is None else findings.chosen.name
    rows = [
        [
            item.name,
            f"{item.dice:.4f}",
            f"{item.gain:+.4f}",
            f"{item.gain_at_least:+.4f}",
            f"{item.hd95_mm:.3f}",
            f"{item.assd_mm:.4f}",
            "chosen" if item.name == chosen else item.reason,
        ]
        for item in findings.refinements
    ]
    heading = ["refinement", "Dice", "gain", "at least", "HD95, mm", "ASSD, mm", ""]
    return table(heading, rows)

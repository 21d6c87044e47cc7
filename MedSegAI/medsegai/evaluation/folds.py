"""The cases of a training dataset, and the cases that each fold of a cross-validation holds out."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medsegai.errors import InputError, counted
from medsegai.io.tables import Table, read_table
from medsegai.models.nnunet_dataset import read_json, value_of

FOLDS = 5
SEED = 12345
"""The seed of nnU-Net's own splits."""

Split = Sequence[str]
"""The cases that one fold holds out."""


@dataclass(frozen=True)
class TrainingCase:
    """A case: `images` has one file for each channel, in the order of the channels; `label` is the reference."""

    name: str
    images: tuple[Path, ...]
    label: Path


def dataset_cases(folder: Path) -> list[TrainingCase]:
    """The training cases of a raw nnU-Net folder (dataset.json, imagesTr, labelsTr), sorted by name.

    Raises:
        InputError: the folder is not such a dataset, or images or labels are missing.
        ModelError: dataset.json is damaged.
    """
    _check_dataset(folder)
    source = folder / "dataset.json"
    dataset = read_json(source)
    ending = value_of(dataset, "file_ending", str, source)
    channels = len(value_of(dataset, "channel_names", dict, source))
    labels = sorted((folder / "labelsTr").glob(f"*{ending}"))
    cases = [_training_case(folder, label, ending, channels) for label in labels]
    if not cases:
        raise InputError(
            f"{folder / 'labelsTr'} does not contain label maps whose names end with {ending}."
        )
    return cases


def _check_dataset(folder: Path) -> None:
    if not (folder / "dataset.json").is_file() or not (folder / "labelsTr").is_dir():
        raise InputError(
            f"{folder} is not a training dataset. It needs dataset.json, imagesTr and labelsTr, as in nnU-Net v2."
        )


def _training_case(folder: Path, label: Path, ending: str, channels: int) -> TrainingCase:
    name = label.name.removesuffix(ending)
    images = tuple(folder / "imagesTr" / f"{name}_{n:04d}{ending}" for n in range(channels))
    missing = [str(path) for path in images if not path.is_file()]
    if missing:
        raise InputError(f"{label} has no image: {', '.join(missing)} is missing.")
    return TrainingCase(name, images, label)


def read_groups(path: Path, cases: Sequence[str]) -> dict[str, str]:
    """Read the patient of each case from a CSV with the columns `case` and `patient`.

    Raises:
        InputError: the file cannot be read, lacks a column, or does not assign each of `cases` to one patient.
    """
    groups = groups_of(read_table(path), "case", "patient")
    missing = sorted(set(cases) - groups.keys())
    if missing:
        raise InputError(f"{path} does not say whose the cases {', '.join(missing[:10])} are.")
    return {case: groups[case] for case in cases}


def groups_of(table: Table, case_column: str, group_column: str) -> dict[str, str]:
    """The group of each case that a table names.

    Raises:
        InputError: a column is missing, a cell is empty, or a case is in two groups.
    """
    table.check(case_column, group_column)
    groups: dict[str, str] = {}
    for line, row in table.rows.items():
        case, group = row[case_column.casefold()], row[group_column.casefold()]
        if not case or not group:
            raise InputError(
                f"{table.source}, line {line}: {case_column} or {group_column} is empty."
            )
        if groups.setdefault(case, group) != group:
            raise InputError(
                f"{table.source}, line {line}: {case} is in two groups, {groups[case]} and {group}. Keep one."
            )
    return groups


def _check_enough(what: str, number: int, folds: int) -> None:
    """Raise InputError if a number of things, in words `what`, is smaller than the number of folds."""
    if number < folds:
        raise InputError(
            f"{what} cannot be held out in {folds} folds. Add some, or choose fewer folds."
        )


def patient_folds(groups: Mapping[str, str], count: int = FOLDS, seed: int = SEED) -> list[Split]:
    """Split cases so that each is held out once and all cases of a patient are held out together.

    The patients are shuffled and sorted by their number of cases, largest first; each goes to the fold that has
    the fewest cases so far.

    Raises:
        InputError: there are fewer patients than folds.
    """
    patients: dict[str, list[str]] = {}
    for case in sorted(groups):
        patients.setdefault(groups[case], []).append(case)
    _check_enough(counted(len(patients), "patient", "patients"), len(patients), count)
    order = sorted(patients)
    random.Random(seed).shuffle(order)
    folds: list[list[str]] = [[] for _ in range(count)]
    for patient in sorted(order, key=lambda name: -len(patients[name])):
        min(folds, key=len).extend(patients[patient])
    return [sorted(fold) for fold in folds]


def default_folds(cases: Sequence[str], count: int = FOLDS, seed: int = SEED) -> list[Split]:
    """The default splits of nnU-Net: the sorted cases are shuffled and cut into equal parts.

    They equal those of scikit-learn's `KFold(count, shuffle=True, random_state=seed)`.

    Raises:
        InputError: there are fewer cases than folds.
    """
    _check_enough(counted(len(cases), "case", "cases"), len(cases), count)
    ordered = sorted(cases)
    places = np.arange(len(ordered))
    np.random.RandomState(seed).shuffle(places)
    return [[ordered[i] for i in sorted(part)] for part in np.array_split(places, count)]


def read_splits(path: Path, cases: Sequence[str]) -> list[Split]:
    """Read the cases that each fold holds out from nnU-Net's `splits_final.json`.

    Raises:
        InputError: the file cannot be read as splits, or names cases that the dataset lacks.
    """
    try:
        splits = json.loads(path.read_text(encoding="utf-8"))
        held_out: list[Split] = [[str(name) for name in split["val"]] for split in splits]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path} cannot be read as nnU-Net's splits: {error!r}.") from error
    unknown = sorted({name for fold in held_out for name in fold} - set(cases))
    if unknown:
        raise InputError(
            f"{path} holds out cases that the dataset lacks: {', '.join(unknown[:10])}."
        )
    return held_out


def splits_json(folds: Sequence[Split], cases: Sequence[str]) -> str:
    """The folds as JSON text in the format of nnU-Net's `splits_final.json`."""
    splits = [{"train": sorted(set(cases) - set(fold)), "val": sorted(fold)} for fold in folds]
    return json.dumps(splits, indent=4) + "\n"


def stratified_folds(
    labels: Sequence[int], groups: Sequence[str], count: int, seed: int
) -> NDArray[np.int64]:
    """The fold that holds out each picture, int64 (picture).

    The pictures of a group stay together, and the folds get similar shares of each class. The groups are shuffled
    and sorted by size, largest first; each goes to the fold that has the fewest pictures of the group's classes.

    Raises:
        InputError: there are fewer groups than folds.
    """
    names = sorted(set(groups))
    _check_enough(counted(len(names), "patient or slide", "patients or slides"), len(names), count)
    classes = max(labels) + 1
    brings = np.zeros((len(names), classes))
    for label, group in zip(labels, groups, strict=True):
        brings[names.index(group), label] += 1
    order = np.random.default_rng(seed).permutation(len(names))
    order = order[np.argsort(-brings[order].sum(1), kind="stable")]
    held = np.zeros((count, classes))
    share = brings.sum(0) / count
    fold_of = np.zeros(len(names), np.int64)
    for group in order:
        full = ((held + brings[group]) / np.maximum(share, 1e-9)) ** 2 @ (brings[group] > 0)
        fold_of[group] = int(np.lexsort((held.sum(1), full))[0])
        held[fold_of[group]] += brings[group]
    return np.array([fold_of[names.index(group)] for group in groups])

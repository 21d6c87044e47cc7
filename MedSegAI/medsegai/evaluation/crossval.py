"""Cross-validation: segments every case with the members that have not seen it, and compares the candidates.

A candidate is a configuration of an nnU-Net or a view of a QuickNAT, or several of them together. All single
parts and all pairs are compared, as `nnUNetv2_find_best_configuration` does. In families other than nnU-Net, whose
models normally use all members together, all parts together are a candidate as well.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsegai.errors import InputError, RequestError
from medsegai.evaluation.folds import Split, TrainingCase
from medsegai.evaluation.resumable_folder import claim_folder
from medsegai.io import read_labelmap, write_card, write_volume
from medsegai.models.card import MemberCard, ModelCard, file_sha256
from medsegai.models.catalogue import find_card
from medsegai.models.nnunet_dataset import classes_of, read_json
from medsegai.progress import Progress
from medsegai.request import SegmentationRequest, SegmentationResult
from medsegai.system.private_folders import PrivateFolder
from medsegai.volume import Volume, check_same_grid

logger = logging.getLogger(__name__)

STAGE = "cross-validation"
FOLD_MEMBER = re.compile(r"(.+)/fold_(\d+)")
NNUNET_ORDER = ("2d", "3d_fullres", "3d_lowres", "3d_cascade_fullres")
"""The order in which nnU-Net compares configurations; the first of equally good candidates wins."""

PLACEHOLDER = "{fold}"
SETTINGS = "crossval.json"

Counts = NDArray[np.int64]
"""Numbers of voxels in both, in the prediction and in the reference, for each structure: (structure, 3)."""


# what is compared


@dataclass(frozen=True)
class Structure:
    """A label, or a region of several labels, whose Dice is measured."""

    name: str
    values: tuple[int, ...]


@dataclass(frozen=True)
class Task:
    """The structures that a dataset asks for.

    Attributes:
        structures: labels or regions, without the background.
        ignored: value of the reference whose voxels are not counted.
        regions: whether the structures are regions, which may overlap.
    """

    structures: tuple[Structure, ...]
    ignored: int | None = None
    regions: bool = False

    @property
    def values(self) -> tuple[int, ...]:
        """The label values of the foreground."""
        return tuple(sorted({value for item in self.structures for value in item.values}))

    @classmethod
    def of(cls, dataset: Path) -> Task:
        """Read dataset.json. Raises ModelError if its labels are not in the format of nnU-Net v2."""
        source = dataset / "dataset.json"
        content = read_json(source)
        classes = classes_of(content, source)
        regions = classes.regions or tuple((label.value,) for label in classes.labels)
        structures = [
            Structure(label.name, values)
            for label, values in zip(classes.labels, regions, strict=True)
        ]
        ignored = content["labels"].get("ignore")
        return cls(tuple(structures), ignored, classes.regions is not None)


@dataclass(frozen=True)
class Part:
    """One configuration or view of one model.

    Attributes:
        model: number of the model among the named ones, from 0.
        name: name of the configuration or view.
        folds: the card and the members of each fold; the key "" stands for members that predict every case.
    """

    model: int
    name: str
    folds: Mapping[str, tuple[ModelCard, tuple[MemberCard, ...]]]

    @property
    def family(self) -> str:
        return next(iter(self.folds.values()))[0].family

    @property
    def can_stand_alone(self) -> bool:
        """Whether the part can be a candidate alone; False for a view that cannot tell left from right."""
        _, members = next(iter(self.folds.values()))
        return not all(any(len(targets) > 1 for targets in member.classes) for member in members)

    def at(self, fold: str) -> tuple[ModelCard, tuple[MemberCard, ...]]:
        """The card and the members of a fold. Raises RequestError if the fold was not trained."""
        found = self.folds.get(fold) or self.folds.get("")
        if found is None:
            raise RequestError(
                f"{self.name} has no fold {fold}, only {', '.join(self.folds)}. Train it, or name the folds to "
                "compare with --folds."
            )
        return found


@dataclass(frozen=True)
class Candidate:
    """Parts whose predictions are fused."""

    name: str
    parts: tuple[Part, ...]

    @property
    def folder_name(self) -> str:
        return re.sub(r"[^\w.+-]+", "-", self.name)


Members = dict[str, tuple[ModelCard, tuple[MemberCard, ...]]]
"""Card and members of each fold."""


def _by_part(name: str, folds: Sequence[str]) -> dict[str, Members]:
    """Return the members of a model, or of a model for each fold, by configuration or view."""
    found: dict[str, Members] = {}
    if PLACEHOLDER in name:
        for fold in folds:
            card = find_card(name.replace(PLACEHOLDER, fold))
            for member in card.members:
                found.setdefault(member.name, {})[fold] = (card, (member,))
    else:
        card = find_card(name)
        for member in card.members:
            part, fold = _part_and_fold(member.name)
            if fold != "all":
                found.setdefault(part, {})[fold] = (card, (member,))
    return found


def read_parts(models: Sequence[str], folds: Sequence[str]) -> list[Part]:
    """Read the configurations and views of models, in the order in which they are compared.

    A model is named as for `medsegai segment`. A name that contains `{fold}` stands for one model per fold.

    Raises:
        ModelError: a model does not exist.
        RequestError: a model has no part that can be cross-validated.
    """
    parts: list[Part] = []
    for number, name in enumerate(models):
        found = _by_part(name, folds)
        if not found:
            raise RequestError(
                f"{name} was trained on all cases, so no case is left to evaluate it on."
            )
        parts += sorted(
            (Part(number, part, members) for part, members in found.items()), key=_order
        )
    return parts


def _part_and_fold(name: str) -> tuple[str, str]:
    """Split a member's name: `3d_fullres/fold_1` gives "3d_fullres" and "1", `axial` gives "axial" and ""."""
    matched = FOLD_MEMBER.fullmatch(name)
    if matched:
        return matched[1], matched[2]
    return (name.removesuffix("/fold_all"), "all") if name.endswith("/fold_all") else (name, "")


def _order(part: Part) -> int:
    return NNUNET_ORDER.index(part.name) if part.name in NNUNET_ORDER else 0


def candidates_of(parts: Sequence[Part]) -> list[Candidate]:
    """All single parts, all pairs, and, unless all parts are of nnU-Net, all parts if these are more than two."""
    groups: list[tuple[Part, ...]] = [(part,) for part in parts]
    groups += itertools.combinations(parts, 2)
    if len(parts) > 2 and any(part.family != "nnunet" for part in parts):
        groups.append(tuple(parts))
    several = len({part.model for part in parts}) > 1
    return [
        Candidate("+".join(_part_name(part, several) for part in group), group)
        for group in groups
        if any(part.can_stand_alone for part in group)
    ]


def _part_name(part: Part, several_models: bool) -> str:
    card, _ = next(iter(part.folds.values()))
    return f"{card.id}:{part.name}" if several_models else part.name


# restricted models


def restricted_cards(candidate: Candidate, fold: str) -> list[ModelCard]:
    """The cards of the candidate's models, restricted to the members of one fold.

    The weights are named by their full paths. A cascade keeps the same fold of its first stage, whose own
    prediction then has no weight.
    """
    by_model: dict[int, tuple[ModelCard, list[MemberCard]]] = {}
    for part in candidate.parts:
        card, members = part.at(fold)
        kept = by_model.setdefault(part.model, (card, []))[1]
        kept += [dataclasses.replace(item, weight=item.weight or 1.0) for item in members]
    return [with_members(card, members) for card, members in by_model.values()]


def with_members(card: ModelCard, members: Sequence[MemberCard]) -> ModelCard:
    """The card restricted to these members and to what a cascade among them needs, without refinements."""
    names = {member.name for member in members}
    needed = {_first_stage(card, member) for member in members} - names
    stages = [dataclasses.replace(item, weight=0.0) for item in card.members if item.name in needed]
    located = []
    for member in [*members, *stages]:
        path = card.weights_path(member).resolve()
        sha256 = member.sha256 or _sha256(path)
        located.append(dataclasses.replace(member, weights=str(path), sha256=sha256))
    return dataclasses.replace(
        card, members=tuple(located), suggested_refinements=(), in_place=False
    )


def _first_stage(card: ModelCard, member: MemberCard) -> str | None:
    name, _, fold = member.name.rpartition("/")
    stage = card.settings.get("configurations", {}).get(name, {}).get("previous_stage")
    return f"{stage}/{fold}" if stage else None


@functools.cache
def _sha256(path: Path) -> str:
    return file_sha256(path)


# predictions


@dataclass(frozen=True)
class CrossValidation:
    """Cases, folds and candidates, and the folder of the predictions.

    Attributes:
        task: the structures to segment.
        cases: the cases of the dataset by name.
        folds: the cases that each fold holds out, by the number of the fold as text.
        candidates: the candidates to compare.
        folder: receives a label map for each candidate and case; each is written completely or not at all.
        options: options of the request, such as device, precision and mirroring.
    """

    task: Task
    cases: Mapping[str, TrainingCase]
    folds: Mapping[str, Split]
    candidates: Sequence[Candidate]
    folder: Path
    options: Mapping[str, Any]

    def prediction(self, candidate: Candidate, case: str) -> Path:
        return self.folder / "predictions" / candidate.folder_name / f"{case}.nii.gz"

    def predict(self, progress: Progress) -> None:
        """Segment the cases that were not segmented before; finished cases stay if this is stopped.

        Raises:
            RequestError: the folder holds predictions of other models, folds or options.
            Cancelled: the user stopped through `progress`.
        """
        self._claim_folder()
        jobs = self._missing()
        with PrivateFolder("crossval") as models:
            for done, (candidate, fold, case) in enumerate(jobs):
                progress.step(STAGE, done, len(jobs))
                found = self._segment(candidate, fold, case, models, progress)
                write_volume(self.prediction(candidate, case), found)
        progress.step(STAGE, 1, 1)

    def _missing(self) -> list[tuple[Candidate, str, str]]:
        """Return the predictions that are not there yet."""
        return [
            (candidate, fold, case)
            for candidate in self.candidates
            for fold, split in self.folds.items()
            for case in split
            if not self.prediction(candidate, case).is_file()
        ]

    def _segment(
        self, candidate: Candidate, fold: str, case: str, models: Path, progress: Progress
    ) -> Volume:
        from medsegai.engine import segment  # loads torch

        folder = models / candidate.folder_name / fold
        cards = restricted_cards(candidate, fold) if not folder.exists() else []
        for number, card in enumerate(cards):
            write_card(card, folder / str(number))
        request = SegmentationRequest(
            inputs=self.cases[case].images,
            models=tuple(str(path) for path in sorted(folder.iterdir())),
            refine=False,
            **self.options,
        )
        result = segment(request, Progress(cancel=progress.cancel))
        return result.labelmap.with_voxels(as_in_dataset(result, self.task))

    def _claim_folder(self) -> None:
        parts = [self.folder / "predictions" / item.folder_name for item in self.candidates]
        claim_folder(self.folder, SETTINGS, self._settings(), parts)

    def _settings(self) -> dict[str, Any]:
        """The settings that the predictions depend on."""
        weights = {
            f"{candidate.name} fold {fold}": [
                member.sha256
                for card in restricted_cards(candidate, fold)
                for member in card.members
            ]
            for candidate in self.candidates
            for fold in self.folds
        }
        digest = hashlib.sha256(json.dumps(weights).encode()).hexdigest()
        options = {name: value for name, value in self.options.items() if name != "device"}
        return {
            "weights": digest,
            "folds": {fold: list(split) for fold, split in self.folds.items()},
            "options": options,
        }

    # figures

    def pairs(self, candidate: Candidate) -> Iterator[tuple[str, Volume, Volume]]:
        """Yield the name, the prediction and the reference of each case.

        Raises:
            InputError: a prediction or a reference cannot be read.
            GeometryError: a prediction and its reference have different grids.
        """
        for case in sorted(name for split in self.folds.values() for name in split):
            predicted, _ = read_labelmap(self.prediction(candidate, case))
            reference, _ = read_labelmap(self.cases[case].label)
            check_same_grid(
                reference.geometry,
                predicted.geometry,
                reference.source,
                "its image",
                "Resample one onto the other first.",
            )
            yield case, predicted, reference

    def figures(self, candidate: Candidate) -> Figures:
        """Count the voxels of all cases of a candidate. Raises the errors of `pairs`."""
        counts = {
            case: count(predicted.voxels, reference.voxels, self.task)
            for case, predicted, reference in self.pairs(candidate)
        }
        return Figures(candidate.name, self.task, counts)


def as_in_dataset(result: SegmentationResult, task: Task) -> NDArray[np.integer]:
    """The label map of a result with the dataset's values for structures of the same name, (k, j, i).

    Raises:
        RequestError: the model has no structure of the dataset.
    """
    if task.regions:
        return result.labelmap.voxels
    values = {item.name.casefold(): item.values[0] for item in task.structures}
    renamed = {label.value: values.get(label.name.casefold(), 0) for label in result.labels}
    if not any(renamed.values()):
        raise RequestError(
            f"The model finds {', '.join(label.name for label in result.labels)}; none of them is in the dataset, "
            f"which has {', '.join(item.name for item in task.structures)}."
        )
    table = np.zeros(max(renamed) + 1, np.uint16 if max(values.values()) > 255 else np.uint8)
    for own, value in renamed.items():
        table[own] = value
    return table[result.labelmap.voxels]


def count(predicted: NDArray[np.integer], reference: NDArray[np.integer], task: Task) -> Counts:
    """Count the voxels of each structure; voxels that the reference marks as ignored are not counted.

    Args:
        predicted: label values of the dataset, integer (k, j, i).
        reference: label values of the dataset, integer (k, j, i).
        task: the structures.
    """
    if task.ignored is not None:
        heeded = reference != task.ignored
        predicted, reference = predicted[heeded], reference[heeded]
    counts = np.zeros((len(task.structures), 3), np.int64)
    for number, structure in enumerate(task.structures):
        found, true = np.isin(predicted, structure.values), np.isin(reference, structure.values)
        counts[number] = (found & true).sum(), found.sum(), true.sum()
    return counts


@dataclass(frozen=True)
class Figures:
    """The figures of a candidate; `counts` holds the voxel counts of each case by its name."""

    name: str
    task: Task
    counts: Mapping[str, Counts]

    def dice(self) -> dict[str, float]:
        """Mean Dice of each structure over the cases in which the prediction or the reference has it.

        This is nnU-Net's definition: a structure that is absent from both has no Dice, and one that is absent from
        one of them has a Dice of 0.
        """
        counts = np.stack(list(self.counts.values())).astype(np.float64)
        both, total = 2 * counts[:, :, 0], counts[:, :, 1] + counts[:, :, 2]
        values = np.divide(both, total, out=np.full_like(both, np.nan), where=total > 0)
        means = {}
        for number, structure in enumerate(self.task.structures):
            known = values[:, number][~np.isnan(values[:, number])]
            means[structure.name] = float(known.mean()) if len(known) else float("nan")
        return means

    def mean_dice(self) -> float:
        """The mean Dice over the structures that occur."""
        known = [value for value in self.dice().values() if value == value]
        return float(np.mean(known)) if known else float("nan")

    def to_dict(self) -> dict[str, Any]:
        """All figures as JSON values; the Dice of a structure that never occurs is None."""
        dice = {
            name: None if value != value else round(value, 6) for name, value in self.dice().items()
        }
        mean = self.mean_dice()
        return {"mean_dice": None if mean != mean else round(mean, 6), "dice": dice}


def best_of(figures: Sequence[Figures]) -> int:
    """The index of the candidate with the highest mean Dice; the first of equal ones, which is the simplest.

    Raises:
        InputError: no candidate has a Dice.
    """
    known = [item.mean_dice() for item in figures]
    scores = [value if value == value else -1.0 for value in known]
    if not scores or max(scores) < 0:
        raise InputError(
            "No case has any of the structures, so candidates cannot be compared. Check the labels."
        )
    return scores.index(max(scores))

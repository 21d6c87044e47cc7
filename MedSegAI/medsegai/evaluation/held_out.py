"""Results of a model on cases that it has not seen: probabilities, agreement of members, and quality figures."""

from __future__ import annotations

import dataclasses
import json
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsegai.errors import InputError, RequestError
from medsegai.evaluation import refining
from medsegai.evaluation.calibration import (
    Decisions,
    box_with_margin,
    decisions_of_classes,
    decisions_of_regions,
    drawn_numbers,
)
from medsegai.evaluation.crossval import Task
from medsegai.evaluation.folds import TrainingCase
from medsegai.evaluation.mapping import LabelMapping
from medsegai.evaluation.measures import evaluate
from medsegai.evaluation.resumable_folder import claim_folder
from medsegai.io import atomic_path, read_labelmap, read_volume
from medsegai.labels import Label
from medsegai.models.card import ModelCard
from medsegai.models.quality import SCORES
from medsegai.progress import Progress
from medsegai.refinements import Draft
from medsegai.request import SegmentationRequest, SegmentationResult
from medsegai.volume import Volume, check_same_grid

STAGE = "held-out cases"
SETTINGS = "calibrate.json"

MARGIN_MM = 10.0
"""The margin around the structures of the reference within which decisions are sampled, in mm."""

VOXELS = 30_000
"""The number of voxels that are sampled from each case, at random in the box around its structures."""


@dataclass(frozen=True)
class Truth:
    """How the labels of a reference are translated to those of the model.

    Attributes:
        labels: the labels of the model that occur in the reference.
        values: for each of these labels, the values of the reference that belong to it.
        ignored: value of the reference whose voxels are not counted.
        regions: whether the labels are regions, which may overlap.
    """

    labels: tuple[Label, ...]
    values: tuple[tuple[int, ...], ...]
    ignored: int | None = None
    regions: bool = False

    @classmethod
    def of_dataset(cls, card: ModelCard, task: Task) -> Truth:
        """Match the labels of the model and the structures of a dataset by name.

        Raises:
            RequestError: the dataset has no structure of the model.
        """
        known = {item.name.casefold(): item.values for item in task.structures}
        labels = tuple(label for label in card.labels if label.name.casefold() in known)
        if not labels:
            raise RequestError(
                f"The model finds {', '.join(label.name for label in card.labels[:10])}; none of these names "
                f"is in the dataset, which has {', '.join(item.name for item in task.structures[:10])}. Say with "
                "--mapping which value of the dataset is which label of the model."
            )
        values = tuple(known[label.name.casefold()] for label in labels)
        return cls(labels, values, task.ignored, task.regions)

    @classmethod
    def of_mapping(cls, card: ModelCard, mapping: LabelMapping) -> Truth:
        """Make the translation for references that `mapping` translates to the values of the model.

        Raises:
            RequestError: the table names no label of the model.
        """
        named = {value for values in mapping.rules.values() for value in values}
        labels = tuple(label for label in card.labels if label.value in named)
        if not labels:
            raise RequestError(
                f"{mapping.source} names none of the labels of {card.id}: {list(card.label_values)}."
            )
        return cls(labels, tuple((label.value,) for label in labels))

    def in_model_values(self, reference: Volume) -> Volume:
        """The reference with the values of the model; voxels of other labels become background."""
        found = np.zeros(reference.voxels.shape, np.uint16)
        for label, values in zip(self.labels, self.values, strict=True):
            found[np.isin(reference.voxels, values)] = label.value
        return reference.with_voxels(found)

    def masks(self, reference: NDArray[np.integer]) -> NDArray[np.bool_]:
        """The mask of each label, bool (label, ...), from reference values of shape (...)."""
        return np.stack([np.isin(reference, values) for values in self.values])


# one case


@dataclass(frozen=True, eq=False)
class Record:
    """The results that are kept of a case.

    Attributes:
        case: name of the case.
        decisions: the decisions in a sample of its voxels.
        measures: the agreement of members by label value, then by the name of the measure.
        table: figures as predicted and after each refinement, (structure, measure) in the order of the labels.
        changed_ml: the volume that each refinement changed, in ml.
        members: names of the members that were fused.
    """

    case: str
    decisions: Decisions
    measures: Mapping[int, Mapping[str, float]]
    table: refining.Table
    changed_ml: Mapping[str, float]
    members: tuple[str, ...]

    def save(self, path: Path) -> None:
        """Write the record as .npz, completely or not at all."""
        about = {
            "case": self.case,
            "measures": {str(value): dict(found) for value, found in self.measures.items()},
            "changed_ml": dict(self.changed_ml),
            "members": list(self.members),
            "rows": list(self.table),
        }
        with atomic_path(path) as partial, partial.open("wb") as file:
            np.savez_compressed(
                file,
                about=np.array(json.dumps(about)),
                probabilities=self.decisions.probabilities.astype(np.float16),
                truth=self.decisions.truth,
                table=np.stack(list(self.table.values())),
            )

    @classmethod
    def load(cls, path: Path) -> Record:
        """Read a record. Raises InputError if the file cannot be read as one."""
        try:
            with np.load(path, allow_pickle=False) as arrays:
                about = json.loads(str(arrays["about"]))
                return cls(
                    about["case"],
                    Decisions(arrays["probabilities"], arrays["truth"]),
                    {int(value): found for value, found in about["measures"].items()},
                    dict(zip(about["rows"], arrays["table"], strict=True)),
                    about["changed_ml"],
                    tuple(about["members"]),
                )
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise InputError(
                f"{path} cannot be read: {error!r}. Remove it; it is made again."
            ) from error


def record_of(
    case: str,
    result: SegmentationResult,
    reference: Volume,
    truth: Truth,
    refined: tuple[refining.Table, Mapping[str, float]] | None = None,
) -> Record:
    """Make the record of a result.

    Args:
        case: name of the case.
        result: of `segment` with uncertainty and probabilities, neither calibrated nor refined.
        reference: the reference as it was read, on the same grid.
        truth: the meaning of its values.
        refined: figures with and without refinements; None to compute those of the prediction alone.
    """
    table, changed = refined or ({refining.AS_PREDICTED: figures_of(result, reference, truth)}, {})
    return Record(
        case,
        drawn_decisions(case, result, reference, truth),
        measures_of(result, truth.labels),
        table,
        changed,
        result.members,
    )


def drawn_decisions(
    case: str, result: SegmentationResult, reference: Volume, truth: Truth
) -> Decisions:
    """The decisions in a sample of voxels around the reference's structures, drawn by the name of the case."""
    masks = truth.masks(reference.voxels)
    box = box_with_margin(np.asarray(masks.any(0)), reference.geometry.spacing_mm, MARGIN_MM)
    numbers = [result.labels.index(label) for label in truth.labels]
    assert result.probabilities is not None, "they were asked for"
    heeded = np.ones(reference.voxels[box].shape, bool)
    if truth.ignored is not None:
        heeded = reference.voxels[box] != truth.ignored
    places = np.flatnonzero(heeded)
    places = places[drawn_numbers(len(places), VOXELS, zlib.crc32(case.encode()))]
    inside = np.stack([mask[box].reshape(-1)[places] for mask in masks])
    found = np.stack([result.probabilities[number][box].reshape(-1)[places] for number in numbers])
    if truth.regions:
        return decisions_of_regions(found, inside)
    return decisions_of_classes(
        found, np.where(inside.any(0), 1 + inside.argmax(0), 0).astype(np.uint16)
    )


def measures_of(result: SegmentationResult, labels: Sequence[Label]) -> dict[int, dict[str, float]]:
    """The known measures of agreement, by label value and then by name."""
    wanted = {label.value for label in labels}
    return {
        item.label.value: {
            name: float(value)
            for name in SCORES
            if (value := getattr(item, name)) is not None and np.isfinite(value)
        }
        for item in result.structures
        if item.label.value in wanted
    }


def figures_of(result: SegmentationResult, reference: Volume, truth: Truth) -> NDArray[np.float64]:
    """The figures of a prediction, (structure, measure); regions are compared one by one, as they overlap."""
    if not truth.regions:
        pairs = [(result.labelmap, truth.in_model_values(reference), truth.labels)]
    else:
        masks = truth.masks(reference.voxels)
        assert result.probabilities is not None, "they were asked for"
        pairs = [
            (
                reference.with_voxels((result.probabilities[number] > 0.5).astype(np.uint8)),
                reference.with_voxels(mask.astype(np.uint8)),
                (dataclasses.replace(label, value=1),),
            )
            for label, mask in zip(truth.labels, masks, strict=True)
            for number in [result.labels.index(label)]
        ]
    found = [item for pair in pairs for item in evaluate(*pair)]
    return np.array([[getattr(item, name) for name in refining.MEASURES] for item in found])


# all cases


@dataclass(frozen=True)
class PredictionJob:
    """A case, the model that segments it, and the members of the model that have not seen the case."""

    case: TrainingCase
    model: str
    members: tuple[str, ...] = ()


@dataclass(frozen=True)
class HeldOut:
    """A set of cases that a model has not seen.

    Attributes:
        card: the card whose labels and suggestions are used.
        jobs: the cases.
        truth: the meaning of the values of the references.
        mapping: translates these values first; None if they need no translation.
        rows: the refinements to try, in the notation of the command line.
        folder: the folder of the finished records.
        options: options of the request, such as the device.
    """

    card: ModelCard
    jobs: Sequence[PredictionJob]
    truth: Truth
    mapping: LabelMapping | None
    rows: Sequence[str]
    folder: Path
    options: Mapping[str, Any]

    def records(self, progress: Progress) -> list[Record]:
        """Make the records that do not exist yet; finished records stay if this is stopped.

        Raises:
            RequestError: the folder holds cases of other models or options.
            Cancelled: the user stopped through `progress`.
        """
        claim_folder(self.folder, SETTINGS, self._settings(), [self.folder / "cases"])
        for number, job in enumerate(self.jobs):
            path = self._path(job)
            if not path.is_file():

                def step(part: float, done: int = number) -> None:
                    progress.step(STAGE, done + part, len(self.jobs))

                step(0.0)
                self._record(job, step, progress).save(path)
        progress.step(STAGE, 1, 1)
        return [Record.load(self._path(job)) for job in self.jobs]

    def _path(self, job: PredictionJob) -> Path:
        return self.folder / "cases" / f"{job.case.name}.npz"

    def _request(self, job: PredictionJob) -> SegmentationRequest:
        return SegmentationRequest(
            inputs=job.case.images,
            models=(job.model,),
            members=job.members,
            refine=False,
            uncertainty=True,
            probabilities=True,
            candidates=bool(self.rows),
            calibrated=False,
            **self.options,
        )

    def _record(
        self, job: PredictionJob, step: Callable[[float], None], progress: Progress
    ) -> Record:
        from medsegai.engine import segment  # loads torch

        image, reference = self._read(job)
        result = segment(self._request(job), Progress(cancel=progress.cancel))
        step(0.3)
        refined = None
        if not self.truth.regions:
            draft = Draft(result.labelmap, result.labels, image, result.candidates)
            draft = refining.as_suggested(draft, self.card, lambda part: step(0.3))
            expected = self.truth.in_model_values(reference)
            refined = refining.try_all(
                draft, expected, self.truth.labels, self.rows, lambda part: step(0.3 + 0.7 * part)
            )
        return record_of(job.case.name, result, reference, self.truth, refined)

    def _read(self, job: PredictionJob) -> tuple[Volume, Volume]:
        """The image and the reference of a case; the values of the reference are translated."""
        image = read_volume(job.case.images[0])
        reference = read_labelmap(job.case.label)[0]
        check_same_grid(
            reference.geometry,
            image.geometry,
            reference.source,
            "its image",
            "Resample one onto the other first.",
        )
        return image, reference if self.mapping is None else self.mapping.apply(reference)

    def _settings(self) -> dict[str, Any]:
        """The settings that the results depend on."""
        from medsegai.models.catalogue import find_card

        cards: dict[str, str] = {}
        for job in self.jobs:
            cards.setdefault(job.model, _fingerprint(find_card(job.model)))
        options = {name: value for name, value in self.options.items() if name != "device"}
        return {
            "models": cards,
            "suggested refinements": [item.to_dict() for item in self.card.suggested_refinements],
            "refinements": list(self.rows),
            "options": options,
            "labels": [label.value for label in self.truth.labels],
            "members": sorted({name for job in self.jobs for name in job.members}),
        }


def _fingerprint(card: ModelCard) -> str:
    """A hash that depends on the networks but not on the other contents of the card."""
    hashes = sorted(str(card.weights_sha256(member)) for member in card.members)
    return f"{zlib.crc32(' '.join(hashes).encode()):08x}"


def groups_of(cases: Sequence[str], owners: Mapping[str, str | int], count: int) -> Iterator[int]:
    """Number the cases so that those of one owner share a number below `count`.

    Args:
        cases: names of the cases.
        owners: the patient or the fold of a case; a case without one is its own owner.
        count: the largest number of different numbers.
    """
    numbers: dict[str | int, int] = {}
    for case in cases:
        owner = owners.get(case, case)
        yield numbers.setdefault(owner, len(numbers)) % count

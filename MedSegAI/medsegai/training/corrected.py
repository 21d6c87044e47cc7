"""Corrected cases as training data: real images with labels, mixed with synthetic images.

The folder is a raw nnU-Net dataset, as the panel of the Slicer extension keeps corrected cases: `dataset.json`
names the labels, and each case has an image in `imagesTr` and a label map in `labelsTr`.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from medsegai.errors import InputError, RequestError, counted
from medsegai.evaluation.folds import TrainingCase, dataset_cases
from medsegai.io import read_labelmap
from medsegai.models.card import MemberCard, ModelCard
from medsegai.models.json_fields import shown
from medsegai.models.nnunet_dataset import read_json, value_of
from medsegai.progress import Check, unstoppable
from medsegai.training.anatomy import AnatomyConfig
from medsegai.training.config import TrainingConfig
from medsegai.training.data import (
    MIXTURE,
    VALIDATION,
    CaseSource,
    Sample,
    case_source,
    conform_axes,
    read_image,
    seed_for,
    source_of,
)
from medsegai.volume import Volume

NO_MAPS = (
    "No file matches %r in %s, so synthetic images are made from the corrected label maps. Name the folder of the "
    "training's label maps with --maps."
)

logger = logging.getLogger(__name__)

DATASET = "dataset.json"


@dataclass(frozen=True)
class MixedSource:
    """Training volumes from corrected cases and synthetic ones; validation volumes are synthetic.

    Attributes:
        corrected: the corrected cases; its `held_out` cases are not used for training.
        synthetic: the synthetic volumes, like those that the model was trained on.
        share: the share of training volumes that are corrected cases.
        seed: the seed that decides which training volumes these are.
        names: the names of all corrected cases.
    """

    corrected: CaseSource
    synthetic: CaseSource
    share: float
    seed: int
    names: tuple[str, ...]

    def sample(self, stream: int, index: int) -> Sample:
        """Make a volume, see `SampleSource`."""
        if stream == VALIDATION:
            return self.synthetic.sample(stream, index)
        chance = np.random.default_rng(seed_for(self.seed, MIXTURE, index)).random()
        source = self.corrected if chance < self.share else self.synthetic
        return source.sample(stream, index)

    def target_counts(self) -> NDArray[np.int64]:
        """Return the voxels of each target over the synthetic cases, so that the loss keeps its class weights."""
        return self.synthetic.target_counts()

    def held_out_samples(self) -> list[Sample]:
        """Return the held-out corrected cases, each once and without variation."""
        count = len(self.corrected.held_out)
        return [self.corrected.sample(VALIDATION, index) for index in range(count)]


def mixed_source(
    config: TrainingConfig,
    card: ModelCard,
    folder: Path,
    device: torch.device,
    check: Check = unstoppable,
) -> MixedSource:
    """Read all corrected cases and the label maps of the training file.

    `check` is called before each file.

    Raises:
        InputError: there are fewer than two cases, or a case does not fit the model.
        GeometryError: an image and its labels have different grids.
    """
    cases = _enough_cases(folder)
    meaning = label_values(folder, card)
    labels, images = [], []
    for case in cases:
        check()
        labels.append(read_labels(case, meaning))
        images.append(read_image(_image(case), labels[-1]))
    learned = _with_held_out(config, labels)
    tell_what_is_missing(labels, card)
    real = source_of(labels, images, learned, card, device)
    synthetic = _synthetic_source(config, learned, labels, card, device, check)
    names = tuple(case.name for case in cases)
    return MixedSource(real, synthetic, config.fine_tuning.corrected_share, config.seed, names)


def _enough_cases(folder: Path) -> list[TrainingCase]:
    cases = dataset_cases(folder)
    if len(cases) < 2:
        raise InputError(
            f"{folder} holds one case. Fine-tuning needs at least two, because one is held "
            "out to judge the result."
        )
    return cases


def _with_held_out(config: TrainingConfig, labels: Sequence[Volume]) -> TrainingConfig:
    """Return the configuration with the corrected cases that are held out to judge the result."""
    names = [Path(volume.source).name for volume in labels]
    held = held_out_names(names, config.fine_tuning.held_out, config.seed)
    return replace(config, data=replace(config.data, validation=held))


def _synthetic_source(
    config: TrainingConfig,
    learned: TrainingConfig,
    labels: Sequence[Volume],
    card: ModelCard,
    device: torch.device,
    check: Check,
) -> CaseSource:
    """Return the source of synthetic images, from the label maps of the training file.

    If these are not available, the images are made from the corrected label maps, as `learned` says.
    """
    if any(config.data_root.glob(config.data.maps)):
        return case_source(config, card, device, check)
    logger.warning(NO_MAPS, config.data.maps, config.data_root)
    plain = replace(learned, anatomy=AnatomyConfig())
    return source_of(labels, [None] * len(labels), plain, card, device)


def label_values(folder: Path, card: ModelCard) -> dict[int, int]:
    """Find the card's value of each value in the label maps, by the names in dataset.json.

    Raises:
        InputError: the dataset has labels that the model does not have, or more than one channel.
        ModelError: dataset.json is damaged.
    """
    source = folder / DATASET
    dataset = read_json(source)
    if len(value_of(dataset, "channel_names", dict, source)) != 1:
        raise InputError(f"{source} names several channels, but model {card.id!r} takes one image.")
    numbers = value_of(dataset, "labels", dict, source)
    named = {label.name: label.value for label in card.labels}
    _check_dataset_labels(source, numbers, card)
    return {0: 0} | {numbers[name]: named[name] for name in numbers if name in named}


def _check_dataset_labels(source: Path, numbers: Mapping[str, object], card: ModelCard) -> None:
    """Refuse names that the model does not have, and values that are not those of one label."""
    known = {"background", *(label.name for label in card.labels)}
    unknown = [name for name in numbers if name not in known]
    if unknown:
        raise InputError(
            f"{source} has labels that model {card.id!r} does not know: "
            f"{shown(', '.join(unknown))}. Use corrected results of this model, or train your "
            "own model."
        )
    if not all(type(number) is int and number >= 0 for number in numbers.values()):
        raise InputError(
            f"{source} has a label that is not a whole number, such as a region. Give each label a single value."
        )


def read_labels(case: TrainingCase, meaning: Mapping[int, int]) -> Volume:
    """Read the labels of a case with the card's values, (k, j, i) in the orientation of `conform_axes`.

    Args:
        case: the case.
        meaning: the card's value of each value in the file.

    Raises:
        InputError: the file cannot be read, has values that are not in `meaning`, or has no structure.
    """
    volume = conform_axes(read_labelmap(case.label)[0])
    found = [int(value) for value in np.unique(volume.voxels)]
    _check_values(case, found, meaning)
    table = np.zeros(max(found) + 1, np.int32)
    for value in found:
        table[value] = meaning[value]
    return volume.with_voxels(table[volume.voxels])


def _check_values(case: TrainingCase, found: Sequence[int], meaning: Mapping[int, int]) -> None:
    """Refuse a label map with values that nobody named, or without any structure."""
    unknown = [value for value in found if value not in meaning]
    if unknown:
        raise InputError(
            f"{case.label} has {counted(len(unknown), 'value', 'values')} that dataset.json does not name: "
            f"{', '.join(map(str, unknown[:10]))}. Correct the file, or remove the case."
        )
    if found == [0]:
        raise InputError(f"{case.label} is empty. Remove the case, or segment it.")


def tell_what_is_missing(labels: Sequence[Volume], card: ModelCard) -> None:
    """Log the structures that a case lacks, because the networks learn that they are absent."""
    for volume in labels:
        there = set(np.unique(volume.voxels).tolist())
        missing = [label.name for label in card.labels if label.value not in there]
        if missing:
            logger.warning(
                "%s does not contain %s: where its image shows them, the networks learn that "
                "they are background.",
                volume.source,
                ", ".join(missing[:5]) + (" and others" if len(missing) > 5 else ""),
            )


def held_out_names(names: Sequence[str], share: float, seed: int) -> tuple[str, ...]:
    """Draw the held-out cases: a share of them, at least one and not all; the same seed gives the same cases."""
    count = min(max(1, round(share * len(names))), len(names) - 1)
    return tuple(sorted(random.Random(seed).sample(sorted(names), count)))


def card_of_members(card: ModelCard, members: Sequence[str]) -> ModelCard:
    """Return the card with the spacing and the intensity scaling of these members, if they have their own.

    Raises:
        ModelError: the card does not have this member.
        RequestError: the members differ in these settings.
    """
    ways = {_spacing_and_intensity(card, card.member(name)) for name in members}
    if len(ways) > 1:
        raise RequestError(
            f"{', '.join(members)} have different spacings or intensity scalings. Fine-tune "
            "them one by one, with --members."
        )
    ((spacing, intensity),) = ways
    return replace(card, spacing_mm=spacing, settings={**card.settings, "intensity": intensity})


def _spacing_and_intensity(card: ModelCard, member: MemberCard) -> tuple[Any, Any]:
    """Return the settings that a member has, or takes from its card."""
    return (
        tuple(member.settings.get("spacing_mm", card.spacing_mm)),
        member.settings.get("intensity", card.settings.get("intensity", "percentile")),
    )


def _image(case: TrainingCase) -> Path:
    (path,) = case.images
    return path

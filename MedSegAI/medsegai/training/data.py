"""Sources of training volumes: images made from label maps, or images with their labels."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from medsegai.boxes import LISTED_VALUE
from medsegai.errors import InputError, RequestError, counted
from medsegai.io import read_labelmap, read_volume
from medsegai.models.card import ModelCard
from medsegai.preprocessing.intensity import scale_intensity
from medsegai.progress import Check, unstoppable
from medsegai.training.anatomy import AnatomyConfig, vary
from medsegai.training.config import DataConfig, TrainingConfig, matching_files
from medsegai.training.synthesis import (
    Draw,
    LabelTables,
    Origin,
    SpatialGrid,
    Synthesizer,
    label_tables,
)
from medsegai.volume import Geometry, Volume, check_same_grid

TRAINING, VALIDATION, BATCHES, DROPOUT, MIXTURE = range(5)
"""The streams of random numbers; they are numbered so that none repeats another."""


@dataclass(frozen=True)
class Sample:
    """A volume: ``image`` (k, j, i), scaled as in inference, and ``targets`` (k, j, i), label indices from 1.

    A stored volume holds its image in eight bits, so whoever takes a part of it takes it through `scaled`.
    """

    image: NDArray[np.float32] | NDArray[np.uint8]
    targets: NDArray[np.uint8]

    @cached_property
    def occupied(self) -> tuple[NDArray[np.int64], ...]:
        """For each axis (k, j, i), the indices of the planes that contain a target."""
        hits = (self.targets.any(axis=tuple({0, 1, 2} - {axis})) for axis in range(3))
        return tuple(np.flatnonzero(hit) for hit in hits)


def scaled(image: NDArray[np.number]) -> NDArray[np.float32]:
    """Return intensities from 0 to 1; stored volumes hold them in eight bits."""
    if image.dtype == np.uint8:
        return image.astype(np.float32) / np.float32(255.0)
    return np.ascontiguousarray(image, dtype=np.float32)


class SampleSource(Protocol):
    """Makes volume number ``index`` of a stream; the same numbers always give the same volume."""

    def sample(self, stream: int, index: int) -> Sample: ...

    def target_counts(self) -> NDArray[np.int64]:
        """Return the voxels of each target over all training volumes, int64 (targets + 1,)."""
        ...


def seed_for(seed: int, stream: int, index: int) -> int:
    """Return a 63-bit seed that differs for each (seed, stream, index)."""
    return int(np.random.SeedSequence([seed, stream, index]).generate_state(1, np.uint64)[0] >> 1)


@dataclass(frozen=True)
class StoredCase:
    """A label map, with its image if there is one, on a grid that runs to A, I, L.

    ``codes`` (k, j, i) are the labels; ``image`` (k, j, i) has values from 0 to 1; ``center`` is the voxel (k, j,
    i) in the middle of the structures to learn; ``spacing`` (k, j, i) is in mm.
    """

    name: str
    codes: NDArray[np.uint8]
    image: NDArray[np.float32] | None
    center: tuple[float, float, float]
    spacing: tuple[float, float, float]


@dataclass(frozen=True)
class Siblings:
    """Label maps that are varied by `training.anatomy`, made when they are first needed.

    ``values`` is the label value of each code. The same seed, case and number always give the same map.
    """

    values: NDArray[np.int64]
    config: AnatomyConfig
    seed: int
    _made: dict[tuple[str, int], NDArray[np.uint8]] = field(default_factory=dict)

    def of(self, case: StoredCase, number: int) -> StoredCase:
        """Return sibling `number` of a case."""
        key = case.name, number
        if key not in self._made:
            random = np.random.default_rng([self.seed, zlib.crc32(case.name.encode()), number])
            varied = vary(self.values[case.codes], case.spacing, self.config, random)
            self._made[key] = _encoded(varied, self.values.tolist())
        return dataclasses.replace(case, codes=self._made[key])


@dataclass(frozen=True)
class CaseSource:
    """Makes volumes from stored cases (see `training.synthesis`)."""

    cases: tuple[StoredCase, ...]
    held_out: tuple[StoredCase, ...]
    synthesizer: Synthesizer
    seed: int
    intensity: str
    device: torch.device
    siblings: Siblings | None = None

    def sample(self, stream: int, index: int) -> Sample:
        """Return a sample, which the seed, the stream and the index determine."""
        generator = torch.Generator(self.device).manual_seed(seed_for(self.seed, stream, index))
        draw = Draw(generator)
        if stream == VALIDATION:
            case = self.held_out[index % len(self.held_out)]
        else:
            case = self._varied(self.cases[draw.integer(len(self.cases))], draw)
        origin = Origin(case.center, case.spacing)
        codes = torch.from_numpy(case.codes).to(self.device)
        if case.image is None:
            image, targets = self.synthesizer.from_labels(codes, origin, draw)
        else:
            pictured = torch.from_numpy(case.image).to(self.device)
            varied = stream != VALIDATION
            image, targets = self.synthesizer.from_pair(codes, pictured, origin, draw, varied)
        return Sample(scale_intensity(image, self.intensity), targets)

    def _varied(self, case: StoredCase, draw: Draw) -> StoredCase:
        """The case or, for some volumes, one of its siblings; a case with an image has no siblings."""
        if (
            self.siblings is None
            or case.image is not None
            or not draw.chance(self.siblings.config.share)
        ):
            return case
        return self.siblings.of(case, draw.integer(self.siblings.config.variants))

    def target_counts(self) -> NDArray[np.int64]:
        """Return the number of voxels of each target."""
        targets = self.synthesizer.tables.targets.cpu().numpy()
        counts = np.zeros(len(self.synthesizer.tables.brain), dtype=np.int64)
        for case in self.cases:
            np.add.at(counts, targets, np.bincount(case.codes.ravel(), minlength=len(targets)))
        return counts


def case_source(
    config: TrainingConfig, card: ModelCard, device: torch.device, check: Check = unstoppable
) -> CaseSource:
    """Read all label maps of a training file, and their images if the file names any; `check` before each.

    Raises:
        RequestError: no file matches, images and labels cannot be paired, or a file to hold out is missing.
        InputError: a file cannot be read, is not a label map, or has another grid than its image.
    """
    label_paths, image_paths = find_files(config)
    labels, images = [], []
    for label_path, image_path in zip(label_paths, image_paths, strict=True):
        check()
        labels.append(conform_axes(read_labelmap(label_path)[0]))
        images.append(None if image_path is None else read_image(image_path, labels[-1]))
    return source_of(labels, images, config, card, device)


def source_of(
    labels: Sequence[Volume],
    images: Sequence[NDArray[np.float32] | None],
    config: TrainingConfig,
    card: ModelCard,
    device: torch.device,
) -> CaseSource:
    """Make volumes from label maps, and from their images if they have one.

    Args:
        labels: the label maps in the orientation of `conform_axes`.
        images: the image of each label map from `read_image`, or None.
        config: the configuration, whose `data.validation` names the files to hold out.
        card: the card with the labels to learn and the spacing.
        device: the device on which volumes are made.

    Raises:
        InputError: a map has no structure to learn, or there are too many labels.
    """
    _check_labels(config, card)
    mirrored = {a: b for pair in config.data.mirrored for a, b in (pair, pair[::-1])}
    codes = _codes(labels, (*config.anatomy.lesion, *config.anatomy.claustrum), mirrored)
    tables = label_tables(
        codes, card.label_values, config.tissues, mirrored, config.data.remap, config.data.not_brain
    )
    stored = [
        store_case(volume, image, codes, tables)
        for volume, image in zip(labels, images, strict=True)
    ]
    grid = SpatialGrid(config.data.crop_voxels, card.spacing_mm[::-1])
    return CaseSource(
        cases=tuple(case for case in stored if case.name not in config.data.validation),
        held_out=tuple(case for case in stored if case.name in config.data.validation),
        synthesizer=Synthesizer(tables.to(device), grid, config.deformation, config.appearance),
        seed=config.seed,
        intensity=str(card.settings.get("intensity", "percentile")),
        device=device,
        siblings=Siblings(np.asarray(codes), config.anatomy, config.seed)
        if config.anatomy.variants
        else None,
    )


def _check_labels(config: TrainingConfig, card: ModelCard) -> None:
    """Compare the labels that a training file names with those of the card, after their translation.

    Raises:
        RequestError: a value is translated into one that the card lacks, or of two sides the card has only one, so
            that a flip would make background of the other.
    """
    data, known = config.data, {0, *card.label_values}
    foreign = sorted(set(data.remap.values()) - known)
    if foreign:
        raise RequestError(
            f"Training file: data.remap leads to {foreign[0]}, which the card does not have."
        )
    for pair in data.mirrored:
        there = [data.remap.get(value, value) in known for value in pair]
        if there[0] != there[1]:
            raise RequestError(
                f"Training file: of the pair {list(pair)} in data.mirrored, the card has only "
                f"{pair[there.index(True)]}, so mirrored volumes would be wrong. Correct the pair."
            )


def _codes(
    labels: Sequence[Volume], added: Iterable[int], mirrored: Mapping[int, int]
) -> list[int]:
    """All values of the maps and of what is made from them, ascending."""
    values = {0, *added}
    values |= {int(value) for volume in labels for value in np.unique(volume.voxels)}
    codes = sorted(values | {mirrored[value] for value in values if value in mirrored})
    if len(codes) > 255:
        raise InputError(
            f"The label maps hold {len(codes)} labels, but at most 255 are possible. Merge labels "
            "with data.remap."
        )
    return codes


def _check_held_out(validation: Sequence[str], labels: Sequence[Path], root: Path) -> None:
    names = {path.name for path in labels}
    missing = sorted(set(validation) - names)
    if missing:
        raise RequestError(
            f"Validation files {', '.join(missing)} are not among the label maps in {root}. "
            "Check data.validation."
        )
    if not validation or len(validation) == len(names):
        raise RequestError(
            "data.validation must hold out some of the files, and leave some to learn from."
        )


def find_files(config: TrainingConfig) -> tuple[list[Path], list[Path | None]]:
    """Find the label files, and for each its image or None.

    Raises:
        RequestError: see `case_source`.
    """
    data, root = config.data, config.data_root
    _check_patterns(data)
    labels = matching_files(
        root, data.maps or data.labels, "data.maps" if data.maps else "data.labels"
    )
    images: list[Path | None] = [None] * len(labels)
    if data.images:
        images = [*matching_files(root, data.images, "data.images")]
    _check_pairs(root, images, labels)
    _check_held_out(data.validation, labels, root)
    return labels, images


def _check_patterns(data: DataConfig) -> None:
    """Refuse a training file that names both label maps alone and images with labels, or neither."""
    if bool(data.maps) == bool(data.labels) or bool(data.images) != bool(data.labels):
        raise RequestError(
            "Training file: give either data.maps, or both data.images and data.labels."
        )


def _check_pairs(root: Path, images: Sequence[Path | None], labels: Sequence[Path]) -> None:
    if len(images) != len(labels):
        raise RequestError(
            f"{root} holds {counted(len(images), 'image', 'images')} but "
            f"{counted(len(labels), 'label map', 'label maps')}. Each image needs one label map."
        )


def read_image(path: Path, labels: Volume) -> NDArray[np.float32]:
    """Read the image of a label map, float32 from 0 to 1, (k, j, i) in the orientation of the labels.

    Raises:
        InputError: the image cannot be read or has another grid.
    """
    image = conform_axes(read_volume(path))
    check_same_grid(
        labels.geometry,
        image.geometry,
        labels.source,
        str(path),
        "Resample one onto the other first.",
    )
    return scale_intensity(image.voxels)


def conform_axes(volume: Volume) -> Volume:
    """Flip and permute the axes, without resampling, so that k, j, i run as closely as possible to A, I, L."""
    directions = volume.geometry.ijk_to_ras[:3, :3] / volume.geometry.spacing_mm
    voxels, matrix = volume.voxels, volume.geometry.ijk_to_ras.copy()
    chosen: list[int] = []
    for world, sign in ((0, -1.0), (2, -1.0), (1, 1.0)):
        column = max({0, 1, 2} - set(chosen), key=lambda axis: abs(directions[world, axis]))
        chosen.append(column)
        if directions[world, column] * sign < 0:
            voxels = np.flip(voxels, 2 - column)
            matrix[:3, 3] += matrix[:3, column] * (voxels.shape[2 - column] - 1)
            matrix[:3, column] *= -1
    voxels = voxels.transpose([2 - column for column in reversed(chosen)])
    matrix[:3, :3] = matrix[:3, chosen]
    return Volume(voxels, Geometry(voxels.shape, matrix), volume.source)


def _encoded(voxels: NDArray[np.integer], codes: Sequence[int]) -> NDArray[np.uint8]:
    """Return the place of each voxel in the ascending `codes`; a table takes a tenth of the time of a search."""
    if codes[0] < 0 or codes[-1] > LISTED_VALUE:
        return np.searchsorted(codes, voxels).astype(np.uint8)
    table = np.zeros(codes[-1] + 1, np.uint8)
    table[np.asarray(codes)] = np.arange(len(codes))
    return table[voxels]


def store_case(
    labels: Volume, image: NDArray[np.float32] | None, codes: Sequence[int], tables: LabelTables
) -> StoredCase:
    """Encode a label map, and crop it to its content if it has no image."""
    encoded = _encoded(labels.voxels, codes)
    if image is None:
        (content,) = ndimage.find_objects((encoded > 0).view(np.uint8)) or [...]
        encoded = encoded[content]
    wanted = tables.brain[tables.targets.int()].numpy()
    brain = ndimage.find_objects((wanted[encoded] > 0).view(np.uint8))
    if not brain:
        raise InputError(
            f"{labels.source} does not hold any structure to learn. Check data.remap and the card."
        )
    k, j, i = ((part.start + part.stop - 1) / 2 for part in brain[0])
    name = Path(labels.source).name
    spacing = labels.geometry.spacing_mm
    return StoredCase(
        name, np.ascontiguousarray(encoded), image, (k, j, i), (spacing[2], spacing[1], spacing[0])
    )

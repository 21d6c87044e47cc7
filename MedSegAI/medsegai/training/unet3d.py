"""Train 3D U-Nets on patches: the compact U-Net, or any that nnU-Net's plans can describe."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from medsegai.errors import RequestError
from medsegai.models.card import ModelCard
from medsegai.networks.compact_unet import CompactUNet
from medsegai.networks.volumetric import build_network, smallest_multiple
from medsegai.preprocessing.tiles import gaussian, tile_starts
from medsegai.training.config import SamplingConfig, TrainingConfig
from medsegai.training.data import DROPOUT, Sample, SampleSource, scaled, seed_for
from medsegai.training.loss import SegmentationLoss, boundaries_3d, member_weights
from medsegai.training.sampling import Predict, classes_of_targets
from medsegai.training.trainer import Trainer, TrainingProcess


@dataclass(frozen=True)
class PatchBatch:
    """Patches, and the classes to learn at one sub-position of each coarse voxel.

    Attributes:
        images: the images (N, 1, K, J, I).
        classes: the classes (N, k, j, i) at the sub-position.
        touches: whether these voxels touch another class, bool (N, k, j, i).
        position: the number of the sub-position, int64 ().
    """

    images: Tensor
    classes: Tensor
    touches: Tensor
    position: Tensor

    def tensors(self) -> tuple[Tensor, ...]:
        """Return the tensors of the batch."""
        return self.images, self.classes, self.touches, self.position


@dataclass(frozen=True)
class PatchTask:
    """What one network learns: the class of each target, seen in patches (k, j, i)."""

    name: str
    number: int
    class_of: NDArray[np.int64]
    patch: tuple[int, int, int]
    fold: int

    @property
    def class_count(self) -> int:
        """The number of classes of the network."""
        return int(self.class_of.max()) + 1

    def draw(
        self,
        samples: Sequence[Sample],
        sampling: SamplingConfig,
        random: np.random.Generator,
        share: slice,
    ) -> PatchBatch:
        """Draw patches at random places of random volumes; all patches of a batch have the same sub-position."""
        position = int(random.integers(self.fold**3))
        chosen = [self._place(samples, random) for _ in range(sampling.batch)]
        parts = [self._cut(sample, box, position) for sample, box in chosen[share]]
        images, classes, touches = (
            torch.from_numpy(np.stack(part)) for part in zip(*parts, strict=True)
        )
        return PatchBatch(images, classes, touches, torch.tensor(position))

    def answers(
        self, sample: Sample, predict: Predict, step: int, count: int
    ) -> Iterator[tuple[NDArray[np.integer], NDArray[np.integer]]]:
        """Yield predicted and true classes of a whole volume, from patches that overlap by half."""
        total = torch.zeros(self.class_count, *sample.image.shape)
        weights = torch.tensor(gaussian(self.patch))
        for start in itertools.product(*tile_starts(sample.image.shape, self.patch)):
            box = self._box(start)
            image = torch.from_numpy(scaled(sample.image[box])[None, None])
            total[(slice(None), *box)].add_(predict(image)[0].float().cpu() * weights)
        yield total.argmax(0).numpy(), self.class_of[sample.targets]

    def _place(
        self, samples: Sequence[Sample], random: np.random.Generator
    ) -> tuple[Sample, tuple[slice, ...]]:
        sample = samples[int(random.integers(len(samples)))]
        room = [size - part for size, part in zip(sample.image.shape, self.patch, strict=True)]
        return sample, self._box([int(random.integers(extent + 1)) for extent in room])

    def _box(self, start: Sequence[int]) -> tuple[slice, ...]:
        return tuple(slice(a, a + size) for a, size in zip(start, self.patch, strict=True))

    def _cut(
        self, sample: Sample, box: tuple[slice, ...], position: int
    ) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.bool_]]:
        classes = self.class_of[sample.targets[box]]
        touches = boundaries_3d(classes)
        k, j, i = np.unravel_index(position, (self.fold,) * 3)
        at = (
            slice(int(k), None, self.fold),
            slice(int(j), None, self.fold),
            slice(int(i), None, self.fold),
        )
        return scaled(sample.image[box])[None], classes[at], touches[at]


class PatchObjective(nn.Module):
    """Network and loss in one module, so that both are compiled and distributed together."""

    def __init__(self, network: nn.Module, loss: SegmentationLoss, precision: str) -> None:
        super().__init__()
        self.network = network
        self.loss = loss
        self.precision = precision

    def logits(self, images: Tensor, network: nn.Module) -> Tensor:
        """Return the logits of a batch."""
        with self._autocast(images):
            logits: Tensor = network(images)
        return logits

    def forward(self, images: Tensor, classes: Tensor, touches: Tensor, position: Tensor) -> Tensor:
        """Return the loss of a batch."""
        with self._autocast(images):
            if isinstance(self.network, CompactUNet):
                logits = self.network.logits_at(self.network.features(images), position)
            else:
                logits = self.network(images)
        losses: Tensor = self.loss(logits, classes, touches)
        return losses

    def _autocast(self, images: Tensor) -> torch.autocast:
        mixed = self.precision == "bf16"
        return torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=mixed)


def build_trainers(
    config: TrainingConfig,
    card: ModelCard,
    members: Sequence[str],
    source: SampleSource,
    place: TrainingProcess,
) -> list[Trainer]:
    """Build one trainer for each member, with the network that the card describes.

    Raises:
        RequestError: a patch does not fit a network or the volumes.
    """
    counts = source.target_counts()
    return [
        _trainer(number, name, config, card, counts, place) for number, name in enumerate(members)
    ]


def _trainer(
    number: int,
    name: str,
    config: TrainingConfig,
    card: ModelCard,
    counts: NDArray[np.int64],
    place: TrainingProcess,
) -> Trainer:
    member = card.member(name)
    class_of = classes_of_targets(member, card.label_values)
    torch.manual_seed(seed_for(config.seed, DROPOUT, 2**40 + number))
    network = build_network(member.settings, int(class_of.max()) + 1)
    fold = network.config.fold if isinstance(network, CompactUNet) else 1
    check_patch(config, smallest_multiple(network))
    task = PatchTask(name, number, class_of, config.sampling.patch, fold)
    loss = SegmentationLoss(member_weights(counts, class_of, config.loss), config.loss)
    objective = PatchObjective(network, loss, config.precision)
    return Trainer(task, objective, config, place, outer_weights(network))


def outer_weights(network: nn.Module) -> list[nn.Parameter]:
    """Return the weights of the first and of the last convolution."""
    convolutions = [weight for weight in network.parameters() if weight.ndim > 1]
    if isinstance(network, CompactUNet):
        return [convolutions[0], next(network.head.parameters())]
    return [convolutions[0], convolutions[-1]]


def check_patch(config: TrainingConfig, multiple: Sequence[int]) -> None:
    """Raise RequestError if patches do not fit the network or the volumes."""
    patch, volume = config.sampling.patch, config.data.crop_voxels
    if any(size % step for size, step in zip(patch, multiple, strict=True)):
        raise RequestError(
            f"Training file: sampling.patch {patch} must be multiples of {tuple(multiple)} for this network."
        )
    if any(size > whole for size, whole in zip(patch, volume, strict=True)):
        raise RequestError(
            f"Training file: sampling.patch {patch} is larger than data.crop_voxels {volume}."
        )

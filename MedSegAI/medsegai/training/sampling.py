"""The batches of a step, drawn from a pool of recent volumes and determined by the step number.

Everything that is kept here can be made again, so an interrupted run continues exactly as if it had not been
interrupted.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medsegai.models.card import MemberCard
from medsegai.preprocessing.views import VIEWS, View, thick_slices
from medsegai.progress import Check, unstoppable
from medsegai.training.config import SamplingConfig
from medsegai.training.data import BATCHES, TRAINING, Sample, SampleSource, scaled, seed_for
from medsegai.training.loss import boundaries

Predict = Callable[[Tensor], Tensor]
"""Computes logits (N, classes, ...) from images (N, channels, ...), on the device that the caller chooses."""


class Batch(Protocol):
    """The training data of a step."""

    def tensors(self) -> tuple[Tensor, ...]:
        """The arguments of the objective; the image, (N, channels, ...), is the first."""
        ...


class Task(Protocol):
    """What one network learns, and how volumes are shown to it.

    `number` distinguishes the tasks of a run, so that each draws its own random numbers.
    """

    @property
    def name(self) -> str: ...

    @property
    def number(self) -> int: ...

    @property
    def class_count(self) -> int: ...

    def draw(
        self,
        samples: Sequence[Sample],
        sampling: SamplingConfig,
        random: np.random.Generator,
        share: slice,
    ) -> Batch:
        """Draw a batch; with several processes, each takes its `share` of it."""
        ...

    def answers(
        self, sample: Sample, predict: Predict, step: int, count: int
    ) -> Iterator[tuple[NDArray[np.integer], NDArray[np.integer]]]:
        """Yield predicted and true classes for the validation, in pieces of equal shape."""
        ...


@dataclass(frozen=True)
class SliceBatch:
    """``slices`` (N, channels, H, W), ``classes`` (N, H, W) and whether voxels touch another class (N, H, W)."""

    slices: Tensor
    classes: Tensor
    touches: Tensor

    def tensors(self) -> tuple[Tensor, ...]:
        """Return the tensors of the batch."""
        return self.slices, self.classes, self.touches


@dataclass(frozen=True)
class ViewTask:
    """What one network learns: its view, its number of neighbouring slices, and the class of each target."""

    view: View
    slices: int
    class_of: NDArray[np.int64]

    @property
    def name(self) -> str:
        """The name of the task in logs and checkpoints."""
        return self.view.name

    @property
    def number(self) -> int:
        """The number of the task among all tasks."""
        return sorted(VIEWS).index(self.name)

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
    ) -> SliceBatch:
        """Draw slices of random volumes, most of which contain structures."""
        chosen = [
            self._choose(samples, sampling.brain_share, random) for _ in range(sampling.batch)
        ]
        return join([cut_batch(sample, self, np.array([index])) for sample, index in chosen[share]])

    def answers(
        self, sample: Sample, predict: Predict, step: int, count: int
    ) -> Iterator[tuple[NDArray[np.integer], NDArray[np.integer]]]:
        """Yield predicted and true classes of every `step`-th slice, `count` at a time."""
        indices = np.arange(0, len(self.view.stack(sample.targets)), step)
        for start in range(0, len(indices), count):
            batch = cut_batch(sample, self, indices[start : start + count])
            yield predict(batch.slices).argmax(dim=1).cpu().numpy(), batch.classes.numpy()

    def _choose(
        self, samples: Sequence[Sample], brain_share: float, random: np.random.Generator
    ) -> tuple[Sample, int]:
        sample = samples[int(random.integers(len(samples)))]
        axis = self.view.axes[0]
        candidates = sample.occupied[axis]
        if not candidates.size or random.random() >= brain_share:
            candidates = np.arange(sample.targets.shape[axis])
        return sample, int(random.choice(candidates))


def view_task(
    member: MemberCard, view: str, slices: int, label_values: tuple[int, ...]
) -> ViewTask:
    """Return the task that a member's class map describes."""
    return ViewTask(VIEWS[view], slices, classes_of_targets(member, label_values))


def classes_of_targets(member: MemberCard, label_values: tuple[int, ...]) -> NDArray[np.int64]:
    """Return the class of each target, (targets + 1,), in a member's class map; background is 0."""
    class_of = np.zeros(len(label_values) + 1, dtype=np.int64)
    for number, targets in enumerate(member.classes):
        for value in targets:
            class_of[label_values.index(value) + 1] = number
    return class_of


def cut_batch(sample: Sample, task: ViewTask, indices: NDArray[np.int64]) -> SliceBatch:
    """Return the slices ``indices`` of one volume, as a view sees them."""
    image = scaled(thick_slices(task.view.stack(sample.image), indices, task.slices))
    targets = thick_slices(task.view.stack(sample.targets), indices, 3)
    classes = torch.from_numpy(task.class_of[targets])
    return SliceBatch(
        torch.from_numpy(image),
        classes[:, 1].contiguous(),
        boundaries(classes),
    )


def join(batches: list[SliceBatch]) -> SliceBatch:
    """Return one batch of these samples."""
    return SliceBatch(
        *(
            torch.cat([getattr(batch, name) for batch in batches])
            for name in ("slices", "classes", "touches")
        )
    )


@dataclass
class Pool:
    """The volumes from which a step may draw. ``volumes`` holds them by number, oldest first."""

    source: SampleSource
    config: SamplingConfig
    seed: int
    volumes: OrderedDict[int, Sample] = field(default_factory=OrderedDict)

    def at(self, step: int, check: Check = unstoppable) -> list[Sample]:
        """Return the pool at ``step``; missing volumes are made, with a ``check`` before each."""
        newest = self.config.pool + step // self.config.refresh
        wanted = range(newest - self.config.pool, newest)
        found: OrderedDict[int, Sample] = OrderedDict()
        for number in wanted:
            if number in self.volumes:
                found[number] = self.volumes[number]
            else:
                check()
                found[number] = self.source.sample(TRAINING, number)
        self.volumes = found
        return list(found.values())

    def draw(self, step: int, task: Task, rank: int = 0, ranks: int = 1) -> Batch:
        """Return the share of ``rank`` in the batch of ``step`` for one task."""
        random = np.random.default_rng(
            seed_for(self.seed, BATCHES, step * len(VIEWS) + task.number)
        )
        return task.draw(self.at(step), self.config, random, slice(rank, None, ranks))

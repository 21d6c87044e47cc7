"""Which slices a step learns from: a pool of recent volumes, wholly determined by the step number.

Nothing here remembers anything that could not be made again, so a run that was cut off goes on
exactly as if it had not been.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medsegai.card import MemberCard
from medsegai.preprocessing.views import VIEWS, View, thick_slices
from medsegai.training.config import SamplingConfig
from medsegai.training.data import BATCHES, TRAINING, Sample, SampleSource, seed_for
from medsegai.training.loss import boundaries


@dataclass(frozen=True)
class Batch:
    """``slices`` (N, channels, H, W), ``classes`` (N, H, W) and where they touch another class (N, H, W)."""

    slices: Tensor
    classes: Tensor
    touches: Tensor


@dataclass(frozen=True)
class ViewTask:
    """What one network learns: its view, its number of neighbouring slices, and the class of each target."""

    view: View
    slices: int
    class_of: NDArray[np.int64]

    @property
    def name(self) -> str:
        return self.view.name

    @property
    def class_count(self) -> int:
        return int(self.class_of.max()) + 1


def view_task(
    member: MemberCard, view: str, slices: int, label_values: tuple[int, ...]
) -> ViewTask:
    """The task that a member's class map describes."""
    class_of = np.zeros(len(label_values) + 1, dtype=np.int64)
    for number, feeds in enumerate(member.classes):
        for value in feeds:
            class_of[label_values.index(value) + 1] = number
    return ViewTask(VIEWS[view], slices, class_of)


def cut_batch(sample: Sample, task: ViewTask, indices: NDArray[np.int64]) -> Batch:
    """Slices ``indices`` of one volume, as a view sees them."""
    image = thick_slices(task.view.stack(sample.image), indices, task.slices)
    targets = thick_slices(task.view.stack(sample.targets), indices, 3)
    classes = torch.from_numpy(task.class_of[targets])
    return Batch(
        torch.from_numpy(np.ascontiguousarray(image)),
        classes[:, 1].contiguous(),
        boundaries(classes),
    )


def join(batches: list[Batch]) -> Batch:
    return Batch(
        *(
            torch.cat([getattr(batch, name) for batch in batches])
            for name in ("slices", "classes", "touches")
        )
    )


@dataclass
class Pool:
    """The volumes that a step may draw from. ``volumes`` holds them by number, oldest first."""

    source: SampleSource
    config: SamplingConfig
    seed: int
    volumes: OrderedDict[int, Sample] = field(default_factory=OrderedDict)

    def at(self, step: int) -> list[Sample]:
        """The pool as it is at ``step``; volumes that it lacks are made."""
        newest = self.config.pool + step // self.config.refresh
        wanted = range(newest - self.config.pool, newest)
        kept = {number: sample for number, sample in self.volumes.items() if number in wanted}
        self.volumes = OrderedDict(
            (number, kept[number] if number in kept else self.source.sample(TRAINING, number))
            for number in wanted
        )
        return list(self.volumes.values())

    def draw(self, step: int, task: ViewTask, rank: int = 0, ranks: int = 1) -> Batch:
        """The share of ``rank`` in the batch of ``step`` for one view."""
        samples = self.at(step)
        view = sorted(VIEWS).index(task.name)
        random = np.random.default_rng(seed_for(self.seed, BATCHES, step * len(VIEWS) + view))
        chosen = [self._choose(samples, task, random) for _ in range(self.config.batch)]
        return join(
            [cut_batch(sample, task, np.array([index])) for sample, index in chosen[rank::ranks]]
        )

    def _choose(
        self, samples: list[Sample], task: ViewTask, random: np.random.Generator
    ) -> tuple[Sample, int]:
        sample = samples[random.integers(len(samples))]
        axis = task.view.axes[0]
        candidates = sample.occupied[axis]
        if not candidates.size or random.random() >= self.config.brain_share:
            candidates = np.arange(sample.targets.shape[axis])
        return sample, int(random.choice(candidates))

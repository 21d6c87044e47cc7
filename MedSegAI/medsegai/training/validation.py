"""How good the networks are on held-out volumes: Dice of every class."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medsegai.training.data import VALIDATION, Sample, SampleSource
from medsegai.training.sampling import ViewTask, cut_batch

Predict = Callable[[Tensor], Tensor]
"""Slices (N, channels, H, W) to logits (N, classes, H, W), on the device of the caller's choice."""


@dataclass
class DiceCounter:
    """Counts voxels over many slices, so that Dice is that of the volumes together.

    Dice of class c = 2 |P_c and T_c| / (|P_c| + |T_c|). A class that the reference does not
    contain has no Dice, and the mean is over the classes that have one, background left out.
    """

    common: NDArray[np.int64]
    predicted: NDArray[np.int64]
    expected: NDArray[np.int64]

    @classmethod
    def for_classes(cls, count: int) -> DiceCounter:
        return cls(*(np.zeros(count, dtype=np.int64) for _ in range(3)))

    def add(self, predicted: NDArray[np.integer], expected: NDArray[np.integer]) -> None:
        count = len(self.common)
        self.common += np.bincount(expected[predicted == expected].ravel(), minlength=count)
        self.predicted += np.bincount(predicted.ravel(), minlength=count)
        self.expected += np.bincount(expected.ravel(), minlength=count)

    def per_class(self) -> dict[int, float]:
        """Dice of each class that the reference contains, without background."""
        present = [number for number in np.flatnonzero(self.expected) if number > 0]
        total = self.predicted + self.expected
        return {
            int(number): 2.0 * int(self.common[number]) / int(total[number]) for number in present
        }

    def mean(self) -> float:
        values = list(self.per_class().values())
        return float(np.mean(values)) if values else float("nan")


@dataclass(frozen=True)
class Validator:
    """Held-out volumes, made once, and the slices of them that are looked at."""

    samples: Sequence[Sample]
    slice_step: int
    batch: int

    @classmethod
    def from_source(
        cls, source: SampleSource, volumes: int, slice_step: int, batch: int
    ) -> Validator:
        return cls(
            [source.sample(VALIDATION, index) for index in range(volumes)], slice_step, batch
        )

    def dice(self, task: ViewTask, predict: Predict) -> DiceCounter:
        """Dice counts of one view's network."""
        counter = DiceCounter.for_classes(task.class_count)
        for sample in self.samples:
            indices = np.arange(0, len(task.view.stack(sample.targets)), self.slice_step)
            for start in range(0, len(indices), self.batch):
                batch = cut_batch(sample, task, indices[start : start + self.batch])
                predicted = predict(batch.slices).argmax(dim=1)
                counter.add(predicted.cpu().numpy(), batch.classes.numpy())
        return counter


def evaluating(network: torch.nn.Module, forward: Predict) -> Predict:
    """``forward`` without gradients, the network in evaluation mode; its mode is put back after each call."""

    def predict(slices: Tensor) -> Tensor:
        was_training = network.training
        network.eval()
        try:
            with torch.inference_mode():
                return forward(slices)
        finally:
            network.train(was_training)

    return predict

"""Validation of the networks on held-out volumes by the Dice of every class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from medsegai.progress import Check, unstoppable
from medsegai.training.data import VALIDATION, Sample, SampleSource
from medsegai.training.sampling import Predict, Task


@dataclass
class DiceCounter:
    """Counts voxels over many slices, so that Dice refers to all volumes together.

    Dice of class c = 2 |P_c and T_c| / (|P_c| + |T_c|). A class that the reference does not contain does not have
    a Dice; the mean is over the classes that have one, without background.
    """

    common: NDArray[np.int64]
    predicted: NDArray[np.int64]
    expected: NDArray[np.int64]

    @classmethod
    def for_classes(cls, count: int) -> DiceCounter:
        """Return a counter for a number of classes."""
        return cls(*(np.zeros(count, dtype=np.int64) for _ in range(3)))

    def add(self, predicted: NDArray[np.integer], expected: NDArray[np.integer]) -> None:
        """Count a prediction and its reference."""
        count = len(self.common)
        self.common += np.bincount(expected[predicted == expected].ravel(), minlength=count)
        self.predicted += np.bincount(predicted.ravel(), minlength=count)
        self.expected += np.bincount(expected.ravel(), minlength=count)

    def per_class(self) -> dict[int, float]:
        """Return the Dice of each class that the reference contains, without background."""
        present = [number for number in np.flatnonzero(self.expected) if number > 0]
        total = self.predicted + self.expected
        return {
            int(number): 2.0 * int(self.common[number]) / int(total[number]) for number in present
        }

    def mean(self) -> float:
        """Return the mean Dice over classes."""
        values = list(self.per_class().values())
        return float(np.mean(values)) if values else float("nan")


@dataclass(frozen=True)
class Validator:
    """Held-out volumes, made once, and the choice of their slices."""

    samples: Sequence[Sample]
    slice_step: int
    batch: int

    @classmethod
    def from_source(
        cls,
        source: SampleSource,
        volumes: int,
        slice_step: int,
        batch: int,
        check: Check = unstoppable,
    ) -> Validator:
        samples = []
        for index in range(volumes):
            check()
            samples.append(source.sample(VALIDATION, index))
        return cls(samples, slice_step, batch)

    def dice(self, task: Task, predict: Predict, check: Check = unstoppable) -> DiceCounter:
        """Return the Dice counts of one member's network. `check` is called before each batch."""

        def checked(images: Tensor) -> Tensor:
            check()
            return predict(images)

        counter = DiceCounter.for_classes(task.class_count)
        for sample in self.samples:
            for predicted, expected in task.answers(sample, checked, self.slice_step, self.batch):
                counter.add(predicted, expected)
        return counter

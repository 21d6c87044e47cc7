"""The meaning of a network's native values, and their conversion to probabilities, labels and entropy."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

SURE = 1.0 - 0.5 / 255.0
"""The smallest probability that eight bits cannot distinguish from one."""


@dataclass(frozen=True)
class Activation:
    """The meaning of native values, and the temperature at which they become probabilities.

    PROBABILITIES sum to one. LOGITS become probabilities by softmax. REGIONS are logits of regions that may
    overlap, each with its own sigmoid; a voxel gets the last region of those it lies in, and channel 0
    stands for none of them (nnU-Net's `regions_class_order`). REGION_PROBABILITIES are those sigmoids themselves.

    Above 1 the temperature makes probabilities less certain, below 1 more certain (C. Guo et al., On Calibration
    of Modern Neural Networks, 2017). Which class is the most probable, and so every label, does not depend on it.
    """

    kind: str
    temperature: float = 1.0

    PROBABILITIES: ClassVar[Activation]
    LOGITS: ClassVar[Activation]
    REGIONS: ClassVar[Activation]
    REGION_PROBABILITIES: ClassVar[Activation]

    @property
    def regions(self) -> bool:
        """Whether classes may overlap."""
        return self.kind in ("regions", "region probabilities")

    @property
    def sums_to_one(self) -> bool:
        """Whether native values are probabilities of exclusive classes."""
        return self.kind == "probabilities"

    def at(self, temperature: float) -> Activation:
        """The same values at another temperature."""
        return replace(self, temperature=temperature)

    def probabilities(self, values: Tensor, axis: int) -> Tensor:
        """Probabilities of the classes along `axis`."""
        if self.sums_to_one or self.kind == "region probabilities":
            return self.tempered(values, axis)
        if self.temperature != 1.0:
            values = values / self.temperature
        return values.sigmoid() if self.regions else values.softmax(axis)

    def tempered(self, probabilities: Tensor, axis: int) -> Tensor:
        """Convert probabilities of temperature 1 to this one: p^(1/T), normalised; for regions, odds^(1/T)."""
        if self.temperature == 1.0:
            return probabilities
        powers = probabilities.pow(1.0 / self.temperature)
        if self.regions:
            return powers / (powers + (1.0 - probabilities).pow(1.0 / self.temperature))
        return powers / powers.sum(axis, keepdim=True)

    def decide(self, values: Tensor, axis: int) -> Tensor:
        """Class index of native values: the most probable class, or the last region with more than one half."""
        if self.regions:
            return _last_region(values, axis, 0.0 if self.kind == "regions" else 0.5)
        return _most_probable(values, axis)

    def decide_probabilities(self, values: Tensor, axis: int) -> Tensor:
        """Decide as `decide` does, from the values that `probabilities` returns."""
        if self.regions:
            return _last_region(values, axis, 0.5)
        return _most_probable(values, axis)

    def two_best(self, probabilities: Tensor, first: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The runner-up of each voxel, and the probabilities of both.

        For regions, the probability is that of the least certain decision, the one nearest to one half; the
        runner-up is the result if that decision were reversed. Both probabilities then add up to one.

        Args:
            probabilities: float (class, voxel).
            first: index of the decided class, int64 (voxel).

        Returns:
            The class index of the runner-up, the probability of the first, and that of the runner-up, each
            (voxel).
        """
        own = probabilities.gather(0, first[None])[0]
        if not self.regions:
            others = probabilities.scatter(0, first[None], -1.0)
            second = _most_probable(others, 0).long()
            return second, own, others.gather(0, second[None])[0]
        numbers = torch.arange(len(probabilities), device=first.device)[:, None]
        later = torch.where(numbers > first, probabilities, 0.0)
        entered = later.argmax(0)
        enters = later.gather(0, entered[None])[0]
        leaves = torch.where(first > 0, 1.0 - own, 0.0)
        left = _last_region(torch.where(numbers < first, probabilities, 0.0), 0, 0.5)
        flipped = torch.maximum(enters, leaves)
        return torch.where(enters >= leaves, entered, left), 1.0 - flipped, flipped

    def sure(self, probabilities: Tensor, first: Tensor, least: float = SURE) -> Tensor:
        """Whether the class `first` (...) of `probabilities` (class, ...) has at least the probability `least`."""
        if not self.regions:
            return probabilities.amax(0) >= least
        flat = probabilities.reshape(len(probabilities), -1)
        return (self.two_best(flat, first.reshape(-1))[1] >= least).reshape(first.shape)

    def entropy(self, probabilities: Tensor, axis: int) -> Tensor:
        """Entropy in nats; for regions, the sum of the binary entropies of all regions."""
        if not self.regions:
            return torch.special.entr(probabilities.clamp(0.0, 1.0)).sum(axis)
        inside = probabilities.narrow(axis, 1, probabilities.shape[axis] - 1).clamp(0.0, 1.0)
        return (torch.special.entr(inside) + torch.special.entr(1.0 - inside)).sum(axis)


Activation.PROBABILITIES = Activation("probabilities")
Activation.LOGITS = Activation("logits")
Activation.REGIONS = Activation("regions")
Activation.REGION_PROBABILITIES = Activation("region probabilities")


def _last_region(values: Tensor, axis: int, threshold: float) -> Tensor:
    """The last class along `axis` above the threshold, without class 0; 0 where there is none."""
    shape = [-1 if n == axis % values.ndim else 1 for n in range(values.ndim)]
    numbers = torch.arange(values.shape[axis], device=values.device).reshape(shape)
    return ((values > threshold) * numbers).amax(axis)


def _most_probable(values: Tensor, axis: int) -> Tensor:
    """The index of the first maximum along `axis`; on a CPU by running maxima, which is several times faster."""
    if values.device.type != "cpu" or values.shape[axis] > 256:
        return values.argmax(axis)
    values = values.movedim(axis, 0)
    first, *others = (values if values.stride(-1) == 1 else values.contiguous()).numpy()
    largest, found = first.copy(), np.zeros(first.shape, np.uint8)
    for number, other in enumerate(others, start=1):
        larger = (other > largest).view(np.uint8)
        np.maximum(found, np.multiply(larger, np.uint8(number), out=larger), out=found)
        np.maximum(largest, other, out=largest)
    return torch.from_numpy(found)

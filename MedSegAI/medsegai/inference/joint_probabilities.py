"""The predictions of parts on different grids, combined on the output grid where that can matter."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from medsegai.inference.grid_sampling import VALUES_AT_ONCE, Slab
from medsegai.inference.probabilities import ProbabilitySource, index_type


class JointProbabilities:
    """Weighted mean of probabilities on different grids, computed on the output grid.

    A part may not know some of the classes. What it calls background may be one of those, so it shares that
    probability among background and them as the parts that know them do.

    Args:
        parts: what to combine; class 0 of each is background.
        weights: of the parts.
        labels: label values of the joint classes, all that the parts have; the first is 0.
    """

    def __init__(
        self, parts: Sequence[ProbabilitySource], weights: Sequence[float], labels: Sequence[int]
    ) -> None:
        """The temperature is that of the parts; they are joined as they are at temperature 1."""
        self.labels = tuple(labels)
        self.activation = parts[0].activation
        self._weights = [weight / sum(weights) for weight in weights]
        self._parts = list(parts)
        self._last: tuple[Slab, Tensor] | None = None
        self._places = [
            torch.tensor([self.labels.index(label) for label in part.labels]) for part in parts
        ]

    def read(self, slab: Slab) -> Tensor:
        """As `Probabilities.read`."""
        every = torch.arange(math.prod(slab.shape))
        return self.read_points(slab, every).reshape(-1, *slab.shape)

    def read_points(self, slab: Slab, points: Tensor, raw: bool = False) -> Tensor:
        """As `Probabilities.read_points`."""
        parts = points.split(max(1, VALUES_AT_ONCE // len(self.labels)))
        activation = self.activation.at(1.0) if raw else self.activation
        means = [self._mean(slab, part) for part in parts]
        return torch.cat([activation.tempered(mean, 0) for mean in means], 1)

    def decide_points(self, slab: Slab, points: Tensor) -> tuple[Tensor, Tensor]:
        """As `Probabilities.decide_points`."""
        mean = self._mean(slab, points)
        return self.activation.decide_probabilities(mean, 0), self.activation.tempered(mean, 0)

    def entropy(self, slab: Slab) -> Tensor:
        """Entropy in nats of the mean, computed on the output grid; 0 where nothing is unsettled."""
        return self._uncertainty(slab)[0]

    def divergence(self, slab: Slab) -> Tensor:
        """How far the parts disagree: entropy of their mean less mean of their entropies, in nats.

        At temperature 1; also called generalised Jensen-Shannon divergence. float32 (k, j, i).
        """
        return self._uncertainty(slab)[1]

    def _uncertainty(self, slab: Slab) -> Tensor:
        """Entropy and divergence, float32 (2, k, j, i), of which the last are remembered.

        Only voxels that are unsettled are interpolated.
        """
        if self._last is None or self._last[0] != slab:
            unsettled = self.unsettled(slab)
            result = torch.zeros(2, *unsettled.shape)
            some = unsettled.reshape(-1).nonzero()[:, 0]
            for points in some.split(max(1, VALUES_AT_ONCE // len(self.labels))):
                found = self._part_values(slab, points)
                apart = self._mean_entropy(found)  # before the sum, which is made in place
                mean = self._sum(found)
                gap = self.activation.entropy(mean, 0).sub_(apart)
                result.view(2, -1)[1, points] = gap.clamp_(min=0.0)
                result.view(2, -1)[0, points] = self.activation.entropy(
                    self.activation.tempered(mean, 0), 0
                )
            self._last = slab, result
        return self._last[1]

    def _mean_entropy(self, found: Sequence[Tensor]) -> Tensor:
        mean = torch.zeros(found[0].shape[1:])
        for values, weight in zip(found, self._weights, strict=True):
            mean.add_(self.activation.entropy(values, 0), alpha=weight)
        return mean

    def _mean(self, slab: Slab, points: Tensor) -> Tensor:
        return self._sum(self._part_values(slab, points))

    def _sum(self, found: list[Tensor]) -> Tensor:
        """The weighted mean; the first of the values becomes it."""
        mean = found[0].mul_(self._weights[0])
        for values, weight in zip(found[1:], self._weights[1:], strict=True):
            mean.add_(values, alpha=weight)
        return mean

    def _part_values(self, slab: Slab, points: Tensor) -> list[Tensor]:
        """What each part predicts for all joint classes, at temperature 1, float32 (class, point)."""
        found = []
        for part, places in zip(self._parts, self._places, strict=True):
            values = part.read_points(slab, points, raw=True).cpu()
            if part.labels != self.labels:
                values = values.new_zeros(len(self.labels), points.numel()).index_copy_(
                    0, places, values
                )
            found.append(values)
        if any(len(places) < len(self.labels) for places in self._places):
            found = [self._shared(number, found) for number in range(len(found))]
        return found

    def _shared(self, number: int, found: Sequence[Tensor]) -> Tensor:
        """The prediction of a part with its background shared among the classes that it does not know."""
        known = self._places[number]
        unknown = torch.ones(len(self.labels), 1, dtype=torch.bool)
        unknown[known[1:]] = False
        others = sum(values for index, values in enumerate(found) if index != number)
        share = torch.as_tensor(others) * unknown
        total = share.sum(0, keepdim=True)
        background = (torch.arange(len(self.labels)) == 0).float()[:, None]
        share = torch.where(total > 0, share / total.clamp(min=1e-12), background)
        return found[number] * ~unknown + found[number][:1] * share

    def consensus(self, slab: Slab) -> tuple[Tensor, Tensor]:
        """As `Probabilities.consensus`: what is certain in every part, and the same in all."""
        result: Tensor | None = None
        certain = torch.ones(())
        for part, places in zip(self._parts, self._places, strict=True):
            classes, sure = (values.cpu() for values in part.consensus(slab))
            classes = places.to(index_type(len(self.labels)))[classes.long()]
            certain = sure if result is None else certain & sure & (classes == result)
            result = classes if result is None else result
        assert result is not None
        return result, certain

    def argmax(self, slab: Slab) -> Tensor:
        """As `Probabilities.argmax`."""
        result, certain = self.consensus(slab)
        flat = result.view(-1)
        unsure = (~certain).reshape(-1).nonzero()[:, 0]
        for part in unsure.split(max(1, VALUES_AT_ONCE // len(self.labels))):
            values = self._mean(slab, part)
            flat[part] = self.activation.decide_probabilities(values, 0).to(flat.dtype)
        return result

    def contested(self, slab: Slab) -> Tensor:
        """As `Probabilities.contested`: where any part is uncertain, or they differ."""
        result = ~self.consensus(slab)[1]
        for part in self._parts:
            result |= part.contested(slab).cpu()
        return result

    def unsettled(self, slab: Slab) -> Tensor:
        """As `Probabilities.unsettled`: where any part is, or they differ."""
        result = ~self.consensus(slab)[1]
        for part in self._parts:
            result |= part.unsettled(slab).cpu()
        return result

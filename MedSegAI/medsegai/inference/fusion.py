"""Fusion of members into one prediction.

`Accumulator` takes the blocks of all members that share a native grid and keeps one weighted sum of them, so
memory does not grow with the number of members: probabilities in half precision, logits in single. Where a class
is improbable, nothing is written, and memory that was not written to takes no room. Members on other grids get
other accumulators; `fuse` combines those on the output grid.

The weighted mean of softmax probabilities over views is the aggregation of QuickNAT (Roy et al., NeuroImage 2019,
section 2.4). A channel that cannot distinguish left from right contributes to both sides. In QuickNAT each side
gets its full probability. Here the sides share it in the proportion of the members that distinguish the sides, so
that the sum stays one, and a voxel that is certainly left is not half uncertain. Members that distinguish the
sides are therefore added first (`side_aware_first`).
"""

from __future__ import annotations

import functools
import itertools
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medsegai.errors import RequestError
from medsegai.inference.activation import Activation
from medsegai.inference.grid_sampling import Reach, Slab
from medsegai.inference.joint_probabilities import JointProbabilities
from medsegai.inference.probabilities import (
    Block,
    NativeMap,
    Probabilities,
    ProbabilitySource,
    index_type,
    read_information,
    read_nearest,
)
from medsegai.labels import Label
from medsegai.models.card import ModelCard
from medsegai.networks.mapped_memory import mapped_zeros
from medsegai.volume import Geometry

logger = logging.getLogger(__name__)

NEGLIGIBLE = 1e-5
"""The probability below which a class is improbable. Rows of voxels in which it is improbable everywhere are not
added: for most structures, nearly all rows of a head. What they lack goes to the background."""

Rows = tuple[slice, slice]
"""A box of rows of voxels, along k and j."""

EVERY_ROW: Rows = (slice(None), slice(None))

Classes = Sequence[Sequence[int]]
"""For each output channel of a member, its target labels; empty is the background."""


class HasClasses(Protocol):
    """Anything that has target labels for its channels, such as a member."""

    classes: Classes


Member = TypeVar("Member", bound=HasClasses)


@dataclass
class MemberLabels:
    """The most probable channel of one member at each native voxel, (k, j, i)."""

    classes: Classes
    channels: Tensor


@dataclass
class Accumulator:
    """The sum of the weighted probabilities of members on one native grid.

    Attributes:
        labels: label values of the classes; the first is 0, background.
        geometry: the native grid, or the box of it on which members predict.
        device: the device of the sum, which moves to the CPU if the device runs out of memory.
        vote: whether each member votes for its most probable class, instead of adding its probabilities.
        keep_members: whether to keep each member's labels and entropy, for `member_values` and `information`.
        activation: the meaning of the members' predictions.
        linear: the native axes along which the result is interpolated, as in `Probabilities`.
        reach: the part of the native grid on which the result is valid, as in `Probabilities`.
        notes: what had to be changed during the fusion, as sentences.
    """

    labels: tuple[int, ...]
    geometry: Geometry
    device: torch.device
    vote: bool = False
    keep_members: bool = False
    activation: Activation = Activation.PROBABILITIES
    linear: tuple[bool, bool, bool] = (True, True, True)
    notes: list[str] = field(default_factory=list)
    reach: Reach | None = None

    def __post_init__(self) -> None:
        self.total_weight = 0.0
        self._members: list[MemberLabels] = []
        self._sums_logits = not self.activation.sums_to_one and not self.vote
        self._sums_probabilities = self.activation.sums_to_one  # votes, too, are for probable ones
        shape = (len(self.labels), *self.geometry.shape)
        dtype = torch.float32 if self._sums_logits else torch.float16
        try:
            self._sum = _zeros(shape, dtype, self.device)
        except torch.OutOfMemoryError:
            self._move_to_cpu()
            self._sum = _zeros(shape, dtype, self.device)
        own_mean = self.keep_members and (self._sums_logits or self.vote)
        self._mean = torch.zeros(shape) if own_mean else None
        self._entropy = torch.zeros(self.geometry.shape if self.keep_members else 0)

    def begin_member(self, classes: Classes, weight: float) -> None:
        """Begin a member, to which the next blocks belong."""
        self.total_weight += weight
        self._weight = weight
        self._targets = [
            tuple(self.labels.index(value) for value in targets or (0,)) for targets in classes
        ]
        if self.keep_members:
            background = next(channel for channel, targets in enumerate(classes) if not targets)
            dtype = index_type(max(len(classes), len(self.labels)))
            grid = torch.full(self.geometry.shape, background, dtype=dtype)
            self._members.append(MemberLabels(classes, grid))

    def add(self, block: Block) -> None:
        """Add a block of the member that was started last."""
        try:
            self._add(block)
        except torch.OutOfMemoryError:
            if self._sum.device.type == "cpu":
                raise
            self._move_to_cpu()
            self._sum = self._sum.cpu()
            self._add(block)

    def result(self) -> Probabilities:
        """Return the weighted mean and end the accumulation.

        Probabilities are normalised, and voxels without a prediction are background. Logits must have been added
        for every voxel.
        """
        activation = self.activation
        if self._sums_logits:
            self._sum /= self.total_weight
        else:
            activation = Activation.PROBABILITIES.at(activation.temperature)
            for plane in self._sum.split(1, 1):
                mean = self._normalised(plane.float())
                for total, values, rows in zip(plane, mean, _rows_above(0.0, mean), strict=True):
                    total[rows] = values[rows].to(total.dtype)
        return Probabilities(
            self.labels, self.geometry, self._sum, activation, self.linear, self.reach
        )

    def information(self, fused: Probabilities) -> NativeMap:
        """The mutual information of the members: how much they differ beyond the uncertainty of each.

        It is the entropy of the mean of their probabilities minus the mean of their entropies, in nats, at
        temperature 1 (N. Houlsby et al., Bayesian Active Learning for Classification, 2011). If several labels
        share a channel of a member, the entropy of that member is that of its channels.
        """
        result = self._entropy / -self.total_weight
        total = fused.values if self._mean is None else self._mean
        for plane, values in zip(result.unbind(), total.unbind(1), strict=True):
            mean = values.float()
            if self._mean is not None:
                mean = (
                    mean / self.total_weight if self.activation.regions else self._normalised(mean)
                )
            plane.add_(self.activation.entropy(mean, 0).cpu()).clamp_(min=0.0)
        return NativeMap(result, self.geometry, self.linear)

    def _normalised(self, sums: Tensor) -> Tensor:
        """The mean of probabilities (class, ...); voxels without a prediction are background."""
        values = sums / self.total_weight
        values[0] += (1.0 - values.sum(0)).clamp_(min=0.0)
        return values / values.sum(0)

    def member_values(self, fused: Probabilities) -> list[Tensor]:
        """The label values of each member on its own, int32 (k, j, i).

        Where a member's channel has several target labels (it cannot distinguish left from right), the fused
        probabilities decide among those.
        """
        values = torch.tensor(self.labels, dtype=torch.int32)
        return [values[_resolved(member, fused).long()] for member in self._members]

    def _add(self, block: Block) -> None:
        where = tuple(
            slice(start, start + size)
            for start, size in zip(block.start, block.values.shape[1:], strict=True)
        )
        values = block.values.to(self._sum.device)
        channels: Iterable[Tensor] = values
        rows = _rows_above(NEGLIGIBLE, values) if self._sums_probabilities else None
        if self.vote or self.keep_members:
            best = self.activation.decide(values, 0)
            if self.keep_members:
                self._remember(where, values, best)
            if self.vote:
                channels = ((best == channel).float() for channel in range(len(values)))
        self._add_channels(self._sum[(slice(None), *where)], channels, rows)

    def _remember(self, where: tuple[slice, ...], values: Tensor, best: Tensor) -> None:
        """Keep the member's own classes, and their entropy."""
        channels = self._members[-1].channels
        channels[where] = best.to("cpu", channels.dtype)
        probabilities = self.activation.at(1.0).probabilities(values.float(), 0)
        entropy = self.activation.entropy(probabilities, 0).cpu()
        if self._mean is not None:
            self._add_channels(self._mean[(slice(None), *where)], probabilities.cpu())
        self._entropy[where].add_(entropy, alpha=self._weight)

    def _add_channels(
        self, total: Tensor, channels: Iterable[Tensor], rows: Sequence[Rows] | None = None
    ) -> None:
        """Add the channels (k, j, i) of a member to their target labels in `total` (class, k, j, i).

        `rows` are those of each channel that count; without them, all do.
        """
        counting = itertools.repeat(EVERY_ROW) if rows is None else rows
        for indices, values, part in zip(
            self._targets, channels, counting, strict=rows is not None
        ):
            if len(indices) == 1:
                total[indices[0]][part].add_(values[part], alpha=self._weight)
            else:
                _share_out(total[(slice(None), *part)], indices, values[part] * self._weight)

    def _move_to_cpu(self) -> None:
        self.device = torch.device("cpu")
        note = "The GPU had too little memory for the aggregation, which was done on the CPU."
        logger.warning(note)
        self.notes.append(note)


def _zeros(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    if device.type == "cpu":
        return mapped_zeros(shape, dtype)
    return torch.zeros(shape, dtype=dtype, device=device)


def _rows_above(least: float, values: Tensor) -> list[Rows]:
    """For each class of `values` (class, k, j, i), the box of rows of voxels with all values above `least`."""
    if values.device.type != "cpu" or not values.numel():
        return [EVERY_ROW] * len(values)  # finding them would wait for another device
    found = (values.amax(3) > least).numpy()
    return list(zip(_bounds(np.any(found, axis=2)), _bounds(np.any(found, axis=1)), strict=True))


def _bounds(found: NDArray[np.bool_]) -> list[slice]:
    """For each class, the range of what was found, bool (class, place)."""
    first, last = found.argmax(1), found.shape[1] - found[:, ::-1].argmax(1)
    return [slice(int(a), int(b)) for a, b in zip(first, last * found.any(1), strict=True)]


def _share_out(values: Tensor, indices: tuple[int, ...], mass: Tensor) -> None:
    """Add `mass` (k, j, i) to the classes `indices` of `values` (class, k, j, i), in proportion to these."""
    own = torch.stack([values[index].float() for index in indices])
    total = own.sum(0)
    share = torch.where(total > 0, own / total.clamp(min=1e-12), 1.0 / len(indices))
    for index, part in zip(indices, mass * share, strict=True):
        values[index].add_(part)


def side_aware_first(members: Sequence[Member]) -> list[Member]:
    """Sort members into the order in which they are added: first those whose channels have one label at most."""
    return sorted(members, key=lambda member: any(len(targets) > 1 for targets in member.classes))


def fuse(
    parts: Sequence[ProbabilitySource], weights: Sequence[float], labels: tuple[int, ...]
) -> ProbabilitySource:
    """Combine parts on different grids into one probability source of the classes `labels`.

    Raises:
        RequestError: some parts predict classes, others regions that may overlap.
    """
    if len(parts) == 1 and parts[0].labels == labels:
        return parts[0]
    if len({part.activation.regions for part in parts}) != 1:
        raise RequestError(
            "A model of overlapping regions and one of classes cannot be joined. Use --fusion vote, or run "
            "them one after the other."
        )
    return JointProbabilities(parts, weights, labels)


@dataclass(frozen=True)
class PartPrediction:
    """The predictions of the members of one part, which share a native grid.

    Attributes:
        probabilities: the fused probabilities of the members.
        weight: the weight of the part in the fusion with other parts.
        geometry: the native grid.
        names: names of the members.
        members: the label values of each member, int32 (k, j, i), if they are requested.
        information: the mutual information of the members, if it is requested.
    """

    probabilities: ProbabilitySource
    weight: float
    geometry: Geometry
    names: tuple[str, ...]
    members: Sequence[Tensor] = ()
    information: NativeMap | None = None


@dataclass(frozen=True)
class Ensemble:
    """The predictions of all parts as one. Slabs are read along the first of the output grid's `axes`.

    Attributes:
        parts: at least one.
        labels: label values of the classes; the first is 0, background.
        axes: order of the output grid's axes in which its slabs must be read.

    Raises:
        RequestError: some parts predict classes, others regions that may overlap.
    """

    parts: Sequence[PartPrediction]
    labels: tuple[int, ...]
    axes: tuple[int, int, int] = (0, 1, 2)

    def __post_init__(self) -> None:
        self.probabilities  # noqa: B018 - parts that cannot be joined are refused at once

    @functools.cached_property
    def probabilities(self) -> ProbabilitySource:
        """The weighted mean of the parts."""
        weights = [part.weight for part in self.parts]
        return fuse([part.probabilities for part in self.parts], weights, self.labels)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all members."""
        return tuple(name for part in self.parts for name in part.names)

    @property
    def members_apart(self) -> int:
        """The number of members whose own labels were kept; 0 if these were not requested."""
        return sum(len(part.members) for part in self.parts)

    @property
    def informed(self) -> bool:
        """Whether `disagreement` can be read."""
        return any(part.information is not None for part in self.parts)

    def member_labels(self, slab: Slab) -> Tensor:
        """Labels of all members on a slab, (member, k, j, i)."""
        return torch.stack(
            [
                read_nearest(labels, part.geometry, slab)
                for part in self.parts
                for labels in part.members
            ]
        )

    def disagreement(self, slab: Slab) -> Tensor:
        """Mutual information of all members on a slab, in nats, float32 (k, j, i).

        It is the mean over the parts, plus the disagreement between parts on different grids.
        """
        total = torch.zeros(slab.shape)
        weights = sum(part.weight for part in self.parts)
        for part in self.parts:
            if part.information is not None:
                found = read_information(part.information, slab)
                total.add_(found, alpha=part.weight / weights)
        if isinstance(self.probabilities, JointProbabilities):
            total += self.probabilities.divergence(slab)
        return total


@dataclass(frozen=True)
class JointLabels:
    """The labels of several models together.

    Attributes:
        labels: each structure once.
        renamed: for each model, the value in `labels` of each of its own label values.
    """

    labels: tuple[Label, ...]
    renamed: tuple[dict[int, int], ...]


def join_labels(cards: Sequence[ModelCard]) -> JointLabels:
    """Join the labels of models by name; a value that another structure already has is replaced by a free one."""
    joined: dict[str, Label] = {}
    renamed = []
    for card in cards:
        for label in card.labels:
            taken = {known.value for known in joined.values()}
            if label.name not in joined:
                value = label.value if label.value not in taken else max(taken) + 1
                joined[label.name] = replace(label, value=value)
        renamed.append({label.value: joined[label.name].value for label in card.labels})
    return JointLabels(tuple(joined.values()), tuple(renamed))


def _resolved(member: MemberLabels, fused: Probabilities) -> Tensor:
    lookup = torch.zeros(len(member.classes), dtype=member.channels.dtype)
    for channel, targets in enumerate(member.classes):
        lookup[channel] = fused.labels.index(targets[0]) if targets else 0
    result = lookup[member.channels.long()]
    for channel, targets in enumerate(member.classes):
        if len(targets) > 1:
            where = member.channels == channel
            indices = torch.tensor([fused.labels.index(value) for value in targets])
            candidates = torch.stack([fused.values[int(index)].cpu()[where] for index in indices])
            result[where] = indices[candidates.argmax(0)].to(result.dtype)
    return result

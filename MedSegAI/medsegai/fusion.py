"""Members joined into one answer.

`Accumulator` takes the blocks of all members that share a native grid and keeps one sum of weighted
probabilities in half precision, so memory does not grow with the number of members. Members on other grids
get accumulators of their own; `fuse` joins those on the output grid.

The weighted mean of softmax probabilities over views is the aggregation of QuickNAT (Roy et al., NeuroImage
2019, section 2.4). A channel that cannot tell left from right feeds both sides. There each side gets all of its
probability; here they share it as the members that know the side share theirs, so the sum stays one, and a voxel
that is surely left is not half uncertain.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from medsegai.probabilities import Block, JointProbabilities, Probabilities, Readable, read_nearest
from medsegai.volume import Geometry

logger = logging.getLogger(__name__)

Classes = Sequence[Sequence[int]]
"""For each output channel of a member, the label values it feeds; empty is background."""


@dataclass
class MemberLabels:
    """The most probable channel of one member at each native voxel, uint8 (k, j, i)."""

    classes: Classes
    channels: Tensor


@dataclass
class Accumulator:
    """Sum of the weighted probabilities of members on one native grid.

    Attributes:
        labels: label values of the classes; the first is 0, background.
        geometry: the native grid, or the box of it that members answer for.
        device: where the sum is kept. It moves to the CPU when the device runs out of memory.
        vote: members count with one vote for their most probable class, not with probabilities.
        keep_members: remember each member's own labels, for `member_labels`.
        notes: what had to be changed on the way, in words.
    """

    labels: tuple[int, ...]
    geometry: Geometry
    device: torch.device
    vote: bool = False
    keep_members: bool = False
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.total_weight = 0.0
        self._members: list[MemberLabels] = []
        self._shared: dict[tuple[int, ...], Tensor] = {}
        shape = (len(self.labels), *self.geometry.shape)
        try:
            self._sum = torch.zeros(shape, dtype=torch.float16, device=self.device)
        except torch.OutOfMemoryError:
            self._move_to_cpu()
            self._sum = torch.zeros(shape, dtype=torch.float16)

    def begin_member(self, classes: Classes, weight: float) -> None:
        """Say whose blocks come next."""
        self.total_weight += weight
        self._weight = weight
        self._fed = [
            tuple(self.labels.index(value) for value in feeds or (0,)) for feeds in classes
        ]
        if self.keep_members:
            background = next(channel for channel, feeds in enumerate(classes) if not feeds)
            grid = torch.full(self.geometry.shape, background, dtype=torch.uint8)
            self._members.append(MemberLabels(classes, grid))

    def add(self, block: Block) -> None:
        """Add a block of the member that was begun last."""
        try:
            self._add(block)
        except torch.OutOfMemoryError:
            if self._sum.device.type == "cpu":
                raise
            self._move_to_cpu()
            self._sum = self._sum.cpu()
            self._shared = {indices: mass.cpu() for indices, mass in self._shared.items()}
            self._add(block)

    def result(self) -> Probabilities:
        """The weighted mean, normalised. What no member spoke about is background. Ends the accumulation."""
        for k, plane in enumerate(self._sum.unbind(1)):
            values = plane.float()
            for indices, mass in self._shared.items():
                _share_out(values, indices, mass[k].float())
            values /= self.total_weight
            values[0] += (1.0 - values.sum(0)).clamp_(min=0.0)
            plane.copy_(values / values.sum(0))
        return Probabilities(self.labels, self.geometry, self._sum)

    def member_labels(self, fused: Probabilities) -> list[Tensor]:
        """Each member's own class index, uint8 (k, j, i).

        Where a member's channel feeds several labels (it does not know left from right), the fused
        probabilities decide among those.
        """
        return [_resolved(member, fused) for member in self._members]

    def _add(self, block: Block) -> None:
        where = tuple(
            slice(start, start + size)
            for start, size in zip(block.start, block.values.shape[1:], strict=True)
        )
        values = block.values.to(self._sum.device)
        best = values.argmax(0) if self.vote or self.keep_members else None
        if best is not None and self.keep_members:
            self._members[-1].channels[where] = best.to("cpu", torch.uint8)
        for channel, indices in enumerate(self._fed):
            answer = values[channel] if best is None or not self.vote else (best == channel).float()
            self._target(indices)[where].add_(answer, alpha=self._weight)

    def _target(self, indices: tuple[int, ...]) -> Tensor:
        """Where a channel that feeds these classes is added up: their sum, or one that they share later."""
        if len(indices) == 1:
            return self._sum[indices[0]]
        if indices not in self._shared:
            self._shared[indices] = torch.zeros_like(self._sum[0])
        return self._shared[indices]

    def _move_to_cpu(self) -> None:
        self.device = torch.device("cpu")
        note = "The GPU had too little memory for the aggregation, which was done on the CPU."
        logger.warning(note)
        self.notes.append(note)


def _share_out(values: Tensor, indices: tuple[int, ...], mass: Tensor) -> None:
    """Give `mass` (j, i) to the classes `indices` of `values` (class, j, i), in proportion to what they have."""
    chosen = list(indices)
    own = values[chosen]
    total = own.sum(0)
    share = torch.where(total > 0, own / total.clamp(min=1e-12), 1.0 / len(chosen))
    values[chosen] = own + mass * share


def fuse(parts: Sequence[Probabilities], weights: Sequence[float]) -> Readable:
    """One readable answer from the accumulated parts, one part for each native grid."""
    return parts[0] if len(parts) == 1 else JointProbabilities(parts, weights)


def read_member_labels(
    members: Sequence[tuple[Tensor, Geometry]], target: Geometry, k0: int, k1: int
) -> Tensor:
    """Class indices of all members on planes k0 to k1 of `target`, (member, k1 - k0, j, i)."""
    return torch.stack([read_nearest(labels, native, target, k0, k1) for labels, native in members])


def _resolved(member: MemberLabels, fused: Probabilities) -> Tensor:
    lookup = torch.zeros(len(member.classes), dtype=torch.uint8)
    for channel, feeds in enumerate(member.classes):
        lookup[channel] = fused.labels.index(feeds[0]) if feeds else 0
    result = lookup[member.channels.long()]
    for channel, feeds in enumerate(member.classes):
        if len(feeds) > 1:
            where = member.channels == channel
            indices = torch.tensor([fused.labels.index(value) for value in feeds])
            candidates = torch.stack([fused.values[int(index)].cpu()[where] for index in indices])
            result[where] = indices[candidates.argmax(0)].to(torch.uint8)
    return result

"""What members answer, and how it is read on any grid without ever standing there in full.

A member answers in `Block`s on its native grid. Fusion adds them up into `Probabilities`, which are read slab by
slab on the output grid. Labels are found by corner consensus: linear interpolation is convex, so where the eight
native voxels around a point agree on the most probable class, that class is the answer, and only the few points
near a boundary are interpolated.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from medsegai.volume import Geometry

POINTS_AT_ONCE = 1 << 18
"""Points interpolated together: bounds the extra memory to a few dozen megabytes."""

CERTAIN = 1e-3
"""Entropy in nats that counts as none: the most probable class has more than 99.98 %."""


@dataclass(frozen=True)
class Block:
    """A member's answer for a box of its native grid.

    Attributes:
        start: first voxel of the box, (k, j, i).
        values: probability of each output channel of the member, (channel, k, j, i), any float type.
    """

    start: tuple[int, int, int]
    values: Tensor


class Readable(Protocol):
    """Class probabilities that can be read on any grid, slab by slab. Class 0 is background."""

    labels: tuple[int, ...]

    def read(self, target: Geometry, k0: int, k1: int) -> Tensor: ...

    def argmax(self, target: Geometry, k0: int, k1: int) -> Tensor: ...

    def entropy(self, target: Geometry, k0: int, k1: int) -> Tensor: ...


class Probabilities:
    """Class probabilities on a native grid; outside of it all is background.

    Args:
        labels: label value of each class; the first is 0, background.
        geometry: the native grid.
        values: (class, k, j, i), summing to one over the classes; float16 is enough.
    """

    def __init__(self, labels: Sequence[int], geometry: Geometry, values: Tensor) -> None:
        if tuple(values.shape) != (len(labels), *geometry.shape) or labels[0] != 0:
            raise ValueError(
                f"{tuple(values.shape)} values do not fit {len(labels)} classes on {geometry.shape}"
            )
        self.labels = tuple(labels)
        self.geometry = geometry
        self.values = values

    @cached_property
    def native_argmax(self) -> Tensor:
        """Most probable class of each native voxel, uint8 or int16 (k, j, i)."""
        dtype = torch.uint8 if len(self.labels) <= 256 else torch.int16
        return torch.stack(
            [plane.float().max(0).indices.to(dtype) for plane in self.values.unbind(1)]
        )

    @cached_property
    def native_entropy(self) -> Tensor:
        """Entropy in nats of each native voxel, float32 (k, j, i)."""
        return torch.stack([entropy(plane.float()) for plane in self.values.unbind(1)])

    def read(self, target: Geometry, k0: int, k1: int) -> Tensor:
        """Probabilities on planes k0 to k1 of `target`, float32 (class, k1 - k0, j, i)."""
        points = _Points(self.geometry, target, (k0, k1), self.values.device)
        result = torch.zeros(points.count, len(self.labels), device=self.values.device)
        result[:, 0] = 1.0
        points.interpolate_into(result, self.values, points.inside)
        return result.T.reshape(-1, *points.shape)

    def argmax(self, target: Geometry, k0: int, k1: int) -> Tensor:
        """Most probable class on planes k0 to k1 of `target`, (k1 - k0, j, i): the argmax of `read`."""
        points = _Points(self.geometry, target, (k0, k1), self.values.device)
        result = points.at_base(self.native_argmax).masked_fill_(~points.inside, 0)
        unsure = points.inside & ~points.at_base(self._unanimous)
        flat = result.view(-1)
        for chosen, values in points.interpolate(self.values, unsure):
            flat[chosen] = values.argmax(1).to(flat.dtype)
        return result

    def entropy(self, target: Geometry, k0: int, k1: int) -> Tensor:
        """Native entropy, linearly interpolated, on planes k0 to k1 of `target`: float32 (k1 - k0, j, i).

        Where all native voxels around a point are certain it is 0.
        """
        points = _Points(self.geometry, target, (k0, k1), self.values.device)
        result = torch.zeros(points.count, 1, device=self.values.device)
        unsure = points.inside & points.at_base(self._uncertain)
        points.interpolate_into(result, self.native_entropy[None], unsure)
        return result.reshape(points.shape)

    @cached_property
    def _unanimous(self) -> Tensor:
        """Whether a voxel and its seven neighbours towards higher k, j, i share one class, bool (k, j, i)."""
        values = self.native_argmax
        return _over_cells(torch.minimum, values) == _over_cells(torch.maximum, values)

    @cached_property
    def _uncertain(self) -> Tensor:
        """Whether a voxel or one of these neighbours has more entropy than `CERTAIN`, bool (k, j, i)."""
        return _over_cells(torch.maximum, self.native_entropy) > CERTAIN


class JointProbabilities:
    """Weighted mean of probabilities that live on different grids, joined on the output grid."""

    def __init__(self, parts: Sequence[Probabilities], weights: Sequence[float]) -> None:
        if len({part.labels for part in parts}) != 1:
            raise ValueError("only probabilities of the same classes can be joined")
        self.labels = parts[0].labels
        self._parts = list(zip(parts, [weight / sum(weights) for weight in weights], strict=True))

    def read(self, target: Geometry, k0: int, k1: int) -> Tensor:
        """As `Probabilities.read`."""
        return torch.stack(
            [part.read(target, k0, k1).cpu() * weight for part, weight in self._parts]
        ).sum(0)

    def argmax(self, target: Geometry, k0: int, k1: int) -> Tensor:
        """As `Probabilities.argmax`."""
        return self.read(target, k0, k1).argmax(0)

    def entropy(self, target: Geometry, k0: int, k1: int) -> Tensor:
        """Entropy in nats of the mean, computed on the output grid."""
        return entropy(self.read(target, k0, k1))


def entropy(probabilities: Tensor) -> Tensor:
    """Entropy in nats over the first axis, (class, ...) to (...); 0 log 0 is 0."""
    return torch.special.entr(probabilities.clamp(0.0, 1.0)).sum(0)


def read_nearest(values: Tensor, native: Geometry, target: Geometry, k0: int, k1: int) -> Tensor:
    """Native `values` (k, j, i) at the voxels of `target` nearest to them, planes k0 to k1; 0 outside."""
    points = _Points(native, target, (k0, k1), values.device)
    return points.at_nearest(values).masked_fill_(~points.inside, 0)


class _Points:
    """Where the voxels of some planes of `target` lie on the native grid.

    A point counts as inside up to half a voxel beyond the outermost centres; there the edge value holds.
    Coordinates stay as small as broadcasting allows: on grids whose axes are parallel, each depends on one
    axis of the target only.
    """

    def __init__(
        self, native: Geometry, target: Geometry, planes: tuple[int, int], device: torch.device
    ) -> None:
        matrix = native.ras_to_ijk @ target.ijk_to_ras
        self.shape = (planes[1] - planes[0], *target.shape[1:])
        self.count = math.prod(self.shape)
        self._native = native.shape
        self._device = device
        self.inside = torch.ones(self.shape, dtype=torch.bool, device=device)
        self._base: list[Tensor] = []
        self._part: list[Tensor] = []
        for axis, size in enumerate(native.shape):
            position = _position(matrix[2 - axis], self.shape, planes[0]).to(device)
            self.inside &= (position > -0.5) & (position < size - 0.5)
            position = position.clamp(0, size - 1)
            base = position.floor().clamp_(max=max(size - 2, 0))
            self._base.append(base.long())
            self._part.append((position - base).float())

    def at_base(self, values: Tensor) -> Tensor:
        """Native `values` (k, j, i) at the corner of the cell around each point."""
        return self._take(values, self._base)

    def at_nearest(self, values: Tensor) -> Tensor:
        """Native `values` (k, j, i) at the voxel nearest to each point."""
        nearest = [base + (part > 0.5) for base, part in zip(self._base, self._part, strict=True)]
        return self._take(values, nearest)

    def interpolate(self, values: Tensor, chosen: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Trilinear interpolation of (class, k, j, i) where `chosen` (k, j, i) is true.

        Yields flat indices of points, and their values as float32 (points, class).
        """
        indices = chosen.flatten().nonzero()[:, 0]
        if not indices.numel():
            return
        low = [int(base.min()) for base in self._base]
        high = [int(base.max()) + 2 for base in self._base]
        box = values[:, low[0] : high[0], low[1] : high[1], low[2] : high[2]]
        table = box.permute(1, 2, 3, 0).float().reshape(-1, values.shape[0])
        for part in indices.split(POINTS_AT_ONCE):
            corners, weights = self._corners(part, low, tuple(box.shape[1:]))
            yield part, F.embedding_bag(corners, table, per_sample_weights=weights, mode="sum")

    def interpolate_into(self, result: Tensor, values: Tensor, chosen: Tensor) -> None:
        """As `interpolate`, written into `result` (points, class)."""
        for part, interpolated in self.interpolate(values, chosen):
            result[part] = interpolated

    def _take(self, values: Tensor, where: Sequence[Tensor]) -> Tensor:
        _, rows, columns = self._native
        k, j, i = where
        flat = (k * rows + j) * columns + i
        return values.reshape(-1)[flat.expand(self.shape)]

    def _corners(
        self, chosen: Tensor, low: Sequence[int], box: tuple[int, ...]
    ) -> tuple[Tensor, Tensor]:
        """Rows of the eight corners around each chosen point in a table of a box, and their weights."""
        where = torch.unravel_index(chosen, self.shape)
        base = [self._base[axis].expand(self.shape)[where] - low[axis] for axis in range(3)]
        part = [self._part[axis].expand(self.shape)[where] for axis in range(3)]
        rows = torch.empty(chosen.numel(), 8, dtype=torch.long, device=self._device)
        weights = torch.ones(chosen.numel(), 8, device=self._device)
        first = (base[0] * box[1] + base[1]) * box[2] + base[2]
        for corner, steps in enumerate(itertools.product((0, 1), repeat=3)):
            reachable = [step if box[axis] > 1 else 0 for axis, step in enumerate(steps)]
            offset = (reachable[0] * box[1] + reachable[1]) * box[2] + reachable[2]
            rows[:, corner] = first + offset
            for axis, step in enumerate(steps):
                weights[:, corner] *= part[axis] if step else 1 - part[axis]
        return rows, weights


def _position(row: NDArray[np.float64], shape: Sequence[int], first_plane: int) -> Tensor:
    """One native coordinate of each target voxel: broadcastable to `shape`, of size 1 where it is constant.

    Positions within a thousandth of a voxel centre are put on it, so that equal grids copy exactly.
    """
    position = torch.full(
        (1, 1, 1), float(row[3]) + float(row[2]) * first_plane, dtype=torch.float64
    )
    for axis, size in enumerate(shape):
        step = float(row[2 - axis])
        if abs(step) * size > 1e-4:
            along = torch.arange(size, dtype=torch.float64) * step
            position = position + along.reshape([-1 if n == axis else 1 for n in range(3)])
    nearest = position.round()
    return torch.where((position - nearest).abs() < 1e-3, nearest, position)


def _over_cells(combine: Callable[[Tensor, Tensor], Tensor], values: Tensor) -> Tensor:
    """`combine` over each voxel (k, j, i) and its seven neighbours towards higher k, j, i."""
    for axis in range(3):
        values = combine(values, _shifted(values, axis))
    return values


def _shifted(values: Tensor, axis: int) -> Tensor:
    """The next value along `axis`; the last one keeps its own."""
    size = values.shape[axis]
    return torch.cat((values.narrow(axis, 1, size - 1), values.narrow(axis, size - 1, 1)), axis)

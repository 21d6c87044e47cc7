"""What members answer, and how it is read on any grid without ever standing there in full.

A member answers in `Block`s on its native grid. Fusion adds them up into `Probabilities`, which are read slab by
slab on the output grid. Labels are found by corner consensus: linear interpolation is convex, so where the eight
native voxels around a point agree on the most probable class, that class is the answer, and only the few points
near a boundary are interpolated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from medsegai.volume import Geometry

POINTS_AT_ONCE = 1 << 18
"""Points interpolated together: bounds the extra memory to a few dozen megabytes."""


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
        planes = [self.values[:, k].argmax(0).to(dtype) for k in range(self.geometry.shape[0])]
        return torch.stack(planes)

    @cached_property
    def native_entropy(self) -> Tensor:
        """Entropy in nats of each native voxel, float32 (k, j, i)."""
        return torch.stack(
            [entropy(self.values[:, k].float()) for k in range(self.geometry.shape[0])]
        )

    def read(self, target: Geometry, k0: int, k1: int) -> Tensor:
        """Probabilities on planes k0 to k1 of `target`, float32 (class, k1 - k0, j, i)."""
        points = _Points(self.geometry, target, k0, k1, self.values.device)
        result = torch.zeros(len(self.labels), points.inside.numel(), device=self.values.device)
        result[0] = 1.0
        for chosen in points.inside.flatten().nonzero()[:, 0].split(POINTS_AT_ONCE):
            result[:, chosen] = points.interpolate(self.values, chosen)
        return result.reshape(-1, *points.inside.shape)

    def argmax(self, target: Geometry, k0: int, k1: int) -> Tensor:
        """Most probable class on planes k0 to k1 of `target`, (k1 - k0, j, i); the argmax of `read`."""
        points = _Points(self.geometry, target, k0, k1, self.values.device)
        result = points.at_base(self.native_argmax)
        result[~points.inside] = 0
        unsure = points.inside & ~points.at_base(self._unanimous)
        flat = result.view(-1)
        for chosen in unsure.flatten().nonzero()[:, 0].split(POINTS_AT_ONCE):
            flat[chosen] = points.interpolate(self.values, chosen).argmax(0).to(flat.dtype)
        return result

    def entropy(self, target: Geometry, k0: int, k1: int) -> Tensor:
        """Native entropy, linearly interpolated, on planes k0 to k1 of `target`: float32 (k1 - k0, j, i)."""
        points = _Points(self.geometry, target, k0, k1, self.values.device)
        result = torch.zeros(points.inside.numel(), device=self.values.device)
        for chosen in points.inside.flatten().nonzero()[:, 0].split(POINTS_AT_ONCE):
            result[chosen] = points.interpolate(self.native_entropy[None], chosen)[0]
        return result.reshape(points.inside.shape)

    @cached_property
    def _unanimous(self) -> Tensor:
        """Whether a voxel and its seven neighbours towards higher k, j, i share one class, bool (k, j, i)."""
        lowest = highest = self.native_argmax
        for axis in range(3):
            lowest = torch.minimum(lowest, _shifted(lowest, axis))
            highest = torch.maximum(highest, _shifted(highest, axis))
        return lowest == highest


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
    points = _Points(native, target, k0, k1, values.device)
    result = points.at_nearest(values)
    result[~points.inside] = 0
    return result


class _Points:
    """Where the voxels of planes k0 to k1 of `target` lie on the native grid.

    A point counts as inside up to half a voxel beyond the outermost centres; there the edge value holds.
    """

    def __init__(
        self, native: Geometry, target: Geometry, k0: int, k1: int, device: torch.device
    ) -> None:
        matrix = torch.from_numpy(native.ras_to_ijk @ target.ijk_to_ras).to(torch.float64)
        ranges = [range(target.shape[2]), range(target.shape[1]), range(k0, k1)]
        ijk = [torch.tensor(list(r), dtype=torch.float64) for r in ranges]
        self.shape = native.shape
        self.inside = torch.ones(k1 - k0, *target.shape[1:], dtype=torch.bool, device=device)
        self._base, self._part = [], []
        for axis in range(3):
            row = matrix[2 - axis]
            i, j, k = ((row[n] * ijk[n]).to(device, torch.float32) for n in range(3))
            position = k[:, None, None] + (j[:, None] + i) + float(row[3])
            self.inside &= (position > -0.5) & (position < self.shape[axis] - 0.5)
            position = _snapped(position).clamp_(0, self.shape[axis] - 1)
            base = position.floor().clamp_(max=max(self.shape[axis] - 2, 0))
            self._base.append(base.to(torch.int32))
            self._part.append(position - base)

    @cached_property
    def _flat_base(self) -> Tensor:
        k, j, i = self._base
        return (k.long() * self.shape[1] + j) * self.shape[2] + i

    def at_base(self, values: Tensor) -> Tensor:
        """Native `values` (k, j, i) at the corner of the cell around each point."""
        return values.reshape(-1)[self._flat_base]

    def at_nearest(self, values: Tensor) -> Tensor:
        k, j, i = (base + (part > 0.5) for base, part in zip(self._base, self._part, strict=True))
        return values.reshape(-1)[(k.long() * self.shape[1] + j) * self.shape[2] + i]

    def interpolate(self, values: Tensor, chosen: Tensor) -> Tensor:
        """Trilinear interpolation of (class, k, j, i) at flat points `chosen`: float32 (class, points)."""
        classes = values.reshape(values.shape[0], -1)
        base = self._flat_base.view(-1)[chosen]
        parts = [part.view(-1)[chosen] for part in self._part]
        strides = (self.shape[1] * self.shape[2], self.shape[2], 1)
        result = torch.zeros(values.shape[0], chosen.numel(), device=values.device)
        for corner in range(8):
            bits = [(corner >> axis) & 1 for axis in range(3)]
            if any(bit and self.shape[axis] < 2 for axis, bit in enumerate(bits)):
                continue
            weight = torch.ones_like(parts[0])
            offset = 0
            for axis, bit in enumerate(bits):
                weight = weight * (parts[axis] if bit else 1 - parts[axis])
                offset += bit * strides[axis]
            result += classes[:, base + offset] * weight
        return result


def _snapped(position: Tensor) -> Tensor:
    """Positions within a thousandth of a voxel centre are put on it, so that equal grids copy exactly."""
    nearest = position.round()
    return torch.where((position - nearest).abs() < 1e-3, nearest, position)


def _shifted(values: Tensor, axis: int) -> Tensor:
    """The next value along `axis`; the last one keeps its own."""
    size = values.shape[axis]
    return torch.cat((values.narrow(axis, 1, size - 1), values.narrow(axis, size - 1, 1)), axis)

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
from enum import Enum
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from medsegai.volume import Geometry

VALUES_AT_ONCE = 1 << 23
"""Points times classes that are interpolated together: bounds the extra memory to a few dozen megabytes."""

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


class Scale(Enum):
    """What native values are, which tells how they become probabilities and labels.

    PROBABILITIES sum to one. LOGITS become probabilities by softmax. REGIONS are logits of regions that may
    overlap, each with a sigmoid of its own; a voxel gets the last region of those it lies in, and channel 0
    stands for none of them (nnU-Net's `regions_class_order`).
    """

    PROBABILITIES = "probabilities"
    LOGITS = "logits"
    REGIONS = "regions"

    def probabilities(self, values: Tensor, axis: int) -> Tensor:
        """Probabilities of the classes along `axis`."""
        if self is Scale.LOGITS:
            return values.softmax(axis)
        return values.sigmoid() if self is Scale.REGIONS else values

    def decide(self, values: Tensor, axis: int) -> Tensor:
        """Class index of native values: the most probable class, or the last region with more than one half."""
        return _last_region(values, axis, 0.0) if self is Scale.REGIONS else values.argmax(axis)

    def decide_probabilities(self, values: Tensor, axis: int) -> Tensor:
        """As `decide`, of what `probabilities` gives."""
        return _last_region(values, axis, 0.5) if self is Scale.REGIONS else values.argmax(axis)

    def entropy(self, probabilities: Tensor, axis: int) -> Tensor:
        """Entropy in nats; of overlapping regions the sum over them."""
        result = torch.special.entr(probabilities.clamp(0.0, 1.0))
        if self is Scale.REGIONS:
            result = result + torch.special.entr(1.0 - probabilities.clamp(0.0, 1.0))
        return result.sum(axis)


class Readable(Protocol):
    """Class probabilities that can be read on any grid, slab by slab. Class 0 is background.

    `argmax` gives class indices as `Scale.decide` finds them.
    """

    labels: tuple[int, ...]
    scale: Scale

    def read(self, target: Geometry, k0: int, k1: int) -> Tensor: ...

    def argmax(self, target: Geometry, k0: int, k1: int) -> Tensor: ...

    def entropy(self, target: Geometry, k0: int, k1: int) -> Tensor: ...

    def consensus(self, target: Geometry, k0: int, k1: int) -> tuple[Tensor, Tensor]: ...

    def read_points(self, target: Geometry, k0: int, k1: int, points: Tensor) -> Tensor: ...


class Probabilities:
    """Values of classes on a native grid; outside of it all is background.

    Args:
        labels: label value of each class; the first is 0, background.
        geometry: the native grid.
        values: (class, k, j, i); float16 is enough for probabilities.
        scale: what the values are.
        linear: for each native axis (k, j, i) whether values are interpolated along it or taken from the
            nearest voxel, as nnU-Net does along the thick axis of anisotropic scans.
    """

    def __init__(
        self,
        labels: Sequence[int],
        geometry: Geometry,
        values: Tensor,
        scale: Scale = Scale.PROBABILITIES,
        linear: Sequence[bool] = (True, True, True),
    ) -> None:
        if tuple(values.shape) != (len(labels), *geometry.shape) or labels[0] != 0:
            raise ValueError(
                f"{tuple(values.shape)} values do not fit {len(labels)} classes on {geometry.shape}"
            )
        self.labels = tuple(labels)
        self.geometry = geometry
        self.values = values
        self.scale = scale
        self.linear = tuple(linear)
        self._last: tuple[Geometry, int, int, _Points] | None = None

    @cached_property
    def native_argmax(self) -> Tensor:
        """Class index of each native voxel, uint8 or int16 (k, j, i)."""
        dtype = index_type(len(self.labels))
        return torch.stack(
            [self.scale.decide(plane.float(), 0).to(dtype) for plane in self.values.unbind(1)]
        )

    @cached_property
    def native_entropy(self) -> Tensor:
        """Entropy in nats of each native voxel, float32 (k, j, i)."""
        return torch.stack(
            [
                self.scale.entropy(self.scale.probabilities(plane.float(), 0), 0)
                for plane in self.values.unbind(1)
            ]
        )

    def read(self, target: Geometry, k0: int, k1: int) -> Tensor:
        """Probabilities on planes k0 to k1 of `target`, float32 (class, k1 - k0, j, i)."""
        points = self._points(target, k0, k1)
        every = torch.arange(points.count, device=self.values.device)
        return self.read_points(target, k0, k1, every).T.reshape(-1, *points.shape)

    def read_points(self, target: Geometry, k0: int, k1: int, points: Tensor) -> Tensor:
        """Probabilities at some voxels of planes k0 to k1 of `target`, float32 (point, class).

        Args:
            points: flat indices into these planes.
        """
        where = self._points(target, k0, k1)
        result = torch.zeros(points.numel(), len(self.labels), device=self.values.device)
        result[:, 0] = 1.0
        chosen = where.inside.reshape(-1)[points].nonzero()[:, 0]
        for part, values in where.interpolate(self.values, points[chosen]):
            result[chosen[part]] = self.scale.probabilities(values, 1)
        return result

    def consensus(self, target: Geometry, k0: int, k1: int) -> tuple[Tensor, Tensor]:
        """What is known without interpolating on planes k0 to k1 of `target`.

        Returns:
            Class indices (k1 - k0, j, i), and whether they are certain because all native voxels around the
            point agree, bool of the same shape.
        """
        points = self._points(target, k0, k1)
        result = points.at_base(self.native_argmax).masked_fill_(~points.inside, 0)
        return result, ~points.inside | points.at_base(self._unanimous)

    def argmax(self, target: Geometry, k0: int, k1: int) -> Tensor:
        """Class index on planes k0 to k1 of `target`, (k1 - k0, j, i): what `read` would decide."""
        result, certain = self.consensus(target, k0, k1)
        flat = result.view(-1)
        unsure = (~certain).reshape(-1).nonzero()[:, 0]
        for part, values in self._points(target, k0, k1).interpolate(self.values, unsure):
            flat[unsure[part]] = self.scale.decide(values, 1).to(flat.dtype)
        return result

    def entropy(self, target: Geometry, k0: int, k1: int) -> Tensor:
        """Native entropy, linearly interpolated, on planes k0 to k1 of `target`: float32 (k1 - k0, j, i).

        Where all native voxels around a point are certain it is 0.
        """
        points = self._points(target, k0, k1)
        result = torch.zeros(points.count, device=self.values.device)
        unsure = (points.inside & points.at_base(self._uncertain)).reshape(-1).nonzero()[:, 0]
        for part, values in points.interpolate(self.native_entropy[None], unsure):
            result[unsure[part]] = values[:, 0]
        return result.reshape(points.shape)

    def _points(self, target: Geometry, k0: int, k1: int) -> _Points:
        """Where these planes lie; the last ones are remembered, for one slab is read in several ways."""
        if self._last is None or self._last[0] is not target or self._last[1:3] != (k0, k1):
            points = _Points(self.geometry, target, (k0, k1), self.values.device, self.linear)
            self._last = (target, k0, k1, points)
        return self._last[3]

    @cached_property
    def _unanimous(self) -> Tensor:
        """Whether a voxel and its seven neighbours towards higher k, j, i share one class, bool (k, j, i)."""
        values = self.native_argmax
        return _over_cells(torch.minimum, values) == _over_cells(torch.maximum, values)

    @cached_property
    def _uncertain(self) -> Tensor:
        """Whether a voxel or one of these neighbours has more entropy than `CERTAIN`, bool (k, j, i)."""
        return _over_cells(torch.maximum, self.native_entropy) > CERTAIN


class StreamedProbabilities:
    """Values that come slab by slab, in order of the native planes, and are dropped once they are read.

    It can be read like `Probabilities`, but once, with slabs of the target that move the way the native planes
    do; so neither the values of the whole grid nor their sum ever stand in memory.

    Args:
        labels, geometry, scale, linear: as in `Probabilities`.
        slabs: native values (class, planes, j, i), one slab after another without gaps.
    """

    def __init__(
        self,
        labels: Sequence[int],
        geometry: Geometry,
        slabs: Iterator[Tensor],
        scale: Scale,
        linear: Sequence[bool] = (True, True, True),
    ) -> None:
        self.labels, self.geometry = tuple(labels), geometry
        self.scale, self.linear = scale, tuple(linear)
        self._slabs = slabs
        self._first = 0
        self._end = 0
        self._window: Probabilities | None = None

    def read(self, target: Geometry, k0: int, k1: int) -> Tensor:
        """As `Probabilities.read`."""
        return self._at(target, k0, k1).read(target, k0, k1)

    def read_points(self, target: Geometry, k0: int, k1: int, points: Tensor) -> Tensor:
        """As `Probabilities.read_points`."""
        return self._at(target, k0, k1).read_points(target, k0, k1, points)

    def consensus(self, target: Geometry, k0: int, k1: int) -> tuple[Tensor, Tensor]:
        """As `Probabilities.consensus`."""
        return self._at(target, k0, k1).consensus(target, k0, k1)

    def argmax(self, target: Geometry, k0: int, k1: int) -> Tensor:
        """As `Probabilities.argmax`."""
        return self._at(target, k0, k1).argmax(target, k0, k1)

    def entropy(self, target: Geometry, k0: int, k1: int) -> Tensor:
        """As `Probabilities.entropy`."""
        return self._at(target, k0, k1).entropy(target, k0, k1)

    def _at(self, target: Geometry, k0: int, k1: int) -> Probabilities:
        """The native planes that planes k0 to k1 of `target` need."""
        size = self.geometry.shape[0]
        first, last = _planes_needed(self.geometry, target, (k0, k1))
        first, last = min(max(first, 0), size - 1), min(max(last, 0), size - 1)
        if self._window is not None and first < self._first:
            raise ValueError("streamed probabilities were asked for planes that are gone")
        if self._window is None or last >= self._end:
            self._advance(first, last)
        assert self._window is not None
        return self._window

    def _advance(self, first: int, last: int) -> None:
        """Drop the planes before `first`, and take in slabs until plane `last` is there."""
        kept: list[Tensor] = []
        if self._window is not None and first < self._end:
            kept = [self._window.values[:, first - self._first :]]
            self._first = first
        self._window = None
        while self._end <= last:
            slab = next(self._slabs)
            begin, self._end = self._end, self._end + slab.shape[1]
            if self._end > first:
                self._first = begin if not kept else self._first
                kept.append(slab)
        values = kept[0] if len(kept) == 1 else torch.cat(kept, 1)
        grid = self.geometry.cropped((self._first, 0, 0), tuple(values.shape[1:]))
        self._window = Probabilities(self.labels, grid, values, self.scale, self.linear)


class JointProbabilities:
    """Weighted mean of probabilities that live on different grids, joined on the output grid.

    A part may not know some of the classes. What it calls background may be one of those, so it shares that
    probability among background and them as the parts that know them do.

    Args:
        parts: what to join; class 0 of each is background.
        weights: of the parts.
        labels: label values of the joint classes, all that the parts have; the first is 0.
    """

    def __init__(
        self, parts: Sequence[Readable], weights: Sequence[float], labels: Sequence[int]
    ) -> None:
        self.labels = tuple(labels)
        self.scale = parts[0].scale
        self._weights = [weight / sum(weights) for weight in weights]
        self._parts = list(parts)
        self._places = [
            torch.tensor([self.labels.index(label) for label in part.labels]) for part in parts
        ]

    def read(self, target: Geometry, k0: int, k1: int) -> Tensor:
        """As `Probabilities.read`."""
        shape = (k1 - k0, *target.shape[1:])
        every = torch.arange(math.prod(shape))
        parts = every.split(_points_at_once(len(self.labels)))
        values = torch.cat([self.read_points(target, k0, k1, part) for part in parts])
        return values.T.reshape(-1, *shape)

    def read_points(self, target: Geometry, k0: int, k1: int, points: Tensor) -> Tensor:
        """As `Probabilities.read_points`."""
        answers = []
        for part, places in zip(self._parts, self._places, strict=True):
            values = part.read_points(target, k0, k1, points).cpu()
            answers.append(
                torch.zeros(points.numel(), len(self.labels)).index_copy_(1, places, values)
            )
        if any(len(places) < len(self.labels) for places in self._places):
            answers = [self._shared(number, answers) for number in range(len(answers))]
        return sum(answer * weight for answer, weight in zip(answers, self._weights, strict=True))  # type: ignore[return-value]

    def _shared(self, number: int, answers: Sequence[Tensor]) -> Tensor:
        """The answer of a part with its background shared among the classes that it does not know."""
        known = self._places[number]
        unknown = torch.ones(len(self.labels), dtype=torch.bool)
        unknown[known[1:]] = False
        others = sum(answer for index, answer in enumerate(answers) if index != number)
        share = torch.as_tensor(others) * unknown
        total = share.sum(1, keepdim=True)
        background = (torch.arange(len(self.labels)) == 0).float()
        share = torch.where(total > 0, share / total.clamp(min=1e-12), background)
        return answers[number] * ~unknown + answers[number][:, :1] * share

    def consensus(self, target: Geometry, k0: int, k1: int) -> tuple[Tensor, Tensor]:
        """As `Probabilities.consensus`: what is certain in every part, and the same in all."""
        result: Tensor | None = None
        certain = torch.ones(())
        for part, places in zip(self._parts, self._places, strict=True):
            classes, sure = (values.cpu() for values in part.consensus(target, k0, k1))
            classes = places.to(index_type(len(self.labels)))[classes.long()]
            certain = sure if result is None else certain & sure & (classes == result)
            result = classes if result is None else result
        assert result is not None
        return result, certain

    def argmax(self, target: Geometry, k0: int, k1: int) -> Tensor:
        """As `Probabilities.argmax`."""
        result, certain = self.consensus(target, k0, k1)
        flat = result.view(-1)
        unsure = (~certain).reshape(-1).nonzero()[:, 0]
        for part in unsure.split(_points_at_once(len(self.labels))):
            values = self.read_points(target, k0, k1, part)
            flat[part] = self.scale.decide_probabilities(values, 1).to(flat.dtype)
        return result

    def entropy(self, target: Geometry, k0: int, k1: int) -> Tensor:
        """Entropy in nats of the mean, computed on the output grid."""
        return self.scale.entropy(self.read(target, k0, k1), 0)


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
        self,
        native: Geometry,
        target: Geometry,
        planes: tuple[int, int],
        device: torch.device,
        linear: Sequence[bool] = (True, True, True),
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
            if not linear[axis]:
                position = (position + 0.5 + 1e-6).floor()  # of two that are equally near the higher
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

    def interpolate(self, values: Tensor, chosen: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Trilinear interpolation of (class, k, j, i) at the points with the flat indices `chosen`.

        Yields which of `chosen` come next, and their values as float32 (point, class).
        """
        if not chosen.numel():
            return
        low = [int(base.min()) for base in self._base]
        high = [int(base.max()) + 2 for base in self._base]
        box = values[:, low[0] : high[0], low[1] : high[1], low[2] : high[2]]
        table = box.permute(1, 2, 3, 0).float().reshape(-1, values.shape[0])
        count = _points_at_once(values.shape[0])
        for first in range(0, chosen.numel(), count):
            part = slice(first, first + count)
            corners, weights = self._corners(chosen[part], low, tuple(box.shape[1:]))
            yield part, F.embedding_bag(corners, table, per_sample_weights=weights, mode="sum")

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


def _planes_needed(native: Geometry, target: Geometry, planes: tuple[int, int]) -> tuple[int, int]:
    """First and last native plane around planes of `target`; they may lie outside of the native grid."""
    matrix = native.ras_to_ijk @ target.ijk_to_ras
    position = _position(matrix[2], (planes[1] - planes[0], *target.shape[1:]), planes[0])
    return int(position.min().floor()), int(position.max().floor()) + 1


def _last_region(values: Tensor, axis: int, threshold: float) -> Tensor:
    """The last class along `axis` above the threshold; 0 where there is none. Class 0 itself is not looked at."""
    shape = [-1 if n == axis % values.ndim else 1 for n in range(values.ndim)]
    numbers = torch.arange(values.shape[axis], device=values.device).reshape(shape)
    return ((values > threshold) * numbers).amax(axis)


def _points_at_once(classes: int) -> int:
    return max(1, VALUES_AT_ONCE // classes)


def index_type(classes: int) -> torch.dtype:
    """The smallest type that holds the indices of so many classes."""
    return torch.uint8 if classes <= 256 else torch.int16


def _over_cells(combine: Callable[[Tensor, Tensor], Tensor], values: Tensor) -> Tensor:
    """`combine` over each voxel (k, j, i) and its seven neighbours towards higher k, j, i."""
    for axis in range(3):
        values = combine(values, _shifted(values, axis))
    return values


def _shifted(values: Tensor, axis: int) -> Tensor:
    """The next value along `axis`; the last one keeps its own."""
    size = values.shape[axis]
    return torch.cat((values.narrow(axis, 1, size - 1), values.narrow(axis, size - 1, 1)), axis)

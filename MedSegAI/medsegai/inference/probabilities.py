"""The predictions of members, and how they are read on any grid without being resampled as a whole.

A member predicts `Block`s on its native grid. Fusion adds them up into `Probabilities`, which are read slab by
slab on the output grid. Labels are found by corner consensus: linear interpolation is convex, so where the eight
native voxels around a point agree on the most probable class, that class is the result, and only the few points
near a boundary are interpolated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from medsegai.errors import ModelError
from medsegai.inference.activation import Activation
from medsegai.inference.grid_sampling import VALUES_AT_ONCE, GridPoints, Reach, Slab, planes_needed
from medsegai.volume import Geometry

CERTAIN = 1e-3
"""The entropy in nats below which it counts as zero: the most probable class has more than 99.98 %."""

SETTLED = 1.0 - 5e-5
"""The probability of a class above which the entropy is below `CERTAIN`, even with hundreds of other classes."""

PLANE_VALUES_AT_ONCE = 1 << 16
"""Values of a plane that are computed with together. What is kept of a plane takes a place in the heap that larger
intermediate values have left, where those of the next plane then do not fit: the memory of a process grew by their
size with each plane."""

VALUES_DECIDED_AT_ONCE = 1 << 20
"""The values of which the most probable classes are found together, where that copies none of them, as in float32.
In smaller parts the calls took ten times as long as the comparisons."""


@dataclass(frozen=True)
class Block:
    """A member's prediction for a box of its native grid.

    Attributes:
        start: first voxel of the box, (k, j, i).
        values: probability of each output channel of the member, (channel, k, j, i), any float type.

    Raises:
        ModelError: a value is not a number, or is infinite.
    """

    start: tuple[int, int, int]
    values: Tensor

    def __post_init__(self) -> None:
        # The largest value is NaN if any value is, and one reduction needs no memory.
        if self.values.numel() and not math.isfinite(float(self.values.amax())):
            raise ModelError(
                "A network of the model predicted values that are not numbers. Its weights are damaged, or "
                "too large for half precision: import the model again, or use --precision fp32."
            )


@dataclass(frozen=True)
class NativeMap:
    """One number for each native voxel, float32 (k, j, i); `linear` as in `Probabilities`."""

    values: Tensor
    geometry: Geometry
    linear: tuple[bool, ...]


class ProbabilitySource(Protocol):
    """Class probabilities that can be read on any grid, slab by slab. Class 0 is background.

    `argmax` gives class indices as `Activation.decide` finds them.
    """

    labels: tuple[int, ...]
    activation: Activation

    def read(self, slab: Slab) -> Tensor: ...

    def argmax(self, slab: Slab) -> Tensor: ...

    def entropy(self, slab: Slab) -> Tensor: ...

    def contested(self, slab: Slab) -> Tensor: ...

    def unsettled(self, slab: Slab) -> Tensor: ...

    def consensus(self, slab: Slab) -> tuple[Tensor, Tensor]: ...

    def read_points(self, slab: Slab, points: Tensor, raw: bool = False) -> Tensor: ...

    def decide_points(self, slab: Slab, points: Tensor) -> tuple[Tensor, Tensor]: ...


class _Plane:
    """A native plane, and values that are computed from it once.

    Attributes:
        values: (class, j, i), any float type.
    """

    def __init__(self, values: Tensor, activation: Activation) -> None:
        self.values = values
        self._activation = activation

    @cached_property
    def classes(self) -> Tensor:
        """Class index of each voxel, uint8 or int16 (j, i)."""
        result = self._empty(index_type(len(self.values)))
        copied = self.values.dtype is not torch.float32 or self._activation.regions
        for part, values in self._rows(PLANE_VALUES_AT_ONCE if copied else VALUES_DECIDED_AT_ONCE):
            result[part] = self._activation.decide(values, 0)
        return result

    @cached_property
    def settled(self) -> Tensor:
        """Whether the class of a voxel has at least `SETTLED` of its probability, bool (j, i)."""
        activation = self._activation.at(
            max(1.0, self._activation.temperature)
        )  # the colder, the surer
        result = self._empty(torch.bool)
        for part, values in self._rows(PLANE_VALUES_AT_ONCE):
            probabilities = activation.probabilities(values, 0)
            result[part] = activation.sure(probabilities, self.classes[part].long(), SETTLED)
        return result

    @cached_property
    def sure(self) -> Tensor:
        """Whether eight bits cannot distinguish the probability of a voxel's class from one, bool (j, i)."""
        classes = self.classes.reshape(-1)

        def of(voxels: Tensor, probabilities: Tensor) -> Tensor:
            return self._activation.sure(probabilities, classes[voxels].long())

        return self._completed(self._empty(torch.bool).fill_(True), of)

    @cached_property
    def entropy(self) -> Tensor:
        """Entropy in nats of each voxel, float32 (j, i); 0 where it is settled."""

        def of(voxels: Tensor, probabilities: Tensor) -> Tensor:
            return self._activation.entropy(probabilities, 0)

        return self._completed(self._empty(torch.float32).zero_(), of)

    def _empty(self, dtype: torch.dtype) -> Tensor:
        return self.values.new_empty(self.values.shape[1:], dtype=dtype)

    def _rows(self, at_once: int) -> Iterator[tuple[slice, Tensor]]:
        """Some rows of the plane after others, and their values, `at_once` of them, float32 (class, j, i)."""
        classes, rows, columns = self.values.shape
        count = max(1, at_once // (classes * columns))
        for first in range(0, rows, count):
            part = slice(first, first + count)
            yield part, self.values[:, part].float()

    def _completed(self, settled: Tensor, of: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """A plane of `settled` values, but for voxels that are not settled.

        Args:
            settled: (j, i); the others are written into it.
            of: gets flat indices of voxels and their probabilities, float32 (class, voxel); returns their values.
        """
        unsettled = (~self.settled).reshape(-1).nonzero()[:, 0]
        for voxels in unsettled.split(max(1, PLANE_VALUES_AT_ONCE // len(self.values))):
            values = self.values.flatten(1).index_select(1, voxels).float()
            settled.view(-1)[voxels] = of(voxels, self._activation.probabilities(values, 0))
        return settled


class _Planes:
    """A stack of native planes that can be read on any grid; outside of them all is background."""

    def __init__(
        self,
        labels: Sequence[int],
        geometry: Geometry,
        planes: Sequence[_Plane],
        activation: Activation,
        linear: Sequence[bool],
        reach: Reach | None,
    ) -> None:
        self.labels, self.geometry = tuple(labels), geometry
        self.activation, self.linear, self.reach = activation, tuple(linear), reach
        self._planes = list(planes)
        self._last: tuple[Slab, GridPoints] | None = None
        self._agreed: dict[tuple[bool, ...], Tensor] = {}
        self._clear: dict[tuple[str, tuple[bool, ...]], Tensor] = {}

    def read(self, slab: Slab) -> Tensor:
        """Probabilities on a slab, float32 (class, k, j, i)."""
        points = self._points(slab)
        every = torch.arange(points.count, device=points.inside.device)
        return self.read_points(slab, every).reshape(-1, *points.shape)

    def read_points(self, slab: Slab, points: Tensor, raw: bool = False) -> Tensor:
        """Probabilities at some voxels of a slab, float32 (class, point).

        Args:
            points: flat indices into these planes.
            raw: at temperature 1, whatever that of the activation is.
        """
        where = self._points(slab)
        inside = where.inside.reshape(-1)[points]
        activation = self.activation.at(1.0) if raw else self.activation
        if bool(inside.all()):
            return self._interpolated(where, points, activation.probabilities)
        result = torch.zeros(len(self.labels), points.numel(), device=points.device)
        result[0] = 1.0
        chosen = inside.nonzero()[:, 0]
        result[:, chosen] = self._interpolated(where, points[chosen], activation.probabilities)
        return result

    def decide_points(self, slab: Slab, points: Tensor) -> tuple[Tensor, Tensor]:
        """Class index and probabilities, float32 (class, point), of points inside of the native grid.

        Args:
            slab, points: as in `read_points`.
        """
        where = self._points(slab)
        values = self._interpolated(where, points, lambda native, axis: native)
        return self.activation.decide(values, 0), self.activation.probabilities(values, 0)

    def _interpolated(
        self, where: GridPoints, points: Tensor, read: Callable[[Tensor, int], Tensor]
    ) -> Tensor:
        """What `read` makes of native values at points inside of the native grid, float32 (class, point)."""
        result: Tensor | None = None
        for part, values in where.interpolate(self._values(), points):
            found = read(values, 0)
            if found.shape[1] == points.numel():
                return found
            if result is None:
                result = found.new_empty(points.numel(), len(found)).T
            result[:, part] = found
        return torch.empty(len(self.labels), 0) if result is None else result

    def consensus(self, slab: Slab) -> tuple[Tensor, Tensor]:
        """Find the classes on a slab that are known without interpolation.

        Returns:
            Class indices (k, j, i), and whether they are certain because all native voxels around the
            point agree, bool of the same shape.
        """
        points = self._points(slab)
        agreed = self._agreement(points.between)
        result = points.at_base(agreed).masked_fill_(~points.inside, 0)
        certain = result != torch.iinfo(agreed.dtype).max
        return result.masked_fill_(~certain, 0), certain

    def argmax(self, slab: Slab) -> Tensor:
        """Class index on a slab, (k, j, i): what `read` would decide."""
        result, certain = self.consensus(slab)
        flat = result.view(-1)
        unsure = (~certain).reshape(-1).nonzero()[:, 0]
        points = self._points(slab)
        for part, values in points.interpolate(self._values(), unsure):
            flat[unsure[part]] = self.activation.decide(values, 0).to(flat.dtype)
        return result

    def contested(self, slab: Slab) -> Tensor:
        """Voxels whose class may have a rival, on a slab: bool (k, j, i).

        Linear interpolation does not make a class less probable than it is in all native voxels around, so a point
        where all of them are certain need not be inspected. (This is true for logits too, because the logarithm of
        a sum of exponentials is convex.)
        """
        return self._unclear("sure", slab)

    def unsettled(self, slab: Slab) -> Tensor:
        """Voxels that may have entropy, on a slab: bool (k, j, i). As `contested`."""
        return self._unclear("settled", slab)

    def _unclear(self, clear: str, slab: Slab) -> Tensor:
        """Points inside with a native voxel around that is not `clear`, or with two of different classes."""
        points = self._points(slab)
        key = clear, points.between
        if key not in self._clear:
            planes = torch.stack([getattr(plane, clear) for plane in self._planes])
            self._clear[key] = _over_cells(torch.logical_and, planes, points.between)
        certain = points.at_base(self._clear[key]) & self.consensus(slab)[1]
        return ~certain & points.inside

    def entropy(self, slab: Slab) -> Tensor:
        """Native entropy, linearly interpolated, on a slab: float32 (k, j, i).

        Where all native voxels around a point are certain it is 0.
        """
        return _read_map([plane.entropy for plane in self._planes], self._points(slab))

    def _values(self) -> list[Tensor]:
        return [plane.values for plane in self._planes]

    def _points(self, slab: Slab) -> GridPoints:
        """Where these planes lie; the last result is kept, because one slab is read in several ways."""
        if self._last is None or self._last[0] != slab:
            device = self._planes[0].values.device
            points = GridPoints(self.geometry, slab, device, self.linear, self.reach)
            self._last = slab, points
        return self._last[1]

    def _agreement(self, between: tuple[bool, ...]) -> Tensor:
        """The class that a voxel shares with its neighbours towards higher k, j, i, as far as points lie between
        them; the highest number of the type where they differ. (k, j, i)."""
        if between not in self._agreed:
            classes = torch.stack([plane.classes for plane in self._planes])
            classes = classes.to(index_type(len(self.labels) + 1))
            low, high = (
                _over_cells(way, classes, between) for way in (torch.minimum, torch.maximum)
            )
            self._agreed[between] = low.masked_fill_(low != high, torch.iinfo(classes.dtype).max)
        return self._agreed[between]


class Probabilities(_Planes):
    """The values of classes on a native grid; outside of it all is background.

    Args:
        labels: label value of each class; the first is 0, background.
        geometry: the native grid.
        values: (class, k, j, i); float16 is enough for probabilities.
        activation: the meaning of the values.
        linear: for each native axis (k, j, i), whether values are interpolated along it or taken from the
            nearest voxel, as nnU-Net does along the thick axis of anisotropic scans.
        reach: the part of the grid on which the values are valid, as in `GridPoints`.
    """

    def __init__(
        self,
        labels: Sequence[int],
        geometry: Geometry,
        values: Tensor,
        activation: Activation = Activation.PROBABILITIES,
        linear: Sequence[bool] = (True, True, True),
        reach: Reach | None = None,
    ) -> None:
        if tuple(values.shape) != (len(labels), *geometry.shape) or labels[0] != 0:
            raise ValueError(
                f"{tuple(values.shape)} values do not fit {len(labels)} classes on {geometry.shape}"
            )
        planes = [_Plane(plane, activation) for plane in values.unbind(1)]
        super().__init__(labels, geometry, planes, activation, linear, reach)
        self.values = values


class StreamedProbabilities:
    """Values that arrive slab by slab, in the order of the native planes, and are dropped once they are read.

    They can be read like `Probabilities`, but only once, with target slabs in the order of the native planes, so
    that neither the values of the whole grid nor their sum are ever in memory.

    Args:
        labels, geometry, activation, linear, reach: as in `Probabilities`.
        slabs: native values (class, planes, j, i), one slab after another without gaps. They are kept as they
            are until they are read.
    """

    def __init__(
        self,
        labels: Sequence[int],
        geometry: Geometry,
        slabs: Iterator[Tensor],
        activation: Activation,
        linear: Sequence[bool] = (True, True, True),
        reach: Reach | None = None,
    ) -> None:
        self.labels, self.geometry = tuple(labels), geometry
        self.activation, self.linear, self.reach = activation, tuple(linear), reach
        self._slabs = slabs
        self._first = 0
        self._planes: list[_Plane] = []
        self._window: _Planes | None = None

    def read(self, slab: Slab) -> Tensor:
        """As `Probabilities.read`."""
        return self._at(slab).read(slab)

    def read_points(self, slab: Slab, points: Tensor, raw: bool = False) -> Tensor:
        """As `Probabilities.read_points`."""
        return self._at(slab).read_points(slab, points, raw)

    def decide_points(self, slab: Slab, points: Tensor) -> tuple[Tensor, Tensor]:
        """As `Probabilities.decide_points`."""
        return self._at(slab).decide_points(slab, points)

    def consensus(self, slab: Slab) -> tuple[Tensor, Tensor]:
        """As `Probabilities.consensus`."""
        return self._at(slab).consensus(slab)

    def argmax(self, slab: Slab) -> Tensor:
        """As `Probabilities.argmax`."""
        return self._at(slab).argmax(slab)

    def entropy(self, slab: Slab) -> Tensor:
        """As `Probabilities.entropy`."""
        return self._at(slab).entropy(slab)

    def contested(self, slab: Slab) -> Tensor:
        """As `Probabilities.contested`."""
        return self._at(slab).contested(slab)

    def unsettled(self, slab: Slab) -> Tensor:
        """As `Probabilities.unsettled`."""
        return self._at(slab).unsettled(slab)

    def _at(self, slab: Slab) -> _Planes:
        """The native planes that a slab needs."""
        size = self.geometry.shape[0]
        first, last = planes_needed(self.geometry, slab)
        first, last = min(max(first, 0), size - 1), min(max(last, 0), size - 1)
        if self._window is not None and first < self._first:
            raise ValueError("streamed probabilities were asked for planes that are gone")
        if self._window is None or last >= self._first + len(self._planes):
            self._advance(first, last)
        assert self._window is not None
        return self._window

    def _advance(self, first: int, last: int) -> None:
        """Drop the planes before `first`, and take in slabs until plane `last` is there."""
        self._window = None
        self._drop(first)
        while self._first + len(self._planes) <= last:
            self._planes += [
                _Plane(plane, self.activation) for plane in next(self._slabs).unbind(1)
            ]
            self._drop(first)
        grid = self.geometry.cropped(
            (self._first, 0, 0), (len(self._planes), *self.geometry.shape[1:])
        )
        reach = None if self.reach is None else self.reach.cropped((self._first, 0, 0))
        self._window = _Planes(self.labels, grid, self._planes, self.activation, self.linear, reach)

    def _drop(self, first: int) -> None:
        gone = min(max(first - self._first, 0), len(self._planes))
        del self._planes[:gone]
        self._first += gone


def two_best(readable: ProbabilitySource, slab: Slab) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The two most probable classes on a slab, and their probabilities.

    Only uncertain voxels are interpolated, each once; in the others the first class has all of the probability.

    Returns:
        Class index as `argmax` gives it; that of the runner-up, 0 where its probability rounds to nothing; the
        probability of the first, at least 1, and that of the runner-up, uint8 in steps of 1/255: each
        (k, j, i).
    """
    first, _ = readable.consensus(slab)
    second, p_second = torch.zeros_like(first), torch.zeros_like(first, dtype=torch.uint8)
    p_first = torch.full_like(p_second, 255)
    contested = readable.contested(slab).reshape(-1).nonzero()[:, 0]
    for part in contested.split(max(1, VALUES_AT_ONCE // len(readable.labels))):
        own, values = readable.decide_points(slab, part)
        other, p_own, p_other = readable.activation.two_best(values, own.long())
        steps = (p_other * 255.0).round()
        first.view(-1)[part] = own.to(first.dtype)
        second.view(-1)[part] = (other * (steps > 0)).to(second.dtype)
        p_first.view(-1)[part] = (p_own * 255.0).round().clamp(1.0, 255.0).to(torch.uint8)
        p_second.view(-1)[part] = steps.to(torch.uint8)
    return first, second, p_first, p_second


def read_nearest(values: Tensor, native: Geometry, slab: Slab) -> Tensor:
    """Native `values` (k, j, i) at the voxels of a slab, each from the nearest voxel; 0 outside."""
    points = GridPoints(native, slab, values.device)
    return points.at_nearest(values).masked_fill_(~points.inside, 0)


def read_information(part: NativeMap, slab: Slab) -> Tensor:
    """A native map of entropies, linearly interpolated on a slab, float32 (k, j, i)."""
    points = GridPoints(part.geometry, slab, part.values.device, part.linear)
    return _read_map(part.values.unbind(), points)


def index_type(classes: int) -> torch.dtype:
    """The smallest type that holds the indices of so many classes."""
    return torch.uint8 if classes <= 256 else torch.int16


def _read_map(planes: Sequence[Tensor], points: GridPoints) -> Tensor:
    """Native planes (j, i) of entropies, interpolated at all points; 0 where all around is certain."""
    some = _over_cells(torch.maximum, torch.stack(list(planes)), points.between) > CERTAIN
    unsure = (points.inside & points.at_base(some)).reshape(-1).nonzero()[:, 0]
    result = torch.zeros(points.count, device=points.inside.device)
    for part, values in points.interpolate([plane[None] for plane in planes], unsure):
        result[unsure[part]] = values[0]
    return result.reshape(points.shape)


def _over_cells(
    combine: Callable[[Tensor, Tensor], Tensor], values: Tensor, axes: Sequence[bool]
) -> Tensor:
    """`combine` over each voxel (k, j, i) and its neighbours towards higher k, j, i along these `axes`."""
    values = values.clone()
    for axis, along in enumerate(axes):
        if along and values.shape[axis] > 1:
            size = values.shape[axis] - 1
            lower = values.narrow(axis, 0, size)
            lower.copy_(combine(lower, values.narrow(axis, 1, size)))
    return values

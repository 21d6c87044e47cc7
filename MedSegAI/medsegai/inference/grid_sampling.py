"""Sampling of one grid at the voxels of another, by interpolation."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from numpy import float64
from numpy.typing import NDArray
from torch import Tensor

from medsegai.volume import Geometry

VALUES_AT_ONCE = 1 << 20
"""The number of values (points times classes) interpolated at once, which limits the extra memory to megabytes."""


Bounds = tuple[tuple[float, float], tuple[float, float], tuple[float, float]]
"""Lowest and highest position along each native axis (k, j, i), in voxels."""


@dataclass(frozen=True)
class Slab:
    """The planes from `k0` up to, but not including, `k1` of a grid, which are read and decided at once.

    Two slabs are equal if they are the same planes of the same grid object.
    """

    grid: Geometry
    k0: int
    k1: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """Number of voxels, (k, j, i)."""
        return self.k1 - self.k0, *self.grid.shape[1:]

    @property
    def planes(self) -> slice:
        """The planes as an index of the first axis of the grid."""
        return slice(self.k0, self.k1)


def slabs_of(grid: Geometry, planes: int) -> Iterator[Slab]:
    """Divide a grid into slabs of `planes` planes; the last one may have fewer."""
    for k0 in range(0, grid.shape[0], planes):
        yield Slab(grid, k0, min(k0 + planes, grid.shape[0]))


@dataclass(frozen=True, eq=False)
class Nearest:
    """The native voxel (int64) that is read at each position `first`, `first + step`, ... along an axis.

    It reproduces programs that round positions between two voxels in their own way.
    """

    first: float
    step: float
    voxels: Tensor

    def at(self, position: Tensor) -> Tensor:
        """The indices of the voxels at these positions, in the type of `position`."""
        number = ((position - self.first) / self.step).round().long()
        return self.voxels[number.clamp(0, len(self.voxels) - 1)].to(position)

    def moved(self, by: float) -> Nearest:
        """The same on a grid whose indices are shifted."""
        return Nearest(self.first + by, self.step, self.voxels + round(by))

    def flipped(self, last: int) -> Nearest:
        """The same on a grid that is indexed from its other end."""
        return Nearest(last - self.first, -self.step, last - self.voxels)


@dataclass(frozen=True, eq=False)
class Reach:
    """The part of a native grid on which values are valid, and how they are read along axes without interpolation.

    Attributes:
        bounds: the positions outside of which all is background.
        nearest: the rule for each native axis (k, j, i); without it, the higher of two equally near voxels is
            read.
    """

    bounds: Bounds
    nearest: tuple[Nearest, ...] = ()

    def cropped(self, start: Sequence[float]) -> Reach:
        """The same on a grid that begins at voxel `start` (k, j, i) of this one."""
        k, j, i = (
            (low - first, high - first)
            for (low, high), first in zip(self.bounds, start, strict=True)
        )
        moved = zip(self.nearest, start, strict=False)
        return Reach((k, j, i), tuple(nearest.moved(-first) for nearest, first in moved))

    def flipped(self, axis: int, last: int) -> Reach:
        """The same on a grid that indexes its voxels 0 to `last` along an axis from the other end."""
        bounds, nearest = list(self.bounds), list(self.nearest)
        low, high = bounds[axis]
        bounds[axis] = (last - high, last - low)
        if nearest:
            nearest[axis] = nearest[axis].flipped(last)
        return Reach((bounds[0], bounds[1], bounds[2]), tuple(nearest))

    def permuted(self, order: Sequence[int]) -> Reach:
        """The same on a grid with its axes in another order."""
        k, j, i = (self.bounds[axis] for axis in order)
        return Reach((k, j, i), tuple(self.nearest[axis] for axis in order if self.nearest))


class GridPoints:
    """The positions of the voxels of a target slab on the native grid.

    A point counts as inside up to half a voxel beyond the outermost centres, or within the `reach` where that is
    given; beyond the outermost centres the edge value holds.
    Coordinates stay as small as broadcasting allows: on grids whose axes are parallel, each depends on one
    axis of the target only.

    Attributes:
        shape: shape of the slab, (k, j, i).
        count: number of voxels in the slab.
        inside: whether each point is inside, bool (k, j, i).
        between: for each native axis, whether points lie between voxels along it.
    """

    def __init__(
        self,
        native: Geometry,
        slab: Slab,
        device: torch.device,
        linear: Sequence[bool] = (True, True, True),
        reach: Reach | None = None,
    ) -> None:
        matrix = native.ras_to_ijk @ slab.grid.ijk_to_ras
        self.shape = slab.shape
        self.count = math.prod(self.shape)
        self._native = native.shape
        self.inside = torch.ones(self.shape, dtype=torch.bool, device=device)
        self._base: list[Tensor] = []
        self._part: list[Tensor] = []
        for axis, size in enumerate(native.shape):
            position = _position(matrix[2 - axis], self.shape, slab.k0).to(device)
            low, high = (-0.5, size - 0.5) if reach is None else reach.bounds[axis]
            self.inside &= (position > low) & (position < high)
            position = position.clamp(0, size - 1)
            if not linear[axis] and reach is not None and reach.nearest:
                position = reach.nearest[axis].at(position).clamp(0, size - 1)
            elif not linear[axis]:  # of two that are equally near the higher
                position = (position + 0.5 + 1e-6).floor()
            base = position.floor()
            self._base.append(base.long())
            self._part.append((position - base).float())
        self.between = tuple(bool(part.any()) for part in self._part)

    def at_base(self, values: Tensor) -> Tensor:
        """Native `values` (k, j, i) at the corner of the cell around each point."""
        return self._take(values, self._base)

    def at_nearest(self, values: Tensor) -> Tensor:
        """Native `values` (k, j, i) at the voxel nearest to each point."""
        nearest = [base + (part > 0.5) for base, part in zip(self._base, self._part, strict=True)]
        return self._take(values, nearest)

    def interpolate(
        self, planes: Sequence[Tensor], chosen: Tensor
    ) -> Iterator[tuple[slice | Tensor, Tensor]]:
        """Trilinear interpolation at the points with the flat indices `chosen`.

        Args:
            planes: native values, (class, j, i) for each k.

        Yields:
            Which of `chosen` come next, and their values, float32 (class, point).
        """
        classes = planes[0].shape[0]
        for first in range(0, chosen.numel(), max(1, VALUES_AT_ONCE // classes)):
            some = chosen[first : first + max(1, VALUES_AT_ONCE // classes)]
            where = self._unravelled(some)
            base = [_picked(along, where) for along in self._base]
            part = [_picked(along, where) for along in self._part]
            for group in self._neighbours(base, classes):
                cells = _Cells(
                    [along[group] for along in base],
                    [along[group] for along in part],
                    self.between,
                    self._native,
                )
                if isinstance(group, slice):
                    yield slice(first + group.start, first + group.stop), cells.interpolate(planes)
                else:
                    yield first + group, cells.interpolate(planes)

    def _unravelled(self, chosen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As `torch.unravel_index`, which takes a second to import what it does not need."""
        _, rows, columns = self.shape
        lines = chosen // columns
        return lines // rows, lines % rows, chosen % columns

    def _neighbours(self, base: Sequence[Tensor], classes: int) -> Iterator[slice | Tensor]:
        """Points in groups that lie between the same two native planes, and among a few of their rows."""
        rows = max(1, VALUES_AT_ONCE // (2 * classes * self._native[2]))
        blocks = -(-self._native[1] // rows)
        key = base[0] if blocks == 1 else base[0] * blocks + base[1] // rows
        order: Tensor | None = None
        if bool((key[1:] < key[:-1]).any()):
            key, order = key.sort(stable=True)
        first = 0
        for count in torch.unique_consecutive(key, return_counts=True)[1].tolist():
            group = slice(first, first + count)
            yield group if order is None else order[group]
            first += count

    def _take(self, values: Tensor, where: Sequence[Tensor]) -> Tensor:
        _, rows, columns = self._native
        k, j, i = where
        flat = (k * rows + j) * columns + i
        return values.reshape(-1).take(flat.expand(self.shape))


class _Cells:
    """Points in the cells between native voxels (k, j, i); all in cells of one k.

    Args:
        base: lowest native voxel around each point, for each axis.
        part: how far beyond it the point lies, 0 to 1, for each axis.
        between: along which axes it does at all.
        native: shape of the native grid.
    """

    def __init__(
        self,
        base: Sequence[Tensor],
        part: Sequence[Tensor],
        between: Sequence[bool],
        native: Sequence[int],
    ) -> None:
        self._voxel = [
            (low, (low + 1).clamp_(max=size - 1) if along else low)
            for low, along, size in zip(base, between, native, strict=True)
        ]
        self._share = [(1 - high, high) for high in part]
        self._corners = list(itertools.product(*((0, 1) if along else (0,) for along in between)))

    def interpolate(self, planes: Sequence[Tensor]) -> Tensor:
        """Values of `planes`, (class, j, i) for each k, at the points: float32 (class, point)."""
        low = [int(voxel[0].min()) for voxel in self._voxel]
        high = [int(voxel[1].max()) + 1 for voxel in self._voxel]
        around = [
            plane[:, low[1] : high[1], low[2] : high[2]] for plane in planes[low[0] : high[0]]
        ]
        if self._voxel[0][0].numel() * len(self._corners) < len(around) * around[0][0].numel():
            return self._gathered(around, low)
        return self._from_table(around, low)

    def _gathered(self, planes: Sequence[Tensor], low: Sequence[int]) -> Tensor:
        """Corner by corner, for points that are few."""
        result: Tensor | None = None
        for corner in self._corners:
            k, j, i = self._at(corner)
            plane = planes[int(k[0]) - low[0]]
            values = plane[:, j - low[1], i - low[2]].float()
            values *= self._weight(corner)
            result = values if result is None else result.add_(values)
        assert result is not None
        return result

    def _from_table(self, planes: Sequence[Tensor], low: Sequence[int]) -> Tensor:
        """By a table of all native voxels around, the classes of each side by side."""
        rows, columns = planes[0].shape[1:]
        table = torch.cat([plane.permute(1, 2, 0).reshape(-1, len(plane)) for plane in planes])
        places, weights = [], []
        for corner in self._corners:
            k, j, i = self._at(corner)
            places.append(((k - low[0]) * rows + (j - low[1])) * columns + (i - low[2]))
            weights.append(self._weight(corner))
        return F.embedding_bag(
            torch.stack(places, 1),
            table.float(),
            per_sample_weights=torch.stack(weights, 1),
            mode="sum",
        ).T

    def _at(self, corner: Sequence[int]) -> list[Tensor]:
        return [voxel[step] for voxel, step in zip(self._voxel, corner, strict=True)]

    def _weight(self, corner: Sequence[int]) -> Tensor:
        k, j, i = (share[step] for share, step in zip(self._share, corner, strict=True))
        return k * j * i


def _picked(along: Tensor, where: Sequence[Tensor]) -> Tensor:
    """Values of `along`, which is of size 1 where it is constant, at the voxels `where` (k, j, i)."""
    axes = [axis for axis in range(3) if along.shape[axis] > 1]
    if len(axes) > 1:
        return along[tuple(where[axis] if axis in axes else 0 for axis in range(3))]
    return along.reshape(-1)[where[axes[0]] if axes else torch.zeros_like(where[0])]


def planes_needed(native: Geometry, slab: Slab) -> tuple[int, int]:
    """Return the first and last native plane around a slab; they may lie outside of the native grid."""
    matrix = native.ras_to_ijk @ slab.grid.ijk_to_ras
    position = _position(matrix[2], slab.shape, slab.k0)
    return int(position.min().floor()), int(position.max().ceil())


def _position(row: NDArray[float64], shape: Sequence[int], first_plane: int) -> Tensor:
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

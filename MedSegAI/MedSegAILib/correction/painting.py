"""The voxels of a grid under a brush that is drawn through a slice view, without Qt and MRML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medsegai.volume import Box, Geometry, joined_box

Points = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Painted:
    """The voxels under a stroke: `mask` fills `box` of the grid, bool (k, j, i)."""

    box: Box
    mask: NDArray[np.bool_]

    def laid_into(self, box: Box) -> NDArray[np.bool_]:
        """Return the same voxels in another box, without those outside it."""
        out = np.zeros([part.stop - part.start for part in box], bool)
        there, here = [], []
        for own, other in zip(self.box, box, strict=True):
            first, last = max(own.start, other.start), min(own.stop, other.stop)
            there.append(slice(first - other.start, max(last, first) - other.start))
            here.append(slice(first - own.start, max(last, first) - own.start))
        out[tuple(there)] = self.mask[tuple(here)]
        return out


@dataclass(frozen=True)
class Brush:
    """A round brush that paints one slice.

    Attributes:
        radius_mm: the radius in the slice.
        normal: the unit vector across the slice, in the world, R, A, S.
    """

    radius_mm: float
    normal: ArrayLike

    def line(self, grid: Geometry, start: ArrayLike, end: ArrayLike) -> Painted | None:
        """Return the voxels that are painted from one world point to another; None if they are outside the grid.

        A voxel is painted if its middle is under the brush and the slice passes through it; so is the voxel
        at either end, however thin the brush.
        """
        start, end, normal = (np.asarray(each, float) for each in (start, end, self.normal))
        half = float(np.abs(normal @ grid.ijk_to_ras[:3, :3]).sum()) / 2
        box = self._box(grid, start, end, half)
        if box is None:
            return None
        middle = _middles(grid, box)
        across = (middle - start) @ normal
        mask = (across > -half) & (across <= half)
        flat = middle - start - across[..., None] * normal
        along = end - start - ((end - start) @ normal) * normal
        mask &= _distances(flat, along) <= self.radius_mm
        for point in (start, end):
            _mark(mask, box, grid, point)
        return Painted(box, mask) if mask.any() else None

    def _box(self, grid: Geometry, start: Points, end: Points, half: float) -> Box | None:
        """Return the box of voxels that the brush can reach; `half` is half of a voxel across the slice."""
        reach = self.radius_mm + half
        corners = np.stack([np.minimum(start, end) - reach, np.maximum(start, end) + reach])
        return grid.box_around(corners.T.ravel().tolist())


def joined(pieces: Sequence[Painted]) -> Painted:
    """Join pieces, of which there must be at least one."""
    box = joined_box([piece.box for piece in pieces])
    mask = np.zeros([part.stop - part.start for part in box], bool)
    for piece in pieces:
        mask |= piece.laid_into(box)
    return Painted(box, mask)


def _middles(grid: Geometry, box: Box) -> NDArray[np.float64]:
    """Return the world positions of the voxels of a box, (k, j, i, 3)."""
    k, j, i = np.meshgrid(*(np.arange(part.start, part.stop) for part in box), indexing="ij")
    positions = np.stack([i, j, k, np.ones_like(i)], axis=-1) @ grid.ijk_to_ras.T
    return np.asarray(positions[..., :3])


def _mark(mask: NDArray[np.bool_], box: Box, grid: Geometry, point: NDArray[np.float64]) -> None:
    """Paint the voxel that holds a point, if it is in the box."""
    at = np.rint((grid.ras_to_ijk @ [*point, 1.0])[2::-1]).astype(int) - [
        part.start for part in box
    ]
    if (at >= 0).all() and (at < mask.shape).all():
        mask[tuple(at)] = True


def _distances(points: Points, end: Points) -> Points:
    """Return the distances of points to the line from the origin to `end`."""
    length = float(end @ end)
    part = np.clip(points @ end / length, 0.0, 1.0) if length > 0 else np.zeros(points.shape[:-1])
    return np.asarray(np.linalg.norm(points - part[..., None] * end, axis=-1))

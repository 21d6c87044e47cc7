"""Positions of voxels: distances in voxels, the voxels of a box in the flat volume, and voxels near borders."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import permutations

import numpy as np
from numpy.typing import NDArray

from medsegai.volume import Box, Geometry


def margin(geometry: Geometry, reach_mm: float, more: int = 0) -> tuple[int, int, int]:
    """The number of voxels along (k, j, i) that cover a distance in mm, plus `more`."""
    i, j, k = (math.ceil(reach_mm / length - 1e-9) + more for length in geometry.spacing_mm)
    return k, j, i


def upright(geometry: Geometry) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Find the reorientation of a grid after which k, j, i run as closely as possible to S, A and R.

    Returns:
        The new order of the axes (k, j, i), and which of the reordered axes are then reversed.
    """
    towards = geometry.ijk_to_ras[2::-1, 2::-1] / np.array(
        spacing_kji(geometry)
    )  # S, A, R by k, j, i
    order = max(
        permutations(range(3)), key=lambda axes: sum(abs(towards[n, axes[n]]) for n in range(3))
    )
    return order, tuple(n for n, axis in enumerate(order) if towards[n, axis] < 0)


def spacing_kji(geometry: Geometry) -> tuple[float, float, float]:
    i, j, k = geometry.spacing_mm
    return k, j, i


def flat_indices(inside: NDArray[np.bool_], box: Box, shape: Sequence[int]) -> NDArray[np.int64]:
    """The indices in the flat volume, ascending, of the true voxels of `inside`, bool in the shape of the box."""
    local = np.unravel_index(np.flatnonzero(inside), inside.shape)
    places = [index + part.start for index, part in zip(local, box, strict=True)]
    return np.ravel_multi_index(places, tuple(shape)).astype(np.int64)


def near_borders(labels: NDArray[np.integer], reach: Sequence[int]) -> NDArray[np.bool_]:
    """Voxels with another label than their own within `reach` voxels along (k, j, i), bool (k, j, i)."""
    from scipy import ndimage

    size = [2 * voxels + 1 for voxels in reach]
    highest = ndimage.maximum_filter(labels, size, mode="nearest")
    return np.asarray(highest != ndimage.minimum_filter(labels, size, mode="nearest"))

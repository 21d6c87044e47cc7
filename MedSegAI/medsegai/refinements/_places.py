"""Voxels of a volume: how far millimetres reach, where a box lies in the flat volume, what is near a border."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import permutations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsegai.volume import Box, Geometry


def margin(geometry: Geometry, reach_mm: float, more: int = 0) -> tuple[int, int, int]:
    """How many voxels a distance reaches along (k, j, i)."""
    i, j, k = (math.ceil(reach_mm / length - 1e-9) + more for length in geometry.spacing_mm)
    return k, j, i


def upright(geometry: Geometry) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """How to turn a grid so that k, j, i run as close as can be to S, A and R.

    Returns:
        The order in which its axes (k, j, i) are to be taken, and which of the new ones are then to be reversed.
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
    """Positions in the flat volume of the voxels that are true in an array as large as the box, ascending."""
    local = np.unravel_index(np.flatnonzero(inside), inside.shape)
    places = [index + part.start for index, part in zip(local, box, strict=True)]
    return np.ravel_multi_index(places, tuple(shape)).astype(np.int64)


def near_borders(labels: NDArray[Any], reach: Sequence[int]) -> NDArray[np.bool_]:
    """Voxels that have another label than theirs within so many voxels along (k, j, i), corners included."""
    from scipy import ndimage

    size = [2 * voxels + 1 for voxels in reach]
    highest = ndimage.maximum_filter(labels, size, mode="nearest")
    return np.asarray(highest != ndimage.minimum_filter(labels, size, mode="nearest"))

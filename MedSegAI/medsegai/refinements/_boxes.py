"""Boxes around structures, so that memory and time grow with a structure and not with the scan."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsegai.volume import Geometry

Box = tuple[slice, slice, slice]

LISTED_VALUE = 65535
"""Up to here label values are list positions to SciPy; larger ones are ranked first."""


def boxes(labels: NDArray[Any], wanted: Sequence[int] = ()) -> dict[int, Box]:
    """The box of each label that has voxels, by value, ascending.

    Args:
        labels: (k, j, i).
        wanted: which values; all if none is named. Those without voxels are left out.
    """
    from scipy import ndimage

    values = None
    if labels.size and labels.max() > LISTED_VALUE:
        values, ranks = np.unique(labels, return_inverse=True)
        if values[0]:
            values, ranks = np.r_[0, values], ranks + 1
        labels = ranks.reshape(labels.shape).astype(np.int32)
    found = {
        number if values is None else int(values[number]): box
        for number, box in enumerate(ndimage.find_objects(labels), start=1)
        if box is not None
    }
    return found if not wanted else {value: found[value] for value in wanted if value in found}


def joined_box(found: Iterable[Box]) -> Box:
    """The smallest box around at least one box."""
    k, j, i = (
        slice(min(part.start for part in parts), max(part.stop for part in parts))
        for parts in zip(*found, strict=True)
    )
    return k, j, i


def grown(box: Box, margin: Sequence[int], shape: Sequence[int]) -> Box:
    """The box with so many voxels more on each side, (k, j, i), as far as the volume reaches."""
    k, j, i = (
        slice(max(part.start - more, 0), min(part.stop + more, size))
        for part, more, size in zip(box, margin, shape, strict=True)
    )
    return k, j, i


def margin(geometry: Geometry, reach_mm: float, more: int = 0) -> tuple[int, int, int]:
    """How many voxels a distance reaches along (k, j, i)."""
    i, j, k = (math.ceil(reach_mm / length - 1e-9) + more for length in geometry.spacing_mm)
    return k, j, i


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

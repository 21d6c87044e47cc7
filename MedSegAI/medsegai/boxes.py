"""Boxes around structures, so that memory and time grow with a structure and not with the scan."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from medsegai.volume import Box

LISTED_VALUE = 65535
"""Up to here label values are list positions to SciPy; larger ones are ranked first."""


def label_boxes(labels: NDArray[np.integer], wanted: Sequence[int] | None = None) -> dict[int, Box]:
    """The box of each label (1 or more) that has voxels, by value, ascending.

    Args:
        labels: whole numbers from 0, (k, j, i).
        wanted: which labels; all if it is None. Those without voxels are left out.
    """
    from scipy import ndimage  # here, for refinements are listed without it

    known = None if wanted is None else np.unique(np.array(wanted, np.int64))
    if not labels.size or (known is not None and not len(known)):
        return {}
    if labels.max() <= LISTED_VALUE:
        found = ndimage.find_objects(labels)
        values = range(1, len(found) + 1) if known is None else known.tolist()
        boxes = {value: found[value - 1] for value in values if value <= len(found)}
    else:
        boxes = _ranked_boxes(labels, np.unique(labels) if known is None else known)
    return {value: box for value, box in boxes.items() if box is not None}


def _ranked_boxes(labels: NDArray[np.integer], known: NDArray[np.integer]) -> dict[int, Box | None]:
    from scipy import ndimage

    known = known[known > 0]
    rank = np.minimum(np.searchsorted(known, labels), len(known) - 1)
    found = ndimage.find_objects(np.where(known[rank] == labels, rank + 1, 0), len(known))
    return dict(zip(known.tolist(), found, strict=True))


def numbered(labels: NDArray[np.integer], values: Sequence[int]) -> NDArray[np.unsignedinteger]:
    """Return the place of each voxel's label in `values`, from 1; 0 for others.

    A table of all values up to the largest one is not made, because that may be two thousand million.
    """
    found = np.zeros(labels.shape, np.min_scalar_type(len(values)))
    boxes = label_boxes(labels, values)
    for number, value in enumerate(values, 1):
        if value in boxes:
            box = boxes[value]
            found[box][labels[box] == value] = number
    return found


def grown(box: Box, margin: Sequence[int], shape: Sequence[int]) -> Box:
    """The box with so many voxels more on each side, (k, j, i), as far as the volume reaches."""
    k, j, i = (
        slice(max(part.start - more, 0), min(part.stop + more, size))
        for part, more, size in zip(box, margin, shape, strict=True)
    )
    return k, j, i


def middle(box: Box, size: Sequence[int]) -> Box:
    """The part of a box in its middle that has at most `size` voxels (k, j, i)."""
    counts = [min(part.stop - part.start, most) for part, most in zip(box, size, strict=True)]
    starts = [
        (part.start + part.stop - count) // 2 for part, count in zip(box, counts, strict=True)
    ]
    k, j, i = (slice(start, start + count) for start, count in zip(starts, counts, strict=True))
    return k, j, i

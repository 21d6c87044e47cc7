"""The part of an image that is not zero, to which nnU-Net crops before anything else.

The functions follow `crop_to_nonzero` of nnunetv2 (2.8.1). There the holes of the mask are filled first. A hole
lies within the box of its surroundings, so the box is found without filling, and the mask is made only if it is
needed.
"""

from __future__ import annotations

import numpy as np
import scipy
from numpy.typing import NDArray

from medsegai.volume import Box


def nonzero_box(channels: NDArray[np.number]) -> Box:
    """Return the smallest box (k, j, i) that holds every voxel that is not zero in some channel.

    `channels`: (channel, k, j, i). The box of an image of zeros is the whole image, as in nnU-Net.
    """
    planes, rows, columns = (np.zeros(size, dtype=bool) for size in channels.shape[1:])
    for k in range(channels.shape[1]):
        occupied = _occupied(channels[:, k])
        planes[k] = occupied.any()
        rows |= occupied.any(axis=1)
        columns |= occupied.any(axis=0)
    return _extent(planes), _extent(rows), _extent(columns)


def nonzero_mask(channels: NDArray[np.number]) -> NDArray[np.bool_]:
    """Return the voxels that are not zero in some channel, and the holes that they enclose.

    `channels`: (channel, k, j, i), usually cropped to `nonzero_box`. Returns bool (k, j, i). A hole is a region of
    zeros that no path through the six neighbours joins to the border: `scipy.ndimage.binary_fill_holes`, by one
    labelling of connected components.
    """
    occupied = _occupied(channels)
    components, count = scipy.ndimage.label(~occupied)
    if count == 0:
        return occupied
    is_hole = np.ones(count + 1, dtype=bool)
    is_hole[0] = False
    for axis in range(3):
        for face in (0, -1):
            is_hole[np.take(components, face, axis=axis)] = False
    if is_hole.any():
        occupied |= is_hole[components]
    return occupied


def _occupied(channels: NDArray[np.number]) -> NDArray[np.bool_]:
    occupied = channels[0] != 0
    for channel in channels[1:]:
        occupied |= channel != 0
    return np.asarray(occupied)


def _extent(occupied: NDArray[np.bool_]) -> slice:
    where = np.flatnonzero(occupied)
    return slice(int(where[0]), int(where[-1]) + 1) if where.size else slice(0, occupied.size)

"""The positions of nnU-Net's sliding window, and the weight of each voxel of a tile.

The functions follow `nnunetv2.inference.sliding_window_prediction` (2.8.1) and the padding of `acvl_utils`. There
the weights are rounded to float16; here they stay float32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

Starts = tuple[list[int], ...]


def tile_starts(shape: Sequence[int], patch: Sequence[int], step: float = 0.5) -> Starts:
    """Return the first voxels of the tiles along each axis of `shape`, evenly spaced.

    Args:
        shape: (k, j, i) of the padded image, no smaller than the patch.
        patch: the size of a tile; with two entries (j, i), every plane k is taken by itself.
        step: the largest distance between neighbouring tiles, as a part of the patch.

    Raises:
        ValueError: the step is not in (0, 1], or the image is smaller than the patch.
    """
    if not 0 < step <= 1:
        raise ValueError(f"the step must be above 0 and at most 1, not {step}")
    flat = len(shape) - len(patch)
    starts = [list(range(size)) for size in shape[:flat]]
    for size, tile in zip(shape[flat:], patch, strict=True):
        if size < tile:
            raise ValueError(f"an image of {tuple(shape)} is smaller than tiles of {tuple(patch)}")
        starts.append(_spread(size - tile, tile * step))
    return tuple(starts)


def _spread(length: int, distance: float) -> list[int]:
    """Return numbers from 0 to `length`, evenly spaced by at most `distance`."""
    steps = math.ceil(length / distance)
    stride = length / max(steps, 1)
    return [round(stride * number) for number in range(steps + 1)]


@lru_cache(maxsize=4)
def gaussian(patch: tuple[int, ...]) -> NDArray[np.float32]:
    """Return the weight of each voxel of a tile: a Gaussian of an eighth of the patch, 10 in the middle, never 0.

    `patch`: (k, j, i) or (j, i). Returns read-only float32 of that shape.
    """
    weights = np.full((), 10.0)
    for size in patch:
        distances = (np.arange(size) - size // 2) / (size / 8)
        weights = weights[..., None] * np.exp(-0.5 * distances**2)
    result = weights.astype(np.float32)
    result[result == 0] = result[result > 0].min()
    result.flags.writeable = False
    return result


def padded(voxels: Tensor, patch: Sequence[int]) -> tuple[Tensor, tuple[slice, ...]]:
    """Pad `voxels` with zeros on all sides to at least the size of a tile; also return the slices of the voxels.

    Args:
        voxels: (channel, k, j, i).
        patch: (k, j, i), or (j, i) to leave the planes as they are.

    Returns:
        The padded image (the same tensor where nothing is missing) and the slices (k, j, i) that hold `voxels`.
    """
    missing = [0] * (voxels.ndim - len(patch))
    pairs = zip(voxels.shape[-len(patch) :], patch, strict=True)
    missing += [max(tile - size, 0) for size, tile in pairs]
    sides = zip(voxels.shape[1:], missing[1:], strict=True)
    inside = tuple(slice(lack // 2, lack // 2 + size) for size, lack in sides)
    if not any(missing):
        return voxels, inside
    margins = [side for lack in reversed(missing) for side in (lack // 2, lack - lack // 2)]
    return F.pad(voxels, margins), inside

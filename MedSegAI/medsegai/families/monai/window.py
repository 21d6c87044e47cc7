"""The positions of MONAI's sliding window, and the weights of its voxels.

The result is that of `monai.inferers.sliding_window_inference` of MONAI 1.6.1: windows begin at whole voxels, the
last one ends with the image, and an image that is smaller than a window is padded on both sides.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from medsegai.errors import ModelError
from medsegai.families._sliding import Window
from medsegai.families.monai.settings import Inferer
from medsegai.volume import Box

LEAST_WEIGHT = 1e-3
"""The smallest weight of a voxel."""


def window_over(image: Tensor, inferer: Inferer, wanted: Box, reversed: bool) -> Window:
    """Return all windows over `image` (channel, x, y, z) that touch its `wanted` box.

    Raises:
        ModelError: the image is too small for the padding of the model.
    """
    shape = tuple(image.shape[1:])
    asked = inferer.roi_size or (0, 0, 0)
    roi = tuple(wish if wish > 0 else size for wish, size in zip(asked, shape, strict=True))
    missing = [max(wish - size, 0) for wish, size in zip(roi, shape, strict=True)]
    inside = [slice(lack // 2, lack // 2 + size) for lack, size in zip(missing, shape, strict=True)]
    padded = _padded(image, missing, inferer)
    box = _shifted(wanted, inside)
    axes = zip(padded.shape[1:], roi, inferer.overlap, box, strict=True)
    rows, columns, layers = (_touching(*axis) for axis in axes)
    corners = list(itertools.product(columns, layers))
    return Window(padded, box, roi, rows, corners, reversed, importance(roi, inferer))


def _shifted(box: Box, origin: Sequence[slice]) -> Box:
    """Return the box of an image within a larger one, in which the image begins at `origin`."""
    pairs = zip(origin, box, strict=True)
    x, y, z = (slice(at.start + part.start, at.start + part.stop) for at, part in pairs)
    return x, y, z


def _touching(size: int, length: int, overlap: float, part: slice) -> list[int]:
    """Return the starts of the windows along an axis that touch a part of it."""
    every = starts(size, length, overlap)
    return [at for at in every if at < part.stop and at + length > part.start]


def streaming_order(shape: Sequence[int], inferer: Inferer) -> tuple[int, ...]:
    """Return the axes (x, y, z) in the order in which windows are processed, which needs the least memory.

    Only the planes below a row of windows are stored, so the first axis is the one of which a window covers the
    smallest share.
    """
    roi = inferer.roi_size or (0, 0, 0)
    parts = [wish / size if 0 < wish < size else 1.0 for wish, size in zip(roi, shape, strict=True)]
    first = parts.index(min(parts))
    return (first, *(axis for axis in range(3) if axis != first))


def starts(size: int, roi: int, overlap: float) -> list[int]:
    """Return the first voxels of the windows along an axis that is at least as long as a window."""
    step = roi if roi == size else max(int(roi * (1 - overlap)), 1)
    count = 1 + max(math.ceil((size - roi) / step), 0)
    return [min(number * step, size - roi) for number in range(count)]


def importance(roi: Sequence[int], inferer: Inferer) -> Tensor:
    """Return the weight of each voxel of a window, float32 (x, y, z)."""
    if inferer.mode == "constant":
        return torch.ones(tuple(roi))
    weights = torch.ones(())
    for size, scale in zip(roi, inferer.sigma_scale, strict=True):
        distances = torch.arange(size, dtype=torch.float32) - (size - 1) / 2
        weights = weights[..., None] * torch.exp(distances**2 / (-2 * (size * scale) ** 2))
    return weights.clamp_(min=max(float(weights.min()), LEAST_WEIGHT))


def _padded(image: Tensor, missing: Sequence[int], inferer: Inferer) -> Tensor:
    if not any(missing):
        return image
    sides = [side for lack in reversed(missing) for side in (lack // 2, lack - lack // 2)]
    value = inferer.cval if inferer.padding_mode == "constant" else None
    try:
        return F.pad(image[None], sides, inferer.padding_mode, value)[0]
    except RuntimeError as error:
        raise ModelError(
            f"The image is too small to be continued by {inferer.padding_mode} to the window of the model: {error}"
        ) from None

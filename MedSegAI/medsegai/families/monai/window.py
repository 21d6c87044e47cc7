"""Where MONAI's sliding window stands, and how much each voxel of a window counts.

As `monai.inferers.sliding_window_inference` of MONAI 1.6.1 does: windows follow each other at whole voxels, the
last one ends with the image, and an image that is smaller than a window is continued on both sides.
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
"""No voxel of a window counts less."""


def window_over(image: Tensor, inferer: Inferer, wanted: Box, reversed: bool) -> Window:
    """All windows over `image` (channel, x, y, z) that touch the `wanted` box of it.

    Raises:
        ModelError: the image is too small to be continued as the model asks.
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
    """The box of an image within a larger one, in which the image begins at `origin`."""
    pairs = zip(origin, box, strict=True)
    x, y, z = (slice(at.start + part.start, at.start + part.stop) for at, part in pairs)
    return x, y, z


def _touching(size: int, length: int, overlap: float, part: slice) -> list[int]:
    """The starts of windows along an axis that touch a part of it."""
    every = starts(size, length, overlap)
    return [at for at in every if at < part.stop and at + length > part.start]


def streaming_order(shape: Sequence[int], inferer: Inferer) -> tuple[int, ...]:
    """The axes (x, y, z) in the order in which windows are worked off: the sum of a row of them is smallest.

    Only the planes below a row of windows are held, so the first axis is the one of which a window is the smallest
    part.
    """
    roi = inferer.roi_size or (0, 0, 0)
    parts = [wish / size if 0 < wish < size else 1.0 for wish, size in zip(roi, shape, strict=True)]
    first = parts.index(min(parts))
    return (first, *(axis for axis in range(3) if axis != first))


def starts(size: int, roi: int, overlap: float) -> list[int]:
    """First voxels of the windows along one axis of an image that is at least as long as a window."""
    step = roi if roi == size else max(int(roi * (1 - overlap)), 1)
    count = 1 + max(math.ceil((size - roi) / step), 0)
    return [min(number * step, size - roi) for number in range(count)]


def importance(roi: Sequence[int], inferer: Inferer) -> Tensor:
    """Weight of each voxel of a window, float32 (x, y, z)."""
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

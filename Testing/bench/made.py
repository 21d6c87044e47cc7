"""Made scans and logits for the measurements, and how label maps are compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

Triple = tuple[int, int, int]


def made_ct(path: Path, shape: Triple, spacing: tuple[float, float, float]) -> Path:
    """Tissue, air and noise in Hounsfield units, int16 (k, j, i); spacing is (i, j, k). One block is repeated."""
    block = tuple(min(size, 256) for size in shape)
    generator = np.random.default_rng(0)
    blobs = ndimage.gaussian_filter(
        generator.standard_normal(block, dtype=np.float32), 6, mode="wrap"
    )
    values = np.where(blobs > 0, 40, -950) + 4000 * blobs
    values += generator.normal(0, 15, block).astype(np.float32)
    voxels = values.astype(np.int16)
    for axis, size in enumerate(shape):
        voxels = voxels.take(np.arange(size) % block[axis], axis)
    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing(spacing)
    sitk.WriteImage(image, str(path))
    return path


def organ_logits(low: Triple, classes: int = 25) -> Tensor:
    """Smooth logits of ellipsoids with soft edges in background, float32 (class, k, j, i)."""
    generator = np.random.default_rng(0)
    axes = [torch.linspace(0, 1, size) for size in low]
    values = torch.empty(classes, *low)
    values[0] = 2.0
    for organ in values[1:]:
        centre, radius = generator.uniform(0.15, 0.85, 3), generator.uniform(0.06, 0.14, 3)
        k, j, i = (
            ((axis - middle) / reach) ** 2
            for axis, middle, reach in zip(axes, centre, radius, strict=True)
        )
        organ.copy_(6 - 4 * (k[:, None, None] + j[:, None] + i).sqrt())
    values.clamp_(min=-12)
    for organ in values:
        organ += _smooth(low, 6, generator)
    return values


def dense_logits(low: Triple, classes: int = 25) -> Tensor:
    """As `organ_logits`, but every class is everywhere: about a quarter of the voxels lie at a boundary."""
    generator = np.random.default_rng(0)
    return torch.stack([6 * _smooth(low, 24, generator) for _ in range(classes)])


def _smooth(shape: Triple, cell: int, generator: np.random.Generator) -> Tensor:
    """Noise with a node every `cell` voxels."""
    nodes = generator.standard_normal([max(size // cell, 2) + 1 for size in shape])
    return F.interpolate(torch.from_numpy(nodes)[None, None].float(), shape, mode="trilinear")[0, 0]


def same(first: NDArray[Any], second: NDArray[Any]) -> float:
    """Share of voxels with equal labels."""
    return float((first == second).mean())


def worst_dice(first: NDArray[Any], second: NDArray[Any]) -> float:
    """The lowest Dice of a label that either has."""
    counts = [np.bincount(labels.ravel(), minlength=256) for labels in (first, second)]
    both = np.bincount(first[first == second].ravel(), minlength=256)
    total = sum(counts)
    return float(min(2 * both[value] / total[value] for value in np.flatnonzero(total[1:]) + 1))

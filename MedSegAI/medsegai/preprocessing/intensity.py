"""Scaling of intensities to [0, 1], in the same way for training and for inference."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

MODES = ("minmax", "conform", "percentile")


def scale_intensity(voxels: NDArray[np.number], mode: str = "percentile") -> NDArray[np.float32]:
    """Scale a whole volume to [0, 1]; a constant volume becomes zeros.

    ``minmax`` maps minimum and maximum. ``conform`` first brings the voxels to 8 bits as ``mri_convert --conform``
    does, then maps minimum and maximum (the original QuickNAT): values from 0 to 255 are only rounded, others are
    scaled so that 0.1 % of the voxels that are not zero lie above 255, and clipped. ``percentile`` maps the 0.5
    percentile of all voxels to 0 and the 99.5 percentile of the foreground (voxels above the mean) to 1 and clips
    what lies outside, so that neither a few bright vessels nor the amount of empty space around the head matters.

    ``voxels``: finite numbers of any shape. Raises ValueError for an unknown mode.
    """
    if mode not in MODES:
        raise ValueError(f"Intensity mode must be one of {', '.join(MODES)}, not {mode!r}")
    values = np.asarray(voxels, dtype=np.float32)
    if mode == "conform":
        values = _eight_bits(values)
    low, high = float(values.min()), float(values.max())
    if mode == "percentile" and high > low:
        foreground = values[values > values.mean(dtype=np.float64)]
        low = float(np.percentile(values, 0.5))
        high = float(np.percentile(foreground, 99.5))
    if high <= low:
        return np.zeros(values.shape, dtype=np.float32)
    scaled = (values - np.float32(low)) / np.float32(high - low)
    return np.clip(scaled, 0.0, 1.0, out=scaled)


def _eight_bits(values: NDArray[np.float32]) -> NDArray[np.float32]:
    low, high = float(values.min()), float(values.max())
    if (low < 0 or high > 255) and high > low:
        high = float(np.percentile(values[values != 0], 99.9))
        values = (values - low) * (255 / max(high - low, 1e-12))
    return np.clip(np.rint(values), 0, 255)

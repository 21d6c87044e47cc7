"""Intensities of one channel as nnU-Net's networks expect them, by the name of the scheme in their plans.

Each scheme computes what the class of that name in `nnunetv2.preprocessing.normalization` (2.8.1) computes, in
float32, on a single copy. Means are summed in double precision plane by plane, so that large images stay accurate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from medsegai.errors import InputError, ModelError
from medsegai.models.nnunet_parts import CT_FIGURES, NORMALISERS

Voxels = NDArray[np.float32]
Mask = NDArray[np.bool_] | None
Intensities = Mapping[str, float]

SMALLEST_SPREAD = 1e-8
"""Divisors are at least this, so that a constant image stays finite."""


def normalise(
    voxels: Voxels, scheme: str, mask: Mask = None, intensities: Intensities | None = None
) -> Voxels:
    """Return a normalised copy of one channel.

    Args:
        voxels: one channel, (k, j, i), finite.
        scheme: name of a class of nnunetv2.preprocessing.normalization, for example CTNormalization.
        mask: where plans say `use_mask_for_norm`, the voxels that ZScoreNormalization measures and changes,
            (k, j, i); the others keep their values. Other schemes ignore it.
        intensities: the channel's `foreground_intensity_properties_per_channel`, for CTNormalization: mean, std,
            percentile_00_5 and percentile_99_5.

    Returns:
        float32 (k, j, i).

    Raises:
        ModelError: the scheme is unknown, or its figures are missing.
        InputError: the scheme does not fit the voxels.
    """
    NORMALISERS.check(scheme, "The model")
    return SCHEMES[scheme](np.array(voxels, dtype=np.float32), mask, intensities or {})


def _ct(voxels: Voxels, mask: Mask, intensities: Intensities) -> Voxels:
    missing = [name for name in CT_FIGURES if name not in intensities]
    if missing:
        raise ModelError(
            f"The model normalises by CTNormalization, but its plans do not give {', '.join(missing)} of the "
            "channel. Export the model again with nnU-Net."
        )
    low, high, mean, spread = (float(intensities[name]) for name in CT_FIGURES)
    np.clip(voxels, np.float32(low), np.float32(high), out=voxels)
    voxels -= np.float32(mean)
    voxels /= np.float32(max(spread, SMALLEST_SPREAD))
    return voxels


def _z_score(voxels: Voxels, mask: Mask, intensities: Intensities) -> Voxels:
    mean, spread = _mean_and_spread(voxels, mask)
    if mask is None:
        voxels -= np.float32(mean)
        voxels /= np.float32(max(spread, SMALLEST_SPREAD))
    else:
        voxels[mask] = (voxels[mask] - np.float32(mean)) / np.float32(max(spread, SMALLEST_SPREAD))
    return voxels


def _unchanged(voxels: Voxels, mask: Mask, intensities: Intensities) -> Voxels:
    return voxels


def _to_one(voxels: Voxels, mask: Mask, intensities: Intensities) -> Voxels:
    voxels -= voxels.min()
    voxels /= max(voxels.max(), np.float32(SMALLEST_SPREAD))
    return voxels


def _colour(voxels: Voxels, mask: Mask, intensities: Intensities) -> Voxels:
    low, high = float(voxels.min()), float(voxels.max())
    if low < 0 or high > 255:
        raise InputError(
            "This model was made for colour channels, whose values run from 0 to 255, but the image has values "
            f"from {low:g} to {high:g}. Give it the image as 8-bit channels."
        )
    voxels /= np.float32(255)
    return voxels


SCHEMES: dict[str, Callable[[Voxels, Mask, Intensities], Voxels]] = {
    "CTNormalization": _ct,
    "ZScoreNormalization": _z_score,
    "NoNormalization": _unchanged,
    "RescaleTo01Normalization": _to_one,
    "RGBTo01Normalization": _colour,
}


def _mean_and_spread(voxels: Voxels, mask: Mask) -> tuple[float, float]:
    """Return mean and standard deviation of all voxels, or of those in the mask; 0 and 0 if there are none."""

    def total(of_plane: Callable[[Voxels], Voxels]) -> float:
        return math.fsum(
            of_plane(plane if mask is None else plane[mask[k]]).sum(dtype=np.float64)
            for k, plane in enumerate(voxels)
        )

    count = voxels.size if mask is None else int(np.count_nonzero(mask))
    if count == 0:
        return 0.0, 0.0
    mean = total(lambda plane: plane) / count
    return mean, math.sqrt(total(lambda plane: np.square(plane - np.float32(mean))) / count)

"""Inverted intensities, by which a T2-weighted image of a head becomes much like a T1-weighted one.

Networks that saw mostly T1-weighted images are far better on those than on any other contrast.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from medsegai.preprocessing.intensity import scale_intensity

DARK = 0.1
"""The share of the range below which voxels are air or bone, which are dark in every contrast and stay so."""


def inverted(voxels: NDArray[np.number]) -> NDArray[np.float32]:
    """Return voxels of any shape with bright and dark tissue exchanged, scaled to [0, 1]; air stays dark."""
    scaled = scale_intensity(voxels)
    return scale_intensity(np.where(scaled > DARK, 1.0 - scaled, np.float32(0.0)))

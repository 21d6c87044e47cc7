"""Where a slide has tissue, which has more colour, or is darker, than the glass around it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

COLOUR_THRESHOLDS, GREY_THRESHOLDS = (8, 40), (30, 120)
"""The bounds of the threshold (of 255), because the histogram of a slide full of tissue does not have a valley."""

DARK = 60
"""Pixels with all channels below this are pen, edges of the coverslip, or were not scanned."""


def tissue_mask(rgb: NDArray[np.uint8], smallest: int = 4) -> NDArray[np.bool_]:
    """Return which pixels of an overview show tissue.

    Stains absorb light of some wavelengths, so channels differ on tissue and are equal on glass. The threshold is
    Otsu's (N. Otsu, "A Threshold Selection Method from Gray-Level Histograms", 1979). In grey pictures, which have
    no colour, tissue is darker than the glass.

    Args:
        rgb: (row, column, 3).
        smallest: the size of the smallest piece that counts, in pixels; smaller holes are filled, too.

    Returns:
        bool (row, column).
    """
    highest, lowest = rgb.max(2), rgb.min(2)
    coloured = bool((highest - lowest).max() > COLOUR_THRESHOLDS[0])
    amount = highest - lowest if coloured else 255 - highest
    low, high = COLOUR_THRESHOLDS if coloured else GREY_THRESHOLDS
    mask = amount > np.clip(otsu(amount), low, high)
    if coloured:
        mask &= highest > DARK
    mask = _without_small(mask, smallest)
    return ~_without_small(~mask, smallest)


def otsu(values: NDArray[np.uint8]) -> int:
    """Return the value that splits a histogram into two classes of the least variance; the upper class lies above
    it.
    """
    counts = np.bincount(values.ravel(), minlength=256).astype(np.float64)
    below = counts.cumsum()
    above = below[-1] - below
    sums = (counts * np.arange(256)).cumsum()
    with np.errstate(divide="ignore", invalid="ignore"):
        apart = below * above * (sums / below - (sums[-1] - sums) / above) ** 2
    return int(np.nan_to_num(apart, posinf=0.0).argmax())


def _without_small(mask: NDArray[np.bool_], smallest: int) -> NDArray[np.bool_]:
    pieces, count = ndimage.label(mask)
    sizes = np.bincount(pieces.ravel(), minlength=count + 1)
    sizes[0] = 0
    kept: NDArray[np.bool_] = (sizes >= smallest)[pieces]
    return kept

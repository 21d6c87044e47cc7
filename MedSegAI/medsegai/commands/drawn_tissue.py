"""A drawn picture of stained tissue, so that the demo in two dimensions does not need a picture of a patient."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

SIDES = (256, 320)
TISSUE, STAIN = (187.0, 170.0, 207.0), (70.0, 95.0, 55.0)
"""Red, green and blue of the tissue between nuclei, and what nuclei absorb of it."""

SMALLEST, LARGEST = 6.0, 11.0
"""Half the length of nuclei in pixels."""

TRIES = 400


def drawn_tissue(seed: int = 1) -> tuple[NDArray[np.uint8], int]:
    """Return the picture (j, i, colour) and the number of nuclei; some of them touch, but none overlap."""
    random = np.random.default_rng(seed)
    objects = np.zeros(SIDES, np.int32)
    count = 0
    for _ in range(TRIES):
        nucleus = _ellipse(random)
        if not objects[nucleus].any():
            count += 1
            objects[nucleus] = count
    chromatin = ndimage.gaussian_filter(random.normal(size=SIDES), 1.5) * 4
    paleness = random.uniform(0.5, 1.1, count + 1)[objects]
    density = np.where(objects > 0, paleness * (1 + 0.35 * np.clip(chromatin, -1.5, 1.5)), 0.0)
    density += np.where(objects != ndimage.minimum_filter(objects, 3), 0.25, 0.0)  # membranes
    density = ndimage.gaussian_filter(density, 0.8)
    stroma = ndimage.gaussian_filter(random.normal(size=SIDES), 6) * 60
    grain = random.normal(scale=2.0, size=(*SIDES, 3))
    picture = np.array(TISSUE) - density[..., None] * STAIN + stroma[..., None] + grain
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8), count


def _ellipse(random: np.random.Generator) -> NDArray[np.bool_]:
    """Return the pixels of a nucleus of random place, size and direction."""
    j, i = np.indices(SIDES)
    middle = random.uniform((0, 0), SIDES)
    long = random.uniform(SMALLEST, LARGEST)
    short = long * random.uniform(0.55, 0.9)
    angle = random.uniform(0, np.pi)
    down, right = j - middle[0], i - middle[1]
    along = down * np.cos(angle) + right * np.sin(angle)
    across = right * np.cos(angle) - down * np.sin(angle)
    inside: NDArray[np.bool_] = (along / long) ** 2 + (across / short) ** 2 < 1
    return inside

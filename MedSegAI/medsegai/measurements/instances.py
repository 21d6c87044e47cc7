"""Objects that touch, told apart: from the inside and the border of each to one number an object, and a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medsegai.volume import Volume

CORNERS = ndimage.generate_binary_structure(2, 2)
"""Pixels touch by edges and corners."""


def separated(
    inside: NDArray[np.bool_], border: NDArray[np.bool_], smallest: int = 1
) -> NDArray[np.int32]:
    """A number for each object, from 1, and 0 outside of all, int32 (j, i).

    Each connected part of the insides is an object. It grows into the border around it, step by step and not
    further than the border goes, until objects meet. What is border alone is an object, too.

    Args:
        inside: pixels within objects, bool (j, i).
        border: pixels of their outermost layer, likewise.
        smallest: pixels; smaller objects are left out.
    """
    objects, count = ndimage.label(inside)
    whole = inside | border
    while True:
        grown = ndimage.grey_dilation(objects, footprint=CORNERS, mode="constant")
        reached = whole & (objects == 0) & (grown > 0)
        if not reached.any():
            break
        objects[reached] = grown[reached]
    alone, _ = ndimage.label(whole & (objects == 0), CORNERS)
    objects[alone > 0] = alone[alone > 0] + count
    sizes = np.bincount(objects.ravel())
    sizes[0] = 0
    kept = np.flatnonzero(sizes >= smallest)
    numbers = np.zeros(len(sizes), np.int32)
    numbers[kept[kept > 0]] = np.arange(1, np.count_nonzero(kept > 0) + 1)
    return numbers[objects]


def object_rows(
    objects: NDArray[np.int32], channels: Sequence[Volume], image: Volume
) -> list[dict[str, Any]]:
    """A row for each object: number, pixels, area, centroid and mean of each channel.

    Args:
        objects: numbers (j, i), from `separated`.
        channels: of the picture, for their means; () for none.
        image: of one slice; gives their places and sizes.

    Returns:
        `area_mm2`, `r_mm` and `a_mm` are None where the size of a pixel is not known.
    """
    numbers = np.arange(1, int(objects.max(initial=0)) + 1)
    if not len(numbers):
        return []
    pixels = np.bincount(objects.ravel(), minlength=len(numbers) + 1)[1:]
    centers = np.array(ndimage.center_of_mass(objects > 0, objects, numbers)).reshape(-1, 2)
    means = [ndimage.mean(channel.voxels[0], objects, numbers) for channel in channels]
    across, along, _ = image.geometry.spacing_mm
    rows = []
    for place, number in enumerate(numbers.tolist()):
        j, i = (float(part) for part in centers[place])
        world = image.geometry.ijk_to_ras @ [i, j, 0.0, 1.0]
        known = image.size_known
        rows.append(
            {
                "number": number,
                "pixels": int(pixels[place]),
                "area_mm2": float(pixels[place] * across * along) if known else None,
                "row": round(j, 2),
                "column": round(i, 2),
                "r_mm": float(world[0]) if known else None,
                "a_mm": float(world[1]) if known else None,
                **{
                    f"mean_{n}": round(float(values[place]), 2) for n, values in enumerate(means, 1)
                },
            }
        )
    return rows

"""The measures of separate objects, such as nuclei, with NumPy alone, because Slicer's process makes them, too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsegai.volume import Volume


def object_rows(
    objects: NDArray[np.integer], channels: Sequence[Volume], image: Volume
) -> list[dict[str, Any]]:
    """Make a row for each object: number, pixels, area, centroid, and the mean of each channel.

    Args:
        objects: numbers of objects from 1, with 0 for the background, (j, i); numbers may be missing.
        channels: the channels of the picture, for their means; () for none.
        image: an image of one slice, which gives positions and sizes.

    Returns:
        The rows; `area_mm2`, `r_mm` and `a_mm` are None if the size of a pixel is not known.
    """
    j, i = np.nonzero(objects)
    owners = objects[j, i]
    pixels = np.bincount(owners)
    numbers = np.flatnonzero(pixels)

    def mean(values: NDArray[Any]) -> NDArray[np.float64]:
        return np.bincount(owners, weights=values)[numbers] / pixels[numbers]

    means = [mean(channel.voxels[0][j, i]) for channel in channels]
    across, along, _ = image.geometry.spacing_mm
    known, rows = image.size_known, []
    for place, (number, row, column) in enumerate(zip(numbers, mean(j), mean(i), strict=True)):
        world = image.geometry.ijk_to_ras @ [column, row, 0.0, 1.0]
        count = int(pixels[number])
        rows.append(
            {
                "number": int(number),
                "pixels": count,
                "area_mm2": float(count * across * along) if known else None,
                "row": round(float(row), 2),
                "column": round(float(column), 2),
                "r_mm": float(world[0]) if known else None,
                "a_mm": float(world[1]) if known else None,
                **{
                    f"mean_{n}": round(float(values[place]), 2) for n, values in enumerate(means, 1)
                },
            }
        )
    return rows

"""Suspicious places: the connected regions of a result, each with its size and probability, most probable first.

On a slide, these are the places that a person reviews one after another.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medsegai.labels import Label
from medsegai.request import SegmentationResult
from medsegai.volume import Box, Geometry

TOUCHING = np.ones((3, 3, 3), bool)
"""The neighbourhood (k, j, i) of a voxel: voxels that share a face, an edge or a corner are connected."""


PLACE_COLUMNS = (
    "name",
    "value",
    "voxels",
    "area_mm2",
    "volume_ml",
    "highest_probability",
    "mean_probability",
    "r_mm",
    "a_mm",
    "s_mm",
)
"""The columns of the table of suspicious places, in the order of the file."""


@dataclass(frozen=True)
class SuspiciousPlace:
    """One connected region of one label.

    Attributes:
        label: the label of its voxels.
        voxels: the number of its voxels.
        area_mm2: its area if the image has one slice and its pixels have a known size, else None.
        volume_ml: its volume if the image has several slices, else None.
        highest, mean: the highest and the mean probability of the label in its voxels; None if the result holds
            no probabilities.
        centre_ras: the mean position of its voxels in RAS, in mm.
    """

    label: Label
    voxels: int
    area_mm2: float | None
    volume_ml: float | None
    highest: float | None
    mean: float | None
    centre_ras: tuple[float, float, float]

    def to_dict(self) -> dict[str, Any]:
        """A row of the table; its keys are `PLACE_COLUMNS`."""
        names = ("r_mm", "a_mm", "s_mm")
        sizes = {name: getattr(self, name) for name in ("voxels", "area_mm2", "volume_ml")}
        probabilities = {"highest_probability": self.highest, "mean_probability": self.mean}
        places = dict(zip(names, self.centre_ras, strict=True))
        return {"name": self.label.name, "value": self.label.value} | sizes | probabilities | places


def suspicious_places(result: SegmentationResult) -> list[SuspiciousPlace]:
    """The connected regions of all labels, most probable first; without probabilities, largest first."""
    found = [
        place
        for number, label in enumerate(result.labels)
        for place in _places(result, label, _probability(result, number))
    ]
    return sorted(found, key=lambda place: (-(place.highest or 0.0), -place.voxels))


def _probability(result: SegmentationResult, number: int) -> NDArray[np.floating] | None:
    """The probability of the label with this number, float (k, j, i); None if the result holds none."""
    if result.probabilities is not None:
        return np.asarray(result.probabilities[number], np.float32)
    if result.candidates is not None:
        return result.candidates.probability_of(result.labels[number].value)
    return None


def _places(
    result: SegmentationResult, label: Label, probability: NDArray[np.floating] | None
) -> Iterator[SuspiciousPlace]:
    labelmap = result.labelmap
    regions, count = ndimage.label(labelmap.voxels == label.value, TOUCHING)
    grid, flat = labelmap.geometry, labelmap.voxels.shape[0] == 1
    pixel_mm2 = grid.spacing_mm[0] * grid.spacing_mm[1]
    for number, box in enumerate(ndimage.find_objects(regions, count), start=1):
        mask = regions[box] == number
        voxels = int(mask.sum())
        yield SuspiciousPlace(
            label,
            voxels,
            voxels * pixel_mm2 if flat and labelmap.size_known else None,
            None if flat else voxels * grid.voxel_volume_ml,
            *_highest_and_mean(None if probability is None else probability[box][mask]),
            _middle(mask, box, grid),
        )


def _highest_and_mean(
    values: NDArray[np.floating] | None,
) -> tuple[float | None, float | None]:
    return (None, None) if values is None else (float(values.max()), float(values.mean()))


def _middle(mask: NDArray[np.bool_], box: Box, grid: Geometry) -> tuple[float, float, float]:
    places = zip(np.nonzero(mask), box, strict=True)
    k, j, i = (float(at.mean()) + part.start for at, part in places)
    r, a, s = (grid.ijk_to_ras @ [i, j, k, 1.0])[:3]
    return float(r), float(a), float(s)

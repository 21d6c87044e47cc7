"""Comparison of a label map with its reference: overlap, surface distances and volumes of each structure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import cKDTree

from medsegai.boxes import label_boxes
from medsegai.errors import InputError
from medsegai.labels import Label
from medsegai.progress import Check, unstoppable
from medsegai.volume import Volume, check_same_grid, joined_box


@dataclass(frozen=True)
class StructureFigures:
    """One structure in one case; A is the prediction, B the reference.

    If the structure is absent from both, all figures are NaN. If it is absent from one, Dice and IoU are 0 and the
    distances NaN; if it is absent from the reference, the relative volume difference is NaN as well.

    Attributes:
        label: the label of the structure.
        dice: 2 |A and B| / (|A| + |B|), 0 to 1.
        iou: |A and B| / |A or B|, 0 to 1.
        hd95_mm: 95th percentile of the Hausdorff distance, see `surface_figures`.
        assd_mm: average symmetric surface distance, see `surface_figures`.
        signed_mm: the same with a sign: positive where A reaches beyond B, negative where it falls short.
        prediction_ml: volume of A.
        reference_ml: volume of B.
        volume_difference_ml: A - B.
        volume_difference_percent: (A - B) / B.
    """

    label: Label
    dice: float = math.nan
    iou: float = math.nan
    hd95_mm: float = math.nan
    assd_mm: float = math.nan
    signed_mm: float = math.nan
    prediction_ml: float = math.nan
    reference_ml: float = math.nan
    volume_difference_ml: float = math.nan
    volume_difference_percent: float = math.nan

    def to_dict(self) -> dict[str, float]:
        """The figures by their names, without the label."""
        return {name: getattr(self, name) for name in FIGURES}


FIGURES = tuple(item.name for item in fields(StructureFigures) if item.name != "label")
"""The names of the figures, in their order in tables and files."""


def evaluate(
    prediction: Volume, reference: Volume, labels: Sequence[Label], check: Check = unstoppable
) -> list[StructureFigures]:
    """Compare two label maps structure by structure.

    Args:
        prediction: label values, whole numbers from 0, (k, j, i).
        reference: the same, on the same grid.
        labels: the values to compare, and their names.
        check: called before each structure.

    Returns:
        One entry per label, in the order of `labels`.

    Raises:
        GeometryError: the grids differ. Nothing is resampled: figures on resampled labels would
            measure the resampling too.
        InputError: voxels are not whole numbers from 0.
    """
    for volume in (prediction, reference):
        _require_labels(volume)
    _require_same_grid(prediction, reference)
    values = [label.value for label in labels]
    boxes = [label_boxes(volume.voxels, values) for volume in (prediction, reference)]
    figures = []
    for label in labels:
        check()
        there = [found[label.value] for found in boxes if label.value in found]
        if not there:
            figures.append(StructureFigures(label))
            continue
        box = joined_box(there)
        masks = (prediction.voxels[box] == label.value, reference.voxels[box] == label.value)
        figures.append(_structure(label, *masks, reference))
    return figures


class SurfaceFigures(NamedTuple):
    """Distances between the surfaces of two structures, in mm, as `StructureFigures` names them."""

    hd95_mm: float = math.nan
    assd_mm: float = math.nan
    signed_mm: float = math.nan


def surface_figures(
    first: NDArray[np.bool_], second: NDArray[np.bool_], spacing_mm: Sequence[float]
) -> SurfaceFigures:
    """Compute distances between the surfaces of two structures, in mm.

    The surface of a structure is its voxels that have a neighbour outside across a face; distances
    run between voxel centres, from each surface voxel to the nearest one of the other surface.
    HD95 is the larger of the two 95th percentiles, one per direction (linear interpolation between
    ranks). ASSD is the mean over the surface voxels of both (Heimann et al., IEEE TMI 28, 2009). The
    signed distance is that mean with a minus for what lies inside `second` of the surface of `first`, and
    for what lies outside `first` of the surface of `second`. The first two are
    the definitions of MONAI's `compute_hausdorff_distance(percentile=95)` and
    `compute_average_surface_distance(symmetric=True)`.

    Args:
        first: mask, bool (k, j, i), not empty; the structure lies completely within the array.
        second: the same, on the same grid.
        spacing_mm: voxel spacing along (i, j, k).
    """
    # Points in k-d trees are exact in double precision and need no distance map of the whole box.
    step = np.asarray(spacing_mm, np.float64)[::-1]
    surfaces = [_surface(mask) for mask in (first, second)]
    there, _ = cKDTree(surfaces[1] * step).query(surfaces[0] * step)
    back, _ = cKDTree(surfaces[0] * step).query(surfaces[1] * step)
    beyond = np.concatenate([~second[tuple(surfaces[0].T)], first[tuple(surfaces[1].T)]])
    distances = np.concatenate([there, back])
    hd95 = max(np.percentile(there, 95), np.percentile(back, 95))
    signed = np.where(beyond, distances, -distances)
    return SurfaceFigures(float(hd95), float(distances.mean()), float(signed.mean()))


def _structure(
    label: Label, mask: NDArray[np.bool_], truth: NDArray[np.bool_], grid: Volume
) -> StructureFigures:
    predicted, true = int(mask.sum()), int(truth.sum())
    common = int((mask & truth).sum())
    voxel_ml = grid.geometry.voxel_volume_ml
    surfaces = SurfaceFigures()
    if predicted and true:
        surfaces = surface_figures(mask, truth, grid.geometry.spacing_mm)
    return StructureFigures(
        label,
        dice=2 * common / (predicted + true),
        iou=common / (predicted + true - common),
        **surfaces._asdict(),
        prediction_ml=predicted * voxel_ml,
        reference_ml=true * voxel_ml,
        volume_difference_ml=(predicted - true) * voxel_ml,
        volume_difference_percent=100 * (predicted - true) / true if true else math.nan,
    )


def _surface(mask: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Indices of the surface voxels, (point, 3) along (k, j, i); voxels at the array's border count."""
    return np.argwhere(mask & ~ndimage.binary_erosion(mask))


def _require_labels(volume: Volume) -> None:
    whole = np.issubdtype(volume.voxels.dtype, np.integer)
    if not whole or (volume.voxels.size and volume.voxels.min() < 0):
        raise InputError(
            f"{volume.source or 'A label map'} does not hold label values (whole numbers from 0). "
            "Name a segmentation, not an image."
        )


def _require_same_grid(prediction: Volume, reference: Volume) -> None:
    check_same_grid(
        prediction.geometry,
        reference.geometry,
        prediction.source or "The prediction",
        reference.source or "the reference",
        "Segment the image that the reference was drawn on, or resample one of the two label maps "
        "onto the other's grid with nearest neighbour and say so with the figures.",
    )

"""The segments of a segmentation as a table shows them, also after a person edited them."""

from __future__ import annotations

from typing import Any

import numpy as np

from medsegai.labels import Label
from medsegai.request import StructureMeasures
from MedSegAILib.flags import doubt
from MedSegAILib.scene.inputs import transform_to_world
from MedSegAILib.scene.layers import layers_of
from MedSegAILib.scene.review import review_state
from MedSegAILib.scene.segments import label_value, measures_of
from MedSegAILib.translation import tr as _
from MedSegAILib.view import StructureRow

# Measures of uncertainty, as the tool tip names them.
_TITLES = {
    "iou": "IoU",
    "pairwise_dice": "Dice",
    "volume_cv": "CV",
    "mean_entropy": "Entropy",
}


def rows(segmentation: Any) -> list[StructureRow]:
    """One row per segment, in the segmentation's order.

    Raises:
        GeometryError: the segmentation stands under a transform that is not linear.
    """
    voxels = _volumes_ml(segmentation)
    segments = segmentation.GetSegmentation()
    return [_row(segmentation, name, voxels.get(name, 0.0)) for name in segments.GetSegmentIDs()]


def _volumes_ml(segmentation: Any) -> dict[str, float]:
    to_world = transform_to_world(segmentation)
    found = {}
    for layer in layers_of(segmentation):
        counts = np.bincount(layer.voxels.ravel())
        voxel_ml = abs(float(np.linalg.det(to_world[:3, :3]))) * layer.geometry.voxel_volume_ml
        for name, value in layer.values.items():
            found[name] = voxel_ml * int(counts[value] if value < len(counts) else 0)
    return found


def _row(segmentation: Any, name: str, volume_ml: float) -> StructureRow:
    segment = segmentation.GetSegmentation().GetSegment(name)
    red, green, blue = (round(255 * part) for part in segment.GetColor())
    color, title = (red, green, blue), segment.GetName() or name
    known = measures_of(segment)
    label = Label(label_value(segmentation, name) or 1, title, color)
    reason = doubt(StructureMeasures(label, 1, volume_ml, **known))
    words = ", ".join(f"{_(_TITLES[key])} {value:.3f}" for key, value in known.items())
    return StructureRow(
        name,
        title,
        color,
        volume_ml,
        known.get("iou"),
        "\n".join(part for part in (words, reason) if part),
        bool(reason),
        review_state(segmentation, name).value,
    )

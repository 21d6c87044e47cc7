"""The segments of a segmentation as a table shows them, also after a person edited them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from medsegai.labels import Label
from medsegai.request import StructureMeasures
from MedSegAILib.flags import doubt
from MedSegAILib.scene.inputs import transform_to_world
from MedSegAILib.scene.layers import Layer, layers_of
from MedSegAILib.scene.review import review_state
from MedSegAILib.scene.segments import label_value, measures_of, painted
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

    How far members agreed is left out where a person edited what they wrote.

    Raises:
        GeometryError: the segmentation stands under a transform that is not linear.
    """
    layers = layers_of(segmentation)
    sizes, by_hand = _volumes_ml(segmentation, layers), painted(segmentation, layers)
    segments = segmentation.GetSegmentation()
    found = []
    for name in segments.GetSegmentIDs():
        known = {} if name in by_hand else measures_of(segments.GetSegment(name))
        found.append(_row(segmentation, name, sizes.get(name, 0.0), known))
    return found


def _volumes_ml(segmentation: Any, layers: Iterable[Layer]) -> dict[str, float]:
    to_world = transform_to_world(segmentation)
    found = {}
    for layer in layers:
        voxel_ml = abs(float(np.linalg.det(to_world[:3, :3]))) * layer.geometry.voxel_volume_ml
        top = max(int(layer.voxels.max()), *layer.values.values()) + 1
        counts = np.zeros(top, np.int64)
        for plane in layer.voxels:
            counts += np.bincount(plane.ravel(), minlength=top)
        for name, value in layer.values.items():
            found[name] = voxel_ml * int(counts[value])
    return found


def _row(
    segmentation: Any, name: str, volume_ml: float, known: Mapping[str, float]
) -> StructureRow:
    segment = segmentation.GetSegmentation().GetSegment(name)
    red, green, blue = (round(255 * part) for part in segment.GetColor())
    color, title = (red, green, blue), segment.GetName() or name
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

"""The rows of the table of structures, also after a person edited the segments."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from medsegai.models.quality import quality_of
from MedSegAILib.panel_values import SegmentRow, StructureRow
from MedSegAILib.scene.inputs import transform_to_world
from MedSegAILib.scene.layers import Layer, layers_of
from MedSegAILib.scene.review import is_locked, review_state
from MedSegAILib.scene.segments import measures_of, painted, remarks_of
from MedSegAILib.scene.visibility import is_shown
from MedSegAILib.slicer_types import Segment, SegmentationNode
from MedSegAILib.translation import tr as _

MEASURES = {
    "iou": "IoU",
    "pairwise_dice": _("Dice between networks"),
    "volume_cv": _("CV of volume"),
    "mean_entropy": _("entropy"),
    "mutual_information": _("mutual information"),
}
"""Measures of uncertainty, which the end of the tool tip names for experts."""


def rows(segmentation: SegmentationNode) -> list[StructureRow]:
    """Return one row per segment, in the segmentation's order.

    Agreement of members and remarks are left out for segments that a person edited.

    Raises:
        GeometryError: the segmentation has a parent transform that is not linear.
    """
    layers = layers_of(segmentation)
    sizes, by_hand = _volumes_ml(segmentation, layers), painted(segmentation, layers)
    segments = segmentation.GetSegmentation()
    found = []
    for name in segments.GetSegmentIDs():
        found.append(_row(segmentation, name, sizes.get(name, 0.0), name in by_hand))
    return found


def segments(segmentation: SegmentationNode) -> list[SegmentRow]:
    """Return the segments to choose from, and which are completed, without reading voxels."""
    found = []
    for name in segmentation.GetSegmentation().GetSegmentIDs():
        segment = segmentation.GetSegmentation().GetSegment(name)
        found.append(
            SegmentRow(
                name, segment.GetName() or name, _color(segment), is_locked(segmentation, name)
            )
        )
    return found


def segment_ids(segmentation: SegmentationNode, names: Iterable[str]) -> list[str]:
    """Return the ids of segments that are given by id or name; other texts are unchanged."""
    if segmentation is None:
        return list(names)
    known = segmentation.GetSegmentation()
    return [
        name
        if known.GetSegment(name) is not None
        else known.GetSegmentIdBySegmentName(name) or name
        for name in names
    ]


def _color(segment: Segment) -> tuple[int, int, int]:
    red, green, blue = (round(255 * part) for part in segment.GetColor())
    return red, green, blue


def _volumes_ml(segmentation: SegmentationNode, layers: Iterable[Layer]) -> dict[str, float]:
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
    segmentation: SegmentationNode, name: str, volume_ml: float, by_hand: bool
) -> StructureRow:
    segment = segmentation.GetSegmentation().GetSegment(name)
    known = {} if by_hand else measures_of(segment)
    remarks = "" if by_hand else remarks_of(segment)
    return StructureRow(
        name,
        segment.GetName() or name,
        _color(segment),
        volume_ml,
        quality_of(known, bool(remarks)),
        _reasons(known, remarks),
        review_state(segmentation, name).value,
        is_shown(segmentation, name),
    )


def _reasons(known: Mapping[str, float], remarks: str) -> str:
    """Return the reasons of a structure's quality, one sentence per line, with measurements last."""
    lines = [f"{part[:1].upper()}{part[1:].rstrip('.')}." for part in remarks.split("; ") if part]
    expected = known.get("expected_dice")
    if expected is not None:
        lines.append(
            _(
                "Expected Dice with an expert's segmentation: {number:.2f} (1 is complete agreement)."
            ).format(number=expected)
        )
    measured = [f"{title} {known[key]:.3f}" for key, title in MEASURES.items() if key in known]
    if measured:
        lines.append(_("Measured: {numbers}").format(numbers=", ".join(measured)))
    return "\n".join(lines)

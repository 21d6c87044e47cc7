"""The visibility of segmentations: only one of those that show the same structures of a scan is shown."""

from __future__ import annotations

from collections.abc import Iterable

from MedSegAILib.scene.nodes import nodes_of
from MedSegAILib.scene.reports import REPORT_ATTRIBUTE
from MedSegAILib.slicer_types import MRMLScene, SegmentationNode


def results(scene: MRMLScene) -> list[SegmentationNode]:
    """Return the segmentations that MedSegAI made, in the order of the scene."""
    return [
        node
        for node in nodes_of(scene, "vtkMRMLSegmentationNode")
        if node.GetAttribute(REPORT_ATTRIBUTE) and not node.GetHideFromEditors()
    ]


def only_result(scene: MRMLScene) -> SegmentationNode:
    """Return the only result, or the only one that is shown; None if there is no such result."""
    found = results(scene)
    if len(found) > 1:
        found = [node for node in found if _is_drawn(node)]
    return found[0] if len(found) == 1 else None


def draw_alone(scene: MRMLScene, segmentation: SegmentationNode) -> list[SegmentationNode]:
    """Draw a segmentation, and no other result on the same image that has a segment in common with it.

    Segmentations that a person made stay drawn.

    Returns:
        The segmentations that are no longer shown.
    """
    segmentation.CreateDefaultDisplayNodes()
    segmentation.GetDisplayNode().SetVisibility(True)
    hidden = []
    for other in results(scene):
        if other is not segmentation and _is_drawn(other) and _same_shown(other, segmentation):
            other.GetDisplayNode().SetVisibility(False)
            hidden.append(other)
    return hidden


def draw_again(scene: MRMLScene, segmentations: Iterable[SegmentationNode]) -> None:
    """Show these segmentations, if they are still in the scene."""
    for node in segmentations:
        if scene.IsNodePresent(node) and node.GetDisplayNode() is not None:
            node.GetDisplayNode().SetVisibility(True)


def _is_drawn(segmentation: SegmentationNode) -> bool:
    display = segmentation.GetDisplayNode()
    return display is not None and bool(display.GetVisibility())


def _same_shown(first: SegmentationNode, second: SegmentationNode) -> bool:
    """Whether two segmentations of one image have a segment of the same name."""
    role = first.GetReferenceImageGeometryReferenceRole()
    image = first.GetNodeReferenceID(role)
    same_image = image is not None and image == second.GetNodeReferenceID(role)
    return same_image and bool(_names(first) & _names(second))


def _names(segmentation: SegmentationNode) -> set[str]:
    segments = segmentation.GetSegmentation()
    return {segments.GetSegment(name).GetName() for name in segments.GetSegmentIDs()}

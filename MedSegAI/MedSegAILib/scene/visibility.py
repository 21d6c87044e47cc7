"""The visibility of segments in the views, and the opacity of their surfaces."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import slicer

from MedSegAILib.scene.nodes import modifying
from MedSegAILib.scene.segments import OPACITY_3D_TAG, tag_of
from MedSegAILib.slicer_types import Node, SegmentationNode


def is_shown(segmentation: SegmentationNode, segment_id: str) -> bool:
    """Whether a segment is visible if its segmentation is, which is the default."""
    display = segmentation.GetDisplayNode()
    return display is None or bool(display.GetSegmentVisibility(segment_id))


def is_in_3d(segmentation: SegmentationNode, segment_id: str) -> bool:
    """Whether 3D views show a segment's surface if they show those of its segmentation."""
    display = segmentation.GetDisplayNode()
    return display is None or bool(display.GetSegmentVisibility3D(segment_id))


def watch(segmentation: SegmentationNode, changed: Callable[[], None]) -> Callable[[], None]:
    """Call `changed` whenever the display of a segmentation or one of its segments changes.

    The segmentation reports changes of its display node, even if it gets another one.

    Returns:
        The function that ends it.
    """
    event = slicer.vtkMRMLDisplayableNode.DisplayModifiedEvent
    tag = segmentation.AddObserver(event, lambda _caller, _event: changed())
    return lambda: segmentation.RemoveObserver(tag)


def set_shown(segmentation: SegmentationNode, segment_ids: Iterable[str], shown: bool) -> None:
    """Show or hide segments; others are not changed."""
    display = _display(segmentation)
    with modifying(display):
        for name in segment_ids:
            display.SetSegmentVisibility(name, shown)


def show_in_3d(segmentation: SegmentationNode, segment_ids: Iterable[str], shown: bool) -> None:
    """Show or hide the surfaces of segments in 3D views; slice views are not changed."""
    display = _display(segmentation)
    with modifying(display):
        for name in segment_ids:
            display.SetSegmentVisibility3D(name, shown)


def show_only(segmentation: SegmentationNode, segment_ids: Iterable[str]) -> None:
    """Show only these segments."""
    wanted = set(segment_ids)
    every = segmentation.GetSegmentation().GetSegmentIDs()
    set_shown(segmentation, [name for name in every if name not in wanted], False)
    set_shown(segmentation, [name for name in every if name in wanted], True)


def show_as_the_card_says(segmentation: SegmentationNode, segment_ids: Iterable[str]) -> None:
    """Give new segments the opacity in 3D from the model's card; segments of opacity 0 are hidden there."""
    display = _display(segmentation)
    with modifying(display):
        for name in segment_ids:
            text = tag_of(segmentation.GetSegmentation().GetSegment(name), OPACITY_3D_TAG)
            if text:
                display.SetSegmentVisibility3D(name, float(text) > 0)
                display.SetSegmentOpacity3D(
                    name, float(text) or 1.0
                )  # so that it is visible when it is shown


def _display(segmentation: SegmentationNode) -> Node:
    segmentation.CreateDefaultDisplayNodes()
    return segmentation.GetDisplayNode()

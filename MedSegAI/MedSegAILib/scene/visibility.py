"""Which segments are drawn in the views, and how opaque their surfaces are."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import slicer

from MedSegAILib.scene.segments import OPACITY_3D_TAG, tag_of
from MedSegAILib.slicer_types import Node, SegmentationNode


def is_shown(segmentation: SegmentationNode, segment_id: str) -> bool:
    """Whether a segment is drawn where its segmentation is; all are where nothing says otherwise."""
    display = segmentation.GetDisplayNode()
    return display is None or bool(display.GetSegmentVisibility(segment_id))


def is_in_3d(segmentation: SegmentationNode, segment_id: str) -> bool:
    """Whether 3D views show a segment's surface where they show those of its segmentation."""
    display = segmentation.GetDisplayNode()
    return display is None or bool(display.GetSegmentVisibility3D(segment_id))


def watch(segmentation: SegmentationNode, changed: Callable[[], None]) -> Callable[[], None]:
    """Call `changed` whenever somebody changes how a segmentation or one of its segments is drawn.

    The segmentation tells it of its display node, also where it gets another one.

    Returns:
        what ends it.
    """
    event = slicer.vtkMRMLDisplayableNode.DisplayModifiedEvent
    tag = segmentation.AddObserver(event, lambda _caller, _event: changed())
    return lambda: segmentation.RemoveObserver(tag)


def set_shown(segmentation: SegmentationNode, segment_ids: Iterable[str], shown: bool) -> None:
    """Draw segments, or do not; others stay as they are."""
    display = _display(segmentation)
    was_modifying = display.StartModify()
    for name in segment_ids:
        display.SetSegmentVisibility(name, shown)
    display.EndModify(was_modifying)


def show_in_3d(segmentation: SegmentationNode, segment_ids: Iterable[str], shown: bool) -> None:
    """Show the surfaces of segments in 3D views, or do not; in slices all stays as it is."""
    display = _display(segmentation)
    was_modifying = display.StartModify()
    for name in segment_ids:
        display.SetSegmentVisibility3D(name, shown)
    display.EndModify(was_modifying)


def show_only(segmentation: SegmentationNode, segment_ids: Iterable[str]) -> None:
    """Draw these segments, and no others."""
    wanted = set(segment_ids)
    every = segmentation.GetSegmentation().GetSegmentIDs()
    set_shown(segmentation, [name for name in every if name not in wanted], False)
    set_shown(segmentation, [name for name in every if name in wanted], True)


def show_as_the_card_says(segmentation: SegmentationNode, segment_ids: Iterable[str]) -> None:
    """Give new segments the opacity in 3D that the model's card has for them; one of 0 is not shown there."""
    display = _display(segmentation)
    was_modifying = display.StartModify()
    for name in segment_ids:
        text = tag_of(segmentation.GetSegmentation().GetSegment(name), OPACITY_3D_TAG)
        if text:
            display.SetSegmentVisibility3D(name, float(text) > 0)
            display.SetSegmentOpacity3D(
                name, float(text) or 1.0
            )  # so that it is seen once it is shown
    display.EndModify(was_modifying)


def _display(segmentation: SegmentationNode) -> Node:
    segmentation.CreateDefaultDisplayNodes()
    return segmentation.GetDisplayNode()

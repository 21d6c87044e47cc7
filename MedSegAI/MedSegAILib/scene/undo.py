"""The Segment Editor's undo: what it must keep before the AI changes a segmentation."""

from __future__ import annotations

from collections.abc import Callable

from MedSegAILib.slicer_types import Node, SegmentationNode, Widget

SaveUndo = Callable[[Node], bool]
"""A function that keeps the state of a segmentation node for undo; it returns False if that is impossible."""


def no_undo(segmentation: SegmentationNode) -> bool:
    """Return False, because there is no Segment Editor."""
    return False


def undo_in(editor: Widget) -> SaveUndo:
    """Return the undo of a qMRMLSegmentEditorWidget.

    The widget keeps states of the segmentation that it shows, so the segmentation that the AI changes is selected
    first.
    """

    def save(segmentation: SegmentationNode) -> bool:
        if editor.segmentationNode() is not segmentation:
            editor.setSegmentationNode(segmentation)
        if editor.segmentationNode() is not segmentation:
            return False
        editor.saveStateForUndo()
        return True

    return save

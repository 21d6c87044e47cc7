"""The Segment Editor's undo: what it must keep before the AI changes a segmentation."""

from __future__ import annotations

from collections.abc import Callable

from MedSegAILib.slicer_types import Node, SegmentationNode, Widget

SaveUndo = Callable[[Node], bool]
"""Keeps the state of a segmentation node for undo; False where nobody could."""


def no_undo(segmentation: SegmentationNode) -> bool:
    """Where there is no Segment Editor."""
    return False


def undo_in(editor: Widget) -> SaveUndo:
    """The undo of a qMRMLSegmentEditorWidget.

    It keeps states of the segmentation that it shows, so another one is brought up first; it is the one that
    the user let the AI change.
    """

    def save(segmentation: SegmentationNode) -> bool:
        if editor.segmentationNode() is not segmentation:
            editor.setSegmentationNode(segmentation)
        if editor.segmentationNode() is not segmentation:
            return False
        editor.saveStateForUndo()
        return True

    return save

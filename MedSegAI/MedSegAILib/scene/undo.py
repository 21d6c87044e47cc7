"""The Segment Editor's undo: what it must keep before the AI changes a segmentation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

SaveUndo = Callable[[Any], bool]
"""Keeps the state of a segmentation node for undo; False where nobody could."""


def no_undo(segmentation: Any) -> bool:
    """Where there is no Segment Editor."""
    return False


def undo_in(editor: Any) -> SaveUndo:
    """The undo of a qMRMLSegmentEditorWidget.

    It keeps states of the segmentation that it shows, so another one is brought up first; it is the one that
    the user let the AI change.
    """

    def save(segmentation: Any) -> bool:
        if editor.segmentationNode() is not segmentation:
            editor.setSegmentationNode(segmentation)
        if editor.segmentationNode() is not segmentation:
            return False
        editor.saveStateForUndo()
        return True

    return save


def undo_of(logic: Any) -> SaveUndo:
    """The undo of a vtkSlicerSegmentEditorLogic, where there is no window."""

    def save(segmentation: Any) -> bool:
        node = logic.GetSegmentEditorNode()
        if node is None:
            return False
        if node.GetSegmentationNode() is not segmentation:
            node.SetAndObserveSegmentationNode(segmentation)
        return bool(logic.SaveStateForUndo())

    return save

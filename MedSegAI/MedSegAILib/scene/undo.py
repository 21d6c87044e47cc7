"""The Segment Editor's undo: what it must keep before the AI changes a segmentation."""

from __future__ import annotations

from collections.abc import Callable

from MedSegAILib.scene import copies
from MedSegAILib.slicer_types import Node, SegmentationNode, Widget
from MedSegAILib.translation import tr as _

NO_UNDO = _("The Segment Editor does not show {name}, so it cannot undo this change.")
KEPT = _(
    "The Segment Editor is in use on {other}, so it cannot undo this change. {name} as it was before "
    "is kept as {copy}."
)

SaveUndo = Callable[[Node], str]
"""A function that keeps the state of a segmentation node for undo. It returns "", or why the Segment Editor cannot
undo, as a sentence for the user."""


def no_undo(segmentation: SegmentationNode) -> str:
    """Return that there is no undo, because there is no Segment Editor."""
    return NO_UNDO.format(name=segmentation.GetName())


def kept_beside(editor: Widget) -> SaveUndo:
    """Return the undo while a person works in a Segment Editor on another segmentation: a hidden copy.

    The editor is left alone, because the next stroke would go into a segmentation that was selected meanwhile.
    """

    def save(segmentation: SegmentationNode) -> str:
        copy = copies.kept_copy(segmentation)
        other = editor.segmentationNode().GetName()
        return KEPT.format(other=other, name=segmentation.GetName(), copy=copy.GetName())

    return save


def undo_in(editor: Widget) -> SaveUndo:
    """Return the undo of a qMRMLSegmentEditorWidget.

    The widget keeps states of the segmentation that it shows, so the segmentation that the AI changes is selected
    first.
    """

    def save(segmentation: SegmentationNode) -> str:
        if editor.segmentationNode() is not segmentation:
            editor.setSegmentationNode(segmentation)
        if editor.segmentationNode() is not segmentation:
            return no_undo(segmentation)
        editor.saveStateForUndo()
        return ""

    return save

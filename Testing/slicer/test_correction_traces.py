"""The effect AI correct on real MRML: undo, what stays behind, the editor's masking, and other segments."""

from __future__ import annotations

import numpy as np
import pytest
import slicer

from correction_help import (
    LEFT,
    LEFT_BOX,
    RIGHT,
    RIGHT_BOX,
    Bench,
    box_mask,
    mask_of,
    paint_doubt,
)
from MedSegAILib.scene import segment_id


def test_applying_is_one_undo_step(editing: Bench) -> None:
    before = editing.mask(), editing.mask(RIGHT)
    paint_doubt(editing)
    editing.mouse.stroke(editing.at(6, 8, 8), editing.at(6, 12, 8), keys=("Control",))
    editing.panel.applyButton.click()
    changed = editing.mask()
    assert (changed & ~before[0]).any()
    assert (before[0] & ~changed).any()
    editing.logic.Undo()
    np.testing.assert_array_equal(editing.mask(), before[0])
    np.testing.assert_array_equal(editing.mask(RIGHT), before[1])
    assert not editing.logic.CanUndo()


def test_cancelling_leaves_no_trace(editing: Bench) -> None:
    nodes, stamp = editing.nodes(), editing.segmentation.GetSegmentation().GetMTime()
    paint_doubt(editing)
    assert editing.nodes() != nodes
    assert editing.panel.cancelButton.enabled
    editing.panel.cancelButton.click()
    assert editing.nodes() == nodes
    assert editing.segmentation.GetSegmentation().GetMTime() == stamp
    assert not editing.logic.CanUndo()
    assert editing.message == ""


@pytest.mark.parametrize("end", ["apply", "cancel", "deactivate", "cleanup"])
def test_the_preview_and_the_brush_go_in_the_end(end: str, editing: Bench) -> None:
    nodes = editing.nodes()
    paint_doubt(editing)
    preview = editing.preview()
    assert preview.GetHideFromEditors()
    assert not preview.GetSaveWithScene()
    assert not preview.GetDisplayNode().GetSaveWithScene()
    assert editing.effect.actors[editing.view]
    {
        "apply": editing.panel.onApply,
        "cancel": editing.panel.onCancel,
        "deactivate": editing.panel.deactivate,
        "cleanup": editing.panel.cleanup,
    }[end]()
    assert editing.nodes() == nodes
    if end in ("deactivate", "cleanup"):
        assert not editing.effect.actors[editing.view]


def test_choosing_another_segment_gives_the_strokes_up(editing: Bench) -> None:
    paint_doubt(editing)
    editing.select(RIGHT)
    assert editing.preview() is None
    assert editing.tool.strokes == 0


def test_a_segment_changed_meanwhile_is_not_overwritten(editing: Bench) -> None:
    paint_doubt(editing)
    brush = slicer.vtkOrientedImageData()
    editing.segmentation.GetBinaryLabelmapRepresentation(segment_id(LEFT), brush)
    brush.SetScalarComponentFromDouble(6, 7, 6, 0, 0)
    editing.logic.SaveStateForUndo()
    mode = slicer.vtkSlicerSegmentEditorLogic.ModificationModeSet
    editing.logic.ModifySegmentByLabelmap(
        editing.segmentation, segment_id(LEFT), brush, mode, True, False
    )
    painted = editing.mask()
    assert painted.sum() == box_mask(LEFT_BOX).sum() - 1
    editing.panel.applyButton.click()
    assert "was changed after the first stroke" in editing.message
    np.testing.assert_array_equal(editing.mask(), painted)


def test_several_corrections_one_after_the_other(editing: Bench) -> None:
    for _ in range(2):
        paint_doubt(editing)
        editing.panel.applyButton.click()
        editing.mouse.stroke(editing.at(14, 8, 8), editing.at(14, 11, 8), keys=("Control",))
        editing.panel.applyButton.click()
    for _ in range(4):
        assert editing.logic.CanUndo()
        editing.logic.Undo()
    np.testing.assert_array_equal(editing.mask(), box_mask(LEFT_BOX))


def paint_across(editing: Bench) -> None:
    """A stroke from the uncertain part into the other segment."""
    editing.mouse.stroke(editing.at(15, 10, 8), editing.at(19, 10, 8))


def test_other_segments_give_way_only_where_the_editor_says_so(editing: Bench) -> None:
    editor = editing.logic.GetSegmentEditorNode()
    editor.SetOverwriteMode(editor.OverwriteAllSegments)
    paint_across(editing)
    editing.panel.applyButton.click()
    left, right = editing.mask(), editing.mask(RIGHT)
    assert (left & box_mask(RIGHT_BOX)).any()
    assert not (left & right).any()
    editing.logic.Undo()
    editor.SetOverwriteMode(editor.OverwriteNone)
    paint_across(editing)
    editing.panel.applyButton.click()
    np.testing.assert_array_equal(editing.mask(RIGHT), box_mask(RIGHT_BOX))
    np.testing.assert_array_equal(editing.mask(), left)


def test_masking_is_respected_and_the_preview_shows_it(editing: Bench) -> None:
    editor = editing.logic.GetSegmentEditorNode()
    editor.SetMaskMode(slicer.vtkMRMLSegmentationNode.EditAllowedOutsideAllSegments)
    paint_across(editing)
    added = mask_of(editing.preview(), "added")
    assert added.any()
    assert not (added & box_mask(RIGHT_BOX)).any()
    editing.panel.applyButton.click()
    np.testing.assert_array_equal(editing.mask(RIGHT), box_mask(RIGHT_BOX))
    np.testing.assert_array_equal(editing.mask(), box_mask(LEFT_BOX) | added)


def test_the_editable_range_of_intensities_is_respected(editing: Bench) -> None:
    editor = editing.logic.GetSegmentEditorNode()
    editor.SourceVolumeIntensityMaskOn()
    editor.SetSourceVolumeIntensityMaskRange(0, 50)
    paint_doubt(editing)
    editing.panel.applyButton.click()
    np.testing.assert_array_equal(editing.mask(), box_mask(LEFT_BOX))


def test_the_preview_has_its_place_in_the_tree_and_leaves_none(editing: Bench) -> None:
    """Slicer writes an error for every stroke into a segmentation that has none; and no 3D view shows it."""
    tree = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(editing.scene)
    items = tree.GetNumberOfItems()
    paint_doubt(editing)
    assert tree.GetItemByDataNode(editing.preview())
    assert editing.preview().GetHideFromEditors()
    assert not editing.preview().GetDisplayNode().GetVisibility3D()
    editing.panel.cancelButton.click()
    assert tree.GetNumberOfItems() == items

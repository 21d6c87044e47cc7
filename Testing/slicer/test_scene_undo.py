"""One undo step of the Segment Editor takes the AI's change back; a preview changes nothing until accepted."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import slicer

from medsegai.errors import InputError
from MedSegAILib.host import save_undo
from MedSegAILib.output_choice import OutputChoice, OutputMode
from MedSegAILib.scene import ENTROPY_REFERENCE, ReviewState, Scene
from MedSegAILib.scene.segments import looks_of
from MedSegAILib.scene.undo import undo_in
from scene_images import (
    LEFT,
    LEFT_ID,
    STEM,
    STEM_ID,
    Room,
    block,
    mask_on,
    node_ids,
    paint,
    result_for,
    shifted,
    two_blocks,
)
from segment_editor import undo_of
from stand_ins import faced, put


class Edited(Room):
    """The same with the Segment Editor's own logic, which can undo."""

    def __init__(self, mrml: Any) -> None:
        super().__init__(mrml, "oblique and swapped")
        self.editor.SetAndObserveSourceVolumeNode(self.volume)
        self.editor.SetAndObserveSegmentationNode(self.node)
        self.result = result_for(self.image, shifted(), entropy=True)

    def made_scene(self) -> Scene:
        self.editor = self.mrml.AddNewNodeByClass("vtkMRMLSegmentEditorNode")
        self.logic = slicer.vtkSlicerSegmentEditorLogic()
        self.logic.SetMRMLScene(self.mrml)
        self.logic.SetSegmentEditorNode(self.editor)
        return Scene(self.mrml, undo_of(self.logic))

    def write(self, mode: OutputMode) -> Any:
        return self.scene.write(self.volume, self.result, OutputChoice(mode, self.node))

    def state(self) -> dict[str, Any]:
        segments = self.node.GetSegmentation()
        return {
            name: (mask_on(self.node, name).tobytes(), segments.GetSegment(name).GetName())
            for name in segments.GetSegmentIDs()
        }


@pytest.fixture
def room(mrml: Any) -> Edited:
    return Edited(mrml)


# --- undo ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [OutputMode.UPDATE, OutputMode.ADD, OutputMode.PREVIEW])
def test_one_step_takes_all_of_it_back_and_another_brings_it_again(
    room: Edited, mode: OutputMode
) -> None:
    room.node.GetSegmentation().AddEmptySegment("mine", "Lesion")
    paint(room.node, "mine", block(slice(0, 1), slice(0, 2), slice(0, 3)), room.volume)
    room.node.GetSegmentation().RemoveSegment(STEM_ID)  # so that PREVIEW has something to add
    before = room.state()
    assert not room.logic.CanUndo()
    room.write(mode)
    after = room.state()
    assert after != before
    assert room.scene.notes == tuple(note for note in room.scene.notes if "undo" not in note)
    room.logic.Undo()
    assert room.state() == before
    assert not room.logic.CanUndo(), "one step was enough"
    room.logic.Redo()
    assert room.state() == after


def test_undo_brings_the_review_state_back(room: Edited) -> None:
    room.scene.set_review_state(room.node, LEFT_ID, ReviewState.IN_PROGRESS)
    room.write(OutputMode.UPDATE)
    assert room.scene.review_state(room.node, LEFT_ID) is ReviewState.NOT_STARTED
    room.logic.Undo()
    assert room.scene.review_state(room.node, LEFT_ID) is ReviewState.IN_PROGRESS


def test_after_undo_the_segments_still_count_as_the_ais(room: Edited) -> None:
    room.write(OutputMode.UPDATE)
    room.logic.Undo()
    room.write(OutputMode.UPDATE)
    assert not [note for note in room.scene.notes if "by hand" in note]
    np.testing.assert_array_equal(mask_on(room.node, LEFT_ID), shifted() == LEFT.value)


def test_the_users_strokes_before_and_after_are_steps_of_their_own(room: Edited) -> None:
    room.node.GetSegmentation().AddEmptySegment("mine", "Lesion")
    states = [room.state()]
    for k in (0, 8):
        room.logic.SaveStateForUndo()
        paint(room.node, "mine", block(slice(k, k + 1), slice(0, 2), slice(0, 3)), room.volume)
        states.append(room.state())
        if k == 0:
            room.write(OutputMode.UPDATE)
            states.append(room.state())
    for expected in reversed(states[:-1]):
        room.logic.Undo()
        assert room.state() == expected


def test_nothing_to_change_is_no_undo_step(room: Edited) -> None:
    for name in (LEFT_ID, STEM_ID):
        room.scene.set_review_state(room.node, name, ReviewState.COMPLETED)
    room.write(OutputMode.UPDATE)
    assert not room.logic.CanUndo()


def test_without_an_editor_a_note_says_that_there_is_no_undo(mrml: Any) -> None:
    room = Edited(mrml)
    scene = Scene(mrml)
    scene.write(room.volume, room.result, OutputChoice(OutputMode.UPDATE, room.node))
    assert any("cannot undo" in note for note in scene.notes)


class EditorWidget:
    """A qMRMLSegmentEditorWidget."""

    def __init__(self, node: Any, stubborn: bool = False) -> None:
        self.node, self.stubborn, self.saved = node, stubborn, []  # type: ignore[var-annotated]

    def segmentationNode(self) -> Any:
        return self.node

    def mrmlSegmentEditorNode(self) -> Any:
        return "parameters"

    def setSegmentationNode(self, node: Any) -> None:
        if not self.stubborn:
            self.node = node

    def saveStateForUndo(self) -> None:
        self.saved.append(self.node)


def test_the_widget_of_the_application_keeps_the_state_of_the_right_node() -> None:
    mine, other = slicer.vtkMRMLSegmentationNode(), slicer.vtkMRMLSegmentationNode()
    for shown in (mine, other, None):
        editor = EditorWidget(shown)
        assert undo_in(faced(editor, "qMRMLSegmentEditorWidget"))(mine) == ""
        assert editor.saved == [mine]
    editor = EditorWidget(other, stubborn=True)
    assert "cannot undo" in undo_in(faced(editor, "qMRMLSegmentEditorWidget"))(mine)
    assert editor.saved == []


@pytest.mark.parametrize("module", ["SegmentEditor", "MedSegAI"])
def test_an_update_leaves_an_editor_alone_in_which_a_person_paints_something_else(
    room: Edited, application: Any, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    """The next stroke would go into the wrong segmentation, and the undo of what was painted would be gone."""
    other = room.mrml.AddNewNodeByClass("vtkMRMLSegmentationNode", "Another patient")
    editor, before = EditorWidget(other), room.state()
    page = SimpleNamespace(editor=faced(editor, "qMRMLSegmentEditorWidget"))
    put(monkeypatch, "slicer.util.mainWindow", lambda: "window")
    put(monkeypatch, "slicer.util.selectedModule", lambda: module)
    put(monkeypatch, "slicer.util.getModuleWidget", lambda module: page)
    scene = Scene(room.mrml, save_undo)
    scene.write(room.volume, room.result, OutputChoice(OutputMode.UPDATE, room.node))
    if module == "MedSegAI":
        assert (editor.node, editor.saved) == (room.node, [room.node])
        return
    assert (editor.node, editor.saved) == (other, [])
    (note,) = [text for text in scene.notes if "cannot undo" in text]
    kept = room.mrml.GetNthNodeByClass(2, "vtkMRMLSegmentationNode")
    assert kept.GetName() in note
    assert not kept.GetDisplayNode().GetVisibility()
    assert kept.GetTransformNodeID() == room.node.GetTransformNodeID()
    room.node = kept
    assert room.state() == before


# --- preview ---------------------------------------------------------------------------------------


def preview(room: Edited, node: Any = None) -> Any:
    choice = OutputChoice(OutputMode.PREVIEW, node)
    return room.scene.preview(room.volume, room.result, choice)


def test_a_preview_shows_the_change_and_changes_nothing(room: Edited) -> None:
    before = room.state()
    shown = preview(room, room.node)
    assert room.state() == before
    assert shown.node is not room.node
    assert "preview" in shown.node.GetName()
    np.testing.assert_array_equal(mask_on(shown.node, LEFT_ID), shifted() == LEFT.value)
    assert shown.node.GetDisplayNode().GetVisibility()
    assert not room.node.GetDisplayNode().GetVisibility(), "two of them would hide each other"


def test_a_rejected_preview_leaves_the_scene_as_it_was(room: Edited) -> None:
    nodes, before = node_ids(room.mrml), room.state()
    preview(room, room.node).reject()
    assert node_ids(room.mrml) == nodes
    assert room.state() == before
    assert room.node.GetDisplayNode().GetVisibility()
    preview(room).reject()
    assert node_ids(room.mrml) == nodes


def test_an_accepted_preview_is_one_undo_step(room: Edited) -> None:
    before = room.state()
    shown = preview(room, room.node)
    assert shown.accept() is room.node
    assert not room.mrml.IsNodePresent(shown.node)
    np.testing.assert_array_equal(mask_on(room.node, LEFT_ID), shifted() == LEFT.value)
    assert room.node.GetNodeReference(ENTROPY_REFERENCE) is not None
    assert room.node.GetDisplayNode().GetVisibility()
    room.logic.Undo()
    assert room.state() == before


def test_what_was_edited_in_the_preview_is_accepted_with_it(room: Edited) -> None:
    shown = preview(room, room.node)
    mine = shifted() == LEFT.value
    mine[0, 0, 0] = True
    paint(shown.node, LEFT_ID, mine, room.volume)
    paint(shown.node, STEM_ID, np.zeros(mine.shape, bool), room.volume)
    shown.accept()
    np.testing.assert_array_equal(mask_on(room.node, LEFT_ID), mine)
    assert not mask_on(room.node, STEM_ID).any()
    room.write(OutputMode.UPDATE)
    np.testing.assert_array_equal(mask_on(room.node, LEFT_ID), mine, "it counts as painted")


def test_everything_that_was_edited_in_the_preview_is_accepted_with_it(room: Edited) -> None:
    """Not only voxels: names, colours, codes, review, segments that were added or removed."""
    before, shown = room.state(), preview(room, room.node)
    segments = shown.node.GetSegmentation()
    left = segments.GetSegment(LEFT_ID)
    left.SetName("Hippo L")
    left.SetColor(0.1, 0.2, 0.3)
    left.SetTag(left.GetTerminologyEntryTagName(), "mine~SCT^1^One~SCT^2^Two~^^")
    room.scene.set_review_state(shown.node, LEFT_ID, ReviewState.COMPLETED)
    segments.RemoveSegment(STEM_ID)
    segments.AddEmptySegment("lesion", "Lesion", (0.5, 0.6, 0.7))
    segments.AddEmptySegment("planned", "To be drawn")
    drawn = block(slice(0, 1), slice(0, 2), slice(0, 3))
    paint(shown.node, "lesion", drawn, room.volume)
    expected = {name: looks_of(segments.GetSegment(name)) for name in segments.GetSegmentIDs()}
    shown.accept()
    segments = room.node.GetSegmentation()
    found = {name: looks_of(segments.GetSegment(name)) for name in segments.GetSegmentIDs()}
    assert found == expected
    assert found[LEFT_ID].review is ReviewState.COMPLETED
    np.testing.assert_array_equal(mask_on(room.node, "lesion"), drawn)
    np.testing.assert_array_equal(mask_on(room.node, LEFT_ID), shifted() == LEFT.value)
    room.logic.Undo()
    assert room.state() == before


def test_edits_of_a_preview_are_an_undo_step_where_the_ai_changes_nothing(room: Edited) -> None:
    for name in (LEFT_ID, STEM_ID):
        room.scene.set_review_state(room.node, name, ReviewState.COMPLETED)
    before, shown = room.state(), preview(room, room.node)
    paint(shown.node, LEFT_ID, block(slice(0, 1), slice(0, 2), slice(0, 3)), room.volume)
    shown.accept()
    assert room.state() != before
    room.logic.Undo()
    assert room.state() == before


@pytest.mark.parametrize("visible", [True, False])
@pytest.mark.parametrize("ends", ["reject reject", "accept reject", "reject accept"])
def test_two_previews_of_one_segmentation_show_it_again_at_the_end(
    room: Edited, ends: str, visible: bool
) -> None:
    display = room.node.GetDisplayNode()
    display.SetVisibility(visible)
    shown = [preview(room, room.node), preview(room, room.node)]
    for each, end in zip(shown, ends.split(), strict=True):
        assert not display.GetVisibility()
        getattr(each, end)()
    assert bool(display.GetVisibility()) is visible


def test_a_preview_is_displayed_as_its_segmentation_is(room: Edited) -> None:
    display = room.node.GetDisplayNode()
    display.SetSegmentVisibility(LEFT_ID, False)
    display.SetVisibility2DFill(False)
    display.SetSegmentOpacity2DOutline(STEM_ID, 0.4)
    shown = preview(room, room.node).node.GetDisplayNode()
    assert shown is not display
    assert shown.GetVisibility()
    assert not shown.GetSegmentVisibility(LEFT_ID)
    assert not shown.GetVisibility2DFill()
    assert shown.GetSegmentOpacity2DOutline(STEM_ID) == pytest.approx(0.4)


def test_what_was_painted_in_the_segmentation_meanwhile_stays(room: Edited) -> None:
    shown = preview(room, room.node)
    mine = two_blocks() == LEFT.value
    mine[0, 0, 0] = True
    paint(room.node, LEFT_ID, mine, room.volume)
    shown.accept()
    np.testing.assert_array_equal(mask_on(room.node, LEFT_ID), mine)
    np.testing.assert_array_equal(mask_on(room.node, STEM_ID), shifted() == STEM.value)


def test_a_preview_of_nothing_becomes_a_new_segmentation(room: Edited) -> None:
    shown = preview(room)
    assert "preview" in shown.node.GetName()
    made = shown.accept()
    assert made is shown.node
    assert "preview" not in made.GetName()
    assert room.mrml.GetNumberOfNodesByClass("vtkMRMLSegmentationNode") == 2


def test_a_preview_whose_segmentation_was_deleted_loses_nothing(room: Edited) -> None:
    shown = preview(room, room.node)
    room.mrml.RemoveNode(room.node)
    made = shown.accept()
    assert room.mrml.IsNodePresent(made)
    np.testing.assert_array_equal(mask_on(made, LEFT_ID), shifted() == LEFT.value)


def test_a_preview_that_was_deleted_says_so(room: Edited) -> None:
    before = room.state()
    shown = preview(room, room.node)
    room.mrml.RemoveNode(shown.node)
    with pytest.raises(InputError, match="preview has left the scene"):
        shown.accept()
    assert room.state() == before
    assert room.node.GetDisplayNode().GetVisibility()
    shown.reject()


def test_a_preview_whose_volume_was_deleted_says_so(room: Edited) -> None:
    before = room.state()
    shown = preview(room, room.node)
    room.mrml.RemoveNode(room.volume)
    made = shown.accept()
    (note,) = room.scene.notes
    assert "Head has left the scene" in note
    assert "Head segmentation was not changed" in note
    assert room.mrml.IsNodePresent(made)
    assert made is shown.node
    assert made.GetSegmentation().GetSegment(LEFT_ID) is not None
    assert {name: kept[1] for name, kept in before.items()} == {
        name: room.node.GetSegmentation().GetSegment(name).GetName() for name in before
    }
    assert room.node.GetDisplayNode().GetVisibility()

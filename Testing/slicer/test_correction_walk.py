"""Walking uncertain regions inside the effect AI correct, and what happens to strokes that one leaves."""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import slicer
from PySide6 import QtCore, QtGui, QtTest, QtWidgets

import pythonqt
from correction_help import (
    DOUBT,
    LEFT,
    LEFT_BOX,
    RIGHT,
    RIGHT_BOX,
    SHAPE,
    Bench,
    answer,
    box_mask,
    mask_of,
    opened,
    paint_doubt,
    scan,
)
from MedSegAILib.correction.close_guard import CloseGuard
from MedSegAILib.panel import dialogs
from MedSegAILib.scene import Scene, segment_id
from MedSegAILib.uncertain_regions import UNCERTAINTY
from scene_images import PLACES
from slice_pictures import SurfaceView
from stand_ins import put

FIRST, SECOND = (8, 9, 20), (8, 9, 6)  # k, j, i: in the right, then in the left segment


@pytest.fixture
def walking(mrml: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """A scan whose AI doubted at two places, in the Segment Editor with the first segment selected."""
    source = scan(mrml, PLACES["plain"], None)
    scene = Scene(mrml)
    entropy = np.zeros(SHAPE, np.float32)
    for (k, j, i), height in ((FIRST, 0.6), (SECOND, 0.4)):
        entropy[k - 2 : k + 3, j - 2 : j + 3, i - 2 : i + 3] = height
        entropy[k, j, i] = height + 0.05
    image = scene.read(source).with_voxels(entropy)
    result = dataclasses.replace(answer(scene, source, True), entropy=image)
    made = opened(mrml, monkeypatch, source, scene.write(source, result))
    made.show_slice(8)
    yield made
    made.panel.cleanup()


@pytest.fixture
def questions(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the user is asked; `answer` is what is said."""
    asked: dict[str, Any] = {"asked": [], "answer": True, "safe": None}

    def decide(parent: Any, question: str, accept: str, decline: str, safe: bool) -> bool:
        asked["asked"].append(question)
        asked["safe"] = safe
        return bool(asked["answer"])

    monkeypatch.setattr("MedSegAILib.host.can_ask", lambda: True)
    monkeypatch.setattr(dialogs, "decide", decide)
    return asked


def selected(editing: Bench) -> str:
    return str(editing.logic.GetSegmentEditorNode().GetSelectedSegmentID())


def shown(editing: Bench) -> list[float]:
    to_ras = editing.view.mrmlSliceNode().GetSliceToRAS()
    return [to_ras.GetElement(row, 3) for row in range(3)]


# --- places ----------------------------------------------------------------------------------------


def test_next_place_selects_its_segment_and_shows_it(walking: Bench) -> None:
    walking.show_slice(2)
    walking.panel.nextPlaceButton.click()
    assert selected(walking) == segment_id(RIGHT)
    assert shown(walking)[2] == pytest.approx(8)
    assert walking.message == "Uncertain region 1 of 2: Right."
    walking.panel.nextPlaceButton.click()
    assert selected(walking) == segment_id(LEFT)
    walking.panel.previousPlaceButton.click()
    assert walking.message == "Uncertain region 1 of 2: Right."


def test_one_key_applies_and_walks_on(walking: Bench) -> None:
    """Correct and go on: a stroke and a key; one undo takes the change back."""
    paint_doubt(walking)
    walking.panel.nextPlaceButton.click()
    assert walking.mask().sum() > box_mask(LEFT_BOX).sum()
    assert (walking.tool.strokes, walking.preview()) == (0, None)
    assert selected(walking) == segment_id(RIGHT)
    walking.logic.Undo()
    np.testing.assert_array_equal(walking.mask(), box_mask(LEFT_BOX))


def test_strokes_that_cannot_be_applied_keep_the_user_where_they_are(walking: Bench) -> None:
    paint_doubt(walking)
    image = slicer.vtkOrientedImageData()
    walking.segmentation.GetBinaryLabelmapRepresentation(segment_id(RIGHT), image)
    walking.logic.ModifySegmentByLabelmap(
        walking.segmentation, segment_id(LEFT), image, walking.logic.ModificationModeAdd, True, True
    )
    walking.panel.nextPlaceButton.click()
    assert "was changed after the first stroke" in walking.message
    assert walking.tool.strokes == 1
    assert selected(walking) == segment_id(LEFT)


def test_the_page_and_the_effect_share_the_walk(walking: Bench) -> None:
    page = Scene(walking.scene)
    page.next_place(walking.segmentation)
    walking.panel.nextPlaceButton.click()
    assert walking.message == "Uncertain region 2 of 2: Left."
    assert page.current_segment(walking.segmentation) == segment_id(LEFT)


def test_the_segment_that_was_painted_last_is_the_one_the_page_shows(walking: Bench) -> None:
    walking.select(RIGHT)
    walking.mouse.stroke(walking.at(18, 8, 8), walking.at(18, 10, 8))
    assert Scene(walking.scene).current_segment(walking.segmentation) == segment_id(RIGHT)


def test_the_places_of_one_structure_are_chosen_in_the_effect(walking: Bench) -> None:
    box = walking.panel.placesBox
    titles = [box.itemText(number) for number in range(box.count)]
    assert titles == ["in all structures", "in Left", "in Right"]
    box.setCurrentIndex(1)
    pythonqt.real(box).activated.emit(1)
    assert Scene(walking.scene).walked_within(walking.segmentation) == segment_id(LEFT)
    walking.panel.nextPlaceButton.click()
    assert walking.message == "Uncertain region 1 of 1: Left."
    Scene(walking.scene).walk_within(walking.segmentation, "")
    walking.panel.updateGUIFromMRML()
    assert box.currentIndex == 0


def test_without_measured_doubt_there_is_nowhere_to_go(editing: Bench) -> None:
    panel = editing.panel
    assert not panel.nextPlaceButton.enabled
    assert not panel.previousPlaceButton.enabled
    assert not panel.placesBox.enabled


# --- keys ------------------------------------------------------------------------------------------

SLICERS_KEYS = (  # of the Segment Editor and of slice views, as the application has them
    *"1234567890ZYQW*,./<>I",
    *("Esc", "Space", "Ctrl+Z", "Ctrl+Shift+Z"),
    *"RFBVGT",
)


@pytest.fixture
def window(walking: Bench) -> Any:
    """The options of the effect on the screen, beside a field to type into."""
    window = QtWidgets.QWidget()
    layout = QtWidgets.QVBoxLayout(window)
    for widget in walking.effect.options:
        layout.addWidget(pythonqt.real(widget))
    window.show()
    window.activateWindow()
    pythonqt.process_events(20)
    yield window
    window.close()


def type_key(window: Any, key: str) -> None:
    QtTest.QTest.keySequence(window, QtGui.QKeySequence(key))
    pythonqt.process_events(10)


def test_single_keys_do_what_is_done_often(walking: Bench, window: Any) -> None:
    assert not walking.panel.outsideButton.checked
    type_key(window, "O")
    assert walking.panel.outsideButton.checked
    type_key(window, "O")
    paint_doubt(walking)
    paint_doubt(walking)
    type_key(window, "X")
    assert walking.tool.strokes == 1
    type_key(window, "C")
    assert walking.tool.strokes == 0
    paint_doubt(walking)
    type_key(window, "A")
    assert walking.mask().sum() > box_mask(LEFT_BOX).sum()
    type_key(window, "N")
    assert walking.message.startswith("Uncertain region 1")
    type_key(window, "N")
    assert walking.message.startswith("Uncertain region 2")
    type_key(window, "Shift+N")
    assert walking.message.startswith("Uncertain region 1")


def test_the_map_of_uncertainty_is_a_key_away(walking: Bench, window: Any, mrml: Any) -> None:
    view = slicer.vtkMRMLSliceCompositeNode()
    view.SetLayoutName("Red")
    mrml.AddNode(view)
    page = Scene(mrml)
    for shown in (True, False):
        type_key(window, "U")
        assert page.shown_overlay(walking.segmentation) == (UNCERTAINTY if shown else "")
        assert walking.panel.uncertaintyButton.checked == shown
    page.show_overlay(walking.segmentation, UNCERTAINTY)
    walking.panel.updateGUIFromMRML()
    assert walking.panel.uncertaintyButton.checked, "the page showed it"


def test_keys_are_dead_where_the_effect_is_not_shown(walking: Bench, window: Any) -> None:
    other = QtWidgets.QWidget()
    other.show()
    window.hide()
    pythonqt.process_events(20)
    type_key(other, "N")
    assert walking.message == ""
    other.close()


def test_no_key_is_one_that_slicer_has_taken(walking: Bench, window: Any) -> None:
    keys = [shortcut.key().toString() for shortcut in window.findChildren(QtGui.QShortcut)]
    assert sorted(keys) == ["A", "C", "N", "O", "Shift+N", "U", "X"]
    assert not set(keys) & set(SLICERS_KEYS)
    for button in ("applyButton", "takeBackButton", "cancelButton", "nextPlaceButton"):
        assert getattr(walking.panel, button).toolTip.rsplit("(", 1)[1].rstrip(")") in keys


def test_long_names_and_messages_do_not_widen_slicers_column(walking: Bench, window: Any) -> None:
    before = window.minimumSizeHint().width()
    segment = walking.segmentation.GetSegmentation().GetSegment(segment_id(LEFT))
    segment.SetName("Left inferior lateral ventricle, temporal horn and choroid plexus")
    walking.panel.updateGUIFromMRML()
    walking.panel.showMessage("The segment was changed after the first stroke. " * 3)
    pythonqt.process_events(20)
    assert window.minimumSizeHint().width() == before < 320


# --- the answer to a stroke ------------------------------------------------------------------------


def test_strokes_let_no_3d_view_draw_its_surfaces_again(walking: Bench, mrml: Any) -> None:
    """Each time it takes a second without a graphics card, and the stroke would answer after that."""
    walking.segmentation.CreateClosedSurfaceRepresentation()
    view = SurfaceView(mrml)
    for shown in (False, True):
        walking.segmentation.GetDisplayNode().SetVisibility3D(shown)
    assert view.asked > 0, "it hears of the segmentation"
    walking.panel.activate()
    view.asked = 0
    for _ in range(2):
        paint_doubt(walking)
        assert mask_of(walking.preview(), "added").any()
    walking.panel.takeBackButton.click()
    walking.panel.cancelButton.click()
    assert view.asked == 0
    paint_doubt(walking)
    walking.panel.applyButton.click()
    assert view.asked > 0, "the surface of the segment changes"


def test_the_node_for_strokes_is_there_from_the_first_and_goes_with_the_effect(
    walking: Bench,
) -> None:
    nodes = walking.nodes()
    walking.panel.activate()
    prepared = walking.nodes()
    paint_doubt(walking)
    assert walking.nodes() == prepared, "nothing is made when the first stroke waits"
    for end in (walking.panel.onCancel, walking.panel.onApply):
        paint_doubt(walking)
        end()
        assert walking.nodes() == prepared
        assert not any(mask_of(walking.preview(), kind).any() for kind in ("added", "inside"))
    walking.panel.deactivate()
    assert walking.nodes() == nodes


# --- leaving ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("wanted", [True, False])
def test_leaving_with_pending_strokes_asks(
    walking: Bench, questions: dict[str, Any], wanted: bool
) -> None:
    """Also after Esc, which is Slicer's own key and ends the effect."""
    questions["answer"] = wanted
    paint_doubt(walking)
    walking.panel.deactivate()
    assert questions["asked"] == [
        "One stroke in Left is not applied yet. Apply them before you continue? One undo step reverts this."
    ]
    assert questions["safe"] is True, "Enter loses nothing"
    assert (walking.mask().sum() > box_mask(LEFT_BOX).sum()) == wanted
    assert (walking.tool.strokes, walking.preview()) == (0, None)


@pytest.mark.parametrize("wanted", [True, False])
def test_turning_to_another_segment_asks_too(
    walking: Bench, questions: dict[str, Any], wanted: bool
) -> None:
    """What is applied goes into the segment that the strokes were painted for."""
    questions["answer"] = wanted
    paint_doubt(walking)
    paint_doubt(walking)
    walking.select(RIGHT)
    assert questions["asked"][0].startswith("2 strokes in Left are not applied yet.")
    assert (walking.mask().sum() > box_mask(LEFT_BOX).sum()) == wanted
    np.testing.assert_array_equal(walking.mask(RIGHT), box_mask(RIGHT_BOX))
    assert selected(walking) == segment_id(RIGHT)


@pytest.mark.parametrize("wanted", [True, False])
def test_closing_the_scene_asks_whether_to_apply_and_save(
    walking: Bench, questions: dict[str, Any], monkeypatch: pytest.MonkeyPatch, wanted: bool
) -> None:
    """Before the Segment Editor, an older observer, forgets its segmentation."""
    node, saved = walking.logic.GetSegmentEditorNode(), []
    forget = lambda *_: node.SetAndObserveSegmentationNode(None)  # noqa: E731
    walking.scene.AddObserver(walking.scene.StartCloseEvent, forget)
    walking.panel.activate()
    put(monkeypatch, "slicer.util.openSaveDataDialog", lambda: saved.append(walking.mask().sum()))
    questions["answer"] = wanted
    paint_doubt(walking)
    walking.scene.Clear(0)
    assert questions["asked"] == [
        "One stroke in Left is not applied yet. The scene is being closed. Apply them, and save the scene "
        "before it closes?"
    ]
    assert questions["safe"] is True
    assert len(saved) == wanted
    assert all(count > box_mask(LEFT_BOX).sum() for count in saved)
    assert walking.tool.strokes == 0


def test_a_scene_is_closed_without_a_question_where_nothing_is_pending_or_nobody_answers(
    walking: Bench, questions: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    walking.panel.activate()
    put(monkeypatch, "slicer.util.openSaveDataDialog", lambda: pytest.fail("nobody can answer"))
    walking.scene.InvokeEvent(walking.scene.StartCloseEvent)
    walking.panel.deactivate()
    paint_doubt(walking)
    walking.scene.InvokeEvent(walking.scene.StartCloseEvent)
    assert walking.tool.strokes == 1, "the effect was left"
    walking.panel.activate()
    monkeypatch.setattr("MedSegAILib.host.can_ask", lambda: False)
    walking.scene.InvokeEvent(walking.scene.StartCloseEvent)
    assert walking.tool.strokes == 0
    assert questions["asked"] == []


def test_an_effect_that_is_gone_is_not_asked_by_its_scene() -> None:
    """The scene may be removed together with it, and then calls nothing of it."""
    asked: list[str] = []

    class Tool:
        def leave(self, may_apply: Any = None) -> bool:
            asked.append("asked")
            return False

    scene, tool = slicer.vtkMRMLScene(), Tool()
    guard = CloseGuard(tool, lambda text: True)  # type: ignore[arg-type]
    guard.watch(scene, None)
    guard.watch(scene, None)
    scene.Clear(0)
    assert asked == ["asked"], "it is watched once"
    guard.itself = guard  # type: ignore[attr-defined]  # as an effect and its editor refer to each other
    del guard
    gc.collect()
    scene.Clear(0)
    assert asked == ["asked"]


def test_closing_slicer_asks_about_strokes_and_lets_slicer_ask_whether_to_save(
    walking: Bench, questions: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    window = pythonqt.Module("qt").QWidget()
    put(monkeypatch, "slicer.util.mainWindow", lambda: window)
    walking.panel.activate()
    paint_doubt(walking)
    pythonqt.real(window).show()
    assert pythonqt.real(window).close()
    assert len(questions["asked"]) == 1
    assert walking.mask().sum() > box_mask(LEFT_BOX).sum()
    walking.panel.deactivate()
    paint_doubt(walking)
    pythonqt.real(window).show()
    assert pythonqt.real(window).close()
    assert len(questions["asked"]) == 1, "the window is not watched any longer"
    put(monkeypatch, "slicer.util.mainWindow", lambda: None)


def test_nothing_is_asked_where_nothing_is_pending(
    walking: Bench, questions: dict[str, Any]
) -> None:
    walking.panel.deactivate()
    paint_doubt(walking)
    walking.panel.onApply()
    walking.panel.deactivate()
    paint_doubt(walking)
    walking.panel.onTakeBack()
    walking.select(RIGHT)
    assert questions["asked"] == []


def test_nothing_is_asked_about_a_segment_that_is_gone(
    walking: Bench, questions: dict[str, Any]
) -> None:
    paint_doubt(walking)
    walking.segmentation.GetSegmentation().RemoveSegment(segment_id(LEFT))
    walking.panel.updateGUIFromMRML()
    assert questions["asked"] == []
    assert walking.tool.strokes == 0
    assert "their segment is no longer in the editor" in walking.message


def test_strokes_that_were_to_be_applied_and_cannot_be_are_not_lost_without_a_word(
    walking: Bench, questions: dict[str, Any]
) -> None:
    paint_doubt(walking)
    right = slicer.vtkOrientedImageData()
    walking.segmentation.GetBinaryLabelmapRepresentation(segment_id(RIGHT), right)
    walking.logic.ModifySegmentByLabelmap(
        walking.segmentation, segment_id(LEFT), right, walking.logic.ModificationModeAdd, True, True
    )
    changed = walking.mask()
    walking.select(RIGHT)
    assert len(questions["asked"]) == 1
    assert "the segment was changed after the first of them" in walking.message
    np.testing.assert_array_equal(walking.mask(), changed)


@pytest.mark.parametrize("change", ["sourceVolumeNodeChanged", "referenceGeometryChanged"])
def test_strokes_on_what_is_no_longer_there_are_not_lost_without_a_word(
    walking: Bench, change: str
) -> None:
    getattr(walking.panel, change)()
    assert walking.message == "", "there were none"
    paint_doubt(walking)
    getattr(walking.panel, change)()
    assert "The strokes were discarded, because" in walking.message
    assert not walking.panel.applyButton.enabled


def test_where_nobody_can_answer_nothing_is_lost(walking: Bench) -> None:
    paint_doubt(walking)
    walking.panel.deactivate()
    assert walking.mask()[DOUBT].any()
    assert mask_of(walking.segmentation, segment_id(RIGHT)).any()


# --- the question ----------------------------------------------------------------------------------


def answered(key: QtCore.Qt.Key, safe: bool) -> bool:
    """What `decide` gives where the user presses one key."""

    def press() -> None:
        box = QtWidgets.QApplication.activeModalWidget()
        assert isinstance(box, QtWidgets.QMessageBox)
        QtTest.QTest.keyClick(box, key)

    QtCore.QTimer.singleShot(50, press)
    return dialogs.decide(None, "Give it away?", "Give it away", "Keep it", safe)


@pytest.mark.parametrize("key", [QtCore.Qt.Key.Key_Return, QtCore.Qt.Key.Key_Escape])
@pytest.mark.parametrize("safe", [True, False])
def test_enter_and_escape_give_the_safe_answer(key: QtCore.Qt.Key, safe: bool) -> None:
    assert answered(key, safe) is safe

"""The effect AI correct on real MRML: where strokes land, what they may change, undo, and what goes wrong."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import slicer
import vtk
from slicer.util import updateVolumeFromArray, vtkMatrixFromArray
from vtk.util import numpy_support

import segment_editor
from medsegai.labels import Label
from medsegai.request import Candidates, SegmentationResult, StructureMeasures
from MedSegAILib.correction import register
from MedSegAILib.scene import Scene, segment_id
from scene_images import MOVED, PLACES, add_transform, bending_transform, world_of

SHAPE = (16, 22, 26)  # k, j, i
LEFT, RIGHT = Label(3, "Left", (220, 20, 20)), Label(300, "Right", (20, 20, 220))
LEFT_BOX = (slice(5, 11), slice(6, 14), slice(5, 12))
DOUBT = (
    slice(5, 11),
    slice(6, 14),
    slice(12, 17),
)  # the AI took it for background, but was in doubt
RIGHT_BOX = (slice(5, 11), slice(6, 14), slice(17, 23))


@dataclass
class Bench:
    """A scan that an AI segmented, in the Segment Editor with the effect, and the mouse over a slice view."""

    scene: Any
    source: Any
    segmentation: Any
    logic: Any
    effect: Any
    view: segment_editor.SliceView
    mouse: segment_editor.Mouse

    @property
    def panel(self) -> Any:
        return self.effect.self()

    @property
    def tool(self) -> Any:
        return self.panel.tool

    @property
    def message(self) -> str:
        return str(self.panel._message.text)

    def at(self, i: int, j: int, k: int) -> np.ndarray:
        return world_of(self.source, i, j, k)

    def show_slice(self, k: int) -> None:
        """Show the voxel plane k in the view, as Slicer does with 'rotate to volume plane'."""
        right = self.at(1, 0, k) - self.at(0, 0, k)
        up = self.at(0, 1, k) - self.at(0, 0, k)
        center = self.at(SHAPE[2] // 2, SHAPE[1] // 2, k)
        self.view.show_plane(center, right / np.linalg.norm(right), up / np.linalg.norm(up))

    def mask(self, label: Label = LEFT) -> np.ndarray:
        return mask_of(self.segmentation, segment_id(label))

    def select(self, label: Label) -> None:
        self.logic.GetSegmentEditorNode().SetSelectedSegmentID(segment_id(label))
        self.panel.updateGUIFromMRML()

    def nodes(self) -> list[str]:
        return [self.scene.GetNthNode(n).GetID() for n in range(self.scene.GetNumberOfNodes())]

    def preview(self) -> Any:
        found = self.scene.GetNodesByClass("vtkMRMLSegmentationNode")
        found.UnRegister(None)
        nodes = [found.GetItemAsObject(n) for n in range(found.GetNumberOfItems())]
        others = [node for node in nodes if node is not self.segmentation]
        assert len(others) < 2
        return others[0] if others else None


def mask_of(segmentation: Any, name: str) -> np.ndarray:
    """A segment on the grid of the scan, from its extent."""
    image = slicer.vtkOrientedImageData()
    segmentation.GetBinaryLabelmapRepresentation(name, image)
    out = np.zeros(SHAPE, bool)
    if image.GetPointData().GetScalars() is not None and 0 not in image.GetDimensions():
        i0, i1, j0, j1, k0, k1 = image.GetExtent()
        values = numpy_support.vtk_to_numpy(image.GetPointData().GetScalars())
        out[k0 : k1 + 1, j0 : j1 + 1, i0 : i1 + 1] = values.reshape(
            image.GetDimensions()[::-1]
        ).astype(bool)
    return out


def box_mask(*boxes: Any) -> np.ndarray:
    mask = np.zeros(SHAPE, bool)
    for box in boxes:
        mask[box] = True
    return mask


def scan(mrml: Any, place: np.ndarray, moved: np.ndarray | None) -> Any:
    node = mrml.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "Head")
    noise = np.random.default_rng(0).normal(100, 2, SHAPE)
    noise[box_mask(LEFT_BOX, DOUBT)] += 60
    updateVolumeFromArray(node, noise.astype(np.int16))
    node.SetIJKToRASMatrix(vtkMatrixFromArray(place))
    if moved is not None:
        node.SetAndObserveTransformNodeID(add_transform(mrml, moved).GetID())
    return node


def answer(scene: Scene, source: Any, known: bool) -> SegmentationResult:
    labelmap = np.zeros(SHAPE, np.uint16)
    labelmap[LEFT_BOX], labelmap[RIGHT_BOX] = LEFT.value, RIGHT.value
    second = np.zeros_like(labelmap)
    p_first, p_second = np.full(SHAPE, 255, np.uint8), np.zeros(SHAPE, np.uint8)
    second[DOUBT], p_first[DOUBT], p_second[DOUBT] = LEFT.value, 140, 115
    counts = {label: int((labelmap == label.value).sum()) for label in (LEFT, RIGHT)}
    return SegmentationResult(
        scene.read(source).with_voxels(labelmap),
        (LEFT, RIGHT),
        tuple(StructureMeasures(label, count, count / 1000) for label, count in counts.items()),
        candidates=Candidates(labelmap, second, p_first, p_second) if known else None,
    )


def bench(
    mrml: Any,
    patch: pytest.MonkeyPatch,
    place: str = "plain",
    moved: str = "no transform",
    known: bool = True,
) -> Bench:
    source = scan(mrml, PLACES[place], MOVED[moved])
    scene = Scene(mrml)
    segmentation = scene.write(source, answer(scene, source, known))
    editor = mrml.AddNewNodeByClass("vtkMRMLSegmentEditorNode")
    editor.SetAndObserveSegmentationNode(segmentation)
    editor.SetAndObserveSourceVolumeNode(source)
    editor.SetSelectedSegmentID(segment_id(LEFT))
    logic = slicer.vtkSlicerSegmentEditorLogic()
    logic.SetMRMLScene(mrml)
    logic.SetSegmentEditorNode(editor)
    effect = segment_editor.open_editor(register, segment_editor.start(patch), logic)
    view = segment_editor.SliceView(mrml)
    made = Bench(
        mrml, source, segmentation, logic, effect, view, segment_editor.Mouse(effect.self(), view)
    )
    made.show_slice(8)
    return made


@pytest.fixture
def editing(mrml: Any, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return bench(mrml, monkeypatch)


def paint_doubt(editing: Bench) -> None:
    """A stroke through the middle of what the AI doubted."""
    editing.mouse.stroke(editing.at(14, 8, 8), editing.at(14, 10, 8), editing.at(14, 11, 8))


# --- where strokes land ---------------------------------------------------------------------------


@pytest.mark.parametrize("moved", list(MOVED))
@pytest.mark.parametrize("place", ["LPS", "mirrored", "oblique", "oblique and swapped"])
def test_a_stroke_lands_on_the_voxels_under_the_mouse(
    place: str, moved: str, mrml: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    editing = bench(mrml, monkeypatch, place, moved)
    editing.panel.radiusBox.value = 0.3  # more than a pixel, less than a voxel
    for k in (3, 8):
        editing.show_slice(k)
        start, end = editing.at(9, 9, k), editing.at(14, 9, k)
        editing.mouse.stroke(start, end, keys=())
        painted = mask_of(editing.preview(), "inside")
        expected = np.zeros(SHAPE, bool)
        expected[k, 9, 9:15] = True
        np.testing.assert_array_equal(painted, expected)
        editing.mouse.type("x")


def test_a_brush_is_round_in_millimetres_and_stays_in_its_slice(
    mrml: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    editing = bench(mrml, monkeypatch, "oblique", "turned")
    editing.panel.radiusBox.value = 4.0
    middle = editing.at(13, 11, 8)
    editing.mouse.stroke(middle)
    painted = mask_of(editing.preview(), "inside")
    assert painted.any(axis=(1, 2)).nonzero()[0].tolist() == [8]
    for j in range(SHAPE[1]):
        for i in range(SHAPE[2]):
            distance = np.linalg.norm(editing.at(i, j, 8) - middle)
            if abs(distance - 4.0) > 0.3:  # a pixel of the view
                assert painted[8, j, i] == (distance < 4.0)


def test_a_slanted_slice_paints_the_voxels_that_it_cuts(editing: Bench) -> None:
    """A plane at 45 degrees between rows and planes of voxels."""
    diagonal = np.array([0.0, 1.0, 1.0]) / np.sqrt(2)
    editing.view.show_plane(editing.at(14, 10, 8), (1.0, 0.0, 0.0), diagonal)
    editing.panel.radiusBox.value = 3.0
    editing.mouse.stroke(editing.at(14, 10, 8))
    painted = mask_of(editing.preview(), "inside")
    k, j, _i = np.nonzero(painted)
    assert (np.abs((k - 8) - (j - 10)) <= 1).all()
    for step in range(-2, 3):
        assert painted[8 + step, 10 + step, 14]
    assert not painted[8, 13, 14]


# --- what is corrected ----------------------------------------------------------------------------


def test_a_stroke_wins_what_the_ai_was_in_doubt_about(editing: Bench) -> None:
    before = editing.mask()
    paint_doubt(editing)
    assert "AI's probabilities" in editing.message
    np.testing.assert_array_equal(editing.mask(), before)  # only shown so far
    added = mask_of(editing.preview(), "added")
    assert added[DOUBT].sum() > 0.5 * box_mask(DOUBT).sum()
    assert not (added & ~box_mask(DOUBT)).any()
    assert not mask_of(editing.preview(), "removed").any()
    editing.panel.applyButton.click()
    np.testing.assert_array_equal(editing.mask(), before | added)
    np.testing.assert_array_equal(editing.mask(RIGHT), box_mask(RIGHT_BOX))


def test_without_an_ai_the_image_leads_and_it_is_said(
    mrml: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    editing = bench(mrml, monkeypatch, known=False)
    paint_doubt(editing)
    assert "image alone" in editing.message
    added = mask_of(editing.preview(), "added")
    stroke = mask_of(editing.preview(), "inside")
    assert added[stroke].all()
    assert not (added & ~box_mask(DOUBT)).any()


def test_a_segment_that_the_user_made_goes_by_the_image(editing: Bench) -> None:
    own = editing.segmentation.GetSegmentation().AddEmptySegment("own", "Own")
    editing.logic.GetSegmentEditorNode().SetSelectedSegmentID(own)
    editing.panel.updateGUIFromMRML()
    paint_doubt(editing)
    assert "image alone" in editing.message
    editing.panel.applyButton.click()
    assert mask_of(editing.segmentation, own).any()


@pytest.mark.parametrize("way", ["toggle", "Control"])
def test_an_outside_stroke_takes_away(way: str, editing: Bench) -> None:
    if way == "toggle":
        editing.panel.outsideButton.click()
    keys = () if way == "toggle" else ("Control",)
    editing.mouse.stroke(editing.at(6, 8, 8), editing.at(6, 12, 8), keys=keys)
    assert mask_of(editing.preview(), "outside").any()
    removed = mask_of(editing.preview(), "removed")
    assert removed.any()
    before = editing.mask()
    editing.panel.applyButton.click()
    np.testing.assert_array_equal(editing.mask(), before & ~removed)


def test_a_stroke_is_shown_while_it_is_painted(editing: Bench) -> None:
    editing.mouse.press(editing.at(14, 8, 8))
    first = mask_of(editing.preview(), "sketch").sum()
    editing.mouse.move(editing.at(14, 12, 8))
    painted = mask_of(editing.preview(), "sketch")
    assert painted.sum() > first > 0
    assert not mask_of(editing.preview(), "added").any()
    editing.mouse.release()
    assert mask_of(editing.preview(), "added").any()
    assert not mask_of(editing.preview(), "sketch").any()
    np.testing.assert_array_equal(mask_of(editing.preview(), "inside"), painted)


def test_the_last_stroke_can_be_taken_back(editing: Bench) -> None:
    paint_doubt(editing)
    one = mask_of(editing.preview(), "added")
    editing.mouse.stroke(editing.at(8, 17, 8))
    assert (mask_of(editing.preview(), "added") != one).any()
    editing.panel.takeBackButton.click()
    np.testing.assert_array_equal(mask_of(editing.preview(), "added"), one)
    editing.mouse.type("x")
    assert editing.preview() is None
    assert not editing.panel.applyButton.enabled


def test_a_longer_reach_changes_more(editing: Bench) -> None:
    editing.panel.reachBox.value = 1.0
    paint_doubt(editing)
    little = mask_of(editing.preview(), "added").sum()
    editing.panel.reachBox.value = 8.0
    assert mask_of(editing.preview(), "added").sum() > little


# --- undo and traces ------------------------------------------------------------------------------


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


# --- the editor's masking, and other segments -----------------------------------------------------


def paint_across(editing: Bench) -> None:
    """A stroke from the doubtful part into the other segment."""
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


# --- what goes wrong ------------------------------------------------------------------------------


def test_without_a_source_volume_it_says_so(editing: Bench) -> None:
    editing.logic.GetSegmentEditorNode().SetAndObserveSourceVolumeNode(None)
    nodes = editing.nodes()
    paint_doubt(editing)
    assert "no source volume" in editing.message
    assert editing.nodes() == nodes
    assert not editing.panel.applyButton.enabled


def test_without_a_segment_it_says_so(editing: Bench) -> None:
    editing.logic.GetSegmentEditorNode().SetSelectedSegmentID("")
    paint_doubt(editing)
    assert "No segment is selected" in editing.message


def test_under_a_transform_that_bends_it_says_so(editing: Bench) -> None:
    warp = bending_transform(editing.scene).GetID()
    editing.segmentation.SetAndObserveTransformNodeID(warp)
    paint_doubt(editing)
    assert "bends space" in editing.message
    assert editing.preview() is None


def test_an_image_on_another_grid_is_laid_on_the_segmentation(editing: Bench) -> None:
    """The editor resamples it; strokes land in the same place, and the AI's probabilities still count."""
    other = editing.scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "Coarse")
    updateVolumeFromArray(other, np.full((8, 11, 13), 100, np.int16))
    other.SetIJKToRASMatrix(vtkMatrixFromArray(np.diag([2.0, 2.0, 2.0, 1.0])))
    editing.logic.GetSegmentEditorNode().SetAndObserveSourceVolumeNode(other)
    paint_doubt(editing)
    assert "AI's probabilities" in editing.message
    stroke = mask_of(editing.preview(), "inside")
    assert stroke[8, 8:12, 14].all()


def test_probabilities_on_another_grid_are_left_out_and_it_is_said(editing: Bench) -> None:
    node = editing.segmentation.GetNodeReference("MedSegAI.candidates")
    node.SetSpacing(1.1, 1.0, 1.0)
    paint_doubt(editing)
    assert "another grid" in editing.message
    assert mask_of(editing.preview(), "added").any()


def test_a_stroke_beside_the_image_changes_nothing(editing: Bench) -> None:
    editing.mouse.stroke(editing.at(14, 40, 8), editing.at(14, 45, 8))
    assert editing.tool.strokes == 0
    assert editing.preview() is None


def test_a_hidden_segment_is_not_painted_unasked(editing: Bench) -> None:
    vars(editing.effect)["confirmation"] = editing.effect.ConfirmedWithDialog
    assert editing.mouse.press(editing.at(14, 10, 8))
    assert not editing.tool.painting


def test_the_deleted_segmentation_gives_the_strokes_up(editing: Bench) -> None:
    paint_doubt(editing)
    editing.scene.RemoveNode(editing.segmentation)
    editing.panel.updateGUIFromMRML()
    assert editing.tool.strokes == 0
    assert editing.preview() is None


def test_a_closed_scene_gives_the_strokes_up(editing: Bench) -> None:
    paint_doubt(editing)
    editing.scene.Clear(0)
    editing.panel.updateGUIFromMRML()
    assert editing.tool.strokes == 0
    assert editing.scene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode") == 0


# --- the shell ------------------------------------------------------------------------------------


def test_registering_twice_gives_one_effect(monkeypatch: pytest.MonkeyPatch) -> None:
    factory = segment_editor.start(monkeypatch)
    register()
    register()
    (effect,) = factory.effects
    assert effect.name == "AI correct"
    assert effect.title
    assert "Left button" in effect.self().helpText()
    assert not effect.self().icon().isNull()


def test_other_buttons_and_views_are_left_alone(editing: Bench) -> None:
    three_d = segment_editor.SliceView(editing.scene, "qMRMLThreeDWidget")
    elsewhere = segment_editor.Mouse(editing.panel, three_d)
    assert not elsewhere.press(editing.at(14, 10, 8))
    for keys in ("Shift", "Alt"):
        editing.mouse.interactor.keys = {keys}
        assert not editing.mouse.press(editing.at(14, 10, 8))
    editing.mouse.interactor.keys = set()
    assert not editing.mouse.send(vtk.vtkCommand.RightButtonPressEvent)
    assert not editing.mouse.move(editing.at(14, 10, 8))
    assert not editing.mouse.type("x")
    assert not editing.mouse.type("a")
    assert editing.tool.strokes == 0


def test_enter_applies_and_escape_cancels(editing: Bench) -> None:
    paint_doubt(editing)
    assert editing.mouse.type("Escape")
    assert editing.tool.strokes == 0
    np.testing.assert_array_equal(editing.mask(), box_mask(LEFT_BOX))
    paint_doubt(editing)
    assert editing.mouse.type("Return")
    assert editing.mask().sum() > box_mask(LEFT_BOX).sum()


def test_settings_are_kept_with_the_scene(editing: Bench) -> None:
    editing.panel.radiusBox.value = 7.5
    editing.panel.reachBox.value = 11.0
    editing.panel.outsideButton.click()
    other = segment_editor.ScriptedEffect(None)
    vars(other)["logic"] = editing.logic
    other.setPythonSource(register.__globals__["EFFECT_FILE"].as_posix())
    other.self().setupOptionsFrame()
    other.self().setMRMLDefaults()
    other.self().updateGUIFromMRML()
    assert other.self().radiusBox.value == 7.5
    assert other.self().reachBox.value == 11.0
    assert other.self().outsideButton.checked


def test_a_preview_takes_less_than_half_a_second(
    mrml: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stroke whose box has a million voxels, from the release of the mouse to the preview."""
    shape = (100, 100, 100)
    source = mrml.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "Large")
    image = np.random.default_rng(1).normal(100, 5, shape).astype(np.float32)
    updateVolumeFromArray(source, image)
    scene = Scene(mrml)
    labelmap = np.zeros(shape, np.uint8)
    labelmap[30:70, 30:70, 30:50] = LEFT.value
    measures = StructureMeasures(LEFT, int((labelmap > 0).sum()), 1.0)
    steps = np.full(shape, 150, np.uint8)
    candidates = Candidates(
        labelmap, np.where(labelmap > 0, 0, LEFT.value).astype(np.uint8), steps, 255 - steps
    )
    result = SegmentationResult(
        scene.read(source).with_voxels(labelmap), (LEFT,), (measures,), candidates=candidates
    )
    segmentation = scene.write(source, result)
    editor = mrml.AddNewNodeByClass("vtkMRMLSegmentEditorNode")
    editor.SetAndObserveSegmentationNode(segmentation)
    editor.SetAndObserveSourceVolumeNode(source)
    editor.SetSelectedSegmentID(segment_id(LEFT))
    logic = slicer.vtkSlicerSegmentEditorLogic()
    logic.SetMRMLScene(mrml)
    logic.SetSegmentEditorNode(editor)
    effect = segment_editor.open_editor(register, segment_editor.start(monkeypatch), logic)
    view = segment_editor.SliceView(mrml)
    view.show_plane((50.0, 50.0, 50.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0))
    mouse = segment_editor.Mouse(effect.self(), view)
    effect.self().reachBox.value = 50.0
    mouse.press((52.0, 48.0, 50.0))
    mouse.move((52.0, 54.0, 50.0))
    seconds = []
    for _ in range(2):
        started = time.process_time()
        mouse.release()
        seconds.append(time.process_time() - started)
        effect.self().onTakeBack()
        mouse.press((52.0, 48.0, 50.0))
    assert min(seconds) < 0.5

"""The effect AI correct on real MRML: what goes wrong, and its shell in the Segment Editor."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
import vtk
from slicer.util import updateVolumeFromArray, vtkMatrixFromArray

import segment_editor
from correction_help import (
    LEFT,
    LEFT_BOX,
    Bench,
    box_mask,
    mask_of,
    opened,
    paint_doubt,
)
from medsegai.request import Candidates, SegmentationResult, StructureMeasures
from MedSegAILib.correction import register
from MedSegAILib.scene import Scene
from scene_images import bending_transform


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
    assert "is not linear" in editing.message
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
    editing.effect.confirmation = editing.effect.ConfirmedWithDialog
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
        editing.mouse.hold(keys)
        assert not editing.mouse.press(editing.at(14, 10, 8))
    editing.mouse.hold()
    assert not editing.mouse.send(vtk.vtkCommand.RightButtonPressEvent)
    assert not editing.mouse.move(editing.at(14, 10, 8))
    assert not editing.mouse.type("x")
    assert not editing.mouse.type("a")
    assert editing.tool.strokes == 0


def test_enter_applies(editing: Bench) -> None:
    assert not editing.mouse.type("Return"), "there is nothing yet"
    paint_doubt(editing)
    assert editing.mouse.type("Return")
    assert editing.mask().sum() > box_mask(LEFT_BOX).sum()


def test_settings_are_kept_with_the_scene(editing: Bench) -> None:
    editing.panel.radiusBox.value = 7.5
    editing.panel.reachBox.value = 11.0
    editing.panel.outsideButton.click()
    other = segment_editor.ScriptedEffect()
    other.logic = editing.logic
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
    large = opened(mrml, monkeypatch, source, scene.write(source, result))
    large.view.show_plane((50.0, 50.0, 50.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0))
    large.panel.reachBox.value = 50.0
    large.mouse.press((52.0, 48.0, 50.0))
    large.mouse.move((52.0, 54.0, 50.0))
    seconds = []
    for _ in range(2):
        started = time.process_time()
        large.mouse.release()
        seconds.append(time.process_time() - started)
        large.panel.onTakeBack()
        large.mouse.press((52.0, 48.0, 50.0))
    assert min(seconds) < 0.5


def test_the_help_says_what_slicers_own_key_does(editing: Bench) -> None:
    """Esc never reaches the effect, because Slicer's shortcut comes first."""
    assert "<b>Esc</b> is Slicer's own key" in editing.panel.helpText()

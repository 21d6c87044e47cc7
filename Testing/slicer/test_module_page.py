"""The module's page with real scene and worker: from the choice of a volume to its segments."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import slicer
import vtk
from slicer.util import (
    updateVolumeFromArray,
)

import pythonqt
from medsegai.errors import InputError
from MedSegAILib.output_choice import OutputMode
from module_help import (
    button,
    head,
    message,
    model_called,
    node_count,
    plan,
    press,
    segment_voxels,
    structures,
    until,
)
from panel_help import find
from stand_ins import faced, put


def test_the_page_runs_a_job_and_shows_it(page: Any) -> None:
    volume = head()
    page.panel.choose_input(volume)
    assert page.panel.choice().card.id == "brain"
    press(page, "segmentButton")
    until(lambda: node_count() == 1)
    assert message(page) == ""
    assert find(page.parent, "verdictLabel").text().startswith("2 structures")
    assert "Not found: Absent." in find(page.parent, "detailsLabel").text()
    (segmentation,) = slicer.mrmlScene.GetNodesByClass("vtkMRMLSegmentationNode")
    assert segment_voxels(segmentation, 2, volume)[2].all()


def test_the_page_tells_of_a_crash_and_works_on(page: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    page.panel.choose_input(head())
    model_called(monkeypatch, "crash")
    press(page, "segmentButton")
    until(lambda: "crashed" in message(page))
    model_called(monkeypatch, "quick")
    press(page, "segmentButton")
    until(lambda: node_count() == 1)


def test_a_result_that_the_scene_cannot_take_is_brought_in_later(
    page: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer of a real worker, whose arrays are files that go when they are not needed any more."""
    model_called(monkeypatch, "quick")
    volume = head()
    page.panel.choose_input(volume)

    def full(*_: Any) -> Any:
        raise RuntimeError("vtkMRMLScene has no room")

    with monkeypatch.context() as patch:
        patch.setattr("MedSegAILib.scene.writing.Writer.write", full)
        press(page, "segmentButton")
        until(lambda: "vtkMRMLScene has no room" in message(page))
    assert button(page, "logButton").isVisibleTo(pythonqt.real(page.parent))
    log = page.host.log()
    assert "Traceback" in log
    assert log.rstrip().endswith("RuntimeError: vtkMRMLScene has no room")
    table = pythonqt.real(page.parent).findChild(pythonqt.QtWidgets.QTableWidget, "queueTable")
    assert table.item(0, 1).text() == "failed"
    table.selectRow(0)
    assert button(page, "againButton").text() == "Try again"
    press(page, "againButton")
    assert table.item(0, 1).text() == "done"
    assert button(page, "againButton").text() == "Run again"
    (segmentation,) = slicer.mrmlScene.GetNodesByClass("vtkMRMLSegmentationNode")
    assert segment_voxels(segmentation, 2, volume)[2].all()


def test_slicer_lives_while_surfaces_are_made(page: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two surfaces Slicer gets to its events, first for the button and then after an update."""
    model_called(monkeypatch, "quick")
    volume = head()
    page.panel.choose_input(volume)
    press(page, "segmentButton")
    until(lambda: node_count() == 1)
    node, row = page.controller.results.node, surfaces_row(page)
    lived: list[int] = []
    timer = pythonqt.QtCore.QTimer()
    timer.timeout.connect(lambda: lived.append(surface_count(node)))
    timer.start(0)
    press(page, "show3dButton")
    assert surface_count(node) == 0
    assert row.isVisibleTo(pythonqt.real(page.parent))
    until(lambda: not row.isVisibleTo(pythonqt.real(page.parent)))
    assert set(lived) >= {0, 1, 2}
    assert button(page, "show3dButton").isChecked()
    page.panel.choose_output(OutputMode.UPDATE, node)
    volume.SetOrigin(1.0, 0.0, 0.0)  # so that each segment gets other voxels
    lived.clear()
    press(page, "segmentButton")
    until(lambda: row.isVisibleTo(pythonqt.real(page.parent)))
    until(lambda: not row.isVisibleTo(pythonqt.real(page.parent)))
    assert set(lived) >= {0, 1, 2}
    timer.stop()


def test_the_table_follows_what_another_module_shows(
    page: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The eyes, and the surface of a segment that was not shown in 3D; nothing is watched after the page."""
    model_called(monkeypatch, "quick")
    page.panel.choose_input(head())
    press(page, "segmentButton")
    until(lambda: node_count() == 1)
    node, row = page.controller.results.node, surfaces_row(page)
    name, _other = node.GetSegmentation().GetSegmentIDs()
    display, event = node.GetDisplayNode(), slicer.vtkMRMLDisplayableNode.DisplayModifiedEvent
    table = pythonqt.real(page.parent).findChild(pythonqt.QtWidgets.QTableWidget, "resultTable")

    def eyes() -> list[str]:
        return [table.item(number, 0).toolTip() for number in range(table.rowCount())]

    assert eyes() == ["Shown in the views"] * 2
    display.SetSegmentVisibility(name, False)
    assert eyes() == ["Hidden", "Shown in the views"]
    display.SetSegmentVisibility(name, True)
    assert eyes() == ["Shown in the views"] * 2
    display.SetSegmentVisibility3D(name, False)
    press(page, "show3dButton")
    until(lambda: not row.isVisibleTo(pythonqt.real(page.parent)))

    def points() -> int:
        surface = node.GetSegmentation().GetSegment(name).GetRepresentation("Closed surface")
        return 0 if surface is None else int(surface.GetNumberOfPoints())

    assert points() > 0, "it was made last"
    node.GetSegmentation().GetSegment(name).RemoveRepresentation("Closed surface")
    display.SetSegmentVisibility3D(name, True)
    until(lambda: points() > 0)
    assert node.HasObserver(event)
    page.controller.results.show(None)
    assert not node.HasObserver(event)


def surfaces_row(page: Any) -> Any:
    return pythonqt.real(page.parent).findChild(pythonqt.QtWidgets.QWidget, "surfacesRow")


def surface_count(node: Any) -> int:
    segments = node.GetSegmentation()
    found = [segments.GetSegment(name) for name in segments.GetSegmentIDs()]
    return sum(1 for each in found if each.GetRepresentation("Closed surface") is not None)


def test_the_page_cancels(page: Any, module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    page.panel.choose_input(head())
    model_called(monkeypatch, "deaf")
    press(page, "segmentButton")
    until(lambda: module.worker()._hello is not None)
    press(page, "cancelButton")
    until(lambda: "Stopped" in message(page))
    assert node_count() == 0


def test_users_models_are_offered_beside_the_bundled(fake_model: Path, module: Any) -> None:
    page = module.MedSegAIWidget()
    offered = [card.folder.name for card in page.panel._cards]
    assert offered == ["brain", "hippocampus", "nuclei", "quick"]
    page.cleanup()


def test_the_plan_follows_what_becomes_of_the_volume(page: Any) -> None:
    assert "no input volume" in plan(page)
    volume = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "Head")
    assert "does not contain an image" in plan(page)
    updateVolumeFromArray(volume, np.zeros((4, 5, 10), np.int16))
    assert "on Head (10 x 5 x 4 voxels" in plan(page)
    volume.SetName("Patient 7")
    assert "on Patient 7" in plan(page)
    transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "Moved")
    volume.SetAndObserveTransformNodeID(transform.GetID())
    shear = vtk.vtkMatrix4x4()
    shear.SetElement(0, 1, 0.5)
    transform.SetMatrixTransformToParent(shear)
    assert "right angles" in plan(page)
    transform.SetMatrixTransformToParent(vtk.vtkMatrix4x4())
    assert "on Patient 7" in plan(page)
    slicer.mrmlScene.RemoveNode(volume)
    assert "no input volume" in plan(page)


def test_a_volume_that_is_not_chosen_any_more_is_not_watched(page: Any) -> None:
    first, second = head("First"), head("Second")
    page.panel.choose_input(first)
    page.panel.choose_input(second)
    watched = {item[0] for item in page.Observations if item[2] == page.onInputModified}
    assert watched == {second}


def test_the_page_does_not_start_a_process_before_it_is_asked(page: Any, module: Any) -> None:
    assert not module.worker().warm


def test_the_table_follows_a_job_and_an_edit(page: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model_called(monkeypatch, "quick")
    volume = head()
    page.panel.choose_input(volume)
    press(page, "segmentButton")
    until(lambda: node_count() == 1)
    assert structures(page) == ["Left hippocampus", "Brain-Stem"]
    (segmentation,) = slicer.mrmlScene.GetNodesByClass("vtkMRMLSegmentationNode")
    segmentation.GetSegmentation().RemoveSegment("002_Brain_Stem")
    page.controller.results.refresh()
    assert structures(page) == ["Left hippocampus"]


def test_a_second_volume_waits_for_the_first(page: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model_called(monkeypatch, "quick")
    for name in ("First", "Second"):
        page.panel.choose_input(head(name))
        press(page, "segmentButton")
    until(lambda: node_count() == 2)
    names = {node.GetName() for node in slicer.mrmlScene.GetNodesByClass("vtkMRMLSegmentationNode")}
    assert names == {"First segmentation", "Second segmentation"}


def test_a_preview_is_accepted_into_a_segmentation(
    page: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model_called(monkeypatch, "quick")
    volume = head()
    page.panel.choose_input(volume)
    press(page, "segmentButton")
    until(lambda: node_count() == 1)
    (first,) = slicer.mrmlScene.GetNodesByClass("vtkMRMLSegmentationNode")
    page.panel.choose_output(OutputMode.PREVIEW, first)
    press(page, "segmentButton")
    until(lambda: node_count() == 2)
    assert button(page, "acceptButton").isEnabled()
    press(page, "acceptButton")
    assert node_count() == 1
    assert segment_voxels(first, 1, volume)[1].all()


def test_a_label_volume_is_no_input(page: Any) -> None:
    """The selector does not offer it, and a script that gives one is told."""
    labels = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "Labels")
    assert page.panel.choice().node is None
    with pytest.raises(InputError, match="is a label map"):
        sys.modules["MedSegAI"].MedSegAILogic().segment(labels)


def test_every_frame_of_a_sequence_goes_into_one_segmentation(
    page: Any, module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from test_scene_sequences import TIMES, Cine

    model_called(monkeypatch, "quick")
    cine = Cine(slicer.mrmlScene)
    page.panel.choose_input(cine.proxy)
    frames = pythonqt.real(page.parent).findChild(pythonqt.QtWidgets.QComboBox, "framesSelector")
    assert frames.itemText(1) == f"Every frame ({len(TIMES)})"
    frames.setCurrentIndex(1)
    press(page, "segmentButton")
    assert len(module.queue().entries) == len(TIMES)
    until(lambda: not module.queue().busy)
    assert [str(entry.state) for entry in module.queue().entries] == ["done"] * len(TIMES)
    assert node_count() == 1, "its frames go along with the browser"


def test_a_model_with_two_channels_gets_the_volumes_that_fit(
    fake_model: Path, module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = json.loads((fake_model / "card.json").read_text())
    data["channels"] = [
        {"name": "T1", "modality": "MR", "required": True},
        {"name": "FLAIR", "modality": "MR", "required": True},
    ]
    (fake_model / "card.json").write_text(json.dumps(data | {"name": "Two channels"}))
    flair, other, first = head("Patient FLAIR"), head("Patient T2"), head("Patient T1")
    page = module.MedSegAIWidget()
    (card,) = [card for card in page.panel._cards if card.name == "Two channels"]
    page.panel.choose_model(card)
    assert page.panel.choice().nodes == {"T1": first, "FLAIR": flair}
    assert "Patient T1" in plan(page)
    assert "Patient FLAIR" in plan(page)
    page.panel._inputs._further[0][1].setCurrentNode(other)
    page.enter()
    assert page.panel.choice().nodes == {"T1": first, "FLAIR": other}, "the user's choice stays"
    page.host.close()
    page.cleanup()


def test_a_corrected_case_is_kept_only_with_consent(
    page: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a window nobody could agree, and so nothing is kept."""
    model_called(monkeypatch, "quick")
    page.panel.choose_input(head())
    press(page, "segmentButton")
    until(lambda: node_count() == 1)
    monkeypatch.setattr("MedSegAILib.panel.dialogs.open_folder", lambda *_: str(tmp_path))
    answers, kept = [False, True], []

    def keep(folder: Path, card: Any, nodes: Any, segmentation: Any, consent: bool) -> Any:
        kept.append((folder, card.id, [node.GetName() for node in nodes], consent))
        return SimpleNamespace(name="case_1", dataset=folder / "Dataset900", notes=("No label 7.",))

    monkeypatch.setattr("MedSegAILib.correction.corrected_cases.keep_case", keep)

    def decide(parent: Any, question: str, accept: str, decline: str, safe: bool) -> bool:
        assert "Nothing is sent anywhere" in question
        assert (accept, decline, safe) == ("Keep it", "Do not keep it", False)
        return answers.pop(0)

    monkeypatch.setattr("MedSegAILib.panel.dialogs.decide", decide)
    press(page, "keepButton")
    assert kept == []
    assert len(answers) == 2, "nobody was asked"
    monkeypatch.setattr("MedSegAILib.host.can_ask", lambda: True)
    press(page, "keepButton")
    assert kept == [], "a no"
    press(page, "keepButton")
    assert kept == [(tmp_path, "brain", ["Head"], True)]
    assert message(page).splitlines()[0].startswith("Kept as case_1 in ")
    assert message(page).splitlines()[1] == "No label 7."


def test_the_slab_around_the_red_slice_is_run_again(
    page: Any, module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model_called(monkeypatch, "quick")
    page.panel.choose_input(head())
    press(page, "segmentButton")
    until(lambda: node_count() == 1)
    press(page, "slabButton")
    assert "no red slice view" in message(page)
    view = slicer.vtkMRMLSliceNode()
    view.SetSingletonTag("Red")
    view.SetLayoutName("Red")
    slicer.mrmlScene.AddNode(view)
    view.SetOrientationToAxial()
    view.JumpSlice(-5.0, -2.0, 2.0)
    asked: list[Any] = []
    start = module.worker().start

    def spy(request: Any, listener: Any) -> None:
        asked.append(request)
        start(request, listener)

    monkeypatch.setattr(module.worker(), "start", spy)
    press(page, "slabButton")
    until(lambda: not module.queue().busy)
    low, high = asked[0].region[4:]
    assert low <= 2.0 <= high
    assert node_count() == 1, "into the segmentation that is there"


class Editor:
    """A qMRMLSegmentEditorWidget: what it was told, in order; it selects the first segment by itself."""

    def __init__(self) -> None:
        self.told: list[tuple[str, Any]] = []

    def setSegmentationNode(self, node: Any) -> None:
        self.told.append(("segmentation", node))
        self.setCurrentSegmentID(node.GetSegmentation().GetNthSegmentID(0))

    def setSourceVolumeNode(self, node: Any) -> None:
        self.told.append(("source", node))

    def setCurrentSegmentID(self, segment: str) -> None:
        self.told.append(("segment", segment))

    def setActiveEffectByName(self, name: str) -> None:
        self.told.append(("effect", name))


def test_the_editor_opens_on_the_structure_of_the_table_and_its_image(
    page: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The editor selects the first segment by itself; and another input may be chosen by now."""
    model_called(monkeypatch, "quick")
    volume, editor = head(), Editor()
    page.panel.choose_input(volume)
    press(page, "segmentButton")
    until(lambda: node_count() == 1)
    page.panel.choose_input(head("Other"))
    segmentation = page.controller.results.node
    segment = segmentation.GetSegmentation().GetNthSegmentID(1)
    page.panel.results.structure_chosen.emit(segment)
    put(monkeypatch, "slicer.util.mainWindow", lambda: "window")
    put(monkeypatch, "slicer.util.selectModule", lambda name: None)
    widget = SimpleNamespace(editor=faced(editor, "qMRMLSegmentEditorWidget"))
    put(monkeypatch, "slicer.util.getModuleWidget", lambda name: widget)
    press(page, "correctButton")
    put(monkeypatch, "slicer.util.mainWindow", lambda: None)
    last = dict(editor.told)
    assert last == {
        "segmentation": segmentation,
        "source": volume,
        "segment": segment,
        "effect": "AI correct",
    }
    assert editor.told.index(("segment", segment)) < editor.told.index(("effect", "AI correct"))


def test_the_row_of_the_table_is_still_chosen_after_another_module(
    page: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the user went on to another segment there."""
    model_called(monkeypatch, "quick")
    page.panel.choose_input(head())
    press(page, "segmentButton")
    until(lambda: node_count() == 1)
    segmentation = page.controller.results.node
    first, second = segmentation.GetSegmentation().GetSegmentIDs()
    table = pythonqt.real(page.parent).findChild(pythonqt.QtWidgets.QTableWidget, "resultTable")

    def chosen() -> list[str]:
        names = {
            segment: segmentation.GetSegmentation().GetSegment(segment).GetName()
            for segment in (first, second)
        }
        rows = {index.row() for index in table.selectionModel().selectedRows()}
        texts = [
            {
                table.item(row, column).text()
                for column in range(table.columnCount())
                if table.item(row, column)
            }
            for row in rows
        ]
        return [segment for segment, name in names.items() if any(name in text for text in texts)]

    page.panel.results.structure_chosen.emit(second)
    page.enter()
    assert chosen() == [second]
    page.controller._context.scene.set_current_segment(segmentation, first)
    page.enter()
    assert chosen() == [first]


def test_a_question_whose_yes_gives_something_away_is_not_answered_by_enter(
    page: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """May images travel to another computer? Where nobody can answer there is nobody to mislead."""
    asked: list[bool] = []

    def decide(parent: Any, question: str, accept: str, decline: str, safe: bool) -> bool:
        asked.append(safe)
        return safe

    monkeypatch.setattr("MedSegAILib.panel.dialogs.decide", decide)
    assert page.host.confirm("May images travel?")
    assert asked == []
    monkeypatch.setattr("MedSegAILib.host.can_ask", lambda: True)
    assert not page.host.confirm("May images travel?")
    assert asked == [False]

"""Jobs of the page while the scene changes, nodes go, or Slicer is closed."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import slicer

from MedSegAILib.output_choice import OutputMode
from MedSegAILib.panel import dialogs
from module_help import (
    head,
    head_under_way,
    message,
    model_called,
    node_count,
    plan,
    press,
    until,
)
from panel_help import find
from stand_ins import put


def test_closing_the_scene_stops_the_job_and_drops_the_result(
    page: Any, module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = head()
    page.panel.choose_input(volume)
    model_called(monkeypatch, "slow")
    press(page, "segmentButton")
    slicer.mrmlScene.Clear(0)
    client = module.worker()
    until(lambda: not client.busy)
    assert node_count() == 0
    assert message(page) == "", "the user has closed it, and need not be told"
    page.panel.choose_input(head())
    model_called(monkeypatch, "quick")
    press(page, "segmentButton")
    until(lambda: node_count() == 1)


def test_a_deleted_output_becomes_a_message_and_not_a_loss(
    page: Any, module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model_called(monkeypatch, "short")
    output = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "Manual")
    page.panel.choose_input(head())
    page.panel.choose_output(OutputMode.UPDATE, output)
    press(page, "segmentButton")
    until(lambda: module.worker()._hello is not None)
    slicer.mrmlScene.RemoveNode(output)
    until(lambda: node_count() == 1)
    assert "Manual has left the scene" in message(page)


def test_an_input_that_is_renamed_during_the_job_keeps_its_result(
    page: Any, module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = head_under_way(page, module, monkeypatch)
    volume.SetName("Patient 7")
    until(lambda: node_count() == 1)
    (segmentation,) = slicer.mrmlScene.GetNodesByClass("vtkMRMLSegmentationNode")
    assert segmentation.GetName() == "Patient 7 segmentation"


def test_an_input_that_is_deleted_during_the_job_is_told(
    page: Any, module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = head_under_way(page, module, monkeypatch)
    slicer.mrmlScene.RemoveNode(volume)
    until(lambda: "has left the scene" in message(page))
    assert node_count() == 0


def test_closing_slicer_asks_while_jobs_are_under_way(
    page: Any, application: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def decide(parent: Any, question: str, accept: str, decline: str, safe: bool) -> bool:
        asked.append(question)
        assert not safe, "Enter does not stop the jobs"
        return False

    put(monkeypatch, "slicer.util.mainWindow", lambda: "window")
    monkeypatch.setattr(dialogs, "decide", decide)
    assert page.mayClose()
    assert asked == [], "nothing is under way"
    model_called(monkeypatch, "slow")
    page.panel.choose_input(head())
    put(monkeypatch, "slicer.util.mainWindow", lambda: None)
    press(page, "segmentButton")
    put(monkeypatch, "slicer.util.mainWindow", lambda: "window")
    assert not page.mayClose()
    assert "1 MedSegAI job is running (Head: Brain" in asked[0]
    application.testing = True
    assert page.mayClose(), "a test must not wait for an answer"
    application.testing = False
    put(monkeypatch, "slicer.util.mainWindow", lambda: None)


@pytest.mark.parametrize("wait", [True, False])
def test_closing_the_scene_asks_whether_to_wait(
    page: Any, module: Any, monkeypatch: pytest.MonkeyPatch, wait: bool
) -> None:
    """With yes the results are there to be saved before the scene goes, with no the jobs stop."""
    saved: list[int] = []
    monkeypatch.setattr("MedSegAILib.host.can_ask", lambda: True)

    def decide(parent: Any, question: str, accept: str, decline: str, safe: bool) -> bool:
        assert safe, "Enter keeps the results"
        return wait

    monkeypatch.setattr(dialogs, "decide", decide)
    put(monkeypatch, "slicer.util.openSaveDataDialog", lambda: saved.append(node_count()))
    model_called(monkeypatch, "short")
    page.panel.choose_input(head())
    press(page, "segmentButton")
    slicer.mrmlScene.Clear(0)
    until(lambda: not module.worker().busy)
    assert saved == ([1] if wait else [])
    assert node_count() == 0


def test_a_reload_during_a_job_stops_it_and_the_new_page_works(
    page: Any, module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The choices stay, because they are in the scene."""
    for name in [name for name in sys.modules if name.split(".")[0] in ("MedSegAILib", "medsegai")]:
        monkeypatch.setitem(sys.modules, name, sys.modules[name])  # put back afterwards
    volume = head_under_way(page, module, monkeypatch)
    client = module.worker()
    page.onReload()
    page.cleanup()
    assert not client.busy
    assert not client.warm
    assert node_count() == 0
    monkeypatch.setattr("MedSegAILib.controller.context.Context._model", lambda *_: "quick")
    from MedSegAILib.worker.client import WorkerClient

    module._worker = WorkerClient(client.place.words, client.place.variables)
    again = module.MedSegAIWidget()
    assert again.panel.choice().node is volume
    press(again, "segmentButton")
    until(lambda: node_count() == 1)
    again.cleanup()


def test_a_scene_that_is_added_during_a_job_does_not_disturb_it(
    page: Any, module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = head_under_way(page, module, monkeypatch)
    other = slicer.vtkMRMLScene()
    other.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "Other")
    other.SetSaveToXMLString(1)
    other.Commit()
    slicer.mrmlScene.SetLoadFromXMLString(1)
    slicer.mrmlScene.SetSceneXMLString(other.GetSceneXMLString())
    assert slicer.mrmlScene.Import()
    assert slicer.util.getNode("Other").GetID() != volume.GetID()
    until(lambda: node_count() == 1)
    segmentation = page.controller.results.node
    assert segmentation.GetName() == "Head segmentation"
    role = segmentation.GetReferenceImageGeometryReferenceRole()
    assert segmentation.GetNodeReference(role) is volume
    assert page.panel.choice().node is volume


def test_after_the_input_was_deleted_and_the_job_cancelled_another_runs(
    page: Any, module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = head_under_way(page, module, monkeypatch)
    slicer.mrmlScene.RemoveNode(volume)
    press(page, "cancelButton")
    until(lambda: not module.worker().busy)
    press(page, "segmentButton")
    assert "There is no input volume" in plan(page)
    assert len(module.queue().entries) == 1, "nothing was added"
    find(page.parent, "queueTable").selectRow(0)
    press(page, "againButton")
    assert message(page) == "The volume Head has left the scene. Load it again."
    page.panel.choose_input(head("Next"))
    press(page, "segmentButton")
    until(lambda: node_count() == 1)
    assert [str(entry.state) for entry in module.queue().entries] == ["cancelled", "failed", "done"]


@pytest.mark.parametrize("folder", ["none", "read only"])
def test_without_a_temporary_folder_a_job_fails_with_advice_and_works_later(
    page: Any, module: Any, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    def none() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found")

    model_called(monkeypatch, "quick")
    page.panel.choose_input(head())
    with monkeypatch.context() as patch:
        if folder == "none":
            patch.setattr("tempfile.gettempdir", none)
        else:
            patch.setattr("tempfile.tempdir", "/proc")  # in which not even root can write
        press(page, "segmentButton")
        assert "TMPDIR" in message(page)
    press(page, "segmentButton")
    until(lambda: node_count() == 1)

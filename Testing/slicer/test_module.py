"""The module's entry as Slicer runs it: page, script and self-test, with real scene and worker."""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import slicer
import vtk
from slicer.util import (
    addVolumeFromArray,
    arrayFromSegmentBinaryLabelmap,
    updateVolumeFromArray,
)

import pythonqt
from medsegai.errors import DeviceError, InputError, RequestError
from medsegai.request import request_options
from MedSegAILib.output_choice import OutputChoice, OutputMode
from MedSegAILib.scene import ENTROPY_REFERENCE
from slicer_application import MODULE_FOLDER

PATIENCE = 15.0


def head(name: str = "Head") -> Any:
    """A volume with 50 voxels of each label that the made-up engine knows."""
    image = np.zeros((4, 5, 10), np.int16)
    image[1] = 150
    image[2] = 250
    return addVolumeFromArray(image, np.diag([-1.0, -1.0, 2.0, 1.0]), name)


def segment_voxels(segmentation: Any, value: int, volume: Any) -> Any:
    segments = segmentation.GetSegmentation()
    ids = [segments.GetNthSegmentID(index) for index in range(segments.GetNumberOfSegments())]
    (found,) = [name for name in ids if name.startswith(f"{value:03d}_")]
    return arrayFromSegmentBinaryLabelmap(segmentation, found, volume)


def node_count() -> int:
    return int(slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode"))


def until(condition: Any) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "nothing happened"
        pythonqt.process_events(10)


# --- scripts ---------------------------------------------------------------------------------------


def test_a_script_gets_segments_for_a_volume(module: Any) -> None:
    volume, events = head(), []
    segmentation = module.MedSegAILogic().segment(volume, model="quick", progress=events.append)
    assert slicer.mrmlScene.IsNodePresent(segmentation)
    assert segmentation.GetName() == "Head segmentation"
    assert segment_voxels(segmentation, 1, volume)[1].all()
    assert segment_voxels(segmentation, 2, volume).sum() == 50
    assert events[0].stage == "read"
    assert all(a.fraction <= b.fraction for a, b in itertools.pairwise(events))


def test_a_script_reads_how_it_was_made(module: Any) -> None:
    logic = module.MedSegAILogic()
    report = logic.report(logic.segment(head(), model="quick"))
    volumes = {item["name"]: item["volume_ml"] for item in report["structures"]}
    assert volumes["Left hippocampus"] == pytest.approx(50 * 2 / 1000)
    assert report["seconds"] == {"predict": 0.5}
    assert logic.report(slicer.vtkMRMLSegmentationNode()) == {}


def test_a_script_gets_the_entropy_where_it_asks(module: Any) -> None:
    segmentation = module.MedSegAILogic().segment(head(), model="quick", uncertainty=True)
    entropy = segmentation.GetNodeReference(ENTROPY_REFERENCE)
    assert entropy.GetName() == "Head uncertainty"


def test_the_worker_stays_warm_between_scripts(module: Any) -> None:
    pids = set()
    for _ in range(3):
        logic = module.MedSegAILogic()
        pids.add(logic.report(logic.segment(head(), model="quick"))["provenance"]["pid"])
    assert len(pids) == 1


def test_errors_are_raised_and_the_scene_is_as_it_was(module: Any) -> None:
    logic, volume = module.MedSegAILogic(), head()
    with pytest.raises(DeviceError, match="cuda:7"):
        logic.segment(volume, model="refuse")
    with pytest.raises(InputError, match="no input volume"):
        logic.segment(None)
    with pytest.raises(RequestError, match="no_such_option"):
        logic.segment(volume, no_such_option=1)
    with pytest.raises(RequestError, match="members"):
        logic.segment(volume, members="axial")
    assert node_count() == 0
    assert logic.segment(volume, model=["quick"]) is not None


def test_an_exception_in_the_callback_stops_the_job(module: Any) -> None:
    def fail(event: Any) -> None:
        raise ZeroDivisionError("in the user's script")

    with pytest.raises(ZeroDivisionError, match="user's script"):
        module.MedSegAILogic().segment(head(), model="slow", progress=fail)
    assert node_count() == 0
    assert module.MedSegAILogic().segment(head(), model="quick") is not None


@pytest.mark.parametrize(
    ("window", "testing", "asked"),
    [(None, False, [False]), ("window", False, [True]), ("window", True, [])],
)
def test_installing_asks_only_where_somebody_can_answer(
    application: Any,
    fresh_module: Any,
    monkeypatch: pytest.MonkeyPatch,
    window: Any,
    testing: bool,
    asked: list[bool],
) -> None:
    from MedSegAILib import install

    heard: list[bool] = []
    monkeypatch.setattr(install, "ensure", lambda ask: heard.append(ask is not None))
    monkeypatch.setattr(slicer.util, "mainWindow", lambda: window)
    application.testing = testing
    fresh_module.install_what_is_missing()
    assert heard == asked


def test_quitting_slicer_ends_the_worker(
    module: Any, application: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    module.close_worker()
    monkeypatch.setenv("PATH", "")
    client = module.worker()
    assert client is module.worker(), "one worker for all"
    application.quit()
    assert module._worker is None


def test_every_option_of_the_panel_is_an_option_of_a_script(module: Any) -> None:
    defaults = {option.name: option.default for option in request_options()}
    del defaults["models"]
    assert module.MedSegAILogic().segment(head(), model="quick", **defaults) is not None


# --- the page --------------------------------------------------------------------------------------


@pytest.fixture
def page(module: Any) -> Iterator[Any]:
    page = module.MedSegAIWidget()
    yield page
    page.cleanup()


@pytest.fixture
def fake_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A card in the user's folder; its folder's name is what the made-up engine is told."""
    monkeypatch.setenv("MEDSEGAI_MODELS", str(tmp_path / "models"))
    folder = tmp_path / "models" / "quick"
    folder.mkdir(parents=True)
    source = MODULE_FOLDER / "medsegai" / "models" / "brain" / "card.json"
    (folder / "card.json").write_text(json.dumps(json.loads(source.read_text()) | {"id": "quick"}))
    return folder


def press(page: Any, name: str) -> None:
    pythonqt.real(page.parent).findChild(pythonqt.QtWidgets.QPushButton, name).click()


def message(page: Any) -> str:
    label = pythonqt.real(page.parent).findChild(pythonqt.QtWidgets.QLabel, "messageLabel")
    return str(label.text())


def test_the_page_runs_a_job_and_shows_it(page: Any) -> None:
    volume = head()
    page.panel.choose_input(volume)
    assert page.panel.choice().card.id == "brain"
    press(page, "segmentButton")
    until(lambda: node_count() == 1)
    assert "2 of 3 structures" in message(page)
    (segmentation,) = slicer.mrmlScene.GetNodesByClass("vtkMRMLSegmentationNode")
    assert segment_voxels(segmentation, 2, volume)[2].all()


def test_closing_the_scene_stops_the_job_and_drops_the_result(
    page: Any, module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = head()
    page.panel.choose_input(volume)
    monkeypatch.setattr("MedSegAILib.controller.house.House._model", lambda self, card: "slow")
    press(page, "segmentButton")
    slicer.mrmlScene.Clear(0)
    client = module.worker()
    until(lambda: not client.busy)
    assert node_count() == 0
    assert "Stopped" in message(page)
    page.panel.choose_input(head())
    monkeypatch.setattr("MedSegAILib.controller.house.House._model", lambda self, card: "quick")
    press(page, "segmentButton")
    until(lambda: node_count() == 1)


def test_the_page_tells_of_a_crash_and_works_on(page: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    page.panel.choose_input(head())
    monkeypatch.setattr("MedSegAILib.controller.house.House._model", lambda self, card: "crash")
    press(page, "segmentButton")
    until(lambda: "crashed" in message(page))
    monkeypatch.setattr("MedSegAILib.controller.house.House._model", lambda self, card: "quick")
    press(page, "segmentButton")
    until(lambda: node_count() == 1)


def test_the_page_cancels(page: Any, module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    page.panel.choose_input(head())
    monkeypatch.setattr("MedSegAILib.controller.house.House._model", lambda self, card: "deaf")
    press(page, "segmentButton")
    until(lambda: module.worker()._hello is not None)
    press(page, "cancelButton")
    until(lambda: "Stopped" in message(page))
    assert node_count() == 0


def test_users_models_are_offered_beside_the_bundled(fake_model: Path, module: Any) -> None:
    page = module.MedSegAIWidget()
    offered = [card.folder.name for card in page.panel._cards]
    assert offered == ["brain", "hippocampus", "quick"]
    page.cleanup()


def plan(page: Any) -> str:
    """What will run, on what, or why nothing can."""
    label = pythonqt.real(page.parent).findChild(pythonqt.QtWidgets.QLabel, "planLabel")
    return f"{label.text()} {label.toolTip()}"


def test_the_plan_follows_what_becomes_of_the_volume(page: Any) -> None:
    assert "no input volume" in plan(page)
    volume = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "Head")
    assert "holds no image" in plan(page)
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


def test_cleaning_up_ends_the_worker_and_the_observations(module: Any) -> None:
    page = module.MedSegAIWidget()
    page.cleanup()
    assert module._worker is None
    slicer.mrmlScene.Clear(0)


def test_reloading_reads_every_file_again(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = [name for name in sys.modules if name.split(".")[0] in ("MedSegAILib", "medsegai")]
    for name in ours:  # put back afterwards
        monkeypatch.setitem(sys.modules, name, sys.modules[name])
    page = module.MedSegAIWidget()
    page.onReload()
    assert page.reloaded
    left = [name for name in sys.modules if name.split(".")[0] in ("MedSegAILib", "medsegai")]
    assert left == []


def test_the_module_tells_what_it_is(module: Any) -> None:
    class Parent:
        pass

    parent: Any = Parent()
    module.MedSegAI(parent)
    assert parent.title == "MedSegAI"
    assert parent.categories == ["Segmentation"]
    assert "not for diagnostic use" in parent.helpText
    assert parent.acknowledgementText


def test_opening_slicer_loads_nothing_of_ours_but_the_entry(application: Any) -> None:
    """Slicer runs MedSegAI.py at every start: not even numpy is asked for there."""
    source = (MODULE_FOLDER / "MedSegAI.py").read_text()
    code = compile(source, "MedSegAI.py", "exec")
    before = {name for name in sys.modules if name.startswith(("medsegai", "MedSegAILib"))}
    saved = {name: sys.modules.pop(name) for name in before}
    try:
        exec(code, {"__name__": "MedSegAI", "__file__": str(MODULE_FOLDER / "MedSegAI.py")})
        loaded = [name for name in sys.modules if name.startswith(("medsegai", "MedSegAILib"))]
    finally:
        sys.modules.update(saved)
    assert loaded == []


# --- the working day -------------------------------------------------------------------------------


def button(page: Any, name: str) -> Any:
    found = pythonqt.real(page.parent).findChild(pythonqt.QtWidgets.QPushButton, name)
    assert found is not None, name
    return found


def model_called(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The made-up engine takes the name of the model for how the job goes."""
    monkeypatch.setattr("MedSegAILib.controller.house.House._model", lambda self, card: name)


def structures(page: Any) -> list[str]:
    table = pythonqt.real(page.parent).findChild(pythonqt.QtWidgets.QTableWidget, "resultTable")
    return [table.item(row, 0).text() for row in range(table.rowCount())]


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


def head_under_way(page: Any, module: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A volume whose job the worker has taken."""
    model_called(monkeypatch, "short")
    volume = head()
    page.panel.choose_input(volume)
    press(page, "segmentButton")
    until(lambda: module.worker()._hello is not None)
    return volume


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


def test_a_label_volume_is_no_input(page: Any) -> None:
    """The selector does not offer it, and a script that gives one is told."""
    labels = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "Labels")
    assert page.panel.choice().node is None
    with pytest.raises(InputError, match="is a label map"):
        sys.modules["MedSegAI"].MedSegAILogic().segment(labels)


def test_closing_slicer_asks_while_jobs_are_under_way(
    page: Any, application: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def confirm(question: str, title: str) -> bool:
        asked.append(question)
        return False

    monkeypatch.setattr(slicer.util, "mainWindow", lambda: "window")
    monkeypatch.setattr(slicer.util, "confirmYesNoDisplay", confirm, raising=False)
    assert page.mayClose()
    assert asked == [], "nothing is under way"
    model_called(monkeypatch, "slow")
    page.panel.choose_input(head())
    monkeypatch.setattr(slicer.util, "mainWindow", lambda: None)
    press(page, "segmentButton")
    monkeypatch.setattr(slicer.util, "mainWindow", lambda: "window")
    assert not page.mayClose()
    assert "1 MedSegAI jobs are under way (Head: Brain" in asked[0]
    application.testing = True
    assert page.mayClose(), "a test must not wait for an answer"
    application.testing = False
    monkeypatch.setattr(slicer.util, "mainWindow", lambda: None)


@pytest.mark.parametrize("wait", [True, False])
def test_closing_the_scene_asks_whether_to_wait(
    page: Any, module: Any, monkeypatch: pytest.MonkeyPatch, wait: bool
) -> None:
    """With yes the results are there to be saved before the scene goes, with no the jobs stop."""
    saved: list[int] = []
    monkeypatch.setattr("MedSegAILib.host.can_ask", lambda: True)
    monkeypatch.setattr(
        slicer.util, "confirmYesNoDisplay", lambda question, title: wait, raising=False
    )
    monkeypatch.setattr(
        slicer.util, "openSaveDataDialog", lambda: saved.append(node_count()), raising=False
    )
    model_called(monkeypatch, "short")
    page.panel.choose_input(head())
    press(page, "segmentButton")
    slicer.mrmlScene.Clear(0)
    until(lambda: not module.worker().busy)
    assert saved == ([1] if wait else [])
    assert node_count() == 0


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
    monkeypatch.setattr(
        slicer.util, "confirmYesNoDisplay", lambda question, title: answers.pop(0), raising=False
    )
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


def test_a_script_starts_a_job_and_waits_later(module: Any) -> None:
    logic, volume = module.MedSegAILogic(), head()
    first = logic.start(volume, model="quick")
    second = logic.start(head("Second"), model="quick")
    assert not first.over
    assert second.wait().GetName() == "Second segmentation"
    assert first.over, "one after the other"
    assert first.wait().GetName() == "Head segmentation"
    assert str(first.entry.state) == "done"


def test_a_script_cancels_what_it_started(module: Any) -> None:
    from medsegai.errors import Cancelled

    job = module.MedSegAILogic().start(head(), model="slow")
    job.cancel()
    with pytest.raises(Cancelled):
        job.wait()
    assert node_count() == 0


def test_a_script_gives_one_volume_per_channel_and_a_box(module: Any) -> None:
    from medsegai.errors import GeometryError

    roi = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsROINode", "Box")
    roi.SetCenter(-5.0, -2.0, 3.0)
    roi.SetSize(6.0, 4.0, 4.0)
    logic, volume = module.MedSegAILogic(), head()
    report = logic.report(logic.segment([volume, head("T2")], model="quick", region=roi))
    assert report["structures"]
    other = addVolumeFromArray(np.zeros((3, 3, 3), np.int16), np.eye(4), "Other")
    with pytest.raises(GeometryError, match="same voxels"):
        logic.segment([volume, other], model="quick")


def test_a_script_updates_a_segmentation(module: Any) -> None:
    logic, volume = module.MedSegAILogic(), head()
    first = logic.segment(volume, model="quick")
    first.GetSegmentation().RemoveSegment("002_Brain_Stem")
    again = logic.segment(volume, model="quick", output=OutputChoice(OutputMode.UPDATE, first))
    assert again is first
    assert list(first.GetSegmentation().GetSegmentIDs()) == ["001_Left_hippocampus"]


def test_the_place_of_the_worker_is_a_setting(module: Any, application: Any) -> None:
    module.close_worker()
    application.settings.setValue("MedSegAI/place", "ssh:server medsegai worker")
    assert module.worker().place.target == "server"
    module.close_worker()
    application.settings.setValue("MedSegAI/place", "nonsense")
    assert module.worker().place.kind == "own"


def test_when_slicer_has_started_data_and_effect_are_registered(
    fresh_module: Any, application: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import types

    registered: list[dict[str, Any]] = []
    effects: list[bool] = []

    class SampleDataLogic:
        @staticmethod
        def registerCustomSampleDataSource(**source: Any) -> None:
            registered.append(source)

    sample_data = types.ModuleType("SampleData")
    sample_data.SampleDataLogic = SampleDataLogic  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "SampleData", sample_data)
    monkeypatch.setattr("MedSegAILib.correction.register", lambda: effects.append(True))

    class Parent:
        pass

    fresh_module.MedSegAI(Parent())
    application.start()
    (source,) = registered
    digest = source["checksums"].removeprefix("SHA256:")
    assert source["uris"].endswith(digest)
    assert len(digest) == 64
    assert Path(source["thumbnailFileName"]).is_file()
    assert effects == [True]


# --- the self-test that runs inside the application ----------------------------------------------------


@pytest.fixture
def self_test(module: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`MedSegAITest` with the real engine behind the worker, as in the application."""
    module.close_worker()
    monkeypatch.setenv("PATH", "")  # no PythonSlicer here: this Python stands in for it
    monkeypatch.setattr("shutil.which", lambda name: None)
    page = module.MedSegAIWidget()
    monkeypatch.setattr(slicer.util, "getModuleWidget", lambda name: page)
    return module.MedSegAITest()


@pytest.mark.parametrize(
    "name",
    [
        "test_voxels_and_segments_lie_at_one_place",
        "test_segments_can_be_edited_at_once",
        "test_bad_input_is_refused",
        "test_panel_follows_the_scene",
        "test_every_part_of_the_panel_works",
        "test_results_are_listed_and_reviewed",
        "test_effect_is_in_the_segment_editor",
        "test_worker_process_answers",
        pytest.param("test_brain_model_runs", marks=pytest.mark.slow),
    ],
)
def test_the_self_test_passes(self_test: Any, name: str) -> None:
    self_test.setUp()
    getattr(self_test, name)()


def test_the_self_test_runs_all_of_its_tests(self_test: Any, monkeypatch: Any) -> None:
    ran: list[str] = []
    names = [name for name in dir(self_test) if name.startswith("test_")]
    for name in names:
        monkeypatch.setattr(self_test, name, _mark(ran, name))
    self_test.runTest()
    assert sorted(ran) == sorted(names)


def _mark(ran: list[str], name: str) -> Any:
    def test() -> None:
        ran.append(name)

    test.__name__ = name
    return test

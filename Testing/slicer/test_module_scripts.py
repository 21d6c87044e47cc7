"""What scripts do with the module: segment, wait, cancel, update, with real scene and worker."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import slicer
from slicer.util import (
    addVolumeFromArray,
)

from medsegai.errors import DeviceError, InputError, RequestError, WorkerError
from medsegai.request import request_options
from MedSegAILib.output_choice import OutputChoice, OutputMode
from MedSegAILib.scene import ENTROPY_REFERENCE, Scene
from module_help import (
    head,
    node_count,
    segment_voxels,
)


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
    for use in (
        logic.measure,
        logic.export,
        logic.report,
        lambda node: logic.refine(node, "holes"),
    ):
        with pytest.raises(InputError, match="There is no segmentation"):
            use(None)
        with pytest.raises(InputError, match="Head is not a segmentation"):
            use(volume)
    assert node_count() == 0
    assert logic.segment(volume, model=["quick"]) is not None


def test_an_exception_in_the_callback_stops_the_job(module: Any) -> None:
    def fail(event: Any) -> None:
        raise ZeroDivisionError("in the user's script")

    with pytest.raises(ZeroDivisionError, match="user's script"):
        module.MedSegAILogic().segment(head(), model="slow", progress=fail)
    assert node_count() == 0
    assert module.MedSegAILogic().segment(head(), model="quick") is not None


def test_every_option_of_the_panel_is_an_option_of_a_script(module: Any) -> None:
    defaults = {option.name: option.default for option in request_options()}
    del defaults["models"]
    assert module.MedSegAILogic().segment(head(), model="quick", **defaults) is not None


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


def test_a_script_hears_of_a_result_that_the_scene_cannot_take(
    module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It must not wait for ever for what will not come."""

    def full(*_: Any) -> Any:
        raise RuntimeError("no room")

    monkeypatch.setattr("MedSegAILib.scene.writing.Writer.write", full)
    with pytest.raises(WorkerError, match="RuntimeError: no room"):
        module.MedSegAILogic().segment(head(), model="quick")


def test_a_script_gives_one_volume_per_channel_and_a_box(module: Any, fake_model: Path) -> None:
    from medsegai.errors import GeometryError

    card = json.loads((fake_model / "card.json").read_text())
    card["channels"].append({"name": "T2", "modality": "MR", "required": True})
    (fake_model / "card.json").write_text(json.dumps(card))

    roi = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsROINode", "Box")
    roi.SetCenter(-5.0, -2.0, 3.0)
    roi.SetSize(6.0, 4.0, 4.0)
    logic, volume = module.MedSegAILogic(), head()
    second = head("T2")
    segmentation = logic.segment([volume, second], model="quick", region=roi)
    assert logic.report(segmentation)["structures"]
    assert Scene(slicer.mrmlScene).channels_of(segmentation) == {"MR": volume, "T2": second}
    other = addVolumeFromArray(np.zeros((3, 3, 3), np.int16), np.eye(4), "Other")
    with pytest.raises(GeometryError, match="does not lie on the grid"):
        logic.segment([volume, other], model="quick")


def test_a_script_updates_a_segmentation(module: Any) -> None:
    logic, volume = module.MedSegAILogic(), head()
    first = logic.segment(volume, model="quick")
    first.GetSegmentation().RemoveSegment("002_Brain_Stem")
    again = logic.segment(volume, model="quick", output=OutputChoice(OutputMode.UPDATE, first))
    assert again is first
    assert list(first.GetSegmentation().GetSegmentIDs()) == ["001_Left_hippocampus"]


def test_a_script_reads_what_was_not_changed(module: Any, caplog: pytest.LogCaptureFixture) -> None:
    logic, volume = module.MedSegAILogic(), head()
    node = logic.segment(volume, model="quick")
    (name, *_others) = node.GetSegmentation().GetSegmentIDs()
    Scene(slicer.mrmlScene).set_review_state(node, name, "completed")
    volume.SetOrigin(1.0, 0.0, 0.0)  # so that each segment gets other voxels
    job = logic.start(volume, model="quick", output=OutputChoice(OutputMode.UPDATE, node))
    assert job.notes == ()
    assert job.wait() is node
    assert any("locked" in note or "completed" in note for note in job.notes), job.notes
    assert [record.getMessage() for record in caplog.records if record.name == "MedSegAI"] == list(
        job.notes
    )

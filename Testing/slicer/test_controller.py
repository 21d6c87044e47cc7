"""What happens when: the controller with a made-up panel, scene and worker."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fake_worker
from medsegai.card import Channel, MemberCard, ModelCard
from medsegai.errors import (
    Cancelled,
    DeviceError,
    InputError,
    MedSegAIError,
    OutputError,
    WorkerError,
)
from medsegai.progress import ProgressEvent
from medsegai.request import SegmentationRequest, SegmentationResult
from medsegai.volume import Geometry, Volume
from MedSegAILib.controller import Controller
from MedSegAILib.signals import Signal

REPOSITORY = Path(__file__).resolve().parents[2]
BRAIN = ModelCard(
    id="brain",
    name="Brain",
    family="quicknat",
    version="1.2",
    channels=(Channel("MR", "MR"),),
    labels=fake_worker.LABELS,
    members=(MemberCard("axial"), MemberCard("coronal")),
    spacing_mm=(1, 1, 1),
    folder=Path("/models/brain"),
)
HEAD = Volume(np.full((4, 5, 6), 150.0), Geometry.from_spacing((4, 5, 6), (1, 1, 2)), "Head")


@dataclass
class Choice:
    node: Any = "head node"
    card: ModelCard | None = BRAIN
    options: dict[str, Any] = field(default_factory=dict)


class Panel:
    """Writes down the last thing it was told of each kind."""

    def __init__(self) -> None:
        self.segment_requested, self.cancel_requested = Signal(), Signal()
        self.choice_changed = Signal()
        self.chosen = Choice()
        self.state = "idle"
        self.plan: tuple[str, bool] = ("", False)
        self.message = self.error = ""
        self.models: list[ModelCard] = []
        self.structures: list[str] = []
        self.progress: list[float] = []

    def choice(self) -> Choice:
        return self.chosen

    def show_models(self, cards: Sequence[ModelCard]) -> None:
        self.models = list(cards)
        self.choice_changed.emit()

    def show_plan(self, text: str, ready: bool) -> None:
        self.plan = (text, ready)

    def show_running(self) -> None:
        self.state = "running"
        self.message = self.error = ""

    def show_cancelling(self) -> None:
        self.state = "cancelling"

    def show_progress(self, event: ProgressEvent) -> None:
        self.progress.append(event.fraction)

    def show_idle(self) -> None:
        self.state = "idle"

    def show_message(self, text: str) -> None:
        self.message = text

    def show_error(self, text: str) -> None:
        self.error = text

    def show_structures(self, structures: Sequence[Any]) -> None:
        self.structures = [measures.label.name for measures in structures]


class Node:
    def GetName(self) -> str:
        return "Head segmentation"


class Scene:
    def __init__(self) -> None:
        self.read_error: MedSegAIError | None = None
        self.write_error: MedSegAIError | None = None
        self.written: list[tuple[Any, SegmentationResult]] = []

    def read(self, node: Any) -> Volume:
        if self.read_error:
            raise self.read_error
        return HEAD

    def write(self, source: Any, result: SegmentationResult) -> Any:
        if self.write_error:
            raise self.write_error
        self.written.append((source, result))
        return Node()


class Client:
    """A worker whose answers the test gives."""

    def __init__(self) -> None:
        self.busy = False
        self.start_error: MedSegAIError | None = None
        self.requests: list[SegmentationRequest] = []
        self.listener: Any = None
        self.cancelled = 0

    def start(self, request: SegmentationRequest, listener: Any) -> None:
        if self.start_error:
            raise self.start_error
        self.busy, self.listener = True, listener
        self.requests.append(request)

    def cancel(self) -> None:
        self.cancelled += 1

    def answer(self, tell: Callable[[Any], None]) -> None:
        self.busy = False
        tell(self.listener)


class House:
    """All of it, joined."""

    def __init__(self) -> None:
        self.panel, self.scene, self.client = Panel(), Scene(), Client()
        self.prepared = 0
        self.prepare_error: MedSegAIError | None = None
        self.controller = Controller(self.panel, self.scene, self.client, self._prepare)

    def _prepare(self) -> None:
        self.prepared += 1
        if self.prepare_error:
            raise self.prepare_error

    def press_segment(self) -> None:
        self.panel.segment_requested.emit()


@pytest.fixture
def house() -> House:
    return House()


def result() -> SegmentationResult:
    return fake_worker.halves(HEAD)


def test_a_job_from_the_button_to_the_table(house: House) -> None:
    house.press_segment()
    (request,) = house.client.requests
    assert request.inputs == (HEAD,)
    assert request.models == ("/models/brain",)
    assert house.prepared == 1
    assert house.panel.state == "running"
    house.client.listener.progressed(ProgressEvent("predict", 0.25, 10.0))
    assert house.panel.progress == [0.25]
    house.client.answer(lambda listener: listener.finished(result()))
    assert house.panel.state == "idle"
    ((source, written),) = house.scene.written
    assert source == "head node"
    assert written.structures[0].voxels == 120
    assert house.panel.structures == ["Left hippocampus", "Brain-Stem", "Absent"]
    assert house.panel.error == ""


def test_the_summary_says_what_was_made_where_and_what_to_know(house: House) -> None:
    house.press_segment()
    house.client.answer(lambda listener: listener.finished(result()))
    first, *others = house.panel.message.splitlines()
    assert first == "Head segmentation: 1 of 3 structures in 0.5 s on cpu."
    assert others == ["The image is made up.", "Research software. Not for diagnostic use."]


def test_options_of_the_panel_reach_the_request(house: House) -> None:
    house.panel.chosen.options = {"members": ("axial",), "device": "cuda", "uncertainty": True}
    house.press_segment()
    (request,) = house.client.requests
    assert request.members == ("axial",)
    assert request.device == "cuda"
    assert request.uncertainty


def test_the_input_is_the_one_at_the_start_whatever_is_chosen_later(house: House) -> None:
    house.press_segment()
    house.panel.chosen.node = "another node"
    house.client.answer(lambda listener: listener.finished(result()))
    assert house.scene.written[0][0] == "head node"


def test_a_second_press_does_not_start_a_second_job(house: House) -> None:
    house.press_segment()
    house.press_segment()
    assert len(house.client.requests) == 1


def test_a_press_while_a_script_uses_the_worker_is_answered(house: House) -> None:
    house.client.busy = True
    house.press_segment()
    assert house.client.requests == []
    assert "under way" in house.panel.error
    assert house.panel.state == "idle"


@pytest.mark.parametrize(
    "error", [DeviceError("No device."), WorkerError("It crashed."), InputError("Not finite.")]
)
def test_a_failed_job_is_told_and_leaves_the_scene_alone(
    house: House, error: MedSegAIError
) -> None:
    house.press_segment()
    house.client.answer(lambda listener: listener.failed(error))
    assert house.panel.state == "idle"
    assert house.panel.error == str(error)
    assert house.scene.written == []
    house.press_segment()
    assert len(house.client.requests) == 2


def test_cancel_is_no_error_and_leaves_the_scene_alone(house: House) -> None:
    house.press_segment()
    house.panel.cancel_requested.emit()
    assert house.panel.state == "cancelling"
    assert house.client.cancelled == 1
    house.client.answer(lambda listener: listener.failed(Cancelled("Stopped.")))
    assert house.panel.state == "idle"
    assert house.panel.message == "Stopped."
    assert house.panel.error == ""
    assert house.scene.written == []


def test_cancel_without_a_job_does_nothing(house: House) -> None:
    house.controller.cancel()
    assert house.client.cancelled == 0
    assert house.panel.state == "idle"


def test_a_result_that_has_no_place_any_more_is_told(house: House) -> None:
    """The scene was closed, or the volume removed, during the job."""
    house.press_segment()
    house.scene.write_error = InputError("Head has left the scene.")
    house.client.answer(lambda listener: listener.finished(result()))
    assert house.panel.state == "idle"
    assert house.panel.error == "Head has left the scene."
    assert house.panel.structures == []


def test_an_installation_that_was_declined_starts_nothing(house: House) -> None:
    house.prepare_error = WorkerError("MedSegAI cannot run without PyTorch.")
    house.press_segment()
    assert house.client.requests == []
    assert house.panel.error == "MedSegAI cannot run without PyTorch."
    assert house.panel.state == "idle"


def test_a_worker_that_cannot_take_the_job_is_told(house: House) -> None:
    house.client.start_error = OutputError("The disk is full.")
    house.press_segment()
    assert house.panel.error == "The disk is full."
    assert house.panel.state == "idle"


def test_a_worker_that_fails_while_it_is_started_leaves_the_panel_idle(house: House) -> None:
    def fail(request: SegmentationRequest, listener: Any) -> None:
        listener.failed(WorkerError("No such program."))

    house.client.start = fail  # type: ignore[method-assign]
    house.press_segment()
    assert house.panel.state == "idle"
    assert house.panel.error == "No such program."


# --- before the job --------------------------------------------------------------------------------


def test_the_plan_names_model_members_volume_and_device(house: House) -> None:
    house.panel.choice_changed.emit()
    text, ready = house.panel.plan
    assert ready
    for part in ("Brain 1.2", "Head", "6 x 5 x 4 voxels", "axial, coronal", "the fastest there is"):
        assert part in text
    house.panel.chosen.options = {"members": ("coronal",), "device": "cuda:1"}
    house.panel.choice_changed.emit()
    text, _ = house.panel.plan
    assert "axial" not in text
    assert "cuda:1" in text


def two_channels() -> ModelCard:
    channels = (Channel("T1", "MR"), Channel("FLAIR", "MR"), Channel("T2", "MR", required=False))
    return replace(BRAIN, channels=channels)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"card": None}, "no model"),
        ({"card": two_channels()}, r"2 images \(T1, FLAIR\)"),
        ({"options": {"fusion": "median"}}, "fusion"),
        ({"options": {"dropout_passes": 5000}}, "dropout_passes"),
    ],
)
def test_the_plan_says_why_nothing_can_run_and_the_button_says_the_same(
    house: House, change: dict[str, Any], reason: str
) -> None:
    house.panel.chosen = replace(house.panel.chosen, **change)
    house.controller.update_plan()
    text, ready = house.panel.plan
    assert not ready
    house.press_segment()
    assert house.panel.error == text
    assert house.client.requests == []
    with pytest.raises(MedSegAIError, match=reason):
        raise MedSegAIError(text)


def test_a_volume_that_cannot_be_read_is_told_before_and_after_the_press(house: House) -> None:
    house.scene.read_error = InputError("Head stands under a transform that bends space.")
    house.controller.update_plan()
    assert house.panel.plan == ("Head stands under a transform that bends space.", False)
    house.press_segment()
    assert house.panel.error == "Head stands under a transform that bends space."


def test_the_catalogue_shows_good_models_and_tells_of_broken_ones(
    house: House, tmp_path: Path
) -> None:
    good, broken, missing = (tmp_path / name for name in ("good", "broken", "missing"))
    for folder in (good, broken):
        folder.mkdir()
    values = BRAIN.to_dict()
    (good / "card.json").write_text(json.dumps(values))
    (broken / "card.json").write_text("{")
    house.controller.show_models(folder / "card.json" for folder in (broken, good, missing))
    assert [card.name for card in house.panel.models] == ["Brain"]
    assert house.panel.models[0].folder == good
    assert "broken" in house.panel.error
    assert "missing" in house.panel.error


def test_the_bundled_models_are_in_the_catalogue(house: House) -> None:
    house.controller.show_models()
    assert "brain" in [card.id for card in house.panel.models]


def test_the_controller_loads_neither_qt_nor_anything_heavy() -> None:
    heavy = ("qt", "torch", "SimpleITK", "nibabel", "scipy")
    code = (
        "import sys, MedSegAILib.controller, MedSegAILib.worker.exchange;"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY / "MedSegAI")},
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "[]", done.stderr

"""Bad input to the controller, and what disappears while a job waits or runs: one clear message each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from controller_help import House, Node
from medsegai.errors import (
    Cancelled,
    InputError,
    OutputError,
    WorkerError,
)
from medsegai.request import SegmentationRequest
from MedSegAILib.output_choice import OutputChoice, OutputMode
from MedSegAILib.worker.location import WorkerLocation


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


def test_no_volume(house: House) -> None:
    house.choose(nodes={"MR": None})
    house.press_segment()
    assert house.panel.error == "There is no input volume. Load an image and choose it."
    assert house.panel.plan == (house.panel.error, False)
    assert house.client.requests == []


def test_a_label_volume_as_input(house: House) -> None:
    house.scene.read_error = InputError("Head is a label map; choose the image.")
    house.choose()
    assert house.panel.plan == ("Head is a label map; choose the image.", False)
    house.press_segment()
    assert house.panel.error == "Head is a label map; choose the image."


def test_the_scene_is_closed_during_the_run(house: House) -> None:
    house.press_segment()
    house.press_segment()
    assert "2 MedSegAI jobs are running (Head: Brain; Head: Brain)" in (
        house.controller.close_question()
    )
    house.controller.scene_closes()
    house.fail(Cancelled("Stopped."))
    assert house.scene.written == []
    assert house.panel.results.last("show") == ((), ())
    assert len(house.client.requests) == 1, "what waited never begins"
    assert house.controller.close_question() == house.controller.scene_question() == ""


def test_nothing_is_said_of_a_scene_that_was_closed(house: House) -> None:
    house.press_segment()
    house.finish()
    house.panel.show_message("Head segmentation: 2 of 3 structures.")
    house.press_segment()
    house.press_segment()
    house.controller.scene_closes()
    house.fail(Cancelled("The job was stopped. The scene was not changed."))
    assert house.panel.message == house.panel.error == ""
    assert ("fold",) in house.panel.results.told
    house.panel.queue.again_requested.emit(house.queue.entries[1])
    house.fail(WorkerError("The worker crashed."))
    assert house.panel.error == "The worker crashed.", "what is run again is told again"


def test_the_input_is_deleted_during_the_run(house: House) -> None:
    house.press_segment()
    house.scene.write_error = InputError("The volume Head has left the scene.")
    house.finish()
    assert house.panel.state == "idle"
    assert house.panel.error == "The volume Head has left the scene."


def test_the_input_is_deleted_while_it_waits(house: House) -> None:
    house.press_segment()
    house.press_segment()
    house.scene.gone.append(house.head)
    house.fail(Cancelled("Stopped."))
    assert house.panel.error == "The volume Head has left the scene. Load it again."
    assert len(house.client.requests) == 1


def test_the_input_is_renamed_while_it_waits(house: House) -> None:
    house.press_segment()
    house.press_segment()
    house.head.name = "Patient 7"
    house.finish()
    assert house.client.requests[1].inputs[0].source == "Patient 7"  # type: ignore[union-attr]
    house.finish()
    assert len(house.scene.written) == 2


def test_the_output_is_deleted_while_it_waits(house: House) -> None:
    output = Node("Manual")
    house.choose(output=OutputChoice(OutputMode.UPDATE, output))
    house.press_segment()
    house.press_segment()
    house.scene.gone.append(output)
    house.finish()
    assert house.panel.error.startswith("The segmentation Manual has left the scene.")


def test_a_temporary_folder_that_cannot_be_written(house: House) -> None:
    house.client.start_error = OutputError("A folder cannot be made in the temporary folder.")
    house.press_segment()
    assert house.panel.error == "A folder cannot be made in the temporary folder."
    assert house.panel.state == "idle"


def test_a_python_without_torch(house: House) -> None:
    house.press_segment()
    house.fail(WorkerError("The worker's Python (/usr/bin/python3) lacks a package: torch."))
    assert "lacks a package: torch" in house.panel.error
    assert house.panel.log_offered


def test_a_host_that_is_gone(house: House) -> None:
    house.host.where = WorkerLocation.ssh("server")
    house.press_segment()
    house.fail(WorkerError("The computer server cannot be reached through ssh."))
    assert house.panel.error == "The computer server cannot be reached through ssh."
    assert house.panel.state == "idle"


def test_a_model_that_is_removed_while_it_waits(house: House) -> None:
    house.press_segment()
    house.press_segment()
    (house.card.folder / "card.json").unlink()
    house.finish()
    assert house.panel.error.startswith("The model Brain is no longer in ")
    assert len(house.client.requests) == 1


def test_an_installation_that_was_declined_starts_nothing(house: House) -> None:
    house.host.prepare_error = WorkerError("MedSegAI cannot run without PyTorch.")
    house.press_segment()
    assert house.client.requests == []
    assert house.panel.error == "MedSegAI cannot run without PyTorch."
    assert house.panel.state == "idle"


def test_a_worker_that_fails_while_it_is_started_leaves_the_panel_idle(house: House) -> None:
    def fail(request: SegmentationRequest, listener: Any) -> None:
        listener.failed(WorkerError("No such program."))

    house.client.start = fail  # type: ignore[method-assign]
    house.press_segment()
    assert house.panel.state == "idle"
    assert house.panel.error == "No such program."

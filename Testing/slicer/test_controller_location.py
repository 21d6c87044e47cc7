"""Where the worker runs, and what is known of devices and time there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from controller_help import House
from MedSegAILib.controller.devices import Devices
from MedSegAILib.panel_values import PlaceChoice
from MedSegAILib.worker.environment_check import Report
from MedSegAILib.worker.location import PlaceKind, WorkerLocation


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> House:
    monkeypatch.setenv("MEDSEGAI_MODELS", str(tmp_path / "models"))
    return House(tmp_path)


FINDINGS = tuple(
    {"topic": topic, "name": name, "found": found, "health": health, "cure": cure}
    for topic, name, found, health, cure in (
        ("software", "torch", "2.9.0", "good", ""),
        ("software", "openvino", "not installed", "advice", "pip install openvino"),
        ("device", "cpu", "x86_64, 8 cores", "good", ""),
        ("device", "cuda:0", "RTX 4070, 9.1 GB free of 12.0 GB", "good", ""),
        ("device", "cuda:1", "old card: no kernel image", "advice", "Install another torch."),
        ("memory", "ram", "1.2 GB available", "good", ""),
    )
)


def answer(house: House, number: int = -1, **changes: Any) -> Report:
    """Let the doctor answer a question."""
    place, told = house.host.asked[number]
    values: dict[str, Any] = {"ready": True, "findings": FINDINGS, **changes}
    report = Report(place, **values)
    told(report)
    return report


def test_the_devices_are_asked_once_in_the_background(house: House) -> None:
    house.controller.enter()
    house.controller.enter()
    assert [place for place, _ in house.host.asked] == [WorkerLocation.own("/slicer/python")]
    answer(house)
    assert house.panel.devices == ["auto", "cpu", "cuda:0"], "without the card that does not work"
    text, _ready = house.panel.plan
    assert "on cuda:0 (RTX 4070, 9.1 GB free of 12.0 GB)" in text
    assert [name for name, *_ in house.panel.settings.told].count("show_answer") == 0


def test_a_job_that_needs_more_than_is_free_is_told_so(house: House) -> None:
    house.controller.enter()
    answer(house)
    house.choose(options={"device": "cpu"})
    assert "Only 1.2 GB are free" in house.panel.plan[0]
    assert house.panel.plan[1], "it may run all the same"


def test_the_test_button_shows_what_the_doctor_says(house: House) -> None:
    house.panel.settings.test_requested.emit()
    assert house.panel.settings.last("show_answer") == ("Asking …", True)
    report = answer(house, repairs=("pip install openvino",))
    assert house.panel.settings.last("show_answer") == (report.text(),)
    assert "pip install openvino" in report.text()


def test_another_place_is_tested_before_it_is_used(house: House) -> None:
    house.panel.settings.answers["choice"] = PlaceChoice("ssh", host="me@server")
    house.panel.settings.test_requested.emit()
    assert house.host.asked[-1][0] == WorkerLocation.ssh("me@server")
    answer(house, ready=False, findings=(), trouble="It cannot be reached through ssh.")
    assert house.panel.settings.last("show_answer") == ("It cannot be reached through ssh.",)
    assert house.host.place().kind is PlaceKind.OWN
    house.panel.settings.test_requested.emit()
    answer(house)
    assert house.panel.devices == [], "its devices are not those of the place in use"


def test_a_place_is_used_from_the_next_job_on_and_kept(house: House) -> None:
    house.panel.settings.answers["choice"] = PlaceChoice("ssh", host="server")
    house.panel.settings.place_changed.emit()
    assert house.host.place() == WorkerLocation.ssh("server")
    kept = WorkerLocation.from_text(house.host.settings["place"], "/slicer/python")
    assert kept == WorkerLocation.ssh("server")


def test_images_go_to_another_computer_only_where_the_user_agrees(house: House) -> None:
    house.choose(nodes={"MR": house.head})
    assert "travel" not in house.panel.plan[0]
    house.panel.settings.answers["choice"] = PlaceChoice("ssh", host="me@server")
    house.host.consent = False
    house.panel.settings.place_changed.emit()
    assert "me@server" in house.host.questions[-1]
    assert house.host.place().kind is PlaceKind.OWN
    assert house.panel.settings.last("show") == (PlaceChoice(),), "the settings show what is in use"
    assert house.host.settings == {}
    house.host.consent = True
    house.panel.settings.place_changed.emit()
    house.panel.settings.place_changed.emit()
    assert len(house.host.questions) == 2, "asked until the answer is yes, and then no more"
    assert house.panel.plan[0].endswith("The images are sent to me@server through ssh.")
    house.panel.settings.answers["choice"] = PlaceChoice("ssh", host="other")
    house.panel.settings.place_changed.emit()
    assert len(house.host.questions) == 3, "another computer is another question"
    assert house.host.settings["agreed_hosts"].split() == ["me@server", "other"]


def test_a_field_that_loses_the_focus_to_the_question_asks_no_second_one(house: House) -> None:
    house.panel.settings.answers["choice"] = PlaceChoice("ssh", host="server")

    def confirm(question: str) -> bool:
        house.host.questions.append(question)
        house.panel.settings.place_changed.emit()
        return True

    house.host.confirm = confirm  # type: ignore[method-assign]
    house.panel.settings.place_changed.emit()
    assert len(house.host.questions) == 1
    assert house.host.place() == WorkerLocation.ssh("server")


@pytest.mark.parametrize(
    ("choice", "reason"),
    [
        (PlaceChoice("ssh", host="two words"), "not the name of a computer"),
        (PlaceChoice("other", python=""), "Name a Python"),
        (PlaceChoice("other", python="/nowhere"), "No Python was found at /nowhere"),
    ],
)
def test_a_place_that_cannot_be_is_told_and_not_used(
    house: House, choice: PlaceChoice, reason: str
) -> None:
    house.panel.settings.answers["choice"] = choice
    house.panel.settings.place_changed.emit()
    assert reason in house.panel.settings.last("show_answer")[0]
    assert house.host.place().kind is PlaceKind.OWN
    assert house.host.settings == {}


def test_an_answer_of_an_earlier_question_is_not_taken(house: House) -> None:
    house.panel.settings.test_requested.emit()
    house.panel.settings.test_requested.emit()
    answer(house, ready=False)
    answer(house, 0)
    assert house.panel.settings.last("show_answer")[0].startswith("Not ready")


def test_nothing_is_known_of_devices_that_nobody_asked() -> None:
    devices = Devices()
    assert [choice.value for choice in devices.choices()] == ["auto"]
    assert devices.free_gb("auto") is None
    assert devices.describe("cuda:3") == "cuda:3"

"""The batch in the panel: the command that runs, what it tells, and how that is shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import pythonqt
from controller_help import House
from medsegai.cli import build_parser
from medsegai.errors import WorkerError
from medsegai.request import request_from_options, request_options
from MedSegAILib.panel import dialogs
from MedSegAILib.panel.options import ELSEWHERE
from MedSegAILib.view import BatchChoice, CaseRow
from MedSegAILib.worker.place import Place
from panel_help import UI, Heard, click, find, new_panel


@pytest.fixture
def house(tmp_path: Path) -> House:
    house = House(tmp_path)
    house.panel.batch.answers["choice"] = BatchChoice("/scans", "/results", True)
    return house


def told(house: House) -> list[CaseRow]:
    return [values[1] for values in house.panel.batch.told if values[0] == "show_case"]


def case(name: str, state: str, **more: Any) -> str:
    values = {"event": "case", "case": name, "state": state, "seconds": None, "message": ""}
    return json.dumps(values | more)


def test_the_command_is_the_one_without_slicer_with_the_options_of_the_panel(house: House) -> None:
    defaults = {
        option.name: option.default for option in request_options() if option.name not in ELSEWHERE
    }
    chosen = defaults | {"device": "cpu", "members": ("axial",), "mirroring": False}
    house.choose(options=chosen | {"uncertainty": True})
    house.panel.batch.start_requested.emit()
    command, _done = house.host.ran[-1]
    assert command[:4] == ["/slicer/python", "-m", "medsegai", "batch"]
    arguments = vars(build_parser().parse_args(command[3:]))  # the real parser understands it
    assert arguments["source"] == Path("/scans")
    assert arguments["output"] == Path("/results")
    assert arguments["events"] is arguments["resume"] is arguments["uncertainty"] is True
    named = {name: arguments[name] for name in ("device", "members", "mirroring", "models")}
    request = request_from_options((Path("x"),), named)
    assert (request.device, request.members) == ("cpu", ("axial",))
    assert request.mirroring is False
    assert request.models == (str(house.card.folder),)


def test_events_fill_the_table_and_the_count(house: House) -> None:
    house.panel.batch.start_requested.emit()
    hear = house.host.heard
    assert hear is not None
    for line in (case("a", "waiting"), case("b", "waiting"), case("a", "running"), "chatter", "{}"):
        hear(line)
    hear(json.dumps({"event": "progress", "case": "a", "fraction": 0.4, "stage": "predict"}))
    assert told(house)[-1] == CaseRow("a", "running", fraction=0.4)
    hear(case("a", "done", seconds=12.0))
    hear(case("b", "failed", message="b is truncated."))
    assert told(house)[-1] == CaseRow("b", "failed", None, "b is truncated.")
    house.host.answer(1)
    assert house.panel.batch.last("show_message") == ("1 of 2 cases are done. 1 failed.",)
    assert house.panel.batch.last("show_running") == (False,)


def test_a_batch_can_be_stopped_and_gone_on_with(house: House) -> None:
    house.panel.batch.start_requested.emit()
    house.panel.batch.start_requested.emit()
    assert len(house.host.ran) == 1, "one at a time"
    assert house.host.heard is not None
    house.host.heard(case("a", "running"))
    assert "the batch" in house.controller.close_question()
    house.panel.batch.stop_requested.emit()
    assert house.host.stopped == ["program"]
    house.host.answer(-1)
    assert told(house)[-1] == CaseRow("a", "waiting")
    assert house.panel.batch.last("show_message")[0].startswith("Stopped. 0 of 1 cases")
    assert house.controller.close_question() == ""
    house.panel.batch.start_requested.emit()
    assert len(house.host.ran) == 2


def test_why_a_batch_cannot_run_is_said(house: House) -> None:
    house.panel.batch.start_requested.emit()
    house.host.answer(3, errors="medsegai: There is no scan in /scans.\n")
    assert house.panel.batch.last("show_message") == ("There is no scan in /scans.", True)
    house.panel.batch.answers["choice"] = BatchChoice("", "/results")
    house.panel.batch.start_requested.emit()
    assert "Choose the folder of scans" in house.panel.batch.last("show_message")[0]
    house.panel.batch.answers["choice"] = BatchChoice("/scans", "/results")
    house.host.where = Place.ssh("server")
    house.panel.batch.start_requested.emit()
    assert "on this computer" in house.panel.batch.last("show_message")[0]
    house.host.where = Place.own("/slicer/python")
    house.choose(cards=())
    house.panel.batch.start_requested.emit()
    assert "no model" in house.panel.batch.last("show_message")[0]
    house.choose(cards=(house.card,))
    house.host.prepare_error = WorkerError("MedSegAI cannot run without PyTorch.")
    house.panel.batch.start_requested.emit()
    assert "PyTorch" in house.panel.batch.last("show_message")[0]
    assert len(house.host.ran) == 1


def test_the_section_of_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    widget = pythonqt.load_ui(UI)
    view = new_panel(widget).batch
    pythonqt.real(widget).show()
    find(widget, "batchButton").setProperty("collapsed", False)
    monkeypatch.setattr(dialogs, "open_folder", lambda *_: "/scans")
    click(widget, "batchFolderButton")
    find(widget, "batchOutputEdit").setText(" /results ")
    assert view.choice() == BatchChoice("/scans", "/results", True)
    started, stopped = Heard(view.start_requested), Heard(view.stop_requested)
    click(widget, "batchStartButton")
    view.show_running(True)
    click(widget, "batchStartButton")
    click(widget, "batchStopButton")
    assert (len(started), len(stopped)) == (1, 1)
    view.clear()
    assert not find(widget, "batchTable").isVisible()
    view.show_case(CaseRow("a", "waiting"))
    view.show_case(CaseRow("b", "running", fraction=0.4))
    view.show_case(CaseRow("a", "done", 75.0, "Look at it."))
    table = find(widget, "batchTable")
    states = [table.item(row, 1).text() for row in range(table.rowCount())]
    assert states == ["done, 1 min 15 s", "40 %"]
    assert table.item(0, 1).toolTip() == "Look at it."
    view.show_message("There is no scan.", problem=True)
    assert "color" in find(widget, "batchLabel").styleSheet()
    pythonqt.real(widget).close()

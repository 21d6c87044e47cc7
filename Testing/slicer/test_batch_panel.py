"""The batch in the panel: the command that runs, what it tells, and how that is shown."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import slicer
from PySide6 import QtCore

import pythonqt
from controller_help import House, brain
from medsegai.cli import build_parser
from medsegai.errors import InputError, WorkerError
from medsegai.models.card import Channel
from medsegai.output.cases import read_cases
from medsegai.refinements import parse
from medsegai.request import request_from_options, request_options
from MedSegAILib.controller.batches import case_name
from MedSegAILib.host import Host
from MedSegAILib.panel import dialogs, series_dialog
from MedSegAILib.panel.options import ELSEWHERE
from MedSegAILib.panel.process import Programs
from MedSegAILib.panel_values import BatchChoice, CaseRow, SeriesRow
from MedSegAILib.scene import dicom_database
from MedSegAILib.worker.location import WorkerLocation
from panel_help import UI, Heard, click, find, new_panel
from stand_ins import faced, put_object


@pytest.fixture
def house(tmp_path: Path) -> House:
    house = House(tmp_path)
    house.panel.batch.answers["choice"] = BatchChoice("/scans", "/results", True)
    return house


def told(house: House) -> list[CaseRow]:
    return [values[1] for values in house.panel.batch.told if values[0] == "show_case"]


def case(name: str, state: str, **more: Any) -> str:
    values = {"event": "case", "case": name, "state": state, "seconds": None, "remarks": None}
    values["message"] = ""
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


OTHERS = {
    "members": ("axial", "coronal"),
    "refinements": ("islands:smallest_ml=0.1;labels=1+2", "smoothing:keep_volume=no", "snap"),
    "device": "cpu",
    "tile_step": 0.75,
}


@pytest.mark.parametrize("name", [o.name for o in request_options() if o.name not in ELSEWHERE])
def test_each_option_reaches_the_batch_as_it_was_chosen(house: House, name: str) -> None:
    """Also those with several values, as the real parser of the command reads them."""
    (option,) = [item for item in request_options() if item.name == name]
    value = OTHERS.get(name)
    if value is None:
        kinds = {bool: lambda: not option.default, int: lambda: option.default + 3}
        others = [choice for choice in option.metadata["choices"] if choice != option.default]
        value = others[0] if others else kinds[type(option.default)]()
    house.choose(options={name: value})
    house.panel.batch.start_requested.emit()
    command, _done = house.host.ran[-1]
    arguments = vars(build_parser().parse_args(command[3:]))
    request = request_from_options((Path("x"),), {name: arguments[name]})
    assert getattr(request, name) == value != option.default
    for text in request.refinements:
        parse(text)


def test_options_with_several_values_may_be_left_empty(house: House) -> None:
    house.choose(options={"members": (), "refinements": ()})
    house.panel.batch.start_requested.emit()
    command, _done = house.host.ran[-1]
    arguments = vars(build_parser().parse_args(command[3:]))
    assert "members" not in arguments
    assert "refinements" not in arguments


def test_events_fill_the_table_and_the_count(house: House) -> None:
    house.panel.batch.start_requested.emit()
    hear = house.host.heard
    assert hear is not None
    for line in (case("a", "waiting"), case("b", "waiting"), case("a", "running"), "chatter", "{}"):
        hear(line)
    hear(json.dumps({"event": "progress", "case": "a", "fraction": 0.4, "stage": "predict"}))
    assert told(house)[-1] == CaseRow("a", "running", fraction=0.4)
    hear(case("a", "done", seconds=12.0, remarks=3))
    assert told(house)[-1] == CaseRow("a", "done", 12.0, 3)
    hear(case("b", "failed", message="b is truncated."))
    assert told(house)[-1] == CaseRow("b", "failed", message="b is truncated.")
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
    house.host.where = WorkerLocation.ssh("server")
    house.panel.batch.start_requested.emit()
    assert "on this computer" in house.panel.batch.last("show_message")[0]
    house.host.where = WorkerLocation.own("/slicer/python")
    house.choose(cards=())
    house.panel.batch.start_requested.emit()
    assert "no model" in house.panel.batch.last("show_message")[0]
    house.choose(cards=(house.card,))
    house.host.prepare_error = WorkerError("MedSegAI cannot run without PyTorch.")
    house.panel.batch.start_requested.emit()
    assert "PyTorch" in house.panel.batch.last("show_message")[0]
    assert len(house.host.ran) == 1


def test_results_are_replaced_only_where_the_user_agrees(house: House, tmp_path: Path) -> None:
    house.panel.batch.answers["choice"] = BatchChoice("/scans", str(tmp_path), False)
    house.panel.batch.start_requested.emit()
    command, _done = house.host.ran[-1]
    assert not {"--resume", "--overwrite"} & set(command)
    assert house.host.questions == [], "nothing is there yet"
    house.host.answer()
    (tmp_path / "batch.csv").write_text("case,state\na,done\n")
    house.host.consent = False
    house.panel.batch.start_requested.emit()
    assert len(house.host.ran) == 1
    assert str(tmp_path) in house.host.questions[-1]
    house.host.consent = True
    house.panel.batch.start_requested.emit()
    command, _done = house.host.ran[-1]
    assert vars(build_parser().parse_args(command[3:]))["overwrite"] is True


DOE = SeriesRow("Doe^Jane", "Brain", "T1 of Jane_Doe", "1.2.3")
ROE = SeriesRow("Roe^Max", "Brain", "", "1.2.4")


def test_series_go_to_the_command_as_a_table_without_names(house: House) -> None:
    house.panel.batch.answers["choice"] = BatchChoice("", "/results", True, (DOE, ROE))
    house.panel.batch.start_requested.emit()
    command, _done = house.host.ran[-1]
    assert vars(build_parser().parse_args(command[3:]))["source"] == Path("-")
    lines = list(csv.DictReader(io.StringIO(house.host.given)))
    names = [line["case"] for line in lines]
    assert [line["image_0000"] for line in lines] == ["/database/1.2.3", "/database/1.2.4"]
    assert [line["series_0000"] for line in lines] == ["1.2.3", "1.2.4"]
    assert names == [case_name(DOE), case_name(ROE)]
    assert [name[:-9] for name in names] == ["T1_of", "series"]
    text = house.host.given + " ".join(command)
    assert not any(part in text for part in ("Doe", "Jane", "Roe", "Max"))
    assert house.host.heard is not None
    house.host.heard(case(names[0], "running"))
    assert told(house)[-1].title == "Doe^Jane, Brain, T1 of Jane_Doe"


def test_names_of_series_do_not_depend_on_what_else_is_chosen() -> None:
    """Else a batch that is gone on with would take the result of one patient for that of another."""
    twin = replace(DOE, uid="1.2.5")
    assert case_name(DOE) == case_name(replace(DOE, study="another word for it"))
    assert case_name(DOE) != case_name(twin)


def test_the_engine_reads_the_table_that_the_panel_writes(house: House, tmp_path: Path) -> None:
    folder = tmp_path / "1,2 ü"
    folder.mkdir()
    house.host.dicom_folder = lambda row: str(folder)  # type: ignore[method-assign]
    house.panel.batch.answers["choice"] = BatchChoice("", "/results", True, (DOE, ROE))
    house.panel.batch.start_requested.emit()
    cases = read_cases(house.host.given.encode(), "The table", Path(), house.card.channels)
    assert [item.inputs for item in cases] == [(folder,), (folder,)]
    assert [item.series for item in cases] == [("1.2.3",), ("1.2.4",)]


def test_why_series_cannot_be_taken_is_said(house: House) -> None:
    house.host.series = (DOE,)
    house.panel.batch.series_requested.emit()
    assert house.panel.batch.last("ask_series") == ((DOE,),)
    house.panel.batch.answers["choice"] = BatchChoice("", "/results", True, ())
    house.panel.batch.start_requested.emit()
    assert "Choose series" in house.panel.batch.last("show_message")[0]
    house.panel.batch.answers["choice"] = BatchChoice("", "/results", True, (DOE,))
    house.host.dicom_error = InputError("The DICOM database is not open.")
    house.panel.batch.start_requested.emit()
    assert house.panel.batch.last("show_message") == ("The DICOM database is not open.", True)
    house.panel.batch.series_requested.emit()
    assert house.panel.batch.last("show_message") == ("The DICOM database is not open.", True)
    house.host.dicom_error = None
    channels = (Channel("T1", "MR"), Channel("T2", "MR"))
    house.choose(cards=(replace(house.card, channels=channels),))
    house.panel.batch.start_requested.emit()
    assert "several images for each case" in house.panel.batch.last("show_message")[0]
    assert house.host.ran == []


def test_a_folder_of_a_model_with_a_comma_is_one_model(house: House, tmp_path: Path) -> None:
    house.choose(cards=(brain(tmp_path / "a, b"), house.card))
    house.panel.batch.start_requested.emit()
    command, _done = house.host.ran[-1]
    models = vars(build_parser().parse_args(command[3:]))["models"]
    assert models == [str(tmp_path / "a, b"), str(house.card.folder)]


class Database:
    """What of ctkDICOMDatabase is used: two patients, one of them with a segmentation too."""

    isOpen = True

    def __init__(self, files: dict[str, tuple[str, ...]]) -> None:
        self.files = files

    def patients(self) -> tuple[str, ...]:
        return ("1", "2")

    def nameForPatient(self, patient: str) -> str:
        return {"1": "Doe^Jane", "2": "Roe^Max"}[patient]

    def studiesForPatient(self, patient: str) -> tuple[str, ...]:
        return (f"{patient}.1",)

    def descriptionForStudy(self, study: str) -> str:
        return "Brain"

    def seriesForStudy(self, study: str) -> tuple[str, ...]:
        return {"1.1": ("a", "seg"), "2.1": ("b",)}[study]

    def descriptionForSeries(self, series: str) -> str:
        return {"a": "T1", "b": "", "seg": "Tumour"}[series]

    def fieldForSeries(self, field: str, series: str) -> str:
        assert field == "Modality"
        return "SEG" if series == "seg" else "MR"

    def filesForSeries(self, series: str) -> tuple[str, ...]:
        return self.files.get(series, ())


def shown(files: dict[str, tuple[str, ...]]) -> Any:
    """The database as the module sees it."""
    return faced(Database(files), "ctkDICOMDatabase")


def test_what_the_database_holds() -> None:
    rows = dicom_database.series_of(shown({}))
    assert rows == [
        SeriesRow("Doe^Jane", "Brain", "T1", "a"),
        SeriesRow("Roe^Max", "Brain", "", "b"),
    ]
    with pytest.raises(InputError, match="is not open"):
        dicom_database.series_of(None)
    empty = Database({})
    empty.patients = lambda: ()  # type: ignore[method-assign]
    with pytest.raises(InputError, match="does not contain images"):
        dicom_database.series_of(faced(empty, "ctkDICOMDatabase"))


def test_the_database_is_slicers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    host = Host(lambda: None, lambda: None, None, None)
    monkeypatch.delattr(slicer, "dicomDatabase", raising=False)
    with pytest.raises(InputError, match="is not open"):
        host.dicom_series()
    files = {"a": (str(tmp_path / "1.dcm"),)}
    put_object(monkeypatch, "dicomDatabase", "ctkDICOMDatabase", Database(files))
    assert host.dicom_folder(host.dicom_series()[0]) == str(tmp_path)


def test_where_a_series_lies(tmp_path: Path) -> None:
    row = SeriesRow("Doe^Jane", "Brain", "T1", "a")
    here = tuple(str(tmp_path / name) for name in ("1.dcm", "2.dcm"))
    assert dicom_database.folder_of(shown({"a": here}), row) == str(tmp_path)
    (tmp_path / "other").mkdir()
    apart = (*here, str(tmp_path / "other" / "3.dcm"))
    for files, said in (((), "not on this computer"), (apart, "are in 2 folders")):
        with pytest.raises(InputError, match=said):
            dicom_database.folder_of(shown({"a": files}), row)
    gone = (str(tmp_path / "gone" / "1.dcm"),)
    with pytest.raises(InputError, match="not on this computer"):
        dicom_database.folder_of(Database({"a": gone}), row)


def test_series_are_ticked_one_by_one_or_by_patient() -> None:
    rows = [DOE, replace(DOE, uid="1.2.5", description="T2"), ROE]
    dialog = series_dialog.SeriesDialog(None, rows, (ROE,))
    tree = find(dialog.dialog, "seriesTree")
    doe, roe = (tree.topLevelItem(number) for number in range(2))
    assert dialog.chosen() == (ROE,)
    checked = QtCore.Qt.CheckState.Checked
    assert roe.checkState(0) == checked
    doe.setCheckState(0, checked)
    assert dialog.chosen() == tuple(rows)
    doe.child(0).child(0).setCheckState(0, QtCore.Qt.CheckState.Unchecked)
    assert dialog.chosen() == tuple(rows[1:])
    find(dialog.dialog, "seriesSearch").setText("t2 doe")
    hidden = [item.isHidden() for item in (doe, doe.child(0), roe)]
    assert hidden == [False, False, True]
    assert [doe.child(0).child(number).isHidden() for number in range(2)] == [True, False]
    assert dialog.chosen() == tuple(rows[1:]), "what the search hides stays chosen"


def test_the_source_of_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    widget = pythonqt.load_ui(UI)
    view = new_panel(widget).batch
    pythonqt.real(widget).show()
    find(widget, "batchButton").setProperty("collapsed", False)
    find(widget, "batchFolderEdit").setText("/scans")
    assert not find(widget, "batchSeriesButton").isVisible()
    find(widget, "batchSourceSelector").setCurrentIndex(1)
    assert not find(widget, "batchFolderEdit").isVisible()
    assert view.choice() == BatchChoice("", "", True, ())
    wanted = Heard(view.series_requested)
    click(widget, "batchSeriesButton")
    assert len(wanted) == 1
    answers: list[Any] = [(DOE, ROE), None, ()]
    asked: list[Any] = []

    def ask(_parent: Any, *given: Any) -> Any:
        asked.append(given)
        return answers.pop(0)

    monkeypatch.setattr(series_dialog, "ask", ask)
    view.ask_series([DOE, ROE])
    assert view.choice().series == (DOE, ROE)
    assert find(widget, "batchSeriesButton").text() == "2 series chosen…"
    view.ask_series([DOE, ROE])
    assert asked[-1] == ([DOE, ROE], (DOE, ROE))
    assert view.choice().series == (DOE, ROE), "Cancel changes nothing"
    view.ask_series([DOE])
    assert view.choice().series == ()
    assert find(widget, "batchSeriesButton").text() == "Choose series…"
    find(widget, "batchSourceSelector").setCurrentIndex(0)
    assert view.choice() == BatchChoice("/scans", "", True)
    pythonqt.real(widget).close()


def test_a_program_reads_what_it_is_given() -> None:
    answers: list[Any] = []
    text = "ä,b\n" * 100_000  # more than fits into a pipe
    code = "import sys; print(len(sys.stdin.buffer.read()))"
    Programs().run([sys.executable, "-c", code], dict(os.environ), answers.append, given=text)
    until = time.monotonic() + 60
    while not answers and time.monotonic() < until:
        pythonqt.process_events(20)
    assert answers[0].code == 0
    assert int(answers[0].output) == len(text.encode())


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
    view.show_case(CaseRow("a", "done", 75.0, 3, "Look at it."))
    table = find(widget, "batchTable")
    states = [table.item(row, 1).text() for row in range(table.rowCount())]
    assert states == ["⚠ 3, done, 1 min 15 s", "40 %"]
    assert table.item(0, 1).toolTip() == "Look at it."
    view.show_message("There is no scan.", problem=True)
    assert "color" in find(widget, "batchLabel").styleSheet()
    pythonqt.real(widget).close()

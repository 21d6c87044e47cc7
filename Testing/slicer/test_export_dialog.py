"""The dialog of the hand-over on real Qt, and where the DICOM series behind a volume lies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import slicer
from PySide6 import QtCore, QtWidgets

import pythonqt
from medsegai.errors import InputError
from medsegai.export.dicom_seg import ENCODINGS
from medsegai.export.files import ENDINGS, Exports
from medsegai.export.surfaces import FORMATS, SPACES
from medsegai.worker.measure_and_export_jobs import exports_of
from MedSegAILib.controller.exporting import FILES, outputs_of
from MedSegAILib.host import Host
from MedSegAILib.panel import export_dialog
from MedSegAILib.panel.export_dialog import ExportDialog
from MedSegAILib.panel_values import ExportChoice
from MedSegAILib.scene.dicom_database import source_of
from panel_help import UI, click, find, new_panel
from stand_ins import faced

REASON = "Head was not loaded by the module DICOM."


def opened(reason: str = "", choice: ExportChoice | None = None) -> ExportDialog:
    dialog = ExportDialog(None, "Head", reason, choice or ExportChoice())
    pythonqt.real(dialog.dialog).show()
    return dialog


def tick(dialog: ExportDialog, *names: str) -> None:
    for name in names:
        find(dialog.dialog, f"{name}Tick", QtWidgets.QCheckBox).click()


def test_what_is_ticked_is_chosen() -> None:
    dialog = opened()
    write = find(dialog.dialog, "exportWriteButton")
    assert dialog.choice() == ExportChoice()
    assert not write.isEnabled(), "there is no folder yet"
    find(dialog.dialog, "exportFolder").setText("/out ")
    assert write.isEnabled()
    tick(dialog, "report", "json", "seg", "sr", "surfaces", "glb", "stl")
    find(dialog.dialog, "encodingSelector").setCurrentIndex(1)
    find(dialog.dialog, "spaceSelector").setCurrentIndex(1)
    find(dialog.dialog, "toleranceBox").setValue(0.35)
    parts = ("csv", "json", "seg", "sr", "surfaces")
    chosen = ExportChoice("/out", parts, "labelmap", (".glb",), 0.35, "RAS")
    assert dialog.choice() == chosen
    tick(dialog, "glb")
    assert not write.isEnabled(), "surfaces of no format"
    tick(dialog, "surfaces")
    assert write.isEnabled()
    again = opened(choice=chosen)
    assert again.choice() == chosen, "what was chosen is chosen again"


def test_a_report_needs_its_segmentation() -> None:
    dialog = opened()
    report = find(dialog.dialog, "srTick")
    assert not report.isEnabled()
    tick(dialog, "seg", "sr")
    assert {"seg", "sr"} <= set(dialog.choice().parts)
    tick(dialog, "seg")
    assert not {"seg", "sr"} & set(dialog.choice().parts)


def test_why_there_can_be_no_dicom_is_said() -> None:
    dialog = opened(REASON, ExportChoice("/out", ("seg", "sr", "csv")))
    assert find(dialog.dialog, "dicomReason", QtWidgets.QLabel).text() == REASON
    for name in ("segTick", "srTick", "encodingSelector"):
        assert not find(dialog.dialog, name).isEnabled()
    assert dialog.choice().parts == ("csv",)


def test_the_folder_is_chosen_and_the_answer_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_dialog.dialogs, "open_folder", lambda *_: "/chosen")
    dialog = opened()
    click(dialog.dialog, "exportFolderButton")
    assert dialog.choice().folder == "/chosen"
    monkeypatch.setattr(export_dialog.dialogs, "open_folder", lambda *_: "")
    click(dialog.dialog, "exportFolderButton")
    assert dialog.choice().folder == "/chosen"


@pytest.mark.parametrize("button", ["exportWriteButton", "exportCancelButton"])
def test_the_dialog_waits_for_the_answer(button: str) -> None:
    dialog = opened(choice=ExportChoice("/out"))
    QtCore.QTimer.singleShot(0, lambda: click(dialog.dialog, button))
    expected = ExportChoice("/out") if button == "exportWriteButton" else None
    assert dialog.answer() == expected


def test_the_panel_keeps_the_last_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    widget = pythonqt.load_ui(UI)
    view, asked = new_panel(widget).results, []
    answers = [ExportChoice("/out", ("seg",)), None, None]

    def ask(parent: Any, name: str, reason: str, choice: ExportChoice) -> Any:
        asked.append((name, reason, choice))
        return answers.pop(0)

    monkeypatch.setattr(export_dialog, "ask", ask)
    assert view.ask_export("Head", "") == ExportChoice("/out", ("seg",))
    assert view.ask_export("Head", REASON) is None
    view.ask_export("Head", "")
    assert [choice for _, _, choice in asked] == [
        ExportChoice(),
        *[ExportChoice("/out", ("seg",))] * 2,
    ]


def test_dialog_and_engine_know_the_same_things() -> None:
    assert set(export_dialog.PARTS) == set(FILES) == {*ENDINGS, "surfaces"}
    assert tuple(export_dialog.ENCODINGS) == ENCODINGS
    assert tuple(export_dialog.FORMATS) == FORMATS
    assert tuple(export_dialog.SPACES) == tuple(SPACES)
    made = exports_of(outputs_of(ExportChoice("/out", tuple(FILES))))
    assert all(path.suffix in ENDINGS[name] for name, path in made.files().items())
    plain, default = exports_of(outputs_of(ExportChoice("/out", ("csv",)))), Exports()
    for name in ("encoding", "formats", "tolerance_mm", "space"):
        assert getattr(plain, name) == getattr(default, name)


def shown(files: dict[str, tuple[str, ...]]) -> Any:
    """The database as the module sees it."""
    return faced(Database(files), "ctkDICOMDatabase")


class Database:
    """What Slicer's DICOM database answers: files by series, and their instances."""

    def __init__(self, files: dict[str, tuple[str, ...]]) -> None:
        self._files = files

    def fileForInstance(self, uid: str) -> str:
        return next((file for files in self._files.values() for file in files if uid in file), "")

    def seriesForFile(self, file: str) -> str:
        return next(name for name, files in self._files.items() if file in files)

    def filesForSeries(self, series: str) -> tuple[str, ...]:
        return self._files[series]


def test_the_series_behind_a_volume(
    mrml: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = mrml.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "Head")
    database = shown({"9.8": (str(tmp_path / "1.2.3.dcm"), str(tmp_path / "1.2.4.dcm"))})
    with pytest.raises(InputError, match="Head was not loaded by the module DICOM"):
        source_of(database, volume)
    with pytest.raises(InputError, match="not in the scene"):
        source_of(database, None)
    volume.SetAttribute("DICOM.instanceUIDs", "1.2.3 1.2.4")
    assert source_of(database, volume) == (str(tmp_path), "9.8")
    host = Host(lambda: None, lambda: None, None, None)
    monkeypatch.setattr(slicer, "dicomDatabase", database, raising=False)
    assert host.dicom_source(volume) == (str(tmp_path), "9.8")
    for gone in (None, shown({})):
        with pytest.raises(InputError, match="no longer in Slicer's DICOM database"):
            source_of(gone, volume)
    moved = shown({"9.8": (str(tmp_path / "gone" / "1.2.3.dcm"),)})
    with pytest.raises(InputError, match="not on this computer"):
        source_of(moved, volume)

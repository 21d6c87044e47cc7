"""The model browser, the settings, the dialogs and the background programs, on real Qt."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from PySide6 import QtCore, QtGui, QtWidgets

import pythonqt
from medsegai.models.card import load_card
from medsegai.models.catalogue import BUNDLED_MODELS
from medsegai.models.index import ListedModel
from MedSegAILib.install import Consent, Plan
from MedSegAILib.panel import Panel, dialogs
from MedSegAILib.panel.closing import CloseFilter
from MedSegAILib.panel.install_dialog import InstallDialog
from MedSegAILib.panel.process import Finished, Programs
from MedSegAILib.panel_values import PlaceChoice
from panel_help import UI, Heard, card, click, find, new_panel
from stand_ins import faced

BRAIN = load_card(BUNDLED_MODELS / "brain")


@pytest.fixture
def widget() -> Iterator[Any]:
    widget = pythonqt.load_ui(UI)
    pythonqt.real(widget).show()
    yield widget
    pythonqt.real(widget).close()


@pytest.fixture
def panel(widget: Any) -> Iterator[Panel]:
    panel = new_panel(widget)
    panel.show_models(
        [BRAIN, card("abdomen", "fold_0", channels=("CT",), folder=Path("/models/a"))]
    )
    yield panel
    panel.browser.close()


def texts(widget: Any, name: str) -> list[str]:
    shown = find(widget, name)
    count = shown.count()
    read = shown.itemText if isinstance(shown, QtWidgets.QComboBox) else _item_text(shown)
    return [read(number) for number in range(count)]


def _item_text(shown: Any) -> Any:
    return lambda number: shown.item(number).text().splitlines()[0]


# --- the browser -----------------------------------------------------------------------------------


def test_the_browser_opens_beside_the_page_and_does_not_block(widget: Any, panel: Panel) -> None:
    click(widget, "modelsButton")
    dialog = find(widget, "modelBrowser")
    assert dialog.isVisible()
    assert not dialog.isModal()
    assert texts(widget, "modelList") == ["Brain structures", "Abdomen"]
    assert "bundled" in find(widget, "modelList").item(0).text()
    assert "Intended use" in find(widget, "modelDetails").toPlainText()


def test_one_can_type_at_once_when_the_browser_opens(widget: Any, panel: Panel) -> None:
    panel.browser.open()
    pythonqt.process_events(10)
    search = find(widget, "modelSearch")
    assert pythonqt.real(panel.browser.dialog).focusWidget() is search
    search.setText("liver")
    panel.browser.open()
    assert search.selectedText() == "liver", "what is typed next replaces it"


LISTED = ListedModel(
    "liver",
    "https://models.example.org/liver.zip?token=secret",
    "0" * 64,
    31_000_000,
    "Liver <b>fast</b>",
    modalities=("CT",),
    structures=("Liver",),
)


def test_models_of_an_index_are_loaded_only_by_their_button(widget: Any, panel: Panel) -> None:
    asked, wanted = Heard(panel.browser.index_requested), Heard(panel.browser.fetch_requested)
    used = Heard(panel.browser.card_chosen)
    panel.browser.open()
    assert not find(widget, "indexButton").isVisible()
    panel.browser.show_index(True)
    click(widget, "indexButton")
    assert asked.values == [()]
    panel.browser.show_listed([LISTED])
    names = find(widget, "modelList")
    assert texts(widget, "modelList")[2:] == ["Liver <b>fast</b>"]
    assert "31.0 MB, not downloaded" in names.item(2).text()
    names.setCurrentRow(2)
    details = find(widget, "modelDetails").toPlainText()
    assert "Liver <b>fast</b>" in details  # as text, not as HTML
    assert "0" * 64 in details
    assert "secret" not in details
    assert not find(widget, "verifyButton").isEnabled()
    assert find(widget, "useButton").text() == "Download this model"
    panel.browser.show_busy(True)
    assert not find(widget, "useButton").isEnabled()
    panel.browser.show_busy(False)
    click(widget, "useButton")
    assert wanted.values == [(LISTED,)]
    assert used.values == []
    names.setCurrentRow(0)
    assert find(widget, "useButton").text() == "Use this model"
    find(widget, "modelSearch").setText("liver")
    assert texts(widget, "modelList") == ["Liver <b>fast</b>"]


def test_typing_narrows_the_list(widget: Any, panel: Panel) -> None:
    panel.browser.open()
    find(widget, "modelSearch").setText("cerebellar QUICKNAT")
    assert texts(widget, "modelList") == ["Brain structures"]
    find(widget, "modelSearch").setText("spaceship")
    assert texts(widget, "modelList") == []
    assert "No model matches" in find(widget, "modelDetails").toPlainText()
    assert not find(widget, "useButton").isEnabled()
    find(widget, "modelSearch").setText("")
    assert len(texts(widget, "modelList")) == 2


def test_modality_and_structure_narrow_the_list(widget: Any, panel: Panel) -> None:
    panel.browser.open()
    structures = find(widget, "structureFilter")
    assert "Brain stem" in texts(widget, "structureFilter")
    structures.setCurrentText("Brain stem")
    assert texts(widget, "modelList") == ["Brain structures"]
    structures.setCurrentIndex(0)
    assert texts(widget, "modalityFilter") == ["Any modality", "MR"]


def test_the_card_tells_time_and_memory_here(widget: Any, panel: Panel) -> None:
    panel.browser.expectation = lambda shown: f"{shown.id} takes 12 s here"
    panel.browser.select(BRAIN)
    panel.browser.show_cards([BRAIN])
    assert "brain takes 12 s here" in find(widget, "modelDetails").toPlainText()


def test_a_model_is_used_by_button_and_by_double_click(widget: Any, panel: Panel) -> None:
    panel.browser.open()
    shown = find(widget, "modelList")
    shown.setCurrentRow(1)
    click(widget, "useButton")
    assert panel.choice().card.id == "abdomen"
    assert not find(widget, "modelBrowser").isVisible()
    panel.browser.open()
    shown.setCurrentRow(0)
    shown.itemDoubleClicked.emit(shown.item(0))
    assert panel.choice().card is BRAIN


def test_a_folder_and_an_archive_are_asked_for(
    widget: Any, panel: Panel, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = Heard(panel.browser.import_requested)
    monkeypatch.setattr(dialogs, "open_folder", lambda parent, title: "/models/new")
    monkeypatch.setattr(dialogs, "open_file", lambda parent, title, filter: "/models/new.zip")
    panel.browser.open()
    click(widget, "importFolderButton")
    click(widget, "importArchiveButton")
    assert heard.values == [("/models/new",), ("/models/new.zip",)]
    monkeypatch.setattr(dialogs, "open_folder", lambda parent, title: "")
    click(widget, "importFolderButton")
    assert len(heard) == 2, "nothing was chosen"


def test_a_drop_imports(widget: Any, panel: Panel) -> None:
    heard = Heard(panel.browser.import_requested)
    panel.browser.open()
    data = QtCore.QMimeData()
    data.setUrls(
        [
            QtCore.QUrl.fromLocalFile("/models/dropped.zip"),
            QtCore.QUrl("https://example.org/model.zip"),
        ]
    )
    dialog = find(widget, "modelBrowser")
    assert dialog.acceptDrops()
    where, actions = QtCore.QPoint(20, 20), QtCore.Qt.DropAction.CopyAction
    buttons, keys = QtCore.Qt.MouseButton.LeftButton, QtCore.Qt.KeyboardModifier.NoModifier
    enter = QtGui.QDragEnterEvent(where, actions, data, buttons, keys)
    QtWidgets.QApplication.sendEvent(dialog, enter)
    assert enter.isAccepted()
    drop = QtGui.QDropEvent(where, actions, data, buttons, keys)
    QtWidgets.QApplication.sendEvent(dialog, drop)
    assert heard.values == [("/models/dropped.zip",)], "nothing comes from the network"


def test_while_something_runs_no_other_begins(widget: Any, panel: Panel) -> None:
    names = ("importFolderButton", "importArchiveButton", "verifyButton")
    panel.browser.show_busy(True)
    panel.browser.show_status("Importing …")
    assert not any(find(widget, name).isEnabled() for name in names)
    panel.browser.show_busy(False)
    panel.browser.show_status("It is damaged.", problem=True)
    assert all(find(widget, name).isEnabled() for name in names)
    assert find(widget, "modelStatus").text() == "It is damaged."
    heard = Heard(panel.browser.verify_requested)
    click(widget, "verifyButton")
    assert heard.values == [(BRAIN,)]


# --- settings --------------------------------------------------------------------------------------


def test_only_the_fields_of_the_chosen_place_are_shown(widget: Any, panel: Panel) -> None:
    find(widget, "settingsButton").setProperty("collapsed", False)
    fields = {"own": set(), "other": {"pythonEdit"}, "ssh": {"hostEdit", "commandEdit"}}
    for index, (kind, names) in enumerate(fields.items()):
        find(widget, "placeSelector").setCurrentIndex(index)
        assert panel.settings.choice().kind == kind
        every = {"pythonEdit", "hostEdit", "commandEdit"}
        assert {name for name in every if find(widget, name).isVisible()} == names


def test_a_place_is_told_when_it_is_finished_and_not_at_each_key(widget: Any, panel: Panel) -> None:
    heard = Heard(panel.settings.place_changed)
    panel.settings.show(PlaceChoice("ssh", host="server"))
    assert len(heard) == 0, "that was not the user"
    find(widget, "hostEdit").setText("other")
    assert len(heard) == 0
    find(widget, "hostEdit").editingFinished.emit()
    assert len(heard) == 1
    assert panel.settings.choice() == PlaceChoice("ssh", host="other")


def test_a_python_can_be_looked_for(
    widget: Any, panel: Panel, monkeypatch: pytest.MonkeyPatch
) -> None:
    find(widget, "settingsButton").setProperty("collapsed", False)
    find(widget, "placeSelector").setCurrentIndex(1)
    monkeypatch.setattr(dialogs, "open_file", lambda *_: "/env/bin/python")
    click(widget, "pythonButton")
    assert panel.settings.choice() == PlaceChoice("other", python="/env/bin/python")


def test_the_answer_of_the_doctor_is_shown_until_the_place_changes(
    widget: Any, panel: Panel
) -> None:
    find(widget, "settingsButton").setProperty("collapsed", False)
    heard = Heard(panel.settings.test_requested)
    click(widget, "testButton")
    assert len(heard) == 1
    panel.settings.show_answer("Asking …", busy=True)
    assert not find(widget, "testButton").isEnabled()
    panel.settings.show_answer("Ready to segment.")
    assert find(widget, "testButton").isEnabled()
    assert find(widget, "doctorText").toPlainText() == "Ready to segment."
    find(widget, "placeSelector").setCurrentIndex(1)
    assert not find(widget, "doctorText").isVisible()


# --- dialogs ---------------------------------------------------------------------------------------


def test_paths_are_read_from_either_binding(monkeypatch: pytest.MonkeyPatch) -> None:
    import qt

    class FileDialog:
        answer: Any = "/a/b"

        def getSaveFileName(self, *_: Any) -> Any:
            return self.answer

        getOpenFileName = getExistingDirectory = getSaveFileName

    made = FileDialog()
    monkeypatch.setattr(qt, "QFileDialog", faced(made, "QFileDialog"), raising=False)
    assert dialogs.save_file(None, "Save", "a.csv", "CSV (*.csv)") == "/a/b"
    made.answer = ("/a/c", "CSV (*.csv)")
    assert dialogs.open_file(None, "Open", "") == "/a/c"
    assert dialogs.open_folder(None, "Open") == "/a/c"


PLAN = Plan((Requirement("torch>=2.6"), Requirement("nibabel>=5.2")), Path("/slicer/lib"), True)


def test_the_install_dialog_says_what_where_and_how_large(monkeypatch: pytest.MonkeyPatch) -> None:
    dialog = InstallDialog(PLAN)
    real = pythonqt.real(dialog.dialog)
    table = real.findChild(QtWidgets.QTableWidget, "packagesTable")
    rows = [[table.item(row, column).text() for column in range(3)] for row in range(2)]
    assert rows == [
        ["torch>=2.6", "the PyTorch extension", "0.2 to 3 GB"],
        ["nibabel>=5.2", "pypi.org", "4 MB"],
    ]
    words = " ".join(label.text() for label in real.findChildren(QtWidgets.QLabel))
    assert "/slicer/lib" in words
    assert "packages of Slicer" in words
    assert dialog.consent() == Consent(None)
    monkeypatch.setattr(dialogs, "open_folder", lambda *_: "/stick/wheels")
    real.findChild(QtWidgets.QPushButton, "wheelsButton").click()
    assert dialog.consent() == Consent(Path("/stick/wheels"))
    real.findChild(QtWidgets.QCheckBox, "fromFolderCheck").setChecked(False)
    assert dialog.consent() == Consent(None)


@pytest.mark.parametrize(
    ("button", "consent"), [("installButton", Consent()), ("refuseButton", None)]
)
def test_the_install_dialog_waits_for_an_answer(button: str, consent: Consent | None) -> None:
    dialog = InstallDialog(PLAN)
    pressed = pythonqt.real(dialog.dialog).findChild(QtWidgets.QPushButton, button)
    QtCore.QTimer.singleShot(50, pressed.click)
    assert dialog.answer() == consent


def test_the_window_is_kept_open_by_a_no() -> None:
    window, answers = pythonqt.Module("qt").QWidget(), [False, True]
    guard = CloseFilter()
    guard.watch(window, lambda: answers.pop(0))
    real = pythonqt.real(window)
    real.show()
    assert not real.close()
    assert real.isVisible()
    assert real.close()
    assert not real.isVisible()


# --- programs --------------------------------------------------------------------------------------


def run(code: str, **environment: str) -> tuple[Finished, list[str]]:
    programs, answers, lines = Programs(), [], []
    programs.run(
        [sys.executable, "-c", code], os.environ | environment, answers.append, lines.append
    )
    while not answers:
        pythonqt.process_events(20)
    return answers[0], lines


def test_a_program_is_heard_line_by_line_and_at_its_end() -> None:
    code = "import os, sys; print('one'); print(os.environ['WORD']); sys.stderr.write('x'); sys.exit(3)"
    answer, lines = run(code, WORD="two")
    assert answer == Finished(3, "one\ntwo\n", "x")
    assert lines == ["one", "two"]


def test_a_program_that_cannot_start_is_told() -> None:
    answers: list[Finished] = []
    Programs().run(["/nowhere/python"], {}, answers.append)
    while not answers:
        pythonqt.process_events(20)
    assert answers[0].code == -1
    assert answers[0].errors


def test_closing_ends_every_program() -> None:
    programs, answers = Programs(), []
    process = programs.run(
        [sys.executable, "-c", "import time; time.sleep(60)"], dict(os.environ), answers.append
    )
    assert pythonqt.real(process).waitForStarted(5000)
    programs.close()
    assert pythonqt.real(process).state() == QtCore.QProcess.ProcessState.NotRunning
    assert [answer.code for answer in answers] == [-1]

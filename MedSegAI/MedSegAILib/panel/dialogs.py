"""The modal dialogs; tests replace them, because they block."""

from __future__ import annotations

import qt

from medsegai.system.outside_text import label_text
from MedSegAILib.slicer_types import QtValue, Widget


def open_folder(parent: Widget, title: str) -> str:
    """Ask for a folder; "" if none was chosen."""
    return _path(qt.QFileDialog.getExistingDirectory(parent, title))


def open_file(parent: Widget, title: str, filter: str) -> str:
    """Ask for an existing file; "" if none was chosen."""
    return _path(qt.QFileDialog.getOpenFileName(parent, title, "", filter))


def save_file(parent: Widget, title: str, name: str, filter: str) -> str:
    """Ask for a file to write; "" if none was chosen."""
    return _path(qt.QFileDialog.getSaveFileName(parent, title, name, filter))


def decide(parent: Widget, question: str, accept: str, decline: str, safe: bool) -> bool:
    """Ask for one of two answers, each named after its effect.

    Args:
        safe: the answer that Enter gives, because it neither loses nor discloses anything.
    """
    box = qt.QMessageBox(parent)
    box.windowTitle = "MedSegAI"
    box.setIcon(qt.QMessageBox.Question)
    box.text = label_text(question)
    yes = box.addButton(accept, qt.QMessageBox.AcceptRole)
    no = box.addButton(decline, qt.QMessageBox.RejectRole)
    box.setDefaultButton(yes if safe else no)
    box.setEscapeButton(yes if safe else no)
    run = getattr(box, "exec_", None) or box.exec
    run()
    return bool(box.clickedButton() == yes)


def _path(answer: QtValue) -> str:
    """Return the path of an answer; PythonQt returns only the path, other bindings also the filter."""
    return str(answer[0] if isinstance(answer, (tuple, list)) else answer)

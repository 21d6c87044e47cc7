"""The questions that stop the user; tests put others in their place, for these block."""

from __future__ import annotations

import qt

from medsegai.system.outside_text import unformatted
from MedSegAILib.slicer_types import QtValue, Widget


def open_folder(parent: Widget, title: str) -> str:
    """A folder, or "" where none was chosen."""
    return _path(qt.QFileDialog.getExistingDirectory(parent, title))


def open_file(parent: Widget, title: str, filter: str) -> str:
    """A file that is there, or ""."""
    return _path(qt.QFileDialog.getOpenFileName(parent, title, "", filter))


def save_file(parent: Widget, title: str, name: str, filter: str) -> str:
    """A file to write, or ""."""
    return _path(qt.QFileDialog.getSaveFileName(parent, title, name, filter))


def decide(parent: Widget, question: str, accept: str, decline: str, safe: bool) -> bool:
    """One of two answers, each named after what it does.

    Args:
        safe: the answer that Enter gives, because it loses nothing and gives nothing away.
    """
    box = qt.QMessageBox(parent)
    box.windowTitle = "MedSegAI"
    box.setIcon(qt.QMessageBox.Question)
    box.text = unformatted(question)
    yes = box.addButton(accept, qt.QMessageBox.AcceptRole)
    no = box.addButton(decline, qt.QMessageBox.RejectRole)
    box.setDefaultButton(yes if safe else no)
    box.setEscapeButton(yes if safe else no)
    run = getattr(box, "exec_", None) or box.exec
    run()
    return bool(box.clickedButton() == yes)


def _path(answer: QtValue) -> str:
    """PythonQt gives the path alone; bindings that give the filter too are understood as well."""
    return str(answer[0] if isinstance(answer, (tuple, list)) else answer)

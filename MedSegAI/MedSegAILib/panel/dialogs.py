"""The questions that stop the user; tests put others in their place, for these block."""

from __future__ import annotations

from typing import Any

import qt


def open_folder(parent: Any, title: str) -> str:
    """A folder, or "" where none was chosen."""
    return _path(qt.QFileDialog.getExistingDirectory(parent, title))


def open_file(parent: Any, title: str, filter: str) -> str:
    """A file that is there, or ""."""
    return _path(qt.QFileDialog.getOpenFileName(parent, title, "", filter))


def save_file(parent: Any, title: str, name: str, filter: str) -> str:
    """A file to write, or ""."""
    return _path(qt.QFileDialog.getSaveFileName(parent, title, name, filter))


def _path(answer: Any) -> str:
    """PythonQt gives the path alone; bindings that give the filter too are understood as well."""
    return str(answer[0] if isinstance(answer, (tuple, list)) else answer)

"""Keyboard shortcuts for frequent actions. They work with any focus while the page is shown."""

from __future__ import annotations

import qt

from MedSegAILib.slicer_types import Widget

SHORTCUTS = (
    ("Ctrl+Alt+S", "segmentButton"),
    ("Ctrl+Alt+G", "completeGoodButton"),
    ("Ctrl+Alt+E", "doneButton"),
    ("Ctrl+Alt+N", "nextButton"),
    ("Ctrl+Alt+U", "uncertaintyButton"),
    ("Ctrl+Alt+H", "heatButton"),
    ("Ctrl+Alt+D", "show3dButton"),
    ("Ctrl+Alt+C", "correctButton"),
    ("Ctrl+Alt+A", "acceptButton"),
    ("Ctrl+Alt+R", "rejectButton"),
)


def add_shortcuts(ui: Widget) -> None:
    """Make each key click a button, if the button is visible and enabled."""
    for keys, name in SHORTCUTS:
        button = getattr(ui, name)
        shortcut = qt.QShortcut(qt.QKeySequence(keys), button)
        shortcut.objectName = f"{name}Shortcut"
        shortcut.setContext(qt.Qt.ApplicationShortcut)
        shortcut.connect("activated()", button.click)

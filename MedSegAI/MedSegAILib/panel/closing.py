"""Asks before Slicer closes while jobs are running."""

from __future__ import annotations

from collections.abc import Callable

import qt

from MedSegAILib.slicer_types import QtValue, Widget


class CloseFilter(qt.QWidget):
    """Filters the main window's close event. If `may_close` returns False, the window stays open."""

    may_close: Callable[[], bool]

    def watch(self, window: Widget, may_close: Callable[[], bool]) -> None:
        self.may_close = may_close
        window.installEventFilter(self)

    def eventFilter(self, _watched: Widget, event: QtValue) -> bool:
        """Called by Qt for each event of the window; True keeps the event from it."""
        if event.type() == qt.QEvent.Close and not self.may_close():
            event.ignore()
            return True
        return False

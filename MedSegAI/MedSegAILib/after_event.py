"""Calls after the present event, and after all its other observers."""

from __future__ import annotations

from collections.abc import Callable

import qt


def after_event(act: Callable[[], None]) -> Callable[[], None]:
    """Return the function that lets Qt call `act` once, after the present event."""
    timer = qt.QTimer()
    timer.singleShot = True
    timer.connect("timeout()", act)
    return lambda: timer.start(0)

"""The progress of making the surfaces of a segmentation, with a button that stops it."""

from __future__ import annotations

import qt

from MedSegAILib.signals import Signal
from MedSegAILib.slicer_types import Widget
from MedSegAILib.translation import tr as _


class SurfacesBar:
    """A line that is visible while surfaces are made.

    Attributes:
        step_requested: Slicer is idle, so the next surface can be made.
        cancel_requested: stop making surfaces.
    """

    def __init__(self, ui: Widget) -> None:
        self._ui = ui
        self.step_requested, self.cancel_requested = Signal(), Signal()
        self._timer = qt.QTimer()
        self._timer.setInterval(0)  # after the events of the user, and of the views
        self._timer.connect("timeout()", self.step_requested.emit)
        ui.surfacesCancelButton.connect("clicked()", self.cancel_requested.emit)
        self.hide()

    def show(self, done: int, total: int) -> None:
        """Show how many surfaces exist, and request the next one."""
        bar = self._ui.surfacesProgress
        bar.maximum, bar.value = total, done
        bar.format = _("Surface {done} of {total}").format(done=done, total=total)
        self._ui.surfacesRow.visible = True
        self._timer.start()

    def hide(self) -> None:
        """Hide the line, because all surfaces are made."""
        self._timer.stop()
        self._ui.surfacesRow.visible = False

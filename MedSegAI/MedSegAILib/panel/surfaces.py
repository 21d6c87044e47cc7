"""How far the surfaces of a segmentation are, and a button that stops making them."""

from __future__ import annotations

import qt

from MedSegAILib.signals import Signal
from MedSegAILib.slicer_types import Widget
from MedSegAILib.translation import tr as _


class SurfacesBar:
    """A line that is there while surfaces are made.

    Attributes:
        step_requested: Slicer has nothing else to do, so the next surface can be made.
        cancel_requested: make no more.
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
        """Say how many surfaces there are, and ask for the next one."""
        bar = self._ui.surfacesProgress
        bar.maximum, bar.value = total, done
        bar.format = _("Surface {done} of {total}").format(done=done, total=total)
        self._ui.surfacesRow.visible = True
        self._timer.start()

    def hide(self) -> None:
        """There is nothing more to make."""
        self._timer.stop()
        self._ui.surfacesRow.visible = False

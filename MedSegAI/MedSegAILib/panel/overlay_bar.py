"""The buttons that show a map over the image, and the slider of its opacity."""

from __future__ import annotations

from collections.abc import Sequence

from MedSegAILib.panel.style import PRESSED_STYLE, press
from MedSegAILib.signals import Signal
from MedSegAILib.slicer_types import Widget
from MedSegAILib.translation import tr as _
from MedSegAILib.uncertain_regions import HEAT, UNCERTAINTY

OPAQUE = 100
"""The value of the slider at which the map hides the image completely."""


class OverlayBar:
    """One button for each kind of map, of which at most one is pressed.

    Attributes:
        kind_chosen: the kind of map to show, or "" for none.
        opacity_chosen: the opacity, from 0 to 1.
    """

    def __init__(self, ui: Widget) -> None:
        self._ui = ui
        self._buttons = {HEAT: ui.heatButton, UNCERTAINTY: ui.uncertaintyButton}
        self.kind_chosen, self.opacity_chosen = Signal(), Signal()
        for kind, button in self._buttons.items():
            button.styleSheet = PRESSED_STYLE
            button.connect("toggled(bool)", lambda down, kind=kind: self._on_toggled(kind, down))
        ui.opacitySlider.connect("valueChanged(int)", self._on_opacity)
        self.offer(())

    def offer(self, kinds: Sequence[str]) -> None:
        """Offer these maps, of which none is shown yet; the regions of the first are walked."""
        ui = self._ui
        for kind, button in self._buttons.items():
            button.enabled = kind in kinds
        ui.heatButton.visible = HEAT in kinds
        ui.overlayRow.visible = bool(kinds)
        text, tool_tip = _next_place(kinds[0] if kinds else UNCERTAINTY)
        ui.nextButton.text, ui.nextButton.toolTip = text, tool_tip
        for widget in (ui.nextButton, ui.placesSelector):
            widget.enabled = bool(kinds)
        self.show("", 0.0)

    def show(self, kind: str, opacity: float) -> None:
        """Show which map is over the image, "" for none, and its opacity, without emitting a signal."""
        for own, button in self._buttons.items():
            press(button, own == kind)
        slider = self._ui.opacitySlider
        for widget in (self._ui.opacityLabel, slider):
            widget.visible = bool(kind)
        slider.blockSignals(True)
        slider.value = round(OPAQUE * opacity)
        slider.blockSignals(False)

    def _on_toggled(self, kind: str, down: bool) -> None:
        self.kind_chosen.emit(kind if down else "")

    def _on_opacity(self, value: int) -> None:
        self.opacity_chosen.emit(value / OPAQUE)


def _next_place(kind: str) -> tuple[str, str]:
    """Return the title and tool tip of the button that walks a map."""
    if kind == HEAT:
        return (
            _("Next suspicious place"),
            _("Go to the next of the most probable places. (Ctrl+Alt+N)"),
        )
    return (
        _("Next uncertain region"),
        _("Go to the next of the regions where the AI is least certain. (Ctrl+Alt+N)"),
    )

"""The choice of where the worker runs, and the report of its doctor."""

from __future__ import annotations

from MedSegAILib.panel import dialogs
from MedSegAILib.panel_values import PlaceChoice
from MedSegAILib.signals import Signal
from MedSegAILib.slicer_types import Widget
from MedSegAILib.translation import tr as _

KINDS = (
    ("own", _("This Slicer's Python")),
    ("other", _("Another Python on this computer")),
    ("ssh", _("Another computer, through ssh")),
)


class SettingsWidgets:
    """The settings.

    Attributes:
        place_changed: another place was chosen, or one of its fields was edited.
        test_requested: run the doctor there.
    """

    def __init__(self, ui: Widget) -> None:
        self._ui = ui
        self._filling = False
        self.place_changed, self.test_requested = Signal(), Signal()
        for _kind, title in KINDS:
            ui.placeSelector.addItem(title)
        ui.placeSelector.connect("currentIndexChanged(int)", self._on_kind_changed)
        for edit in (ui.pythonEdit, ui.hostEdit, ui.commandEdit):
            edit.connect("editingFinished()", self._on_change)
        ui.pythonButton.connect("clicked()", self._choose_python)
        ui.testButton.connect("clicked()", self.test_requested.emit)
        ui.doctorText.visible = False
        self.show(PlaceChoice())

    def choice(self) -> PlaceChoice:
        """Return where the worker runs, as the fields show it."""
        return PlaceChoice(
            self._kind(),
            self._ui.pythonEdit.text.strip(),
            self._ui.hostEdit.text.strip(),
            self._ui.commandEdit.text.strip(),
        )

    def show(self, choice: PlaceChoice) -> None:
        """Show a choice without emitting a signal."""
        self._filling = True
        self._ui.placeSelector.currentIndex = [kind for kind, _title in KINDS].index(choice.kind)
        self._ui.pythonEdit.text = choice.python
        self._ui.hostEdit.text = choice.host
        self._ui.commandEdit.text = choice.command
        self._filling = False
        self._show_what_matters()

    def show_answer(self, text: str, busy: bool = False) -> None:
        """Show the report of the doctor; `busy` while it is still running."""
        self._ui.doctorText.plainText = text
        self._ui.doctorText.visible = bool(text)
        self._ui.testButton.enabled = not busy

    def _kind(self) -> str:
        return KINDS[max(self._ui.placeSelector.currentIndex, 0)][0]

    def _show_what_matters(self) -> None:
        ui, kind = self._ui, self._kind()
        for widget in (ui.pythonLabel, ui.pythonEdit, ui.pythonButton):
            widget.visible = kind == "other"
        for widget in (ui.hostLabel, ui.hostEdit, ui.commandLabel, ui.commandEdit):
            widget.visible = kind == "ssh"

    def _on_kind_changed(self, _index: int) -> None:
        self._show_what_matters()
        self._on_change()

    def _on_change(self) -> None:
        if not self._filling:
            self.show_answer("")
            self.place_changed.emit()

    def _choose_python(self) -> None:
        path = dialogs.open_file(self._ui.settingsButton, _("Python of the worker"), "")
        if path:
            self._ui.pythonEdit.text = path
            self._on_change()

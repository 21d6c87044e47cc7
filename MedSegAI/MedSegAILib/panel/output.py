"""The choice of the output, and the preview that waits for a decision."""

from __future__ import annotations

from collections.abc import Callable

from MedSegAILib.output_choice import OutputChoice, OutputMode
from MedSegAILib.panel.inputs import choose_node
from MedSegAILib.panel.wrapping import say
from MedSegAILib.signals import Signal
from MedSegAILib.slicer_types import Node, Widget
from MedSegAILib.translation import tr as _

MODES = (
    (OutputMode.NEW, _("New segmentation")),
    (OutputMode.UPDATE, _("Update its segments")),
    (OutputMode.ADD, _("Add beside its segments")),
    (OutputMode.PREVIEW, _("Preview, then accept")),
)


class OutputWidgets:
    """The choice of the output.

    Args:
        ui: the named widgets.
        changed: the function that is called after each change.
    """

    def __init__(self, ui: Widget, changed: Callable[[], None]) -> None:
        self._ui, self._changed = ui, changed
        for _mode, title in MODES:
            ui.outputSelector.addItem(title)
        ui.outputSelector.connect("currentIndexChanged(int)", self._on_mode_changed)
        ui.outputNodeSelector.connect("currentNodeChanged(vtkMRMLNode*)", self._on_change)
        for box in (ui.lockedCheck, ui.paintedCheck):
            box.connect("toggled(bool)", self._on_change)
        self._show_what_matters()

    def choice(self) -> OutputChoice:
        """Return the chosen output."""
        mode = self._mode()
        if mode is OutputMode.NEW:
            return OutputChoice()
        return OutputChoice(
            mode,
            self._ui.outputNodeSelector.currentNode(),
            change_locked=self._ui.lockedCheck.checked,
            change_painted=self._ui.paintedCheck.checked,
        )

    def choose(self, mode: OutputMode, node: Node = None) -> None:
        """Choose as a user would."""
        self._ui.outputSelector.currentIndex = [item for item, _title in MODES].index(mode)
        if node is not None:
            self._ui.outputNodeSelector.setCurrentNode(node)

    def restore(self, choice: OutputChoice) -> None:
        """Show this output; a segmentation that cannot be chosen is not."""
        self.choose(choice.mode)
        choose_node(self._ui.outputNodeSelector, choice.node)
        self._ui.lockedCheck.checked = choice.change_locked
        self._ui.paintedCheck.checked = choice.change_painted

    def _mode(self) -> OutputMode:
        return MODES[max(self._ui.outputSelector.currentIndex, 0)][0]

    def _show_what_matters(self) -> None:
        mode = self._mode()
        changes = mode in (OutputMode.UPDATE, OutputMode.PREVIEW)
        node_matters = mode is not OutputMode.NEW
        self._ui.outputNodeLabel.visible = self._ui.outputNodeSelector.visible = node_matters
        self._ui.lockedCheck.visible = self._ui.paintedCheck.visible = changes

    def _on_mode_changed(self, _index: int) -> None:
        self._show_what_matters()
        self._changed()

    def _on_change(self, _value: object) -> None:
        self._changed()


class PreviewBar:
    """Attributes: `accepted`, `rejected`: a button was pressed."""

    def __init__(self, ui: Widget) -> None:
        self._ui = ui
        self.accepted, self.rejected = Signal(), Signal()
        ui.acceptButton.connect("clicked()", self.accepted.emit)
        ui.rejectButton.connect("clicked()", self.rejected.emit)
        ui.previewBar.visible = False

    def show(self, name: str) -> None:
        """Ask about the preview of a name; "" hides the question."""
        text = _("{name} is a preview. Your segmentation has not been changed yet.")
        say(self._ui.previewLabel, text.format(name=name))
        self._ui.previewBar.visible = bool(name)

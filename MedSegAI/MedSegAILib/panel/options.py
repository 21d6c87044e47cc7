"""The widgets of a request's options, made from the one list of options."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field
from typing import Any

import qt

from medsegai.models.card import ModelCard
from medsegai.request import request_options
from MedSegAILib.panel.fields import field_widget, tip_of, title_of
from MedSegAILib.panel.refinement_list import RefinementList
from MedSegAILib.panel.style import check_box
from MedSegAILib.panel_values import DeviceChoice
from MedSegAILib.slicer_types import Widget
from MedSegAILib.translation import tr as _

# The model and the region have their own selectors; a scene cannot hold probabilities; candidates are always
# requested, because AI correct needs them.
ELSEWHERE = ("models", "probabilities", "region", "candidates")

PANEL_DEFAULTS: Mapping[str, Any] = {"uncertainty": True}
"""The defaults that differ from those of the request, so that users see where a result is uncertain."""

DEVICES = (
    DeviceChoice("auto", _("the fastest one")),
    DeviceChoice("cpu", _("the processor")),
)


class OptionWidgets:
    """One row for each option, in a form layout.

    Args:
        form: the QFormLayout of the rows.
        changed: the function that is called after each change.
    """

    def __init__(self, form: Widget, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._read: dict[str, Callable[[], Any]] = {}
        self._members = _TickedNames("membersOption", True, self._on_members_changed)
        self._others = _TickedNames("othersOption", False, changed)
        self._refinements = RefinementList(changed)
        self._device: Widget = None
        self._form = form
        self._add_row(_("Together with"), self._others.box)
        self._others.box.toolTip = _("Also run these models, and combine their results.")
        for option in request_options():
            if option.name not in ELSEWHERE:
                widget = self._widget(option)
                widget.toolTip = tip_of(option)
                widget.objectName = f"{option.name}Option"
                self._add_row(title_of(option), widget)
        self._others_label = form.labelForField(self._others.box)
        self.set_others(())

    def values(self) -> dict[str, Any]:
        """Return the present options, as for `request_from_options`."""
        return {name: read() for name, read in self._read.items()}

    def other_models(self) -> tuple[str, ...]:
        """Return the names of the models to use besides the chosen one."""
        return self._others.ticked()

    def set_model(self, card: ModelCard | None) -> None:
        """Show the members of the model, ticked if they have a share, and its structures for refinements."""
        members = () if card is None else card.members
        self._members.show({member.name: member.weight > 0 for member in members})
        self._refinements.set_labels(() if card is None else card.labels)

    def set_others(self, names: Sequence[str]) -> None:
        """Offer these models for use together with the chosen one."""
        self._others.show(dict.fromkeys(names, False))
        self._others.box.visible = self._others_label.visible = bool(names)

    def show_devices(self, devices: Sequence[DeviceChoice]) -> None:
        """Offer these devices; the chosen one stays."""
        chosen = _first_word(self._device.currentText)
        self._device.blockSignals(True)
        self._device.clear()
        for device in devices:
            self._device.addItem(_device_text(device))
        texts = [_device_text(device) for device in devices]
        values = [device.value for device in devices]
        self._device.currentText = texts[values.index(chosen)] if chosen in values else chosen
        self._device.lineEdit().setCursorPosition(0)  # the name matters more than its description
        self._device.blockSignals(False)

    def _add_row(self, title: str, widget: Widget) -> None:
        if widget is self._refinements.widget:  # it has its own rows and needs the whole width
            self._form.addRow(qt.QLabel(f"{title}:"))
            self._form.addRow(widget)
        else:
            self._form.addRow(f"{title}:", widget)

    def _widget(self, option: Field[Any]) -> Widget:
        default = PANEL_DEFAULTS.get(option.name, option.default)
        if option.name == "members":
            self._read[option.name] = self._chosen_members
            return self._members.box
        if option.name == "device":
            return self._device_selector(option)
        if option.name == "refinements":
            self._read[option.name] = self._refinements.values
            return self._refinements.widget
        widget, self._read[option.name] = field_widget(option, default, self._changed)
        return widget

    def _device_selector(self, option: Field[Any]) -> Widget:
        """Make an editable selector, so that a device can be named before the doctor has listed the devices."""
        widget = self._device = qt.QComboBox()
        widget.editable = True
        widget.minimumContentsLength = 10
        widget.sizeAdjustPolicy = qt.QComboBox.AdjustToMinimumContentsLengthWithIcon
        widget.currentText = option.default
        self.show_devices(DEVICES)
        widget.connect("currentTextChanged(QString)", self._on_change)
        self._read[option.name] = lambda: _first_word(widget.currentText)
        return widget

    def _chosen_members(self) -> tuple[str, ...]:
        """Return the chosen members; an empty list means those of the card, as in the request."""
        return () if self._members.untouched() else self._members.ticked()

    def _on_members_changed(self) -> None:
        """Tick the card's members again if none is ticked, because at least one has to run."""
        if not self._members.ticked():
            self._members.reset()
        self._changed()

    def _on_change(self, _value: object) -> None:
        self._changed()


class _TickedNames:
    """A check box for each name, one below the other."""

    def __init__(self, name: str, ticked: bool, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._boxes: dict[str, Widget] = {}
        self._first: dict[str, bool] = {}
        self.box = qt.QWidget()
        self.box.objectName = name
        qt.QVBoxLayout(self.box).setContentsMargins(0, 0, 0, 0)

    def show(self, names: Mapping[str, bool]) -> None:
        """Show these names, each ticked or not."""
        layout = self.box.layout()
        for box in self._boxes.values():
            layout.removeWidget(box)
            box.hide()
            box.deleteLater()
        self._first = dict(names)
        self._boxes = {name: check_box(name) for name in names}
        for name, box in self._boxes.items():
            box.checked = names[name]
            box.connect("toggled(bool)", self._on_toggled)
            layout.addWidget(box)

    def ticked(self) -> tuple[str, ...]:
        return tuple(name for name, box in self._boxes.items() if box.checked)

    def untouched(self) -> bool:
        return {name: bool(box.checked) for name, box in self._boxes.items()} == self._first

    def reset(self) -> None:
        for name, box in self._boxes.items():
            box.checked = self._first[name]

    def _on_toggled(self, _ticked: bool) -> None:
        self._changed()


def _device_text(device: DeviceChoice) -> str:
    return f"{device.value} – {device.description}" if device.description else device.value


def _first_word(text: str) -> str:
    return text.split()[0] if text.split() else "auto"

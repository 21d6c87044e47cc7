"""The widgets of a request's options, made from the one list of options."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field
from typing import Any

import qt

from medsegai.models.card import ModelCard
from medsegai.models.json_fields import shown
from medsegai.request import request_options
from MedSegAILib.panel.fields import FieldWidget, field_widget, tip_of, title_of
from MedSegAILib.panel.refinement_list import RefinementList
from MedSegAILib.panel.style import check_box
from MedSegAILib.panel_values import DeviceChoice
from MedSegAILib.slicer_types import Widget
from MedSegAILib.translation import tr as _

logger = logging.getLogger(__name__)

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
        self._fields: dict[str, FieldWidget] = {}
        self._defaults: dict[str, Any] = {}
        self._members = _TickedNames("membersOption", True, self._on_members_changed)
        self._others = _TickedNames("othersOption", False, changed)
        self._refinements = RefinementList(changed)
        self._device: Widget = None
        self._awaited_device = ""
        self._form = form
        self._add_row(_("Together with"), self._others.box)
        self._others.box.toolTip = _("Also run these models, and combine their results.")
        for option in request_options():
            if option.name not in ELSEWHERE:
                self._add_option(option)
        self._others_label = form.labelForField(self._others.box)
        self.set_others(())

    def values(self) -> dict[str, Any]:
        """Return the present options, as for `request_from_options`."""
        return {name: field.read() for name, field in self._fields.items()}

    def changed_values(self) -> dict[str, Any]:
        """Return the present options that differ from the panel's defaults, with a device that is awaited."""
        values = self.values() | ({"device": self._awaited_device} if self._awaited_device else {})
        return {name: value for name, value in values.items() if value != self._defaults[name]}

    def restore(self, values: Mapping[str, Any]) -> None:
        """Show these options, and the others as by default; so are those that the panel does not offer.

        A device that is not offered is awaited, because the doctor may find it later.
        """
        for name, field in self._fields.items():
            field.write(values.get(name, self._defaults[name]))
            if name in values and field.read() != values[name]:
                logger.warning("The option %s cannot be %s here.", name, shown(values[name]))
                field.write(self._defaults[name])
        device = values.get("device", "")
        self._awaited_device = "" if device == self._fields["device"].read() else device

    def other_models(self) -> tuple[str, ...]:
        """Return the names of the models to use besides the chosen one."""
        return self._others.ticked()

    def choose_other_models(self, names: Sequence[str]) -> None:
        """Choose the models with these names to run together with the chosen one."""
        self._others.tick(names)

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
        """Offer these devices; the chosen one stays, unless an awaited one is among them."""
        chosen = _first_word(self._device.currentText)
        if self._awaited_device in [device.value for device in devices]:
            chosen, self._awaited_device = self._awaited_device, ""
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

    def _add_option(self, option: Field[Any]) -> None:
        default = PANEL_DEFAULTS.get(option.name, option.default)
        field = self._fields[option.name] = self._field(option, default)
        self._defaults[option.name] = default
        field.widget.toolTip = tip_of(option)
        field.widget.objectName = f"{option.name}Option"
        self._add_row(title_of(option), field.widget)

    def _field(self, option: Field[Any], default: Any) -> FieldWidget:
        if option.name == "members":
            return FieldWidget(self._members.box, self._chosen_members, self._choose_members)
        if option.name == "device":
            return self._device_selector(default)
        if option.name == "refinements":
            chosen = self._refinements
            return FieldWidget(chosen.widget, chosen.values, chosen.choose)
        return field_widget(option, default, self._changed)

    def _device_selector(self, default: str) -> FieldWidget:
        """Make an editable selector, so that a device can be named before the doctor has listed the devices."""
        widget = self._device = qt.QComboBox()
        widget.editable = True
        widget.minimumContentsLength = 10
        widget.sizeAdjustPolicy = qt.QComboBox.AdjustToMinimumContentsLengthWithIcon
        widget.currentText = default
        self.show_devices(DEVICES)
        widget.connect("currentTextChanged(QString)", self._on_device_changed)
        return FieldWidget(widget, lambda: _first_word(widget.currentText), self._choose_device)

    def _choose_device(self, value: str) -> None:
        """Choose a device; one that is not offered is not chosen."""
        texts = [self._device.itemText(number) for number in range(self._device.count)]
        found = [text for text in texts if _first_word(text) == value]
        if found:
            self._device.currentText = found[0]
            self._device.lineEdit().setCursorPosition(0)

    def _on_device_changed(self, _text: str) -> None:
        self._awaited_device = ""
        self._changed()

    def _choose_members(self, names: Sequence[str]) -> None:
        """Choose members; those of the card if none is named."""
        if names:
            self._members.tick(names)
        else:
            self._members.reset()

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
        self.tick([name for name, ticked in self._first.items() if ticked])

    def tick(self, names: Sequence[str]) -> None:
        """Tick these names alone; names that are not shown do not matter."""
        for name, box in self._boxes.items():
            box.blockSignals(True)
            box.checked = name in names
            box.blockSignals(False)

    def _on_toggled(self, _ticked: bool) -> None:
        self._changed()


def _device_text(device: DeviceChoice) -> str:
    return f"{device.value} – {device.description}" if device.description else device.value


def _first_word(text: str) -> str:
    return text.split()[0] if text.split() else "auto"

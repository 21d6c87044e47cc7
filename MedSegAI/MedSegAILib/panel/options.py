"""The widgets of a request's options, made from the one list of options."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import Field
from typing import Any

import qt

from medsegai.card import ModelCard
from medsegai.request import request_options
from MedSegAILib.translation import tr as _

# The model and the region have selectors of their own; probabilities have no place in a scene.
ELSEWHERE = ("models", "probabilities", "region")
SUGGESTIONS = {"device": ("auto", "cpu", "cuda")}
LARGEST_NUMBER = 1_000_000


class OptionWidgets:
    """One row for each option, in a form layout.

    Args:
        form: the QFormLayout that takes the rows.
        changed: called after each change.
    """

    def __init__(self, form: Any, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._read: dict[str, Callable[[], Any]] = {}
        self._members: list[tuple[str, Any]] = []
        self._members_box = qt.QWidget()
        qt.QVBoxLayout(self._members_box).setContentsMargins(0, 0, 0, 0)
        for option in request_options():
            if option.name not in ELSEWHERE:
                widget = self._widget(option)
                widget.toolTip = _(option.metadata["help"])
                widget.objectName = f"{option.name}Option"
                form.addRow(_title(option.name), widget)

    def values(self) -> dict[str, Any]:
        """The options as they stand, as `request_from_options` takes them."""
        return {name: read() for name, read in self._read.items()}

    def set_members(self, card: ModelCard | None) -> None:
        """Show a box to tick for each member of the model, all ticked."""
        layout = self._members_box.layout()
        for _name, box in self._members:
            layout.removeWidget(box)
            box.hide()
            box.deleteLater()
        names = [] if card is None else [member.name for member in card.members]
        self._members = [(name, qt.QCheckBox(name)) for name in names]
        for _name, box in self._members:
            box.checked = True
            box.connect("toggled(bool)", self._on_member_toggled)
            layout.addWidget(box)

    def _widget(self, option: Field[Any]) -> Any:
        if option.name == "members":
            self._read[option.name] = self._ticked_members
            return self._members_box
        choices = option.metadata["choices"] or SUGGESTIONS.get(option.name)
        if choices:
            return self._choice(option, choices)
        if isinstance(option.default, bool):
            return self._switch(option)
        if isinstance(option.default, int):
            return self._number(option)
        if isinstance(option.default, float):
            return self._fraction(option)
        return self._text(option)

    def _choice(self, option: Field[Any], choices: Sequence[str]) -> Any:
        widget = qt.QComboBox()
        widget.editable = not option.metadata["choices"]
        for choice in choices:
            widget.addItem(choice)
        widget.currentText = option.default
        widget.connect("currentTextChanged(QString)", self._on_change)
        self._read[option.name] = lambda: widget.currentText
        return widget

    def _switch(self, option: Field[Any]) -> Any:
        widget = qt.QCheckBox()
        widget.checked = option.default
        widget.connect("toggled(bool)", self._on_change)
        self._read[option.name] = lambda: widget.checked
        return widget

    def _number(self, option: Field[Any]) -> Any:
        widget = qt.QSpinBox()
        widget.maximum = LARGEST_NUMBER
        widget.value = option.default
        widget.connect("valueChanged(int)", self._on_change)
        self._read[option.name] = lambda: widget.value
        return widget

    def _fraction(self, option: Field[Any]) -> Any:
        widget = qt.QDoubleSpinBox()
        widget.minimum, widget.maximum, widget.singleStep = 0.05, 1.0, 0.05
        widget.value = option.default
        widget.connect("valueChanged(double)", self._on_change)
        self._read[option.name] = lambda: widget.value
        return widget

    def _text(self, option: Field[Any]) -> Any:
        """A text, or several separated by commas."""
        widget = qt.QLineEdit()
        default: Any = option.default
        several = isinstance(default, tuple)
        widget.text = ", ".join(default) if several else default
        widget.connect("textChanged(QString)", self._on_change)
        self._read[option.name] = lambda: _words(widget.text) if several else widget.text
        return widget

    def _ticked_members(self) -> tuple[str, ...]:
        """No name at all means all of them, as in the request."""
        ticked = tuple(name for name, box in self._members if box.checked)
        return () if len(ticked) == len(self._members) else ticked

    def _on_member_toggled(self, _ticked: bool) -> None:
        """At least one has to run: without any tick all are ticked again."""
        if self._members and not any(box.checked for _name, box in self._members):
            for _name, box in self._members:
                box.checked = True
        self._changed()

    def _on_change(self, _value: object) -> None:
        self._changed()


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _title(name: str) -> str:
    return _(name.replace("_", " ").capitalize()) + ":"

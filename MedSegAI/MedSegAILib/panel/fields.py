"""A widget for an option, made from its description: default, choices and bounds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field
from typing import Any, NamedTuple

import qt

from MedSegAILib.panel.style import check_box, narrow
from MedSegAILib.slicer_types import Widget

LARGEST_NUMBER = 1_000_000
FRACTION = (0.05, 1.0)
"""The default bounds of a number: a part of a whole."""

UNITS = ("mm", "ml")
"""The units with which the names of options end."""


class FieldWidget(NamedTuple):
    """A widget with the functions that read and write its value.

    A value that the widget cannot show becomes another one, so that it is not the one that is then read.
    """

    widget: Widget
    read: Callable[[], Any]
    write: Callable[[Any], None]


def field_widget(option: Field[Any], value: Any, changed: Callable[[], None]) -> FieldWidget:
    """Make a widget that shows `value`, of the kind that fits the option's default.

    Args:
        option: a field whose metadata may hold `choices` and `bounds` (lowest and highest).
        value: the initial value.
        changed: the function that is called after each change by the user.
    """
    bounds = option.metadata.get("bounds")
    if option.metadata.get("choices"):
        return _choice(words_of(option), value, changed)
    if isinstance(option.default, bool):
        return _switch(value, changed)
    if isinstance(option.default, int):
        return _number(bounds or (0, LARGEST_NUMBER), value, changed)
    if isinstance(option.default, float):
        return _measure(bounds, value, changed)
    return _text(isinstance(option.default, tuple), value, changed)


def _choice(words: Mapping[str, str], value: str, changed: Callable[[], None]) -> FieldWidget:
    widget = qt.QComboBox()
    narrow(widget)
    widget.minimumContentsLength = 8
    for choice, title in words.items():
        widget.addItem(title, choice)
    widget.setCurrentIndex(widget.findData(value))
    widget.connect("currentTextChanged(QString)", lambda _value: changed())
    return FieldWidget(
        widget,
        lambda: str(widget.itemData(widget.currentIndex)),
        lambda value: widget.setCurrentIndex(widget.findData(value)),
    )


def _switch(value: bool, changed: Callable[[], None]) -> FieldWidget:
    widget = check_box()
    widget.checked = value
    widget.connect("toggled(bool)", lambda _value: changed())
    return FieldWidget(widget, lambda: bool(widget.checked), widget.setChecked)


def _number(bounds: Sequence[float], value: int, changed: Callable[[], None]) -> FieldWidget:
    widget = qt.QSpinBox()
    widget.minimum, widget.maximum = int(bounds[0]), int(bounds[1])
    widget.value = value
    widget.connect("valueChanged(int)", lambda _value: changed())

    def write(value: int) -> None:
        widget.value = min(max(value, widget.minimum), widget.maximum)  # Qt takes 32 bits

    return FieldWidget(widget, lambda: int(widget.value), write)


def _measure(
    bounds: Sequence[float] | None, value: float, changed: Callable[[], None]
) -> FieldWidget:
    """Make a number box with steps that are finer for smaller values (millimetres, millilitres and weights)."""
    widget = qt.QDoubleSpinBox()
    if bounds is None:
        widget.minimum, widget.maximum, widget.singleStep = *FRACTION, FRACTION[0]
    else:
        widget.decimals = 3
        widget.minimum, widget.maximum = bounds[0], bounds[1]
        widget.singleStep = _step(value)
    widget.value = value
    widget.connect("valueChanged(double)", lambda _value: changed())
    return FieldWidget(widget, lambda: float(widget.value), widget.setValue)


def _step(value: float) -> float:
    """Return a power of ten that is a small part of the value, or 0.1 if it is 0."""
    return float(10.0 ** math.floor(math.log10(abs(value) / 5))) if value else 0.1


def _text(several: bool, value: Any, changed: Callable[[], None]) -> FieldWidget:
    """Make a field for a text, or several separated by commas."""
    widget = qt.QLineEdit()

    def write(value: Any) -> None:
        widget.text = ", ".join(value) if several else value

    write(value)
    widget.connect("textChanged(QString)", lambda _value: changed())
    return FieldWidget(widget, lambda: _words(widget.text) if several else widget.text, write)


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def title_of(option: Field[Any]) -> str:
    """Return the name of an option on the screen; without a title, `move_mm` becomes Move (mm)."""
    if option.metadata.get("title"):
        return str(option.metadata["title"])
    words, _, unit = option.name.rpartition("_")
    title = words if unit in UNITS else option.name
    return title.replace("_", " ").capitalize() + (f" ({unit})" if unit in UNITS else "")


def words_of(option: Field[Any]) -> dict[str, str]:
    """Return the name of each choice of an option on the screen, by its value; the value itself by default."""
    words = option.metadata.get("words") or {}
    return {choice: words.get(choice, choice) for choice in option.metadata.get("choices") or ()}


def tip_of(option: Field[Any]) -> str:
    """Return what an option does as a sentence, with the technical names for scripts and the command line."""
    text = str(option.metadata["help"]).rstrip(".")
    named = [f"{title}: {choice}" for choice, title in words_of(option).items() if title != choice]
    names = f" ({'; '.join(named)})" if named else ""
    return f"{text[:1].upper()}{text[1:]}.{names} ({option.name})"

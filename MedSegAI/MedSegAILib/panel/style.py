"""Colours that are readable on light and dark windows, and helpers that several widgets share."""

from __future__ import annotations

from collections.abc import Sequence

import qt

from medsegai.system.outside_text import label_text
from MedSegAILib.slicer_types import QtValue, Widget


def is_dark(widget: Widget) -> bool:
    """Return whether the application has a dark style."""
    return bool(widget.palette.color(qt.QPalette.Window).lightness() < 128)


def error_color(widget: Widget) -> QtValue:
    """Return the colour of errors in the style of the application."""
    return qt.QColor("#ff8a80") if is_dark(widget) else qt.QColor("#b00020")


def error_style(widget: Widget) -> str:
    """Return the style sheet of an error."""
    return f"color: {error_color(widget).name()};"


def doubt_style(widget: Widget) -> str:
    """Return the style sheet of values that a person should look at."""
    return f"color: {doubt_color(widget).name()};"


PRESSED_STYLE = """
QPushButton:checked {
    background-color: palette(highlight); color: palette(highlighted-text);
    border: 1px solid palette(highlight); border-radius: 2px; padding: 4px;
}
"""
"""The style sheet of buttons that stay pressed, which are hard to distinguish in Slicer's dark style."""


def quiet_style(widget: Widget) -> str:
    """Return the style sheet of explanations, which are read rarely."""
    return "color: #a8a8a8;" if is_dark(widget) else "color: #5f5f5f;"


def doubt_color(widget: Widget) -> QtValue:
    """Return the colour of values that a person should look at."""
    return qt.QColor("#ffb74d") if is_dark(widget) else qt.QColor("#b45309")


def show_empty_boxes(view: Widget) -> None:
    """Make empty boxes visible in dark style, in which Qt draws their frames darker than the window.

    Args:
        view: a check box, or a list or tree whose items can be checked.
    """
    if is_dark(view):
        palette = view.palette
        palette.setColor(qt.QPalette.Window, qt.QColor("#a0a0a0"))
        view.setPalette(palette)


def check_box(text: str = "") -> Widget:
    """Return a check box that is visible in both styles."""
    box = qt.QCheckBox(text)
    show_empty_boxes(box)
    return box


def narrow(selector: Widget) -> None:
    """Make a selector as wide as its place, whatever names it contains."""
    selector.sizeAdjustPolicy = qt.QComboBox.AdjustToMinimumContentsLengthWithIcon


def text_item(text: str, tool_tip: str = "") -> QtValue:
    """Return a cell of a table that cannot be edited."""
    item = qt.QTableWidgetItem(text)
    item.setToolTip(label_text(tool_tip))
    return item


def number_item(value: float | None, tool_tip: str = "") -> QtValue:
    """Return a cell with a number, padded so that numbers sort correctly as texts."""
    item = text_item("" if value is None else f"{value:7.2f}", tool_tip)
    item.setTextAlignment(qt.Qt.AlignRight | qt.Qt.AlignVCenter)
    return item


MARK_WIDTH = 26
"""The width of a column that holds a single mark."""


def lay_out_table(table: Widget, stretched: int, marks: Sequence[int] = ()) -> None:
    """Make rows and columns as small as their content; the column `stretched` takes the rest.

    Args:
        marks: the columns of single marks, whose titles do not need space for the sort arrow.
    """
    rows, columns = table.verticalHeader(), table.horizontalHeader()
    rows.visible = False
    rows.setSectionResizeMode(qt.QHeaderView.ResizeToContents)
    columns.setSectionResizeMode(qt.QHeaderView.ResizeToContents)
    columns.setSectionResizeMode(stretched, qt.QHeaderView.Stretch)
    columns.minimumSectionSize = MARK_WIDTH
    for column in marks:
        columns.setSectionResizeMode(column, qt.QHeaderView.Fixed)
        columns.resizeSection(column, MARK_WIDTH)


def press(button: Widget, down: bool) -> None:
    """Press or release a button without emitting a signal."""
    button.blockSignals(True)
    button.checked = down
    button.blockSignals(False)

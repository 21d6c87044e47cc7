"""Colours that can be read on a light and on a dark window, and small things that several widgets share."""

from __future__ import annotations

from collections.abc import Sequence

import qt

from medsegai.system.outside_text import unformatted
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
    """Return the style sheet of what a person should look at."""
    return f"color: {doubt_color(widget).name()};"


PRESSED_STYLE = """
QPushButton:checked {
    background-color: palette(highlight); color: palette(highlighted-text);
    border: 1px solid palette(highlight); border-radius: 2px; padding: 4px;
}
"""
"""For buttons that stay pressed: in Slicer's dark style they can hardly be distinguished from others."""


def quiet_style(widget: Widget) -> str:
    """For what explains, and need not be read every day."""
    return "color: #a8a8a8;" if is_dark(widget) else "color: #5f5f5f;"


def doubt_color(widget: Widget) -> QtValue:
    """Return the colour of what a person should look at."""
    return qt.QColor("#ffb74d") if is_dark(widget) else qt.QColor("#b45309")


def show_empty_boxes(view: Widget) -> None:
    """Let empty boxes be seen in dark style, where Qt draws their frames darker than the window.

    Args:
        view: a check box, or a list or tree whose items can be checked.
    """
    if is_dark(view):
        palette = view.palette
        palette.setColor(qt.QPalette.Window, qt.QColor("#a0a0a0"))
        view.setPalette(palette)


def check_box(text: str = "") -> Widget:
    """A check box that can be seen in either style."""
    box = qt.QCheckBox(text)
    show_empty_boxes(box)
    return box


def narrow(selector: Widget) -> None:
    """Let a selector be as wide as its place, whatever the names in it."""
    selector.sizeAdjustPolicy = qt.QComboBox.AdjustToMinimumContentsLengthWithIcon


def text_item(text: str, tool_tip: str = "") -> QtValue:
    """Return a cell of a table that cannot be edited."""
    item = qt.QTableWidgetItem(text)
    item.setToolTip(unformatted(tool_tip))
    return item


def number_item(value: float | None, tool_tip: str = "") -> QtValue:
    """Padded to one length, numbers sort as texts in their order."""
    item = text_item("" if value is None else f"{value:7.2f}", tool_tip)
    item.setTextAlignment(qt.Qt.AlignRight | qt.Qt.AlignVCenter)
    return item


MARK_WIDTH = 26
"""The width of a column that holds a mark without words."""


def lay_out_table(table: Widget, stretched: int, marks: Sequence[int] = ()) -> None:
    """Rows and columns as small as their content; the column `stretched` takes the rest.

    Args:
        marks: columns of single signs, whose titles need no room for the arrow of the sorting.
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
    """Let a button be pressed or not, without emitting a signal."""
    button.blockSignals(True)
    button.checked = down
    button.blockSignals(False)

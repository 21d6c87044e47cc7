"""Names and messages from outside are shown letter by letter: no label and no tool tip of the panel is HTML."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
from PySide6 import QtCore, QtGui, QtWidgets

import pythonqt
from medsegai.system.outside_text import unformatted
from MedSegAILib.panel import Panel, dialogs
from MedSegAILib.panel.series_dialog import SeriesDialog
from MedSegAILib.panel.style import text_item
from MedSegAILib.panel_values import CaseRow, SegmentRow, SeriesRow
from panel_help import UI, card, new_panel

EVIL = '<img src="http://example.org/x.png"><b>bold</b>'
OTHERS = ("<b>x</b>", "  <i>", "&lt;b&gt;", "a<br/>b", "<!DOCTYPE html>")


@pytest.mark.parametrize("text", [EVIL, *OTHERS])
def test_qt_takes_it_for_html_and_then_no_more(text: str) -> None:
    assert QtGui.Qt.mightBeRichText(text)
    assert not QtGui.Qt.mightBeRichText(unformatted(text))


def texts(widget: QtWidgets.QWidget) -> Iterator[str]:
    """All that Qt could show as HTML in a widget and in the windows that belong to it."""
    for part in [widget, *widget.findChildren(QtWidgets.QWidget)]:
        yield part.toolTip()
        if isinstance(part, QtWidgets.QLabel) and part.textFormat() != QtCore.Qt.PlainText:
            yield part.text()
        if isinstance(part, QtWidgets.QAbstractItemView) and part.model() is not None:
            yield from item_tips(part.model(), QtCore.QModelIndex())


def item_tips(model: QtCore.QAbstractItemModel, parent: QtCore.QModelIndex) -> Iterator[str]:
    for row in range(model.rowCount(parent)):
        column = 0
        while (index := model.index(row, column, parent)).isValid():
            yield str(model.data(index, QtCore.Qt.ToolTipRole) or "")
            if column == 0:
                yield from item_tips(model, index)
            column += 1


def formatted(widget: Any) -> list[str]:
    return [text for text in shown(widget) if _rich(text)]


def _rich(text: str) -> bool:
    return QtGui.Qt.mightBeRichText(text)


def shown(widget: Any) -> list[str]:
    real = widget if isinstance(widget, QtWidgets.QWidget) else pythonqt.real(widget)
    return [text for text in texts(real) if "example.org" in text]


@pytest.fixture
def widget() -> Iterator[Any]:
    widget = pythonqt.load_ui(UI)
    pythonqt.real(widget).show()
    yield widget
    pythonqt.real(widget).close()


@pytest.fixture
def panel(widget: Any) -> Panel:
    return new_panel(widget)


def test_nothing_in_the_panel_is_html_from_outside(widget: Any, panel: Panel) -> None:
    evil = card("evil", "a", channels=(EVIL, f"{EVIL}2"), intended_use=EVIL, description=EVIL)
    panel.show_models([dataclasses.replace(evil, name=EVIL)])
    panel.show_plan(EVIL, True, EVIL)
    panel.show_message(EVIL)
    panel.show_error(EVIL)
    panel.batch.show_running(True)
    panel.batch.clear()
    panel.batch.show_message(EVIL)
    panel.batch.show_case(CaseRow(EVIL, "failed", message=EVIL, title=EVIL))
    panel.refine.show_message(EVIL)
    panel.refine.show_segments([SegmentRow("a", EVIL, (1, 2, 3))])
    panel.browser.open()
    panel.browser.show_status(EVIL)
    assert len(shown(widget)) >= 8
    assert formatted(widget) == []
    details = pythonqt.real(widget).findChild(QtWidgets.QTextBrowser, "modelDetails")
    assert details is None or "<img" not in details.toHtml()


TURNING = "head\u202egnp.exe\u2066 \x1b[31m"


def test_a_name_cannot_turn_the_words_around_it(widget: Any, panel: Panel) -> None:
    """Characters that change the direction of a text are shown as what they are."""
    panel.show_models([card("turning", "a", intended_use=TURNING)])
    panel.show_plan(TURNING, True, TURNING)
    panel.show_message(TURNING)
    panel.preview.show(TURNING)
    panel.refine.show_message(TURNING)
    real = pythonqt.real(widget)
    labels = [label.text() for label in real.findChildren(QtWidgets.QLabel)]
    tips = [part.toolTip() for part in real.findChildren(QtWidgets.QWidget)]
    found = [text for text in labels + tips if "gnp" in text]
    assert len(found) >= 5
    assert all("head\\u202egnp.exe\\u2066 \\x1b[31m" in text for text in found)


def test_a_name_cannot_turn_a_question(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def exec_(box: Any) -> int:
        asked.append(box.text())
        return 0

    monkeypatch.setattr(QtWidgets.QMessageBox, "exec", exec_)
    dialogs.decide(None, f"Replace {TURNING}?", "Yes", "No", True)
    assert asked == ["Replace head\\u202egnp.exe\\u2066 \\x1b[31m?"]


def test_nothing_in_the_list_of_series_is_html_from_outside() -> None:
    dialog = SeriesDialog(None, [SeriesRow(EVIL, EVIL, EVIL, EVIL)], ())
    window = dialog.dialog
    assert shown(window)
    assert formatted(window) == []


def test_items_of_tables_are_not_html() -> None:
    assert not _rich(text_item("a", EVIL).toolTip())

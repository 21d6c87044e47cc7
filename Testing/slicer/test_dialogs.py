"""What every dialog and every box of the panel keeps: Enter presses nothing by accident, and boxes can be seen."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from PySide6 import QtCore, QtGui, QtWidgets
from PySide6.QtTest import QTest

import pythonqt
from medsegai.models.card import load_card
from medsegai.models.catalogue import BUNDLED_MODELS
from MedSegAILib.install import Plan
from MedSegAILib.panel import dialogs
from MedSegAILib.panel.export_dialog import ExportDialog
from MedSegAILib.panel.install_dialog import InstallDialog
from MedSegAILib.panel.series_dialog import SeriesDialog
from MedSegAILib.panel_values import ExportChoice, SegmentRow, SeriesRow
from panel_help import UI, Heard, card, find, new_panel, palette

PLAN = Plan((Requirement("torch>=2.6"), Requirement("nibabel>=5.2")), Path("/slicer/lib"), True)


def install(_page: Any) -> Any:
    return InstallDialog(PLAN).dialog


def export(page: Any) -> Any:
    return ExportDialog(page, "Head", "", ExportChoice("/out")).dialog


def series(page: Any) -> Any:
    return SeriesDialog(page, [SeriesRow("Doe^Jane", "Brain", "T1", "1.2")], ()).dialog


def models(page: Any) -> Any:
    panel = new_panel(page)
    panel.show_models([card("brain", "axial"), card("liver", "fold_0")])
    return panel.browser.dialog


DIALOGS = (install, export, series, models)


@pytest.fixture
def page() -> Any:
    return pythonqt.load_ui(UI)


@pytest.mark.parametrize("made", DIALOGS, ids=lambda made: made.__name__)
def test_enter_presses_no_button_by_accident(
    page: Any, made: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    for name in ("open_folder", "open_file", "save_file"):
        monkeypatch.setattr(dialogs, name, lambda *_: asked.append("asked") or "")
    dialog = made(page)
    real = pythonqt.real(dialog)
    pressed = [Heard(button.clicked) for button in buttons(real) if not button.isDefault()]
    real.show()
    for kind in (QtWidgets.QLineEdit, QtWidgets.QCheckBox, QtWidgets.QComboBox):
        for child in real.findChildren(kind):
            child.setEnabled(True)
            child.setFocus()
            QTest.keyClick(child, QtCore.Qt.Key.Key_Return)
    assert asked == []
    assert sum(map(len, pressed)) == 0
    real.close()


def buttons(dialog: Any) -> list[Any]:
    return list(dialog.findChildren(QtWidgets.QPushButton))


# --- boxes -----------------------------------------------------------------------------------------


SEEN = 1.6
"""The contrast of Qt's own boxes in its light style."""


@pytest.fixture(params=["light", "dark"])
def style(request: pytest.FixtureRequest) -> Iterator[str]:
    application = QtWidgets.QApplication.instance()
    assert isinstance(application, QtWidgets.QApplication)
    before, name = application.palette(), application.style().objectName()
    application.setStyle("Fusion")
    application.setPalette(palette(request.param == "dark"))
    yield request.param
    application.setPalette(before)
    application.setStyle(name)


def luminance(color: QtGui.QColor) -> float:
    """Of WCAG 2."""
    parts = [
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4
        for part in (color.redF(), color.greenF(), color.blueF())
    ]
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]


def contrast(image: QtGui.QImage, ground: QtGui.QColor) -> float:
    """Of the pixel that stands out most."""
    own = luminance(ground)
    found = []
    for y in range(image.height()):
        for x in range(image.width()):
            other = luminance(image.pixelColor(x, y))
            found.append((max(own, other) + 0.05) / (min(own, other) + 0.05))
    return max(found)


def box_of(check: QtWidgets.QCheckBox, ground: QtGui.QColor) -> QtGui.QImage:
    """The picture of an empty box as the style draws it, without its words, wherever it is laid out."""
    option = QtWidgets.QStyleOptionButton()
    option.initFrom(check)
    option.state = QtWidgets.QStyle.StateFlag.State_Enabled | QtWidgets.QStyle.StateFlag.State_Off
    option.rect = QtCore.QRect(2, 2, 14, 14)
    image = QtGui.QImage(18, 18, QtGui.QImage.Format.Format_ARGB32_Premultiplied)
    image.fill(ground)
    painter = QtGui.QPainter(image)
    box = QtWidgets.QStyle.PrimitiveElement.PE_IndicatorCheckBox
    check.style().drawPrimitive(box, option, painter, check)
    painter.end()
    return image


@pytest.mark.usefixtures("style")
def test_every_empty_box_can_be_seen() -> None:
    page = pythonqt.load_ui(UI)
    panel = new_panel(page)
    panel.show_models([load_card(BUNDLED_MODELS / "brain"), card("abdomen", "fold_0", "fold_1")])
    roots = [pythonqt.real(page), *(pythonqt.real(made(page)) for made in (install, export))]
    found = 0
    for root in roots:
        for check in root.findChildren(QtWidgets.QCheckBox):
            ground = root.palette().color(QtGui.QPalette.ColorRole.Window)
            assert contrast(box_of(check, ground), ground) > SEEN, (
                check.objectName() or check.text()
            )
            found += 1
    assert found > 10


@pytest.mark.usefixtures("style")
def test_every_empty_box_of_a_list_can_be_seen() -> None:
    page = pythonqt.load_ui(UI)
    panel = new_panel(page)
    panel.refine.show_segments([SegmentRow("a", "", (9, 9, 9)), SegmentRow("b", "", (9, 9, 9))])
    tree = find(series(page), "seriesTree")
    for view in (find(page, "refineSegments"), tree):
        view.resize(120, 60)
        view.clearSelection()
        ground = view.palette().color(QtGui.QPalette.ColorRole.Base)
        pixels = view.viewport().grab(QtCore.QRect(0, 0, 60, 18)).toImage()
        assert contrast(pixels, ground) > SEEN, view.objectName()

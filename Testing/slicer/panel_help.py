"""What the tests of the panel share: the real panel, made-up cards, and a user's hands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PySide6 import QtCore, QtGui, QtWidgets
from PySide6.QtTest import QTest
from slicer.util import updateVolumeFromArray

import pythonqt
from medsegai.labels import Label
from medsegai.models.card import Channel, MemberCard, ModelCard
from MedSegAILib.panel import Panel

REPOSITORY = Path(__file__).resolve().parents[2]
UI = REPOSITORY / "MedSegAI" / "Resources" / "UI" / "MedSegAI.ui"
LEFT = Label(3, "Left hippocampus", (220, 216, 20))
STEM = Label(16, "Brain-Stem", (119, 159, 176))


def card(name: str, *members: str, channels: tuple[str, ...] = ("MR",), **more: Any) -> ModelCard:
    """A card of two labels; a channel whose name ends with "?" may be left out."""
    values: dict[str, Any] = {
        "id": name,
        "name": name.capitalize(),
        "family": "quicknat",
        "version": "1.0",
        "channels": tuple(
            Channel(channel.rstrip("?"), "MR", not channel.endswith("?")) for channel in channels
        ),
        "labels": (LEFT, STEM),
        "members": tuple(MemberCard(member) for member in members),
        "spacing_mm": (1, 1, 1),
        "intended_use": "Research only",
        "licence": "Apache-2.0",
        "folder": Path("/models") / name,
    }
    return ModelCard(**(values | more))


def new_panel(widget: Any) -> Panel:
    return Panel(pythonqt.child_widget_variables(widget), pythonqt.new_node_selector)


def find(widget: Any, name: str, kind: type = QtWidgets.QWidget) -> Any:
    """The PySide6 widget of this name, in a page or in a window that belongs to it."""
    found = pythonqt.real(widget).findChild(kind, name)
    assert found is not None, name
    return found


def click(widget: Any, name: str) -> None:
    QTest.mouseClick(find(widget, name), QtCore.Qt.MouseButton.LeftButton)


def add_volume(mrml: Any, name: str) -> Any:
    node = mrml.AddNewNodeByClass("vtkMRMLScalarVolumeNode", name)
    updateVolumeFromArray(node, np.zeros((3, 4, 5)))
    return node


def palette(dark: bool) -> QtGui.QPalette:
    """Fusion's colours, as Slicer has them in its two styles."""
    made = QtGui.QPalette()
    role = QtGui.QPalette.ColorRole
    colors = (
        {
            role.Window: "#353535",
            role.WindowText: "#ffffff",
            role.Base: "#2a2a2a",
            role.AlternateBase: "#313131",
            role.Text: "#ffffff",
            role.Button: "#353535",
            role.ButtonText: "#ffffff",
            role.Highlight: "#2a82da",
            role.HighlightedText: "#000000",
            role.PlaceholderText: "#909090",
            role.ToolTipBase: "#353535",
            role.ToolTipText: "#ffffff",
        }
        if dark
        else {role.Window: "#efefef", role.Button: "#efefef", role.Base: "#ffffff"}
    )
    for which, color in colors.items():
        made.setColor(which, QtGui.QColor(color))
    for which in (role.WindowText, role.Text, role.ButtonText):
        gray = QtGui.QColor("#7f7f7f" if dark else "#a0a0a0")
        made.setColor(QtGui.QPalette.ColorGroup.Disabled, which, gray)
    return made


class Heard:
    """Keeps what a signal says."""

    def __init__(self, signal: Any) -> None:
        self.values: list[tuple[Any, ...]] = []
        signal.connect(self._hear)

    def _hear(self, *values: Any) -> None:
        self.values.append(values)

    def __len__(self) -> int:
        return len(self.values)

"""Labels of several lines that neither widen the page nor cover the widgets below them.

Slicer uses the width of a page's size hint as the smallest width of its column, so a label whose hint grows with
its text would widen the whole window. It uses the minimum size hint as the smallest height, which ignores
wrapping, so a label that needs more lines would take them from its neighbours.
"""

from __future__ import annotations

from collections.abc import Iterable

import qt

from medsegai.system.outside_text import visible
from MedSegAILib.slicer_types import QtValue, Widget


class WrappedLabels(qt.QWidget):
    """Keeps wrapped labels as wide as the page, and as high as their text requires."""

    def watch(self, labels: Iterable[Widget]) -> None:
        for label in labels:
            label.wordWrap = True
            policy = qt.QSizePolicy(qt.QSizePolicy.Ignored, qt.QSizePolicy.Preferred)
            policy.setHeightForWidth(True)
            label.setSizePolicy(policy)
            label.installEventFilter(self)

    def eventFilter(self, label: Widget, event: QtValue) -> bool:
        """Called by Qt for each event of a label; False lets it go on."""
        if event.type() in (qt.QEvent.Resize, qt.QEvent.FontChange, qt.QEvent.Show):
            fit(label)
        return False


def say(label: Widget, text: str, style: str = "") -> None:
    """Show a text in a wrapped label; without text the label does not take any space."""
    label.styleSheet = style
    label.textFormat = qt.Qt.PlainText  # names in it come from outside
    label.text = visible(text)
    fit(label)
    label.visible = bool(text)


def fit(label: Widget) -> None:
    """Give a wrapped label the height that its text needs at its width."""
    label.minimumHeight = 0  # a label never reports that it needs less
    label.minimumHeight = max(label.heightForWidth(label.width), 0)

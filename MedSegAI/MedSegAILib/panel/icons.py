"""Small pictures that are drawn in the colours of the window's style."""

from __future__ import annotations

import qt

from MedSegAILib.slicer_types import QtValue, Widget

SIZE = 16


def eye(widget: Widget, is_open: bool) -> QtValue:
    """Draw an eye in the colour of the widget's text; a closed eye is faint and crossed out."""
    picture = qt.QPixmap(SIZE, SIZE)
    picture.fill(qt.QColor(0, 0, 0, 0))
    color = widget.palette.color(qt.QPalette.Text)
    painter = qt.QPainter(picture)
    painter.setRenderHint(qt.QPainter.Antialiasing)
    if not is_open:
        painter.setOpacity(0.45)
    painter.setPen(color)
    painter.drawEllipse(1, 4, 13, 8)
    if is_open:
        painter.setBrush(color)
        painter.drawEllipse(5, 5, 5, 5)
    else:
        painter.drawLine(2, 13, 13, 2)
    painter.end()
    return qt.QIcon(picture)

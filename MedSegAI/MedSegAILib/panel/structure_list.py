"""A list of structures with a check box for each."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import qt

from medsegai.system.outside_text import label_text
from MedSegAILib.panel.style import show_empty_boxes
from MedSegAILib.slicer_types import QtValue, Widget
from MedSegAILib.translation import tr as _

ROWS_SHOWN = 6


@dataclass(frozen=True)
class Structure:
    """One row: `key` identifies it for the program; a `locked` row cannot be ticked."""

    key: Hashable
    name: str
    color: tuple[int, int, int]
    locked: bool = False


class StructureList:
    """Attributes: `widget`, a QListWidget, empty until `show`.

    Args:
        changed: the function that is called after each change by the user.
    """

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._rows: list[tuple[QtValue, Structure]] = []
        self.widget = qt.QListWidget()
        show_empty_boxes(self.widget)
        self.widget.horizontalScrollBarPolicy = qt.Qt.ScrollBarAlwaysOff  # long names are elided
        height = self.widget.fontMetrics().height()
        self.widget.setMaximumHeight(ROWS_SHOWN * (height + 6))
        self.widget.connect("itemChanged(QListWidgetItem*)", self._on_changed)

    def show(self, structures: Sequence[Structure], ticked: Iterable[Hashable] = ()) -> None:
        """Show these structures, some of them ticked."""
        wanted = set(ticked)
        self.widget.blockSignals(True)
        self.widget.clear()
        self._rows = []
        for structure in structures:
            item = _item(structure, structure.key in wanted and not structure.locked)
            self.widget.addItem(item)
            self._rows.append((item, structure))
        self.widget.blockSignals(False)

    def tick(self, keys: Iterable[Hashable]) -> None:
        """Tick the structures with these keys, and no others."""
        wanted = set(keys)
        self.widget.blockSignals(True)
        for item, structure in self._rows:
            is_ticked = structure.key in wanted and not structure.locked
            item.setCheckState(qt.Qt.Checked if is_ticked else qt.Qt.Unchecked)
        self.widget.blockSignals(False)

    def ticked(self) -> tuple[Any, ...]:
        """Return the keys of the ticked structures, in the order of the list."""
        return tuple(
            structure.key
            for item, structure in self._rows
            if item.checkState() == qt.Qt.Checked and not structure.locked
        )

    def _on_changed(self, _item: QtValue) -> None:
        self._changed()


def _item(structure: Structure, ticked: bool) -> Widget:
    item = qt.QListWidgetItem(structure.name)
    item.setData(qt.Qt.DecorationRole, qt.QColor(*structure.color))
    usable = qt.Qt.ItemIsUserCheckable | qt.Qt.ItemIsEnabled
    item.setFlags(qt.Qt.ItemIsUserCheckable if structure.locked else usable)
    item.setCheckState(qt.Qt.Checked if ticked else qt.Qt.Unchecked)
    locked = _("Its review is completed.")
    item.setToolTip(locked if structure.locked else label_text(structure.name))
    return item

"""The table of structures with visibility, name, volume, quality and review state, for one row or several."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import qt

from medsegai.models.quality import CHECK, POOR
from MedSegAILib.panel.icons import eye
from MedSegAILib.panel.style import (
    doubt_color,
    error_color,
    lay_out_table,
    number_item,
    text_item,
)
from MedSegAILib.panel_values import DONE, NOT_STARTED, QUALITIES, REVIEW_STATES, StructureRow
from MedSegAILib.signals import Signal
from MedSegAILib.slicer_types import QtValue, Widget
from MedSegAILib.translation import tr as _

EYE, NAME, VOLUME, QUALITY, REVIEW = range(5)
TITLES = ("", _("Structure"), _("ml"), _("Quality"), "✓")
HELP = (
    _("Shown in the views or hidden. Click to change."),
    _(
        "Click, or use the arrow keys, to go there. The menu of the right button changes all selected rows."
    ),
    _("Volume in millilitres"),
    _("How good the result is expected to be: good, check or poor. Point at a row for the reason."),
    _(
        "State of the review. Click to complete a structure; the AI does not change completed structures."
    ),
)
REVIEW_MARKS = {"": "", "notstarted": "·", "inprogress": "…", "completed": "✓", "flagged": "⚑"}
DOUBT_MARK = "⚠"

ALL, TO_CHECK, OPEN, COMPLETED, HIDDEN = range(5)
STATES = (_("All"), _("To check"), _("Not completed"), _("Completed"), _("Hidden"))
"""The filters of the table."""

BY_STATE: dict[int, Callable[[StructureRow], bool]] = {
    ALL: lambda row: True,
    TO_CHECK: lambda row: row.to_check,
    OPEN: lambda row: row.review != DONE,
    COMPLETED: lambda row: row.review == DONE,
    HIDDEN: lambda row: not row.shown,
}


NARROW = 320
"""The width in pixels below which the table only shows names; volumes are then in the tool tips."""


class NarrowTable(qt.QWidget):
    """Hides the column of volumes while the table is too narrow for it."""

    def watch(self, table: Widget) -> None:
        table.installEventFilter(self)

    def eventFilter(self, table: Widget, event: QtValue) -> bool:
        """Called by Qt for each event of the table; False lets it go on."""
        if event.type() == qt.QEvent.Resize:
            table.setColumnHidden(VOLUME, table.width < NARROW)
        return False


class StructureTable:
    """Shows rows, and reports the user's actions on them.

    Args:
        table: the QTableWidget.

    Attributes:
        structure_chosen: the id of the segment to go to.
        review_chosen: ids of segments, and their new state.
        shown_chosen: ids of segments, and whether to show them.
        only_chosen: ids of segments; all others are to be hidden.
        in_3d_chosen: ids of segments, and whether to show their surfaces in 3D views.
    """

    def __init__(self, table: Widget) -> None:
        self._table = table
        self._rows: dict[str, StructureRow] = {}
        self._filter: tuple[str, int] = ("", ALL)
        self._menu: Widget = None
        self._narrow_table = NarrowTable()
        self._narrow_table.watch(table)
        self.structure_chosen, self.review_chosen = Signal(), Signal()
        self.shown_chosen, self.only_chosen = Signal(), Signal()
        self.in_3d_chosen = Signal()
        table.setSelectionMode(qt.QAbstractItemView.ExtendedSelection)
        table.contextMenuPolicy = qt.Qt.CustomContextMenu
        table.connect("customContextMenuRequested(QPoint)", self._offer_menu)
        table.connect("cellClicked(int,int)", self._on_clicked)
        table.connect("cellActivated(int,int)", self._on_activated)
        table.connect("currentCellChanged(int,int,int,int)", self._on_current)

    def show(self, rows: Sequence[StructureRow]) -> None:
        """Show these rows in this order, until a click on a title; selection and filter stay."""
        selected, table = self.selected(), self._table
        self._rows = {row.segment_id: row for row in rows}
        table.blockSignals(True)
        table.sortingEnabled = False
        _clear(table, len(rows))
        for number, row in enumerate(rows):
            self._fill(number, row)
        table.setColumnHidden(QUALITY, not any(row.quality for row in rows))
        table.setColumnHidden(REVIEW, not any(row.review for row in rows))
        lay_out_table(table, NAME, marks=(EYE, REVIEW))
        table.setColumnHidden(VOLUME, table.width < NARROW)
        table.horizontalHeader().setSortIndicator(-1, qt.Qt.AscendingOrder)
        table.sortingEnabled = True
        self._narrow()
        self._select(selected)
        table.blockSignals(False)

    def update(self, rows: Sequence[StructureRow]) -> None:
        """Show changes of existing rows in their places."""
        self._table.blockSignals(True)
        self._table.sortingEnabled = False
        places = {self.segment_at(number): number for number in range(self._table.rowCount)}
        for row in rows:
            if row.segment_id in places:
                self._rows[row.segment_id] = row
                self._fill(places[row.segment_id], row)
        self._narrow()
        self._table.sortingEnabled = True
        self._table.blockSignals(False)

    def narrow(self, text: str, state: int) -> None:
        """Show the rows whose name contains these words and whose state has this number in `STATES`."""
        self._filter = (text, state)
        self._narrow()

    def select(self, segment_id: str) -> None:
        """Select only a segment's row, without emitting a signal."""
        self._table.blockSignals(True)
        self._select((segment_id,))
        self._table.blockSignals(False)

    def selected(self) -> tuple[str, ...]:
        """Return the ids of the selected rows, from top to bottom, without hidden rows."""
        numbers = {index.row() for index in self._table.selectionModel().selectedRows()}
        shown = [number for number in sorted(numbers) if not self._table.isRowHidden(number)]
        return tuple(map(self.segment_at, shown))

    def next_to_check(self) -> str:
        """Return the first row to check below the selected one, or from the top; "" if there is none."""
        order = [self.segment_at(number) for number in range(self._table.rowCount)]
        selected = self.selected()
        start = order.index(selected[-1]) + 1 if selected else 0
        turned = order[start:] + order[:start]
        return next((name for name in turned if self._rows[name].to_check), "")

    def segment_at(self, number: int) -> str:
        """Return the segment in this row."""
        return str(self._table.item(number, NAME).data(qt.Qt.UserRole))

    def _fill(self, number: int, row: StructureRow) -> None:
        table = self._table
        shown = text_item("", _("Shown in the views") if row.shown else _("Hidden"))
        shown.setIcon(eye(table, row.shown))
        table.setItem(number, EYE, shown)
        table.setItem(number, NAME, _name_item(row))
        table.setItem(number, VOLUME, number_item(row.volume_ml))
        table.setItem(number, QUALITY, self._quality_item(row))
        review = text_item(REVIEW_MARKS.get(row.review, ""), REVIEW_STATES.get(row.review, ""))
        review.setTextAlignment(qt.Qt.AlignCenter)
        table.setItem(number, REVIEW, review)

    def _quality_item(self, row: StructureRow) -> QtValue:
        item = text_item(QUALITIES.get(row.quality, ""), row.reasons)
        colors = {POOR: error_color, CHECK: doubt_color}
        if row.quality in colors:
            item.setText(f"{DOUBT_MARK} {item.text()}")
            item.setForeground(qt.QBrush(colors[row.quality](self._table)))
        return item

    def _narrow(self) -> None:
        text, state = self._filter
        words = text.lower().split()
        for number in range(self._table.rowCount):
            row = self._rows[self.segment_at(number)]
            fits = all(word in row.name.lower() for word in words) and BY_STATE[state](row)
            self._table.setRowHidden(number, not fits)

    def _select(self, names: Sequence[str]) -> None:
        table = self._table
        table.clearSelection()
        numbers = [n for n in range(table.rowCount) if self.segment_at(n) in names]
        if len(numbers) == 1:
            table.selectRow(numbers[0])
            table.scrollToItem(table.item(numbers[0], NAME))
        else:
            columns = len(TITLES) - 1
            for number in numbers:
                around = qt.QTableWidgetSelectionRange(number, 0, number, columns)
                table.setRangeSelected(around, True)

    def _on_clicked(self, number: int, column: int) -> None:
        name = self.segment_at(number)
        row = self._rows[name]
        if column == EYE:
            self.shown_chosen.emit((name,), not row.shown)
        elif column == REVIEW and row.review:
            self.review_chosen.emit((name,), NOT_STARTED if row.review == DONE else DONE)
        elif len(self.selected()) == 1:
            self.structure_chosen.emit(name)

    def _on_activated(self, number: int, _column: int) -> None:
        self.structure_chosen.emit(self.segment_at(number))

    def _on_current(self, number: int, _column: int, before: int, _before: int) -> None:
        """Go to a structure for the arrow keys, because the table itself reports clicks."""
        if number >= 0 and number != before and not _pressed():
            self.structure_chosen.emit(self.segment_at(number))

    def _offer_menu(self, position: QtValue) -> None:
        names = self.selected()
        if not names:
            return
        self._menu = menu = qt.QMenu(self._table)
        menu.objectName = "structureMenu"
        every = tuple(self._rows)
        only = _("Show only this") if len(names) == 1 else _("Show only these")
        self._add(only, lambda: self.only_chosen.emit(names))
        self._add(_("Show"), lambda: self.shown_chosen.emit(names, True))
        self._add(_("Hide"), lambda: self.shown_chosen.emit(names, False))
        self._add(_("Show all"), lambda: self.shown_chosen.emit(every, True))
        menu.addSeparator()
        self._add(_("Show in 3D"), lambda: self.in_3d_chosen.emit(names, True))
        self._add(_("Hide in 3D"), lambda: self.in_3d_chosen.emit(names, False))
        menu.addSeparator()
        for state, title in REVIEW_STATES.items():
            self._add(f"{REVIEW_MARKS[state]}  {title}", self._reviewing(names, state))
        menu.popup(self._table.viewport().mapToGlobal(position))

    def _reviewing(self, names: tuple[str, ...], state: str) -> Callable[[], None]:
        return lambda: self.review_chosen.emit(names, state)

    def _add(self, title: str, act: Callable[[], None]) -> None:
        self._menu.addAction(title).connect("triggered()", act)


def _name_item(row: StructureRow) -> QtValue:
    item = text_item(
        row.name,
        _("{name}, {volume:.2f} ml. Click to go there.").format(
            name=row.name, volume=row.volume_ml
        ),
    )
    item.setData(qt.Qt.DecorationRole, qt.QColor(*row.color))
    item.setData(qt.Qt.UserRole, row.segment_id)
    return item


def _pressed() -> bool:
    """Whether a mouse button is pressed."""
    return bool(qt.QApplication.mouseButtons() != qt.Qt.NoButton)


def _clear(table: Widget, rows: int) -> None:
    """Leave titles and a number of empty rows."""
    table.clear()
    table.setRowCount(rows)
    table.setColumnCount(len(TITLES))
    table.setHorizontalHeaderLabels(list(TITLES))
    for column, words in enumerate(HELP):
        table.horizontalHeaderItem(column).setToolTip(words)

"""The table of structures after a run, and what can be done with them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import qt

from MedSegAILib.panel import handover_dialog
from MedSegAILib.panel.style import doubt_color, lay_out_table, number_item, text_item
from MedSegAILib.signals import Signal
from MedSegAILib.translation import tr as _
from MedSegAILib.view import REVIEW_STATES, HandOverChoice, StructureRow

AGREEMENT_HELP = (
    "How far the networks agree on a structure: what all of them found, over what any of them found. "
    "1 is certain; ⚠ marks what to look at first."
)
REVIEW_TITLE = "✓"
REVIEW_HELP = "Review: how far you are with it. Click to change; completed segments are locked."
REVIEW_MARKS = {"": "", "notstarted": "·", "inprogress": "…", "completed": "✓", "flagged": "⚑"}
DOUBT_MARK = "⚠"
DOUBT_HELP = "⚠ marks what to look at first. Point at it for the reason."


class ResultsView:
    """Shows the structures of one segmentation.

    Attributes:
        segmentation_chosen: another segmentation node (or None) is to be shown.
        structure_chosen: the id of the segment that was clicked.
        review_chosen: the id of a segment, and the state that was chosen for it.
        next_requested: go to the next doubtful place.
        places_within: walk the doubtful places of this segment alone, "" for those of all.
        uncertainty_shown, surfaces_shown: True or False.
        statistics_requested, csv_requested, handover_requested, correct_requested, slab_requested,
            keep_requested: a button was pressed.
    """

    def __init__(self, ui: Any) -> None:
        self._ui = ui
        self._table = ui.resultTable
        self._review_column = -1
        self._menu: Any = None
        self.segmentation_chosen = Signal()
        self.structure_chosen, self.review_chosen = Signal(), Signal()
        self.next_requested, self.uncertainty_shown = Signal(), Signal()
        self.places_within = Signal()
        self.surfaces_shown, self.statistics_requested = Signal(), Signal()
        self.csv_requested, self.correct_requested = Signal(), Signal()
        self.handover_requested = Signal()
        self._hand_over = HandOverChoice()
        self.slab_requested, self.keep_requested = Signal(), Signal()
        ui.resultSelector.connect("currentNodeChanged(vtkMRMLNode*)", self.segmentation_chosen.emit)
        self._table.connect("cellClicked(int,int)", self._on_cell)
        self._table.connect("cellActivated(int,int)", self._on_cell)
        ui.nextButton.connect("clicked()", self.next_requested.emit)
        ui.placesSelector.connect("activated(int)", self._on_places)
        ui.uncertaintyButton.connect("toggled(bool)", self.uncertainty_shown.emit)
        ui.show3dButton.connect("toggled(bool)", self.surfaces_shown.emit)
        ui.statisticsButton.connect("clicked()", self.statistics_requested.emit)
        ui.csvButton.connect("clicked()", self.csv_requested.emit)
        ui.handOverButton.connect("clicked()", self.handover_requested.emit)
        ui.correctButton.connect("clicked()", self.correct_requested.emit)
        ui.slabButton.connect("clicked()", self.slab_requested.emit)
        ui.keepButton.connect("clicked()", self.keep_requested.emit)
        self.show((), False)

    def choose(self, node: Any) -> None:
        """Choose this segmentation, as a user would, and unfold the section."""
        self._ui.resultSelector.setCurrentNode(node)
        self._ui.resultsButton.collapsed = False

    def show(self, rows: Sequence[StructureRow], uncertain: bool) -> None:
        """Fill the table in the order of the segmentation; no row at all hides it.

        Args:
            uncertain: whether there is a map of uncertainty to show and to walk through.
        """
        self._ui.resultTable.visible = self._ui.resultActions.visible = bool(rows)
        for widget in (self._ui.nextButton, self._ui.placesSelector, self._ui.uncertaintyButton):
            widget.enabled = uncertain
        for button in (self._ui.uncertaintyButton, self._ui.show3dButton):
            button.blockSignals(True)
            button.checked = False
            button.blockSignals(False)
        self._fill(rows)
        self._offer_places(rows)

    def show_overlay(self, shown: bool) -> None:
        """Show whether the map of uncertainty lies over the image, without a word to anybody."""
        button = self._ui.uncertaintyButton
        button.blockSignals(True)
        button.checked = shown
        button.blockSignals(False)

    def show_places_within(self, segment_id: str) -> None:
        """Show which segment's doubtful places are walked; "" is all of them."""
        selector = self._ui.placesSelector
        selector.setCurrentIndex(max(selector.findData(segment_id), 0))

    def ask_hand_over(self, name: str, reason: str) -> HandOverChoice | None:
        """Let the user choose what is written where; None where that was given up.

        Args:
            name: of the segmentation.
            reason: why no DICOM can be written; "" where it can.
        """
        choice = handover_dialog.ask(self._table, name, reason, self._hand_over)
        self._hand_over = choice or self._hand_over
        return choice

    def show_review(self, segment_id: str, state: str) -> None:
        """Show another state of a segment."""
        for row in range(self._table.rowCount):
            if self._segment(row) == segment_id:
                self._set_review(self._table.item(row, self._review_column), state)

    def select(self, segment_id: str) -> None:
        """Select a segment's row, without a word to anybody."""
        for row in range(self._table.rowCount):
            if self._segment(row) == segment_id:
                self._table.selectRow(row)

    def _fill(self, rows: Sequence[StructureRow]) -> None:
        measured = any(row.agreement is not None for row in rows)
        marked = measured or any(row.doubtful for row in rows)
        reviewed = any(row.review for row in rows)
        titles = [_("Structure"), _("ml")]
        titles += [_("Sure") if measured else DOUBT_MARK] if marked else []
        titles += [REVIEW_TITLE] if reviewed else []
        self._review_column = len(titles) - 1 if reviewed else -1
        table = self._table
        table.sortingEnabled = False
        table.clear()
        table.setRowCount(len(rows))
        table.setColumnCount(len(titles))
        table.setHorizontalHeaderLabels(titles)
        for number, row in enumerate(rows):
            table.setItem(number, 0, self._name_item(row))
            table.setItem(number, 1, number_item(row.volume_ml))
            if marked:
                table.setItem(number, 2, self._agreement_item(row))
            if reviewed:
                item = text_item("")
                item.setTextAlignment(qt.Qt.AlignCenter)
                self._set_review(item, row.review)
                table.setItem(number, self._review_column, item)
        table.horizontalHeaderItem(1).setToolTip(_("Volume in millilitres"))
        if marked:
            table.horizontalHeaderItem(2).setToolTip(_(AGREEMENT_HELP if measured else DOUBT_HELP))
        if reviewed:
            table.horizontalHeaderItem(self._review_column).setToolTip(_(REVIEW_HELP))
        lay_out_table(table, 0)
        table.horizontalHeader().setSortIndicator(-1, qt.Qt.AscendingOrder)
        table.sortingEnabled = True  # the model's order, until a click on a title

    def _offer_places(self, rows: Sequence[StructureRow]) -> None:
        selector = self._ui.placesSelector
        selector.clear()
        selector.addItem(_("in all structures"), "")
        for row in rows:
            selector.addItem(_("in {name}").format(name=row.name), row.segment_id)

    def _on_places(self, index: int) -> None:
        self.places_within.emit(str(self._ui.placesSelector.itemData(index)))

    def _name_item(self, row: StructureRow) -> Any:
        item = text_item(row.name, _("{name}. Click to go there.").format(name=row.name))
        item.setData(qt.Qt.DecorationRole, qt.QColor(*row.color))
        item.setData(qt.Qt.UserRole, row.segment_id)
        return item

    def _agreement_item(self, row: StructureRow) -> Any:
        item = number_item(row.agreement, row.measures)
        if row.doubtful:
            known = "" if row.agreement is None else f" {row.agreement:.2f}"
            item.setText(DOUBT_MARK + known)
            item.setForeground(qt.QBrush(doubt_color(self._table)))
        return item

    def _set_review(self, item: Any, state: str) -> None:
        item.setText(REVIEW_MARKS.get(state, state))
        item.setToolTip(_(REVIEW_STATES.get(state, state)))

    def _segment(self, row: int) -> str:
        return str(self._table.item(row, 0).data(qt.Qt.UserRole))

    def _on_cell(self, row: int, column: int) -> None:
        segment_id = self._segment(row)
        if column == self._review_column and self._table.item(row, column).text():
            self._offer_review(segment_id)
        else:
            self.structure_chosen.emit(segment_id)

    def _offer_review(self, segment_id: str) -> None:
        self._menu = qt.QMenu(self._table)
        self._menu.objectName = "reviewMenu"
        for state, title in REVIEW_STATES.items():
            action = self._menu.addAction(f"{REVIEW_MARKS[state]}  {_(title)}")
            action.connect(
                "triggered()", lambda chosen=state: self.review_chosen.emit(segment_id, chosen)
            )
        self._menu.popup(qt.QCursor.pos())

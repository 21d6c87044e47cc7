"""The result of a scan: one line, the table of structures, and the actions on them."""

from __future__ import annotations

from collections.abc import Sequence

import qt

from MedSegAILib.panel import export_dialog
from MedSegAILib.panel.overlay_bar import OverlayBar
from MedSegAILib.panel.structure_table import STATES, StructureTable
from MedSegAILib.panel.style import PRESSED_STYLE, doubt_style, error_style, press
from MedSegAILib.panel.wrapping import say
from MedSegAILib.panel_values import DOUBT, PROBLEM, ExportChoice, StructureRow, Verdict
from MedSegAILib.signals import Signal
from MedSegAILib.slicer_types import Node, QtValue, Widget
from MedSegAILib.translation import tr as _

TONES = {DOUBT: doubt_style, PROBLEM: error_style}
SMOOTHING = (
    (_("Surfaces as they are"), 0.0),
    (_("Smooth surfaces"), 0.5),
    (_("Very smooth surfaces"), 0.8),
)
"""The entries of the menu of Show 3D, with Slicer's smoothing factor; 0.5 is Slicer's default."""

FOLDED, UNFOLDED = "▸", "▾"


class ResultsView:
    """Shows the structures of one segmentation.

    Attributes:
        segmentation_chosen: another segmentation node (or None) was chosen. structure_chosen, review_chosen,
            shown_chosen, only_chosen, in_3d_chosen: see `StructureTable`.
        smoothing_chosen: the smoothing of surfaces, from 0 to 1.
        good_completed: complete all structures of good quality.
        done_requested: the ids of the selected segments, which were reviewed and are correct.
        next_requested: go to the next uncertain region.
        places_within: only walk the uncertain regions of this segment; "" for all segments.
        overlay_chosen, opacity_chosen: see `OverlayBar`.
        surfaces_shown, statistics_shown: True or False.
        csv_requested, export_requested, correct_requested, slab_requested, keep_requested: a button was
            pressed.
    """

    def __init__(self, ui: Widget) -> None:
        self._ui = ui
        self._table = StructureTable(ui.resultTable)
        self.segmentation_chosen = Signal()
        self.structure_chosen = self._table.structure_chosen
        self.review_chosen = self._table.review_chosen
        self.shown_chosen, self.only_chosen = self._table.shown_chosen, self._table.only_chosen
        self.in_3d_chosen, self.smoothing_chosen = self._table.in_3d_chosen, Signal()
        self._menu: Widget = None
        self.good_completed, self.done_requested = Signal(), Signal()
        self.next_requested, self.places_within = Signal(), Signal()
        self._overlay = OverlayBar(ui)
        self.overlay_chosen = self._overlay.kind_chosen
        self.opacity_chosen = self._overlay.opacity_chosen
        self.surfaces_shown, self.statistics_shown = Signal(), Signal()
        self.csv_requested, self.correct_requested = Signal(), Signal()
        self.export_requested = Signal()
        self._export = ExportChoice()
        self.slab_requested, self.keep_requested = Signal(), Signal()
        for state in STATES:
            ui.resultStateSelector.addItem(state)
        self._connect()
        self.show((), ())
        self.show_verdict(Verdict())

    def choose(self, node: Node) -> None:
        """Choose this segmentation, as a user would, and unfold the section."""
        self._ui.resultSelector.setCurrentNode(node)
        self._ui.resultsButton.collapsed = False

    def fold(self) -> None:
        """Fold the section, because there is nothing to show."""
        self._ui.resultsButton.collapsed = True

    def show(self, rows: Sequence[StructureRow], maps: Sequence[str]) -> None:
        """Fill the table in the order of the segmentation; without rows it is hidden.

        Args:
            rows: one for each segment.
            maps: the kinds of maps that can be shown over the image; the regions of the first are walked.
        """
        ui = self._ui
        for widget in (ui.resultTable, ui.resultActions, ui.resultFilters):
            widget.visible = bool(rows)
        self._overlay.offer(maps)
        ui.completeGoodButton.enabled = any(row.quality for row in rows)
        press(ui.show3dButton, False)
        self._table.show(rows)
        self._offer_places(rows)

    def show_overlay(self, kind: str, opacity: float) -> None:
        """See `OverlayBar.show`."""
        self._overlay.show(kind, opacity)

    def show_surfaces(self, shown: bool) -> None:
        """Show whether the 3D views show surfaces, without emitting a signal."""
        press(self._ui.show3dButton, shown)

    def show_places_within(self, segment_id: str) -> None:
        """Show which segment's uncertain regions are walked; "" for all segments."""
        selector = self._ui.placesSelector
        selector.setCurrentIndex(max(selector.findData(segment_id), 0))

    def update(self, rows: Sequence[StructureRow]) -> None:
        """Show changes of some rows."""
        self._table.update(rows)

    def show_verdict(self, verdict: Verdict) -> None:
        """Show the summary of the result; its details can be unfolded."""
        ui = self._ui
        style = TONES[verdict.tone](ui.verdictLabel) if verdict.tone else ""
        say(ui.verdictLabel, verdict.line, f"font-weight: bold; {style}")
        say(ui.detailsLabel, verdict.details)
        ui.detailsButton.visible = bool(verdict.details)
        self._fold()

    def ask_export(self, name: str, reason: str) -> ExportChoice | None:
        """Let the user choose the outputs and their folder; None if the user cancelled.

        Args:
            name: the name of the segmentation.
            reason: the reason why DICOM cannot be written; "" if it can.
        """
        choice = export_dialog.ask(self._ui.resultTable, name, reason, self._export)
        self._export = choice or self._export
        return choice

    def select(self, segment_id: str) -> None:
        """Select a segment's row without emitting a signal."""
        self._table.select(segment_id)

    def next_to_check(self) -> str:
        """See `StructureTable.next_to_check`."""
        return self._table.next_to_check()

    def show_statistics(self, shown: bool) -> None:
        """Show whether the views have the layout with statistics."""
        press(self._ui.statisticsButton, shown)

    def _connect(self) -> None:
        ui = self._ui
        ui.resultSelector.connect("currentNodeChanged(vtkMRMLNode*)", self.segmentation_chosen.emit)
        ui.resultFilterEdit.connect("textChanged(QString)", self._on_filter)
        ui.resultStateSelector.connect("currentIndexChanged(int)", self._on_filter)
        ui.detailsButton.connect("toggled(bool)", self._fold)
        ui.completeGoodButton.connect("clicked()", self.good_completed.emit)
        ui.doneButton.connect("clicked()", lambda: self.done_requested.emit(self._table.selected()))
        ui.nextButton.connect("clicked()", self.next_requested.emit)
        ui.placesSelector.connect("activated(int)", self._on_places)
        ui.show3dButton.connect("toggled(bool)", self.surfaces_shown.emit)
        ui.show3dButton.contextMenuPolicy = qt.Qt.CustomContextMenu
        ui.show3dButton.connect("customContextMenuRequested(QPoint)", self._offer_smoothing)
        ui.statisticsButton.connect("toggled(bool)", self.statistics_shown.emit)
        ui.csvButton.connect("clicked()", self.csv_requested.emit)
        ui.exportButton.connect("clicked()", self.export_requested.emit)
        ui.correctButton.connect("clicked()", self.correct_requested.emit)
        ui.slabButton.connect("clicked()", self.slab_requested.emit)
        ui.keepButton.connect("clicked()", self.keep_requested.emit)
        for button in (ui.show3dButton, ui.statisticsButton):
            button.styleSheet = PRESSED_STYLE

    def _offer_smoothing(self, position: QtValue) -> None:
        button = self._ui.show3dButton
        self._menu = qt.QMenu(button)
        self._menu.objectName = "smoothingMenu"
        for title, factor in SMOOTHING:
            action = self._menu.addAction(title)
            action.connect("triggered()", lambda chosen=factor: self.smoothing_chosen.emit(chosen))
        self._menu.popup(button.mapToGlobal(position))

    def _offer_places(self, rows: Sequence[StructureRow]) -> None:
        selector = self._ui.placesSelector
        selector.clear()
        selector.addItem(_("in all structures"), "")
        for row in rows:
            selector.addItem(_("in {name}").format(name=row.name), row.segment_id)

    def _on_places(self, index: int) -> None:
        self.places_within.emit(str(self._ui.placesSelector.itemData(index)))

    def _on_filter(self, _value: object) -> None:
        self._table.narrow(
            self._ui.resultFilterEdit.text, self._ui.resultStateSelector.currentIndex
        )

    def _fold(self, _unfolded: bool = False) -> None:
        ui = self._ui
        unfolded = bool(ui.detailsButton.checked)
        ui.detailsButton.text = (UNFOLDED if unfolded else FOLDED) + " " + _("Details")
        ui.detailsLabel.visible = unfolded and bool(ui.detailsLabel.text)

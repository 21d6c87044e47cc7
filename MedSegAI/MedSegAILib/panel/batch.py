"""The section for many scans: the choices, and the state of each case."""

from __future__ import annotations

from collections.abc import Sequence

from medsegai.progress import duration
from medsegai.system.outside_text import label_text
from medsegai.worker.batch_events import CaseState
from MedSegAILib.panel import dialogs, series_dialog
from MedSegAILib.panel.structure_table import DOUBT_MARK
from MedSegAILib.panel.style import error_style, lay_out_table, text_item
from MedSegAILib.panel.wrapping import say
from MedSegAILib.panel_values import BatchChoice, CaseRow, SeriesRow
from MedSegAILib.signals import Signal
from MedSegAILib.slicer_types import Widget
from MedSegAILib.translation import tr as _

STATES = {
    CaseState.WAITING: _("waiting"),
    CaseState.RUNNING: _("running"),
    CaseState.DONE: _("done"),
    CaseState.FAILED: _("failed"),
}
SOURCES = (_("A folder"), _("Slicer's DICOM database"))


class BatchView:
    """The section of the batch.

    Attributes:
        start_requested, stop_requested: a button was pressed.
        series_requested: the user wants to choose series of the DICOM database.
    """

    def __init__(self, ui: Widget) -> None:
        self._ui = ui
        self._rows: dict[str, int] = {}
        self._series: tuple[SeriesRow, ...] = ()
        self.start_requested, self.stop_requested = Signal(), Signal()
        self.series_requested = Signal()
        for source in SOURCES:
            ui.batchSourceSelector.addItem(source)
        ui.batchSourceSelector.connect("currentIndexChanged(int)", self._show_source)
        ui.batchSeriesButton.connect("clicked()", self.series_requested.emit)
        ui.batchStartButton.connect("clicked()", self.start_requested.emit)
        ui.batchStopButton.connect("clicked()", self.stop_requested.emit)
        for button, edit in (
            (ui.batchFolderButton, ui.batchFolderEdit),
            (ui.batchOutputButton, ui.batchOutputEdit),
        ):
            button.connect("clicked()", lambda edit=edit: self._browse(edit))
        self._ui.batchTable.visible = False
        self._show_source(0)
        self.show_message("")

    def choice(self) -> BatchChoice:
        """Return what is chosen."""
        of_database = self._ui.batchSourceSelector.currentIndex == 1
        return BatchChoice(
            "" if of_database else self._ui.batchFolderEdit.text.strip(),
            self._ui.batchOutputEdit.text.strip(),
            bool(self._ui.batchResumeCheck.checked),
            self._series if of_database else None,
        )

    def ask_series(self, rows: Sequence[SeriesRow]) -> None:
        """Let the user choose among these series; chosen series are ticked."""
        chosen = series_dialog.ask(self._ui.batchButton, rows, self._series)
        if chosen is None:
            return
        self._series = chosen
        self._ui.batchSeriesButton.text = (
            _("{count} series chosen…").format(count=len(chosen)) if chosen else _("Choose series…")
        )

    def show_running(self, running: bool) -> None:
        """Show whether a batch runs, during which no other can start."""
        ui = self._ui
        for widget in (
            ui.batchStartButton,
            ui.batchSourceSelector,
            ui.batchFolderEdit,
            ui.batchFolderButton,
            ui.batchSeriesButton,
            ui.batchOutputEdit,
            ui.batchOutputButton,
            ui.batchResumeCheck,
        ):
            widget.enabled = not running
        ui.batchStopButton.enabled = running

    def show_message(self, text: str, problem: bool = False) -> None:
        """Show a sentence; as a problem if it is one."""
        label = self._ui.batchLabel
        say(label, text, error_style(label) if problem else "")

    def clear(self) -> None:
        """Clear the table for another batch."""
        self._rows = {}
        table = self._ui.batchTable
        table.clear()
        table.setRowCount(0)
        table.setColumnCount(2)
        table.setHorizontalHeaderLabels([_("Case"), _("State")])
        lay_out_table(table, 0)
        table.visible = False

    def show_case(self, row: CaseRow) -> None:
        """Show the state of a case; a new case is added below the others."""
        table = self._ui.batchTable
        if row.case not in self._rows:
            number = self._rows[row.case] = table.rowCount
            table.setRowCount(number + 1)
            table.setItem(number, 0, text_item(row.case, row.title or row.case))
            table.setItem(number, 1, text_item(""))
            table.visible = True
        item = table.item(self._rows[row.case], 1)
        item.setText(_state(row))
        item.setToolTip(label_text(row.message))

    def _show_source(self, index: int) -> None:
        ui = self._ui
        ui.batchFolderEdit.visible = ui.batchFolderButton.visible = index == 0
        ui.batchSeriesButton.visible = index == 1

    def _browse(self, edit: Widget) -> None:
        folder = dialogs.open_folder(self._ui.batchButton, _("Folder"))
        if folder:
            edit.text = folder


def _state(row: CaseRow) -> str:
    if row.fraction is not None:
        return f"{100 * row.fraction:.0f} %"
    if row.seconds is not None:
        state = f"{STATES[row.state]}, {duration(row.seconds)}"
        return f"{DOUBT_MARK} {row.remarks}, {state}" if row.remarks else state
    return STATES[row.state]

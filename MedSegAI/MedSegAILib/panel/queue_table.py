"""The queue: each job with its state and progress."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from medsegai.progress import duration
from medsegai.system.outside_text import label_text
from MedSegAILib.panel.style import lay_out_table, text_item
from MedSegAILib.progress_text import stage_text
from MedSegAILib.signals import Signal
from MedSegAILib.slicer_types import Widget
from MedSegAILib.translation import tr as _

if TYPE_CHECKING:
    from MedSegAILib.worker.queue import Entry

STATES = {
    "waiting": _("waiting"),
    "running": _("running"),
    "done": _("done"),
    "failed": _("failed"),
    "cancelled": _("stopped"),
}


class QueueTable:
    """Shows the entries of `worker.queue.JobQueue`, which are passed on unchanged.

    Attributes:
        move_requested: an entry, and the number of places to move it.
        again_requested, cancel_requested, remove_requested: an entry.
        clear_requested: remove entries that are over.
    """

    def __init__(self, ui: Widget) -> None:
        self._ui = ui
        self._table = ui.queueTable
        self._entries: list[Entry] = []
        self.move_requested, self.again_requested = Signal(), Signal()
        self.cancel_requested, self.remove_requested = Signal(), Signal()
        self.clear_requested = Signal()
        ui.upButton.connect("clicked()", lambda: self._tell(self.move_requested, -1))
        ui.downButton.connect("clicked()", lambda: self._tell(self.move_requested, 1))
        ui.againButton.connect("clicked()", lambda: self._tell(self.again_requested))
        ui.cancelEntryButton.connect("clicked()", lambda: self._tell(self.cancel_requested))
        ui.removeButton.connect("clicked()", lambda: self._tell(self.remove_requested))
        ui.clearButton.connect("clicked()", self.clear_requested.emit)
        self._table.connect("itemSelectionChanged()", self._update_buttons)
        self.show(())

    def show(self, entries: Sequence[Entry]) -> None:
        """Show the present entries; the selected entry stays selected."""
        if [id(entry) for entry in entries] != [id(entry) for entry in self._entries]:
            self._rebuild(list(entries))
        for row, entry in enumerate(self._entries):
            state, tip = _state_text(entry)
            item = self._table.item(row, 1)
            if item.text() != state:
                item.setText(state)
            item.setToolTip(label_text(tip))
        waiting = sum(1 for entry in self._entries if entry.state == "waiting")
        running = sum(1 for entry in self._entries if entry.state == "running")
        self._ui.queueButton.visible = bool(self._entries)
        self._ui.queueButton.text = _queue_title(running, waiting)
        self._update_buttons()

    def chosen(self) -> Entry | None:
        """Return the job of the selected row; None if no row is selected."""
        rows = self._table.selectionModel().selectedRows()
        row = rows[0].row() if len(rows) else -1
        return self._entries[row] if 0 <= row < len(self._entries) else None

    def _rebuild(self, entries: list[Entry]) -> None:
        chosen = self.chosen()
        table = self._table
        table.blockSignals(True)
        self._entries = entries
        table.clear()
        table.setRowCount(len(entries))
        table.setColumnCount(2)
        table.setHorizontalHeaderLabels([_("Job"), _("State")])
        for row, entry in enumerate(entries):
            table.setItem(row, 0, text_item(entry.title, entry.title))
            table.setItem(row, 1, text_item(""))
        lay_out_table(table, 0)
        if chosen in entries:
            table.selectRow(entries.index(chosen))
        table.blockSignals(False)

    def _tell(self, signal: Signal, *values: object) -> None:
        entry = self.chosen()
        if entry is not None:
            signal.emit(entry, *values)

    def _update_buttons(self) -> None:
        entry = self.chosen()
        state = None if entry is None else str(entry.state)
        self._ui.upButton.enabled = self._ui.downButton.enabled = state == "waiting"
        self._ui.cancelEntryButton.enabled = state in ("waiting", "running")
        self._ui.againButton.enabled = state in ("done", "failed", "cancelled")
        self._show_again(getattr(entry, "kept", None) is not None)
        self._ui.removeButton.enabled = entry is not None
        over = ("done", "failed", "cancelled")
        self._ui.clearButton.enabled = any(str(item.state) in over for item in self._entries)

    def _show_again(self, kept: bool) -> None:
        """Explain what running an entry again means, because its result may exist already."""
        button = self._ui.againButton
        button.text = _("Try again") if kept else _("Run again")
        button.toolTip = (
            _("Add the result of the job to the scene, without computing it again.")
            if kept
            else _("Add the same job to the end of the queue.")
        )


def _state_text(entry: Entry) -> tuple[str, str]:
    """Return the text of the table, and the details for the tool tip."""
    state = STATES[str(entry.state)]
    if str(entry.state) == "running":
        if getattr(entry, "stopping", False):
            return _("stopping …"), ""
        left = "" if entry.seconds_left is None else f", {duration(entry.seconds_left)}"
        return f"{100 * entry.fraction:.0f} %{left}", entry.message or stage_text(entry.stage)
    return state, entry.message


def _queue_title(running: int, waiting: int) -> str:
    parts = [_("{count} running").format(count=running)] if running else []
    parts += [_("{count} waiting").format(count=waiting)] if waiting else []
    return _("Queue") + (f" – {', '.join(parts)}" if parts else "")

"""The choice of series of the DICOM database for a batch: a tree of patients, studies and series."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import qt

from medsegai.system.outside_text import label_text
from MedSegAILib.panel.style import show_empty_boxes
from MedSegAILib.panel_values import SeriesRow
from MedSegAILib.slicer_types import QtValue, Widget
from MedSegAILib.translation import tr as _


def ask(
    parent: Widget, rows: Sequence[SeriesRow], chosen: Collection[SeriesRow]
) -> tuple[SeriesRow, ...] | None:
    """Show the series and wait for the answer; None if the user cancelled."""
    return SeriesDialog(parent, rows, chosen).answer()


class SeriesDialog:
    """The dialog, without waiting for it.

    Args:
        parent: the widget whose window it belongs to.
        chosen: the series that are ticked at first.
    """

    def __init__(
        self, parent: Widget, rows: Sequence[SeriesRow], chosen: Collection[SeriesRow]
    ) -> None:
        self.dialog = qt.QDialog(parent)
        self.dialog.objectName = "seriesDialog"
        self.dialog.windowTitle = _("MedSegAI: series of the DICOM database")
        self.dialog.resize(520, 480)
        layout = qt.QVBoxLayout(self.dialog)
        self._search = self._search_field()
        layout.addWidget(self._search)
        self._tree = qt.QTreeWidget()
        self._tree.objectName = "seriesTree"
        self._tree.headerHidden = True
        show_empty_boxes(self._tree)
        layout.addWidget(self._tree)
        self._parents: dict[tuple[str, ...], QtValue] = {}
        self._items = [(self._add(row, row in chosen), row) for row in rows]
        self._tree.expandAll()
        layout.addLayout(self._buttons())

    def _search_field(self) -> Widget:
        field = qt.QLineEdit()
        field.objectName = "seriesSearch"
        field.placeholderText = _("Search patients, studies and series")
        field.clearButtonEnabled = True
        field.connect("textChanged(QString)", self._filter)
        return field

    def answer(self) -> tuple[SeriesRow, ...] | None:
        """Wait for the user."""
        run = getattr(self.dialog, "exec_", None) or self.dialog.exec
        chosen = self.chosen() if run() else None
        self.dialog.deleteLater()
        return chosen

    def chosen(self) -> tuple[SeriesRow, ...]:
        """Return the ticked series, even if the search hides them."""
        return tuple(row for item, row in self._items if item.checkState(0) == qt.Qt.Checked)

    def _add(self, row: SeriesRow, ticked: bool) -> Widget:
        patient = self._parent((row.patient,), None)
        study = self._parent((row.patient, row.study), patient)
        item = _item(row.description or _("Series without description"), tristate=False)
        study.addChild(item)
        item.setCheckState(0, qt.Qt.Checked if ticked else qt.Qt.Unchecked)
        item.setToolTip(0, label_text(row.uid))
        return item

    def _parent(self, names: tuple[str, ...], above: Widget) -> Widget:
        """Return the item of a patient or study; ticking it ticks all of its series."""
        if names not in self._parents:
            item = _item(names[-1] or _("Without name"), tristate=True)
            if above is None:
                self._tree.addTopLevelItem(item)
            else:
                above.addChild(item)
            self._parents[names] = item
        return self._parents[names]

    def _filter(self, text: str) -> None:
        """Hide series without all of the words in the names of series, study and patient."""
        words = text.casefold().split()
        shown: set[tuple[str, ...]] = set()
        for item, row in self._items:
            fits = all(word in row.title.casefold() for word in words)
            item.setHidden(not fits)
            if fits:
                shown |= {(row.patient,), (row.patient, row.study)}
        for names, item in self._parents.items():
            item.setHidden(names not in shown)

    def _buttons(self) -> Widget:
        layout = qt.QHBoxLayout()
        layout.addStretch(1)
        for name, text, act in (
            ("seriesCancelButton", _("Cancel"), self.dialog.reject),
            ("seriesUseButton", _("Use these series"), self.dialog.accept),
        ):
            button = qt.QPushButton(text)
            button.objectName = name
            button.autoDefault = False  # Enter in the search field must not press a button
            button.connect("clicked()", act)
            layout.addWidget(button)
        return layout


def _item(text: str, tristate: bool) -> QtValue:
    item = qt.QTreeWidgetItem([text])
    flags = qt.Qt.ItemIsEnabled | qt.Qt.ItemIsUserCheckable
    item.setFlags(flags | qt.Qt.ItemIsAutoTristate if tristate else flags)
    item.setCheckState(0, qt.Qt.Unchecked)
    return item

"""The refinements of a run, in their order, each with its options."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import qt

from medsegai.labels import Label
from medsegai.models.refinement import Refinement
from medsegai.refinements import as_text, option_fields, parse, refinement_names, summary, title
from MedSegAILib.panel.fields import title_of
from MedSegAILib.panel.refinement_form import RefinementForm
from MedSegAILib.slicer_types import Widget
from MedSegAILib.translation import tr as _

ROWS_SHOWN = 4


class RefinementList:
    """The chosen refinements as a list, and below it the options of the selected one.

    Args:
        changed: the function that is called after each change by the user.

    Attributes:
        widget: the widget that contains everything.
    """

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._chosen: list[Refinement] = []
        self._labels: tuple[Label, ...] = ()
        self.widget = qt.QWidget()
        layout = qt.QVBoxLayout(self.widget)
        layout.setContentsMargins(0, 0, 0, 0)
        self._names = qt.QComboBox()
        self._list = qt.QListWidget()
        self._buttons = qt.QWidget()
        self._options = qt.QWidget()
        form = qt.QFormLayout(self._options)
        form.setContentsMargins(0, 0, 0, 0)
        self._form = RefinementForm(form, self._on_option_changed, "refinement")
        layout.addLayout(self._row_to_add())
        for part in (self._list, self._buttons, self._options):
            layout.addWidget(part)
        self._make_list()
        self._make_buttons()
        self._show(-1)

    def values(self) -> tuple[str, ...]:
        """Return the refinements in their order, as for the option `refinements`."""
        return tuple(as_text(refinement) for refinement in self._chosen)

    def choose(self, texts: Sequence[str]) -> None:
        """Choose the refinements of these texts, without those that name structures of another model."""
        known = {label.value for label in self._labels}
        self._chosen = [item for item in map(parse, texts) if _structures_of(item) <= known]
        self._show(0 if self._chosen else -1)

    def set_labels(self, labels: Sequence[Label]) -> None:
        """Offer the structures of the model; chosen structures of another model are forgotten."""
        if tuple(labels) == self._labels:
            return
        self._labels = tuple(labels)
        self._chosen = [
            Refinement(
                item.name, {name: v for name, v in item.options.items() if not isinstance(v, tuple)}
            )
            for item in self._chosen
        ]
        self._show(self._list.currentRow)

    def _row_to_add(self) -> Widget:
        row = qt.QHBoxLayout()
        self._names.objectName = "refinementNames"
        self._names.sizeAdjustPolicy = qt.QComboBox.AdjustToMinimumContentsLengthWithIcon
        self._names.minimumContentsLength = 8
        for number, name in enumerate(refinement_names()):
            self._names.addItem(title(name))
            self._names.setItemData(number, f"{summary(name)} ({name})", qt.Qt.ToolTipRole)
        row.addWidget(self._names, 1)
        row.addWidget(_button("addRefinementButton", _("Add"), self._add))
        return row

    def _make_list(self) -> None:
        self._list.objectName = "refinementList"
        height = self._list.fontMetrics().height()
        self._list.setMaximumHeight(ROWS_SHOWN * (height + 6))
        self._list.connect("currentRowChanged(int)", self._on_selected)

    def _make_buttons(self) -> None:
        row = qt.QHBoxLayout(self._buttons)
        row.setContentsMargins(0, 0, 0, 0)
        for name, text, act in (
            ("refinementUpButton", _("Sooner"), lambda: self._move(-1)),
            ("refinementDownButton", _("Later"), lambda: self._move(1)),
            ("removeRefinementButton", _("Remove"), self._remove),
        ):
            row.addWidget(_button(name, text, act))

    def _add(self) -> None:
        self._chosen.append(Refinement(refinement_names()[self._names.currentIndex]))
        self._show(len(self._chosen) - 1)
        self._changed()

    def _remove(self) -> None:
        row = self._list.currentRow
        if 0 <= row < len(self._chosen):
            del self._chosen[row]
            self._show(min(row, len(self._chosen) - 1))
            self._changed()

    def _move(self, by: int) -> None:
        row = self._list.currentRow
        if 0 <= row < len(self._chosen) and 0 <= row + by < len(self._chosen):
            self._chosen.insert(row + by, self._chosen.pop(row))
            self._show(row + by)
            self._changed()

    def _show(self, row: int) -> None:
        """Show the present list, with a row selected."""
        self._list.blockSignals(True)
        self._list.clear()
        for refinement in self._chosen:
            self._list.addItem(in_words(refinement))
        self._list.currentRow = row
        self._list.blockSignals(False)
        for part in (self._list, self._buttons, self._options):
            part.visible = bool(self._chosen)
        self._on_selected(row)

    def _on_selected(self, row: int) -> None:
        if 0 <= row < len(self._chosen):
            refinement = self._chosen[row]
            self._explain(refinement)
            self._form.show(refinement.name, refinement.options, self._labels)
        else:
            self._form.show("")

    def _explain(self, refinement: Refinement) -> None:
        """Return what a refinement does, and how scripts and the command line write it."""
        self._list.toolTip = f"{summary(refinement.name)} ({as_text(refinement)})"

    def _on_option_changed(self) -> None:
        row = self._list.currentRow
        self._chosen[row] = self._form.refinement()
        self._list.item(row).setText(in_words(self._chosen[row]))
        self._explain(self._chosen[row])
        self._changed()


def _structures_of(refinement: Refinement) -> set[Hashable]:
    """Return the label values that the options of a refinement name."""
    return {
        value
        for values in refinement.options.values()
        if isinstance(values, tuple)
        for value in values
    }


def in_words(refinement: Refinement) -> str:
    """Return a refinement and its options that differ from the defaults, as the list shows it."""
    options = {option.name: option for option in option_fields(refinement.name)}
    parts = [
        f"{title_of(options[name])} {_value(value)}" for name, value in refinement.options.items()
    ]
    return ": ".join(part for part in (title(refinement.name), ", ".join(parts)) if part)


def _value(value: object) -> str:
    if isinstance(value, bool):
        return _("yes") if value else _("no")
    return str(len(value)) if isinstance(value, tuple) else f"{value}"


def _button(name: str, text: str, act: Callable[[], None]) -> Widget:
    button = qt.QPushButton(text)
    button.objectName = name
    button.connect("clicked()", act)
    return button

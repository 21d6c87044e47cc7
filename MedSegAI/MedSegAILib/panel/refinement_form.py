"""The options of one refinement, made from its own description of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from medsegai.labels import Label
from medsegai.models.refinement import Refinement
from medsegai.refinements import option_fields
from MedSegAILib.panel.fields import field_widget, tip_of, title_of
from MedSegAILib.panel.structure_list import Structure, StructureList
from MedSegAILib.slicer_types import Widget


class RefinementForm:
    """One row for each option.

    Args:
        form: the QFormLayout of the rows.
        changed: the function that is called after each change by the user.
        prefix: the prefix of the names of the widgets.
    """

    def __init__(self, form: Widget, changed: Callable[[], None], prefix: str) -> None:
        self._form, self._changed, self._prefix = form, changed, prefix
        self._name = ""
        self._read: dict[str, Callable[[], Any]] = {}
        self._defaults: dict[str, Any] = {}

    def show(
        self,
        name: str,
        values: Mapping[str, Any] | None = None,
        labels: Sequence[Label] | None = None,
    ) -> None:
        """Show the options of a refinement; "" shows none.

        Args:
            name: the name of the refinement.
            values: the options that differ from their defaults at first.
            labels: the labels from which options can choose; such options are left out if it is None.
        """
        while self._form.rowCount():
            self._form.removeRow(0)
        self._name, self._read, self._defaults = name, {}, {}
        for option in option_fields(name) if name else ():
            value = (values or {}).get(option.name, option.default)
            if isinstance(option.default, tuple):
                if labels is None:
                    continue
                widget, read = self._structures(labels, value)
            else:
                widget, read, _write = field_widget(option, value, self._changed)
            widget.objectName = f"{self._prefix}_{option.name}"
            widget.toolTip = tip_of(option)
            self._form.addRow(f"{title_of(option)}:", widget)
            self._read[option.name], self._defaults[option.name] = read, option.default

    def refinement(self) -> Refinement:
        """Return the refinement with those options that differ from their defaults."""
        values = {name: read() for name, read in self._read.items()}
        changed = {name: value for name, value in values.items() if value != self._defaults[name]}
        return Refinement(self._name, changed)

    def _structures(
        self, labels: Sequence[Label], values: Sequence[int]
    ) -> tuple[Widget, Callable[[], Any]]:
        """Return a list of structures; if none is ticked, all are meant, as in the refinements."""
        found = StructureList(self._changed)
        rows = [Structure(label.value, label.name, label.color) for label in labels]
        found.show(rows, values)
        return found.widget, found.ticked

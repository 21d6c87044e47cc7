"""The options of one refinement, made from what the refinement itself says of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from medsegai.labels import Label
from medsegai.models.refinement import Refinement
from medsegai.refinements import option_fields
from MedSegAILib.panel.fields import FieldWidget, field_widget, tip_of, title_of
from MedSegAILib.panel.structure_list import Structure, StructureList
from MedSegAILib.slicer_types import Widget
from MedSegAILib.translation import tr as _


class RefinementForm:
    """One row for each option.

    Args:
        form: the QFormLayout that takes the rows.
        changed: called after each change by the user.
        prefix: begins the names of the widgets.
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
        """The options of this refinement; of none with "".

        Args:
            name: of the refinement.
            values: options that are not to begin with their defaults.
            labels: what options that name labels can choose from; these are left out where it is None.
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
                widget, read = field_widget(option, value, self._changed)
            widget.objectName = f"{self._prefix}_{option.name}"
            widget.toolTip = _(tip_of(option))
            self._form.addRow(f"{_(title_of(option))}:", widget)
            self._read[option.name], self._defaults[option.name] = read, option.default

    def refinement(self) -> Refinement:
        """Return the refinement with those options that differ from their defaults."""
        values = {name: read() for name, read in self._read.items()}
        changed = {name: value for name, value in values.items() if value != self._defaults[name]}
        return Refinement(self._name, changed)

    def _structures(self, labels: Sequence[Label], values: Sequence[int]) -> FieldWidget:
        """None of them ticked means all of them, as in the refinements."""
        found = StructureList(self._changed)
        rows = [Structure(label.value, label.name, label.color) for label in labels]
        found.show(rows, values)
        return found.widget, found.ticked

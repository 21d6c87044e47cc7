"""The choice between normal and fast, if a model has several networks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from medsegai.models.card import ModelCard
from MedSegAILib.slicer_types import Widget
from MedSegAILib.translation import tr as _

NORMAL, FAST = 0, 1
SPEEDS = (_("Normal"), _("Fast"))


class Speed:
    """The choice of the speed.

    Args:
        label, selector: a QLabel and a QComboBox.
        changed: the function that is called after each change by the user.
    """

    def __init__(self, label: Widget, selector: Widget, changed: Callable[[], None]) -> None:
        self._label, self._selector, self._changed = label, selector, changed
        self._fast: dict[str, Any] = {}
        for title in SPEEDS:
            selector.addItem(title)
        selector.connect("currentIndexChanged(int)", self._on_change)
        self.set_model(None)

    def set_model(self, card: ModelCard | None) -> None:
        """Offer the speeds of this model; the choice stays."""
        used = [] if card is None else [member for member in card.members if member.weight > 0]
        heaviest = max(used, key=lambda member: member.weight, default=None)
        self._fast = {}
        if heaviest is not None and len(used) > 1:
            self._fast = {"members": (heaviest.name,), "mirroring": False}
        self._label.visible = self._selector.visible = bool(self._fast)

    def options(self) -> dict[str, Any]:
        """Return the options of a request that differ from those below Advanced."""
        return dict(self._fast) if self._selector.currentIndex == FAST else {}

    def is_fast(self) -> bool:
        """Return whether fast is chosen, even if the model has one speed only."""
        return bool(self._selector.currentIndex == FAST)

    def choose(self, fast: bool) -> None:
        """Choose fast or normal."""
        self._selector.currentIndex = FAST if fast else NORMAL

    def _on_change(self, _index: int) -> None:
        self._changed()

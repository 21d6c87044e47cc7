"""The Qt side: what the user chooses goes out as signals, what happens comes in as calls.

The panel decides nothing and knows neither scene nor worker; nodes pass through it untouched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import qt

from medsegai.card import ModelCard
from medsegai.progress import ProgressEvent
from medsegai.request import StructureMeasures
from MedSegAILib.panel.options import OptionWidgets
from MedSegAILib.signals import Signal
from MedSegAILib.translation import tr as _

PROGRESS_STEPS = 1000

# Measures of uncertainty; the first has a column, all stand in its tool tip.
AGREEMENT = (
    ("iou", "IoU"),
    ("pairwise_dice", "Dice"),
    ("volume_cv", "CV"),
    ("mean_entropy", "Entropy"),
)
AGREEMENT_HELP = (
    "How far the members agree on a structure: what all of them found, over what any of them found. "
    "1 is certain; look at what is well below the others."
)


@dataclass(frozen=True)
class Choice:
    """What the user chose: the input node (or None), the model (or None), and the options."""

    node: Any
    card: ModelCard | None
    options: dict[str, Any]


class Panel:
    """The module's widgets.

    Args:
        ui: the named widgets of `Resources/UI/MedSegAI.ui`.

    Attributes:
        segment_requested, cancel_requested: a button was pressed.
        choice_changed: another volume, model or option was chosen.
    """

    def __init__(self, ui: Any) -> None:
        self._ui = ui
        self._cards: tuple[ModelCard, ...] = ()
        self._ready = False
        self._running = False
        self.segment_requested = Signal()
        self.cancel_requested = Signal()
        self.choice_changed = Signal()
        self._options = OptionWidgets(ui.advancedButton.layout(), self.choice_changed.emit)
        self._make_error_style()
        ui.segmentButton.connect("clicked()", self.segment_requested.emit)
        ui.cancelButton.connect("clicked()", self.cancel_requested.emit)
        ui.inputSelector.connect("currentNodeChanged(vtkMRMLNode*)", self._on_input_changed)
        ui.modelSelector.connect("currentIndexChanged(int)", self._on_model_changed)
        ui.progressBar.visible = False
        ui.messageLabel.visible = False
        ui.resultTable.visible = False

    def choice(self) -> Choice:
        return Choice(self._ui.inputSelector.currentNode(), self._card(), self._options.values())

    def choose_input(self, node: Any) -> None:
        """Choose this volume, as a user would."""
        self._ui.inputSelector.setCurrentNode(node)

    def show_models(self, cards: Sequence[ModelCard]) -> None:
        """Offer these models; the first is chosen."""
        self._cards = ()  # so that what the selector tells meanwhile is of no model
        selector = self._ui.modelSelector
        selector.clear()
        for card in cards:
            selector.addItem(card.name)
        self._cards = tuple(cards)
        selector.currentIndex = 0 if cards else -1
        self._on_model_changed(selector.currentIndex)

    def show_plan(self, text: str, ready: bool) -> None:
        """Say what will run, or why nothing can (`ready` is false then)."""
        self._ui.planLabel.text = text
        self._ready = ready
        self._update_buttons()

    def show_running(self) -> None:
        self._running = True
        self._ui.progressBar.value = 0
        self._ui.progressBar.format = _("Starting …")
        self._ui.progressBar.visible = True
        self.show_message("")
        self._update_buttons()

    def show_cancelling(self) -> None:
        self._ui.cancelButton.enabled = False
        self._ui.progressBar.format = _("Stopping …")

    def show_progress(self, event: ProgressEvent) -> None:
        self._ui.progressBar.value = round(PROGRESS_STEPS * event.fraction)
        self._ui.progressBar.format = _progress_text(event)

    def show_idle(self) -> None:
        self._running = False
        self._ui.progressBar.visible = False
        self._update_buttons()

    def show_message(self, text: str) -> None:
        self._say(text, "")

    def show_error(self, text: str) -> None:
        self._say(text, self._error_style)

    def show_structures(self, structures: Sequence[StructureMeasures]) -> None:
        """Fill the table; nothing to show hides it."""
        table = self._ui.resultTable
        uncertain = any(_agreement_text(measures) for measures in structures)
        titles = [_("Structure"), _("Volume (ml)"), *([_("Agreement")] if uncertain else [])]
        table.sortingEnabled = False
        table.clear()
        table.setRowCount(len(structures))
        table.setColumnCount(len(titles))
        table.setHorizontalHeaderLabels(titles)
        for row, measures in enumerate(structures):
            table.setItem(row, 0, _name_item(measures))
            table.setItem(row, 1, _number_item(measures.volume_ml))
            if uncertain:
                table.setItem(row, 2, _number_item(measures.iou, _agreement_text(measures)))
        if uncertain:
            table.horizontalHeaderItem(2).setToolTip(_(AGREEMENT_HELP))
        self._lay_out_table()
        table.visible = bool(structures)

    def _lay_out_table(self) -> None:
        table = self._ui.resultTable
        rows, columns = table.verticalHeader(), table.horizontalHeader()
        rows.visible = False
        rows.setSectionResizeMode(qt.QHeaderView.ResizeToContents)
        columns.setSectionResizeMode(qt.QHeaderView.ResizeToContents)
        columns.setSectionResizeMode(0, qt.QHeaderView.Stretch)
        columns.setSortIndicator(-1, qt.Qt.AscendingOrder)  # the model's order, until a click
        table.sortingEnabled = True

    def _card(self) -> ModelCard | None:
        index = self._ui.modelSelector.currentIndex
        return self._cards[index] if 0 <= index < len(self._cards) else None

    def _on_input_changed(self, _node: Any) -> None:
        self.choice_changed.emit()

    def _on_model_changed(self, _index: int) -> None:
        card = self._card()
        self._options.set_members(card)
        self._ui.modelSelector.toolTip = "" if card is None else _card_text(card)
        self.choice_changed.emit()

    def _update_buttons(self) -> None:
        self._ui.segmentButton.enabled = self._ready and not self._running
        self._ui.cancelButton.enabled = self._running
        self._ui.inputsButton.enabled = not self._running
        self._ui.advancedButton.enabled = not self._running

    def _make_error_style(self) -> None:
        """A red that can be read on a light and on a dark window."""
        dark = self._ui.messageLabel.palette.color(qt.QPalette.Window).lightness() < 128
        self._error_style = "color: #ff8a80;" if dark else "color: #b00020;"

    def _say(self, text: str, style: str) -> None:
        label = self._ui.messageLabel
        label.styleSheet = style
        label.text = text
        label.visible = bool(text)


STAGES = {
    "read": "Reading",
    "prepare": "Preparing",
    "predict": "Predicting",
    "labels": "Joining",
}


def _progress_text(event: ProgressEvent) -> str:
    stage = _(STAGES.get(event.stage, event.stage.capitalize()))
    percent = f"{100 * event.fraction:.0f} %"
    if event.seconds_left is None:
        return f"{stage} – {percent}"
    left = _("{time} left").format(time=_duration(event.seconds_left))
    return f"{stage} – {percent} – {left}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def _card_text(card: ModelCard) -> str:
    parts = (
        card.description,
        card.intended_use,
        card.licence and f"{_('Licence')}: {card.licence}",
    )
    return "\n".join(part for part in parts if part)


def _name_item(measures: StructureMeasures) -> Any:
    item = qt.QTableWidgetItem(measures.label.name)
    item.setData(qt.Qt.DecorationRole, qt.QColor(*measures.label.color))
    return item


def _number_item(value: float | None, explanation: str = "") -> Any:
    """Padded to one length, numbers sort as texts in their order."""
    item = qt.QTableWidgetItem("" if value is None else f"{value:9.2f}")
    item.setTextAlignment(qt.Qt.AlignRight | qt.Qt.AlignVCenter)
    item.setToolTip(explanation)
    return item


def _agreement_text(measures: StructureMeasures) -> str:
    values = [(title, getattr(measures, name)) for name, title in AGREEMENT]
    return ", ".join(f"{_(title)} {value:.3f}" for title, value in values if value is not None)

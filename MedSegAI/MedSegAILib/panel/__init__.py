"""The Qt side: choices of the user are emitted as signals, and events arrive as calls.

The panel does not decide anything and knows neither scene nor worker; nodes are passed on unchanged.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence

from medsegai.models.card import ModelCard
from medsegai.models.json_fields import shown
from medsegai.progress import ProgressEvent
from medsegai.refinements import as_text
from medsegai.system.outside_text import label_text
from MedSegAILib.kept_choices import KeptChoices
from MedSegAILib.model_search import titled, usable_together
from MedSegAILib.output_choice import OutputChoice, OutputMode
from MedSegAILib.panel.batch import BatchView
from MedSegAILib.panel.inputs import InputWidgets
from MedSegAILib.panel.models import ModelBrowser
from MedSegAILib.panel.options import OptionWidgets
from MedSegAILib.panel.output import OutputWidgets, PreviewBar
from MedSegAILib.panel.queue_table import QueueTable
from MedSegAILib.panel.refining import RefineView
from MedSegAILib.panel.results import ResultsView
from MedSegAILib.panel.settings import SettingsWidgets
from MedSegAILib.panel.shortcuts import add_shortcuts
from MedSegAILib.panel.speed import Speed
from MedSegAILib.panel.style import error_style, narrow, show_empty_boxes
from MedSegAILib.panel.surfaces import SurfacesBar
from MedSegAILib.panel.wrapping import WrappedLabels, say
from MedSegAILib.panel_values import Choice, DeviceChoice
from MedSegAILib.progress_text import progress_text
from MedSegAILib.signals import Signal
from MedSegAILib.slicer_types import Node, Widget
from MedSegAILib.translation import tr as _

logger = logging.getLogger(__name__)

PROGRESS_STEPS = 1000

WRAPPED = (
    "channelsNote",
    "planLabel",
    "messageLabel",
    "previewLabel",
    "verdictLabel",
    "detailsLabel",
    "refinementNote",
    "refineMessage",
    "batchLabel",
)
"""The labels with more than one line."""

SELECTORS = (
    "inputSelector",
    "regionSelector",
    "outputNodeSelector",
    "resultSelector",
    "refineSelector",
    "refineImageSelector",
)
"""The selectors of nodes, whose names may be long."""


class Panel:
    """The module's widgets.

    Args:
        ui: the named widgets of `Resources/UI/MedSegAI.ui`.
        new_selector: the function that makes a qMRMLNodeComboBox, for models with several channels.

    Attributes:
        segment_requested, cancel_requested, log_requested: a button was pressed.
        sample_requested, region_requested: load the sample of the model; make a region of interest.
        choice_changed: another volume, model or option was chosen.
        model_changed: another model was chosen; `choice_changed` follows.
        preview, results, refine, queue, batch, settings, browser: the parts of the panel with their own signals.
    """

    def __init__(self, ui: Widget, new_selector: Callable[[], Widget]) -> None:
        self._ui = ui
        self._wrapped = WrappedLabels()
        self._wrapped.watch(getattr(ui, name) for name in WRAPPED)
        for name in SELECTORS:
            narrow(getattr(ui, name))
        self._cards: tuple[ModelCard, ...] = ()
        self._ready = False
        self._running = False
        self.segment_requested, self.cancel_requested = Signal(), Signal()
        self.choice_changed, self.model_changed = Signal(), Signal()
        self.log_requested = Signal()
        self.sample_requested, self.region_requested = Signal(), Signal()
        self._inputs = InputWidgets(ui, new_selector, self.choice_changed.emit)
        self._speed = Speed(ui.speedLabel, ui.speedSelector, self.choice_changed.emit)
        self._output = OutputWidgets(ui, self.choice_changed.emit)
        self._options = OptionWidgets(ui.advancedArea.layout(), self.choice_changed.emit)
        self.preview = PreviewBar(ui)
        self.results = ResultsView(ui)
        self.refine = RefineView(ui)
        self.surfaces = SurfacesBar(ui)
        self.queue = QueueTable(ui)
        self.batch = BatchView(ui)
        self.settings = SettingsWidgets(ui)
        self.browser = ModelBrowser(ui.inputsButton)
        self.browser.card_chosen.connect(self.choose_model)
        for widget in vars(ui).values():
            if widget.className() == "QCheckBox":
                show_empty_boxes(widget)
        self._connect()
        add_shortcuts(ui)
        ui.progressBar.visible = False
        ui.messageLabel.visible = False
        ui.logButton.visible = False

    def choice(self) -> Choice:
        """Return all choices."""
        return Choice(
            nodes=self._inputs.nodes(),
            cards=self._chosen_cards(),
            options=self._options.values() | self._speed.options(),
            output=self._output.choice(),
            region=self._inputs.region(),
            every_frame=self._inputs.every_frame(),
        )

    def kept(self) -> KeptChoices:
        """Return the choices that a scene keeps, apart from the segmentation that the table shows."""
        cards, output, refine = self._chosen_cards(), self._output.choice(), self.refine.choice()
        return KeptChoices(
            model=cards[0].id if cards else "",
            others=tuple(card.id for card in cards[1:]),
            fast=self._speed.is_fast(),
            every_frame=self._inputs.every_frame(),
            output=output.mode.value,
            change_locked=output.change_locked,
            change_painted=output.change_painted,
            options=self._options.changed_values(),
            refinement=as_text(refine.refinement),
            every_segment=refine.every,
            segments=refine.segments,
            inputs=tuple(self._inputs.nodes().values()),
            region=self._inputs.region(),
            segmentation=output.node,
            refined=refine.segmentation,
            refined_image=refine.image,
        )

    def restore(self, kept: KeptChoices) -> None:
        """Show these choices, as far as they are offered, and the others as by default.

        Those of the section *Refine* follow the shown result: see `RefineView.restore`.
        """
        with self.model_changed.held(), self.choice_changed.held():
            is_known = self._restore_models(kept)
            self._speed.choose(kept.fast)
            self._options.restore(kept.options)
            self._inputs.restore(kept.inputs if is_known else kept.inputs[:1], kept.region)
            flags = (kept.change_locked, kept.change_painted)
            self._output.restore(OutputChoice(OutputMode(kept.output), kept.segmentation, *flags))
            self.choice_changed.emit()
        self._inputs.choose_every_frame(kept.every_frame)  # now the frames are known

    def _restore_models(self, kept: KeptChoices) -> bool:
        """Choose the models, of which several may have one id; return whether the first one is here."""
        present = self._card()
        found = [card for card in self._cards if card.id == kept.model]
        if found and present not in found:
            self.choose_model(found[0])
        others = self._others() if found else {}
        self._options.choose_other_models(
            [title for title, other in others.items() if other.id in kept.others]
        )
        missing = {kept.model, *kept.others} - {"", *(each.id for each in self._chosen_cards())}
        if missing:
            logger.warning("The scene's models %s are not here.", shown(sorted(missing)))
        return bool(found)

    def choose_input(self, node: Node) -> None:
        """Choose this volume, as a user would."""
        self._inputs.choose(node)

    def choose_region(self, node: Node) -> None:
        """Choose this box, as a user would."""
        self._inputs.choose_region(node)

    def choose_output(self, mode: OutputMode, node: Node = None) -> None:
        """Choose where the result goes, as a user would."""
        self._output.choose(mode, node)

    def choose_model(self, card: ModelCard) -> None:
        """Choose this model, as a user would."""
        folders = [item.folder for item in self._cards]
        if card.folder in folders:
            self._ui.modelSelector.currentIndex = folders.index(card.folder)

    def show_models(self, cards: Sequence[ModelCard]) -> None:
        """Offer these models; the chosen model stays chosen, otherwise the first is."""
        chosen = self._card()
        self._cards = ()  # so that signals of the selector meanwhile do not refer to a model
        selector = self._ui.modelSelector
        selector.clear()
        for title in titled(cards):
            selector.addItem(title)
        self._cards = tuple(cards)
        folders = [card.folder for card in cards]
        first = 0 if cards else -1
        kept = folders.index(chosen.folder) if chosen and chosen.folder in folders else first
        selector.blockSignals(True)
        selector.currentIndex = kept
        selector.blockSignals(False)
        self.browser.show_cards(cards)
        self._on_model_changed(kept)

    def show_devices(self, devices: Sequence[DeviceChoice]) -> None:
        """Show the devices to choose from."""
        self._options.show_devices(devices)

    def show_frames(self, count: int) -> None:
        """Offer this many frames of a sequence; 0 if the volume is not part of one."""
        self._inputs.show_frames(count)

    def show_guess(self, nodes: Mapping[str, Node]) -> None:
        """Choose these nodes for the channels of the model, to be checked by the user."""
        self._inputs.show_guess(nodes)

    def show_plan(self, text: str, ready: bool, details: str = "") -> None:
        """Show what will run, or why nothing can run (`ready` is false then)."""
        say(self._ui.planLabel, text)
        self._ui.planLabel.toolTip = label_text(details)
        self._ready = ready
        self._update_buttons()

    def show_running(self) -> None:
        """Show that a job is running."""
        self._running = True
        self._ui.progressBar.value = 0
        self._ui.progressBar.format = _("Starting …")
        self._ui.progressBar.visible = True
        self.show_message("")
        self._update_buttons()

    def show_cancelling(self) -> None:
        """Show that a job is being cancelled."""
        self._ui.cancelButton.enabled = False
        self._ui.progressBar.format = _("Stopping …")

    def show_progress(self, event: ProgressEvent) -> None:
        """Show the progress of the job."""
        self._ui.progressBar.value = round(PROGRESS_STEPS * event.fraction)
        self._ui.progressBar.format = progress_text(event)

    def show_idle(self) -> None:
        """Show that no job is running."""
        self._running = False
        self._ui.progressBar.visible = False
        self._update_buttons()

    def show_message(self, text: str) -> None:
        """Show a sentence below the button."""
        say(self._ui.messageLabel, text)
        self._ui.logButton.visible = False

    def show_error(self, text: str, log: bool = False) -> None:
        """Show an error; with `log` a button opens the worker's log."""
        say(self._ui.messageLabel, text, error_style(self._ui.messageLabel))
        self._ui.logButton.visible = log

    def _connect(self) -> None:
        ui = self._ui
        ui.segmentButton.connect("clicked()", self.segment_requested.emit)
        ui.cancelButton.connect("clicked()", self.cancel_requested.emit)
        ui.logButton.connect("clicked()", self.log_requested.emit)
        ui.sampleButton.connect("clicked()", self.sample_requested.emit)
        ui.regionButton.connect("clicked()", self.region_requested.emit)
        ui.modelsButton.connect("clicked()", self._browse)
        ui.modelSelector.connect("currentIndexChanged(int)", self._on_model_changed)

    def _browse(self) -> None:
        card = self._card()
        if card is not None:
            self.browser.select(card)
        self.browser.open()

    def _card(self) -> ModelCard | None:
        index = self._ui.modelSelector.currentIndex
        return self._cards[index] if 0 <= index < len(self._cards) else None

    def _chosen_cards(self) -> tuple[ModelCard, ...]:
        card = self._card()
        if card is None:
            return ()
        others = self._others()
        return (card, *(others[name] for name in self._options.other_models() if name in others))

    def _others(self) -> dict[str, ModelCard]:
        """Return the models that can run together with the chosen one, by their titles."""
        card = self._card()
        titles = titled(self._cards)
        others = [] if card is None else usable_together(card, self._cards)
        return {title: other for title, other in titles.items() if other in others}

    def _on_model_changed(self, _index: int) -> None:
        card = self._card()
        self._options.set_model(card)
        self._speed.set_model(card)
        self._ui.sampleButton.visible = card is not None and bool(card.sample)
        self._options.set_others(tuple(self._others()))
        self._inputs.set_channels(card)
        self._ui.modelSelector.toolTip = "" if card is None else label_text(_card_text(card))
        self.model_changed.emit()
        self.choice_changed.emit()

    def _update_buttons(self) -> None:
        self._ui.segmentButton.enabled = self._ready
        self._ui.segmentButton.text = _("Add to the queue") if self._running else _("Segment")
        self._ui.cancelButton.enabled = self._running


def _card_text(card: ModelCard) -> str:
    licence = card.licence and _("Licence: {name}").format(name=card.licence)
    parts = (card.description, card.intended_use, licence)
    return "\n".join(part for part in parts if part)

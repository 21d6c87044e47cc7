"""What the parts of the controller share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from medsegai.errors import Cancelled, MedSegAIError, ModelError, RequestError, WorkerError
from medsegai.models.card import CARD_NAME, ModelCard
from medsegai.progress import ProgressEvent
from medsegai.request import SegmentationRequest, request_from_options
from medsegai.volume import Volume
from MedSegAILib.controller.devices import Devices
from MedSegAILib.controller.estimates import Estimates
from MedSegAILib.controller.protocols import (
    HostProtocol,
    PanelProtocol,
    QueueProtocol,
    SceneProtocol,
)
from MedSegAILib.output_choice import OutputMode
from MedSegAILib.panel_values import Choice
from MedSegAILib.progress_text import progress_text
from MedSegAILib.translation import tr as _
from MedSegAILib.worker.location import PlaceKind

NO_MODEL = "There is no model. Import one with Browse…, or reinstall MedSegAI."

TIMES = "model_times"
"""Name of the setting that holds what jobs took, per voxel of the models' grids."""


@dataclass
class Context:
    """Panel, scene, queue and application, and what is known of the devices.

    Attributes:
        forgotten: jobs of a scene that was closed; how they end interests nobody.
    """

    panel: PanelProtocol
    scene: SceneProtocol
    queue: QueueProtocol
    host: HostProtocol
    devices: Devices = field(default_factory=Devices)
    forgotten: set[Any] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.estimates = Estimates(
            lambda: self.host.setting(TIMES), lambda text: self.host.set_setting(TIMES, text)
        )

    def progressed(self, event: ProgressEvent) -> None:
        """Show how far a job is, on the page and for those who are in another module."""
        self.panel.show_progress(event)
        self.host.show_status(f"MedSegAI: {progress_text(event)}")

    def forget_jobs(self) -> None:
        """The scene closes: nothing is to be said of the jobs that end with it."""
        self.forgotten = {entry.listener for entry in self.queue.entries if not entry.over}

    def is_forgotten(self, job: Any) -> bool:
        """Whether a job has ended with its scene; asked once, because it may be run again."""
        was_forgotten = job in self.forgotten
        self.forgotten.discard(job)
        return was_forgotten

    def tell(self, error: MedSegAIError) -> None:
        """Say how a job ended that gave nothing."""
        if isinstance(error, Cancelled):
            self.panel.show_message(str(error))
        else:
            self.panel.show_error(str(error), log=isinstance(error, WorkerError))

    def place_is_here(self) -> bool:
        """Whether the worker runs in Slicer's own Python, where things may have to be installed."""
        return self.host.place().kind is PlaceKind.OWN

    def request(self, choice: Choice, volumes: Sequence[Volume]) -> SegmentationRequest:
        """The request of a choice, with these voxels.

        Raises:
            MedSegAIError: the options, the output or the region do not fit, or a model is gone.
        """
        if choice.output.mode in (OutputMode.UPDATE, OutputMode.ADD) and choice.output.node is None:
            raise RequestError(
                _("Choose the segmentation that the result goes into, or a new one as the result.")
            )
        if choice.every_frame and choice.output.mode is not OutputMode.NEW:
            raise RequestError(
                _("Every frame of a sequence gets a new segmentation. Choose that as the result.")
            )
        options = dict(choice.options) | {
            "models": self.models(choice),
            "candidates": not choice.every_frame,
        }
        if len(choice.cards) > 1:
            options["members"] = ()  # their names belong to one model
        if choice.bounds:
            options["region"] = choice.bounds
        elif choice.region is not None:
            options["region"] = self.scene.region(choice.region)
        return request_from_options(tuple(volumes), options)

    def models(self, choice: Choice) -> tuple[str, ...]:
        """What finds the chosen models again.

        Raises:
            ModelError: one was removed meanwhile, or none is chosen.
        """
        if not choice.cards:
            raise ModelError(_(NO_MODEL))
        return tuple(self._model(card) for card in choice.cards)

    def _model(self, card: ModelCard) -> str:
        """What finds exactly this card again: its folder, for two models could have one id.

        Raises:
            ModelError: it was removed meanwhile.
        """
        if not self.host.place().shares_files:
            return card.id
        if not card.in_place and not (card.folder / CARD_NAME).is_file():
            raise ModelError(
                _("The model {name} is no longer in {folder}. Import it again.").format(
                    name=card.name, folder=card.folder
                )
            )
        return str(card.folder)

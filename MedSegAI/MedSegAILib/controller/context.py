"""The shared context of the controller's parts."""

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

NO_MODEL = _("There is no model. Import one with Browse…, or reinstall MedSegAI.")

TIMES = "model_times"
"""The name of the setting with the times of jobs, per voxel of the models' grids."""


@dataclass
class Context:
    """Panel, scene, queue and application, and the known devices.

    Attributes:
        forgotten: the jobs of a closed scene, whose ends are not reported.
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
        """Show the progress of a job on the page, and in the status bar for users of other modules."""
        self.panel.show_progress(event)
        self.host.show_status(f"MedSegAI: {progress_text(event)}")

    def forget_jobs(self) -> None:
        """Forget the jobs of a scene that closes, so that their ends are not reported."""
        self.forgotten = {entry.listener for entry in self.queue.entries if not entry.over}

    def is_forgotten(self, job: Any) -> bool:
        """Whether a job has ended with its scene; the job is then forgotten, because it may be run again."""
        was_forgotten = job in self.forgotten
        self.forgotten.discard(job)
        return was_forgotten

    def tell(self, error: MedSegAIError) -> None:
        """Report how a job without result ended."""
        if isinstance(error, Cancelled):
            self.panel.show_message(str(error))
        else:
            self.panel.show_error(str(error), log=isinstance(error, WorkerError))

    def place_is_here(self) -> bool:
        """Whether the worker runs in Slicer's own Python, where packages may have to be installed."""
        return self.host.place().kind is PlaceKind.OWN

    def request(self, choice: Choice, volumes: Sequence[Volume]) -> SegmentationRequest:
        """Return the request of a choice, with these voxels.

        Raises:
            MedSegAIError: the options, the output or the region are not valid, or a model was removed.
        """
        _check_output(choice)
        options = dict(choice.options) | {
            "models": self.models(choice),
            "candidates": not choice.every_frame,
        }
        if len(choice.cards) > 1:
            options["members"] = ()  # their names belong to a single model
        if choice.bounds:
            options["region"] = choice.bounds
        elif choice.region is not None:
            options["region"] = self.scene.region(choice.region)
        return request_from_options(tuple(volumes), options)

    def models(self, choice: Choice) -> tuple[str, ...]:
        """Return the names that find the chosen models again.

        Raises:
            ModelError: a model was removed meanwhile, or none is chosen.
        """
        if not choice.cards:
            raise ModelError(NO_MODEL)
        return tuple(self._model(card) for card in choice.cards)

    def _model(self, card: ModelCard) -> str:
        """Return the name that finds exactly this card again: its folder, because two models may have the same id.

        Raises:
            ModelError: the model was removed meanwhile.
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


def _check_output(choice: Choice) -> None:
    if choice.output.mode in (OutputMode.UPDATE, OutputMode.ADD) and choice.output.node is None:
        raise RequestError(
            _("The output segmentation is not chosen. Choose it, or a new one as the result.")
        )
    if choice.every_frame and choice.output.mode is not OutputMode.NEW:
        raise RequestError(
            _("Every frame of a sequence needs a new segmentation. Choose that as the result.")
        )

"""What happens when: neither Qt nor MRML, so a test needs no window and no scene.

Panel, scene and worker client come as arguments; anything that has the methods below will do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from medsegai.card import ModelCard, load_card
from medsegai.catalogue import card_files
from medsegai.errors import Cancelled, MedSegAIError, ModelError, RequestError
from medsegai.progress import ProgressEvent
from medsegai.request import (
    NOT_FOR_DIAGNOSIS,
    SegmentationRequest,
    SegmentationResult,
    StructureMeasures,
    request_from_options,
)
from medsegai.volume import Volume
from MedSegAILib.signals import Signal
from MedSegAILib.translation import tr as _


class PanelChoice(Protocol):
    """See `panel.Choice`."""

    @property
    def node(self) -> Any: ...
    @property
    def card(self) -> ModelCard | None: ...
    @property
    def options(self) -> dict[str, Any]: ...


class PanelProtocol(Protocol):
    """See `panel.Panel`."""

    segment_requested: Signal
    cancel_requested: Signal
    choice_changed: Signal

    def choice(self) -> PanelChoice: ...
    def show_models(self, cards: Sequence[ModelCard]) -> None: ...
    def show_plan(self, text: str, ready: bool) -> None: ...
    def show_running(self) -> None: ...
    def show_cancelling(self) -> None: ...
    def show_progress(self, event: ProgressEvent) -> None: ...
    def show_idle(self) -> None: ...
    def show_message(self, text: str) -> None: ...
    def show_error(self, text: str) -> None: ...
    def show_structures(self, structures: Sequence[StructureMeasures]) -> None: ...


class SceneProtocol(Protocol):
    """See `scene.Scene`."""

    def read(self, node: Any) -> Volume: ...
    def write(self, source: Any, result: SegmentationResult) -> Any: ...


class ClientProtocol(Protocol):
    """See `worker_client.WorkerClient`."""

    @property
    def busy(self) -> bool: ...
    def start(self, request: SegmentationRequest, listener: Any) -> None: ...
    def cancel(self) -> None: ...


class Controller:
    """Joins panel, scene and worker client.

    Args:
        prepare: called before each job; installs what is missing, and raises a `MedSegAIError` if
            that does not work or the user declines.
    """

    def __init__(
        self,
        panel: PanelProtocol,
        scene: SceneProtocol,
        client: ClientProtocol,
        prepare: Callable[[], None],
    ) -> None:
        self._panel, self._scene, self._client, self._prepare = panel, scene, client, prepare
        panel.segment_requested.connect(self.start)
        panel.cancel_requested.connect(self.cancel)
        panel.choice_changed.connect(self.update_plan)

    def show_models(self, files: Iterable[Path] | None = None) -> None:
        """Offer the models that are at hand; a card that cannot be read is told, and left out."""
        cards, problems = [], []
        for file in card_files() if files is None else files:
            try:
                cards.append(load_card(file))
            except ModelError as error:
                problems.append(str(error))
        self._panel.show_models(cards)
        if problems:
            self._panel.show_error("\n".join(problems))

    def update_plan(self) -> None:
        """Say what Segment would do with the present choice, or why it cannot."""
        try:
            choice = self._panel.choice()
            request = self._request(choice)
        except MedSegAIError as error:
            self._panel.show_plan(str(error), False)
        else:
            self._panel.show_plan(_plan(choice, request), True)

    def start(self) -> None:
        """Run the present choice."""
        if self._client.busy:  # a script's job: the panel's own would have locked the button
            self._panel.show_error(_("A job is under way. Wait for it, or cancel it first."))
            return
        try:
            choice = self._panel.choice()
            self._prepare()
            request = self._request(choice)
            self._panel.show_running()
            self._client.start(request, _Job(self._panel, self._scene, choice.node))
        except MedSegAIError as error:
            self._panel.show_idle()
            self._panel.show_error(str(error))

    def cancel(self) -> None:
        """Stop the job, if there is one; the panel hears of it when it has stopped."""
        if self._client.busy:
            self._panel.show_cancelling()
            self._client.cancel()

    def _request(self, choice: PanelChoice) -> SegmentationRequest:
        """Everything that can be told before a job is checked here.

        Raises:
            MedSegAIError: what was chosen cannot be run.
        """
        volume = self._scene.read(choice.node)
        if choice.card is None:
            raise ModelError(
                _("There is no model. Import one with `medsegai models import`, or reinstall.")
            )
        needed = [channel.name for channel in choice.card.channels if channel.required]
        if len(needed) > 1:
            raise RequestError(
                _("{model} needs {count} images ({names}); the panel takes one so far.").format(
                    model=choice.card.name, count=len(needed), names=", ".join(needed)
                )
            )
        return request_from_options((volume,), {**choice.options, "models": (_name(choice.card),)})


class _Job:
    """Hears of one job and shows it; its result goes into the scene beside the job's input."""

    def __init__(self, panel: PanelProtocol, scene: SceneProtocol, node: Any) -> None:
        self._panel, self._scene, self._node = panel, scene, node

    def progressed(self, event: ProgressEvent) -> None:
        self._panel.show_progress(event)

    def finished(self, result: SegmentationResult) -> None:
        self._panel.show_idle()
        try:
            segmentation = self._scene.write(self._node, result)
        except MedSegAIError as error:
            self._panel.show_error(str(error))
            return
        self._panel.show_structures(result.structures)
        self._panel.show_message(_summary(segmentation.GetName(), result))

    def failed(self, error: MedSegAIError) -> None:
        self._panel.show_idle()
        if isinstance(error, Cancelled):
            self._panel.show_message(str(error))
        else:
            self._panel.show_error(str(error))


def _name(card: ModelCard) -> str:
    """What finds exactly this card again: its folder, for two models could have one id."""
    return str(card.folder)


def _plan(choice: PanelChoice, request: SegmentationRequest) -> str:
    card, volume = choice.card, request.inputs[0]
    assert card is not None
    assert isinstance(volume, Volume)
    members = request.members or tuple(member.name for member in card.members)
    return _("{model} {version} on {volume} ({grid}): {members}. Device: {device}.").format(
        model=card.name,
        version=card.version,
        volume=volume.source,
        grid=volume.geometry.describe(),
        members=", ".join(members),
        device=_("the fastest there is") if request.device == "auto" else request.device,
    )


def _summary(name: str, result: SegmentationResult) -> str:
    found = sum(1 for measures in result.structures if measures.voxels)
    lines = [
        _("{name}: {found} of {all} structures in {seconds:.1f} s on {device}.").format(
            name=name,
            found=found,
            all=len(result.structures),
            seconds=sum(result.seconds.values()),
            device=result.provenance.get("device", "?"),
        ),
        *result.warnings,
        _(NOT_FOR_DIAGNOSIS),
    ]
    return "\n".join(lines)

"""From the choice in the panel to the result in the scene: the plan, the queue, and each job's end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from medsegai.errors import (
    InputError,
    MedSegAIError,
    ModelError,
    RequestError,
)
from medsegai.models.suitability import mismatches
from medsegai.progress import ProgressEvent
from medsegai.request import SegmentationRequest, SegmentationResult
from medsegai.volume import Volume
from MedSegAILib.controller import texts
from MedSegAILib.controller.context import NO_MODEL, Context
from MedSegAILib.controller.results import Results
from MedSegAILib.guarding import guarded
from MedSegAILib.output_choice import OutputChoice, OutputMode
from MedSegAILib.panel_values import Choice
from MedSegAILib.slicer_types import Node, SegmentationNode, VolumeNode
from MedSegAILib.translation import tr as _

if TYPE_CHECKING:
    from MedSegAILib.scene.writing import Preview
    from MedSegAILib.worker.queue import Entry

NO_VOLUME = _("There is no input volume. Load an image and choose it.")

VOLUME_GONE = _("The volume {name} has left the scene. Load it again.")
OUTPUT_GONE = _(
    "The segmentation {name} has left the scene. Choose another output, and run it again."
)
OTHER_FRAME = _(
    "{name} no longer shows frame {number}, which was segmented. Go to that frame, choose the job in "
    "the queue, and press Try again."
)
FRAME_SEGMENTED = _("The result is that of frame {number} of {name}, which now shows another one.")
VOXELS_CHANGED = _(
    "The voxels of {name} were changed while they were segmented, so the result is that of the earlier image."
)
OTHER_OUTPUT = _(
    "{name} was made from {scan}, but {chosen} is chosen as the volume. Replace its segments with "
    "those of {chosen}?"
)
ALSO_DONE = _("{name} is done. Choose it above the table when you have finished {shown}.")
NEEDED = _("{model} needs {count} images. Choose a volume for {names}.")


class Jobs:
    """Plans, starts and ends jobs.

    Args:
        results: the table that shows the segmentation in the scene.
    """

    def __init__(self, context: Context, results: Results) -> None:
        self._context, self._results = context, results
        self._running: Entry | None = None
        self._previews: list[Preview] = []
        panel, queue = context.panel, context.queue
        panel.segment_requested.connect(self.start)
        panel.cancel_requested.connect(self.cancel)
        panel.choice_changed.connect(self.update_plan)
        panel.sample_requested.connect(self.load_sample)
        panel.region_requested.connect(self.make_region)
        panel.model_changed.connect(self.guess_channels)
        panel.results.slab_requested.connect(self.start_in_slab)
        panel.preview.accepted.connect(self.accept)
        panel.preview.rejected.connect(self.reject)
        panel.queue.move_requested.connect(queue.move)
        panel.queue.again_requested.connect(queue.again)
        panel.queue.cancel_requested.connect(queue.cancel)
        panel.queue.remove_requested.connect(queue.remove)
        panel.queue.clear_requested.connect(queue.remove_ended)
        queue.changed.connect(self._on_queue_changed)

    def guess_channels(self) -> None:
        """If a model takes several images, choose those whose names fit; earlier choices stay."""
        choice = self._context.panel.choice()
        card = choice.card
        if card is None or len(card.channels) < 2 or card.takes_one_picture:
            return
        guess = self._context.scene.guess_channels(card, self._context.scene.volumes())
        chosen = [node for node in list(choice.nodes.values())[1:] if node is not None]
        if not chosen:  # its selector chooses by itself
            self._context.panel.show_guess(guess)

    def update_plan(self) -> None:
        """Show what Segment would do with the present choice, or why it cannot."""
        panel = self._context.panel
        try:
            choice = panel.choice()
            panel.show_frames(
                0 if choice.node is None else len(self._context.scene.frames(choice.node))
            )
            request = self._request(choice)
        except MedSegAIError as error:
            panel.show_plan(str(error), False)
        else:
            seconds = self._context.estimates.seconds(choice.cards, request)
            plan = texts.plan(choice.cards, request, self._context.devices, seconds)
            plan = f"{plan} {texts.travel(self._context.host.place())}".strip()
            panel.show_plan(plan, True, texts.details(choice.cards, request))

    def load_sample(self) -> None:
        """Load the sample scan of the model."""
        panel, card = self._context.panel, self._context.panel.choice().card
        if card is None or not card.sample:
            return
        panel.show_message(_("Loading {name} …").format(name=card.sample))
        try:
            node = self._context.host.load_sample(card.sample)
        except MedSegAIError as error:
            panel.show_error(str(error))
        else:
            panel.show_message("")
            panel.choose_input(node)

    def make_region(self) -> None:
        """Restrict the job to a box in the middle of the volume, which the user then moves."""
        panel, choice = self._context.panel, self._context.panel.choice()
        try:
            if choice.node is None:
                raise InputError(NO_VOLUME)
            panel.choose_region(self._context.scene.new_region(choice.node))
        except MedSegAIError as error:
            panel.show_error(str(error))

    def start(self) -> None:
        """Put the present choice into the queue; it starts at once if no other job runs."""
        self._start(self._context.panel.choice())

    def start_in_slab(self) -> None:
        """Run the present model again around the shown slice of the scan, into the segmentation in the table."""
        try:
            choice = self._results.choice()
            chosen_nodes(choice)
            bounds = self._context.host.slab(choice.node)
        except MedSegAIError as error:
            self._context.panel.show_error(str(error))
            return
        output = OutputChoice(OutputMode.UPDATE, self._results.node)
        self._start(replace(choice, bounds=bounds, region=None, output=output, every_frame=False))

    def _start(self, choice: Choice) -> None:
        context = self._context
        context.panel.show_message("")
        try:
            if context.place_is_here():
                context.host.prepare([extra for card in choice.cards for extra in card.extras()])
            request = self._request(choice)
        except MedSegAIError as error:
            context.panel.show_error(str(error))
            return
        confirmed = self._confirmed(choice, request) if self._fits_output(choice) else None
        if confirmed is not None:
            self._results.expect()
            self._add(confirmed, _source(request))

    def _fits_output(self, choice: Choice) -> bool:
        """Whether the result may change the chosen segmentation; asked if it was made from another scan."""
        context, output = self._context, choice.output
        scan = context.scene.reference_volume(output.node)
        if output.mode is not OutputMode.UPDATE or scan in (None, *choice.nodes.values()):
            return True
        names = {"name": output.node.GetName(), "scan": scan.GetName()}
        question = OTHER_OUTPUT.format(**names, chosen=choice.node.GetName())
        return context.host.confirm(question)

    def _confirmed(self, choice: Choice, request: SegmentationRequest) -> Choice | None:
        """Return a choice that may be run, perhaps after a question; None if the user refused."""
        problems = () if request.anyway else mismatches(choice.cards, _volumes(request))
        if not problems:
            return choice
        question = _("{problem} Segment it anyway?").format(problem=" ".join(problems))
        if not self._context.host.confirm(question):
            return None
        return replace(choice, options=dict(choice.options) | {"anyway": True})

    def _add(self, choice: Choice, name: str) -> None:
        """Add a job to the queue for the image, or for every frame of a sequence."""
        context = self._context
        frames = context.scene.frames(choice.node) if choice.every_frame else (None,)
        series = _Series()
        for frame in frames:
            title = f"{name}: {' + '.join(card.name for card in choice.cards)}"
            title += "" if frame is None else _(", frame {number}").format(number=frame + 1)
            job = _SegmentationJob(self, choice, frame, series)
            context.queue.add(title, job.make_request, job)

    def cancel(self) -> None:
        """Stop the running job; the panel is notified when it has stopped."""
        running = self._under_way()
        if running is not None:
            self._context.panel.show_cancelling()
            self._context.queue.cancel(running)

    def accept(self) -> None:
        """Keep the preview that is shown, and report what of it was not possible."""
        if self._conclude_preview(lambda preview: preview.accept()):
            self._context.panel.show_message("\n".join(self._context.scene.notes))

    def reject(self) -> None:
        """Discard the previewed result."""
        self._conclude_preview(lambda preview: preview.reject())

    def forget_previews(self) -> None:
        """Forget previews, because the scene was closed."""
        self._previews = []
        self._context.panel.preview.show("")

    def place(
        self,
        source: VolumeNode,
        output: OutputChoice,
        frame: int | None,
        result: SegmentationResult,
        remark: str = "",
    ) -> SegmentationNode:
        """Write a result into the scene, as the user chose, and show `remark` beside the scene's notes.

        Returns:
            The segmentation node.

        Raises:
            MedSegAIError: its output is no longer in the scene.
        """
        scene, reviewed = self._context.scene, self._results.is_reviewed_instead_of(source)
        if output.mode is OutputMode.PREVIEW:
            preview = scene.preview(source, result, output)
            self._previews.append(preview)
            self._show_preview()
            if preview.place is not None and not reviewed:
                scene.jump(preview.place)
            node, notes = preview.node, preview.notes
        else:
            node = scene.write(source, result, output, frame)
            notes = scene.notes
        if not reviewed:
            self._results.show_chosen(node)
        elif node is not self._results.node:
            names = {"name": node.GetName(), "shown": self._results.node.GetName()}
            remark = "\n".join(filter(None, (ALSO_DONE.format(**names), remark)))
        self._context.panel.show_message("\n".join(filter(None, (remark, *notes))))
        self._context.host.show_status(_("MedSegAI: {name} is done.").format(name=node.GetName()))
        return node

    def _conclude_preview(self, conclude: Callable[[Preview], SegmentationNode]) -> bool:
        """Accept or reject the preview that is shown; return whether that was possible."""
        if not self._previews:
            return False
        preview, node = self._previews[0], None
        failures: list[Exception] = []
        title = preview.node.GetName()
        with guarded(failures.append, "The preview %s could not be concluded", title):
            try:
                node = conclude(preview)
            except MedSegAIError as error:
                self._context.panel.show_error(str(error))
                if self._context.scene.is_present(preview.node):
                    return False  # it is unchanged, and can be rejected
        for failure in failures:
            self._context.panel.show_error(texts.defect(failure), log=True)
            if self._context.scene.is_present(preview.node):
                return False  # it is unchanged, and can be tried again
        self._previews.pop(0)
        self._show_preview()
        self._results.show_chosen(node)
        return node is not None

    def _show_preview(self) -> None:
        self._context.panel.preview.show(self._previews[0].node.GetName() if self._previews else "")

    def _on_queue_changed(self) -> None:
        panel, running = self._context.panel, self._under_way()
        if running is not self._running:
            self._running = running
            if running is None:
                panel.show_idle()
                self.update_plan()  # the time that this takes is now known
            else:
                panel.show_running()
        if running is not None and running.message:  # it has not progressed for a long time
            panel.show_message(running.message)
        panel.queue.show(self._context.queue.entries)

    def _under_way(self) -> Entry | None:
        entries = self._context.queue.entries
        return next((entry for entry in entries if str(entry.state) == "running"), None)

    def _request(self, choice: Choice) -> SegmentationRequest:
        """Return the request of a choice, after all checks that are possible before a job.

        Raises:
            MedSegAIError: the choice cannot be run.
        """
        self._context.scene.check_output(choice.output)
        volumes = self._context.scene.read_channels(chosen_nodes(choice))
        return self._context.request(choice, volumes)


@dataclass
class _Series:
    """The shared state of the frames of a sequence: the segmentation of the first frame."""

    node: Node = None


class _SegmentationJob:
    """One entry of the queue, which reads its input when its turn comes, and is notified of its end."""

    def __init__(self, jobs: Jobs, choice: Choice, frame: int | None, series: _Series) -> None:
        self._jobs, self._choice, self._frame, self._series = jobs, choice, frame, series
        self._request: SegmentationRequest | None = None
        self._context = jobs._context
        shown = self._context.scene.current_frame(choice.node)
        self._shown = shown if frame is None else None
        self._checksum = 0

    def make_request(self) -> SegmentationRequest:
        """Return the request with the present voxels, region and models."""
        choice, context = self._choice, self._context
        for node in chosen_nodes(choice):
            if not context.scene.is_present(node):
                raise InputError(VOLUME_GONE.format(name=node.GetName()))
        output = choice.output.node
        if output is not None and not context.scene.is_present(output):
            raise InputError(OUTPUT_GONE.format(name=output.GetName()))
        self._request = context.request(choice, self._volumes())
        return self._request

    def _volumes(self) -> tuple[Volume, ...]:
        """Return the voxels of the frame, or of the one that was shown when the button was pressed."""
        scene, nodes = self._context.scene, chosen_nodes(self._choice)
        frame = self._shown if self._has_moved() else self._frame
        if frame is not None:
            return tuple(
                scene.read_frame(node, frame)
                if scene.frames(node)
                else scene.read_channels([node])[0]
                for node in nodes
            )
        self._checksum = scene.checksum(nodes[0])
        return scene.read_channels(nodes)

    def _has_moved(self) -> bool:
        """Whether the browser of a sequence shows another frame than when the button was pressed."""
        current = self._context.scene.current_frame(self._choice.node)
        return self._shown is not None and current != self._shown

    def _remark(self) -> str:
        """Return what the volume shows instead of what was segmented; "" if nothing changed.

        Raises:
            InputError: the output shows another frame, too.
        """
        scene, source, output = self._context.scene, self._choice.node, self._choice.output
        names = {"name": source.GetName(), "number": (self._shown or 0) + 1}
        if self._has_moved():
            if output.node is not None and scene.goes_along(output.node, source):
                raise InputError(OTHER_FRAME.format(**names))
            return FRAME_SEGMENTED.format(**names)
        if self._checksum and scene.is_present(source) and scene.checksum(source) != self._checksum:
            return VOXELS_CHANGED.format(**names)
        return ""

    def progressed(self, event: ProgressEvent) -> None:
        self._context.progressed(event)

    def finished(self, result: SegmentationResult) -> None:
        if self._request is not None:
            self._context.estimates.learn(self._choice.cards, self._request, result)
        self._request = None  # it holds the voxels
        output = self._choice.output
        if self._frame is not None:
            output = replace(output, node=self._series.node)
        remark = "" if self._frame is not None else self._remark()
        node = self._jobs.place(self._choice.node, output, self._frame, result, remark)
        nodes = chosen_nodes(self._choice)
        self._context.scene.note_channels(node, dict(zip(self._choice.nodes, nodes, strict=False)))
        self._series.node = node

    def failed(self, error: MedSegAIError) -> None:
        self._request = None
        if not self._context.is_forgotten(self):
            self._context.tell(error)


def chosen_nodes(choice: Choice) -> list[Node]:
    """Return one node for each channel, or one for a picture; optional channels may be missing from the end.

    Raises:
        MedSegAIError: a model or a required volume is missing.
    """
    if choice.card is None:
        raise ModelError(NO_MODEL)
    if all(node is None for node in choice.nodes.values()):
        raise InputError(NO_VOLUME)
    if choice.card.takes_one_picture:
        return [choice.node]
    channels = choice.card.channels
    given = [choice.nodes.get(channel.name) is not None for channel in channels]
    needed = max((n for n, c in enumerate(channels, 1) if c.required or given[n - 1]), default=1)
    missing = [c.name for c in channels[:needed] if choice.nodes.get(c.name) is None]
    if missing:
        names = {"model": choice.card.name, "count": needed, "names": ", ".join(missing)}
        raise RequestError(NEEDED.format(**names))
    return [choice.nodes[channel.name] for channel in channels[:needed]]


def _volumes(request: SegmentationRequest) -> list[Volume]:
    return [item for item in request.inputs if isinstance(item, Volume)]


def _source(request: SegmentationRequest) -> str:
    volume = request.inputs[0]
    return volume.source if isinstance(volume, Volume) else Path(volume).name

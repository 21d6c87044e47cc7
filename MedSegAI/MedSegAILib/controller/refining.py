"""Refinement of an existing segmentation: preview, apply or cancel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from medsegai.errors import Cancelled, MedSegAIError, RequestError, WorkerError
from medsegai.progress import ProgressEvent
from medsegai.refinements import title as title_of_refinement
from medsegai.worker.requests import RefinementResult
from MedSegAILib.controller import texts
from MedSegAILib.controller.context import Context
from MedSegAILib.controller.results import Results
from MedSegAILib.guarding import guarded
from MedSegAILib.panel_values import RefineChoice
from MedSegAILib.slicer_types import Node, SegmentationNode
from MedSegAILib.translation import tr as _
from MedSegAILib.worker.deferred_request import Reading

if TYPE_CHECKING:
    from MedSegAILib.scene.refining import Draft
    from MedSegAILib.worker.queue import Entry


STALE = _("The preview was removed, because it was made with other choices.")
ONLY_SHOWN = _(
    "This is a preview: Apply makes it the segmentation, Cancel removes it. Green would be "
    "added, red removed, and yellow moved from one segment to another."
)
WAITS = _("The refinement is waiting in the queue.")
NOTHING = _("The refinements did not find anything to change.")
NONE_TICKED = _("No segment is ticked. Tick the segments to refine, or choose all segments.")


class Refining:
    """Connects the section of the panel with scene and worker.

    Args:
        results: the table that shows the changed segments.
    """

    def __init__(self, context: Context, results: Results) -> None:
        self._context, self._results = context, results
        self._view = context.panel.refine
        self._entry: Entry | None = None
        self._preview: Any = None
        self._words: tuple[str, ...] = ()
        self._edits = ""
        view = self._view
        view.segmentation_chosen.connect(self.show)
        view.choice_changed.connect(self._on_choice)
        view.preview_requested.connect(self.preview)
        view.apply_requested.connect(self.apply)
        view.cancel_requested.connect(self.cancel)
        context.panel.results.segmentation_chosen.connect(self._follow_results)

    def _follow_results(self, node: Node) -> None:
        """Choose the segmentation of the table, unless a preview of another one waits for a decision."""
        if self._preview is None:
            self._view.choose(node)

    def show(self, node: Node) -> None:
        """Offer the segments of a segmentation node, and the volume from which it was made."""
        present = node is not None and self._context.scene.is_present(node)
        self._view.show_segments(self._context.scene.segments(node) if present else ())
        if present:
            self._view.choose_image(self._context.scene.reference_volume(node))

    def refresh(self) -> None:
        """Show the segments again, which may have been renamed, drawn or completed since."""
        node = self._view.choice().segmentation
        present = node is not None and self._context.scene.is_present(node)
        self._view.show_segments(self._context.scene.segments(node) if present else ())

    def preview(self) -> None:
        """Compute what would change, and show it."""
        self._start(shown_only=True)

    def apply(self) -> None:
        """Make the preview the segmentation; without a preview, apply the chosen refinement at once."""
        if self._preview is None:
            self._start(shown_only=False)
            return
        preview, self._preview = self._preview, None
        node: SegmentationNode = None
        failures: list[Exception] = []
        with guarded(failures.append, "The preview of a refinement could not be applied"):
            try:
                node = preview.accept()
            except MedSegAIError as error:
                self._view.show_message(str(error), problem=True)
        for failure in failures:
            self._keep(preview, failure)
        if node is not None:
            self._tell(*self._words, *self._context.scene.notes)
            self._refresh(node)
        self._show_state()

    def _keep(self, preview: Any, failure: Exception) -> None:
        self._context.panel.show_error(texts.defect(failure), log=True)
        if self._context.scene.is_present(preview.node):
            self._preview = preview  # it is unchanged, and can be tried again

    def cancel(self) -> None:
        """Stop the running refinement, or remove the preview."""
        if self._entry is not None:
            self._context.queue.cancel(self._entry)
        elif self._preview is not None:
            preview, self._preview = self._preview, None
            preview.reject()
            self._show_state()
            self._tell(_("The preview was removed. Nothing was changed."))

    def forget(self) -> None:
        """Forget the preview, because the scene was closed."""
        self._preview = None
        self._view.show_message("")
        self._show_state()

    def over(self) -> None:
        """Show that the job has ended."""
        self._entry = None
        self._show_state()

    def failed(self, error: MedSegAIError) -> None:
        """Show why a refinement failed."""
        self.over()
        self._view.show_message(str(error), problem=not isinstance(error, Cancelled))
        if isinstance(error, WorkerError):
            self._context.panel.show_error(str(error), log=True)

    def finished(self, draft: Draft, result: RefinementResult, shown_only: bool) -> None:
        """Show the result of the worker, or write it."""
        self.over()
        if not result.words:
            self._tell(NOTHING, *draft.notes)
        elif shown_only:
            self._withdraw_preview()
            self._preview = self._context.scene.preview_refined(draft, result)
            self._words = result.words
            if self._preview.place is not None:
                self._context.scene.jump(self._preview.place)
            self._tell(ONLY_SHOWN, *result.words, *draft.notes, self._edits)
        else:
            node = self._context.scene.write_refined(draft, result)
            self._tell(*result.words, *self._context.scene.notes)
            self._refresh(node)
        self._show_state()

    def _start(self, shown_only: bool) -> None:
        if self._entry is not None:
            return
        context, choice = self._context, self._view.choice()
        self._edits = self._withdraw_preview()
        self._tell(self._edits)
        try:
            if context.place_is_here():
                context.host.prepare()
            job = _RefinementJob(self, context, choice, shown_only)
        except MedSegAIError as error:
            self._view.show_message(str(error), problem=True)
            return
        entry = context.queue.add(_title(choice), job.reading.make_request, job)
        job.reading.waits()
        self._entry = None if job.over else entry
        if str(entry.state) == "waiting":
            self._view.show_message(WAITS)
        self._show_state()

    def _refresh(self, node: Node) -> None:
        """Show new volumes in the table of results, if it shows this segmentation."""
        self.refresh()
        if self._results.node is node:
            self._results.refresh()

    def _on_choice(self) -> None:
        if self._preview is not None:
            self._tell(STALE, self._withdraw_preview())

    def _withdraw_preview(self) -> str:
        """Remove the preview, if there is one; return where a person's edits of it are."""
        preview, self._preview = self._preview, None
        if preview is None:
            return ""
        self._show_state()
        return str(preview.withdraw())

    def _show_state(self) -> None:
        self._view.show_state(self._entry is not None, self._preview is not None)

    def _tell(self, *sentences: str) -> None:
        self._view.show_message("\n".join(filter(None, sentences)))


class _RefinementJob:
    """One refinement, from the button to its end. It may be run again from the queue.

    Raises:
        MedSegAIError: the choice cannot be refined.
    """

    def __init__(
        self, section: Refining, context: Context, choice: RefineChoice, shown_only: bool
    ) -> None:
        self._section, self._context = section, context
        self._choice, self._shown_only = choice, shown_only
        self.over = False
        self.reading = Reading(self._read)

    def progressed(self, event: ProgressEvent) -> None:
        self._context.progressed(event)

    def finished(self, result: RefinementResult) -> None:
        self.over = True
        self.reading.answered(self._finish, result)

    def failed(self, error: MedSegAIError) -> None:
        """Show why a refinement failed."""
        self.over = True
        self.reading.forget()
        if self._context.is_forgotten(self):
            self._section.over()
        else:
            self._section.failed(error)

    def _finish(self, draft: Draft, result: RefinementResult) -> None:
        self._section.finished(draft, result, self._shown_only)

    def _read(self) -> Draft:
        choice, scene = self._choice, self._context.scene
        if not choice.every and not choice.segments:
            raise RequestError(NONE_TICKED)
        segments = () if choice.every else choice.segments
        return scene.draft(choice.segmentation, [choice.refinement], segments, choice.image)


def _title(choice: RefineChoice) -> str:
    what = title_of_refinement(choice.refinement.name)
    return _("{name}: {what}").format(name=choice.segmentation.GetName(), what=what)

"""Measurement and export of a segmentation: statistics in the scene, and files for other programs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Generic

from medsegai.errors import (
    InputError,
    MedSegAIError,
    OutputExistsError,
)
from medsegai.progress import ProgressEvent
from medsegai.worker.requests import ExportResult, MeasurementResult
from MedSegAILib.controller.context import Context
from MedSegAILib.controller.results import Results
from MedSegAILib.panel_values import ExportChoice
from MedSegAILib.slicer_types import Node
from MedSegAILib.translation import counted
from MedSegAILib.translation import tr as _
from MedSegAILib.worker.deferred_request import ReadAs, Reading, Result

if TYPE_CHECKING:
    from MedSegAILib.scene.exporting import ExportSource
    from MedSegAILib.scene.measuring import Measurable

FILES = {
    "report": "report.html",
    "csv": "measurements.csv",
    "json": "measurements.json",
    "seg": "segmentation.dcm",
    "sr": "measurements.dcm",
    "rtstruct": "contours.dcm",
    "surfaces": "surfaces",
}
"""The file names of the outputs of an export, in the chosen folder."""

REPLACE = _("Some of these files exist in {folder} already. Replace them?")


class Exporting:
    """Measures and exports the segmentation that the table of results shows.

    Args:
        results: the table, which knows the shown segmentation.
    """

    def __init__(self, context: Context, results: Results) -> None:
        self._context, self._results = context, results
        view = context.panel.results
        view.statistics_shown.connect(results.guarded(self._show_statistics))
        view.csv_requested.connect(results.guarded(self._save_csv))
        view.export_requested.connect(results.guarded(self._ask))

    def _show_statistics(self, shown: bool) -> None:
        """Measure, and show table and plot beside the views; or restore the previous views."""
        if not shown:
            self._context.host.hide_table()
            return
        view = self._context.panel.results
        view.show_statistics(False)  # until they are computed

        def show(measured: Measurable, result: MeasurementResult) -> None:
            self._context.host.show_table(self._context.scene.statistics(measured, result))
            view.show_statistics(True)
            if measured.note:
                self._context.panel.show_message(measured.note)

        self._measure(show)

    def _save_csv(self) -> None:
        name = f"{self._results.node.GetName()}.csv"
        path = self._context.host.ask_save_file(_("Save statistics"), name)

        def save(measured: Measurable, result: MeasurementResult) -> None:
            self._context.scene.write_csv(measured, result, path)
            words = (_("Wrote {path}.").format(path=path), measured.note)
            self._context.panel.show_message("\n".join(filter(None, words)))

        if path:
            self._measure(save)

    def _measure(self, then: Callable[[Measurable, MeasurementResult], None]) -> None:
        node, scene = self._results.node, self._context.scene
        self._run(
            _("{name}: measure").format(name=node.GetName()),
            lambda: scene.measurable(self._present(node)),
            then,
        )

    def _ask(self) -> None:
        """Ask for outputs and folder, and write them."""
        context, node = self._context, self._results.node
        series, reason = ("", ""), ""
        try:
            series = context.host.dicom_source(context.scene.reference_volume(node))
        except InputError as error:
            reason = str(error)
        choice = context.panel.results.ask_export(node.GetName(), reason)
        if choice is not None:
            self._export(node, choice, series, False)

    def _export(
        self, node: Node, choice: ExportChoice, series: tuple[str, str], overwrite: bool
    ) -> None:
        def read() -> ExportSource:
            wanted = outputs_of(choice)
            return self._context.scene.exported(self._present(node), wanted, series, overwrite)

        def told(read_as: ExportSource, result: ExportResult) -> None:
            self._tell(choice, result)

        def again(error: MedSegAIError) -> bool:
            """Whether the user was asked, so that the error is dealt with."""
            asks = isinstance(error, OutputExistsError) and not overwrite
            if asks and self._may_replace(choice):
                self._export(node, choice, series, True)
            return asks

        title = _("{name}: export").format(name=node.GetName())
        needs_export = bool({"seg", "surfaces"} & {*choice.parts})
        self._run(title, read, told, again, needs_export)

    def _tell(self, choice: ExportChoice, result: ExportResult) -> None:
        files = counted(len(result.files), _("file"), _("files"))
        words = _("Wrote {files} into {folder}.").format(files=files, folder=choice.folder)
        self._context.panel.show_message("\n".join((words, *result.warnings)))

    def _may_replace(self, choice: ExportChoice) -> bool:
        agreed = self._context.host.confirm(REPLACE.format(folder=choice.folder))
        if not agreed:
            self._context.panel.show_message(_("Nothing was written."))
        return agreed

    def _run(
        self,
        title: str,
        read: Callable[[], ReadAs],
        then: Callable[[ReadAs, Result], None],
        mend: Callable[[MedSegAIError], bool] = lambda error: False,
        needs_export: bool = False,
    ) -> None:
        """Put a job into the queue.

        Raises:
            MedSegAIError: missing packages were not installed, or `read` raised an error.
        """
        context = self._context
        context.panel.show_message("")
        if context.place_is_here():
            context.host.prepare(["export"] if needs_export else [])
        job = _ExportJob(context, Reading(read), then, mend)
        context.queue.add(title, job.reading.make_request, job)
        job.reading.waits()

    def _present(self, node: Node) -> Node:
        if not self._context.scene.is_present(node):
            raise InputError(
                _("The segmentation {name} has left the scene.").format(name=node.GetName())
            )
        return node


class _ExportJob(Generic[ReadAs, Result]):
    """One entry of the queue.

    Args:
        then: the function that receives the data and the result.
        mend: the function that returns whether it dealt with an error.
    """

    def __init__(
        self,
        context: Context,
        reading: Reading[ReadAs],
        then: Callable[[ReadAs, Result], None],
        mend: Callable[[MedSegAIError], bool],
    ) -> None:
        self._context, self.reading = context, reading
        self._then, self._mend = then, mend

    def progressed(self, event: ProgressEvent) -> None:
        self._context.progressed(event)

    def finished(self, result: Result) -> None:
        self.reading.answered(self._then, result)

    def failed(self, error: MedSegAIError) -> None:
        self.reading.forget()
        if not self._context.is_forgotten(self) and not self._mend(error):
            self._context.tell(error)


def outputs_of(choice: ExportChoice) -> dict[str, object]:
    """Return the choice as fields of `medsegai.export.files.Exports`."""
    paths = {part: str(Path(choice.folder) / FILES[part]) for part in choice.parts}
    options = {
        "encoding": choice.encoding,
        "formats": list(choice.formats),
        "tolerance_mm": choice.tolerance_mm,
        "space": choice.space,
    }
    return {**paths, **options}

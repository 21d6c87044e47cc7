"""The entry of the module, which builds and connects scene, panel, worker client and controller.

Slow modules are not imported here, because Slicer runs this file at every start.
"""
# ruff: noqa: PT009  (the self-test is a unittest, as Slicer runs it)

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import slicer
import slicer.util
import vtk
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
    ScriptedLoadableModuleWidget,
)

if TYPE_CHECKING:
    from medsegai.progress import ProgressEvent
    from medsegai.request import SegmentationRequest, SegmentationResult
    from medsegai.worker.requests import ExportResult, MeasurementResult, RefinementResult
    from MedSegAILib.output_choice import OutputChoice
    from MedSegAILib.scene.measuring import Measurable
    from MedSegAILib.scene.refining import Draft
    from MedSegAILib.slicer_types import Node, SegmentationNode, VolumeNode, Widget
    from MedSegAILib.worker.blocking_job import Job
    from MedSegAILib.worker.client import WorkerClient
    from MedSegAILib.worker.deferred_request import ReadAs, Reading, Result, Written
    from MedSegAILib.worker.queue import JobQueue


MODULE_FOLDER = Path(__file__).resolve().parent


class MedSegAI(ScriptedLoadableModule):
    """The description for Slicer's module list."""

    def __init__(self, parent: Widget) -> None:
        ScriptedLoadableModule.__init__(self, parent)
        parent.title = "MedSegAI"
        parent.categories = [translate("qSlicerAbstractCoreModule", "Segmentation")]
        parent.dependencies = ["Segmentations", "Volumes", "SubjectHierarchy"]
        parent.contributors = ["The MedSegAI contributors"]
        parent.helpText = _(
            "Segments a volume with AI models: choose a volume and a model, and press "
            "Segment. The networks run in a separate process on this computer, and images do "
            "not leave it unless another computer is chosen in the settings. Research "
            "software, not for diagnostic use."
        )
        parent.acknowledgementText = _(
            "Built on 3D Slicer, PyTorch, OpenVINO, SimpleITK and nibabel. The brain model follows "
            "QuickNAT (A. Guha Roy, S. Conjeti, N. Navab, C. Wachinger, NeuroImage 2019)."
        )
        slicer.app.connect("startupCompleted()", when_slicer_has_started)


class MedSegAIWidget(ScriptedLoadableModuleWidget, slicer.util.VTKObservationMixin):
    """The page of the module, which connects the panel with the other parts."""

    def __init__(self, parent: Widget = None) -> None:
        slicer.util.VTKObservationMixin.__init__(self)  # first: the next line may call setup
        ScriptedLoadableModuleWidget.__init__(self, parent)

    def setup(self) -> None:
        """Make the panel and connect it with the scene."""
        from MedSegAILib.after_event import after_event
        from MedSegAILib.controller import Controller
        from MedSegAILib.host import Host, save_undo
        from MedSegAILib.panel import Panel, dialogs
        from MedSegAILib.panel.closing import CloseFilter
        from MedSegAILib.panel.process import Programs
        from MedSegAILib.scene import Scene

        ScriptedLoadableModuleWidget.setup(self)
        self.page = slicer.util.loadUI(self.resourcePath("UI/MedSegAI.ui"))
        self.layout.addWidget(self.page)
        self.panel = Panel(slicer.util.childWidgetVariables(self.page), slicer.qMRMLNodeComboBox)
        self.host = Host(worker, lambda *more: install_what_is_missing(*more), Programs(), dialogs)
        scene = Scene(slicer.mrmlScene, save_undo)
        self.controller = Controller(self.panel, scene, queue(), self.host)
        self.panel.choice_changed.connect(self.observeInputs)
        self.page.setMRMLScene(slicer.mrmlScene)
        self.controller.models.show()
        closes = slicer.vtkMRMLScene.StartCloseEvent
        self.addObserver(slicer.mrmlScene, closes, self.onSceneStartClose)
        starts = slicer.vtkMRMLScene.StartImportEvent
        self.addObserver(slicer.mrmlScene, starts, self.onSceneStartImport)
        read = slicer.vtkMRMLScene.EndImportEvent
        self.addObserver(slicer.mrmlScene, read, self.onSceneEndImport)
        self.afterImport = after_event(self.onSceneOpened)
        self.controller.scene_opened()
        self.closeFilter = CloseFilter()
        if slicer.util.mainWindow() is not None:
            self.closeFilter.watch(slicer.util.mainWindow(), self.mayClose)

    def enter(self) -> None:
        """Update the page when the user returns, because volumes may have changed."""
        self.controller.enter()

    def observeInputs(self) -> None:
        """Observe the chosen volumes, which may get voxels, names or transforms later."""
        choice = self.panel.choice()
        wanted = {node for node in (*choice.nodes.values(), choice.region) if node is not None}
        if wanted == {item[0] for item in self.Observations if item[2] == self.onInputModified}:
            return
        self.removeObservers(self.onInputModified)
        for node in wanted:
            for event in (
                vtk.vtkCommand.ModifiedEvent,
                slicer.vtkMRMLVolumeNode.ImageDataModifiedEvent,
                slicer.vtkMRMLTransformableNode.TransformModifiedEvent,
            ):
                self.addObserver(node, event, self.onInputModified)

    def onInputModified(self, caller: Node, event: str) -> None:
        """Follow changes of the chosen input."""
        self.controller.jobs.update_plan()

    def onSceneStartImport(self, caller: Node, event: str) -> None:
        """Wait for a scene that is being loaded."""
        self.controller.scene_is_read()

    def onSceneEndImport(self, caller: Node, event: str) -> None:
        """Follow a scene that was loaded after the present event, when the selectors have its nodes."""
        self.afterImport()

    def onSceneOpened(self) -> None:
        """Follow a scene that was loaded, unless the page was closed or another scene is being loaded."""
        if self.Observations and not slicer.mrmlScene.IsImporting():
            self.controller.scene_opened()

    def onSceneStartClose(self, caller: Node, event: str) -> None:
        """Finish or stop jobs, because their volumes are removed with the scene."""
        from MedSegAILib.host import can_ask

        question = self.controller.scene_question()
        if question and can_ask() and self.host.confirm(question, safe=True):
            while queue().busy:
                worker().wait(slicer.app.processEvents)
            slicer.util.openSaveDataDialog()
        self.controller.scene_closes()

    def mayClose(self) -> bool:
        """Whether Slicer may close; the user is asked if jobs are running."""
        question = self.controller.close_question()
        return not question or self.host.confirm(question)

    def cleanup(self) -> None:
        """Stop everything of the module when Slicer ends or reloads it."""
        self.removeObservers()
        if slicer.util.mainWindow() is not None:
            slicer.util.mainWindow().removeEventFilter(self.closeFilter)
        self.controller.results.show(None)  # and stop watching the segmentation
        self.page.setMRMLScene(None)
        self.host.close()
        self.panel.browser.close()
        close_worker()

    def onReload(self) -> None:
        """Reload the packages, too, and not only this file."""
        close_worker()
        for name in list(sys.modules):
            if name.split(".")[0] in ("MedSegAILib", "medsegai"):
                del sys.modules[name]
        ScriptedLoadableModuleWidget.onReload(self)


class MedSegAILogic(ScriptedLoadableModuleLogic):
    """MedSegAI in a script; see docs/scripting.md."""

    def segment(
        self,
        volumeNode: VolumeNode,
        model: str | Sequence[str] = "brain",
        progress: Callable[[ProgressEvent], None] | None = None,
        output: OutputChoice | None = None,
        **options: Any,
    ) -> SegmentationNode:
        """Segment a volume and wait for the result, even without a main window.

        Args:
            volumeNode: the image, a vtkMRMLScalarVolumeNode, or one for each channel of the model, in its
                order. They are not changed.
            model: the id or folder of a model, or several models to use together.
            progress: the function that receives stage, fraction and seconds left.
            output: the output; a new segmentation if None.
            options: the other options of `medsegai.request.SegmentationRequest`; `region` may also be a
                ROI node.

        Returns:
            a vtkMRMLSegmentationNode, under the same transform as the volume. What `output` did not allow to
            change is logged as a warning.

        Raises:
            MedSegAIError: the volume, an option, the model or the device cannot be used; the message says what to
                do. The scene is not changed.
        """
        return self.start(volumeNode, model, progress, output, **options).wait()

    def start(
        self,
        volumeNode: VolumeNode,
        model: str | Sequence[str] = "brain",
        progress: Callable[[ProgressEvent], None] | None = None,
        output: OutputChoice | None = None,
        **options: Any,
    ) -> Job[SegmentationNode]:
        """Segment without waiting: the job is added at the end of the queue that the panel shows.

        When it is over, its `notes` say what of the output was not changed, or where the result went instead.
        """
        from medsegai.models.catalogue import find_card
        from medsegai.request import request_from_options
        from MedSegAILib.host import save_undo
        from MedSegAILib.scene import Scene
        from MedSegAILib.scene.channels import channels_of_model

        scene = Scene(slicer.mrmlScene, save_undo)
        nodes = list(volumeNode) if isinstance(volumeNode, (list, tuple)) else [volumeNode]
        models = (model,) if isinstance(model, str) else tuple(model)
        region = options.get("region")
        if hasattr(region, "GetID"):
            options["region"] = scene.region(region)

        def make_request() -> SegmentationRequest:
            return request_from_options(scene.read_channels(nodes), {"models": models, **options})

        make_request()  # errors that can be found before the job are raised at once
        if worker().place.kind == "own":
            install_what_is_missing(
                [extra for name in models for extra in find_card(name).extras()]
            )

        def write(result: SegmentationResult) -> SegmentationNode:
            segmentation = scene.write(nodes[0], result, output)
            scene.note_channels(segmentation, channels_of_model(models[0], nodes))
            job.notes = scene.notes
            for note in job.notes:
                logging.getLogger("MedSegAI").warning(note)
            return segmentation

        job = _job(write, progress)
        job.entry = queue().add(f"{nodes[0].GetName()}: {', '.join(models)}", make_request, job)
        return job

    def refine(
        self,
        segmentationNode: SegmentationNode,
        refinements: str | Sequence[str],
        volumeNode: VolumeNode = None,
        segments: Sequence[str] = (),
        progress: Callable[[ProgressEvent], None] | None = None,
    ) -> tuple[str, ...]:
        """Clean and sharpen an existing segmentation, whoever made it, and wait until it is done.

        Segments whose review is completed, and those that are not named, are not changed.

        Args:
            segmentationNode: the segmentation, which is changed as one undo step of the Segment Editor.
            refinements: the refinements in this order, as for `medsegai refine`, without labels.
            volumeNode: the image, for refinements that use it; the segmentation's own if None.
            segments: the ids or names of the segments to refine; all if empty.
            progress: the function that receives stage, fraction and seconds left.

        Returns:
            The changes as sentences; empty if there were none.

        Raises:
            MedSegAIError: the refinement is not possible; the message says what to do. The scene is not changed.
        """
        from medsegai.refinements import parse
        from MedSegAILib.host import save_undo
        from MedSegAILib.scene import Scene
        from MedSegAILib.scene.nodes import check_segmentation
        from MedSegAILib.worker.deferred_request import Reading

        scene, node = Scene(slicer.mrmlScene, save_undo), segmentationNode
        check_segmentation(node)
        texts = [refinements] if isinstance(refinements, str) else list(refinements)
        parsed, ids = [parse(text) for text in texts], scene.segment_ids(node, segments)
        image = volumeNode or scene.reference_volume(node)
        reading = Reading(lambda: scene.draft(node, parsed, ids, image))

        def write(draft: Draft, result: RefinementResult) -> tuple[str, ...]:
            scene.write_refined(draft, result)
            return (*result.words, *draft.notes)

        return _done(f"{node.GetName()}: {', '.join(texts)}", reading, write, progress)

    def measure(
        self,
        segmentationNode: SegmentationNode,
        progress: Callable[[ProgressEvent], None] | None = None,
    ) -> tuple[dict[str, Any], ...]:
        """Return the columns of `medsegai measure` for each present segment; None for missing values.

        A table node with a plot also gets the numbers.
        """
        from MedSegAILib.scene import Scene
        from MedSegAILib.worker.deferred_request import Reading

        scene = Scene(slicer.mrmlScene)
        reading = Reading(lambda: scene.measurable(segmentationNode))

        def write(measured: Measurable, result: MeasurementResult) -> tuple[dict[str, Any], ...]:
            scene.statistics(measured, result)
            return tuple(dict(row) for row in result.rows)

        return _done(f"{segmentationNode.GetName()}: measure", reading, write, progress)

    def export(
        self,
        segmentationNode: SegmentationNode,
        dicom: str = "",
        overwrite: bool = False,
        progress: Callable[[ProgressEvent], None] | None = None,
        **outputs: Any,
    ) -> ExportResult:
        """Export a segmentation: all outputs are written, or none.

        Args:
            segmentationNode: the segmentation with its present segments.
            dicom: the folder of the DICOM series that was segmented, for `seg` and `sr`; if "", the series in
                Slicer's DICOM database from which the volume was loaded.
            overwrite: whether existing files are replaced.
            outputs: the paths of seg, sr, report, csv, json and surfaces, and the options encoding, formats,
                tolerance_mm and space.

        Returns:
            The written `files`, and `warnings` in words.

        Raises:
            MedSegAIError: a file exists already, or cannot be written; the message says what to do.
        """
        from MedSegAILib.scene import Scene
        from MedSegAILib.scene.dicom_database import source_of
        from MedSegAILib.scene.nodes import check_segmentation
        from MedSegAILib.worker.deferred_request import Reading

        check_segmentation(segmentationNode)
        scene, node, series = Scene(slicer.mrmlScene), segmentationNode, (dicom, "")
        if outputs.get("seg") and not dicom:
            series = source_of(slicer.dicomDatabase, scene.reference_volume(node))
        reading = Reading(lambda: scene.exported(node, outputs, series, overwrite))
        return _done(
            f"{node.GetName()}: export", reading, lambda _, done: done, progress, ["export"]
        )

    @staticmethod
    def report(segmentationNode: SegmentationNode) -> dict[str, Any]:
        """Return the origin of a segmentation: volumes, seconds per stage, model hashes and versions."""
        from MedSegAILib.scene.nodes import check_segmentation
        from MedSegAILib.scene.reports import report_of

        check_segmentation(segmentationNode)
        return report_of(segmentationNode)


_worker: WorkerClient | None = None
_queue: JobQueue | None = None


def worker() -> WorkerClient:
    """Return the only worker of this Slicer, which the page and scripts share, so that it stays warm."""
    global _worker
    if _worker is None:
        from MedSegAILib.host import chosen_place
        from MedSegAILib.worker.client import WorkerClient

        _worker = WorkerClient(chosen_place())
        slicer.app.connect("aboutToQuit()", close_worker)
    return _worker


def queue() -> JobQueue:
    """Return the only queue, which the page and scripts share."""
    global _queue
    if _queue is None:
        from MedSegAILib.worker.queue import JobQueue

        _queue = JobQueue(worker())
    return _queue


def _done(
    title: str,
    reading: Reading[ReadAs],
    write: Callable[[ReadAs, Result], Written],
    progress: Callable[[ProgressEvent], None] | None,
    extras: Sequence[str] = (),
) -> Written:
    """Return the value of `write` for the read data and the worker's result."""
    if worker().place.kind == "own":
        install_what_is_missing(extras)
    job = _job(lambda result: reading.answered(write, result), progress)
    job.entry = queue().add(title, reading.make_request, job)
    reading.waits()
    try:
        return job.wait()
    finally:
        reading.forget()


def _job(
    write: Callable[[Any], Written], progress: Callable[[ProgressEvent], None] | None
) -> Job[Written]:
    from MedSegAILib.worker.blocking_job import Job

    return Job(queue(), worker(), slicer.app.processEvents, write, progress)


def close_worker() -> None:
    """End the worker process and forget waiting jobs; the next job starts a new process."""
    global _worker, _queue
    client, jobs, _worker, _queue = _worker, _queue, None, None
    if jobs is not None:
        jobs.cancel_all()
    if client is not None:
        client.close()


def install_what_is_missing(extras: Sequence[str] = ()) -> None:
    """Install missing packages before a job, see `MedSegAILib.install.ensure`, but never in a test."""
    from MedSegAILib import install
    from MedSegAILib.host import is_test

    if is_test():
        return

    if slicer.util.mainWindow() is None:
        install.ensure(None, extras)
    else:
        from MedSegAILib.panel.install_dialog import ask

        install.ensure(ask, extras)


def when_slicer_has_started() -> None:
    """Run the steps for which other modules must be loaded.

    Another module may raise anything. A failing step is logged and does not affect the others.
    """
    from MedSegAILib.guarding import guarded

    for step in (register_effect, register_sample_data, keep_scene_tidy, sweep_exchange):
        with guarded(None, "MedSegAI: %s failed when Slicer had started", step.__name__):
            step()


def sweep_exchange() -> None:
    """Delete the scans that a killed Slicer left in the temporary folder."""
    from medsegai.system.private_folders import sweep, temporary_folder

    sweep(temporary_folder())


def register_effect() -> None:
    """Register the effect *AI correct* in the Segment Editor."""
    from MedSegAILib.correction import register

    register()


def keep_scene_tidy() -> None:
    """Let the nodes of a segmentation follow it whenever it is moved or removed."""
    from MedSegAILib.after_event import after_event
    from MedSegAILib.scene.marks import remove_orphans
    from MedSegAILib.scene.tidying import follow

    follow(slicer.mrmlScene, after_event(lambda: remove_orphans(slicer.mrmlScene)))


def register_sample_data() -> None:
    """Register Slicer's own head MR, which the person in it released for any use (Slicer's SampleData)."""
    import SampleData

    digest = "cc211f0dfd9a05ca3841ce1141b292898b2dd2d3f08286affadf823a7e58df93"
    SampleData.SampleDataLogic.registerCustomSampleDataSource(
        category="MedSegAI",
        sampleName="MedSegAIHead",
        thumbnailFileName=str(MODULE_FOLDER / "Resources" / "Icons" / "MedSegAI.png"),
        uris=f"https://github.com/Slicer/SlicerTestingData/releases/download/SHA256/{digest}",
        fileNames="MR-head.nrrd",
        nodeNames="MRHead",
        checksums=f"SHA256:{digest}",
    )


class MedSegAITest(ScriptedLoadableModuleTest):
    """The test inside the application: Reload and Test, or `ctest`. See `MedSegAILib.self_test`."""

    def runTest(self) -> None:
        """Run the self-test of the module."""
        from MedSegAILib import self_test

        failed = self_test.run(self.delayDisplay)
        self.assertEqual(failed, [], "The errors are in the log above.")

"""The module's entry: builds scene, panel, worker client and controller, and joins them.

Nothing heavy is imported here, for Slicer runs this file at every start.
"""
# ruff: noqa: PT009, PT027  (the self-test is a unittest, as Slicer runs it)

from __future__ import annotations

import json
import shutil
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
    from medsegai.errors import MedSegAIError
    from medsegai.progress import ProgressEvent
    from medsegai.request import SegmentationRequest, SegmentationResult
    from MedSegAILib.worker.client import WorkerClient

MODULE_FOLDER = Path(__file__).resolve().parent


class MedSegAI(ScriptedLoadableModule):
    """What Slicer's module list shows."""

    def __init__(self, parent: Any) -> None:
        ScriptedLoadableModule.__init__(self, parent)
        parent.title = "MedSegAI"
        parent.categories = [translate("qSlicerAbstractCoreModule", "Segmentation")]
        parent.dependencies = ["Segmentations", "Volumes", "SubjectHierarchy"]
        parent.contributors = ["The MedSegAI contributors"]
        parent.helpText = _(
            "Segments a volume with AI models: choose a volume and a model, and press Segment. "
            "The networks run in a process of their own on this computer; no image leaves it. "
            "Research software, not for diagnostic use."
        )
        parent.acknowledgementText = _(
            "Stands on 3D Slicer, PyTorch, OpenVINO, SimpleITK and nibabel. The brain model follows "
            "QuickNAT (A. Guha Roy, S. Conjeti, N. Navab, C. Wachinger, NeuroImage 2019)."
        )


class MedSegAIWidget(ScriptedLoadableModuleWidget, slicer.util.VTKObservationMixin):
    """The module's page: the panel, and what joins it to the rest."""

    def __init__(self, parent: Any = None) -> None:
        slicer.util.VTKObservationMixin.__init__(self)  # first: the next line may call setup
        ScriptedLoadableModuleWidget.__init__(self, parent)

    def setup(self) -> None:
        from MedSegAILib.controller import Controller
        from MedSegAILib.panel import Panel
        from MedSegAILib.scene import Scene

        ScriptedLoadableModuleWidget.setup(self)
        widget = slicer.util.loadUI(self.resourcePath("UI/MedSegAI.ui"))
        self.layout.addWidget(widget)
        self.panel = Panel(slicer.util.childWidgetVariables(widget))
        self.controller = Controller(
            self.panel, Scene(slicer.mrmlScene), worker(), install_what_is_missing
        )
        self.panel.choice_changed.connect(self.observeInput)
        self.controller.show_models()
        widget.setMRMLScene(slicer.mrmlScene)
        scene_closes = slicer.vtkMRMLScene.StartCloseEvent
        self.addObserver(slicer.mrmlScene, scene_closes, self.onSceneStartClose)

    def enter(self) -> None:
        """The user comes back to the page: volumes may have changed meanwhile."""
        self.controller.update_plan()

    def observeInput(self) -> None:
        """A volume can get its voxels, its name or its transform after it was chosen."""
        node = self.panel.choice().node
        if self.hasObserver(node, vtk.vtkCommand.ModifiedEvent, self.onInputModified):
            return
        self.removeObservers(self.onInputModified)
        if node is not None:
            for event in (
                vtk.vtkCommand.ModifiedEvent,
                slicer.vtkMRMLVolumeNode.ImageDataModifiedEvent,
                slicer.vtkMRMLTransformableNode.TransformModifiedEvent,
            ):
                self.addObserver(node, event, self.onInputModified)

    def onInputModified(self, caller: Any, event: Any) -> None:
        self.controller.update_plan()

    def onSceneStartClose(self, caller: Any, event: Any) -> None:
        """The result would have no volume to belong to."""
        self.controller.cancel()

    def cleanup(self) -> None:
        self.removeObservers()
        close_worker()

    def onReload(self) -> None:
        """Reload the packages too, and not only this file."""
        close_worker()
        for name in list(sys.modules):
            if name.split(".")[0] in ("MedSegAILib", "medsegai"):
                del sys.modules[name]
        ScriptedLoadableModuleWidget.onReload(self)


class MedSegAILogic(ScriptedLoadableModuleLogic):
    """MedSegAI in a script; see docs/scripting.md."""

    def segment(
        self,
        volumeNode: Any,
        model: str | Sequence[str] = "brain",
        progress: Callable[[ProgressEvent], None] | None = None,
        **options: Any,
    ) -> Any:
        """Segment a volume and wait for the result; also without a main window.

        Args:
            volumeNode: the image, a vtkMRMLScalarVolumeNode; it is not changed.
            model: id or folder of a model, or several of them, to be used together.
            progress: called with stage, fraction and seconds left.
            options: the other options of `medsegai.request.SegmentationRequest`.

        Returns:
            a new vtkMRMLSegmentationNode, under the same transform as the volume.

        Raises:
            MedSegAIError: the volume, an option, the model or the device cannot be used; the message
                says what to do. The scene is as it was.
        """
        from medsegai.request import request_from_options
        from MedSegAILib.scene import Scene

        scene = Scene(slicer.mrmlScene)
        volume = scene.read(volumeNode)
        models = (model,) if isinstance(model, str) else tuple(model)
        request = request_from_options((volume,), {"models": models, **options})
        install_what_is_missing()
        return scene.write(volumeNode, _run(request, progress))

    @staticmethod
    def report(segmentationNode: Any) -> dict[str, Any]:
        """Volumes, seconds per stage, model hashes and versions: how a segmentation was made."""
        from MedSegAILib.scene import REPORT_ATTRIBUTE

        return dict(json.loads(segmentationNode.GetAttribute(REPORT_ATTRIBUTE) or "{}"))


class _Answer:
    """Listens to one job and keeps what it hears."""

    def __init__(self) -> None:
        self.events: list[ProgressEvent] = []
        self.result: SegmentationResult | None = None
        self.error: MedSegAIError | None = None

    def progressed(self, event: ProgressEvent) -> None:
        self.events.append(event)

    def finished(self, result: SegmentationResult) -> None:
        self.result = result

    def failed(self, error: MedSegAIError) -> None:
        self.error = error


def _run(
    request: SegmentationRequest, progress: Callable[[ProgressEvent], None] | None
) -> SegmentationResult:
    """Run a job in the worker and wait for it, while Slicer stays alive."""
    client, answer = worker(), _Answer()

    def meanwhile() -> None:
        slicer.app.processEvents()
        while answer.events:  # told from here and not from Qt, which would swallow an exception
            event = answer.events.pop(0)
            if progress is not None:
                progress(event)

    client.start(request, answer)
    try:
        client.wait(meanwhile)
    finally:
        if answer.result is None and answer.error is None:  # `progress` raised, or Ctrl-C came
            client.cancel()
            client.wait()
    if answer.error is not None:
        raise answer.error
    assert answer.result is not None
    return answer.result


_worker: WorkerClient | None = None


def worker() -> WorkerClient:
    """The one worker of this Slicer, shared by the page and by scripts, so that it stays warm."""
    global _worker
    if _worker is None:
        from MedSegAILib.worker.client import WorkerClient, worker_command, worker_environment

        python = shutil.which("PythonSlicer") or sys.executable
        _worker = WorkerClient(worker_command(python), worker_environment(MODULE_FOLDER))
        slicer.app.connect("aboutToQuit()", close_worker)
    return _worker


def close_worker() -> None:
    """End the worker process; the next job starts a new one."""
    global _worker
    client, _worker = _worker, None
    if client is not None:
        client.close()


def install_what_is_missing() -> None:
    """Before a job: see `MedSegAILib.install.ensure`. A test must not change the installation."""
    if slicer.app.testingEnabled():
        return
    from MedSegAILib import install

    install.ensure(interactive=slicer.util.mainWindow() is not None)


class MedSegAITest(ScriptedLoadableModuleTest):
    """Run inside the application: Reload and Test, or `ctest`. Uses what a script would use."""

    def setUp(self) -> None:
        slicer.mrmlScene.Clear()

    def runTest(self) -> None:
        for test in (
            self.test_voxels_and_segments_lie_at_one_place,
            self.test_segments_can_be_edited_at_once,
            self.test_bad_input_is_refused,
            self.test_panel_follows_the_scene,
            self.test_worker_process_answers,
            self.test_brain_model_runs,
        ):
            self.setUp()
            self.delayDisplay(test.__name__.replace("_", " "))
            test()

    def test_voxels_and_segments_lie_at_one_place(self) -> None:
        volume = _ball_volume(moved=True)
        segmentation = self._write_ball(volume)
        (segment,) = segmentation.GetSegmentation().GetSegmentIDs()
        voxels = slicer.util.arrayFromSegmentBinaryLabelmap(segmentation, segment, volume)
        self.assertEqual(voxels.tolist(), _ball().astype(int).tolist())
        self.assertEqual(segmentation.GetTransformNodeID(), volume.GetTransformNodeID())

    def test_segments_can_be_edited_at_once(self) -> None:
        volume = _ball_volume(moved=False)
        segmentation = self._write_ball(volume)
        (segment,) = segmentation.GetSegmentation().GetSegmentIDs()
        edited = _ball().astype("uint8")
        edited[0, 0, 0] = 1
        slicer.util.updateSegmentBinaryLabelmapFromArray(edited, segmentation, segment, volume)
        voxels = slicer.util.arrayFromSegmentBinaryLabelmap(segmentation, segment, volume)
        self.assertEqual(int(voxels.sum()), int(edited.sum()))

    def test_bad_input_is_refused(self) -> None:
        from medsegai.errors import InputError, RequestError

        with self.assertRaises(InputError):
            MedSegAILogic().segment(None)
        with self.assertRaises(InputError):
            MedSegAILogic().segment(slicer.mrmlScene.AddNewNodeByClass("vtkMRMLModelNode", "Skin"))
        with self.assertRaises(RequestError):
            MedSegAILogic().segment(_ball_volume(moved=False), no_such_option=1)

    def test_panel_follows_the_scene(self) -> None:
        page = slicer.util.getModuleWidget("MedSegAI")
        page.enter()
        self.assertIsNone(page.panel.choice().node)
        volume = _ball_volume(moved=False)
        page.panel.choose_input(volume)
        slicer.app.processEvents()
        self.assertEqual(page.panel.choice().node, volume)
        options = page.panel.choice().options
        self.assertEqual(options["device"], "auto")
        self.assertEqual(options["members"], ())

    def test_worker_process_answers(self) -> None:
        """The whole way to the engine and back, without a network: the model does not exist."""
        from medsegai.errors import MedSegAIError

        before = slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode")
        with self.assertRaises(MedSegAIError) as caught:
            MedSegAILogic().segment(_ball_volume(moved=False), model="no such model")
        after = slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode")
        self.assertEqual(before, after)
        self.assertRegex(str(caught.exception), "no such model|PyTorch")

    def test_brain_model_runs(self) -> None:
        """A ball is no head, so nothing is asked of the labels; the job has to come back."""
        from importlib.util import find_spec

        from medsegai.catalogue import find_card
        from medsegai.errors import ModelError

        if find_spec("torch") is None:
            self.delayDisplay("PyTorch is not installed: the brain model was not run")
            return
        try:
            card = find_card("brain")
            card.verify()
        except ModelError as error:
            self.delayDisplay(f"The brain model is not here, and was not run: {error}")
            return
        volume, stages = _ball_volume(moved=True), []
        segmentation = MedSegAILogic().segment(
            volume,
            progress=lambda event: stages.append(event.stage),
            members=(card.members[0].name,),  # one network shows the way as well as three
            device="cpu",
        )
        self.assertTrue(slicer.mrmlScene.IsNodePresent(segmentation))
        self.assertIn("predict", stages)
        self.assertIn("seconds", MedSegAILogic.report(segmentation))

    def _write_ball(self, volume: Any) -> Any:
        """What the scene makes of a result, without a worker."""
        from medsegai.labels import Label
        from medsegai.request import SegmentationResult, StructureMeasures
        from MedSegAILib.scene import Scene

        scene = Scene(slicer.mrmlScene)
        image, ball = scene.read(volume), _ball()
        label = Label(1, "Ball", (200, 100, 50))
        measures = StructureMeasures(label, int(ball.sum()), 1.0)
        labelmap = image.with_voxels(ball.astype("uint8"))
        return scene.write(volume, SegmentationResult(labelmap, (label,), (measures,)))


def _ball() -> Any:
    """A ball in a box of 30 x 36 x 40 voxels, (k, j, i)."""
    import numpy as np

    k, j, i = np.ogrid[:30, :36, :40]
    return (k - 14) ** 2 + (j - 17) ** 2 + (i - 20) ** 2 < 10**2


def _ball_volume(moved: bool) -> Any:
    """A volume of 4 x 4 x 5 mm voxels with a bright ball, perhaps under a turned transform."""
    import numpy as np

    image = np.where(_ball(), 800, 20).astype(np.int16)
    volume = slicer.util.addVolumeFromArray(image, name="Ball")
    volume.SetSpacing(4.0, 4.0, 5.0)
    volume.SetIJKToRASDirections(-1, 0, 0, 0, -1, 0, 0, 0, 1)
    if moved:
        transform = vtk.vtkTransform()
        transform.RotateZ(20)
        transform.Translate(10, -20, 30)
        node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "Moved")
        node.SetMatrixTransformToParent(transform.GetMatrix())
        volume.SetAndObserveTransformNodeID(node.GetID())
    return volume

"""The unattended self-test inside Slicer, which uses the functions for scripts in the real application.

`MedSegAITest` in `MedSegAI.py` runs it: Reload and Test in the module's page, or `ctest`. It does not ask
questions, does not wait for anybody, and does not change files of the user.
"""
# ruff: noqa: PT009, PT027  (a unittest, as Slicer runs it)

from __future__ import annotations

import sys
import tempfile
import time
import unittest
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import slicer
import slicer.util
import vtk

from medsegai.models.card import ModelCard
from MedSegAILib.slicer_types import MRMLScene, SegmentationNode, VolumeNode, Widget

if TYPE_CHECKING:
    from medsegai.request import SegmentationResult
    from MedSegAILib.scene import Scene

LAST = ("test_module_reloads",)
"""The test that runs last, because it changes everything."""


def run(announce: Callable[[str], None]) -> list[str]:
    """Run every test, even if earlier ones fail.

    Args:
        announce: the function that shows a line to the user.

    Returns:
        The names of the failed tests; their errors are printed, and the reasons of skipped ones.
    """
    from MedSegAILib.host import unattended

    names = unittest.defaultTestLoader.getTestCaseNames(SelfTest)
    suite = unittest.TestSuite(
        SelfTest(name) for name in sorted(names, key=lambda name: name in LAST)
    )
    with unattended():
        result = unittest.TextTestRunner(sys.stdout, verbosity=2).run(suite)
    for test, reason in result.skipped:
        announce(f"{_name(test)} was not run: {reason}")
    failed = [_name(test) for test, _trace in (*result.failures, *result.errors)]
    announce(f"{result.testsRun - len(failed)} of {result.testsRun} tests passed")
    return failed


def _name(test: unittest.TestCase) -> str:
    return test.id().rpartition(".")[2]


class SelfTest(unittest.TestCase):
    """The tests, each of which begins with an empty scene."""

    def setUp(self) -> None:
        """Begin with an empty scene."""
        slicer.mrmlScene.Clear()

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
            _logic().segment(None)
        with self.assertRaises(InputError):
            _logic().segment(slicer.mrmlScene.AddNewNodeByClass("vtkMRMLModelNode", "Skin"))
        with self.assertRaises(RequestError):
            _logic().segment(_ball_volume(moved=False), no_such_option=1)

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

    def test_every_part_of_the_panel_works(self) -> None:
        """Use every part without blocking dialogs."""
        from MedSegAILib.output_choice import OutputMode
        from MedSegAILib.panel_values import PlaceChoice

        panel = slicer.util.getModuleWidget("MedSegAI").panel
        panel.browser.open()
        slicer.app.processEvents()
        self.assertIsNotNone(panel.browser.current())
        panel.browser.close()
        segmentation = self._write_ball(_ball_volume(moved=False))
        panel.choose_output(OutputMode.PREVIEW, segmentation)
        self.assertEqual(panel.choice().output.node, segmentation)
        panel.choose_output(OutputMode.NEW)
        self.assertIsNone(panel.choice().output.node)
        before = panel.settings.choice()
        panel.settings.show(PlaceChoice("ssh", host="user@server"))
        self.assertEqual(panel.settings.choice().host, "user@server")
        panel.settings.show(before)
        panel.queue.show(())
        self.assertTrue(panel.batch.choice().resume)

    def test_choices_are_saved_with_the_scene(self) -> None:
        from MedSegAILib.output_choice import OutputMode

        panel, scene = slicer.util.getModuleWidget("MedSegAI").panel, slicer.mrmlScene
        segmentation = self._write_ball(_ball_volume(moved=False))
        panel.choose_output(OutputMode.ADD, segmentation)
        text = _saved(scene)
        scene.Clear()
        slicer.app.processEvents()
        self.assertEqual(panel.choice().output.mode, OutputMode.NEW)
        _load(scene, text)
        slicer.app.processEvents()
        self.assertEqual(panel.choice().output.mode, OutputMode.ADD)
        self.assertEqual(panel.choice().output.node.GetName(), segmentation.GetName())

    def test_results_are_listed_and_reviewed(self) -> None:
        page = slicer.util.getModuleWidget("MedSegAI")
        segmentation = self._write_ball(_ball_volume(moved=False))
        page.panel.results.choose(segmentation)
        slicer.app.processEvents()
        from MedSegAILib.scene import Scene

        scene = Scene(slicer.mrmlScene)
        (row,) = scene.structures(segmentation)
        self.assertEqual(row.name, "Ball")
        self.assertEqual(page.panel.refine.choice().segmentation, segmentation)
        self.assertAlmostEqual(row.volume_ml, _ball().sum() * 4 * 4 * 5 / 1000, places=3)
        page.panel.results.review_chosen.emit((row.segment_id,), "completed")
        self.assertEqual(scene.structures(segmentation)[0].review, "completed")
        page.panel.results.structure_chosen.emit(row.segment_id)
        page.panel.results.surfaces_shown.emit(True)
        self.assertTrue(segmentation.GetDisplayNode().GetVisibility3D())

    def test_effect_is_in_the_segment_editor(self) -> None:
        from MedSegAILib.correction import EFFECT_NAME

        effects = slicer.qSlicerSegmentEditorEffectFactory.instance().registeredEffects()
        self.assertIn(EFFECT_NAME, [effect.name for effect in effects])

    def test_effect_corrects_by_strokes(self) -> None:
        """Paint a stroke outside the ball, take it back, paint it again, apply and undo it."""
        import numpy as np

        from MedSegAILib.correction import EFFECT_NAME
        from MedSegAILib.correction.painting import Brush

        volume = _ball_volume(moved=True)
        segmentation = self._write_ball(volume)
        (segment,) = segmentation.GetSegmentation().GetSegmentIDs()
        editor = _editor()
        editor.setSegmentationNode(segmentation)
        editor.setSourceVolumeNode(volume)
        editor.setCurrentSegmentID(segment)
        editor.setActiveEffectByName(EFFECT_NAME)
        effect = editor.activeEffect().self()
        center, brush = _world(volume, _CENTER), Brush(8.0, np.array([0.0, 0.0, 1.0]))
        for attempt in range(2):
            self.assertTrue(effect.tool.press(center, brush, False))
            effect.tool.release()
            self.assertEqual(effect.tool.strokes, 1)
            if not attempt:
                effect.onTakeBack()
                self.assertEqual(effect.tool.strokes, 0)
        effect.onApply()
        voxels = slicer.util.arrayFromSegmentBinaryLabelmap(segmentation, segment, volume)
        self.assertFalse(voxels[_CENTER])
        self.assertLess(int(voxels.sum()), int(_ball().sum()))
        editor.undo()
        voxels = slicer.util.arrayFromSegmentBinaryLabelmap(segmentation, segment, volume)
        self.assertEqual(int(voxels.sum()), int(_ball().sum()))
        editor.setActiveEffectByName("")

    def test_results_go_where_they_are_wanted(self) -> None:
        from MedSegAILib.output_choice import OutputChoice, OutputMode
        from MedSegAILib.scene import Scene

        volume, scene = _ball_volume(moved=True), Scene(slicer.mrmlScene)
        first = self._write_ball(volume)
        result = _ball_result(scene, volume, larger=True)
        self.assertIs(scene.write(volume, result, OutputChoice(OutputMode.UPDATE, first)), first)
        self.assertEqual(_voxel_count(first, volume), [int(_ball(larger=True).sum())])
        scene.write(volume, result, OutputChoice(OutputMode.ADD, first))
        self.assertEqual(len(_voxel_count(first, volume)), 2)
        preview = scene.preview(volume, result, OutputChoice(OutputMode.PREVIEW, first))
        self.assertIsNot(preview.node, first)
        self.assertIs(preview.accept(), first)
        self.assertFalse(slicer.mrmlScene.IsNodePresent(preview.node))
        self.assertIsNot(scene.write(volume, result), first)

    def test_frames_of_a_sequence_go_along(self) -> None:
        if not hasattr(slicer, "vtkMRMLSequenceBrowserNode"):
            self.skipTest("this Slicer has no sequences")
        from MedSegAILib.output_choice import OutputChoice
        from MedSegAILib.scene import Scene

        volume, scene = _ball_volume(moved=False), Scene(slicer.mrmlScene)
        sequence = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSequenceNode", "Cine")
        for moment in ("0", "1.5"):
            sequence.SetDataNodeAtValue(volume, moment)
        browser = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSequenceBrowserNode", "Browser")
        browser.AddSynchronizedSequenceNode(sequence)
        proxy = browser.GetProxyNode(sequence) or browser.AddProxyNode(volume, sequence, True)
        self.assertEqual(list(scene.frames(proxy)), [0, 1])
        segmentation = None
        for frame in scene.frames(proxy):
            result = _ball_result(scene, volume, larger=bool(frame))
            segmentation = scene.write(proxy, result, OutputChoice(node=segmentation), frame)
        self.assertIsNotNone(browser.GetSequenceNode(segmentation))

    def test_sample_data_are_offered(self) -> None:
        import SampleData

        sources = SampleData.SampleDataLogic.sampleDataSourcesByCategory("MedSegAI")
        self.assertIn("MedSegAIHead", [source.sampleName for source in sources])

    def test_segmentation_is_refined_and_handed_over(self) -> None:
        """Refine, measure and export with the worker, which does not need a network for that."""
        self._need_worker()
        volume = _ball_volume(moved=True)
        segmentation = self._write_ball(volume)
        (segment,) = segmentation.GetSegmentation().GetSegmentIDs()
        specked = _ball().astype("uint8")
        specked[0, 0, 0] = 1
        slicer.util.updateSegmentBinaryLabelmapFromArray(specked, segmentation, segment, volume)
        words = _logic().refine(segmentation, "largest_component", volume)
        self.assertTrue(words)
        self.assertEqual(_voxel_count(segmentation, volume), [int(_ball().sum())])
        (row,) = _logic().measure(segmentation)
        self.assertEqual(row["name"], "Ball")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "ball.csv"
            _logic().export(segmentation, csv=str(path))
            self.assertIn("Ball", path.read_text(encoding="utf-8"))

    def test_module_reloads(self) -> None:
        before = slicer.util.getModuleWidget("MedSegAI")
        before.onReload()
        page = slicer.util.getModuleWidget("MedSegAI")
        page.enter()
        self.assertIsNotNone(page.panel.choice().card)

    def test_worker_process_answers(self) -> None:
        """Test the whole way to the engine and back without a network, by a model that does not exist."""
        from medsegai.errors import MedSegAIError

        before = slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode")
        with self.assertRaises(MedSegAIError) as caught:
            _logic().segment(_ball_volume(moved=False), model="no such model")
        after = slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode")
        self.assertEqual(before, after)
        self.assertRegex(str(caught.exception), "no such model|PyTorch")

    def test_brain_model_runs(self) -> None:
        """Run the brain model on a ball, whose labels are not checked; the job has to return."""

        self._need_worker()
        card = self._brain()
        volume, stages = _ball_volume(moved=True), []
        segmentation = _logic().segment(
            volume,
            progress=lambda event: stages.append(event.stage),
            members=(card.members[0].name,),  # one network is enough for the test
            device="cpu",
        )
        self.assertTrue(slicer.mrmlScene.IsNodePresent(segmentation))
        self.assertIn("predict", stages)
        self.assertIn("seconds", _logic().report(segmentation))

    def _brain(self) -> ModelCard:
        from medsegai.errors import ModelError
        from medsegai.models.catalogue import find_card

        try:
            card = find_card("brain")
            card.verify()
        except ModelError as error:
            self.skipTest(f"the brain model is not here: {error}")
        return card

    def _write_ball(self, volume: VolumeNode) -> SegmentationNode:
        """Write a result into the scene without a worker."""
        from MedSegAILib.scene import Scene

        scene = Scene(slicer.mrmlScene)
        return scene.write(volume, _ball_result(scene, volume))

    def _need_worker(self) -> None:
        """Skip the test if the worker's location lacks packages, which only it knows."""
        report = _doctor_report()
        if not report.ready:
            self.skipTest(f"the worker is not ready. {report.text()}")


@cache
def _doctor_report() -> Any:
    """Return the doctor's report on the worker's location."""
    import MedSegAI
    from MedSegAILib.worker.environment_check import EnvironmentCheck

    heard: list[Any] = []
    environment_check = EnvironmentCheck(MedSegAI.worker().place, heard.append)
    environment_check.start()
    while not heard:
        slicer.app.processEvents()
        time.sleep(0.02)
    return heard[0]


def _saved(scene: MRMLScene) -> str:
    """Return the scene as XML, without the files of its nodes."""
    scene.SetSaveToXMLString(1)
    try:
        scene.Commit()
    finally:
        scene.SetSaveToXMLString(0)
    return str(scene.GetSceneXMLString())


def _load(scene: MRMLScene, text: str) -> None:
    """Open a scene that `_saved` returned."""
    scene.SetLoadFromXMLString(1)
    scene.SetSceneXMLString(text)
    try:
        scene.Connect()
    finally:
        scene.SetLoadFromXMLString(0)


def _editor() -> Widget:
    """Return the Segment Editor's widget, with a node that stores its choices."""
    page = slicer.util.getModuleWidget("SegmentEditor")
    if page.editor.mrmlSegmentEditorNode() is None:
        page.selectParameterNode()
    return page.editor


def _world(volume: VolumeNode, voxel: tuple[int, int, int]) -> list[float]:
    """Return the world position of a voxel (k, j, i)."""
    matrix, above = vtk.vtkMatrix4x4(), vtk.vtkMatrix4x4()
    volume.GetIJKToRASMatrix(matrix)
    if volume.GetParentTransformNode() is not None:
        volume.GetParentTransformNode().GetMatrixTransformToWorld(above)
    vtk.vtkMatrix4x4.Multiply4x4(above, matrix, matrix)
    return list(matrix.MultiplyPoint((*reversed(voxel), 1.0))[:3])


def _voxel_count(segmentation: SegmentationNode, volume: VolumeNode) -> list[int]:
    """Return the number of voxels of each segment."""
    return [
        int(slicer.util.arrayFromSegmentBinaryLabelmap(segmentation, name, volume).sum())
        for name in segmentation.GetSegmentation().GetSegmentIDs()
    ]


def _ball_result(scene: Scene, volume: VolumeNode, larger: bool = False) -> SegmentationResult:
    """Return a result as a job would return it for the volume."""
    from medsegai.labels import Label
    from medsegai.request import SegmentationResult, StructureMeasures

    ball, label = _ball(larger), Label(1, "Ball", (200, 100, 50))
    measures = StructureMeasures(label, int(ball.sum()), 1.0)
    labelmap = scene.read(volume).with_voxels(ball.astype("uint8"))
    return SegmentationResult(labelmap, (label,), (measures,))


def _logic() -> Any:
    """Return the module's logic, as a script gets it."""
    import MedSegAI

    return MedSegAI.MedSegAILogic()


_CENTER = (14, 17, 20)


def _ball(larger: bool = False) -> Any:
    """Return a ball in a box of 30 x 36 x 40 voxels, (k, j, i)."""
    import numpy as np

    grid = np.ogrid[:30, :36, :40]
    away = sum((axis - at) ** 2 for axis, at in zip(grid, _CENTER, strict=True))
    return away < (12 if larger else 10) ** 2


def _ball_volume(moved: bool) -> VolumeNode:
    """Return a volume of 4 x 4 x 5 mm voxels with a bright ball, perhaps under a rotation."""
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

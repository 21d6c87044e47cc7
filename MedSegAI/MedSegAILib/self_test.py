"""The self-test that runs inside Slicer, unattended: what a script would use, on the real application.

`MedSegAITest` in `MedSegAI.py` runs it: Reload and Test in the module's page, or `ctest`. It asks nothing, waits
for nobody, and touches no file of the user.
"""
# ruff: noqa: PT009, PT027  (a unittest, as Slicer runs it)

from __future__ import annotations

import sys
import unittest
from collections.abc import Callable
from typing import Any

import slicer
import slicer.util
import vtk


def run(announce: Callable[[str], None]) -> list[str]:
    """Run every test, whatever becomes of those before it.

    Args:
        announce: shows a line to whoever watches.

    Returns:
        the names of those that failed; their errors are printed, as are the reasons of those that were skipped.
    """
    suite = unittest.defaultTestLoader.loadTestsFromTestCase(SelfTest)
    result = unittest.TextTestRunner(sys.stdout, verbosity=2).run(suite)
    for test, reason in result.skipped:
        announce(f"{_name(test)} was not run: {reason}")
    failed = [_name(test) for test, _trace in (*result.failures, *result.errors)]
    announce(f"{result.testsRun - len(failed)} of {result.testsRun} tests passed")
    return failed


def _name(test: unittest.TestCase) -> str:
    return test.id().rpartition(".")[2]


class SelfTest(unittest.TestCase):
    """Each test begins with an empty scene."""

    def setUp(self) -> None:
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
        """Nothing here blocks: what asks has a window of its own, or is not asked."""
        from MedSegAILib.output_choice import OutputMode
        from MedSegAILib.view import PlaceChoice

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

        if not hasattr(slicer, "qSlicerSegmentEditorEffectFactory"):
            self.skipTest("There is no Segment Editor here: the effect was not looked for")
            return
        effects = slicer.qSlicerSegmentEditorEffectFactory.instance().registeredEffects()
        self.assertIn(EFFECT_NAME, [effect.name for effect in effects])

    def test_worker_process_answers(self) -> None:
        """The whole way to the engine and back, without a network: the model does not exist."""
        from medsegai.errors import MedSegAIError

        before = slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode")
        with self.assertRaises(MedSegAIError) as caught:
            _logic().segment(_ball_volume(moved=False), model="no such model")
        after = slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode")
        self.assertEqual(before, after)
        self.assertRegex(str(caught.exception), "no such model|PyTorch")

    def test_brain_model_runs(self) -> None:
        """A ball is no head, so nothing is asked of the labels; the job has to come back."""
        from importlib.util import find_spec

        from medsegai.catalogue import find_card
        from medsegai.errors import ModelError

        if find_spec("torch") is None:
            self.skipTest("PyTorch is not installed: the brain model was not run")
            return
        try:
            card = find_card("brain")
            card.verify()
        except ModelError as error:
            self.skipTest(f"The brain model is not here, and was not run: {error}")
            return
        volume, stages = _ball_volume(moved=True), []
        segmentation = _logic().segment(
            volume,
            progress=lambda event: stages.append(event.stage),
            members=(card.members[0].name,),  # one network shows the way as well as three
            device="cpu",
        )
        self.assertTrue(slicer.mrmlScene.IsNodePresent(segmentation))
        self.assertIn("predict", stages)
        self.assertIn("seconds", _logic().report(segmentation))

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


def _logic() -> Any:
    """The module's logic, as a script gets it."""
    import MedSegAI

    return MedSegAI.MedSegAILogic()


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

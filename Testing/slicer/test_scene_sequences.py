"""Frames of a sequence are read where they lie, and their results go along with the browser."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import slicer
from slicer.util import arrayFromVolume, updateVolumeFromArray, vtkMatrixFromArray

from medsegai.errors import GeometryError, InputError
from MedSegAILib.output_choice import OutputChoice, OutputMode
from MedSegAILib.scene import Scene, segment_id
from scene_images import (
    LEFT,
    MOVED,
    PLACES,
    SHAPE,
    STEM,
    add_transform,
    add_volume,
    bending_transform,
    mask_on,
    node_ids,
    paint,
    result_for,
    two_blocks,
)

LEFT_ID, STEM_ID = segment_id(LEFT), segment_id(STEM)
TIMES = ("0", "1.5", "4")


class Cine:
    """A volume of three times in a browser, each brighter than the one before."""

    def __init__(self, mrml: Any, moved: Any = None) -> None:
        self.mrml = mrml
        self.logic = slicer.vtkSlicerSequencesLogic()
        self.logic.SetMRMLScene(mrml)
        self.sequence = mrml.AddNewNodeByClass("vtkMRMLSequenceNode", "Cine")
        self.sequence.SetIndexName("time")
        for number, time in enumerate(TIMES):
            image = slicer.vtkMRMLScalarVolumeNode()
            image.SetName("Heart")
            updateVolumeFromArray(image, np.full(SHAPE, number, np.int16))
            image.SetIJKToRASMatrix(vtkMatrixFromArray(PLACES["oblique"]))
            self.sequence.SetDataNodeAtValue(image, time)
        self.browser = mrml.AddNewNodeByClass("vtkMRMLSequenceBrowserNode", "Browser")
        self.browser.AddSynchronizedSequenceNode(self.sequence)
        self.show(1)
        self.proxy = self.browser.GetProxyNode(self.sequence)
        self.proxy.SetName("Heart")
        if moved is not None:
            self.proxy.SetAndObserveTransformNodeID(add_transform(mrml, moved).GetID())
        self.scene = Scene(mrml)

    def show(self, number: int) -> None:
        self.browser.SetSelectedItemNumber(number)
        self.logic.UpdateProxyNodesFromSequences(self.browser)

    def labelmap(self, number: int) -> np.ndarray:
        return np.roll(two_blocks(), -number, axis=2)

    def write(self, number: int, node: Any = None) -> Any:
        image = self.scene.read_frame(self.proxy, number)
        result = result_for(image, self.labelmap(number))
        return self.scene.write(self.proxy, result, OutputChoice(node=node), frame=number)


@pytest.fixture
def cine(mrml: Any) -> Cine:
    return Cine(mrml, MOVED["turned"])


def test_a_plain_volume_has_no_frames(mrml: Any) -> None:
    scene, node = Scene(mrml), add_volume(mrml, PLACES["plain"])
    assert list(scene.frames(node)) == []
    assert scene.current_frame(node) is None
    assert list(scene.frames(None)) == []
    with pytest.raises(InputError, match="Head is no image of a sequence"):
        scene.read_frame(node, 0)


def test_every_frame_is_read_and_the_browser_stays_where_it_is(cine: Cine) -> None:
    assert list(cine.scene.frames(cine.proxy)) == [0, 1, 2]
    assert cine.scene.current_frame(cine.proxy) == 1
    before = node_ids(cine.mrml)
    for number in range(3):
        volume = cine.scene.read_frame(cine.proxy, number)
        assert (volume.voxels == number).all()
        assert volume.source == f"Heart ({TIMES[number]})"
        expected = MOVED["turned"] @ PLACES["oblique"]
        np.testing.assert_allclose(volume.geometry.ijk_to_ras, expected, atol=1e-12)
    assert cine.browser.GetSelectedItemNumber() == 1
    assert (arrayFromVolume(cine.proxy) == 1).all()
    assert node_ids(cine.mrml) == before


def test_a_transform_that_moves_with_the_frames_is_taken_at_each(cine: Cine) -> None:
    """Motion correction: the transform above the volume is a sequence of the same browser."""
    moving = cine.mrml.AddNewNodeByClass("vtkMRMLSequenceNode", "Motion")
    moving.SetIndexName("time")
    steps = {}
    for number, time in enumerate(TIMES):
        steps[number] = np.eye(4)
        steps[number][0, 3] = 7.0 * number
        data = slicer.vtkMRMLLinearTransformNode()
        data.SetMatrixTransformToParent(vtkMatrixFromArray(steps[number]))
        moving.SetDataNodeAtValue(data, time)
    cine.browser.AddSynchronizedSequenceNode(moving)
    cine.show(1)
    cine.proxy.SetAndObserveTransformNodeID(cine.browser.GetProxyNode(moving).GetID())
    for number in range(3):
        volume = cine.scene.read_frame(cine.proxy, number)
        expected = steps[number] @ PLACES["oblique"]
        np.testing.assert_allclose(volume.geometry.ijk_to_ras, expected, atol=1e-12)


def test_frames_that_are_not_there_are_refused(cine: Cine) -> None:
    for number in (-1, 3):
        with pytest.raises(InputError, match="Heart has 3 frames"):
            cine.scene.read_frame(cine.proxy, number)
    cine.proxy.SetAndObserveTransformNodeID(bending_transform(cine.mrml).GetID())
    with pytest.raises(GeometryError, match=r"bends space \(Warp\)"):
        cine.scene.read_frame(cine.proxy, 0)


def test_results_of_all_frames_become_one_sequence_in_the_same_browser(cine: Cine) -> None:
    node = None
    for number in (0, 1, 2):
        node = cine.write(number, node)
    assert cine.mrml.GetNumberOfNodesByClass("vtkMRMLSegmentationNode") == 1
    assert cine.browser.GetNumberOfSynchronizedSequenceNodes(True) == 2
    assert cine.browser.GetSelectedItemNumber() == 1, "the user's view stays"
    assert node.GetTransformNodeID() == cine.proxy.GetTransformNodeID()
    for number in (1, 0, 2):
        cine.show(number)
        node = cine.browser.GetProxyNode(cine.browser.GetSequenceNode(node))
        labelmap = cine.labelmap(number)
        for label in (LEFT, STEM):
            found = mask_on(node, segment_id(label))
            np.testing.assert_array_equal(found, labelmap == label.value, f"frame {number}")
    assert node.GetTransformNodeID() == cine.proxy.GetTransformNodeID()


def test_the_frame_that_is_shown_can_be_seen_at_once(cine: Cine) -> None:
    node = cine.write(1)
    np.testing.assert_array_equal(mask_on(node, LEFT_ID), cine.labelmap(1) == LEFT.value)
    assert node.GetDisplayNode() is not None


def test_what_is_edited_in_a_frame_stays_with_it(cine: Cine) -> None:
    node = cine.write(1)
    cine.write(2, node)
    mine = cine.labelmap(1) == LEFT.value
    mine[0, 0, 0] = True
    cine.show(1)
    paint(node, LEFT_ID, mine, cine.proxy)
    cine.logic.UpdateSequencesFromProxyNodes(cine.browser, node)
    cine.show(2)
    np.testing.assert_array_equal(mask_on(node, LEFT_ID), cine.labelmap(2) == LEFT.value)
    cine.show(1)
    np.testing.assert_array_equal(mask_on(node, LEFT_ID), mine)


def test_frames_go_to_a_new_segmentation_only(cine: Cine) -> None:
    node = cine.scene.write(cine.proxy, result_for(cine.scene.read(cine.proxy), cine.labelmap(1)))
    before = node_ids(cine.mrml)
    result = result_for(cine.scene.read_frame(cine.proxy, 0), cine.labelmap(0))
    for mode in (OutputMode.UPDATE, OutputMode.ADD):
        with pytest.raises(InputError, match="frames of a sequence become a new segmentation"):
            cine.scene.write(cine.proxy, result, OutputChoice(mode, node), frame=0)
    with pytest.raises(InputError, match="does not belong to the sequence of Heart"):
        cine.scene.write(cine.proxy, result, OutputChoice(node=node), frame=0)
    assert node_ids(cine.mrml) == before


def test_a_sequence_that_was_removed_drops_the_result(cine: Cine) -> None:
    result = result_for(cine.scene.read_frame(cine.proxy, 0), cine.labelmap(0))
    cine.mrml.RemoveNode(cine.browser)
    with pytest.raises(InputError, match="Heart is no image of a sequence"):
        cine.scene.write(cine.proxy, result, frame=0)
    cine.mrml.RemoveNode(cine.proxy)
    with pytest.raises(InputError, match="Heart has left the scene"):
        cine.scene.write(cine.proxy, result, frame=0)
    assert cine.mrml.GetNumberOfNodesByClass("vtkMRMLSegmentationNode") == 0


def test_a_segmentation_that_was_deleted_between_frames_loses_nothing(cine: Cine) -> None:
    node = cine.write(0)
    cine.mrml.RemoveNode(node)
    again = cine.write(1, node)
    assert again is not node
    assert "has left the scene" in cine.scene.notes[0]
    np.testing.assert_array_equal(mask_on(again, LEFT_ID), cine.labelmap(1) == LEFT.value)

"""Frames of a sequence are read where they lie, and their results go along with the browser."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import slicer
from slicer.util import arrayFromVolume, updateVolumeFromArray, vtkMatrixFromArray

from medsegai.errors import GeometryError, InputError
from medsegai.request import Candidates
from MedSegAILib.output_choice import OutputChoice, OutputMode
from MedSegAILib.scene import CANDIDATES_REFERENCE, ENTROPY_REFERENCE, Scene, segment_id
from MedSegAILib.scene.inputs import ijk_to_local
from scene_images import (
    LEFT,
    LEFT_ID,
    MOVED,
    PLACES,
    SHAPE,
    STEM,
    STEM_ID,
    add_transform,
    add_volume,
    bending_transform,
    mask_on,
    node_ids,
    paint,
    result_for,
    two_blocks,
)

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

    def write(self, number: int, node: Any = None, **more: Any) -> Any:
        image = self.scene.read_frame(self.proxy, number)
        result = dataclasses.replace(result_for(image, self.labelmap(number)), **more)
        return self.scene.write(self.proxy, result, OutputChoice(node=node), frame=number)


@pytest.fixture
def cine(mrml: Any) -> Cine:
    return Cine(mrml, MOVED["turned"])


def test_a_plain_volume_has_no_frames(mrml: Any) -> None:
    scene, node = Scene(mrml), add_volume(mrml, PLACES["plain"])
    assert list(scene.frames(node)) == []
    assert scene.current_frame(node) is None
    assert list(scene.frames(None)) == []
    with pytest.raises(InputError, match="Head is not an image of a sequence"):
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
        with pytest.raises(InputError, match=r"Heart does not have a frame .* last frame is 3"):
            cine.scene.read_frame(cine.proxy, number)
    cine.proxy.SetAndObserveTransformNodeID(bending_transform(cine.mrml).GetID())
    with pytest.raises(GeometryError, match=r"is not linear \(Warp\)"):
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


def doubt_of(cine: Cine, number: int) -> dict[str, Any]:
    """Entropy and candidates that tell their frame."""
    image = cine.scene.read_frame(cine.proxy, number)
    entropy = np.full(SHAPE, 0.1 + number, np.float32)
    entropy[0, 0, number] = 5.0
    first = cine.labelmap(number).astype(np.uint16)
    steps = np.full(SHAPE, 200 + number, np.uint8)
    candidates = Candidates(first, np.zeros_like(first), steps, (255 - steps).astype(np.uint8))
    return {"entropy": image.with_voxels(entropy), "candidates": candidates}


def test_doubt_and_candidates_of_every_frame_go_along(cine: Cine) -> None:
    node = None
    for number in (0, 1, 2):
        node = cine.write(number, node, **doubt_of(cine, number))
    assert cine.browser.GetNumberOfSynchronizedSequenceNodes(True) == 4
    assert cine.browser.GetSelectedItemNumber() == 1
    for number in (1, 2, 0):
        cine.show(number)
        expected = doubt_of(cine, number)
        entropy = node.GetNodeReference(ENTROPY_REFERENCE)
        np.testing.assert_array_equal(arrayFromVolume(entropy), expected["entropy"].voxels)
        found = cine.scene.candidates_of(node)
        assert found is not None
        for name, array in vars(expected["candidates"]).items():
            np.testing.assert_array_equal(getattr(found, name), array, f"{name} at {number}")
        np.testing.assert_allclose(ijk_to_local(entropy), PLACES["oblique"], atol=1e-9)
        assert entropy.GetTransformNodeID() == cine.proxy.GetTransformNodeID()
        (first, *_) = cine.scene.uncertain_regions(node)
        assert first.segment_id in (LEFT_ID, STEM_ID, "")
    hidden = node.GetNodeReference(CANDIDATES_REFERENCE)
    assert hidden.GetHideFromEditors()
    assert entropy.GetName() == "Heart uncertainty"
    assert entropy.GetHideFromEditors()


def test_what_a_sequence_keeps_is_not_what_it_shows(cine: Cine) -> None:
    """A volume that shares its voxels with a frame would change it when the browser goes on."""
    node = cine.write(1, **doubt_of(cine, 1))
    cine.write(2, node, **doubt_of(cine, 2))
    shown = arrayFromVolume(node.GetNodeReference(ENTROPY_REFERENCE))
    np.testing.assert_array_equal(shown, doubt_of(cine, 1)["entropy"].voxels)
    cine.show(2)
    cine.show(1)
    shown = arrayFromVolume(node.GetNodeReference(ENTROPY_REFERENCE))
    np.testing.assert_array_equal(shown, doubt_of(cine, 1)["entropy"].voxels)


def test_a_volume_of_doubt_that_was_removed_is_made_anew(cine: Cine) -> None:
    node = cine.write(1, **doubt_of(cine, 1))
    cine.mrml.RemoveNode(node.GetNodeReference(ENTROPY_REFERENCE))
    cine.write(2, node, **doubt_of(cine, 2))
    cine.show(2)
    entropy = node.GetNodeReference(ENTROPY_REFERENCE)
    np.testing.assert_array_equal(arrayFromVolume(entropy), doubt_of(cine, 2)["entropy"].voxels)


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
    with pytest.raises(InputError, match="Heart is not an image of a sequence"):
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


def test_a_second_run_of_a_sequence_is_drawn_in_place_of_the_first(cine: Cine) -> None:
    def drawn() -> list[Any]:
        return [node for node in (first, second) if node.GetDisplayNode().GetVisibility()]

    first = cine.write(0)
    assert cine.scene.notes == ()
    cine.write(1, first)
    second = cine.write(0)
    (note,) = cine.scene.notes
    assert first.GetName() in note
    assert drawn() == [second]
    cine.write(1, second)
    for number in (0, 1, 2, 1, 0):
        cine.show(number)
        assert first not in drawn(), "whatever frame is shown"


def test_a_preview_is_accepted_into_the_frame_for_which_it_was_made(cine: Cine) -> None:
    node = None
    for number in (0, 1, 2):
        node = cine.write(number, node)
    assert cine.scene.goes_along(node, cine.proxy)
    assert not cine.scene.goes_along(None, cine.proxy)
    cine.show(1)
    image = cine.scene.read(cine.proxy)
    result = result_for(image, cine.labelmap(2))
    shown = cine.scene.preview(cine.proxy, result, OutputChoice(OutputMode.PREVIEW, node))
    cine.show(2)
    before = mask_on(node, LEFT_ID)
    with pytest.raises(InputError, match=f"{node.GetName()} shows another frame. Go to frame 2,"):
        shown.accept()
    np.testing.assert_array_equal(mask_on(node, LEFT_ID), before)
    cine.show(1)
    assert shown.accept() is node
    np.testing.assert_array_equal(mask_on(node, LEFT_ID), cine.labelmap(2) == LEFT.value)


def test_voxels_that_were_replaced_are_noticed(cine: Cine) -> None:
    found = []
    for number in range(3):
        cine.show(number)
        found.append(cine.scene.checksum(cine.proxy))
    cine.show(0)
    assert len(set(found)) == 3
    assert cine.scene.checksum(cine.proxy) == found[0]
    cine.proxy.SetOrigin(1, 2, 3)
    cine.proxy.SetName("Moved and renamed")
    assert cine.scene.checksum(cine.proxy) == found[0]
    assert cine.scene.checksum(slicer.vtkMRMLScalarVolumeNode()) == cine.scene.checksum(None) == 0

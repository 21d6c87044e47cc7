"""The hidden volumes of a segmentation follow it, and belong to it alone, whatever is done with it."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from slicer.util import arrayFromVolume

from medsegai.request import Candidates, SegmentationResult
from MedSegAILib.output_choice import OutputChoice, OutputMode
from MedSegAILib.scene import CANDIDATES_REFERENCE, ENTROPY_REFERENCE, Scene
from MedSegAILib.scene.merging import place_in
from MedSegAILib.scene.objects import OBJECTS_REFERENCE
from MedSegAILib.scene.tidying import follow
from scene_images import (
    LEFT,
    LEFT_ID,
    MOVED,
    PLACES,
    SHAPE,
    add_transform,
    add_volume,
    bending_transform,
    result_for,
    two_blocks,
)

ROLES = (ENTROPY_REFERENCE, CANDIDATES_REFERENCE)


class Ward:
    """A segmentation that was uncertain inside of one structure, with candidates."""

    def __init__(self, mrml: Any, is_watched: bool = True, moved: str = "no transform") -> None:
        self.mrml, self.scene = mrml, Scene(mrml)
        if is_watched:
            follow(mrml)
        self.volume = add_volume(mrml, PLACES["oblique"], MOVED[moved])
        self.node = self.scene.write(self.volume, self.result())

    def result(self, uncertainty: float = 1.0) -> SegmentationResult:
        image = self.scene.read(self.volume)
        entropy = np.zeros(SHAPE, np.float32)
        entropy[2:4, 3:5, 4:7] = uncertainty
        labels = two_blocks()
        one = np.full(SHAPE, 200, np.uint8)
        return dataclasses.replace(
            result_for(image, labels),
            entropy=image.with_voxels(entropy),
            candidates=Candidates(labels, labels, one, one),
        )

    def clone(self) -> Any:
        """What the Data module does."""
        clone = self.mrml.CreateNodeByClass("vtkMRMLSegmentationNode")
        clone.UnRegister(None)
        clone.Copy(self.node)
        clone.SetName("Copy")
        return self.mrml.AddNode(clone)

    def check(self) -> None:
        """The uncertain region lies in its structure, and so do candidates."""
        (place,) = self.scene.uncertain_regions(self.node)
        assert place.segment_id == LEFT_ID
        middle = self.scene.center_of(self.node, LEFT_ID)
        assert middle is not None
        assert np.linalg.norm(np.subtract(place.ras, middle)) < 4
        assert self.scene.candidates_of(self.node) is not None
        for role in ROLES:
            volume = self.node.GetNodeReference(role)
            own = place_in(self.node, volume, SHAPE)
            assert own.matches(place_in(self.node, self.volume, SHAPE))


def harden(*nodes: Any) -> None:
    for node in nodes:
        node.HardenTransform()


@pytest.mark.parametrize("watched", [True, False], ids=["watched", "not watched"])
@pytest.mark.parametrize("moved", sorted(MOVED))
def test_maps_and_candidates_are_where_their_segmentation_is(
    mrml: Any, moved: str, watched: bool
) -> None:
    ward = Ward(mrml, watched, moved)
    ward.check()
    shift, turn = (add_transform(mrml, MOVED[name]) for name in ("shifted", "turned"))
    for parent in (shift, turn, None, turn):
        above = None if parent is None else parent.GetID()
        for node in (ward.volume, ward.node):
            node.SetAndObserveTransformNodeID(above)
        ward.check()
    turn.SetAndObserveTransformNodeID(shift.GetID())
    ward.check()
    harden(ward.volume, ward.node)
    assert ward.node.GetParentTransformNode() is None
    ward.check()


def test_a_transform_above_a_transform_is_hardened_alone(mrml: Any) -> None:
    ward = Ward(mrml, moved="turned")
    turn = ward.node.GetParentTransformNode()
    turn.SetAndObserveTransformNodeID(add_transform(mrml, MOVED["shifted"]).GetID())
    turn.HardenTransform()
    ward.check()


def test_the_map_in_the_views_follows_at_once(mrml: Any) -> None:
    ward = Ward(mrml)
    ward.node.SetAndObserveTransformNodeID(add_transform(mrml, MOVED["turned"]).GetID())
    entropy = ward.node.GetNodeReference(ENTROPY_REFERENCE)
    assert entropy.GetTransformNodeID() == ward.node.GetTransformNodeID()


def test_a_scan_that_is_moved_alone_takes_nothing_along(mrml: Any) -> None:
    ward = Ward(mrml)
    before = ward.scene.uncertain_regions(ward.node)
    ward.volume.SetAndObserveTransformNodeID(add_transform(mrml, MOVED["turned"]).GetID())
    assert ward.scene.uncertain_regions(ward.node) == before


def test_under_a_bend_a_map_stays_beneath_it(mrml: Any) -> None:
    """It is displayed where it belongs; only its places in the world are not computed."""
    ward = Ward(mrml)
    bend = bending_transform(mrml)
    ward.node.SetAndObserveTransformNodeID(bend.GetID())
    entropy = ward.node.GetNodeReference(ENTROPY_REFERENCE)
    assert entropy.GetTransformNodeID() == bend.GetID()
    ward.node.SetAndObserveTransformNodeID(None)
    ward.node.SetAndObserveTransformNodeID(bend.GetID())
    ward.node.HardenTransform()
    assert entropy.GetTransformNodeID() == bend.GetID()


def test_a_clone_does_not_share_what_is_written_into_one_of_both(mrml: Any) -> None:
    ward = Ward(mrml)
    clone = ward.clone()
    before = {role: arrayFromVolume(ward.node.GetNodeReference(role)).copy() for role in ROLES}
    output = OutputChoice(OutputMode.UPDATE, clone, change_painted=True)
    ward.scene.write(ward.volume, ward.result(uncertainty=0.5), output)
    for role, expected in before.items():
        assert clone.GetNodeReference(role) is not ward.node.GetNodeReference(role)
        np.testing.assert_array_equal(arrayFromVolume(ward.node.GetNodeReference(role)), expected)
    assert arrayFromVolume(clone.GetNodeReference(ENTROPY_REFERENCE)).max() == 0.5
    mrml.RemoveNode(clone)
    ward.check()


def test_a_clone_that_is_moved_leaves_the_maps_of_the_original(mrml: Any) -> None:
    ward = Ward(mrml)
    clone = ward.clone()
    clone.SetAndObserveTransformNodeID(add_transform(mrml, MOVED["turned"]).GetID())
    ward.check()
    mrml.RemoveNode(clone)
    ward.check()


def test_objects_of_a_clone_are_its_own(mrml: Any) -> None:
    ward = Ward(mrml)
    image = ward.scene.read(ward.volume)
    numbers = np.zeros(SHAPE, np.uint8)
    numbers[1, 1, 1] = 1
    found = dataclasses.replace(
        ward.result(),
        objects=image.with_voxels(numbers),
        object_rows=({"number": 1, "pixels": 1, "area_mm2": None},),
    )
    ward.node = ward.scene.write(ward.volume, found)
    clone = ward.clone()
    ward.scene.write(ward.volume, found, OutputChoice(OutputMode.UPDATE, clone))
    of_both = [node.GetNodeReference(OBJECTS_REFERENCE) for node in (ward.node, clone)]
    assert None not in of_both
    assert of_both[0] is not of_both[1]


def test_a_map_at_another_place_would_be_seen(mrml: Any) -> None:
    """A guard of the check above, which can fail."""
    ward = Ward(mrml)
    entropy = ward.node.GetNodeReference(ENTROPY_REFERENCE)
    entropy.SetOrigin(500, 0, 0)
    assert not any(place.name == LEFT.name for place in ward.scene.uncertain_regions(ward.node))

"""What a refinement would change, as it is marked in the views, and where it would change most."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import slicer
from slicer.util import updateVolumeFromArray

from medsegai.models.refinement import Refinement
from medsegai.progress import Progress
from medsegai.volume import Geometry
from medsegai.worker.refine_job import refine
from medsegai.worker.requests import RefinementResult
from MedSegAILib.output_choice import OutputChoice, OutputMode
from MedSegAILib.scene import Scene
from MedSegAILib.scene.changes import changed, largest_change
from scene_images import (
    LEFT,
    MOVED,
    PLACES,
    STEM,
    add_transform,
    add_volume,
    paint,
    result_for,
    world_of,
)
from slice_pictures import SlicePicture

SHAPE = (20, 24, 30)  # k, j, i


def blocks() -> np.ndarray:
    labelmap = np.zeros(SHAPE, np.uint16)
    labelmap[5:15, 5:15, 4:14] = LEFT.value
    labelmap[5:15, 5:15, 14:24] = STEM.value
    return labelmap


def changed_labels() -> np.ndarray:
    """A large part added to the left, a slice of the stem taken away, and a corner given to the other."""
    labelmap = blocks()
    labelmap[6:12, 15:21, 5:11] = LEFT.value
    labelmap[5:15, 5:15, 23] = 0
    labelmap[5:7, 5:7, 14] = LEFT.value
    return labelmap


class Room:
    """A segmentation of two blocks, and its preview with other label values."""

    def __init__(self, mrml: Any, place: str = "oblique and swapped", moved: str = "turned"):
        self.mrml, self.scene = mrml, Scene(mrml)
        self.volume = mrml.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "Head")
        updateVolumeFromArray(self.volume, np.zeros(SHAPE, np.int16))
        matrix = slicer.util.vtkMatrixFromArray(PLACES[place])
        self.volume.SetIJKToRASMatrix(matrix)
        above = MOVED[moved]
        if above is not None:
            self.volume.SetAndObserveTransformNodeID(add_transform(mrml, above).GetID())
        image = self.scene.read(self.volume)
        self.node = self.scene.write(self.volume, result_for(image, blocks()))

    def preview(self, labelmap: np.ndarray) -> Any:
        draft = self.scene.draft(self.node, [])
        voxels = draft.request.labelmap.with_voxels(
            labelmap.astype(draft.request.labelmap.voxels.dtype)
        )
        return self.scene.preview_refined(draft, RefinementResult(voxels, ("Changed.",)))

    def marks(self) -> Any:
        """The hidden node that shows the change, or None."""
        count = self.mrml.GetNumberOfNodesByClass("vtkMRMLSegmentationNode")
        nodes = [self.mrml.GetNthNodeByClass(n, "vtkMRMLSegmentationNode") for n in range(count)]
        hidden = [node for node in nodes if node.GetHideFromEditors()]
        assert len(hidden) < 2
        return hidden[0] if hidden else None

    def mark(self, kind: str) -> np.ndarray:
        return np.asarray(
            slicer.util.arrayFromSegmentBinaryLabelmap(self.marks(), kind, self.volume), bool
        )


@pytest.fixture
def room(application: Any, mrml: Any) -> Room:
    return Room(mrml)


@pytest.mark.parametrize("moved", ["no transform", "turned"])
@pytest.mark.parametrize("place", ["plain", "mirrored", "oblique and swapped"])
def test_what_would_be_added_removed_and_moved_is_marked(
    application: Any, mrml: Any, place: str, moved: str
) -> None:
    room = Room(mrml, place, moved)
    room.preview(changed_labels())
    old, new = blocks(), changed_labels()
    np.testing.assert_array_equal(room.mark("added"), (old == 0) & (new != 0))
    np.testing.assert_array_equal(room.mark("removed"), (old != 0) & (new == 0))
    np.testing.assert_array_equal(room.mark("moved"), (old != 0) & (new != 0) & (old != new))
    assert room.marks().GetTransformNodeID() == room.node.GetTransformNodeID()
    assert not room.marks().GetSaveWithScene()


@pytest.mark.parametrize("place", ["plain", "mirrored", "oblique and swapped"])
def test_the_place_lies_inside_the_largest_change(application: Any, mrml: Any, place: str) -> None:
    room = Room(mrml, place)
    found = room.preview(changed_labels()).place
    block = np.argwhere((changed_labels() == LEFT.value) & (blocks() == 0))
    inside = [world_of(room.volume, i, j, k) for k, j, i in block]
    assert min(np.linalg.norm(point - found) for point in inside) < 1e-6


def test_specks_do_not_outweigh_one_large_change() -> None:
    random = np.random.default_rng(3)
    where = random.uniform(size=SHAPE) < 0.01
    where[8:13, 8:13, 8:13] = True
    geometry = Geometry.from_spacing(SHAPE, (1, 1, 1))
    place = largest_change(where, geometry)
    assert all(8 <= at <= 12 for at in (geometry.ras_to_ijk @ [*place, 1])[:3])


def test_segments_that_overlap_are_told_apart(room: Room) -> None:
    """A voxel that one segment gains where another is stays that other's, too."""
    copy = room.mrml.AddNewNodeByClass("vtkMRMLSegmentationNode")
    copy.GetSegmentation().DeepCopy(room.node.GetSegmentation())
    assert changed(room.node, copy) is None
    copy.SetAndObserveTransformNodeID(room.node.GetTransformNodeID())
    drawn = np.zeros(SHAPE, bool)
    drawn[6:9, 6:9, 12:16] = True
    copy.GetSegmentation().AddEmptySegment("Mine", "Mine")
    paint(copy, "Mine", drawn, room.volume)
    found = changed(room.node, copy)
    assert found is not None
    assert (int(found.gained.sum()), int(found.lost.sum())) == (int(drawn.sum()), 0)


def test_a_preview_of_another_run_is_marked_too(room: Room) -> None:
    image = room.scene.read(room.volume)
    result = result_for(image, changed_labels())
    preview = room.scene.preview(room.volume, result, OutputChoice(OutputMode.PREVIEW, room.node))
    old, new = blocks(), changed_labels()
    np.testing.assert_array_equal(room.mark("added"), (old == 0) & (new != 0))
    assert preview.place is not None
    preview.reject()
    assert room.marks() is None


def test_a_preview_that_stays_because_its_original_is_gone_is_not_marked(room: Room) -> None:
    result = result_for(room.scene.read(room.volume), changed_labels())
    preview = room.scene.preview(room.volume, result, OutputChoice(OutputMode.PREVIEW, room.node))
    room.mrml.RemoveNode(room.node)
    assert preview.accept() is preview.node
    assert room.marks() is None


@pytest.mark.parametrize("end", ["accept", "reject"])
def test_the_marks_go_with_the_preview(room: Room, end: str) -> None:
    preview = room.preview(changed_labels())
    assert room.marks() is not None
    getattr(preview, end)()
    assert room.marks() is None


def test_a_preview_that_changes_nothing_marks_nothing(room: Room) -> None:
    preview = room.preview(blocks())
    assert (preview.place, room.marks()) == (None, None)
    preview.reject()


def test_the_change_is_seen_in_its_colours(application: Any, mrml: Any) -> None:
    room = Room(mrml, "plain", "no transform")
    picture = SlicePicture(mrml, (400, 400), 40)

    def at(i: int, j: int, k: int) -> np.ndarray:
        """The colour of a voxel; the view looks from below, its middle at R 15, A 12."""
        picture.node.SetSliceOffset(k)
        return picture.pixels()[200 - 10 * (j - 12), 200 - 10 * (i - 15)].astype(int)

    picture.node.JumpSliceByCentering(15, 12, 8)
    preview = room.preview(changed_labels())
    red, green, blue = at(8, 18, 8)
    assert green > 1.3 * red
    assert green > 1.3 * blue, "added"
    red, green, blue = at(23, 10, 8)
    assert red > 1.5 * green
    assert red > 1.5 * blue, "taken away"
    preview.reject()
    assert tuple(at(8, 18, 8)) == (0, 0, 0)


def test_a_real_refinement_is_marked(application: Any, mrml: Any) -> None:
    """Specks far from a structure go, by the worker's own code."""
    scene = Scene(mrml)
    volume = add_volume(mrml, PLACES["LPS"])
    labelmap = np.zeros((9, 11, 14), np.uint16)
    labelmap[2:6, 2:8, 2:8] = LEFT.value
    labelmap[8, 10, 13] = LEFT.value
    node = scene.write(volume, result_for(scene.read(volume), labelmap))
    draft = scene.draft(node, [Refinement("islands", {"smallest_ml": 0.05})])
    preview = scene.preview_refined(draft, refine(draft.request, Progress()))
    np.testing.assert_allclose(preview.place, world_of(volume, 13, 10, 8), atol=1e-6)

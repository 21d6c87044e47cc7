"""A result into a segmentation that is there: what changes, and above all what must not."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import slicer
import vtk
from slicer.util import updateVolumeFromArray, vtkMatrixFromArray

from medsegai.errors import GeometryError, InputError
from medsegai.request import SegmentationResult
from MedSegAILib.output_choice import OutputChoice, OutputMode
from MedSegAILib.scene import REPORT_ATTRIBUTE, ReviewState, Scene
from MedSegAILib.scene.layers import layers_of
from MedSegAILib.scene.segments import REMARKS_TAG, measures_of
from scene_images import (
    LEFT,
    LEFT_ID,
    MOVED,
    PLACES,
    SHAPE,
    STEM,
    STEM_ID,
    Room,
    add_transform,
    add_volume,
    bending_transform,
    block,
    mask_on,
    node_ids,
    paint,
    result_for,
    shifted,
    two_blocks,
)


def update(node: Any, **options: Any) -> OutputChoice:
    return OutputChoice(OutputMode.UPDATE, node, **options)


class Again(Room):
    """What a second run would give, and its way into the segmentation of the first."""

    def result(self, labelmap: np.ndarray | None = None, region: Any = ()) -> SegmentationResult:
        result = result_for(self.image, shifted() if labelmap is None else labelmap)
        return dataclasses.replace(result, region=tuple(region))

    def write(self, choice: OutputChoice | None = None, **result: Any) -> Any:
        output = update(self.node) if choice is None else choice
        return self.scene.write(self.volume, self.result(**result), output)

    def segment(self, name: str) -> Any:
        return self.node.GetSegmentation().GetSegment(name)


@pytest.fixture
def room(mrml: Any) -> Again:
    return Again(mrml)


# --- update ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("moved", MOVED)
@pytest.mark.parametrize("place", PLACES)
def test_matching_segments_get_the_new_voxels(mrml: Any, place: str, moved: str) -> None:
    room = Again(mrml, place, moved)
    assert room.write() is room.node
    assert mrml.GetNumberOfNodesByClass("vtkMRMLSegmentationNode") == 1
    np.testing.assert_array_equal(room.mask(LEFT_ID), shifted() == LEFT.value)
    np.testing.assert_array_equal(room.mask(STEM_ID), shifted() == STEM.value)
    assert room.node.GetSegmentation().GetNumberOfLayers() == 1
    assert room.segment(LEFT_ID).GetName() == LEFT.name


def test_name_and_colour_that_the_user_gave_stay(room: Again) -> None:
    room.segment(LEFT_ID).SetName("Hippo L")
    room.segment(LEFT_ID).SetColor(0.1, 0.2, 0.3)
    room.write()
    assert room.segment(LEFT_ID).GetName() == "Hippo L"
    assert room.segment(LEFT_ID).GetColor() == (0.1, 0.2, 0.3)
    np.testing.assert_array_equal(room.mask(LEFT_ID), shifted() == LEFT.value)


def test_update_adds_no_segment_and_says_so(room: Again) -> None:
    room.node.GetSegmentation().RemoveSegment(STEM_ID)
    room.write()
    assert room.node.GetSegmentation().GetSegmentIDs() == (LEFT_ID,)
    assert any("Brain-Stem" in note for note in room.scene.notes)


def test_a_structure_that_is_gone_leaves_its_segment_empty(room: Again) -> None:
    labelmap = shifted()
    labelmap[labelmap == STEM.value] = 0
    room.write(labelmap=labelmap)
    assert not room.mask(STEM_ID).any()
    assert room.mask(LEFT_ID).any()
    room.write()
    np.testing.assert_array_equal(room.mask(STEM_ID), shifted() == STEM.value)


def test_a_second_and_third_update_work_alike(room: Again) -> None:
    for labelmap in (shifted(), two_blocks(), shifted()):
        room.write(labelmap=labelmap)
        np.testing.assert_array_equal(room.mask(LEFT_ID), labelmap == LEFT.value)
    assert room.scene.notes == room.scene.notes[:1], "nothing was taken for painted"
    assert room.node.GetSegmentation().GetNumberOfLayers() == 1


@pytest.mark.parametrize("place", ["oblique and swapped", "LPS"])
def test_only_the_region_changes(mrml: Any, place: str) -> None:
    """The box is in the world, the expected voxels come from testing each centre one by one."""
    room = Again(mrml, place, "turned")
    center = room.image.geometry.ijk_to_ras @ [5, 4, 3, 1.0]
    region = [value for c in center[:3] for value in (c - 2.2, c + 2.2)]
    k, j, i = room.image.geometry.box_around(region)
    inside = np.zeros(SHAPE, bool)
    inside[k, j, i] = True
    assert (inside & (two_blocks() != shifted())).sum() > 0
    assert ((two_blocks() != shifted()) & ~inside).any()
    room.write(region=region)
    expected = np.where(inside, shifted(), two_blocks())
    np.testing.assert_array_equal(room.mask(LEFT_ID), expected == LEFT.value)
    np.testing.assert_array_equal(room.mask(STEM_ID), expected == STEM.value)


def test_after_a_region_the_segment_is_still_the_ais(room: Again) -> None:
    center = room.image.geometry.ijk_to_ras @ [5, 4, 3, 1.0]
    room.write(region=[value for c in center[:3] for value in (c - 2.2, c + 2.2)])
    room.write(labelmap=two_blocks())
    np.testing.assert_array_equal(room.mask(LEFT_ID), two_blocks() == LEFT.value)


# --- what is never changed -------------------------------------------------------------------------


def region_around(room: Again, i: int, j: int, k: int, reach_mm: float) -> list[float]:
    center = room.image.geometry.ijk_to_ras @ [i, j, k, 1.0]
    return [value for c in center[:3] for value in (c - reach_mm, c + reach_mm)]


def test_a_region_says_nothing_about_structures_outside_of_it(mrml: Any) -> None:
    """What a person noted, and what was measured of whole structures, stays."""
    room = Again(mrml, "plain", "no transform")
    whole = dataclasses.replace(result_for(room.image, two_blocks()), warnings=("old",))
    whole = dataclasses.replace(
        whole, structures=tuple(dataclasses.replace(one, iou=0.9) for one in whole.structures)
    )
    room.node = room.scene.write(room.volume, whole)
    before, tag = room.scene.report(room.node), room.node.GetSegmentation().GetSegment
    states = {LEFT_ID: ReviewState.IN_PROGRESS, STEM_ID: ReviewState.COMPLETED}
    for name, state in states.items():
        room.scene.set_review_state(room.node, name, state)
    region = region_around(room, 3, 4, 3, 1.2)
    new = dataclasses.replace(room.result(region=region), warnings=("new",))
    output = update(room.node, change_locked=True)
    room.scene.write(room.volume, new, output)
    assert (room.mask(LEFT_ID) != (two_blocks() == LEFT.value)).any()
    for name, state in states.items():
        assert room.scene.review_state(room.node, name) is state
        assert measures_of(tag(name)) == {"iou": 0.9}
    report = room.scene.report(room.node)
    (updated,) = report.pop("updated")
    assert updated["warnings"] == ["new"]
    assert report == before | {"warnings": ["old", "new"]}
    room.scene.write(room.volume, new, output)
    assert len(room.scene.report(room.node)["updated"]) == 2


def test_a_completed_segment_that_a_region_changes_is_to_be_reviewed_again(mrml: Any) -> None:
    room = Again(mrml, "plain", "no transform")
    room.scene.set_review_state(room.node, LEFT_ID, ReviewState.COMPLETED)
    region = region_around(room, 3, 4, 3, 1.2)
    room.write(update(room.node, change_locked=True), region=region)
    assert room.scene.review_state(room.node, LEFT_ID) is ReviewState.NOT_STARTED


def test_a_flag_of_a_person_stays_and_one_of_the_ai_goes_with_its_reason(room: Again) -> None:
    for name in (LEFT_ID, STEM_ID):
        room.scene.set_review_state(room.node, name, ReviewState.FLAGGED)
    room.segment(STEM_ID).SetTag(REMARKS_TAG, "was strange")
    room.write()
    assert room.scene.review_state(room.node, LEFT_ID) is ReviewState.FLAGGED
    assert room.scene.review_state(room.node, STEM_ID) is ReviewState.NOT_STARTED


def test_a_report_that_other_software_damaged_counts_as_none(room: Again) -> None:
    for text in ("{", "[1, 2]", "null", '"text"'):
        room.node.SetAttribute(REPORT_ATTRIBUTE, text)
        assert room.scene.report(room.node) == {}
        room.write(region=region_around(room, 3, 4, 3, 1.2))
        assert room.scene.report(room.node)["warnings"] == []


def test_a_completed_segment_stays(room: Again) -> None:
    room.scene.set_review_state(room.node, LEFT_ID, ReviewState.COMPLETED)
    room.write()
    np.testing.assert_array_equal(room.mask(LEFT_ID), two_blocks() == LEFT.value)
    np.testing.assert_array_equal(room.mask(STEM_ID), shifted() == STEM.value)
    assert "review is completed: Left hippocampus" in room.scene.notes[0]
    assert room.scene.review_state(room.node, LEFT_ID) is ReviewState.COMPLETED


def test_a_completed_segment_changes_when_chosen(room: Again) -> None:
    room.scene.set_review_state(room.node, LEFT_ID, ReviewState.COMPLETED)
    room.write(update(room.node, change_locked=True))
    np.testing.assert_array_equal(room.mask(LEFT_ID), shifted() == LEFT.value)
    assert room.scene.review_state(room.node, LEFT_ID) is ReviewState.NOT_STARTED


def test_what_the_user_painted_stays(room: Again) -> None:
    mine = room.mask(LEFT_ID)
    mine[2, 3, 9] = True
    paint(room.node, LEFT_ID, mine, room.volume)
    room.write()
    np.testing.assert_array_equal(room.mask(LEFT_ID), mine)
    np.testing.assert_array_equal(room.mask(STEM_ID), shifted() == STEM.value)
    assert "painted by hand: Left hippocampus" in room.scene.notes[0]


def test_what_the_user_painted_changes_when_chosen(room: Again) -> None:
    mine = room.mask(LEFT_ID)
    mine[2, 3, 9] = True
    paint(room.node, LEFT_ID, mine, room.volume)
    room.write(update(room.node, change_painted=True))
    np.testing.assert_array_equal(room.mask(LEFT_ID), shifted() == LEFT.value)


def test_strokes_outside_of_the_region_are_remembered_as_the_users(room: Again) -> None:
    mine = room.mask(LEFT_ID)
    mine[8, 10, 0] = True
    paint(room.node, LEFT_ID, mine, room.volume)
    center = room.image.geometry.ijk_to_ras @ [5, 4, 3, 1.0]
    region = [value for c in center[:3] for value in (c - 2.2, c + 2.2)]
    room.write(update(room.node, change_painted=True), region=region)
    kept = room.mask(LEFT_ID)
    assert kept[8, 10, 0]
    room.write(labelmap=two_blocks())
    np.testing.assert_array_equal(room.mask(LEFT_ID), kept)


def test_a_segment_that_the_user_emptied_stays_empty(room: Again) -> None:
    paint(room.node, LEFT_ID, np.zeros(SHAPE, bool), room.volume)
    room.write()
    assert not room.mask(LEFT_ID).any()


def test_an_empty_segment_that_the_user_prepared_is_filled(mrml: Any) -> None:
    volume = add_volume(mrml, PLACES["oblique"], MOVED["turned"])
    scene = Scene(mrml)
    node = mrml.AddNewNodeByClass("vtkMRMLSegmentationNode", "Mine")
    node.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    node.SetAndObserveTransformNodeID(volume.GetTransformNodeID())
    node.GetSegmentation().AddEmptySegment("Segment_1", "brain-stem")
    result = result_for(scene.read(volume), two_blocks())
    assert scene.write(volume, result, update(node)) is node
    np.testing.assert_array_equal(mask_on(node, "Segment_1"), two_blocks() == STEM.value)
    assert node.GetSegmentation().GetNumberOfSegments() == 1


def test_other_segments_keep_their_voxels_and_the_ai_goes_around_them(room: Again) -> None:
    """The user drew another segment where the next result would be."""
    mine = block(slice(2, 4), slice(2, 8), slice(1, 4))
    room.node.GetSegmentation().AddEmptySegment("mine", "Lesion")
    paint(room.node, "mine", mine, room.volume)
    assert (mine & (shifted() == LEFT.value) & (two_blocks() != LEFT.value)).any()
    stays = mine & (two_blocks() == LEFT.value)
    paint(room.node, "mine", mine & ~stays, room.volume)
    mine = mine & ~stays
    room.write()
    np.testing.assert_array_equal(room.mask("mine"), mine)
    np.testing.assert_array_equal(room.mask(LEFT_ID), (shifted() == LEFT.value) & ~mine)


def test_segments_that_overlapped_before_may_overlap_again(room: Again) -> None:
    """A segment around everything, such as the whole head, must not keep the AI out."""
    room.node.GetSegmentation().AddEmptySegment("head", "Head")
    paint(room.node, "head", np.ones(SHAPE, bool), room.volume)
    room.write()
    assert room.mask("head").all()
    np.testing.assert_array_equal(room.mask(LEFT_ID), shifted() == LEFT.value)
    np.testing.assert_array_equal(room.mask(STEM_ID), shifted() == STEM.value)


def test_a_protected_segment_in_the_same_label_map_keeps_its_voxels(room: Again) -> None:
    """Both share one label map; the new block would run into the completed one."""
    room.scene.set_review_state(room.node, STEM_ID, ReviewState.COMPLETED)
    labelmap = two_blocks()
    labelmap[3:7, 4:8, 7:11] = LEFT.value
    room.write(labelmap=labelmap)
    np.testing.assert_array_equal(room.mask(STEM_ID), two_blocks() == STEM.value)
    expected = (labelmap == LEFT.value) & (two_blocks() != STEM.value)
    np.testing.assert_array_equal(room.mask(LEFT_ID), expected)


# --- matching --------------------------------------------------------------------------------------


def renamed(room: Again, old: str, new: str) -> None:
    """The same segment under another id, as after a detour through another program."""
    segments = room.node.GetSegmentation()
    segment = slicer.vtkSegment()
    segment.DeepCopy(segments.GetSegment(old))
    segments.RemoveSegment(old)
    segments.AddSegment(segment, new)


def test_a_segment_is_found_by_its_name(room: Again) -> None:
    renamed(room, STEM_ID, "Segment_7")
    room.segment("Segment_7").SetName("BRAIN-STEM")
    room.write()
    np.testing.assert_array_equal(room.mask("Segment_7"), shifted() == STEM.value)


def test_a_segment_is_found_by_its_code(room: Again) -> None:
    renamed(room, LEFT_ID, "Segment_7")
    room.segment("Segment_7").SetName("Ammonshorn links")
    room.write()
    np.testing.assert_array_equal(room.mask("Segment_7"), shifted() == LEFT.value)


def test_a_like_name_with_another_code_is_another_structure(room: Again) -> None:
    renamed(room, LEFT_ID, "Segment_7")
    segment = room.segment("Segment_7")
    tag = slicer.vtkSegment.GetTerminologyEntryTagName()
    assert LEFT.terminology is not None
    segment.SetTag(tag, LEFT.terminology.to_slicer().replace("7771000^Left", "24028007^Right"))
    room.write()
    np.testing.assert_array_equal(room.mask("Segment_7"), two_blocks() == LEFT.value)


def test_of_two_segments_with_one_name_none_is_taken_for_it(room: Again) -> None:
    renamed(room, STEM_ID, "Segment_7")
    room.node.GetSegmentation().AddEmptySegment("Segment_8", "Brain-Stem")
    room.write()
    np.testing.assert_array_equal(room.mask("Segment_7"), two_blocks() == STEM.value)


def test_a_code_that_two_structures_share_decides_for_none(room: Again) -> None:
    """Both halves of a structure carry its code; a segment of that code could be either."""
    renamed(room, LEFT_ID, "Segment_7")
    room.segment("Segment_7").SetName("Ammonshorn links")
    result = room.result()
    twin = dataclasses.replace(STEM, terminology=LEFT.terminology)
    structures = tuple(
        dataclasses.replace(measures, label=twin) if measures.label == STEM else measures
        for measures in result.structures
    )
    result = dataclasses.replace(result, labels=(LEFT, twin), structures=structures)
    room.scene.write(room.volume, result, update(room.node))
    np.testing.assert_array_equal(room.mask("Segment_7"), two_blocks() == LEFT.value)
    np.testing.assert_array_equal(room.mask(STEM_ID), shifted() == STEM.value)


# --- add -------------------------------------------------------------------------------------------


def test_add_puts_structures_beside_those_that_are_there(room: Again) -> None:
    room.write(OutputChoice(OutputMode.ADD, room.node))
    segments = room.node.GetSegmentation()
    assert segments.GetNumberOfSegments() == 4
    first, second, third, fourth = segments.GetSegmentIDs()
    assert (first, second) == (LEFT_ID, STEM_ID)
    names = [segments.GetSegment(name).GetName() for name in (third, fourth)]
    assert names == ["Left hippocampus (2)", "Brain-Stem (2)"]
    for name, labelmap, label in (
        (first, two_blocks(), LEFT),
        (second, two_blocks(), STEM),
        (third, shifted(), LEFT),
        (fourth, shifted(), STEM),
    ):
        np.testing.assert_array_equal(room.mask(name), labelmap == label.value, name)


def test_add_to_an_empty_segmentation_makes_it_ready_to_edit(mrml: Any) -> None:
    volume = add_volume(mrml, PLACES["LPS"])
    node = mrml.AddNewNodeByClass("vtkMRMLSegmentationNode", "Mine")
    scene = Scene(mrml)
    result = result_for(scene.read(volume), two_blocks())
    assert scene.write(volume, result, OutputChoice(OutputMode.ADD, node)) is node
    role = node.GetReferenceImageGeometryReferenceRole()
    assert node.GetNodeReferenceID(role) == volume.GetID()
    np.testing.assert_array_equal(mask_on(node, LEFT_ID), two_blocks() == LEFT.value)
    assert node.GetDisplayNode() is not None


# --- other grids and transforms --------------------------------------------------------------------


def test_a_segmentation_under_another_transform_gets_the_voxels_where_they_are(mrml: Any) -> None:
    """The segmentation is edited in the world, its volume has a parent transform that shifts whole voxels."""
    volume = add_volume(mrml, PLACES["plain"])
    scene = Scene(mrml)
    node = scene.write(volume, result_for(scene.read(volume), two_blocks()))
    shift = np.eye(4)
    shift[:3, 3] = (2, 1, -1)
    volume.SetAndObserveTransformNodeID(add_transform(mrml, shift).GetID())
    scene.write(volume, result_for(scene.read(volume), two_blocks()), update(node))
    image = slicer.vtkOrientedImageData()
    node.GetBinaryLabelmapRepresentation(LEFT_ID, image)
    effective = [0] * 6
    slicer.vtkOrientedImageDataResample.CalculateEffectiveExtent(image, effective)
    found = np.argwhere(two_blocks() == LEFT.value)[:, ::-1]
    moved = np.array([2, 1, -1])
    origin = np.array(image.GetOrigin())
    np.testing.assert_allclose(np.array(effective[::2]) + origin, found.min(0) + moved)
    np.testing.assert_allclose(np.array(effective[1::2]) + origin, found.max(0) + moved)


def test_a_finer_segmentation_keeps_its_own_voxels(mrml: Any) -> None:
    """Edited on half the voxel size: the result comes to that grid, each voxel from the nearest one."""
    coarse = add_volume(mrml, PLACES["plain"])
    scene = Scene(mrml)
    fine = mrml.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "Fine")
    place = np.diag([0.5, 0.5, 0.5, 1.0])
    place[:3, 3] = -0.25
    shape = tuple(2 * size for size in SHAPE)
    updateVolumeFromArray(fine, np.zeros(shape, np.int16))
    fine.SetIJKToRASMatrix(vtkMatrixFromArray(place))
    node = mrml.AddNewNodeByClass("vtkMRMLSegmentationNode", "Fine segmentation")
    node.SetReferenceImageGeometryParameterFromVolumeNode(fine)
    node.GetSegmentation().AddEmptySegment("mine", "Mine")
    mine = np.zeros(shape, bool)
    mine[0, 0, 0] = True
    paint(node, "mine", mine, fine)
    result = result_for(scene.read(coarse), two_blocks())
    scene.write(coarse, result, OutputChoice(OutputMode.ADD, node))
    np.testing.assert_array_equal(mask_on(node, "mine", shape), mine)
    expected = np.kron(two_blocks() == LEFT.value, np.ones((2, 2, 2), bool))
    np.testing.assert_array_equal(mask_on(node, LEFT_ID, shape), expected)


def test_a_completed_segment_keeps_its_voxels_when_the_editor_goes_on_with_finer_ones(
    mrml: Any,
) -> None:
    """Both were on the grid of the volume; then the user gave the segmentation a finer geometry."""
    room = Again(mrml, "plain", "no transform")
    fine = mrml.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "Fine")
    place = np.diag([0.5, 0.5, 0.5, 1.0])
    place[:3, 3] = -0.25
    shape = tuple(2 * size for size in SHAPE)
    updateVolumeFromArray(fine, np.zeros(shape, np.int16))
    fine.SetIJKToRASMatrix(vtkMatrixFromArray(place))
    room.node.SetReferenceImageGeometryParameterFromVolumeNode(fine)
    room.scene.set_review_state(room.node, STEM_ID, ReviewState.COMPLETED)
    room.write()
    double = np.ones((2, 2, 2), bool)
    expected = np.kron(two_blocks() == STEM.value, double)
    np.testing.assert_array_equal(mask_on(room.node, STEM_ID, shape), expected)
    expected = np.kron(shifted() == LEFT.value, double)
    np.testing.assert_array_equal(mask_on(room.node, LEFT_ID, shape), expected)
    for layer in layers_of(room.node):
        assert set(np.unique(layer.voxels)) - {0} == set(layer.values.values()), (
            "nothing is left over"
        )


def test_views_hear_of_the_change(room: Again) -> None:
    heard = []
    segments = room.node.GetSegmentation()
    event = slicer.vtkSegmentation.SourceRepresentationModified
    segments.AddObserver(event, lambda *_: heard.append(room.mask(LEFT_ID)))
    room.write()
    assert heard, "the slice views would show the old voxels"
    np.testing.assert_array_equal(heard[-1], shifted() == LEFT.value)


def test_surfaces_follow_the_new_voxels(room: Again) -> None:
    room.scene.show_3d(room.node)
    before = np.array(room.segment(LEFT_ID).GetRepresentation("Closed surface").GetCenter())
    room.write()
    after = np.array(room.segment(LEFT_ID).GetRepresentation("Closed surface").GetCenter())
    step = PLACES["oblique"][:3, 0]
    np.testing.assert_allclose(after - before, -step, atol=1e-4)


# --- what can happen -------------------------------------------------------------------------------


def test_a_segmentation_of_surfaces_is_refused_and_left_alone(mrml: Any) -> None:
    volume = add_volume(mrml, PLACES["plain"])
    node = mrml.AddNewNodeByClass("vtkMRMLSegmentationNode", "Shells")
    source = slicer.vtkSegmentationConverter.GetSegmentationClosedSurfaceRepresentationName()
    node.GetSegmentation().SetSourceRepresentationName(source)
    ball = slicer.vtkSegment()
    ball.SetName("Brain-Stem")
    sphere = vtk.vtkSphereSource()
    sphere.Update()
    ball.AddRepresentation(source, sphere.GetOutput())
    node.GetSegmentation().AddSegment(ball, "ball")
    scene = Scene(mrml)
    result = result_for(scene.read(volume), two_blocks())
    before = node_ids(mrml)
    for choice in (update(node), OutputChoice(OutputMode.ADD, node)):
        with pytest.raises(InputError, match="Shells is made of surfaces"):
            scene.write(volume, result, choice)
    assert node_ids(mrml) == before
    assert node.GetSegmentation().GetNumberOfSegments() == 1


def test_a_segmentation_under_a_bending_transform_is_refused(room: Again) -> None:
    room.node.SetAndObserveTransformNodeID(bending_transform(room.mrml).GetID())
    stamp = room.node.GetSegmentation().GetMTime()
    with pytest.raises(GeometryError, match=r"is not linear \(Warp\)"):
        room.write()
    assert room.node.GetSegmentation().GetMTime() == stamp


def test_what_cannot_be_written_is_refused_before_the_job(room: Again) -> None:
    check = room.scene.check_output
    check(OutputChoice())
    check(OutputChoice(OutputMode.UPDATE))
    check(update(room.node))
    room.node.CreateClosedSurfaceRepresentation()
    room.node.GetSegmentation().SetSourceRepresentationName("Closed surface")
    for mode in (OutputMode.UPDATE, OutputMode.ADD, OutputMode.PREVIEW):
        with pytest.raises(InputError, match="made of surfaces"):
            check(OutputChoice(mode, room.node))
    check(OutputChoice(OutputMode.NEW, room.node))
    room.node.GetSegmentation().SetSourceRepresentationName("Binary labelmap")
    room.node.SetAndObserveTransformNodeID(bending_transform(room.mrml).GetID())
    with pytest.raises(GeometryError, match="is not linear"):
        check(update(room.node))


@pytest.mark.parametrize("scale", [0.0, float("nan")])
def test_a_transform_that_flattens_is_refused_whatever_is_done(room: Again, scale: float) -> None:
    flat = add_transform(room.mrml, np.diag([1.0, 1.0, scale, 1.0]))
    room.node = room.scene.write(room.volume, result_for(room.image, two_blocks(), entropy=True))
    room.node.SetAndObserveTransformNodeID(flat.GetID())
    for action in (
        room.write,
        lambda: room.scene.structures(room.node),
        lambda: room.scene.measurable(room.node),
        lambda: room.scene.exported(room.node, {}),
        lambda: room.scene.draft(room.node, []),
        lambda: room.scene.uncertain_regions(room.node),
        lambda: room.scene.center_of(room.node, LEFT_ID),
    ):
        with pytest.raises(GeometryError, match=r"flattens it \(Moved"):
            action()


def test_a_segmentation_that_was_deleted_loses_nothing(room: Again) -> None:
    room.mrml.RemoveNode(room.node)
    made = room.write()
    assert made is not room.node
    assert "Head segmentation has left the scene." in room.scene.notes[0]
    assert "became a new segmentation" in room.scene.notes[0]
    np.testing.assert_array_equal(mask_on(made, LEFT_ID), shifted() == LEFT.value)


def test_a_segmentation_that_fits_nowhere_loses_nothing(room: Again) -> None:
    node = room.mrml.AddNewNodeByClass("vtkMRMLSegmentationNode", "Bones")
    node.GetSegmentation().AddEmptySegment("femur", "Femur")
    made = room.write(update(node))
    assert made not in (node, room.node)
    assert "No segment of Bones" in room.scene.notes[0]


def test_a_closed_scene_drops_the_update(room: Again) -> None:
    room.mrml.Clear(0)
    with pytest.raises(InputError, match="left the scene"):
        room.write()
    assert room.mrml.GetNumberOfNodesByClass("vtkMRMLSegmentationNode") == 0


def test_a_failure_half_way_changes_nothing(room: Again, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory runs out when the last label map is made."""
    from MedSegAILib.scene import merging

    def full(*_: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(merging, "oriented_image", full)
    stamp, before = room.node.GetSegmentation().GetMTime(), node_ids(room.mrml)
    with pytest.raises(MemoryError):
        room.write()
    assert room.node.GetSegmentation().GetMTime() == stamp
    assert node_ids(room.mrml) == before
    np.testing.assert_array_equal(room.mask(LEFT_ID), two_blocks() == LEFT.value)

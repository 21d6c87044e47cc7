"""Where to look first: uncertain regions, the overlay, flags and review states, on real MRML."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import slicer
from slicer.util import arrayFromVolume, updateVolumeFromArray, vtkMatrixFromArray

from medsegai.errors import InputError
from MedSegAILib.scene import ENTROPY_REFERENCE, ReviewState, Scene
from scene_images import (
    LEFT,
    LEFT_ID,
    MOVED,
    PLACES,
    STEM,
    STEM_ID,
    add_transform,
    add_volume,
    result_for,
    two_blocks,
    world_of,
)


def with_entropy(mrml: Any, place: np.ndarray, entropy: np.ndarray) -> tuple[Scene, Any, Any]:
    """A large volume, a segmentation of two slabs, and the given entropy, under a turned transform."""
    volume = mrml.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "Head")
    updateVolumeFromArray(volume, np.zeros(entropy.shape, np.int16))
    volume.SetIJKToRASMatrix(vtkMatrixFromArray(place))
    moved = MOVED["turned"]
    assert moved is not None
    volume.SetAndObserveTransformNodeID(add_transform(mrml, moved).GetID())
    scene = Scene(mrml)
    image = scene.read(volume)
    labelmap = np.zeros(entropy.shape, np.uint16)
    labelmap[:, :, :10] = LEFT.value
    labelmap[:, :, 30:] = STEM.value
    result = result_for(image, labelmap)
    result = dataclasses.replace(result, entropy=image.with_voxels(entropy.astype(np.float32)))
    return scene, volume, scene.write(volume, result)


def hills(shape: tuple[int, int, int], tops: dict[tuple[int, int, int], float]) -> np.ndarray:
    """Entropy with a hill of 5 voxels to each side at each (k, j, i)."""
    out = np.zeros(shape)
    for top, height in tops.items():
        grid = np.ogrid[tuple(slice(size) for size in shape)]
        away = np.sqrt(sum((axis - at) ** 2 for axis, at in zip(grid, top, strict=True)))
        out = np.maximum(out, height * np.clip(1 - away / 6, 0, 1))
    return out


@pytest.mark.parametrize("place", ["plain", "mirrored", "oblique and swapped"])
def test_places_are_the_tops_of_doubt_the_worst_first(mrml: Any, place: str) -> None:
    tops = {(20, 8, 4): 0.6, (6, 20, 35): 0.9, (30, 25, 20): 0.4}
    scene, volume, node = with_entropy(mrml, PLACES[place], hills((40, 34, 42), tops))
    found = scene.uncertain_regions(node)[:3]
    order = [(6, 20, 35), (20, 8, 4), (30, 25, 20)]
    for place_found, (k, j, i) in zip(found, order, strict=True):
        np.testing.assert_allclose(place_found.ras, world_of(volume, i, j, k), atol=1.01 * 4)
    assert [each.segment_id for each in found] == [STEM_ID, LEFT_ID, ""]
    assert [each.name for each in found] == ["Brain-Stem", "Left hippocampus", ""]
    scores = [each.score for each in scene.uncertain_regions(node)]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] <= 0.9


def test_places_keep_their_distance_and_their_number(mrml: Any) -> None:
    random = np.random.default_rng(1)
    scene, _, node = with_entropy(mrml, PLACES["plain"], random.uniform(0.1, 0.7, (40, 34, 42)))
    found = scene.uncertain_regions(node)
    assert 5 < len(found) <= 30
    points = np.array([each.ras for each in found])
    apart = np.linalg.norm(points[:, None] - points[None], axis=-1)[
        ~np.eye(len(points), dtype=bool)
    ]
    assert apart.min() >= 10


def test_a_single_voxel_of_doubt_is_less_than_an_uncertain_region(mrml: Any) -> None:
    """Every border has voxels of highest entropy; what is looked at is where many lie together."""
    entropy = hills((40, 34, 42), {(20, 8, 4): 0.5})
    entropy[30, 25, 35] = 0.69
    scene, volume, node = with_entropy(mrml, PLACES["plain"], entropy)
    first = scene.uncertain_regions(node)[0]
    np.testing.assert_allclose(first.ras, world_of(volume, 4, 8, 20), atol=1.1)


def test_where_nothing_is_uncertain_there_are_no_regions(mrml: Any) -> None:
    scene, _, node = with_entropy(mrml, PLACES["plain"], np.full((20, 20, 40), 0.01))
    assert scene.uncertain_regions(node) == []
    volume = add_volume(mrml, PLACES["plain"])
    plain = scene.write(volume, result_for(scene.read(volume), two_blocks()))
    assert scene.uncertain_regions(plain) == []


def test_places_follow_a_segmentation_that_was_moved_on_its_own(mrml: Any) -> None:
    scene, volume, node = with_entropy(
        mrml, PLACES["plain"], hills((40, 34, 42), {(20, 8, 4): 0.6})
    )
    node.SetAndObserveTransformNodeID(None)
    first = scene.uncertain_regions(node)[0]
    volume.SetAndObserveTransformNodeID(None)
    np.testing.assert_allclose(first.ras, world_of(volume, 4, 8, 20), atol=1.1)


# --- the walk --------------------------------------------------------------------------------------


def walked(scene: Scene, node: Any, *steps: int) -> list[str]:
    """Number and name of the place after each of these steps."""
    found = [scene.next_place(node, by) for by in steps]
    return [f"{step.number} of {step.count}: {step.place.name}" for step in found if step]


WALKED = {(20, 8, 4): 0.6, (6, 20, 35): 0.9, (30, 25, 20): 0.4}
FIRST, SECOND, THIRD = "1 of 3: Brain-Stem", "2 of 3: Left hippocampus", "3 of 3: "


def test_a_walk_goes_on_and_back_and_round(mrml: Any) -> None:
    scene, _, node = with_entropy(mrml, PLACES["plain"], hills((40, 34, 42), WALKED))
    assert walked(scene, node, 1, 1, 1, 1) == [FIRST, SECOND, THIRD, FIRST]
    assert walked(scene, node, -1, -1) == [THIRD, SECOND]
    other = with_entropy(mrml, PLACES["plain"], hills((40, 34, 42), WALKED))[2]
    assert walked(scene, other, -1) == [THIRD], "backwards from the beginning is the last"


def test_the_editor_and_a_saved_scene_go_on_where_the_page_stood(mrml: Any) -> None:
    """The effect has a separate walk; what they share is the segmentation."""
    page, _, node = with_entropy(mrml, PLACES["plain"], hills((40, 34, 42), WALKED))
    assert walked(page, node, 1) == [FIRST]
    effect = Scene(mrml)
    assert page.current_segment(node) == effect.current_segment(node) == STEM_ID
    assert walked(effect, node, 1) == [SECOND]
    assert page.current_segment(node) == LEFT_ID
    assert walked(page, node, 1) == [THIRD]
    assert page.current_segment(node) == LEFT_ID, "no segment lies at the third place"


def test_a_walk_stays_at_its_place_when_segments_or_transform_change(mrml: Any) -> None:
    scene, _, node = with_entropy(mrml, PLACES["plain"], hills((40, 34, 42), WALKED))
    assert walked(scene, node, 1) == [FIRST]
    node.GetSegmentation().RemoveSegment(STEM_ID)
    node.SetAndObserveTransformNodeID(None)
    assert scene.current_segment(node) == "", "the segment that the user was at is gone"
    assert walked(scene, node, 1) == [SECOND]


def test_the_places_of_one_structure_are_walked_alone(mrml: Any) -> None:
    tops = {**WALKED, (20, 25, 6): 0.5}
    scene, _, node = with_entropy(mrml, PLACES["plain"], hills((40, 34, 42), tops))
    scene.walk_within(node, LEFT_ID)
    assert scene.walked_within(node) == LEFT_ID
    assert walked(scene, node, 1, 1) == ["1 of 2: Left hippocampus", "2 of 2: Left hippocampus"]
    scene.walk_within(node, "")
    assert walked(scene, node, 1)[0].endswith("of 4: "), "on from the place that is shown"
    scene.walk_within(node, LEFT_ID)
    node.GetSegmentation().RemoveSegment(LEFT_ID)
    assert scene.walked_within(node) == ""
    assert len(scene.uncertain_regions(node)) == 4


def test_nobody_is_led_to_what_nobody_corrects(mrml: Any) -> None:
    """Its doubt hides no other place, and it is walked where it is asked for."""
    tops = {(20, 8, 33): 0.8, (20, 8, 26): 0.5, (6, 20, 4): 0.3}
    scene, volume, node = with_entropy(mrml, PLACES["plain"], hills((40, 34, 42), tops))
    assert [place.name for place in scene.uncertain_regions(node)] == [
        "Brain-Stem",
        "Left hippocampus",
    ], "the second top lies 7 mm from the first"
    result = result_for(scene.read(volume), slabs(volume))
    labels = tuple(dataclasses.replace(each, corrected=each != STEM) for each in result.labels)
    structures = tuple(
        dataclasses.replace(measures, label=label)
        for measures, label in zip(result.structures, labels, strict=True)
    )
    entropy = scene.read(volume).with_voxels(hills((40, 34, 42), tops).astype(np.float32))
    result = dataclasses.replace(result, labels=labels, structures=structures, entropy=entropy)
    node = scene.write(volume, result)
    assert [place.name for place in scene.uncertain_regions(node)] == ["", "Left hippocampus"]
    scene.walk_within(node, STEM_ID)
    assert [place.name for place in scene.uncertain_regions(node)] == ["Brain-Stem"]


def slabs(volume: Any) -> np.ndarray:
    """The labels of the two slabs, as `with_entropy` made them."""
    labelmap = np.zeros(arrayFromVolume(volume).shape, np.uint16)
    labelmap[:, :, :10], labelmap[:, :, 30:] = LEFT.value, STEM.value
    return labelmap


# --- the views -------------------------------------------------------------------------------------


def slice_views(mrml: Any, width_mm: float) -> list[Any]:
    """Red, yellow and green, as wide as said, around the origin of the world."""
    views = []
    planes = {  # across, to the right
        "Red": ((0, 0, 1), (-1, 0, 0)),
        "Yellow": ((1, 0, 0), (0, 1, 0)),
        "Green": ((0, 1, 0), (-1, 0, 0)),
    }
    for name, (across, right) in planes.items():
        view = slicer.vtkMRMLSliceNode()
        view.SetLayoutName(name)
        view.SetName(name)
        mrml.AddNode(view)
        view.SetSliceToRASByNTP(*across, *right, 0, 0, 0, 0)
        view.SetDimensions(400, 300, 1)
        view.SetFieldOfView(width_mm, width_mm * 0.75, 1)
        views.append(view)
    return views


def center(view: Any) -> np.ndarray:
    return np.array([view.GetSliceToRAS().GetElement(row, 3) for row in range(3)])


def pixel(view: Any, ras: Any) -> np.ndarray:
    """Where a view shows a place of the world, and how far in front of its slice that lies."""
    to_ras = np.array([[view.GetXYToRAS().GetElement(i, j) for j in range(4)] for i in range(4)])
    return (np.linalg.inv(to_ras) @ [*ras, 1.0])[:3]


@pytest.mark.parametrize("panned", [False, True])
def test_views_go_to_the_slice_of_a_place_and_keep_what_they_show(mrml: Any, panned: bool) -> None:
    views = slice_views(mrml, 240)
    for view in views:
        view.SetXYZOrigin(*((9.0, -5.0, 0.0) if panned else (0.0, 0.0, 0.0)))
    before = [center(view) for view in views]
    place = (12.5, -20, 31)
    Scene(mrml).jump(place)
    for view, stood, axis in zip(views, before, (2, 0, 1), strict=True):
        moved = center(view) - stood
        assert moved[axis] == pytest.approx(place[axis] - stood[axis])
        np.testing.assert_allclose(np.delete(moved, axis), 0, atol=1e-6)
        assert pixel(view, place)[2] == pytest.approx(0, abs=1e-6)
        assert view.GetFieldOfView()[:2] == (240, 180)


@pytest.mark.parametrize("panned", [False, True])
def test_a_view_moves_only_as_far_as_a_place_needs_to_be_seen(mrml: Any, panned: bool) -> None:
    red, *_ = slice_views(mrml, 60)
    red.SetXYZOrigin(*((9.0, -5.0, 0.0) if panned else (0.0, 0.0, 0.0)))
    place = (70.0, 3.0, 10.0)
    Scene(mrml).jump(place)
    x, y, z = pixel(red, place)
    assert z == pytest.approx(0, abs=1e-6)
    edge = 40 if x < 200 else 360
    assert x == pytest.approx(edge), "a tenth of the width from the edge, and no further in"
    assert 30 <= y <= 270
    stood = center(red)
    Scene(mrml).jump(place)
    np.testing.assert_allclose(center(red), stood, atol=1e-6)
    assert red.GetFieldOfView()[0] == 60, "nothing is zoomed"


def test_the_place_is_marked_and_a_crosshair_of_the_users_own_stays(mrml: Any) -> None:
    crosshair = mrml.AddNewNodeByClass("vtkMRMLCrosshairNode")
    scene = Scene(mrml)
    scene.jump((12.5, -20, 31))
    assert crosshair.GetCrosshairRAS() == (12.5, -20, 31)
    assert crosshair.GetCrosshairMode() == crosshair.ShowBasic
    crosshair.SetCrosshairMode(crosshair.ShowHashmarks)
    scene.jump((1, 2, 3))
    assert crosshair.GetCrosshairMode() == crosshair.ShowHashmarks


def test_the_middle_of_a_segment_lies_inside_it(mrml: Any) -> None:
    """A ring has its centre of mass in its hole; the slices should show the ring."""
    volume = add_volume(mrml, PLACES["oblique and swapped"], MOVED["turned"])
    scene = Scene(mrml)
    labelmap = np.zeros((9, 11, 14), np.uint16)
    labelmap[4, 2:9, 3:10] = LEFT.value
    labelmap[4, 3:8, 4:9] = 0
    node = scene.write(volume, result_for(scene.read(volume), labelmap))
    center = scene.center_of(node, LEFT_ID)
    assert center is not None
    inside = [world_of(volume, i, j, k) for k, j, i in np.argwhere(labelmap)]
    assert min(np.linalg.norm(point - center) for point in inside) < 1e-6
    assert scene.center_of(node, "no such segment") is None


# --- surfaces --------------------------------------------------------------------------------------


def test_3d_is_shown_on_demand(mrml: Any) -> None:
    volume = add_volume(mrml, PLACES["LPS"])
    scene = Scene(mrml)
    node = scene.write(volume, result_for(scene.read(volume), two_blocks()))
    surface = slicer.vtkSegmentationConverter.GetSegmentationClosedSurfaceRepresentationName()
    assert not node.GetSegmentation().ContainsRepresentation(surface), "it takes time"
    scene.show_3d(node)
    assert node.GetSegmentation().ContainsRepresentation(surface)
    assert node.GetDisplayNode().GetVisibility3D()
    scene.show_3d(node, False)
    assert not node.GetDisplayNode().GetVisibility3D()


# --- flags and review ------------------------------------------------------------------------------


def test_structures_with_remarks_are_flagged_on_the_segments(mrml: Any) -> None:
    volume = add_volume(mrml, PLACES["LPS"])
    scene = Scene(mrml)
    result = result_for(scene.read(volume), two_blocks())
    sure, unsure, absent = result.structures
    unsure = dataclasses.replace(unsure, iou=0.2, remarks=("they disagree", "too | small"))
    node = scene.write(volume, dataclasses.replace(result, structures=(sure, unsure, absent)))
    assert scene.review_state(node, LEFT_ID) is ReviewState.NOT_STARTED
    assert scene.review_state(node, STEM_ID) is ReviewState.FLAGGED
    left, stem = scene.structures(node)
    assert (left.quality, left.reasons) == ("", "")
    assert stem.quality == "check"
    assert stem.reasons == "They disagree.\nToo / small.\nMeasured: IoU 0.200"


def test_quality_comes_from_the_expected_dice_and_its_number_stands_in_the_tool_tip(
    mrml: Any,
) -> None:
    volume = add_volume(mrml, PLACES["LPS"])
    scene = Scene(mrml)
    result = result_for(scene.read(volume), two_blocks())
    good, poor, absent = result.structures
    good = dataclasses.replace(good, iou=0.3, expected_dice=0.91)
    poor = dataclasses.replace(poor, iou=0.9, expected_dice=0.55, remarks=("poor quality",))
    node = scene.write(volume, dataclasses.replace(result, structures=(good, poor, absent)))
    left, stem = scene.structures(node)
    assert (left.quality, stem.quality) == ("good", "poor")
    assert not left.to_check
    assert stem.to_check
    assert "0.91" in left.reasons
    assert "0.55" in stem.reasons
    scene.set_review_state(node, stem.segment_id, "completed")
    assert not scene.structures(node)[1].to_check


def test_segments_are_hidden_and_shown_and_shown_alone(mrml: Any) -> None:
    volume = add_volume(mrml, PLACES["LPS"])
    scene = Scene(mrml)
    node = scene.write(volume, result_for(scene.read(volume), two_blocks()))

    def shown() -> list[str]:
        return [row.segment_id for row in scene.structures(node) if row.shown]

    assert shown() == [LEFT_ID, STEM_ID]
    scene.show_segments(node, [LEFT_ID], False)
    assert shown() == [STEM_ID]
    assert not node.GetDisplayNode().GetSegmentVisibility(LEFT_ID)
    scene.show_only(node, [LEFT_ID])
    assert shown() == [LEFT_ID]
    scene.show_segments(node, [LEFT_ID, STEM_ID], True)
    assert shown() == [LEFT_ID, STEM_ID]


@pytest.mark.parametrize("state", ReviewState)
def test_review_states_are_those_of_slicer(mrml: Any, state: ReviewState) -> None:
    volume = add_volume(mrml, PLACES["LPS"])
    scene = Scene(mrml)
    node = scene.write(volume, result_for(scene.read(volume), two_blocks()))
    scene.set_review_state(node, LEFT_ID, ReviewState.FLAGGED)
    scene.set_review_state(node, LEFT_ID, state)
    assert scene.review_state(node, LEFT_ID) is state
    logic = slicer.vtkSlicerSegmentationsModuleLogic
    number = logic.GetSegmentStatus(node.GetSegmentation().GetSegment(LEFT_ID))
    shown = logic.GetSegmentStatusAsHumanReadableString(number)
    assert shown.replace(" ", "_").upper() == state.name


def test_a_segment_that_was_deleted_has_no_state(mrml: Any) -> None:
    volume = add_volume(mrml, PLACES["LPS"])
    scene = Scene(mrml)
    node = scene.write(volume, result_for(scene.read(volume), two_blocks()))
    node.GetSegmentation().RemoveSegment(LEFT_ID)
    with pytest.raises(InputError, match="no longer has the segment 003_Left_hippocampus"):
        scene.set_review_state(node, LEFT_ID, ReviewState.COMPLETED)


# --- real data -------------------------------------------------------------------------------------


def test_a_real_structure_is_walked_border_by_border(mrml: Any, shared_data: Path) -> None:
    """The reference labels of a hippocampus as the result, with entropy where its two parts meet."""
    folder = shared_data / "Dataset004_Hippocampus"
    labels = sorted((folder / "labelsTr").glob("*.nii.gz"))[0]
    logic = slicer.vtkSlicerVolumesLogic()
    logic.SetMRMLScene(mrml)
    name = labels.name.replace(".nii.gz", "_0000.nii.gz")
    volume = logic.AddArchetypeVolume(str(folder / "imagesTr" / name), "Hippocampus", 0)
    labelmap = sitk.GetArrayFromImage(sitk.ReadImage(str(labels))).astype(np.uint16)
    front, back = labelmap == 1, labelmap == 2
    meet = np.zeros(labelmap.shape, bool)
    for axis in range(3):
        for step in (-1, 1):
            meet |= front & np.roll(back, step, axis) | back & np.roll(front, step, axis)
    assert meet.sum() > 20
    scene = Scene(mrml)
    image = scene.read(volume)
    np.testing.assert_array_equal(image.voxels.shape, labelmap.shape)
    labelmap = np.where(front, LEFT.value, np.where(back, STEM.value, 0)).astype(np.uint16)
    result = dataclasses.replace(
        result_for(image, labelmap), entropy=image.with_voxels(0.69 * meet.astype(np.float32))
    )
    node = scene.write(volume, result)
    found = scene.uncertain_regions(node)
    assert found
    where = [world_of(volume, i, j, k) for k, j, i in np.argwhere(meet)]
    for place in found:
        assert min(np.linalg.norm(point - place.ras) for point in where) < 3
        assert place.segment_id in (LEFT_ID, STEM_ID)
    assert arrayFromVolume(node.GetNodeReference(ENTROPY_REFERENCE)).max() == np.float32(0.69)

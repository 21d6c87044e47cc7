"""Where to look first: doubtful places, the overlay, flags and review states, on real MRML."""

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
    found = scene.doubtful_places(node)[:3]
    order = [(6, 20, 35), (20, 8, 4), (30, 25, 20)]
    for place_found, (k, j, i) in zip(found, order, strict=True):
        np.testing.assert_allclose(place_found.ras, world_of(volume, i, j, k), atol=1.01 * 4)
    assert [each.segment_id for each in found] == [STEM_ID, LEFT_ID, ""]
    assert [each.name for each in found] == ["Brain-Stem", "Left hippocampus", ""]
    scores = [each.score for each in scene.doubtful_places(node)]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] <= 0.9


def test_places_keep_their_distance_and_their_number(mrml: Any) -> None:
    random = np.random.default_rng(1)
    scene, _, node = with_entropy(mrml, PLACES["plain"], random.uniform(0.1, 0.7, (40, 34, 42)))
    found = scene.doubtful_places(node)
    assert 5 < len(found) <= 30
    points = np.array([each.ras for each in found])
    apart = np.linalg.norm(points[:, None] - points[None], axis=-1)[
        ~np.eye(len(points), dtype=bool)
    ]
    assert apart.min() >= 10


def test_a_single_voxel_of_doubt_is_less_than_a_doubtful_place(mrml: Any) -> None:
    """Every border has voxels of highest entropy; what is looked at is where many lie together."""
    entropy = hills((40, 34, 42), {(20, 8, 4): 0.5})
    entropy[30, 25, 35] = 0.69
    scene, volume, node = with_entropy(mrml, PLACES["plain"], entropy)
    first = scene.doubtful_places(node)[0]
    np.testing.assert_allclose(first.ras, world_of(volume, 4, 8, 20), atol=1.1)


def test_where_nothing_is_doubtful_there_are_no_places(mrml: Any) -> None:
    scene, _, node = with_entropy(mrml, PLACES["plain"], np.full((20, 20, 40), 0.01))
    assert scene.doubtful_places(node) == []
    volume = add_volume(mrml, PLACES["plain"])
    plain = scene.write(volume, result_for(scene.read(volume), two_blocks()))
    assert scene.doubtful_places(plain) == []


def test_places_follow_a_segmentation_that_was_moved_on_its_own(mrml: Any) -> None:
    scene, volume, node = with_entropy(
        mrml, PLACES["plain"], hills((40, 34, 42), {(20, 8, 4): 0.6})
    )
    node.SetAndObserveTransformNodeID(None)
    first = scene.doubtful_places(node)[0]
    np.testing.assert_allclose(first.ras, world_of(volume, 4, 8, 20), atol=1.1)


def test_all_slice_views_go_to_a_place(mrml: Any) -> None:
    views = []
    for name in ("Red", "Yellow", "Green"):
        view = slicer.vtkMRMLSliceNode()
        view.SetLayoutName(name)
        view.SetName(name)
        mrml.AddNode(view)
        view.SetOrientationToDefault()
        views.append(view)
    Scene(mrml).jump((12.5, -20, 31))
    for view in views:
        to_ras = view.GetSliceToRAS()
        center = [to_ras.GetElement(row, 3) for row in range(3)]
        np.testing.assert_allclose(center, (12.5, -20, 31), atol=1e-6)


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


# --- overlay ---------------------------------------------------------------------------------------


def composites(mrml: Any) -> list[Any]:
    nodes = [slicer.vtkMRMLSliceCompositeNode() for _ in range(2)]
    for node, name in zip(nodes, ("Red", "Green"), strict=True):
        node.SetLayoutName(name)
        mrml.AddNode(node)
    return nodes


def test_uncertainty_is_laid_over_and_what_was_there_comes_back(mrml: Any) -> None:
    mrml.RegisterNodeClass(slicer.vtkMRMLColorLegendDisplayNode())
    red, green = composites(mrml)
    volume = add_volume(mrml, PLACES["LPS"])
    red.SetForegroundVolumeID(volume.GetID())
    red.SetForegroundOpacity(0.25)
    scene = Scene(mrml)
    node = scene.write(volume, result_for(scene.read(volume), two_blocks(), entropy=True))
    entropy = node.GetNodeReference(ENTROPY_REFERENCE)
    for opacity in (0.6, 0.8):
        scene.show_uncertainty(node, True, opacity)
        for view in (red, green):
            assert view.GetForegroundVolumeID() == entropy.GetID()
            assert view.GetForegroundOpacity() == opacity
    legend = slicer.vtkSlicerColorLogic.GetColorLegendDisplayNode(entropy)
    assert legend.GetVisibility()
    assert legend.GetTitleText() == "Uncertainty (nats)"
    scene.show_uncertainty(node, False)
    assert red.GetForegroundVolumeID() == volume.GetID()
    assert red.GetForegroundOpacity() == 0.25
    assert not green.GetForegroundVolumeID()
    assert not legend.GetVisibility()


def test_another_foreground_that_the_user_chose_meanwhile_stays(mrml: Any) -> None:
    red, _ = composites(mrml)
    volume = add_volume(mrml, PLACES["LPS"])
    scene = Scene(mrml)
    node = scene.write(volume, result_for(scene.read(volume), two_blocks(), entropy=True))
    scene.show_uncertainty(node, True)
    red.SetForegroundVolumeID(volume.GetID())
    scene.show_uncertainty(node, False)
    assert red.GetForegroundVolumeID() == volume.GetID()


def test_one_overlay_may_follow_another(mrml: Any) -> None:
    red, _ = composites(mrml)
    volume = add_volume(mrml, PLACES["LPS"])
    red.SetForegroundVolumeID(volume.GetID())
    scene = Scene(mrml)
    result = result_for(scene.read(volume), two_blocks(), entropy=True)
    first, second = scene.write(volume, result), scene.write(volume, result)
    scene.show_uncertainty(first, True)
    scene.show_uncertainty(second, True)
    assert red.GetForegroundVolumeID() == second.GetNodeReferenceID(ENTROPY_REFERENCE)
    scene.show_uncertainty(second, False)
    assert red.GetForegroundVolumeID() == volume.GetID()


def test_what_has_left_the_scene_does_not_come_back(mrml: Any) -> None:
    red, _ = composites(mrml)
    volume, other = add_volume(mrml, PLACES["LPS"]), add_volume(mrml, PLACES["LPS"])
    red.SetForegroundVolumeID(other.GetID())
    scene = Scene(mrml)
    node = scene.write(volume, result_for(scene.read(volume), two_blocks(), entropy=True))
    scene.show_uncertainty(node, True)
    mrml.RemoveNode(other)
    scene.show_uncertainty(node, False)
    assert not red.GetForegroundVolumeID()


def test_without_uncertainty_the_way_to_it_is_said(mrml: Any) -> None:
    volume = add_volume(mrml, PLACES["LPS"])
    scene = Scene(mrml)
    node = scene.write(volume, result_for(scene.read(volume), two_blocks()))
    with pytest.raises(InputError, match=r"was not measured\. Run the model again"):
        scene.show_uncertainty(node, True)
    scene.show_uncertainty(node, False)


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
    assert (left.doubtful, left.measures) == (False, "")
    assert (stem.doubtful, stem.agreement) == (True, 0.2)
    assert stem.measures == "IoU 0.200\nthey disagree; too / small"


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
    with pytest.raises(InputError, match="no segment 003_Left_hippocampus any more"):
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
    found = scene.doubtful_places(node)
    assert found
    where = [world_of(volume, i, j, k) for k, j, i in np.argwhere(meet)]
    for place in found:
        assert min(np.linalg.norm(point - place.ras) for point in where) < 3
        assert place.segment_id in (LEFT_ID, STEM_ID)
    assert arrayFromVolume(node.GetNodeReference(ENTROPY_REFERENCE)).max() == np.float32(0.69)

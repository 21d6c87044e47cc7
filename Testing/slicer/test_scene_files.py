"""What a segmentation carries survives `.seg.nrrd` and `.mrb`, on real MRML and against SimpleITK."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import slicer

from medsegai.request import Candidates, SegmentationResult
from MedSegAILib.output_choice import OutputChoice, OutputMode
from MedSegAILib.scene import (
    CANDIDATES_REFERENCE,
    ENTROPY_REFERENCE,
    REPORT_ATTRIBUTE,
    ReviewState,
    Scene,
    segment_id,
)
from scene_images import (
    LEFT,
    LEFT_ID,
    MOVED,
    PLACES,
    SHAPE,
    STEM,
    STEM_ID,
    add_volume,
    mask_on,
    node_ids,
    paint,
    result_for,
    two_blocks,
    world_of,
)


def made_candidates(wide: bool = True) -> Candidates:
    random = np.random.default_rng(5)
    first = two_blocks() if wide else (two_blocks() % 256).astype(np.uint8)
    second = random.integers(0, 4, SHAPE).astype(first.dtype)
    p_first = random.integers(128, 256, SHAPE).astype(np.uint8)
    return Candidates(first, second, p_first, (255 - p_first).astype(np.uint8))


def full_result(
    scene: Scene, volume: Any, labelmap: np.ndarray | None = None
) -> SegmentationResult:
    labels = two_blocks() if labelmap is None else labelmap
    result = result_for(scene.read(volume), labels, entropy=True)
    unsure = dataclasses.replace(
        result.structures[0], iou=0.31, volume_cv=0.02, remarks=("members: share 31 %",)
    )
    structures = (unsure, *result.structures[1:])
    return dataclasses.replace(result, candidates=made_candidates(), structures=structures)


@pytest.fixture
def second_scene() -> Iterator[Any]:
    """Another scene, as of another Slicer, that can unpack an .mrb."""
    scene = slicer.vtkMRMLScene()
    application = slicer.vtkSlicerApplicationLogic()
    application.SetMRMLScene(scene)
    cache, io = slicer.vtkCacheManager(), slicer.vtkDataIOManager()
    scene.SetCacheManager(cache)
    io.SetCacheManager(cache)
    scene.SetDataIOManager(io)
    yield scene
    scene.Clear(1)


def through_mrb(mrml: Any, again: Any, folder: Path) -> Any:
    """The first segmentation node after saving and loading."""
    cache = slicer.vtkCacheManager()
    cache.SetRemoteCacheDirectory(str(folder / "cache"))
    again.GetCacheManager().SetRemoteCacheDirectory(str(folder / "cache"))
    assert mrml.WriteToMRB(str(folder / "case.mrb"))
    assert again.ReadFromMRB(str(folder / "case.mrb"), True)
    return again.GetFirstNodeByClass("vtkMRMLSegmentationNode")


@pytest.mark.parametrize("place", ["oblique", "oblique and swapped", "mirrored"])
def test_a_scene_file_brings_everything_back(
    mrml: Any, second_scene: Any, tmp_path: Path, place: str
) -> None:
    volume = add_volume(mrml, PLACES[place], MOVED["turned"])
    scene = Scene(mrml)
    node = scene.write(volume, full_result(scene, volume))
    scene.set_review_state(node, STEM_ID, ReviewState.COMPLETED)
    loaded = through_mrb(mrml, second_scene, tmp_path)
    other = Scene(second_scene)
    assert loaded.GetAttribute(REPORT_ATTRIBUTE) == node.GetAttribute(REPORT_ATTRIBUTE)
    source = loaded.GetNodeReference(loaded.GetReferenceImageGeometryReferenceRole())
    labelmap = as_loaded(two_blocks(), source)
    for label in (LEFT, STEM):
        name = segment_id(label)
        np.testing.assert_array_equal(mask_on(loaded, name), labelmap == label.value)
        assert other.label_value(loaded, name) == label.value
    assert other.review_state(loaded, STEM_ID) is ReviewState.COMPLETED
    assert other.review_state(loaded, LEFT_ID) is ReviewState.FLAGGED
    entropy = loaded.GetNodeReference(ENTROPY_REFERENCE)
    np.testing.assert_allclose(slicer.util.arrayFromVolume(entropy), 0.3, rtol=1e-6)
    np.testing.assert_allclose(world_of(entropy, 5, 3, 7), world_of(source, 5, 3, 7), atol=1e-4)
    expected = made_candidates()
    parts = [
        as_loaded(getattr(expected, item.name), source) for item in dataclasses.fields(expected)
    ]
    assert_same_candidates(other.candidates_of(loaded), Candidates(*parts))
    assert loaded.GetNodeReference(CANDIDATES_REFERENCE).GetHideFromEditors()


def as_loaded(values: np.ndarray, source: Any) -> np.ndarray:
    """An array in the voxel order of a loaded volume: Slicer turns axes that are left-handed.

    The voxels of the volume were numbered, so they tell their order.
    """
    out: np.ndarray = values.ravel()[slicer.util.arrayFromVolume(source)]
    return out


def assert_same_candidates(found: Candidates | None, expected: Candidates) -> None:
    assert found is not None
    for item in dataclasses.fields(Candidates):
        mine, theirs = getattr(found, item.name), getattr(expected, item.name)
        np.testing.assert_array_equal(mine, theirs, item.name)


def test_after_loading_the_ais_segments_are_told_from_edited_ones(
    mrml: Any, second_scene: Any, tmp_path: Path
) -> None:
    volume = add_volume(mrml, PLACES["oblique"], MOVED["turned"])
    scene = Scene(mrml)
    node = scene.write(volume, full_result(scene, volume))
    mine = mask_on(node, STEM_ID)
    mine[0, 0, 0] = True
    paint(node, STEM_ID, mine, volume)
    loaded = through_mrb(mrml, second_scene, tmp_path)
    other = Scene(second_scene)
    role = loaded.GetReferenceImageGeometryReferenceRole()
    source = loaded.GetNodeReference(role)
    moved = np.roll(two_blocks(), -1, axis=2)
    other.write(source, full_result(other, source, moved), OutputChoice(OutputMode.UPDATE, loaded))
    np.testing.assert_array_equal(mask_on(loaded, LEFT_ID), moved == LEFT.value)
    np.testing.assert_array_equal(mask_on(loaded, STEM_ID), mine)


@pytest.mark.parametrize("crop", [False, True])
def test_a_segmentation_file_keeps_what_the_ai_noted(mrml: Any, tmp_path: Path, crop: bool) -> None:
    """Alone, without a scene: voxels, review state, and whether a person edited them."""
    volume = add_volume(mrml, PLACES["oblique and swapped"])
    scene = Scene(mrml)
    node = scene.write(volume, full_result(scene, volume))
    storage = mrml.AddNewNodeByClass("vtkMRMLSegmentationStorageNode")
    storage.SetFileName(str(tmp_path / "head.seg.nrrd"))
    storage.SetCropToMinimumExtent(crop)
    assert storage.WriteData(node)
    image = sitk.ReadImage(str(tmp_path / "head.seg.nrrd"))
    found = np.argwhere(sitk.GetArrayFromImage(image) == LEFT.value)
    assert len(found) == (two_blocks() == LEFT.value).sum()
    first = np.array(image.TransformIndexToPhysicalPoint([int(v) for v in found[0][::-1]]))
    np.testing.assert_allclose(first * [-1, -1, 1], world_of(volume, 3, 2, 1), atol=1e-4)

    back = mrml.AddNewNodeByClass("vtkMRMLSegmentationNode", "Back")
    assert storage.ReadData(back)
    assert scene.label_value(back, LEFT_ID) == LEFT.value
    assert scene.review_state(back, LEFT_ID) is ReviewState.FLAGGED
    left, _ = scene.structures(back)
    assert left.quality == "check"
    assert "Members: share 31 %" in left.reasons
    assert "IoU 0.310" in left.reasons
    moved = np.roll(two_blocks(), -1, axis=2)
    scene.write(volume, full_result(scene, volume, moved), OutputChoice(OutputMode.UPDATE, back))
    assert not [note for note in scene.notes if "by hand" in note]
    back.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    np.testing.assert_array_equal(mask_on(back, LEFT_ID), moved == LEFT.value)


# --- regions that overlap --------------------------------------------------------------------------


def test_regions_that_overlap_become_segments_that_overlap(
    mrml: Any, second_scene: Any, tmp_path: Path
) -> None:
    """A tumour around its core: both whole, in the scene and in the file."""
    volume = add_volume(mrml, PLACES["oblique"], MOVED["turned"])
    scene = Scene(mrml)
    regions = np.zeros((3, *SHAPE), bool)
    regions[0, 1:7, 2:8, 3:9] = True
    regions[1, 2:4, 3:5, 4:6] = True
    labelmap = np.where(regions[1], STEM.value, np.where(regions[0], LEFT.value, 0))
    result = result_for(scene.read(volume), labelmap.astype(np.uint16))
    counted = [
        dataclasses.replace(measures, voxels=int(region.sum()))
        for measures, region in zip(result.structures, regions, strict=True)
    ]
    result = dataclasses.replace(result, regions=regions, structures=tuple(counted))
    node = scene.write(volume, result)
    for shown in (node, through_mrb(mrml, second_scene, tmp_path)):
        assert shown.GetSegmentation().GetNumberOfLayers() == 2
        np.testing.assert_array_equal(mask_on(shown, LEFT_ID), regions[0])
        np.testing.assert_array_equal(mask_on(shown, STEM_ID), regions[1])
    scene.write(volume, result, OutputChoice(OutputMode.UPDATE, node))
    np.testing.assert_array_equal(mask_on(node, LEFT_ID), regions[0])
    np.testing.assert_array_equal(mask_on(node, STEM_ID), regions[1])


# --- volumes that belong to a segmentation ---------------------------------------------------------


@pytest.mark.parametrize("wide", [False, True])
def test_candidates_come_back_as_they_were(mrml: Any, wide: bool) -> None:
    volume = add_volume(mrml, PLACES["LPS"], MOVED["turned"])
    scene = Scene(mrml)
    kept = made_candidates(wide)
    result = dataclasses.replace(full_result(scene, volume), candidates=kept)
    node = scene.write(volume, result)
    assert_same_candidates(scene.candidates_of(node), kept)
    hidden = node.GetNodeReference(CANDIDATES_REFERENCE)
    assert hidden.GetTransformNodeID() == volume.GetTransformNodeID()
    np.testing.assert_allclose(world_of(hidden, 5, 3, 7), world_of(volume, 5, 3, 7), atol=1e-9)
    assert hidden.GetImageData().GetScalarTypeAsString() == (
        "unsigned short" if wide else "unsigned char"
    )


def test_without_candidates_there_are_none(mrml: Any) -> None:
    volume = add_volume(mrml, PLACES["LPS"])
    scene = Scene(mrml)
    node = scene.write(volume, result_for(scene.read(volume), two_blocks()))
    assert scene.candidates_of(node) is None
    assert scene.label_value(node, "no such segment") is None


def test_an_update_in_a_region_renews_its_volumes_there_alone(mrml: Any) -> None:
    volume = add_volume(mrml, PLACES["oblique"], MOVED["turned"])
    scene = Scene(mrml)
    first = full_result(scene, volume)
    node = scene.write(volume, first)
    nodes = node_ids(mrml)
    geometry = first.labelmap.geometry
    center = geometry.ijk_to_ras @ [5, 4, 3, 1.0]
    region = [value for c in center[:3] for value in (c - 2.2, c + 2.2)]
    k, j, i = geometry.box_around(region)
    assert first.entropy is not None
    zeros = np.zeros(SHAPE, np.uint8)
    second = dataclasses.replace(
        first,
        entropy=first.entropy.with_voxels(np.full(SHAPE, 0.9, np.float32)),
        candidates=Candidates(zeros, zeros, zeros, zeros),
        region=region,
    )
    scene.write(volume, second, OutputChoice(OutputMode.UPDATE, node))
    assert node_ids(mrml) == nodes, "the volumes are filled, not added once more"
    expected = np.full(SHAPE, 0.3, np.float32)
    expected[k, j, i] = 0.9
    entropy = slicer.util.arrayFromVolume(node.GetNodeReference(ENTROPY_REFERENCE))
    np.testing.assert_array_equal(entropy, expected)
    kept = scene.candidates_of(node)
    assert kept is not None
    assert not kept.p_first[k, j, i].any()
    untouched = np.ones(SHAPE, bool)
    untouched[k, j, i] = False
    np.testing.assert_array_equal(kept.p_first[untouched], made_candidates().p_first[untouched])


# --- the volumes that a segmentation was made from -------------------------------------------------


def test_a_segmentation_knows_its_channels_after_loading_and_after_a_preview(
    mrml: Any, second_scene: Any, tmp_path: Path
) -> None:
    first, second = (add_volume(mrml, PLACES["oblique"]) for _ in range(2))
    for name, volume in (("One", first), ("Two", second)):
        volume.SetName(name)
    scene = Scene(mrml)
    result = result_for(scene.read(first), two_blocks())
    node = scene.write(first, result)
    channels = {"T1; w:1": first, "FLAIR é": second, "optional": None}
    scene.note_channels(node, channels)
    assert scene.channels_of(node) == channels
    second_scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "Takes an id")
    found = Scene(second_scene).channels_of(through_mrb(mrml, second_scene, tmp_path))
    assert list(found) == list(channels)
    assert [each and each.GetName() for each in found.values()] == ["One", "Two", None]
    scene.note_channels(node, {"other": second})
    assert scene.channels_of(node) == channels, "it was not made from the second"
    shown = scene.preview(first, result, OutputChoice(OutputMode.PREVIEW, node))
    scene.note_channels(shown.node, {"T1": first})
    assert scene.channels_of(shown.accept()) == {"T1": first}
    mrml.RemoveNode(first)
    assert scene.channels_of(node) == {"T1": None}
    for damaged in ("{", "7", "[1]", "[" * 5000):
        node.SetAttribute("MedSegAI.channels", damaged)
        assert scene.channels_of(node) == {}


# --- a preview that waits while the scene is saved -------------------------------------------------


def test_a_saved_preview_becomes_a_segmentation_and_the_original_is_shown(
    mrml: Any, second_scene: Any, tmp_path: Path
) -> None:
    volume = add_volume(mrml, PLACES["oblique"])
    scene = Scene(mrml)
    result = result_for(scene.read(volume), two_blocks())
    original = scene.write(volume, result)
    preview = scene.preview(volume, result, OutputChoice(OutputMode.PREVIEW, original))
    assert scene.settle_saved_previews() == [], "it still waits here"
    through_mrb(mrml, second_scene, tmp_path)
    names = (preview.node.GetName(), original.GetName())
    assert Scene(second_scene).settle_saved_previews() == [names]
    shown = {
        name: bool(second_scene.GetFirstNodeByName(name).GetDisplayNode().GetVisibility())
        for name in names
    }
    assert list(shown.values()) == [False, True]
    assert Scene(second_scene).settle_saved_previews() == []
    assert preview.accept() is original
    assert scene.settle_saved_previews() == []

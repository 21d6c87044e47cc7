"""Results in, new segmentation nodes out, on real MRML (slicer-core): every place in the world is checked."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import nrrd
import numpy as np
import pytest
import SimpleITK as sitk
import slicer
import vtk
from slicer.util import (
    arrayFromVolume,
    arrayFromVTKMatrix,
    updateVolumeFromArray,
)

from medsegai.errors import InputError
from medsegai.labels import Label
from medsegai.request import SegmentationResult, StructureMeasures
from MedSegAILib.scene import (
    ENTROPY_REFERENCE,
    REPORT_ATTRIBUTE,
    Scene,
    segment_id,
)
from scene_images import (
    LEFT,
    MOVED,
    PLACES,
    SHAPE,
    STEM,
    add_transform,
    add_volume,
    result_for,
    segment_voxels,
    two_blocks,
    world_of,
)


def written(mrml: Any, node: Any, entropy: bool = False) -> Any:
    scene = Scene(mrml)
    return scene.write(node, result_for(scene.read(node), two_blocks(), entropy))


@pytest.mark.parametrize("moved", MOVED.values(), ids=MOVED)
@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_every_segment_lands_on_its_voxels(
    mrml: Any, place: np.ndarray, moved: np.ndarray | None
) -> None:
    node = add_volume(mrml, place, moved)
    segmentation = written(mrml, node)
    for label in (LEFT, STEM):
        ijk, world = segment_voxels(segmentation, label)
        expected = np.argwhere(two_blocks() == label.value)[:, ::-1]
        assert {tuple(voxel) for voxel in ijk} == {tuple(voxel) for voxel in expected}
        np.testing.assert_allclose(world, [world_of(node, *voxel) for voxel in ijk], atol=1e-6)


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_the_surface_lies_where_the_voxels_are(mrml: Any, place: np.ndarray) -> None:
    """Slicer's own surface, made from the segment, has its middle in the middle of the block."""
    node = add_volume(mrml, place, MOVED["turned"])
    segmentation = written(mrml, node)
    assert segmentation.CreateClosedSurfaceRepresentation()
    surface = vtk.vtkPolyData()
    segmentation.GetClosedSurfaceRepresentation(segment_id(LEFT), surface)
    assert surface.GetNumberOfPoints() > 0
    points = vtk.util.numpy_support.vtk_to_numpy(surface.GetPoints().GetData())
    world = [0.0, 0.0, 0.0]
    segmentation.TransformPointToWorld(points.mean(axis=0), world)
    np.testing.assert_allclose(world, world_of(node, 5, 3.5, 2), atol=0.2)


def test_segments_have_names_colours_and_codes(mrml: Any) -> None:
    segments = written(mrml, add_volume(mrml, PLACES["LPS"])).GetSegmentation()
    assert segments.GetNumberOfSegments() == 2, "a structure without voxels makes no segment"
    left = segments.GetSegment(segment_id(LEFT))
    assert left.GetName() == "Left hippocampus"
    np.testing.assert_allclose(np.array(left.GetColor()) * 255, LEFT.color, atol=1e-3)
    entry = slicer.vtkSlicerTerminologyEntry()
    logic = slicer.vtkSlicerTerminologiesModuleLogic()
    tag = vtk.mutable("")
    assert left.GetTag(slicer.vtkSegment.GetTerminologyEntryTagName(), tag)
    assert logic.DeserializeTerminologyEntry(str(tag), entry)
    assert entry.GetCategoryObject().GetCodeValue() == "123037004"
    assert entry.GetTypeObject().GetCodeMeaning() == "Hippocampus"
    assert entry.GetTypeModifierObject().GetCodeMeaning() == "Left"
    stem = segments.GetSegment(segment_id(STEM))
    assert stem.GetName() == "Brain-Stem"
    assert stem.GetTag(slicer.vtkSegment.GetTerminologyEntryTagName(), tag)
    assert logic.DeserializeTerminologyEntry(str(tag), entry)
    assert entry.GetTypeObject().GetCodeMeaning() == "Tissue", "without a code no DICOM SEG"


def test_segments_are_shown_in_their_own_colour(mrml: Any) -> None:
    segmentation = written(mrml, add_volume(mrml, PLACES["LPS"]))
    display = segmentation.GetDisplayNode()
    assert display is not None
    color = [0.0, 0.0, 0.0]
    display.GetSegmentColor(segment_id(STEM), color)
    np.testing.assert_allclose(np.array(color) * 255, STEM.color, atol=1e-3)
    assert display.GetSegmentVisibility(segment_id(STEM))


def test_ids_stay_the_same_and_keep_like_names_apart() -> None:
    assert segment_id(LEFT) == "003_Left_hippocampus"
    alike = [Label(1, "A-B", (0, 0, 0)), Label(2, "A B", (0, 0, 0)), Label(3, "脾", (0, 0, 0))]
    assert len({segment_id(label) for label in alike}) == 3


@pytest.mark.parametrize("moved", MOVED.values(), ids=MOVED)
def test_the_source_gives_the_geometry_to_edit_on(mrml: Any, moved: np.ndarray | None) -> None:
    node = add_volume(mrml, PLACES["oblique"], moved)
    segmentation = written(mrml, node)
    role = segmentation.GetReferenceImageGeometryReferenceRole()
    assert segmentation.GetNodeReferenceID(role) == node.GetID()
    assert segmentation.GetTransformNodeID() == node.GetTransformNodeID()
    text = segmentation.GetSegmentation().GetConversionParameter(
        slicer.vtkSegmentationConverter.GetReferenceImageGeometryParameterName()
    )
    geometry = slicer.vtkOrientedImageData()
    assert slicer.vtkSegmentationConverter.DeserializeImageGeometry(text, geometry)
    to_world = vtk.vtkMatrix4x4()
    geometry.GetImageToWorldMatrix(to_world)
    np.testing.assert_allclose(arrayFromVTKMatrix(to_world), PLACES["oblique"], atol=1e-6)
    assert geometry.GetDimensions() == (14, 11, 9)


def test_the_result_can_be_edited_and_undone_at_once(mrml: Any) -> None:
    """The editor's own logic paints one voxel into a segment, and takes it back."""
    node = add_volume(mrml, PLACES["oblique"], MOVED["turned"])
    segmentation = written(mrml, node)
    editor = mrml.AddNewNodeByClass("vtkMRMLSegmentEditorNode")
    editor.SetAndObserveSegmentationNode(segmentation)
    editor.SetAndObserveSourceVolumeNode(node)
    editor.SetSelectedSegmentID(segment_id(LEFT))
    logic = slicer.vtkSlicerSegmentEditorLogic()
    logic.SetMRMLScene(mrml)
    logic.SetSegmentEditorNode(editor)
    logic.SaveStateForUndo()
    brush = slicer.vtkOrientedImageData()
    segmentation.GetBinaryLabelmapRepresentation(segment_id(LEFT), brush)
    brush.SetScalarComponentFromDouble(7, 5, 3, 0, 1)
    brush.SetScalarComponentFromDouble(8, 5, 3, 0, 1)
    before = len(segment_voxels(segmentation, LEFT)[0])
    add = slicer.vtkSlicerSegmentEditorLogic.ModificationModeAdd
    logic.ModifySegmentByLabelmap(segmentation, segment_id(LEFT), brush, add, False, False)
    assert len(segment_voxels(segmentation, LEFT)[0]) == before + 1
    assert len(segment_voxels(segmentation, STEM)[0]) == 3 * 4 * 4
    logic.Undo()
    assert len(segment_voxels(segmentation, LEFT)[0]) == before


def test_a_second_run_makes_new_nodes_and_leaves_the_first_alone(mrml: Any) -> None:
    node = add_volume(mrml, PLACES["LPS"])
    first = written(mrml, node, entropy=True)
    stamp = first.GetSegmentation().GetMTime()
    second = written(mrml, node, entropy=True)
    assert first.GetName() == "Head segmentation"
    assert second.GetName() not in ("", first.GetName())
    assert second.GetName().startswith("Head segmentation")
    assert first.GetSegmentation().GetMTime() == stamp
    assert mrml.GetNumberOfNodesByClass("vtkMRMLSegmentationNode") == 2


def test_nodes_stand_beside_their_source_in_the_tree(mrml: Any) -> None:
    tree = slicer.vtkMRMLSubjectHierarchyNode.ResolveSubjectHierarchy(mrml)
    folder = tree.CreateFolderItem(tree.GetSceneItemID(), "Patient")
    node = add_volume(mrml, PLACES["LPS"])
    tree.CreateItem(folder, node)
    segmentation = written(mrml, node, entropy=True)
    entropy = segmentation.GetNodeReference(ENTROPY_REFERENCE)
    item = tree.GetItemByDataNode(segmentation)
    assert tree.GetItemParent(item) == folder
    assert tree.GetItemParent(tree.GetItemByDataNode(entropy)) == item, "it belongs to it"


@pytest.mark.parametrize("moved", MOVED.values(), ids=MOVED)
def test_the_entropy_is_a_volume_on_the_same_voxels(mrml: Any, moved: np.ndarray | None) -> None:
    node = add_volume(mrml, PLACES["oblique and swapped"], moved)
    entropy = written(mrml, node, entropy=True).GetNodeReference(ENTROPY_REFERENCE)
    assert entropy.GetName() == "Head uncertainty"
    np.testing.assert_array_equal(arrayFromVolume(entropy), np.full(SHAPE, 0.3, np.float32))
    np.testing.assert_allclose(world_of(entropy, 5, 3, 7), world_of(node, 5, 3, 7), atol=1e-9)


def test_the_report_stays_with_the_node_through_a_saved_scene(mrml: Any, tmp_path: Path) -> None:
    segmentation = written(mrml, add_volume(mrml, PLACES["LPS"]))
    mrml.SetURL(str(tmp_path / "scene.mrml"))
    assert mrml.Commit()
    again = slicer.vtkMRMLScene()
    application = slicer.vtkSlicerApplicationLogic()
    application.SetMRMLScene(again)
    again.SetURL(str(tmp_path / "scene.mrml"))
    again.Import()
    loaded = again.GetNodeByID(segmentation.GetID())
    report = json.loads(loaded.GetAttribute(REPORT_ATTRIBUTE))
    assert report["structures"][0]["name"] == "Left hippocampus"
    assert report["structures"][0]["voxels"] == 60


def test_the_file_has_everything_and_reads_back(mrml: Any, tmp_path: Path) -> None:
    """`.seg.nrrd` written by Slicer, read by Slicer and by two libraries that know nothing of it."""
    node = add_volume(mrml, PLACES["oblique"])
    segmentation = written(mrml, node)
    storage = slicer.vtkMRMLSegmentationStorageNode()
    mrml.AddNode(storage)
    storage.SetFileName(str(tmp_path / "head.seg.nrrd"))
    storage.SetCropToMinimumExtent(False)
    assert storage.WriteData(segmentation)

    back = mrml.AddNewNodeByClass("vtkMRMLSegmentationNode", "Back")
    assert storage.ReadData(back)
    for label in (LEFT, STEM):
        ijk, world = segment_voxels(back, label)
        assert len(ijk) == (two_blocks() == label.value).sum()
        expected = segment_voxels(segmentation, label)[1]
        np.testing.assert_allclose(world, expected, atol=1e-4)
        segment = back.GetSegmentation().GetSegment(segment_id(label))
        assert segment.GetName() == label.name
        np.testing.assert_allclose(np.array(segment.GetColor()) * 255, label.color, atol=0.01)

    header = nrrd.read_header(str(tmp_path / "head.seg.nrrd"))
    assert header["Segment0_Name"] == "Left hippocampus"
    assert "SCT^5366008^Hippocampus~SCT^7771000^Left" in header["Segment0_Tags"]
    image = sitk.ReadImage(str(tmp_path / "head.seg.nrrd"))
    place_lps = image.TransformIndexToPhysicalPoint((5, 3, 7))
    np.testing.assert_allclose(
        np.array(place_lps) * [-1, -1, 1], world_of(node, 5, 3, 7), atol=1e-4
    )
    values = sitk.GetArrayFromImage(image)
    assert set(np.unique(values[two_blocks() == LEFT.value])) == {LEFT.value}


# --- what can happen during a job ------------------------------------------------------------------


def nodes(mrml: Any) -> list[str]:
    return [mrml.GetNthNode(index).GetID() for index in range(mrml.GetNumberOfNodes())]


def test_a_source_that_was_removed_drops_the_result(mrml: Any) -> None:
    node = add_volume(mrml, PLACES["LPS"])
    scene = Scene(mrml)
    result = result_for(scene.read(node), two_blocks(), entropy=True)
    mrml.RemoveNode(node)
    before = nodes(mrml)
    with pytest.raises(InputError, match="Head has left the scene"):
        scene.write(node, result)
    assert nodes(mrml) == before


def test_a_closed_scene_drops_the_result(mrml: Any) -> None:
    node = add_volume(mrml, PLACES["LPS"])
    scene = Scene(mrml)
    result = result_for(scene.read(node), two_blocks())
    mrml.Clear(0)
    with pytest.raises(InputError, match="left the scene"):
        scene.write(node, result)
    assert mrml.GetNumberOfNodesByClass("vtkMRMLSegmentationNode") == 0


def test_a_source_that_was_cropped_drops_the_result(mrml: Any) -> None:
    node = add_volume(mrml, PLACES["LPS"])
    scene = Scene(mrml)
    result = result_for(scene.read(node), two_blocks())
    updateVolumeFromArray(node, np.zeros((3, 4, 5), np.int16))
    with pytest.raises(InputError, match="changed its size"):
        scene.write(node, result)
    assert mrml.GetNumberOfNodesByClass("vtkMRMLSegmentationNode") == 0


def test_a_source_that_was_moved_or_renamed_takes_the_result_along(mrml: Any) -> None:
    node = add_volume(mrml, PLACES["LPS"])
    scene = Scene(mrml)
    result = result_for(scene.read(node), two_blocks())
    node.SetName("Patient 7")
    node.SetAndObserveTransformNodeID(add_transform(mrml, MOVED["turned"]).GetID())
    segmentation = scene.write(node, result)
    assert segmentation.GetName() == "Patient 7 segmentation"
    ijk, world = segment_voxels(segmentation, LEFT)
    np.testing.assert_allclose(world, [world_of(node, *voxel) for voxel in ijk], atol=1e-6)


def test_a_result_without_any_structure_is_an_empty_segmentation(mrml: Any) -> None:
    node = add_volume(mrml, PLACES["LPS"])
    scene = Scene(mrml)
    result = result_for(scene.read(node), np.zeros(SHAPE, np.uint8))
    assert scene.write(node, result).GetSegmentation().GetNumberOfSegments() == 0


def test_a_whole_head_of_segments_is_handed_over_at_once(mrml: Any) -> None:
    """33 structures on 256 x 256 x 256 voxels: a fraction of a second, and one label map for all."""
    labels = tuple(Label(value, f"Structure {value}", (value, 0, 0)) for value in range(1, 34))
    labelmap = np.zeros((256, 256, 256), np.uint8)
    for label in labels:
        labelmap[40 + 5 * label.value : 44 + 5 * label.value, 50:200, 60:200] = label.value
    node = mrml.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "Head")
    updateVolumeFromArray(node, np.zeros(labelmap.shape, np.uint8))
    scene = Scene(mrml)
    result = SegmentationResult(
        scene.read(node).with_voxels(labelmap),
        labels,
        tuple(StructureMeasures(label, 84_000, 84.0) for label in labels),
    )
    started = time.process_time()
    segmentation = scene.write(node, result)
    assert time.process_time() - started < 2.0
    assert segmentation.GetSegmentation().GetNumberOfSegments() == 33
    assert segmentation.GetSegmentation().GetNumberOfLayers() == 1


@pytest.mark.parametrize("name", ["", None])
def test_the_result_of_a_volume_without_a_name_has_one(mrml: Any, name: str | None) -> None:
    node = add_volume(mrml, PLACES["plain"])
    node.SetName(name)
    segmentation = written(mrml, node, entropy=True)
    assert segmentation.GetName() == "segmentation"
    assert segmentation.GetNodeReference(ENTROPY_REFERENCE).GetName() == "uncertainty"

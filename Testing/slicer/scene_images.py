"""Images, places and results that the tests of the scene share."""

from __future__ import annotations

from typing import Any

import numpy as np
import slicer
import vtk
from slicer.util import updateVolumeFromArray, vtkMatrixFromArray

from medsegai.labels import Label, Terminology
from medsegai.request import SegmentationResult, StructureMeasures
from medsegai.volume import Volume
from MedSegAILib.scene import Scene, segment_id

SHAPE = (9, 11, 14)  # k, j, i: no two alike, and no cube
COSINE, SINE = np.cos(0.5), np.sin(0.5)


def matrix(directions: Any, spacing: Any, origin: Any) -> np.ndarray:
    out = np.eye(4)
    out[:3, :3] = np.array(directions, float) @ np.diag(spacing)
    out[:3, 3] = origin
    return out


TURNED = [[COSINE, -SINE, 0], [SINE, COSINE, 0], [0, 0, 1]]
PLACES = {
    "plain": matrix(np.eye(3), (1, 1, 1), (0, 0, 0)),
    "LPS": matrix(np.diag([-1, -1, 1]), (0.5, 0.75, 3), (90, 110, -70)),
    "mirrored": matrix(np.diag([-1, 1, 1]), (1, 2, 3), (5, 6, 7)),
    "oblique": matrix(TURNED, (0.9, 1.3, 2.5), (-31.5, 12.25, 140)),
    "axes swapped": matrix([[0, 0, 1], [-1, 0, 0], [0, 1, 0]], (1, 2, 3), (10, 20, 30)),
    "oblique and swapped": matrix(
        np.array(TURNED) @ [[0, 1, 0], [0, 0, -1], [1, 0, 0]], (0.7, 1, 4), (1, 2, 3)
    ),
}
MOVED = {
    "no transform": None,
    "shifted": matrix(np.eye(3), (1, 1, 1), (30, -40, 50)),
    "turned": matrix(np.array(TURNED)[[2, 0, 1]][:, [2, 0, 1]], (1, 1, 1), (3, 2, 1)),
}

LEFT = Label(
    3,
    "Left hippocampus",
    (220, 216, 20),
    Terminology(
        ("SCT", "123037004", "Anatomical Structure"),
        ("SCT", "5366008", "Hippocampus"),
        ("SCT", "7771000", "Left"),
    ),
)
STEM = Label(300, "Brain-Stem", (119, 159, 176))
ABSENT = Label(4, "Absent", (1, 2, 3))
LEFT_ID, STEM_ID = segment_id(LEFT), segment_id(STEM)


def add_volume(mrml: Any, place: np.ndarray, moved: np.ndarray | None = None) -> Any:
    node = mrml.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "Head")
    updateVolumeFromArray(node, np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE))
    node.SetIJKToRASMatrix(vtkMatrixFromArray(place))
    if moved is not None:
        node.SetAndObserveTransformNodeID(add_transform(mrml, moved).GetID())
    return node


def add_transform(mrml: Any, values: np.ndarray) -> Any:
    node = mrml.AddNewNodeByClass("vtkMRMLLinearTransformNode", "Moved")
    node.SetMatrixTransformToParent(vtkMatrixFromArray(values))
    return node


def result_for(volume: Volume, labelmap: np.ndarray, entropy: bool = False) -> SegmentationResult:
    labels = (LEFT, STEM, ABSENT)
    voxels = [int((labelmap == label.value).sum()) for label in labels]
    return SegmentationResult(
        labelmap=volume.with_voxels(labelmap),
        labels=labels,
        structures=tuple(
            StructureMeasures(label, count, count * volume.geometry.voxel_volume_ml)
            for label, count in zip(labels, voxels, strict=True)
        ),
        entropy=volume.with_voxels(np.full(SHAPE, 0.3, np.float32)) if entropy else None,
        provenance={"device": "cpu"},
    )


def two_blocks() -> np.ndarray:
    labelmap = np.zeros(SHAPE, np.uint16)
    labelmap[1:4, 2:6, 3:8] = LEFT.value
    labelmap[5:8, 6:10, 9:13] = STEM.value
    return labelmap


def shifted() -> np.ndarray:
    """What a second run finds: both blocks one voxel further along i."""
    return np.roll(two_blocks(), -1, axis=2)


class Room:
    """A volume and its first segmentation; a subclass may give the scene an editor that can undo."""

    def __init__(self, mrml: Any, place: str = "oblique", moved: str = "turned") -> None:
        self.mrml = mrml
        self.volume = add_volume(mrml, PLACES[place], MOVED[moved])
        self.scene = self.made_scene()
        self.image = self.scene.read(self.volume)
        self.node = self.scene.write(self.volume, result_for(self.image, two_blocks()))

    def made_scene(self) -> Scene:
        return Scene(self.mrml)

    def mask(self, name: str) -> np.ndarray:
        return mask_on(self.node, name)


def world_of(node: Any, i: int, j: int, k: int) -> np.ndarray:
    """Where VTK and MRML put a voxel of a volume node."""
    to_ras = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(to_ras)
    local = to_ras.MultiplyPoint((i, j, k, 1))[:3]
    world = [0.0, 0.0, 0.0]
    node.TransformPointToWorld(local, world)
    return np.array(world)


def bending_transform(mrml: Any) -> Any:
    spline = vtk.vtkThinPlateSplineTransform()
    spline.SetBasisToR()
    source, target = vtk.vtkPoints(), vtk.vtkPoints()
    for point in [(0, 0, 0), (50, 0, 0), (0, 50, 0), (0, 0, 50)]:
        source.InsertNextPoint(point)
        target.InsertNextPoint(point[0] + 5, point[1], point[2] + point[0] / 5)
    spline.SetSourceLandmarks(source)
    spline.SetTargetLandmarks(target)
    node = mrml.AddNewNodeByClass("vtkMRMLTransformNode", "Warp")
    node.SetAndObserveTransformToParent(spline)
    return node


def segment_voxels(segmentation: Any, label: Label) -> tuple[np.ndarray, np.ndarray]:
    """World positions of a segment's voxels, from its binary label map and the node's transform."""
    image = slicer.vtkOrientedImageData()
    assert segmentation.GetBinaryLabelmapRepresentation(segment_id(label), image)
    to_local = vtk.vtkMatrix4x4()
    image.GetImageToWorldMatrix(to_local)
    low = np.array(image.GetExtent())[::2]
    shape = tuple(reversed(image.GetDimensions()))
    scalars = vtk.util.numpy_support.vtk_to_numpy(image.GetPointData().GetScalars())
    kji = np.argwhere(scalars.reshape(shape) > 0)
    ijk = kji[:, ::-1] + low
    world = []
    for voxel in ijk:
        point = [0.0, 0.0, 0.0]
        segmentation.TransformPointToWorld(to_local.MultiplyPoint((*voxel, 1))[:3], point)
        world.append(point)
    return ijk, np.array(world)


def mask_on(segmentation: Any, segment: str, shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    """Where a segment is on the grid of its source, as Slicer itself resamples it; both under one transform."""
    source = segmentation.GetNodeReference(segmentation.GetReferenceImageGeometryReferenceRole())
    image = slicer.vtkOrientedImageData()
    segmentation.GetBinaryLabelmapRepresentation(segment, image)
    if image.GetPointData().GetScalars() is None or 0 in image.GetDimensions():
        return np.zeros(shape, bool)
    grid = slicer.vtkSlicerSegmentationsModuleLogic.CreateOrientedImageDataFromVolumeNode(
        source, source.GetParentTransformNode()
    )
    grid.UnRegister(None)
    out = slicer.vtkOrientedImageData()
    assert slicer.vtkOrientedImageDataResample.ResampleOrientedImageToReferenceOrientedImage(
        image, grid, out, False
    )
    scalars = vtk.util.numpy_support.vtk_to_numpy(out.GetPointData().GetScalars())
    return scalars.reshape(out.GetDimensions()[::-1]) != 0


def paint(segmentation: Any, segment: str, mask: np.ndarray, source: Any) -> None:
    """What the Segment Editor does when a user draws; voxels of other segments stay theirs too."""
    image = slicer.vtkSlicerSegmentationsModuleLogic.CreateOrientedImageDataFromVolumeNode(
        source, source.GetParentTransformNode()
    )
    image.UnRegister(None)
    scalars = vtk.util.numpy_support.numpy_to_vtk(mask.astype(np.uint8).ravel(), deep=True)
    scalars.SetName("ImageScalars")
    image.GetPointData().SetScalars(scalars)
    logic = slicer.vtkSlicerSegmentationsModuleLogic
    assert logic.SetBinaryLabelmapToSegment(image, segmentation, segment, logic.MODE_REPLACE)


def block(k: slice, j: slice, i: slice) -> np.ndarray:
    mask = np.zeros(SHAPE, bool)
    mask[k, j, i] = True
    return mask


def node_ids(mrml: Any) -> list[str]:
    return [mrml.GetNthNode(index).GetID() for index in range(mrml.GetNumberOfNodes())]

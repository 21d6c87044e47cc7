"""The MRML side: volume nodes become `Volume`s, results become segmentation nodes.

Nothing here needs a window. A result always becomes new nodes, so whatever is in the scene stays as it
is, and what went wrong half-way leaves nothing behind: nodes are finished before the scene gets them.
"""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import slicer
import slicer.util
import vtk
from numpy.typing import NDArray
from vtk.util import numpy_support

from medsegai.errors import GeometryError, InputError
from medsegai.labels import Label
from medsegai.request import SegmentationResult
from medsegai.volume import Geometry, Volume

REPORT_ATTRIBUTE = "MedSegAI.report"
"""Attribute of the segmentation node: the report of its job, as JSON."""

ENTROPY_REFERENCE = "MedSegAI.entropy"
"""Reference of the segmentation node to the volume node of its entropy."""

ENTROPY_COLORS = "vtkMRMLColorTableNodeIron"
ENTROPY_SHOWN = 0.05
"""Entropy in nats below which nothing is laid over the image: the network has no doubt there."""
ENTROPY_BRIGHTEST = float(np.log(2))
"""Entropy of two structures that are equally likely."""

# What scalar volume nodes are besides images with one value per voxel.
_OTHER_VOLUMES = {
    "vtkMRMLLabelMapVolumeNode": "is a label map; choose the image that it was made from",
    "vtkMRMLMultiVolumeNode": "holds several images; extract one of them",
}


class Scene:
    """Reads inputs from a scene and writes results into it."""

    def __init__(self, mrml_scene: Any) -> None:
        self._scene = mrml_scene

    def read(self, node: Any) -> Volume:
        """The image of a volume node at its place in the world: linear parent transforms are applied.

        The voxels are the node's own memory, not a copy.

        Raises:
            InputError: there is no node, or it holds no image with one value per voxel.
            GeometryError: it stands under a transform that is not linear, or its axes are sheared.
        """
        _check_image(node)
        transform = node.GetParentTransformNode()
        ijk_to_ras = vtk.vtkMatrix4x4()
        node.GetIJKToRASMatrix(ijk_to_ras)
        if transform is not None:
            if not transform.IsTransformToWorldLinear():
                raise GeometryError(
                    f"{node.GetName()} stands under a transform that bends space "
                    f"({transform.GetName()}). Harden the transform on a copy of the volume, "
                    "or take the volume out of it."
                )
            to_world = vtk.vtkMatrix4x4()
            transform.GetMatrixTransformToWorld(to_world)
            vtk.vtkMatrix4x4.Multiply4x4(to_world, ijk_to_ras, ijk_to_ras)
        voxels = slicer.util.arrayFromVolume(node)
        geometry = Geometry(voxels.shape, slicer.util.arrayFromVTKMatrix(ijk_to_ras))
        return Volume(voxels, geometry, node.GetName())

    def write(self, source: Any, result: SegmentationResult) -> Any:
        """Add a result to the scene, on the grid and under the transform of its source volume node.

        Returns:
            the new segmentation node; it refers to the entropy volume node, where there is one.

        Raises:
            InputError: the source has left the scene or has another size by now.
        """
        self._check_source(source, result)
        segmentation = self._segmentation(source, result)
        entropy = None if result.entropy is None else self._entropy(source, result.entropy)
        self._add(segmentation, source)
        segmentation.SetReferenceImageGeometryParameterFromVolumeNode(source)
        segmentation.CreateDefaultDisplayNodes()
        if entropy is not None:
            self._add(entropy, source)
            self._show_entropy(entropy)
            segmentation.SetNodeReferenceID(ENTROPY_REFERENCE, entropy.GetID())
        return segmentation

    def _segmentation(self, source: Any, result: SegmentationResult) -> Any:
        node = self._new("vtkMRMLSegmentationNode", f"{source.GetName()} segmentation")
        _add_segments(node, source, result)
        node.SetAttribute(REPORT_ATTRIBUTE, json.dumps(result.report()))
        return node

    def _entropy(self, source: Any, entropy: Volume) -> Any:
        node = self._new("vtkMRMLScalarVolumeNode", f"{source.GetName()} uncertainty")
        slicer.util.updateVolumeFromArray(node, np.ascontiguousarray(entropy.voxels))
        node.SetIJKToRASMatrix(_ijk_to_ras(source))
        return node

    def _show_entropy(self, node: Any) -> None:
        node.CreateDefaultDisplayNodes()
        display = node.GetScalarVolumeDisplayNode()
        if self._scene.GetNodeByID(ENTROPY_COLORS) is not None:
            display.SetAndObserveColorNodeID(ENTROPY_COLORS)
        largest = node.GetImageData().GetScalarRange()[1]
        display.AutoWindowLevelOff()
        display.SetWindowLevelMinMax(0.0, ENTROPY_BRIGHTEST)
        display.SetThreshold(ENTROPY_SHOWN, max(ENTROPY_SHOWN, largest))
        display.ApplyThresholdOn()

    def _check_source(self, source: Any, result: SegmentationResult) -> None:
        if not self._scene.IsNodePresent(source):
            raise InputError(
                f"The volume {source.GetName()} has left the scene, so its segmentation was dropped."
            )
        _check_image(source)
        dimensions = tuple(reversed(source.GetImageData().GetDimensions()))
        if dimensions != result.labelmap.geometry.shape:
            raise InputError(
                f"The volume {source.GetName()} changed its size during the job, "
                "so its segmentation was dropped. Run it again."
            )

    def _new(self, kind: str, name: str) -> Any:
        node = self._scene.CreateNodeByClass(kind)
        node.UnRegister(None)
        node.SetName(self._scene.GenerateUniqueName(name))
        return node

    def _add(self, node: Any, source: Any) -> None:
        """Put a node into the scene, under the transform of `source` and beside it in the tree."""
        self._scene.AddNode(node)
        node.SetAndObserveTransformNodeID(source.GetTransformNodeID())
        tree = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(self._scene)
        item = 0 if tree is None else tree.GetItemByDataNode(source)
        if item:
            tree.CreateItem(tree.GetItemParent(item), node)


def _check_image(node: Any) -> None:
    if node is None:
        raise InputError("There is no input volume. Load an image and choose it.")
    name = node.GetName()
    if not node.IsA("vtkMRMLScalarVolumeNode"):
        raise InputError(f"{name} is no volume. Choose an image.")
    for kind, reason in _OTHER_VOLUMES.items():
        if node.IsA(kind):
            raise InputError(f"{name} {reason}.")
    image = node.GetImageData()
    if image is None or image.GetPointData().GetScalars() is None or 0 in image.GetDimensions():
        raise InputError(f"{name} holds no image. Load it again.")
    components = image.GetNumberOfScalarComponents()
    if components != 1:
        raise InputError(
            f"{name} has {components} values per voxel (colour or several images); "
            "one is needed. Use Slicer's Vector to Scalar Volume module first."
        )


def _add_segments(segmentation: Any, source: Any, result: SegmentationResult) -> None:
    """Add a segment for each label that has voxels; they share one label map, as Slicer does."""
    name = slicer.vtkSegmentationConverter.GetSegmentationBinaryLabelmapRepresentationName()
    image = _oriented_image(result.labelmap.voxels, _ijk_to_ras(source))
    segments = segmentation.GetSegmentation()
    segments.SetSourceRepresentationName(name)
    for measures in result.structures:
        if not measures.voxels:
            continue
        segment = _segment(measures.label)
        segment.AddRepresentation(name, image)
        segments.AddSegment(segment, segment_id(measures.label))


def _segment(label: Label) -> Any:
    segment = slicer.vtkSegment()
    segment.SetName(label.name)
    segment.SetColor(*(part / 255.0 for part in label.color))
    segment.SetLabelValue(label.value)
    segment.SetNameAutoGenerated(False)
    segment.SetColorAutoGenerated(False)
    if label.terminology is not None:
        tag = slicer.vtkSegment.GetTerminologyEntryTagName()
        segment.SetTag(tag, label.terminology.to_slicer())
    return segment


def segment_id(label: Label) -> str:
    """The id of a label's segment, the same in every run; the value keeps like names apart."""
    return f"{label.value:03d}_{re.sub(r'[^0-9A-Za-z]+', '_', label.name).strip('_')}"


def _ijk_to_ras(node: Any) -> Any:
    matrix = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(matrix)
    return matrix


def _oriented_image(voxels: NDArray[Any], ijk_to_ras: Any) -> Any:
    image = slicer.vtkOrientedImageData()
    image.SetDimensions(*reversed(voxels.shape))
    scalars = numpy_support.numpy_to_vtk(
        np.ascontiguousarray(voxels).ravel(),
        deep=True,
        array_type=numpy_support.get_vtk_array_type(voxels.dtype),
    )
    scalars.SetName("ImageScalars")
    image.GetPointData().SetScalars(scalars)
    image.SetImageToWorldMatrix(ijk_to_ras)
    return image

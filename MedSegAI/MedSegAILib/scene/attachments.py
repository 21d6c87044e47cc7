"""Volumes that belong to a segmentation: its uncertainty, and the candidates of each voxel.

The segmentation refers to them, so they are found again in a saved scene.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import slicer
import slicer.util
import vtk
from numpy.typing import NDArray

from medsegai.request import Candidates, SegmentationResult
from medsegai.volume import Box, Geometry
from MedSegAILib.scene import sequences
from MedSegAILib.scene.inputs import ijk_to_local
from MedSegAILib.scene.layers import array_of, matrix
from MedSegAILib.scene.merging import drawn_on
from MedSegAILib.scene.nodes import own_reference, referred, remove, unique_name
from MedSegAILib.slicer_types import MRMLScene, Node, SegmentationNode, VolumeNode, VTKObject
from MedSegAILib.uncertain_regions import HEAT, UNCERTAINTY

ENTROPY_REFERENCE = "MedSegAI.entropy"
"""Reference of the segmentation node to the volume node of its entropy."""

INFORMATION_REFERENCE = "MedSegAI.mutual_information"
"""Reference of the segmentation node to the volume node of its mutual information."""

CANDIDATES_REFERENCE = "MedSegAI.candidates"
"""Reference of the segmentation node to a volume with four values per voxel: the label of the most and
of the second most probable structure, and the probabilities of both."""

HEAT_REFERENCE = "MedSegAI.heat"
"""Reference of the segmentation node to a volume with the probability of any structure, from 0 to 1."""

OBJECTS_REFERENCE = "MedSegAI.objects"
"""Reference of the segmentation node to a segmentation or label map of separate objects, such as nuclei."""

OBJECT_TABLE_REFERENCE = "MedSegAI.object_table"
"""Reference of the segmentation node to a table of these objects."""

OBJECT_COLORS_REFERENCE = "MedSegAI.object_colors"
"""Reference of the segmentation node to the colours of their label map."""

OBJECT_ROLES = (OBJECTS_REFERENCE, OBJECT_TABLE_REFERENCE, OBJECT_COLORS_REFERENCE)

NAMES = {
    ENTROPY_REFERENCE: UNCERTAINTY,
    INFORMATION_REFERENCE: "mutual information",
    CANDIDATES_REFERENCE: "candidates",
    HEAT_REFERENCE: HEAT,
}
"""The names of the volumes, by their roles."""

KINDS = dict.fromkeys(NAMES, ("vtkMRMLScalarVolumeNode",)) | {
    CANDIDATES_REFERENCE: ("vtkMRMLVectorVolumeNode",),
    OBJECTS_REFERENCE: ("vtkMRMLSegmentationNode", "vtkMRMLLabelMapVolumeNode"),
    OBJECT_TABLE_REFERENCE: ("vtkMRMLTableNode",),
    OBJECT_COLORS_REFERENCE: ("vtkMRMLColorTableNode",),
}
"""The classes of the nodes, by their roles."""

COMPONENTS = dict.fromkeys(NAMES, 1) | {CANDIDATES_REFERENCE: 4}
"""The values per voxel of the volumes, by their roles."""

MAP_REFERENCES = {HEAT: HEAT_REFERENCE, UNCERTAINTY: ENTROPY_REFERENCE}
"""The maps that can be shown over an image and walked, and their roles; the first existing one is walked."""

CLASSIFIERS = "patches"
"""The family of models whose results have a heat map."""


@dataclass(frozen=True, eq=False)
class Attachment:
    """A volume to make: its voxels on the grid of the source, (k, j, i) or (k, j, i, 4)."""

    role: str
    voxels: NDArray[np.number]


def attachments_of(result: SegmentationResult) -> list[Attachment]:
    """Return the volumes that belong to a result."""
    found = []
    if result.entropy is not None:
        found.append(Attachment(ENTROPY_REFERENCE, np.ascontiguousarray(result.entropy.voxels)))
    if result.mutual_information is not None:
        voxels = np.ascontiguousarray(result.mutual_information.voxels)
        found.append(Attachment(INFORMATION_REFERENCE, voxels))
    if result.candidates is not None:
        found.append(Attachment(CANDIDATES_REFERENCE, _stacked(result.candidates)))
        models = result.provenance.get("models", ())
        if any(model.get("family") == CLASSIFIERS for model in models):
            found.append(Attachment(HEAT_REFERENCE, _heat(result.candidates)))
    return found


def attached(segmentation: SegmentationNode, role: str) -> Node:
    """Return the node that belongs to a segmentation in one of our roles; None without one of its class."""
    return referred(segmentation, role, *KINDS[role])


def own_attached(segmentation: SegmentationNode, role: str) -> Node:
    """The same; None if a clone shares it."""
    return own_reference(segmentation, role, *KINDS[role])


def maps_of(segmentation: SegmentationNode) -> dict[str, VolumeNode]:
    """Return the maps of a segmentation that can be shown over its image, by kind; the first is walked."""
    found = {kind: volume_of(segmentation, role) for kind, role in MAP_REFERENCES.items()}
    return {kind: node for kind, node in found.items() if node is not None}


def merged(
    attachment: Attachment, segmentation: SegmentationNode, source: VolumeNode, box: Box
) -> Attachment:
    """Return the attachment merged with an existing volume, with new voxels only in a box (k, j, i)."""
    node = volume_of(segmentation, attachment.role)
    if node is None:
        return attachment
    present = slicer.util.arrayFromVolume(node)
    same_place = np.allclose(ijk_to_local(node), ijk_to_local(source), atol=1e-4)
    if present.shape != attachment.voxels.shape or not same_place:
        return attachment
    voxels = present.astype(attachment.voxels.dtype)
    voxels[box] = attachment.voxels[box]
    return Attachment(attachment.role, voxels)


def candidates_of(segmentation: SegmentationNode) -> Candidates | None:
    """Return the candidates of each voxel, on the grid of the source; None if they were not kept."""
    node = volume_of(segmentation, CANDIDATES_REFERENCE)
    if node is None:
        return None
    first, second, p_first, p_second = np.moveaxis(slicer.util.arrayFromVolume(node), -1, 0)
    return Candidates(first, second, p_first.astype(np.uint8), p_second.astype(np.uint8))


def make_node(
    scene: MRMLScene, attachment: Attachment, source: VolumeNode, image: VolumeNode = None
) -> VolumeNode:
    """Make a complete volume node of an attachment, which is not yet in the scene.

    It is named after the source, and has the geometry of the image, such as that of a frame, or otherwise of the
    source.
    """
    has_parts = attachment.role == CANDIDATES_REFERENCE
    kind = "vtkMRMLVectorVolumeNode" if has_parts else "vtkMRMLScalarVolumeNode"
    node = scene.CreateNodeByClass(kind)
    node.UnRegister(None)
    node.SetName(unique_name(source, NAMES[attachment.role], scene))
    if attachment.role != HEAT_REFERENCE:
        node.SetHideFromEditors(True)  # hidden, because it is not an input
    if has_parts:
        node.SetVoxelVectorType(node.VoxelVectorTypeUndefined)
    fill_node(node, attachment, source if image is None else image)
    return node


def fill_node(node: Node, attachment: Attachment, source: VolumeNode) -> None:
    """Put an attachment's voxels into a volume node, with the geometry of the source."""
    slicer.util.updateVolumeFromArray(node, attachment.voxels)
    node.SetIJKToRASMatrix(matrix(ijk_to_local(source)))


def put_beneath(segmentation: SegmentationNode, node: Node) -> None:
    """Put a volume below its segmentation in the subject hierarchy."""
    scene = segmentation.GetScene()
    tree = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    item = 0 if tree is None else tree.GetItemByDataNode(segmentation)
    if not item:
        return
    own = tree.GetItemByDataNode(node)
    if own:
        tree.SetItemParent(own, item)
    else:
        tree.CreateItem(item, node)


def remove_of(scene: MRMLScene, segmentation: SegmentationNode) -> None:
    """Remove the nodes that belong only to a segmentation from the scene, except those of sequences."""
    for role in (*NAMES, *OBJECT_ROLES):
        node = own_attached(segmentation, role)
        if node is not None and sequences.browser_of(node) is None:
            remove(scene, node)


def volume_of(segmentation: SegmentationNode, role: str) -> VolumeNode:
    """Return the volume that a segmentation has in a role, at its place; None if there is none.

    These volumes are hidden in lists, so whoever moves a segmentation cannot move them along. A volume that a
    clone shares stays where it is.
    """
    node = attached(segmentation, role)
    if node is None or not _holds(node.GetImageData(), role):
        return None
    if node.GetTransformNodeID() == segmentation.GetTransformNodeID():
        return node
    if own_attached(segmentation, role) is not None and _is_linear(node):
        moved = _relative(node, segmentation) @ ijk_to_local(node)
        place = drawn_on(segmentation, Geometry((1, 1, 1), np.eye(4))).ijk_to_ras
        if np.allclose(place, moved, atol=1e-3):  # the transform above both was hardened
            node.SetIJKToRASMatrix(matrix(moved))
        node.SetAndObserveTransformNodeID(segmentation.GetTransformNodeID())
    return node


def _holds(image: VTKObject, role: str) -> bool:
    """Whether an image, or None, has voxels as this role's."""
    if image is None or image.GetNumberOfScalarComponents() != COMPONENTS[role]:
        return False
    unsigned = (vtk.VTK_UNSIGNED_CHAR, vtk.VTK_UNSIGNED_SHORT)
    return role != CANDIDATES_REFERENCE or image.GetScalarType() in unsigned


def _is_linear(node: Node) -> bool:
    transform = node.GetParentTransformNode()
    return transform is None or bool(transform.IsTransformToWorldLinear())


def _relative(node: Node, segmentation: SegmentationNode) -> NDArray[np.float64]:
    """Return the matrix from the coordinates of a node to those of a segmentation, if it stays where it is."""
    between = vtk.vtkMatrix4x4()
    slicer.vtkMRMLTransformNode.GetMatrixTransformBetweenNodes(
        node.GetParentTransformNode(), segmentation.GetParentTransformNode(), between
    )
    return array_of(between)


def _heat(candidates: Candidates) -> NDArray[np.float32]:
    """Return one minus the probability of the background, from 0 to 1; 0 where it is unknown."""
    heat = np.float32(1) - candidates.probability_of(0)
    return np.where(candidates.p_first > 0, heat, np.float32(0))


def _stacked(candidates: Candidates) -> NDArray[Any]:
    parts = (candidates.first, candidates.second, candidates.p_first, candidates.p_second)
    small = all(part.dtype == np.uint8 for part in parts)
    return np.stack(parts, axis=-1).astype(np.uint8 if small else np.uint16, copy=False)

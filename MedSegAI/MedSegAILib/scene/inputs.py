"""Reading of volume nodes as `Volume`s, and of regions of interest as boxes, in world coordinates."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
import slicer
import slicer.util
import vtk
from numpy.typing import NDArray

from medsegai.errors import GeometryError, InputError
from medsegai.volume import Geometry, Volume, check_same_grid
from MedSegAILib.scene.dicom_database import modality_of
from MedSegAILib.scene.layers import array_of
from MedSegAILib.scene.nodes import nodes_of, unique_name
from MedSegAILib.slicer_types import MRMLScene, Node, VolumeNode
from MedSegAILib.translation import tr as _

# Why some scalar volume nodes are not images with one value per voxel.
_OTHER_VOLUMES = {
    "vtkMRMLLabelMapVolumeNode": _(
        "{name} is a label map. Choose the image that it was made from."
    ),
    "vtkMRMLMultiVolumeNode": _("{name} holds several images. Extract one of them."),
}
RESAMPLE = _(
    "Resample {image} onto {grid}, for example with Slicer's Resample Scalar/Vector/DWI Volume, "
    "and choose the result."
)

FLAT = 1e-15
"""The determinant up to which a transform has no inverse."""

_VECTORS = "vtkMRMLVectorVolumeNode"

_NO_INPUTS = (*_OTHER_VOLUMES, _VECTORS, "vtkMRMLTensorVolumeNode")


def read(node: Node) -> Volume:
    """Read the image of a volume node in world coordinates: linear parent transforms are applied.

    The voxels are the node's own memory, not a copy.

    Raises:
        InputError: the node is None, or does not hold an image with one value per voxel.
        GeometryError: it has a parent transform that is not linear, or its axes are sheared.
    """
    check_image(node)
    return image_at(node, transform_to_world(node), node.GetName())


def _check_different(nodes: Sequence[Node]) -> None:
    for index, node in enumerate(nodes):
        if any(node is other for other in nodes[:index]):
            text = _("{name} is chosen for two channels. Choose one volume for each.")
            raise InputError(text.format(name=node.GetName()))


def read_channels(nodes: Sequence[Node]) -> tuple[Volume, ...]:
    """Read one image per channel of a model, all on the grid of the first; a colour picture has three.

    Raises:
        InputError: see `read`; or one node is given for two channels.
        GeometryError: see `read`; or two nodes have different grids.
    """
    if not nodes:
        raise InputError(_("There is no input volume. Load an image and choose it."))
    if len(nodes) == 1 and in_colours(nodes[0]):
        return _colours(nodes[0])
    volumes = tuple(read(node) for node in nodes)
    _check_different(nodes)
    _check_grids(volumes)
    return volumes


def _check_grids(volumes: Sequence[Volume]) -> None:
    first = volumes[0]
    for other in volumes[1:]:
        check_same_grid(
            other.geometry,
            first.geometry,
            other.source,
            first.source,
            RESAMPLE.format(image=other.source, grid=first.source),
        )


def checksum(node: Node) -> int:
    """Return a number that differs for other voxels of a volume node; 0 without an image."""
    image = None if node is None else node.GetImageData()
    if image is None or image.GetPointData().GetScalars() is None:
        return 0
    return zlib.crc32(np.ascontiguousarray(slicer.util.arrayFromVolume(node)).data)


def in_colours(node: Node) -> bool:
    """Whether a node is a picture: a vector volume of red, green and blue, and perhaps transparency."""
    image = node.GetImageData() if node is not None and node.IsA(_VECTORS) else None
    return image is not None and image.GetNumberOfScalarComponents() in (3, 4)


def grid_of(node: Node) -> Geometry:
    """Return the world geometry of an image or a colour picture.

    Raises:
        InputError, GeometryError: see `read`.
    """
    if not in_colours(node):
        return read(node).geometry
    i, j, k = node.GetImageData().GetDimensions()
    return Geometry((k, j, i), transform_to_world(node) @ ijk_to_local(node))


def _colours(node: Node) -> tuple[Volume, ...]:
    """Read red, green and blue of a vector volume in world coordinates, without transparency."""
    colours, grid = slicer.util.arrayFromVolume(node), grid_of(node)
    name = node.GetName()
    return tuple(
        Volume(np.ascontiguousarray(colours[..., channel]), grid, name) for channel in range(3)
    )


def volumes(scene: MRMLScene) -> list[VolumeNode]:
    """Return the volume nodes of a scene that can be inputs, without hidden ones."""
    return [
        node
        for node in nodes_of(scene, "vtkMRMLScalarVolumeNode")
        if not node.GetHideFromEditors() and not any(map(node.IsA, _NO_INPUTS))
    ]


def image_at(node: Node, to_world: NDArray[np.float64], name: str) -> Volume:
    """Read the image of a checked volume node, under the given transform."""
    voxels = slicer.util.arrayFromVolume(node)
    modality = modality_of(getattr(slicer, "dicomDatabase", None), node)
    grid = Geometry(voxels.shape, to_world @ ijk_to_local(node))
    return Volume(voxels, grid, name, modality=modality)


def ijk_to_local(node: Node) -> NDArray[np.float64]:
    """Return the 4 x 4 matrix of a volume node without its parent transform."""
    ijk_to_ras = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(ijk_to_ras)
    return array_of(ijk_to_ras)


def transform_to_world(node: Node) -> NDArray[np.float64]:
    """Return the 4 x 4 matrix of all parent transforms of a node, which can be inverted.

    Raises:
        GeometryError: one of them is not linear, or flattens space.
    """
    transform = node.GetParentTransformNode()
    if transform is None:
        return np.eye(4)
    if not transform.IsTransformToWorldLinear():
        raise GeometryError(
            _(
                "{name} has a parent transform that is not linear ({transform}). Harden the "
                "transform on a copy of it, or remove it from the transform."
            ).format(name=node.GetName(), transform=transform.GetName())
        )
    to_world = vtk.vtkMatrix4x4()
    transform.GetMatrixTransformToWorld(to_world)
    if not abs(to_world.Determinant()) > FLAT:
        raise GeometryError(
            _(
                "{name} has a parent transform that flattens it ({transform}). Correct its matrix, or remove it "
                "from the transform."
            ).format(name=node.GetName(), transform=transform.GetName())
        )
    return array_of(to_world)


def check_image(node: Node) -> None:
    """Raises:
    InputError: the node is None, or not an image with one value per voxel.
    """
    if node is None:
        raise InputError(_("There is no input volume. Load an image and choose it."))
    name = node.GetName()
    if not node.IsA("vtkMRMLScalarVolumeNode"):
        raise InputError(_("{name} is not a volume. Choose an image.").format(name=name))
    for kind, reason in _OTHER_VOLUMES.items():
        if node.IsA(kind):
            raise InputError(reason.format(name=name))
    image = node.GetImageData()
    if image is None or image.GetPointData().GetScalars() is None or 0 in image.GetDimensions():
        raise InputError(_("{name} does not contain an image. Load it again.").format(name=name))
    _check_components(name, image.GetNumberOfScalarComponents())


def _check_components(name: str, components: int) -> None:
    if components != 1:
        raise InputError(
            _(
                "{name} has {count} values per voxel (colour or several images), but one is needed. "
                "Convert it with Slicer's module Vector to Scalar Volume first."
            ).format(name=name, count=components)
        )


def _middle_and_half(node: Node) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The matrix from the axes of an ROI, whose middle is 0, to the coordinates of its node; and half its size."""
    if node.IsA("vtkMRMLMarkupsROINode"):
        return array_of(node.GetObjectToNodeMatrix()), np.array(node.GetSize()) / 2
    if not node.IsA("vtkMRMLAnnotationROINode"):
        text = _("{name} is not a region of interest. Choose an ROI.")
        raise InputError(text.format(name=node.GetName()))
    middle, half, local = np.zeros(3), np.zeros(3), np.eye(4)
    node.GetXYZ(middle)
    node.GetRadiusXYZ(half)
    local[:3, 3] = middle
    return local, half


def region(node: Node) -> tuple[float, ...]:
    """Return the world box around a region of interest: lowest and highest R, A and S in mm.

    A rotated box, by itself or by its parent transforms, is enclosed.

    Args:
        node: vtkMRMLMarkupsROINode, or an ROI of old scenes (vtkMRMLAnnotationROINode).

    Raises:
        InputError: the node is None, not an ROI, or not drawn yet.
        GeometryError: it has a parent transform that is not linear.
    """
    if node is None:
        raise InputError(
            _("There is no region of interest. Choose one, or segment the whole volume.")
        )
    local, half = _middle_and_half(node)
    if not np.all(half > 0):
        text = _("{name} does not have a box yet. Draw it in a slice view first.")
        raise InputError(text.format(name=node.GetName()))
    to_world = transform_to_world(node) @ local
    reach = np.abs(to_world[:3, :3]) @ half
    low, high = to_world[:3, 3] - reach, to_world[:3, 3] + reach
    return tuple(float(value) for pair in zip(low, high, strict=True) for value in pair)


def new_region(scene: MRMLScene, volume: VolumeNode) -> Node:
    """Make a box in the middle of a volume, half as long on each side, which the user can move.

    Args:
        scene: the vtkMRMLScene.
        volume: vtkMRMLScalarVolumeNode.

    Returns:
        A vtkMRMLMarkupsROINode, which is shown in all views.

    Raises:
        InputError, GeometryError: see `read`.
    """
    grid = grid_of(volume)
    size = np.array(grid.shape[::-1])
    last = np.where(size > 1, size - 1.0, 1.0)  # a single slice also gets a box
    ends = np.array([np.where(size > 1, 0.0, -1.0), last])
    corners = np.array([[*ends[ends_at, range(3)], 1] for ends_at in np.ndindex(2, 2, 2)])
    world = (grid.ijk_to_ras @ corners.T)[:3]
    low, high = world.min(1), world.max(1)
    node = scene.AddNewNodeByClass("vtkMRMLMarkupsROINode")
    node.SetName(unique_name(volume, "region", scene))
    node.SetCenter(*((low + high) / 2))
    node.SetSize(*((high - low) / 2))
    node.CreateDefaultDisplayNodes()
    return node

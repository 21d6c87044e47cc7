"""Nodes in, volumes and boxes out, on real MRML (slicer-core): every place in the world is checked."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import vtk
from slicer.util import (
    arrayFromVolume,
    arrayFromVTKMatrix,
    updateVolumeFromArray,
)

from medsegai.errors import GeometryError, InputError
from MedSegAILib.scene import (
    Scene,
)
from scene_images import (
    MOVED,
    PLACES,
    SHAPE,
    add_transform,
    add_volume,
    bending_transform,
    world_of,
)


@pytest.mark.parametrize("moved", MOVED.values(), ids=MOVED)
@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_every_voxel_is_read_where_slicer_shows_it(
    mrml: Any, place: np.ndarray, moved: np.ndarray | None
) -> None:
    node = add_volume(mrml, place, moved)
    volume = Scene(mrml).read(node)
    assert volume.voxels.shape == SHAPE
    assert volume.source == "Head"
    for i, j, k in [(0, 0, 0), (13, 10, 8), (5, 3, 7)]:
        world = volume.geometry.ijk_to_ras @ [i, j, k, 1]
        np.testing.assert_allclose(world[:3], world_of(node, i, j, k), atol=1e-9)
        value = node.GetImageData().GetScalarComponentAsDouble(i, j, k, 0)
        assert volume.voxels[k, j, i] == value


def test_nested_transforms_are_applied_in_order(mrml: Any) -> None:
    node = add_volume(mrml, PLACES["oblique"], MOVED["turned"])
    outer = add_transform(mrml, MOVED["shifted"])
    node.GetParentTransformNode().SetAndObserveTransformNodeID(outer.GetID())
    volume = Scene(mrml).read(node)
    world = volume.geometry.ijk_to_ras @ [5, 3, 7, 1]
    np.testing.assert_allclose(world[:3], world_of(node, 5, 3, 7), atol=1e-9)


def test_reading_neither_copies_nor_changes_the_node(mrml: Any) -> None:
    node = add_volume(mrml, PLACES["oblique"], MOVED["turned"])
    before = arrayFromVTKMatrix(_matrix(node))
    volume = Scene(mrml).read(node)
    assert np.shares_memory(volume.voxels, arrayFromVolume(node))
    np.testing.assert_array_equal(arrayFromVTKMatrix(_matrix(node)), before)


def _matrix(node: Any) -> Any:
    out = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(out)
    return out


def test_a_bending_transform_is_refused_with_the_way_out(mrml: Any) -> None:
    node = add_volume(mrml, PLACES["plain"])
    node.SetAndObserveTransformNodeID(bending_transform(mrml).GetID())
    with pytest.raises(GeometryError, match=r"Head .*\(Warp\).*Harden"):
        Scene(mrml).read(node)


def test_a_bending_transform_further_up_is_refused_as_well(mrml: Any) -> None:
    node = add_volume(mrml, PLACES["plain"], MOVED["turned"])
    node.GetParentTransformNode().SetAndObserveTransformNodeID(bending_transform(mrml).GetID())
    with pytest.raises(GeometryError, match="bends space"):
        Scene(mrml).read(node)


def test_a_transform_that_shears_is_refused(mrml: Any) -> None:
    shear = np.eye(4)
    shear[0, 1] = 0.3
    with pytest.raises(GeometryError, match="right angles"):
        Scene(mrml).read(add_volume(mrml, PLACES["plain"], shear))


def test_no_volume_is_refused(mrml: Any) -> None:
    with pytest.raises(InputError, match="no input volume"):
        Scene(mrml).read(None)


def test_a_volume_without_image_is_refused(mrml: Any) -> None:
    node = mrml.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "Hollow")
    with pytest.raises(InputError, match="Hollow holds no image"):
        Scene(mrml).read(node)


@pytest.mark.parametrize(
    ("kind", "shape", "reason"),
    [
        ("vtkMRMLModelNode", None, "is no volume"),
        ("vtkMRMLLabelMapVolumeNode", SHAPE, "label map"),
        ("vtkMRMLVectorVolumeNode", (*SHAPE, 3), "3 values per voxel"),
    ],
)
def test_what_is_no_scalar_image_is_refused(
    mrml: Any, kind: str, shape: tuple[int, ...] | None, reason: str
) -> None:
    node = mrml.AddNewNodeByClass(kind, "Thing")
    if shape is not None:
        updateVolumeFromArray(node, np.zeros(shape, np.uint8))
    with pytest.raises(InputError, match=f"Thing .*{reason}"):
        Scene(mrml).read(node)

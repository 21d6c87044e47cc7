"""The AI again in a box or a slab: which voxels are asked for, and that only these are updated."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import segment_editor
from medsegai.errors import GeometryError, InputError, RequestError
from medsegai.request import SegmentationRequest, request_from_options
from MedSegAILib.correction.region import region_of_slab
from MedSegAILib.scene import Scene
from MedSegAILib.scene.inputs import region
from scene_images import (
    MOVED,
    PLACES,
    SHAPE,
    add_transform,
    add_volume,
    bending_transform,
    world_of,
)


def view_of(mrml: Any, node: Any, voxel: tuple[int, int, int], right: int, up: int) -> Any:
    """A slice view through a voxel (i, j, k), with axes `right` and `up` of the volume to the right and up."""
    view = segment_editor.SliceView(mrml)
    steps = np.eye(3, dtype=int)
    across = [world_of(node, *steps[axis]) - world_of(node, 0, 0, 0) for axis in (right, up)]
    view.show_plane(world_of(node, *voxel), *(step / np.linalg.norm(step) for step in across))
    return view.mrmlSliceNode()


def asked_for(mrml: Any, node: Any, bounds: tuple[float, ...]) -> tuple[slice, ...] | None:
    """The voxels that the engine would segment."""
    return Scene(mrml).read(node).geometry.box_around(bounds)


@pytest.mark.parametrize("moved", ["no transform", "shifted"])
@pytest.mark.parametrize("place", ["plain", "LPS", "mirrored", "axes swapped"])
def test_a_slab_asks_for_the_slices_around_the_view(place: str, moved: str, mrml: Any) -> None:
    node = add_volume(mrml, PLACES[place], MOVED[moved])
    spacing = Scene(mrml).read(node).geometry.spacing_mm
    for axis, (right, up) in enumerate(((1, 2), (0, 2), (0, 1))):
        shown = view_of(mrml, node, (6, 5, 4), right, up)
        box = asked_for(mrml, node, region_of_slab(shown, node, 3 * spacing[axis]))
        expected = [slice(0, size) for size in SHAPE]
        middle = (6, 5, 4)[axis]
        expected[2 - axis] = slice(middle - 1, middle + 2)
        assert box == tuple(expected)


def test_a_thin_slab_is_one_slice_and_a_thick_one_ends_with_the_volume(mrml: Any) -> None:
    node = add_volume(mrml, PLACES["LPS"])
    shown = view_of(mrml, node, (6, 5, 4), 0, 1)
    assert asked_for(mrml, node, region_of_slab(shown, node, 0.1)) == (
        slice(4, 5),
        slice(0, SHAPE[1]),
        slice(0, SHAPE[2]),
    )
    whole = asked_for(mrml, node, region_of_slab(shown, node, 1000.0))
    assert whole == tuple(slice(0, size) for size in SHAPE)


def test_in_an_oblique_volume_the_box_holds_the_slab(mrml: Any) -> None:
    node = add_volume(mrml, PLACES["oblique"], MOVED["turned"])
    shown = view_of(mrml, node, (6, 5, 4), 0, 1)
    box = asked_for(mrml, node, region_of_slab(shown, node, 5.0))
    assert box is not None
    assert box[0].start <= 3
    assert box[0].stop >= 6


def test_a_slanted_view_takes_the_nearest_axis(mrml: Any) -> None:
    node = add_volume(mrml, PLACES["plain"])
    view = segment_editor.SliceView(mrml)
    view.show_plane(world_of(node, 6, 5, 4), (1.0, 0.0, 0.0), (0.0, 0.9, np.sqrt(1 - 0.81)))
    box = asked_for(mrml, node, region_of_slab(view.mrmlSliceNode(), node, 3.0))
    assert box == (slice(3, 6), slice(0, SHAPE[1]), slice(0, SHAPE[2]))


def test_the_box_of_a_region_of_interest_makes_a_request(mrml: Any) -> None:
    node = add_volume(mrml, PLACES["LPS"])
    roi = mrml.AddNewNodeByClass("vtkMRMLMarkupsROINode")
    roi.SetXYZ(*world_of(node, 6, 5, 4))
    roi.SetRadiusXYZ(1.0, 2.0, 3.0)
    options = {"region": region(roi), "candidates": True}
    request = request_from_options((Scene(mrml).read(node),), options)
    assert isinstance(request, SegmentationRequest)
    assert request.candidates
    center = world_of(node, 6, 5, 4)
    expected = [value for c, r in zip(center, (1, 2, 3), strict=True) for value in (c - r, c + r)]
    np.testing.assert_allclose(request.region, expected, atol=1e-6)


def test_what_cannot_be_done_is_said(mrml: Any) -> None:
    node = add_volume(mrml, PLACES["LPS"])
    shown = view_of(mrml, node, (6, 5, 4), 0, 1)
    with pytest.raises(InputError, match="Choose one"):
        region(None)
    for thickness in (0.0, -3.0, float("nan")):
        with pytest.raises(InputError, match="thicker than 0"):
            region_of_slab(shown, node, thickness)
    elsewhere = view_of(mrml, node, (6, 5, 40), 0, 1)
    with pytest.raises(InputError, match="not show a slice of the volume"):
        region_of_slab(elsewhere, node)
    with pytest.raises(InputError, match="no input volume"):
        region_of_slab(shown, None)
    node.SetAndObserveTransformNodeID(bending_transform(mrml).GetID())
    with pytest.raises(GeometryError, match="is not linear"):
        region_of_slab(shown, node)


def test_an_empty_region_is_refused_by_the_request(mrml: Any) -> None:
    node = add_volume(mrml, PLACES["plain"], add_transform(mrml, np.eye(4)) and None)
    options = {"region": (1, 1, 0, 1, 0, 1), "candidates": True}
    with pytest.raises(RequestError, match="region"):
        request_from_options((Scene(mrml).read(node),), options)

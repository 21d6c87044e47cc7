"""Surfaces that are made one after another are Slicer's own, and whoever edits meanwhile is not in their way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import slicer
from vtk.util import numpy_support

from medsegai.errors import InputError
from medsegai.volume import Geometry
from MedSegAILib.scene import Scene
from MedSegAILib.scene.layers import Layer, labelmap_name, layers_of, oriented_image
from MedSegAILib.scene.merging import Plan, carry_out
from MedSegAILib.scene.surfaces import (
    are_shown,
    has_surfaces,
    make_at_once,
    remove_surfaces,
    surface_name,
)
from scene_images import PLACES

SHAPE = (18, 22, 26)


def ball(center: tuple[int, int, int], radius: float) -> np.ndarray:
    k, j, i = np.ogrid[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
    away = (k - center[0]) ** 2 + (j - center[1]) ** 2 + (i - center[2]) ** 2
    return np.asarray(away <= radius**2)


def segmentation(mrml: Any, place: str = "oblique") -> Any:
    """Four segments in two label maps: one inside, one at the border, an empty one, and one over others."""
    node = mrml.AddNewNodeByClass("vtkMRMLSegmentationNode", "Parts")
    segments = node.GetSegmentation()
    segments.SetSourceRepresentationName(labelmap_name())
    first = np.where(ball((9, 11, 8), 5), 3, 0) + np.where(ball((2, 11, 19), 6), 300, 0)
    second = ball((9, 12, 13), 6).astype(np.uint8)
    grid = Geometry(SHAPE, PLACES[place])
    images = [oriented_image(voxels.astype(np.uint16), grid) for voxels in (first, second)]
    for name, value, image in (
        ("inside", 3, images[0]),
        ("border", 300, images[0]),
        ("empty", 7, images[0]),
        ("over", 1, images[1]),
    ):
        segment = slicer.vtkSegment()
        segment.SetName(name)
        segment.SetLabelValue(value)
        segment.AddRepresentation(labelmap_name(), image)
        segments.AddSegment(segment, name)
    node.CreateDefaultDisplayNodes()
    return node


def points(node: Any) -> dict[str, np.ndarray]:
    """The vertices of each surface that there is."""
    found = {}
    for name in node.GetSegmentation().GetSegmentIDs():
        surface = node.GetSegmentation().GetSegment(name).GetRepresentation(surface_name())
        if surface is not None:
            count = surface.GetNumberOfPoints()
            found[name] = (
                numpy_support.vtk_to_numpy(surface.GetPoints().GetData())
                if count
                else np.empty((0, 3))
            )
    return found


@pytest.mark.parametrize("place", sorted(PLACES))
@pytest.mark.parametrize("smoothing", ["0.5", "0.0"])
def test_each_surface_is_that_which_slicer_makes_of_all(
    mrml: Any, place: str, smoothing: str
) -> None:
    node = segmentation(mrml, place)
    segments = node.GetSegmentation()
    segments.SetConversionParameter("Smoothing factor", smoothing)
    node.CreateClosedSurfaceRepresentation()
    expected = points(node)
    node.RemoveClosedSurfaceRepresentation()
    assert not has_surfaces(node)
    assert list(Scene(mrml).surfaces(node)) == [(1, 4), (2, 4), (3, 4), (4, 4)]
    made = points(node)
    assert made.keys() == expected.keys()
    assert len(made["inside"]) > 50
    for name, found in expected.items():
        np.testing.assert_allclose(made[name], found, atol=1e-3)


def test_only_what_is_missing_is_made(mrml: Any) -> None:
    node = segmentation(mrml)
    steps = Scene(mrml).surfaces(node)
    next(steps)
    kept = node.GetSegmentation().GetSegment("inside").GetRepresentation(surface_name())
    assert list(Scene(mrml).surfaces(node)) == [(2, 4), (3, 4), (4, 4)]
    assert node.GetSegmentation().GetSegment("inside").GetRepresentation(surface_name()) is kept
    assert list(Scene(mrml).surfaces(node)) == []


def test_segments_may_come_and_go_meanwhile(mrml: Any) -> None:
    node = segmentation(mrml)
    segments, steps = node.GetSegmentation(), Scene(mrml).surfaces(node)
    next(steps)
    segments.RemoveSegment("border")
    voxels = ball((9, 11, 13), 4).astype(np.uint8)
    image = oriented_image(voxels, Geometry(SHAPE, PLACES["oblique"]))
    segments.GetSegment("over").AddRepresentation(labelmap_name(), image)
    assert list(steps) == [(2, 3), (3, 3)]
    made = points(node)["over"]
    other = segmentation(mrml)
    other.GetSegmentation().GetSegment("over").AddRepresentation(labelmap_name(), image)
    other.CreateClosedSurfaceRepresentation()
    np.testing.assert_allclose(made, points(other)["over"], atol=1e-3)


def test_a_segmentation_that_leaves_its_scene_ends_it(mrml: Any) -> None:
    node = segmentation(mrml)
    steps = Scene(mrml).surfaces(node)
    next(steps)
    mrml.RemoveNode(node)
    assert list(steps) == []


def test_surfaces_that_are_smoothed_together_are_made_together(mrml: Any) -> None:
    node = segmentation(mrml)
    node.GetSegmentation().SetConversionParameter("Joint smoothing", "1")
    assert list(Scene(mrml).surfaces(node)) == []
    assert points(node).keys() == {"inside", "border", "empty", "over"}


def test_whether_surfaces_are_shown(mrml: Any) -> None:
    node, scene = segmentation(mrml), Scene(mrml)
    assert not are_shown(node)
    scene.show_3d(node)
    assert scene.surfaces_are_shown(node)
    node.GetDisplayNode().SetVisibility(False)
    assert not scene.surfaces_are_shown(node)
    node.GetDisplayNode().SetVisibility(True)
    scene.show_3d(node, False)
    assert not scene.surfaces_are_shown(node)
    assert has_surfaces(node), "they need not be made again"


def test_whoever_sees_to_surfaces_is_asked_instead(mrml: Any) -> None:
    node, scene = segmentation(mrml), Scene(mrml)
    asked: list[Any] = []
    scene.make_surfaces = asked.append
    scene.show_3d(node)
    assert asked == [node]
    assert not has_surfaces(node), "nothing is made before Slicer has lived"


def surface(node: Any, name: str) -> Any:
    return node.GetSegmentation().GetSegment(name).GetRepresentation(surface_name())


@pytest.mark.parametrize("hidden", ["inside", "border", "over"])
def test_a_segment_that_is_not_shown_in_3d_comes_last_and_hides_nothing(
    mrml: Any, hidden: str
) -> None:
    node, scene = segmentation(mrml), Scene(mrml)
    display = node.GetDisplayNode()
    display.SetSegmentVisibility3D(hidden, False)
    display.SetVisibility3D(True)
    steps = scene.surfaces(node)
    assert [next(steps) for _ in range(3)] == [(1, 4), (2, 4), (3, 4)]
    assert surface(node, hidden).GetNumberOfPoints() == 0
    assert display.GetDisplayRepresentationName3D() == surface_name(), "Slicer draws the others"
    assert scene.surfaces_are_shown(node)
    assert list(steps) == [(4, 4)]
    assert surface(node, hidden).GetNumberOfPoints() > 50
    assert list(scene.surfaces(node)) == []


def test_a_segment_shown_while_surfaces_are_made_gets_its_own(mrml: Any) -> None:
    node = segmentation(mrml)
    node.GetDisplayNode().SetSegmentVisibility3D("border", False)
    steps = Scene(mrml).surfaces(node)
    assert next(steps) == (1, 4)
    node.GetDisplayNode().SetSegmentVisibility3D("border", True)
    assert next(steps) == (2, 4)
    assert len(points(node)["border"]) > 50


def test_a_segment_hidden_in_3d_is_exported_as_it_is(mrml: Any, tmp_path: Path) -> None:
    """Slicer exports the surfaces that a segmentation has, or makes them what the segments are."""
    node, scene = segmentation(mrml), Scene(mrml)
    node.GetDisplayNode().SetSegmentVisibility3D("inside", False)
    scene.show_3d(node)
    slicer.vtkSlicerSegmentationsModuleLogic.ExportSegmentsClosedSurfaceRepresentationToFiles(
        str(tmp_path), node, None, "STL", True, 1.0, False
    )
    empty = (tmp_path / "Parts_empty.stl").stat().st_size
    assert (tmp_path / "Parts_inside.stl").stat().st_size > 100 * empty


@pytest.mark.parametrize("steps_done", [1, 2])
def test_surfaces_that_are_not_made_to_the_end_leave_no_stand_in(
    mrml: Any, steps_done: int
) -> None:
    node = segmentation(mrml)
    node.GetDisplayNode().SetSegmentVisibility3D("inside", False)
    steps = Scene(mrml).surfaces(node)
    for _ in range(steps_done):
        next(steps)
    assert surface(node, "inside").GetNumberOfPoints() == 0
    steps.close()
    assert surface(node, "inside") is None
    assert len(points(node)) == steps_done


def test_surfaces_that_are_the_segments_stay_what_they_are(mrml: Any) -> None:
    node, scene = segmentation(mrml), Scene(mrml)
    node.CreateClosedSurfaceRepresentation()
    node.GetSegmentation().SetSourceRepresentationName(surface_name())
    before = points(node)
    with pytest.raises(InputError, match="Parts is made of surfaces, which cannot be smoothed"):
        scene.smooth_surfaces(node, 0.8)
    node.GetDisplayNode().SetSegmentVisibility3D("inside", False)
    scene.show_3d(node)
    scene.show_in_3d(node, ["inside"], True)
    scene.show_3d(node, False)
    remove_surfaces(node)
    for name, expected in before.items():
        np.testing.assert_array_equal(points(node)[name], expected)


@pytest.mark.parametrize(
    ("source", "kind"),
    [("Closed surface", "surfaces"), ("Planar contour", "contours"), ("Ribbon model", "Ribbon")],
)
def test_voxels_that_are_unknown_are_not_counted_as_none(mrml: Any, source: str, kind: str) -> None:
    node, scene = segmentation(mrml), Scene(mrml)
    node.CreateClosedSurfaceRepresentation()
    node.GetSegmentation().SetSourceRepresentationName(source)
    for read in (scene.structures, scene.measurable, lambda each: scene.exported(each, {})):
        with pytest.raises(InputError, match=f"Parts is made of {kind}"):
            read(node)


def test_what_is_no_segmentation_is_not_read_as_one(mrml: Any) -> None:
    scene = Scene(mrml)
    box = mrml.AddNewNodeByClass("vtkMRMLMarkupsROINode", "Box")
    for read in (scene.structures, scene.measurable, lambda each: scene.exported(each, {})):
        with pytest.raises(InputError, match="There is no segmentation"):
            read(None)
        with pytest.raises(InputError, match="Box is not a segmentation"):
            read(box)


def test_nothing_is_made_where_no_surface_is_shown(mrml: Any) -> None:
    node, scene = segmentation(mrml), Scene(mrml)
    scene.show_in_3d(node, ["inside"], True)
    assert not has_surfaces(node)
    scene.show_3d(node)
    made = surface(node, "inside")
    scene.complete_surfaces(node)
    assert surface(node, "inside") is made


@pytest.mark.parametrize("joint", [False, True])
def test_segments_that_hold_what_they_held_keep_their_surfaces(mrml: Any, joint: bool) -> None:
    node = segmentation(mrml)
    if joint:
        node.GetSegmentation().SetConversionParameter("Joint smoothing", "1")
    make_at_once(node)
    kept = {name: surface(node, name) for name in ("inside", "border", "over", "empty")}
    first, second = layers_of(node)
    voxels = first.voxels.copy()
    voxels[voxels == 300] = 0
    voxels[12:16, 3:6, 3:6] = 300
    changed = Layer(voxels, first.geometry, first.values)
    moved = Layer(np.roll(second.voxels, 1, axis=2), second.geometry, second.values)
    assert carry_out(node, Plan((changed, moved), {}), None)
    assert surface(node, "border") is None
    assert surface(node, "over") is None, "the same voxels at another place"
    for name in ("inside", "empty"):
        assert surface(node, name) is (None if joint else kept[name])
    make_at_once(node)
    made = points(node)
    node.RemoveClosedSurfaceRepresentation()
    node.CreateClosedSurfaceRepresentation()
    for name, expected in points(node).items():
        np.testing.assert_allclose(made[name], expected, atol=1e-3)

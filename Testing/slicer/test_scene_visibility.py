"""Which segments are drawn, in slices and in 3D, and how their surfaces look."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from MedSegAILib.output_choice import OutputChoice, OutputMode
from MedSegAILib.scene import Scene
from MedSegAILib.scene.surfaces import surface_name
from scene_images import LEFT, LEFT_ID, PLACES, STEM, STEM_ID, add_volume, result_for, two_blocks


@pytest.mark.parametrize("way", ["new", "add", "preview"])
def test_the_card_says_what_is_shown_in_3d_and_how_opaque(mrml: Any, way: str) -> None:
    """Of new segments alone: what a person chose for those that are there stays."""
    volume = add_volume(mrml, PLACES["LPS"])
    scene = Scene(mrml)
    result = result_for(scene.read(volume), two_blocks())
    hidden, glassy = (
        dataclasses.replace(LEFT, opacity_3d=0.0),
        dataclasses.replace(STEM, opacity_3d=0.4),
    )
    left, stem, *rest = result.structures
    result = dataclasses.replace(
        result,
        labels=(hidden, glassy, *result.labels[2:]),
        structures=(
            dataclasses.replace(left, label=hidden),
            dataclasses.replace(stem, label=glassy),
            *rest,
        ),
    )
    mode = {"new": OutputMode.NEW, "add": OutputMode.ADD, "preview": OutputMode.PREVIEW}[way]
    there = mrml.AddNewNodeByClass("vtkMRMLSegmentationNode", "There")
    there.GetSegmentation().AddEmptySegment("mine", "Mine")
    there.CreateDefaultDisplayNodes()
    there.GetDisplayNode().SetSegmentOpacity3D("mine", 0.7)
    output = OutputChoice(mode, None if way == "new" else there)
    preview = way == "preview"
    node = (
        scene.preview(volume, result, output).node
        if preview
        else scene.write(volume, result, output)
    )
    shown = {
        name: node.GetSegmentation().GetSegmentIdBySegmentName(name)
        for name in (LEFT.name, STEM.name)
    }
    display = node.GetDisplayNode()
    assert not display.GetSegmentVisibility3D(shown[LEFT.name])
    assert display.GetSegmentVisibility(shown[LEFT.name]), "it is seen in the slices"
    assert display.GetSegmentOpacity3D(shown[LEFT.name]) == 1, "and in 3D once it is shown there"
    assert display.GetSegmentVisibility3D(shown[STEM.name])
    assert display.GetSegmentOpacity3D(shown[STEM.name]) == pytest.approx(0.4)
    if way == "add":
        assert display.GetSegmentOpacity3D("mine") == pytest.approx(0.7)


def test_a_segment_is_shown_in_3d_and_hidden_there(mrml: Any) -> None:
    scene = Scene(mrml)
    volume = add_volume(mrml, PLACES["LPS"])
    node = scene.write(volume, result_for(scene.read(volume), two_blocks()))
    display = node.GetDisplayNode()
    scene.show_in_3d(node, [LEFT_ID], False)
    assert not display.GetSegmentVisibility3D(LEFT_ID)
    assert display.GetSegmentVisibility3D(STEM_ID)
    assert display.GetSegmentVisibility(LEFT_ID)
    scene.show_in_3d(node, [LEFT_ID, STEM_ID], True)
    assert display.GetSegmentVisibility3D(LEFT_ID)


@pytest.mark.parametrize("shown", [True, False])
def test_surfaces_that_are_shown_are_made_again_smoother(mrml: Any, shown: bool) -> None:
    scene = Scene(mrml)
    volume = add_volume(mrml, PLACES["LPS"])
    node = scene.write(volume, result_for(scene.read(volume), two_blocks()))
    scene.show_3d(node)

    def box() -> tuple[float, ...]:
        surface = node.GetSegmentation().GetSegment(LEFT_ID).GetRepresentation(surface_name())
        return tuple(surface.GetBounds()) if surface is not None else ()

    sharp = box()
    scene.show_3d(node, shown)
    scene.smooth_surfaces(node, 1.0)
    if shown:
        assert box() != sharp
        assert box(), "they are there at once"
    else:
        assert box() == (), "nobody sees them, so they are made when they are shown"

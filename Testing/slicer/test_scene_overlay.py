"""The map of uncertainty over the slices: its colours, its legend, and what is there again after it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import slicer
from slicer.util import updateVolumeFromArray

from medsegai.errors import InputError
from medsegai.request import Candidates
from MedSegAILib.scene import ENTROPY_REFERENCE, Scene
from MedSegAILib.scene.attachments import HEAT_REFERENCE
from MedSegAILib.scene.tidying import follow
from MedSegAILib.scene.uncertainty_colors import LOWEST
from MedSegAILib.uncertain_regions import HEAT, UNCERTAINTY
from scene_images import LEFT, PLACES, STEM, add_volume, result_for, two_blocks
from slice_pictures import SlicePicture


def composites(mrml: Any) -> list[Any]:
    nodes = [slicer.vtkMRMLSliceCompositeNode() for _ in range(2)]
    for node, name in zip(nodes, ("Red", "Green"), strict=True):
        node.SetLayoutName(name)
        mrml.AddNode(node)
    return nodes


def views_of_a_volume(mrml: Any, place: str) -> tuple[Any, Any, Any]:
    """The views Red and Green, and a volume in the foreground of Red with an opacity of a quarter."""
    mrml.RegisterNodeClass(slicer.vtkMRMLColorLegendDisplayNode())
    red, green = composites(mrml)
    volume = add_volume(mrml, PLACES[place])
    red.SetForegroundVolumeID(volume.GetID())
    red.SetForegroundOpacity(0.25)
    return red, green, volume


def test_uncertainty_is_laid_over_and_what_was_there_comes_back(mrml: Any) -> None:
    red, green, volume = views_of_a_volume(mrml, "LPS")
    scene = Scene(mrml)
    node = scene.write(volume, result_for(scene.read(volume), two_blocks(), entropy=True))
    entropy = node.GetNodeReference(ENTROPY_REFERENCE)
    for _ in range(2):
        scene.show_overlay(node, UNCERTAINTY)
        for view in (red, green):
            assert view.GetForegroundVolumeID() == entropy.GetID()
            assert view.GetForegroundOpacity() == 0.6
    legend = slicer.vtkSlicerColorLogic.GetColorLegendDisplayNode(entropy)
    assert legend.GetVisibility()
    scene.show_overlay(node, "")
    assert red.GetForegroundVolumeID() == volume.GetID()
    assert red.GetForegroundOpacity() == 0.25
    assert not green.GetForegroundVolumeID()
    assert not legend.GetVisibility()


def test_another_foreground_that_the_user_chose_meanwhile_stays(mrml: Any) -> None:
    red, _ = composites(mrml)
    volume = add_volume(mrml, PLACES["LPS"])
    scene = Scene(mrml)
    node = scene.write(volume, result_for(scene.read(volume), two_blocks(), entropy=True))
    scene.show_overlay(node, UNCERTAINTY)
    red.SetForegroundVolumeID(volume.GetID())
    scene.show_overlay(node, "")
    assert red.GetForegroundVolumeID() == volume.GetID()


def test_one_overlay_may_follow_another(mrml: Any) -> None:
    red, _ = composites(mrml)
    volume = add_volume(mrml, PLACES["LPS"])
    red.SetForegroundVolumeID(volume.GetID())
    scene = Scene(mrml)
    result = result_for(scene.read(volume), two_blocks(), entropy=True)
    first, second = scene.write(volume, result), scene.write(volume, result)
    scene.show_overlay(first, UNCERTAINTY)
    scene.show_overlay(second, UNCERTAINTY)
    assert red.GetForegroundVolumeID() == second.GetNodeReferenceID(ENTROPY_REFERENCE)
    scene.show_overlay(second, "")
    assert red.GetForegroundVolumeID() == volume.GetID()


def test_a_segmentation_that_is_deleted_gives_back_what_it_covered(mrml: Any) -> None:
    """And an unrelated one that is deleted meanwhile does not."""
    red, _green, volume = views_of_a_volume(mrml, "LPS")
    follow(mrml)
    scene = Scene(mrml)
    result = result_for(scene.read(volume), two_blocks(), entropy=True)
    shown, other = scene.write(volume, result), scene.write(volume, result)
    scene.show_overlay(shown, UNCERTAINTY)
    mrml.RemoveNode(other)
    assert scene.shown_overlay(shown) == UNCERTAINTY
    mrml.RemoveNode(shown)
    assert (red.GetForegroundVolumeID(), red.GetForegroundOpacity()) == (volume.GetID(), 0.25)


def test_nothing_of_the_map_before_stays_with_the_next_one(mrml: Any) -> None:
    _red, _green, volume = views_of_a_volume(mrml, "LPS")
    scene = Scene(mrml)
    result = result_for(scene.read(volume), two_blocks(), entropy=True)
    first, second = scene.write(volume, result), scene.write(volume, result)
    scene.show_overlay(first, UNCERTAINTY)
    scene.show_overlay(second, UNCERTAINTY)
    entropy = first.GetNodeReference(ENTROPY_REFERENCE)
    assert not slicer.vtkSlicerColorLogic.GetColorLegendDisplayNode(entropy).GetVisibility()
    assert first.GetDisplayNode().GetVisibility2DFill()
    assert not second.GetDisplayNode().GetVisibility2DFill()


def test_what_has_left_the_scene_does_not_come_back(mrml: Any) -> None:
    red, _ = composites(mrml)
    volume, other = add_volume(mrml, PLACES["LPS"]), add_volume(mrml, PLACES["LPS"])
    red.SetForegroundVolumeID(other.GetID())
    scene = Scene(mrml)
    node = scene.write(volume, result_for(scene.read(volume), two_blocks(), entropy=True))
    scene.show_overlay(node, UNCERTAINTY)
    mrml.RemoveNode(other)
    scene.show_overlay(node, "")
    assert not red.GetForegroundVolumeID()


def test_a_heat_map_and_doubt_follow_each_other_as_opaque_as_the_user_likes(mrml: Any) -> None:
    red, green, volume = views_of_a_volume(mrml, "oblique")
    scene = Scene(mrml)
    result = result_for(scene.read(volume), two_blocks(), entropy=True)
    found = (result.labelmap.voxels > 0).astype(np.uint8)
    candidates = Candidates(found, 1 - found, np.full_like(found, 200), np.full_like(found, 55))
    provenance = {"models": [{"family": "patches"}]}
    node = scene.write(
        volume, dataclasses.replace(result, candidates=candidates, provenance=provenance)
    )
    assert scene.overlays(node) == (HEAT, UNCERTAINTY)
    maps = {HEAT: HEAT_REFERENCE, UNCERTAINTY: ENTROPY_REFERENCE}
    for kind, words in ((HEAT, "probability"), (UNCERTAINTY, "uncertainty"), (HEAT, "probability")):
        scene.show_overlay(node, kind)
        assert scene.shown_overlay(node) == kind
        shown = node.GetNodeReference(maps[kind])
        assert {view.GetForegroundVolumeID() for view in (red, green)} == {shown.GetID()}
        legends = {
            role: slicer.vtkSlicerColorLogic.GetColorLegendDisplayNode(node.GetNodeReference(role))
            for role in maps.values()
        }
        seen = [role for role, each in legends.items() if each and each.GetVisibility()]
        assert seen == [maps[kind]], "one legend, of what is shown"
        assert words in legends[maps[kind]].GetTitleText()
    scene.set_overlay_opacity(node, 0.9)
    assert red.GetForegroundOpacity() == green.GetForegroundOpacity() == 0.9
    scene.show_overlay(node, "")
    assert red.GetForegroundVolumeID() == volume.GetID()
    assert red.GetForegroundOpacity() == 0.25
    scene.set_overlay_opacity(node, 0.4)
    assert red.GetForegroundOpacity() == 0.25, "the user's own foreground is not the map"
    scene.show_overlay(node, UNCERTAINTY)
    assert red.GetForegroundOpacity() == scene.overlay_opacity(node) == 0.4


def test_without_uncertainty_the_way_to_it_is_said(mrml: Any) -> None:
    volume = add_volume(mrml, PLACES["LPS"])
    scene = Scene(mrml)
    node = scene.write(volume, result_for(scene.read(volume), two_blocks()))
    with pytest.raises(InputError, match=r"was not measured\. Run the model again"):
        scene.show_overlay(node, UNCERTAINTY)
    scene.show_overlay(node, "")


# --- as it is seen ---------------------------------------------------------------------------------

SURE, DOUBTFUL, TORN = 0.3, 0.5, 1.09
"""Entropy in nats of three quarters of the image; the fourth has none."""


@dataclasses.dataclass
class Seen:
    """A grey image of 40 x 40 mm with two segments, in a view of 400 x 400 pixels, and its doubt."""

    scene: Scene
    segmentation: Any
    picture: SlicePicture

    def at(self, x: int, y: int) -> tuple[int, ...]:
        """The colour at a place in mm from the middle to the left of the patient and to the front."""
        pixels = self.picture.pixels()
        return tuple(int(part) for part in pixels[200 - 10 * y, 200 + 10 * x])


@pytest.fixture
def seen(mrml: Any) -> Seen:
    mrml.RegisterNodeClass(slicer.vtkMRMLColorLegendDisplayNode())
    volume = mrml.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "Head")
    updateVolumeFromArray(volume, np.full((3, 40, 40), 100, np.int16))
    volume.SetOrigin(-19.5, -19.5, -1)
    volume.CreateDefaultDisplayNodes()
    grey = mrml.AddNewNodeByClass("vtkMRMLColorTableNode")
    grey.SetTypeToGrey()
    display = volume.GetDisplayNode()
    display.SetAndObserveColorNodeID(grey.GetID())
    display.AutoWindowLevelOff()
    display.SetWindowLevel(200, 100)
    scene = Scene(mrml)
    image = scene.read(volume)
    labelmap, entropy = np.zeros((3, 40, 40), np.uint16), np.zeros((3, 40, 40), np.float32)
    labelmap[:, 5:35, 5:35] = LEFT.value
    labelmap[:, 5:35, 20:35] = STEM.value
    entropy[:, :20, :20], entropy[:, :20, 20:], entropy[:, 20:, :20] = SURE, DOUBTFUL, TORN
    result = dataclasses.replace(result_for(image, labelmap), entropy=image.with_voxels(entropy))
    segmentation = scene.write(volume, result)
    picture = SlicePicture(mrml, (400, 400), 40)
    picture.logic.GetSliceCompositeNode().SetBackgroundVolumeID(volume.GetID())
    return Seen(scene, segmentation, picture)


def test_low_doubt_is_invisible_and_high_doubt_is_red(seen: Seen) -> None:
    filled = seen.at(10, -10)
    seen.scene.show_overlay(seen.segmentation, UNCERTAINTY)
    grey, sure = seen.at(-10, 10), seen.at(10, -10)
    assert len(set(grey)) == 1, "the image alone: segments are outlines now"
    assert sure == grey != filled
    red, green, blue = seen.at(-10, -10)
    assert red > green > blue, "yellow to orange"
    torn = seen.at(10, 10)
    assert torn[0] > 1.5 * max(torn[1:])
    assert torn[1] < green, "the more doubt, the less yellow"


def test_segments_are_outlines_while_the_map_shows_and_filled_after_it(seen: Seen) -> None:
    display = seen.segmentation.GetDisplayNode()
    before = seen.picture.pixels()
    seen.scene.show_overlay(seen.segmentation, UNCERTAINTY)
    seen.scene.show_overlay(seen.segmentation, UNCERTAINTY)
    assert not display.GetVisibility2DFill()
    assert display.GetVisibility2DOutline()
    seen.scene.show_overlay(seen.segmentation, "")
    np.testing.assert_array_equal(seen.picture.pixels(), before)
    display.SetVisibility2DFill(False)
    for shown in (True, False):
        seen.scene.show_overlay(seen.segmentation, UNCERTAINTY if shown else "")
    assert not display.GetVisibility2DFill(), "as the user had it"


def test_one_small_legend_says_low_and_high(seen: Seen, mrml: Any) -> None:
    other = slicer.vtkMRMLSliceNode()
    other.SetLayoutName("Green")
    other.SetName("Green")
    mrml.AddNode(other)
    seen.scene.show_overlay(seen.segmentation, UNCERTAINTY)
    entropy = seen.segmentation.GetNodeReference(ENTROPY_REFERENCE)
    legend = slicer.vtkSlicerColorLogic.GetColorLegendDisplayNode(entropy)
    assert legend.GetTitleText().split() == ["low", "uncertainty", "high"]
    assert legend.GetNumberOfLabels() == 0, "no number of nats"
    assert [legend.GetNthViewNodeID(0)] == list(legend.GetViewNodeIDs())
    assert mrml.GetNodeByID(legend.GetNthViewNodeID(0)).GetLayoutName() == "Red"
    with_legend = seen.picture.pixels()
    legend.SetVisibility(False)
    changed = (with_legend != seen.picture.pixels()).any(axis=2)
    assert 0.005 < changed.mean() < 0.05, "small"
    assert not changed[:350].any(), "at the lower edge"
    assert (with_legend[changed] == 255).all(axis=1).any(), "white letters"


def test_the_editor_can_take_away_what_the_page_showed(seen: Seen, mrml: Any) -> None:
    """What was there before is kept with the views."""
    before = seen.picture.pixels()
    seen.scene.show_overlay(seen.segmentation, UNCERTAINTY)
    other = Scene(mrml)
    assert other.shown_overlay(seen.segmentation) == UNCERTAINTY
    other.show_overlay(seen.segmentation, "")
    assert not seen.scene.shown_overlay(seen.segmentation)
    np.testing.assert_array_equal(seen.picture.pixels(), before)


def test_the_colours_are_no_litter(seen: Seen, mrml: Any, tmp_path: Path) -> None:
    for shown in (True, False, True):
        seen.scene.show_overlay(seen.segmentation, UNCERTAINTY if shown else "")
    entropy = seen.segmentation.GetNodeReference(ENTROPY_REFERENCE)
    table = entropy.GetScalarVolumeDisplayNode().GetColorNode()
    tables = [
        mrml.GetNthNodeByClass(number, "vtkMRMLColorTableNode")
        for number in range(mrml.GetNumberOfNodesByClass("vtkMRMLColorTableNode"))
    ]
    assert [each for each in tables if each.GetName() == table.GetName()] == [table]
    assert table.GetHideFromEditors()
    assert not table.GetSaveWithScene()
    display = entropy.GetScalarVolumeDisplayNode()
    assert display.GetLowerThreshold() == LOWEST
    assert display.GetUpperThreshold() > np.log(1000), "more than any model can be in doubt"
    assert display.GetWindowLevelMax() == pytest.approx(np.log(3))

"""Refining from the press of a button, and from a script, to the segments: a real worker, and real refinements."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import slicer

import pythonqt
from medsegai.errors import InputError, RequestError
from medsegai.refinements import title
from MedSegAILib.scene import ReviewState
from module_help import button, head, node_count, press, segment_voxels, until
from panel_help import find
from scene_images import paint

LEFT, STEM = 1, 2


@pytest.fixture
def page(module: Any) -> Iterator[Any]:
    page = module.MedSegAIWidget()
    yield page
    page.cleanup()


class Case:
    """A segmentation of a volume, and a speck far away from the structure that it is of."""

    def __init__(self, module: Any) -> None:
        self.volume = head()
        self.logic = module.MedSegAILogic()
        self.node = self.logic.segment(self.volume, "quick")
        self.ids = dict(zip((LEFT, STEM), self.node.GetSegmentation().GetSegmentIDs(), strict=True))
        self.clean = self.mask(LEFT)
        self.specked = self.clean.copy()
        self.specked[3, 0, 9] = True
        self.specked[3, 4, 0] = True
        paint(self.node, self.ids[LEFT], self.specked, self.volume)

    def mask(self, value: int) -> np.ndarray:
        return np.asarray(segment_voxels(self.node, value, self.volume)) != 0


@pytest.fixture
def case(module: Any) -> Case:
    return Case(module)


def message(page: Any) -> str:
    return str(find(page.parent, "refineMessage").text())


def choose(page: Any, case: Case, refinement: str = "islands") -> None:
    page.panel.results.choose(case.node)
    find(page.parent, "refinementSelector").setCurrentText(title(refinement))


# --- the panel -------------------------------------------------------------------------------------


def test_a_preview_becomes_the_segmentation(page: Any, case: Case) -> None:
    choose(page, case)
    choice = page.panel.refine.choice()
    assert (choice.segmentation, choice.image) == (case.node, case.volume), "it follows the result"
    press(page, "refinePreviewButton")
    assert button(page, "refineCancelButton").isEnabled()
    until(lambda: node_count() == 2)
    np.testing.assert_array_equal(case.mask(LEFT), case.specked)
    assert "This is a preview" in message(page)
    assert "Left hippocampus -2 +0 voxels" in message(page)
    press(page, "refineApplyButton")
    assert node_count() == 1
    np.testing.assert_array_equal(case.mask(LEFT), case.clean)
    assert "-2 +0 voxels (0.004 ml around R" in message(page)
    assert not button(page, "refineCancelButton").isEnabled()


def test_a_preview_can_be_taken_back_by_a_button_or_another_choice(page: Any, case: Case) -> None:
    choose(page, case)
    for take_away in (
        lambda: press(page, "refineCancelButton"),
        lambda: find(page.parent, "refineOption_keep").setValue(1),
    ):
        press(page, "refinePreviewButton")
        until(lambda: node_count() == 2)
        take_away()
        assert node_count() == 1
        np.testing.assert_array_equal(case.mask(LEFT), case.specked)


def test_apply_at_once_and_once_more(page: Any, case: Case) -> None:
    choose(page, case)
    press(page, "refineApplyButton")
    until(lambda: "-2 +0 voxels" in message(page))
    np.testing.assert_array_equal(case.mask(LEFT), case.clean)
    press(page, "refineApplyButton")
    until(lambda: message(page) == "The refinements did not find anything to change.")


def test_only_what_is_ticked_changes_and_completed_segments_never(page: Any, case: Case) -> None:
    choose(page, case)
    find(page.parent, "refineSegmentsSelector").setCurrentIndex(1)
    press(page, "refineApplyButton")
    assert "No segment is ticked" in message(page)
    shown = find(page.parent, "refineSegments")
    checked = pythonqt.QtCore.Qt.CheckState.Checked
    shown.item(1).setCheckState(checked)
    press(page, "refineApplyButton")
    until(lambda: message(page) == "The refinements did not find anything to change.")
    np.testing.assert_array_equal(case.mask(LEFT), case.specked)
    page.panel.results.review_chosen.emit((case.ids[LEFT],), "completed")
    page.enter()
    assert not shown.item(0).flags() & pythonqt.QtCore.Qt.ItemFlag.ItemIsEnabled
    find(page.parent, "refineSegmentsSelector").setCurrentIndex(0)
    press(page, "refineApplyButton")
    until(lambda: "review is completed: Left hippocampus" in message(page))
    np.testing.assert_array_equal(case.mask(LEFT), case.specked)


def test_overlap_is_told_at_once_and_nothing_runs(page: Any, case: Case, module: Any) -> None:
    case.node.GetSegmentation().AddEmptySegment("lesion", "Lesion")
    paint(case.node, "lesion", case.clean, case.volume)
    choose(page, case)
    jobs = len(module.queue().entries)
    press(page, "refinePreviewButton")
    assert "Left hippocampus and Lesion overlap" in message(page)
    assert len(module.queue().entries) == jobs


def test_a_refinement_can_be_stopped_and_the_page_works_on(page: Any, case: Case) -> None:
    rng = np.random.default_rng(0)
    noise = (rng.random((120, 130, 140)) < 0.5).astype(np.int16)
    volume = slicer.util.addVolumeFromArray(noise, np.eye(4), "Noise")
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "Noise segmentation")
    node.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    node.GetSegmentation().AddEmptySegment("noise", "Noise")
    paint(node, "noise", noise != 0, volume)
    page.panel.results.choose(node)
    find(page.parent, "refinementSelector").setCurrentText(title("smoothing"))
    find(page.parent, "refineOption_sigma_mm").setValue(8)
    press(page, "refineApplyButton")
    bar = find(page.parent, "progressBar")
    until(lambda: "Refining" in bar.format())
    press(page, "refineCancelButton")
    until(lambda: message(page).startswith("Stopped"))
    assert node.GetSegmentation().GetSegment("noise").GetName() == "Noise"
    choose(page, case)
    press(page, "refineApplyButton")
    until(lambda: "-2 +0 voxels" in message(page))


def test_the_scene_closes_while_a_preview_is_shown(page: Any, case: Case) -> None:
    choose(page, case)
    press(page, "refinePreviewButton")
    until(lambda: node_count() == 2)
    slicer.mrmlScene.Clear(0)
    assert page.panel.refine.choice().segmentation is None
    assert not button(page, "refineCancelButton").isEnabled()
    press(page, "refineApplyButton")
    assert "There is no segmentation" in message(page)


# --- a script --------------------------------------------------------------------------------------


def test_a_script_refines_and_is_told_what_changed(case: Case) -> None:
    events: list[float] = []
    found = case.logic.refine(
        case.node, "islands", progress=lambda event: events.append(event.fraction)
    )
    np.testing.assert_array_equal(case.mask(LEFT), case.clean)
    assert "Remove islands: 2 voxels changed" in found[0]
    assert events[-1] == 1.0
    assert case.logic.refine(case.node, "islands") == ()


def test_a_script_names_segments_by_name_or_by_id(case: Case) -> None:
    assert case.logic.refine(case.node, "islands", segments=["Brain-Stem"]) == ()
    np.testing.assert_array_equal(case.mask(LEFT), case.specked)
    assert case.logic.refine(case.node, ["holes", "islands:keep=1"], segments=[case.ids[LEFT]])
    np.testing.assert_array_equal(case.mask(LEFT), case.clean)


def test_a_script_is_told_what_it_did_wrong(case: Case, module: Any) -> None:
    for wrong, error, words in (
        ({"refinements": "polish"}, RequestError, "no refinement 'polish'"),
        ({"refinements": "islands:labels=1"}, RequestError, "Name the segments"),
        ({"segments": ["Nose"]}, InputError, "no longer has the segment Nose"),
        ({"segmentationNode": None}, InputError, "no segmentation"),
    ):
        values = {"segmentationNode": case.node, "refinements": "islands"} | wrong
        with pytest.raises(error, match=words):
            case.logic.refine(**values)
    assert len(module.queue().entries) == 1, "nothing was begun"


def test_a_script_can_stop_it(case: Case, module: Any) -> None:
    def stop(_event: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        case.logic.refine(case.node, ["smoothing:sigma_mm=20"] * 30, progress=stop)
    np.testing.assert_array_equal(case.mask(LEFT), case.specked)
    assert isinstance(module.queue().entries[-1].message, str)


def test_completed_segments_stay_and_it_is_said(case: Case) -> None:
    from MedSegAILib.scene import Scene

    Scene(slicer.mrmlScene).set_review_state(case.node, case.ids[STEM], ReviewState.COMPLETED)
    found = case.logic.refine(case.node, "islands")
    assert found[-1] == "Not changed, because their review is completed: Brain-Stem."

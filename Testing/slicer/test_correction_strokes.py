"""The effect AI correct on real MRML: where strokes land, and what they change."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from correction_help import (
    DOUBT,
    RIGHT,
    RIGHT_BOX,
    SHAPE,
    Bench,
    bench,
    box_mask,
    mask_of,
    paint_doubt,
)
from scene_images import MOVED


@pytest.mark.parametrize("moved", list(MOVED))
@pytest.mark.parametrize("place", ["LPS", "mirrored", "oblique", "oblique and swapped"])
def test_a_stroke_lands_on_the_voxels_under_the_mouse(
    place: str, moved: str, mrml: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    editing = bench(mrml, monkeypatch, place, moved)
    editing.panel.radiusBox.value = 0.3  # more than a pixel, less than a voxel
    for k in (3, 8):
        editing.show_slice(k)
        start, end = editing.at(9, 9, k), editing.at(14, 9, k)
        editing.mouse.stroke(start, end, keys=())
        painted = mask_of(editing.preview(), "inside")
        expected = np.zeros(SHAPE, bool)
        expected[k, 9, 9:15] = True
        np.testing.assert_array_equal(painted, expected)
        editing.mouse.type("x")


def test_a_brush_is_round_in_millimetres_and_stays_in_its_slice(
    mrml: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    editing = bench(mrml, monkeypatch, "oblique", "turned")
    editing.panel.radiusBox.value = 4.0
    middle = editing.at(13, 11, 8)
    editing.mouse.stroke(middle)
    painted = mask_of(editing.preview(), "inside")
    assert painted.any(axis=(1, 2)).nonzero()[0].tolist() == [8]
    for j in range(SHAPE[1]):
        for i in range(SHAPE[2]):
            distance = np.linalg.norm(editing.at(i, j, 8) - middle)
            if abs(distance - 4.0) > 0.3:  # a pixel of the view
                assert painted[8, j, i] == (distance < 4.0)


def test_a_slanted_slice_paints_the_voxels_that_it_cuts(editing: Bench) -> None:
    """A plane at 45 degrees between rows and planes of voxels."""
    diagonal = np.array([0.0, 1.0, 1.0]) / np.sqrt(2)
    editing.view.show_plane(editing.at(14, 10, 8), (1.0, 0.0, 0.0), diagonal)
    editing.panel.radiusBox.value = 3.0
    editing.mouse.stroke(editing.at(14, 10, 8))
    painted = mask_of(editing.preview(), "inside")
    k, j, _i = np.nonzero(painted)
    assert (np.abs((k - 8) - (j - 10)) <= 1).all()
    for step in range(-2, 3):
        assert painted[8 + step, 10 + step, 14]
    assert not painted[8, 13, 14]


def test_a_stroke_wins_what_the_ai_was_in_doubt_about(editing: Bench) -> None:
    before = editing.mask()
    paint_doubt(editing)
    assert "AI's probabilities" in editing.message
    np.testing.assert_array_equal(editing.mask(), before)  # only shown so far
    added = mask_of(editing.preview(), "added")
    assert added[DOUBT].sum() > 0.5 * box_mask(DOUBT).sum()
    assert not (added & ~box_mask(DOUBT)).any()
    assert not mask_of(editing.preview(), "removed").any()
    editing.panel.applyButton.click()
    np.testing.assert_array_equal(editing.mask(), before | added)
    np.testing.assert_array_equal(editing.mask(RIGHT), box_mask(RIGHT_BOX))


def test_without_an_ai_the_image_leads_and_it_is_said(
    mrml: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    editing = bench(mrml, monkeypatch, known=False)
    paint_doubt(editing)
    assert "image only" in editing.message
    added = mask_of(editing.preview(), "added")
    stroke = mask_of(editing.preview(), "inside")
    assert added[stroke].all()
    assert not (added & ~box_mask(DOUBT)).any()


def test_a_segment_that_the_user_made_goes_by_the_image(editing: Bench) -> None:
    own = editing.segmentation.GetSegmentation().AddEmptySegment("own", "Own")
    editing.logic.GetSegmentEditorNode().SetSelectedSegmentID(own)
    editing.panel.updateGUIFromMRML()
    paint_doubt(editing)
    assert "image only" in editing.message
    editing.panel.applyButton.click()
    assert mask_of(editing.segmentation, own).any()


@pytest.mark.parametrize("way", ["toggle", "Control"])
def test_an_outside_stroke_takes_away(way: str, editing: Bench) -> None:
    if way == "toggle":
        editing.panel.outsideButton.click()
    keys = () if way == "toggle" else ("Control",)
    editing.mouse.stroke(editing.at(6, 8, 8), editing.at(6, 12, 8), keys=keys)
    assert mask_of(editing.preview(), "outside").any()
    removed = mask_of(editing.preview(), "removed")
    assert removed.any()
    before = editing.mask()
    editing.panel.applyButton.click()
    np.testing.assert_array_equal(editing.mask(), before & ~removed)


def test_a_stroke_is_shown_while_it_is_painted(editing: Bench) -> None:
    editing.mouse.press(editing.at(14, 8, 8))
    first = mask_of(editing.preview(), "sketch").sum()
    editing.mouse.move(editing.at(14, 12, 8))
    painted = mask_of(editing.preview(), "sketch")
    assert painted.sum() > first > 0
    assert not mask_of(editing.preview(), "added").any()
    editing.mouse.release()
    assert mask_of(editing.preview(), "added").any()
    assert not mask_of(editing.preview(), "sketch").any()
    np.testing.assert_array_equal(mask_of(editing.preview(), "inside"), painted)


def test_the_last_stroke_can_be_taken_back(editing: Bench) -> None:
    paint_doubt(editing)
    one = mask_of(editing.preview(), "added")
    editing.mouse.stroke(editing.at(8, 17, 8))
    assert (mask_of(editing.preview(), "added") != one).any()
    editing.panel.takeBackButton.click()
    np.testing.assert_array_equal(mask_of(editing.preview(), "added"), one)
    editing.mouse.type("x")
    assert editing.preview() is None
    assert not editing.panel.applyButton.enabled


def test_a_longer_reach_changes_more(editing: Bench) -> None:
    editing.panel.reachBox.value = 1.0
    paint_doubt(editing)
    little = mask_of(editing.preview(), "added").sum()
    editing.panel.reachBox.value = 8.0
    assert mask_of(editing.preview(), "added").sum() > little

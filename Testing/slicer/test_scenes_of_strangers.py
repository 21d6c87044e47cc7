"""What a scene says of its segmentations is not trusted: damaged texts count as none, on the real page."""

from __future__ import annotations

import json
from typing import Any

import pytest
import slicer
from hypothesis import given, settings
from hypothesis import strategies as st

from MedSegAILib.controller.texts import verdict
from MedSegAILib.panel_values import StructureRow
from MedSegAILib.scene.measuring import models_of
from MedSegAILib.scene.nodes import stored_number
from MedSegAILib.scene.overlay import OPACITY, OPACITY_ATTRIBUTE
from MedSegAILib.scene.reports import REPORT_ATTRIBUTE, report_of
from MedSegAILib.scene.segments import LABEL_TAG, MEASURES_TAG
from module_help import head, model_called, node_count, press, structures, until

REPORTS = (
    "[" * 100_000,
    "{",
    "[]",
    '{"seconds": true}',
    '{"seconds": {"predict": "long"}}',
    '{"structures": [{}]}',
    '{"structures": [{"name": 3, "voxels": 0}]}',
    '{"warnings": [1, {}]}',
    '{"warnings": 5}',
    '{"provenance": []}',
    '{"provenance": {"refinements": [{"name": 5}]}}',
    '{"provenance": {"models": 5, "device": {}}}',
    '{"updated": 5, "refined": [7]}',
)


@pytest.fixture
def result(page: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    model_called(monkeypatch, "quick")
    page.panel.choose_input(head())
    press(page, "segmentButton")
    until(lambda: node_count() == 1)
    return page.controller.results.node


def show(page: Any, node: Any) -> None:
    page.controller.results.show(None)
    page.controller.scene_opened()
    page.enter()
    assert page.controller.results.node is node
    assert structures(page) == ["Left hippocampus", "Brain-Stem"]


def test_a_damaged_report_leaves_the_table_as_it_is(page: Any, result: Any) -> None:
    for text in REPORTS:
        result.SetAttribute(REPORT_ATTRIBUTE, text)
        show(page, result)


def test_damaged_numbers_of_segments_and_views_count_as_none(page: Any, result: Any) -> None:
    (name, *_others) = result.GetSegmentation().GetSegmentIDs()
    segment = result.GetSegmentation().GetSegment(name)
    for text in ("9" * 5000, "high", "nan", "-1e999", "²", "7" * 12, "3.5", ""):
        segment.SetTag(LABEL_TAG, text)
        segment.SetTag(MEASURES_TAG, f"iou={text};expected_dice={text};volume_cv=0.5")
        result.SetAttribute(OPACITY_ATTRIBUTE, text)
        show(page, result)
        assert page.controller.results._scene.overlay_opacity(result) == OPACITY
        assert page.controller.results._scene.label_value(result, name) is None


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_report_can_be_shown(data: st.DataObject) -> None:
    """A good report, of which one value, at any depth, is another one."""
    refinement = {"settings": {"name": "holes"}, "ml": 0.1, "voxels": 3}
    report: Any = {
        "structures": [{"name": "Stem", "voxels": 0, "value": 16}],
        "seconds": {"predict": 3.0},
        "warnings": ["Look at it."],
        "provenance": {"device": "cpu", "models": [{"id": "brain"}], "refinements": [refinement]},
        "refined": [refinement],
    }
    place, key = report, data.draw(st.sampled_from(sorted(report)))
    while isinstance(place[key], (dict, list)) and data.draw(st.booleans()):
        place = place[key]
        keys = sorted(place) if isinstance(place, dict) else range(len(place))
        key = data.draw(st.sampled_from(list(keys)))
    place[key] = data.draw(json_values)
    node = slicer.vtkMRMLSegmentationNode()
    node.SetAttribute(REPORT_ATTRIBUTE, json.dumps(report))
    rows = (StructureRow("a", "Stem", (1, 2, 3), 1.0),)
    assert "Stem" not in verdict(rows, report_of(node)).line
    assert all(isinstance(name, str) for name in models_of(node))


@given(st.text())
def test_any_text_becomes_a_number_within_the_limits_or_none(text: str) -> None:
    found = stored_number(text, 0, 1)
    assert found is None or 0 <= found <= 1

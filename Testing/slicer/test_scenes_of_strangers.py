"""What a scene says of its segmentations is not trusted: damaged texts count as none, on the real page."""

from __future__ import annotations

import itertools
import json
from typing import Any

import numpy as np
import pytest
import slicer
from hypothesis import given, settings
from hypothesis import strategies as st
from slicer.util import addVolumeFromArray

from correction_help import SHAPE, paint_doubt
from medsegai.models.refinement import Refinement
from MedSegAILib.controller.texts import verdict
from MedSegAILib.output_choice import OutputMode
from MedSegAILib.panel_values import StructureRow
from MedSegAILib.scene import statistics
from MedSegAILib.scene.attachments import (
    CANDIDATES_REFERENCE,
    ENTROPY_REFERENCE,
    KINDS,
    NAMES,
    remove_of,
)
from MedSegAILib.scene.measuring import models_of
from MedSegAILib.scene.nodes import stored_number
from MedSegAILib.scene.overlay import OPACITY, OPACITY_ATTRIBUTE
from MedSegAILib.scene.reports import REPORT_ATTRIBUTE, report_of
from MedSegAILib.scene.segments import LABEL_TAG, MEASURES_TAG
from MedSegAILib.scene.statistics import TABLE_REFERENCE
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


def others() -> list[Any]:
    """A node of another class than those that belong to segmentations, and volumes of other voxels."""
    four = np.full((4, 5, 10, 4), np.nan)
    return [
        slicer.mrmlScene.AddNewNodeByClass("vtkMRMLModelNode"),
        addVolumeFromArray(np.zeros((2, 2, 2), np.float32), None, "Small"),
        addVolumeFromArray(four, None, "Numbers", "vtkMRMLVectorVolumeNode"),
        addVolumeFromArray(four[..., :2], None, "Pairs", "vtkMRMLVectorVolumeNode"),
    ]


def test_a_reference_may_lead_anywhere(page: Any, result: Any) -> None:
    """The table, the walk, the map, statistics and AI correct's candidates do without it; nothing is deleted."""
    scene, nodes = page.controller.results._scene, others()
    for role, node in itertools.product([*KINDS, TABLE_REFERENCE], nodes):
        before = result.GetNodeReferenceID(role)
        result.SetNodeReferenceID(role, node.GetID())
        page.enter()
        press(page, "nextButton")
        scene.uncertain_regions(result)
        scene.candidates_of(result)
        scene.draft(result, [Refinement("holes")])
        statistics.table(slicer.mrmlScene, result, [])
        result.SetNodeReferenceID(role, before)
    assert all(map(slicer.mrmlScene.IsNodePresent, nodes))


def test_an_update_does_not_write_into_a_node_of_another_class(
    page: Any, module: Any, result: Any
) -> None:
    model, volume = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLModelNode"), page.panel.choice().node
    for role in NAMES:
        result.SetNodeReferenceID(role, model.GetID())
    page.panel.choose_output(OutputMode.UPDATE, result)
    volume.SetOrigin(1.0, 0.0, 0.0)  # so that each segment gets other voxels
    press(page, "segmentButton")
    until(lambda: not module.queue().busy)
    assert [str(entry.state) for entry in module.queue().entries] == ["done", "done"]
    assert result.GetNodeReference(ENTROPY_REFERENCE) is not model
    remove_of(slicer.mrmlScene, result)
    assert slicer.mrmlScene.IsNodePresent(model)


def test_ai_correct_does_without_candidates_of_other_numbers(editing: Any) -> None:
    """It uses the image alone, as for a segment that no AI made."""
    node = editing.segmentation.GetNodeReference(CANDIDATES_REFERENCE)
    strange = np.full((*SHAPE, 4), np.nan)
    for voxels in (strange, strange[..., :2]):
        slicer.util.updateVolumeFromArray(node, voxels)
        paint_doubt(editing)
        assert editing.tool.strokes == 1
        assert "Uses the image only" in editing.message
        editing.panel.onCancel()

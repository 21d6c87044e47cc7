"""Refinements within a job: after the model, with its candidates, told in warnings and report."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny_quicknat
from medsegai.engine import segment
from medsegai.errors import ModelError, RequestError
from medsegai.models.card import CARD_NAME, load_card
from medsegai.models.refinement import Refinement
from medsegai.refinements import Draft, apply_refinement, parse, title
from medsegai.request import SegmentationRequest, SegmentationResult
from medsegai.volume import Volume
from refinement_cases import ball_scan

TEXTS = ("islands:smallest_ml=0.5;connectivity=6", "smoothing:sigma_mm=2")


@pytest.fixture(scope="module")
def scan() -> Volume:
    return ball_scan()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_quicknat.write_model(folder)
    return folder


def run(model: Path, scan: Volume, **options: Any) -> SegmentationResult:
    fixed: dict[str, Any] = {"device": "cpu", "backend": "torch", "precision": "fp32"}
    return segment(SegmentationRequest((scan,), (str(model),), **fixed | options))


@pytest.fixture(scope="module")
def raw(model: Path, scan: Volume) -> SegmentationResult:
    return run(model, scan, candidates=True)


def test_a_job_refines_as_the_refinements_do_by_themselves(
    model: Path, scan: Volume, raw: SegmentationResult
) -> None:
    result = run(model, scan, refinements=TEXTS)
    expected, words, changes = raw.labelmap, [], []
    for text in TEXTS:
        draft = Draft(expected, raw.labels, scan, raw.candidates)
        refined = apply_refinement(draft, parse(text))
        words += refined.words(parse(text).name)
        changes.append(refined.to_dict(parse(text)))
        expected = expected.with_voxels(refined.labels)
    assert (expected.voxels != raw.labelmap.voxels).any()
    np.testing.assert_array_equal(result.labelmap.voxels, expected.voxels)
    titles = tuple(title(parse(text).name) for text in TEXTS)
    assert [word for word in result.warnings if word.startswith(titles)] == words
    told = json.loads(json.dumps(result.report()))["provenance"]["refinements"]
    assert told == json.loads(json.dumps(changes))
    assert result.candidates is None  # nobody asked for them
    counts = np.bincount(expected.voxels.ravel(), minlength=256)
    assert [item.voxels for item in result.structures] == [
        counts[item.label.value] for item in result.structures
    ]


def test_what_a_card_suggests_comes_first_and_can_be_left_out(
    model: Path, scan: Volume, raw: SegmentationResult, tmp_path: Path
) -> None:
    card = load_card(model)
    value = card.labels[0].value
    suggested = Refinement("islands", {"labels": [value], "keep": 1})
    folder = suggesting(model, tmp_path / "suggesting", suggested)
    told = run(folder, scan, refinements=TEXTS[1:]).refinements
    assert [item["settings"]["name"] for item in told] == ["islands", "smoothing"]
    plain = run(folder, scan, refine=False)
    np.testing.assert_array_equal(plain.labelmap.voxels, raw.labelmap.voxels)
    assert plain.refinements == ()


def test_what_a_card_suggests_is_told_in_one_line_and_warned_of_where_a_structure_is_gone(
    model: Path, scan: Volume, raw: SegmentationResult, tmp_path: Path
) -> None:
    labels = [label.value for label in raw.labels]
    folder = suggesting(
        model, tmp_path / "mild", Refinement("islands", {"labels": labels, "keep": 1})
    )
    result = run(folder, scan)
    (change,) = result.refinements
    assert result.refined() == f"Refined: islands ({change['ml']:.3g} ml changed)."
    assert not any("Remove islands" in text for text in result.warnings)
    lost = next(item.label for item in raw.structures if item.voxels)
    harsh = Refinement(
        "islands", {"labels": [lost.value], "smallest_ml": 1000.0, "spare_largest": False}
    )
    result = run(suggesting(model, tmp_path / "harsh", harsh), scan)
    (warning,) = (text for text in result.warnings if "Remove islands" in text)
    assert warning.startswith(f"Remove islands took away {lost.name}")


def suggesting(model: Path, folder: Path, suggested: Refinement) -> Path:
    folder.mkdir()
    for path in model.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    card = dataclasses.replace(load_card(folder), suggested_refinements=(suggested,))
    (folder / CARD_NAME).write_text(json.dumps(card.to_dict()))
    return folder


def test_mistakes_are_found_before_the_model_runs(
    model: Path, scan: Volume, tmp_path: Path
) -> None:
    with pytest.raises(RequestError, match="no refinement 'polish'"):
        run(model, scan, refinements=("polish",))
    with pytest.raises(RequestError, match="names label 77"):
        run(model, scan, refinements=("islands:labels=77",))
    folder = suggesting(model, tmp_path / "wrong", Refinement("islands", {"size": 3}))
    with pytest.raises(ModelError, match="suggests a refinement that cannot be"):
        run(folder, scan)

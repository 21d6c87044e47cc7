"""Which refinement helps, and that trying one is what the engine does."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from medsegai.engine import segment
from medsegai.evaluation import evaluate
from medsegai.evaluation.refining import (
    AS_PREDICTED,
    Table,
    as_suggested,
    best_of,
    for_labels,
    try_all,
    worth,
)
from medsegai.io import read_labelmap, read_volume
from medsegai.labels import Label
from medsegai.models.card import load_card
from medsegai.models.catalogue import BUNDLED_MODELS
from medsegai.models.refinement import Refinement
from medsegai.refinements import Draft, apply_refinement
from medsegai.request import SegmentationRequest
from medsegai.volume import Geometry, Volume

LABELS = (Label(1, "Large", (9, 9, 9)), Label(2, "Small", (9, 9, 8)))
RNG = np.random.default_rng(0)


def made(gain: float, large: float = 0.0, hd95: float = 0.0, noise: float = 0.002) -> list[Table]:
    """Ten cases; the refinement `tried` adds to Dice, more or less to that of Large, and to HD95."""
    tables = []
    for _ in range(10):
        before = np.stack([RNG.normal(0.8, 0.05, 2), RNG.normal(2, 0.2, 2), np.ones(2)], 1)
        after = before.copy()
        after[:, 0] += gain + RNG.normal(0, noise, 2)
        after[0, 0] += large
        after[:, 1] += hd95 + RNG.normal(0, 0.01, 2)
        tables.append({AS_PREDICTED: before, "tried": after, "nothing": before.copy()})
    return tables


def judged(tables: list[Table]) -> dict[str, str]:
    changed = [{"tried": 1.0, "nothing": 0.0}] * len(tables)
    return {item.name: item.reason for item in worth(tables, changed, LABELS)}


def test_what_helps_is_chosen() -> None:
    tables = made(0.01)
    found = worth(tables, [{"tried": 1.5, "nothing": 0.0}] * 10, LABELS)
    best = best_of(found)
    assert best is not None
    assert best.name == "tried"
    assert best.rose == 10
    assert best.fell == 0
    assert best.changed_ml == 1.5
    gains = [(item["tried"] - item[AS_PREDICTED])[:, 0].mean() for item in tables]
    interval = stats.ttest_1samp(gains, 0.0, alternative="greater").confidence_interval(0.95)
    assert best.gain == pytest.approx(np.mean(gains))
    assert best.gain_at_least == pytest.approx(interval.low)
    assert found[0].dice == pytest.approx(
        np.mean([item[AS_PREDICTED][:, 0].mean() for item in tables])
    )


@pytest.mark.parametrize(
    ("tables", "reason"),
    [
        (made(0.0), "Dice does not rise significantly"),
        (made(0.001, noise=0.02), "Dice does not rise significantly"),
        (made(0.02, large=-0.03), "Large loses 0.0"),
        (made(0.01, hd95=0.1), "HD95 rises"),
    ],
)
def test_what_does_not_help_is_not_chosen(tables: list[Table], reason: str) -> None:
    found = judged(tables)
    assert found["tried"].startswith(reason)
    assert found["nothing"] == "changes no Dice"
    assert best_of(worth(tables, [{"tried": 1.0, "nothing": 0.0}] * 10, LABELS)) is None


def test_structures_that_are_nowhere_do_not_count() -> None:
    tables = made(0.01)
    for item in tables:
        for values in item.values():
            values[1] = np.nan
    assert judged(tables)["tried"] == ""


def test_one_case_proves_nothing() -> None:
    assert judged(made(0.5)[:1])["tried"] == "Dice does not rise significantly"


def test_trying_is_what_the_engine_does(shared_data: Path) -> None:
    dataset = shared_data / "Dataset004_Hippocampus"
    image = dataset / "imagesTr" / "hippocampus_035_0000.nii.gz"
    reference = read_labelmap(dataset / "labelsTr" / "hippocampus_035.nii.gz")[0]
    options = {"device": "cpu", "mirroring": False, "refine": False}
    plain = segment(SegmentationRequest((image,), ("hippocampus",), candidates=True, **options))
    draft = Draft(plain.labelmap, plain.labels, read_volume(image), plain.candidates)
    steps: list[float] = []
    rows = ("snap", "islands")
    table, changed = try_all(draft, reference, plain.labels, rows, steps.append)
    asked = SegmentationRequest((image,), ("hippocampus",), refinements=("snap",), **options)
    result = segment(asked)
    found = evaluate(result.labelmap, reference, plain.labels)
    assert (result.labelmap.voxels != plain.labelmap.voxels).any()
    np.testing.assert_array_equal(table["snap"][:, 0], [item.dice for item in found])
    np.testing.assert_array_equal(table["snap"][:, 1], [item.hd95_mm for item in found])
    np.testing.assert_array_equal(table["islands"], table[AS_PREDICTED])
    assert changed["snap"] > changed["islands"] == 0.0
    assert steps == sorted(steps)
    assert {0.0, 0.5, 1.0} <= {*steps}
    assert len(steps) >= 2 * len(rows) + 2 * len(plain.labels), "each structure can be stopped"


def test_what_a_card_suggests_already_is_done_first() -> None:
    card = load_card(BUNDLED_MODELS / "hippocampus")
    voxels = np.zeros((12, 12, 12), np.uint8)
    voxels[2:6, 2:6, 2:6] = 1
    voxels[9, 9, 9] = 1
    grid = Geometry.from_spacing(voxels.shape, (1.0, 1.0, 1.0))
    draft = Draft(Volume(voxels, grid), card.labels)
    suggested = (Refinement("largest_component"),)
    suggesting = dataclasses.replace(card, suggested_refinements=suggested)
    found = as_suggested(draft, suggesting).labelmap.voxels
    assert found[9, 9, 9] == 0
    assert found[3, 3, 3] == 1
    settings = for_labels("largest_component", card.labels)
    assert (apply_refinement(draft, settings).labels == found).all()

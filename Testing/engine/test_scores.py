"""Which measure tells quality, what it lets expect, and what its limits catch."""

import math
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from medsegai.evaluation.scores import (
    Scored,
    choose_score,
    correlation,
    cross_fitted_flags,
    expectations,
    judge,
)
from medsegai.models.quality import POOR_DICE, Expected

STRUCTURES = {1: 0.9, 2: 0.7, 3: 0.5}


def made(strength: float, cases: int = 60, seed: int = 0) -> list[Scored]:
    """Dice around the mean of each structure; `iou` follows it within structures as far as `strength` says."""
    rng = np.random.default_rng(seed)
    rows = []
    for case in range(cases):
        for value, mean in STRUCTURES.items():
            below, noise, other = rng.normal(0, 0.04, 3)
            measures = {
                "iou": mean - 0.2 + strength * below + (1 - strength) * noise,
                "volume_cv": 0.4 - mean / 3 + other,
                "mean_entropy": 0.5 - below,
            }
            rows.append(Scored(f"case {case}", value, mean + below, measures, case % 5))
    return rows


def test_structures_alone_make_no_score() -> None:
    rows = made(0.0)
    found = correlation(rows, "iou")
    assert found is not None
    assert found.pooled_pearson > 0.9
    assert abs(found.within_pearson) < 0.2
    assert choose_score(rows) == ""


def test_correlations_are_those_of_numpy() -> None:
    rows = made(0.7)
    found = correlation(rows, "iou")
    assert found is not None
    score, dice = (
        np.array([row.measures["iou"] for row in rows]).reshape(-1, 3),
        np.array([row.dice for row in rows]).reshape(-1, 3),
    )
    assert found.pooled_pearson == pytest.approx(np.corrcoef(score.ravel(), dice.ravel())[0, 1])
    inner = [(values - values.mean(0)).ravel() for values in (score, dice)]
    assert found.within_pearson == pytest.approx(np.corrcoef(*inner)[0, 1])
    ranks = [values.argsort().argsort() for values in inner]
    assert found.within_spearman == pytest.approx(np.corrcoef(*ranks)[0, 1])
    assert found.results == 180


def test_the_measure_that_tells_quality_within_structures_is_chosen() -> None:
    assert choose_score(made(0.7)) == "iou"


def test_a_measure_that_points_the_wrong_way_is_not_chosen() -> None:
    assert choose_score(made(-1.0)) == ""


def test_a_measure_that_depends_on_the_temperature_is_not_chosen() -> None:
    rows = made(0.0)
    found = correlation(rows, "mean_entropy")
    assert found is not None
    assert found.within_pearson == pytest.approx(-1.0)
    assert choose_score(rows) == ""


def test_results_without_a_score_or_a_dice_are_left_out() -> None:
    rows = made(0.7)
    odd = [
        Scored("odd", 1, math.nan, {"iou": 0.9}),
        Scored("odd", 2, 0.5, {"iou": math.nan}),
        Scored("odd", 3, 0.5, {}),
        Scored("odd", 9, 0.5, {"iou": 0.1}),
    ]
    found, alone = correlation([*rows, *odd], "iou"), correlation(rows, "iou")
    assert found == alone
    assert set(expectations([*rows, *odd], "iou")) == {1, 2, 3}
    assert correlation(odd, "iou") is None


def test_expectations_are_a_line_through_the_mean_and_a_tenth() -> None:
    rows = made(0.7)
    found = expectations(rows, "iou")
    own = [row for row in rows if row.value == 2]
    assert found[2].dice == pytest.approx(np.mean([row.dice for row in own]), abs=1e-5)
    assert found[2].score == pytest.approx(np.mean([row.measures["iou"] for row in own]), abs=1e-5)
    below = [row for row in own if row.measures["iou"] < found[2].limit]
    assert len(below) == 6
    inner = [
        (row.measures["iou"] - found[row.value].score, row.dice - found[row.value].dice)
        for row in rows
    ]
    slope = np.polyfit(*zip(*inner, strict=True), 1)[0]
    assert found[1].slope == found[3].slope == pytest.approx(slope, rel=1e-3)


def test_limits_of_bad_measures_lie_above() -> None:
    rows = made(0.7)
    found = expectations(rows, "mean_entropy")
    beyond = [row for row in rows if row.measures["mean_entropy"] > found[row.value].limit]
    assert len(beyond) == 18
    assert found[1].slope == pytest.approx(-1.0)


def test_what_is_expected_to_be_poor_is_flagged_within_the_limits_too() -> None:
    rows = made(0.9)
    known = expectations(rows, "iou")
    lenient = {value: replace(made_of, limit=0.0) for value, made_of in known.items()}
    flags = judge([(row, lenient[row.value]) for row in rows], "iou")
    expected = [
        known[row.value].dice
        + known[row.value].slope * (row.measures["iou"] - known[row.value].score)
        for row in rows
    ]
    assert flags.flagged == sum(dice < POOR_DICE for dice in expected) > 0


def test_a_good_score_catches_what_is_bad(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medsegai.models.quality.POOR_DICE", 0.0)  # the limits alone
    good, poor = (cross_fitted_flags(made(strength), "iou") for strength in (0.9, 0.0))
    assert good is not None
    assert poor is not None
    assert good.results == poor.results == 180
    assert good.bad == poor.bad == 18
    assert good.caught > 14 > 8 > poor.caught
    assert good.auc > 0.95 > 0.65 > poor.auc
    assert good.error < 0.02 < good.error_of_means == pytest.approx(0.032, abs=0.005)


def test_the_area_under_the_curve_is_that_of_scikit_learn() -> None:
    rows = made(0.5)
    made_of = expectations(rows, "iou")
    found = judge([(row, made_of[row.value]) for row in rows], "iou")
    below = np.array([row.dice - made_of[row.value].dice for row in rows])
    score = np.array([row.measures["iou"] - made_of[row.value].score for row in rows])
    assert found.auc == pytest.approx(roc_auc_score(below <= np.quantile(below, 0.1), -score))


def test_one_group_cannot_judge_itself() -> None:
    rows = [Scored(row.case, row.value, row.dice, row.measures) for row in made(0.9)]
    assert cross_fitted_flags(rows, "iou") is None


def test_expected_dice_stays_between_nothing_and_all() -> None:
    row = Scored("case", 1, 0.0, {"iou": -50.0})
    found = judge([(row, Expected(0.5, 0.5, 1.0, 0.4))], "iou")
    assert found.error == 0.0
    assert found.flagged == 1

"""Reliability and temperature, against scikit-learn and against temperatures that are known."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import expit, softmax
from sklearn.calibration import calibration_curve
from sklearn.metrics import log_loss

from medsegai.evaluation.calibration import (
    BINS,
    Decisions,
    box_with_margin,
    cross_fitted,
    decisions_of_classes,
    decisions_of_regions,
    drawn_numbers,
    fit_temperature,
    reliability,
)

RNG = np.random.default_rng(0)


def made(temperature: float, count: int = 40_000, classes: int = 5) -> Decisions:
    """Truth drawn from the softmax of logits; the model gives them multiplied by the temperature."""
    logits = RNG.normal(0, 1.5, (count, classes))
    honest = softmax(logits, 1)
    truth = (honest.cumsum(1) < RNG.uniform(size=(count, 1))).sum(1)
    return decisions_of_classes(softmax(temperature * logits, 1).T[1:], truth)


def test_bins_are_those_of_scikit_learn() -> None:
    decisions = made(1.7, 5000)
    values = decisions.probabilities
    right = values.argmax(1) == decisions.truth
    accuracy, confidence = calibration_curve(right, values.max(1), n_bins=BINS)
    found = reliability([(decisions, 1.0)])
    filled = np.array(found.counts) > 0
    assert filled.sum() == len(accuracy) > 8
    np.testing.assert_allclose(np.array(found.accuracy)[filled], accuracy, atol=1e-6)
    np.testing.assert_allclose(np.array(found.confidence)[filled], confidence, atol=1e-6)
    shares = np.array(found.counts)[filled] / len(right)
    assert found.error == pytest.approx((shares * abs(accuracy - confidence)).sum(), abs=1e-6)
    assert found.likelihood_loss == pytest.approx(
        log_loss(decisions.truth, values, labels=range(values.shape[1])), abs=1e-4
    )


def test_what_is_written_down_has_no_numbers_for_empty_bins() -> None:
    found = reliability([(Decisions(np.array([[0.1, 0.9]]), np.array([1])), 1.0)])
    bins = found.to_dict()["bins"]
    assert [item["decisions"] for item in bins] == [0] * 13 + [1] + [0]
    assert bins[0]["accuracy"] is None
    assert bins[13] == {"decisions": 1, "confidence": 0.9, "accuracy": 1.0}
    assert found.error == pytest.approx(0.1)


@pytest.mark.parametrize("temperature", [0.6, 1.0, 2.5])
def test_a_known_temperature_is_found(temperature: float) -> None:
    assert fit_temperature([made(temperature), made(temperature)]) == pytest.approx(
        temperature, rel=0.03
    )


def test_a_known_temperature_of_regions_is_found() -> None:
    logits = RNG.normal(0, 2, (3, 40_000))
    truth = RNG.uniform(size=logits.shape) < expit(logits)
    decisions = decisions_of_regions(expit(1.8 * logits), truth)
    assert decisions.probabilities.shape == (120_000, 2)
    assert fit_temperature([decisions]) == pytest.approx(1.8, rel=0.03)
    assert reliability([(decisions, 1.8)]).error < 0.01 < reliability([(decisions, 1.0)]).error


def test_calibrated_probabilities_are_right_as_often_as_they_say_and_decide_the_same() -> None:
    decisions = made(2.5)
    before, after = (reliability([(decisions, t)]) for t in (1.0, 2.5))
    assert after.error < 0.01 < 0.1 < before.error
    assert after.likelihood_loss < before.likelihood_loss
    shares = [np.dot(np.nan_to_num(item.accuracy), item.counts) for item in (before, after)]
    assert shares[0] == pytest.approx(shares[1])


def test_each_case_is_judged_by_the_temperature_of_the_others() -> None:
    cases = [made(0.7), made(0.7), made(2.0)]
    found = cross_fitted(cases, [0, 0, 1])
    assert found[:2] == pytest.approx([2.0, 2.0], rel=0.03)
    assert found[2] == pytest.approx(0.7, rel=0.03)
    together = fit_temperature(cases)
    assert cross_fitted(cases, [0, 0, 0]) == [together] * 3


def test_what_float16_cannot_hold_is_not_impossible() -> None:
    values = np.array([[1.0, 1e-6], [0.0, 0.0]], np.float16)
    classes = decisions_of_classes(values, np.array([0, 2]))
    regions = decisions_of_regions(values, np.array([[False, True], [False, True]]))
    assert classes.probabilities[0, 0] == pytest.approx(2**-12, rel=1e-3)
    assert regions.probabilities[0, 0] == pytest.approx(2**-12, rel=1e-3)
    np.testing.assert_allclose(classes.probabilities.sum(1), 1.0, rtol=1e-6)
    assert classes.probabilities[1, 1] == pytest.approx(1e-6, rel=0.1)
    for decisions in (classes, regions):
        assert math.isfinite(reliability([(decisions, 1.0)]).likelihood_loss)


def test_nothing_to_fit_is_an_error() -> None:
    nothing = Decisions(np.zeros((0, 2)), np.zeros(0, int))
    with pytest.raises(ValueError, match="no decisions"):
        fit_temperature([nothing])
    with pytest.raises(ValueError, match="no decisions"):
        reliability([(nothing, 1.0)])
    with pytest.raises(ValueError, match="do not fit"):
        Decisions(np.zeros((3, 2)), np.zeros(4, int))


def boxed(mask: NDArray[np.bool_], spacing: tuple[float, float, float]) -> list[tuple[int, int]]:
    cut = box_with_margin(mask, spacing, 5.0)
    return [(part.start, part.stop) for part in cut]


def test_the_box_has_its_margin_in_millimetres() -> None:
    mask = np.zeros((30, 40, 50), bool)
    mask[12:15, 20, 3] = True
    assert boxed(mask, (1.0, 2.0, 2.5)) == [(10, 17), (17, 24), (0, 9)]
    assert boxed(~mask & mask, (1.0, 1.0, 1.0)) == [(0, 35), (0, 45), (0, 55)]


def test_some_are_drawn_once_and_the_same_again() -> None:
    drawn = drawn_numbers(1000, 50, seed=3)
    assert len(set(drawn.tolist())) == 50
    assert (np.diff(drawn) > 0).all()
    assert (drawn_numbers(1000, 50, seed=3) == drawn).all()
    assert (drawn_numbers(1000, 50, seed=4) != drawn).any()
    assert drawn_numbers(7, 50, seed=3).tolist() == list(range(7))

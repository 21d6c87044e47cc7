"""Figures of classifiers beside scikit-learn's, intervals by simulation, and sets that have no figure."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from medsegai.errors import InputError, RequestError
from medsegai.evaluation import classification
from medsegai.evaluation.classification import (
    ClassifiedPictures,
    auc,
    classification_figures,
    roc_curve,
)


def judged(
    truth: np.ndarray, probabilities: np.ndarray, groups: list[str] | None = None
) -> ClassifiedPictures:
    names = tuple(f"{number}.png" for number in range(len(truth)))
    classes = tuple("abcd"[: probabilities.shape[1]])
    return ClassifiedPictures(classes, names, tuple(groups or names), truth, probabilities)


def made(count: int, classes: int = 2, seed: int = 1, apart: float = 1.0) -> ClassifiedPictures:
    """Probabilities that know the truth more or less."""
    random = np.random.default_rng(seed)
    truth = np.arange(count) % classes
    logits = random.normal(size=(count, classes)) + apart * np.eye(classes)[truth]
    values = np.exp(logits)
    return judged(truth, values / values.sum(1, keepdims=True))


@pytest.mark.parametrize("classes", [2, 3, 4])
def test_figures_are_those_of_scikit_learn(classes: int) -> None:
    item = made(120, classes)
    found = classification_figures(item)
    truth, decided = item.truth, item.decided
    assert found.accuracy.value == pytest.approx(metrics.accuracy_score(truth, decided))
    assert found.balanced_accuracy.value == pytest.approx(
        metrics.balanced_accuracy_score(truth, decided)
    )
    np.testing.assert_array_equal(found.confusion, metrics.confusion_matrix(truth, decided))
    score = item.probabilities[:, 1] if classes == 2 else item.probabilities
    assert found.auc.value == pytest.approx(metrics.roc_auc_score(truth, score, multi_class="ovr"))
    for interval in (found.accuracy, found.balanced_accuracy, found.auc):
        assert interval.low < interval.value < interval.high


@given(data=st.data(), count=st.integers(2, 40))
@settings(max_examples=60, deadline=None)
def test_area_and_curve_with_equal_scores(data: st.DataObject, count: int) -> None:
    """Scores of few values, so that many are equal, beside scikit-learn."""
    truth = np.array(
        [0, 1, *data.draw(st.lists(st.integers(0, 1), min_size=count, max_size=count))]
    )
    score = np.array(
        data.draw(
            st.lists(
                st.sampled_from([0.1, 0.2, 0.5, 0.9]), min_size=len(truth), max_size=len(truth)
            )
        )
    )
    area = auc(truth, np.stack([1 - score, score], 1))
    assert area == pytest.approx(metrics.roc_auc_score(truth, score))
    assert np.trapezoid(*roc_curve(truth, score)[::-1]) == pytest.approx(area)


@given(seed=st.integers(0, 50), specificity=st.sampled_from([0.5, 0.8, 0.9, 0.95]))
@settings(max_examples=30, deadline=None)
@mock.patch.object(classification, "RESAMPLES", 20)  # the interval is not looked at
def test_sensitivity_is_the_best_that_keeps_the_specificity(seed: int, specificity: float) -> None:
    item = made(60, seed=seed)
    found = classification_figures(item, specificity)
    score = item.probabilities[:, 1]
    negative = score[item.truth == 0]
    assert (negative <= found.threshold).mean() >= specificity
    false, true, _ = metrics.roc_curve(item.truth, score, drop_intermediate=False)
    best = max(t for f, t in zip(false, true, strict=True) if 1 - f >= specificity - 1e-12)
    assert found.sensitivity.value == pytest.approx(best)


def test_intervals_hold_the_truth_about_as_often_as_they_say(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The AUC of normals one apart is known: Phi(1 / sqrt 2)."""
    monkeypatch.setattr(classification, "RESAMPLES", 200)
    true_area, hits = 0.5 * (1 + math.erf(0.5)), 0
    for seed in range(60):
        random = np.random.default_rng(seed)
        truth = np.arange(80) % 2
        score = random.normal(size=80) + truth
        values = 1 / (1 + np.exp(-score))
        found = classification_figures(judged(truth, np.stack([1 - values, values], 1)))
        hits += found.auc.low <= true_area <= found.auc.high
    assert hits >= 50


def test_pictures_of_one_patient_widen_the_interval() -> None:
    """Ten copies of each picture tell no more than one."""
    item = made(30)
    copies = judged(
        np.repeat(item.truth, 10),
        np.repeat(item.probabilities, 10, axis=0),
        [str(n // 10) for n in range(300)],
    )
    alone = classification_figures(judged(copies.truth, copies.probabilities))
    together = classification_figures(copies)
    assert together.patients == 30
    once = classification_figures(item).auc
    assert together.auc.high - together.auc.low == pytest.approx(once.high - once.low, rel=0.25)
    assert together.auc.high - together.auc.low > 2 * (alone.auc.high - alone.auc.low)


def test_one_class_alone_has_no_area() -> None:
    found = classification_figures(judged(np.zeros(4, int), np.tile([0.9, 0.1], (4, 1))))
    assert math.isnan(found.auc.value)
    assert found.to_dict()["auc"] == {"value": None, "low": None, "high": None}
    assert "AUC                             –" in found.table()


def test_table_and_files(tmp_path: Path) -> None:
    item = made(20)
    found = classification_figures(item)
    assert f"Accuracy                        {found.accuracy}" in found.table()
    assert "Sensitivity at specificity 0.9" in found.table()
    classification.write_figures(tmp_path / "a.json", found)
    assert json.loads((tmp_path / "a.json").read_text()) == found.to_dict()
    classification.write_classified(tmp_path / "a.csv", item)
    with (tmp_path / "a.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["decided"] for row in rows] == [item.classes[n] for n in item.decided]
    assert float(rows[3]["b"]) == pytest.approx(item.probabilities[3, 1], abs=1e-5)


def test_what_cannot_be_judged() -> None:
    with pytest.raises(RequestError, match="specificity"):
        classification_figures(made(10), 1.0)
    with pytest.raises(InputError, match="0 pictures"):
        judged(np.zeros(0, int), np.zeros((0, 2)))

"""The measure of agreement that best predicts the quality of a structure, and the limits for a review.

Without a reference, the Dice of a result is unknown. It tends to be low where members disagree; how reliable this
is, is measured on cases that the model has not seen (as in A. G. Roy et al., Bayesian QuickNAT, NeuroImage 195,
2019, 11-22). Small structures have a low Dice and a low agreement in every case, so that the correlation over all
structures is high even if a measure cannot distinguish a good case from a bad one. The correlation within
structures counts, which is that of the differences from each structure's own mean.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from medsegai.models.quality import SCORES, Expected

AT_ANY_TEMPERATURE = ("iou", "pairwise_dice", "volume_cv", "mutual_information")
"""The measures that a temperature does not change, so that a limit holds for results with and without one."""

WORST = 0.1
"""The share of the held-out results that count as bad, and that a limit flags."""

SIGNIFICANT = 0.05
LEAST_CASES = 5
"""The number of cases below which a structure does not have a limit or figures."""


@dataclass(frozen=True)
class Scored:
    """One structure in one case: the measures of agreement, and the true Dice.

    Attributes:
        case, value: the name of the case, and the label value.
        dice: the Dice with the reference.
        measures: the known measures by their names in `StructureMeasures`.
        group: number of the group; cases of the same group are never used to judge each other.
    """

    case: str
    value: int
    dice: float
    measures: Mapping[str, float]
    group: int = 0


@dataclass(frozen=True)
class Correlation:
    """The correlation of a measure with Dice; `within` is that of the differences from the structures' means."""

    pooled_pearson: float
    pooled_spearman: float
    within_pearson: float
    within_spearman: float
    within_p: float
    results: int

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {name: _plain(value) for name, value in vars(self).items()}


def measured(rows: Iterable[Scored], measure: str) -> list[Scored]:
    """The results with a known Dice and measure whose structure occurs in several cases."""
    known = [row for row in rows if _is_known(row.dice) and _is_known(row.measures.get(measure))]
    counts: dict[int, int] = {}
    for row in known:
        counts[row.value] = counts.get(row.value, 0) + 1
    return [row for row in known if counts[row.value] >= LEAST_CASES]


def correlation(rows: Iterable[Scored], measure: str) -> Correlation | None:
    """The correlation of a measure with Dice over all (case, structure); None if there are too few results."""
    known = measured(rows, measure)
    scores, dice = _columns(known, measure)
    own_scores, own_dice = _within(known, scores), _within(known, dice)
    if len(known) < LEAST_CASES or not (own_scores.any() and own_dice.any()):
        return None
    within = stats.pearsonr(own_scores, own_dice)
    return Correlation(
        float(stats.pearsonr(scores, dice).statistic),
        float(stats.spearmanr(scores, dice).statistic),
        float(within.statistic),
        float(stats.spearmanr(own_scores, own_dice).statistic),
        float(within.pvalue),
        len(known),
    )


def choose_score(rows: Sequence[Scored]) -> str:
    """The measure that best predicts quality within structures; "" if none does.

    Those that depend on the temperature are left out: see `AT_ANY_TEMPERATURE`.
    """
    best, name = 0.0, ""
    for measure in AT_ANY_TEMPERATURE:
        found = correlation(rows, measure)
        if found is not None and found.within_p < SIGNIFICANT:
            strength = found.within_pearson * _sign(measure)
            if strength > best:
                best, name = strength, measure
    return name


def expectations(rows: Iterable[Scored], measure: str) -> dict[int, Expected]:
    """The expected quality of each structure, by label value.

    All structures share one slope, because a line through a few cases of one structure would follow chance. The
    limit is the structure's own: the worst tenth of its scores lies beyond it.
    """
    known = measured(rows, measure)
    scores, dice = _columns(known, measure)
    slope = _slope(_within(known, scores), _within(known, dice))
    quantile = WORST if _sign(measure) > 0 else 1.0 - WORST
    values = np.array([row.value for row in known])
    return {
        int(value): Expected(
            dice=_rounded(dice[values == value].mean()),
            score=_rounded(scores[values == value].mean()),
            slope=_rounded(slope),
            limit=_rounded(np.quantile(scores[values == value], quantile)),
        )
        for value in np.unique(values)
    }


def _slope(scores: NDArray[np.floating], dice: NDArray[np.floating]) -> float:
    """The slope of a line through the origin."""
    spread = float(scores @ scores)
    return float(scores @ dice) / spread if spread else 0.0


@dataclass(frozen=True)
class Flags:
    """The bad results that limits find on cases from which the limits were not computed.

    Attributes:
        results: number of judged (case, structure).
        bad: number of bad results: the tenth whose Dice is farthest below the mean of its structure.
        flagged: number of results beyond the limit or with a poor expected Dice.
        caught: number of results that are both bad and flagged.
        auc: area under the ROC curve: the probability that a bad result has a worse score, relative to its
            structure, than one that is not bad.
        error: mean absolute difference of the expected and the true Dice.
        error_of_means: the same for the structure's mean Dice instead of the expected one, for comparison.
    """

    results: int
    bad: int
    flagged: int
    caught: int
    auc: float
    error: float
    error_of_means: float

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {name: _plain(value) for name, value in vars(self).items()}


def cross_fitted_flags(rows: Sequence[Scored], measure: str) -> Flags | None:
    """Judge each group of cases by the expectations from all other groups; None if there are fewer than two."""
    known = measured(rows, measure)
    groups = sorted({row.group for row in known})
    judged: list[tuple[Scored, Expected]] = []
    for group in groups if len(groups) > 1 else ():
        made = expectations([row for row in known if row.group != group], measure)
        judged += [
            (row, made[row.value]) for row in known if row.group == group and row.value in made
        ]
    return judge(judged, measure) if judged else None


def judge(judged: Sequence[tuple[Scored, Expected]], measure: str) -> Flags:
    """Compare the expected Dice of each result with its true Dice."""
    dice = np.array([row.dice for row, _ in judged])
    means = np.array([made.dice for _, made in judged])
    scored = [(made, row.measures[measure]) for row, made in judged]
    change = np.array([made.slope * (score - made.score) for made, score in scored])
    below = dice - means
    bad = below <= np.quantile(below, WORST)
    expected = np.array([made.dice_at(score) for made, score in scored])
    flagged = np.array([made.flags(score, measure) for made, score in scored])
    return Flags(
        results=len(judged),
        bad=int(bad.sum()),
        flagged=int(flagged.sum()),
        caught=int((bad & flagged).sum()),
        auc=_auc(change, bad),
        error=float(np.abs(expected - dice).mean()),
        error_of_means=float(np.abs(below).mean()),
    )


def _sign(measure: str) -> float:
    """1 if high values are good, -1 if they are bad."""
    _, high_is_bad = SCORES[measure]
    return -1.0 if high_is_bad else 1.0


def _auc(goodness: NDArray[np.floating], bad: NDArray[np.bool_]) -> float:
    """The area under the ROC curve, from the ranks (Mann and Whitney's U); ties count one half."""
    count = int(bad.sum())
    if count in (0, len(bad)):
        return math.nan
    ranks = stats.rankdata(-goodness)
    above = ranks[bad].sum() - count * (count + 1) / 2
    return float(above / (count * (len(bad) - count)))


def _columns(
    rows: Sequence[Scored], measure: str
) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    scores = np.array([row.measures[measure] for row in rows], np.float64)
    return scores, np.array([row.dice for row in rows], np.float64)


def _within(rows: Sequence[Scored], column: NDArray[np.floating]) -> NDArray[np.floating]:
    """The column minus the mean of its structure, row by row."""
    values = np.array([row.value for row in rows])
    result = column.copy()
    for value in np.unique(values):
        result[values == value] -= column[values == value].mean()
    return result


def _is_known(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _plain(value: float) -> float | None:
    if isinstance(value, int):
        return value
    return round(value, 5) if math.isfinite(value) else None


def _rounded(value: Any) -> float:
    return round(float(value), 5)

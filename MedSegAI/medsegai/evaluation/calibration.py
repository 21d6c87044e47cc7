"""How far probabilities can be believed, and at which temperature they can be believed best.

A model that says 0.9 should be right nine times in ten. Reliability compares how sure it was of what it decided
with how often it was right, on cases that it has not seen (C. Guo et al., On Calibration of Modern Neural
Networks, ICML 2017, arXiv 1706.04599). One number, the temperature, then makes all probabilities surer or less
sure: they become p^(1/T), normalised, which is the softmax of logits over T. Labels do not depend on it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

BINS = 15
"""Equal bins of the confidence from 0 to 1, as in the paper."""

SMALLEST = 2.0**-24
"""The least probability: what float16 has above 0. Smaller ones would let a single voxel decide alone."""

LOWEST, HIGHEST = 0.1, 10.0
"""Temperatures that are looked at."""

AT_ONCE = 1 << 22
"""Probabilities that are worked on together at most."""


@dataclass(frozen=True, eq=False)
class Decisions:
    """What a model decided, and what is true.

    Attributes:
        probabilities: of each class, (decision, class), summing to one; any float type.
        truth: which class is true, a whole number from 0, (decision).
    """

    probabilities: NDArray[Any]
    truth: NDArray[Any]

    def __post_init__(self) -> None:
        if self.probabilities.ndim != 2 or self.truth.shape != self.probabilities.shape[:1]:
            raise ValueError(
                f"{self.truth.shape} truths do not fit probabilities of shape {self.probabilities.shape}."
            )

    def parts(self) -> Iterable[tuple[NDArray[np.float32], NDArray[np.int64]]]:
        """Logarithms of the probabilities, and the truth, of some decisions after the others."""
        size = max(1, AT_ONCE // self.probabilities.shape[1])
        for start in range(0, len(self.truth), size):
            part = slice(start, start + size)
            values = np.maximum(self.probabilities[part].astype(np.float32), SMALLEST)
            yield np.log(values), self.truth[part].astype(int)


def decisions_of_classes(probabilities: NDArray[Any], truth: NDArray[Any]) -> Decisions:
    """One decision per voxel: which class it is.

    Args:
        probabilities: of all classes but the background, (class, voxel), such as a result has.
        truth: index of the true class, 0 the background, (voxel).
    """
    found = np.asarray(probabilities, np.float32)
    background = np.maximum(1.0 - found.sum(0), _least_rest(probabilities))
    values = np.concatenate([background[None], found]).T
    return Decisions(values / values.sum(1, keepdims=True), truth)


def decisions_of_regions(probabilities: NDArray[Any], truth: NDArray[Any]) -> Decisions:
    """One decision per voxel and region: whether the voxel is in it.

    Args:
        probabilities: of being in each region, (region, voxel).
        truth: whether it is, bool (region, voxel).
    """
    rest = _least_rest(probabilities)
    inside = np.clip(np.asarray(probabilities, np.float32).ravel(), SMALLEST, 1.0 - rest)
    return Decisions(np.stack([1.0 - inside, inside], 1), truth.ravel().astype(np.uint8))


def _least_rest(probabilities: NDArray[Any]) -> float:
    """What may be missing to one unseen: half of the last step below 1 that the type of the values has."""
    return max(float(np.finfo(probabilities.dtype).epsneg) / 2, SMALLEST)


def box_with_margin(mask: NDArray[np.bool_], spacing_mm: Sequence[float], margin_mm: float) -> Any:
    """Slices (k, j, i) of the box around all of a mask, with a margin; of an empty mask everything.

    Far from what is to be found all is background, and every model knows it: a wide field of view would make any
    of them look well calibrated.

    Args:
        mask: (k, j, i).
        spacing_mm: along (i, j, k).
        margin_mm: on all sides.
    """
    box = []
    for axis, spacing in enumerate(reversed(spacing_mm)):
        others = tuple({0, 1, 2} - {axis})
        planes = np.flatnonzero(mask.any(axis=others))
        margin = math.ceil(margin_mm / spacing)
        first, last = (planes[0], planes[-1]) if len(planes) else (0, mask.shape[axis] - 1)
        box.append(slice(max(0, int(first) - margin), int(last) + 1 + margin))
    return tuple(box)


def drawn_numbers(count: int, wanted: int, seed: int) -> NDArray[np.int64]:
    """`wanted` of `count` numbers, in order and none twice, the same for the same seed; all, if there are less."""
    if count <= wanted:
        return np.arange(count)
    rng = np.random.default_rng(seed)
    return np.sort(rng.choice(count, wanted, replace=False, shuffle=False))


# reliability


@dataclass(frozen=True)
class Reliability:
    """How sure a model was, and how right; the lists have one entry per bin of confidence.

    Attributes:
        counts: decisions in each bin.
        confidence: mean probability of what was decided; NaN in an empty bin.
        accuracy: share that was right; NaN in an empty bin.
        error: expected calibration error, the mean of |accuracy - confidence| over all decisions.
        likelihood_loss: mean negative logarithm of the probability that the truth was given (NLL), in nats.
    """

    counts: tuple[int, ...]
    confidence: tuple[float, ...]
    accuracy: tuple[float, ...]
    error: float
    likelihood_loss: float

    @property
    def decisions(self) -> int:
        """How many decisions were counted."""
        return sum(self.counts)

    def to_dict(self) -> dict[str, Any]:
        """JSON values; an empty bin has none."""
        bins = [
            {
                "decisions": count,
                "confidence": None if not count else round(sure, 5),
                "accuracy": None if not count else round(right, 5),
            }
            for count, sure, right in zip(self.counts, self.confidence, self.accuracy, strict=True)
        ]
        return {
            "decisions": self.decisions,
            "expected_calibration_error": round(self.error, 5),
            "negative_log_likelihood": round(self.likelihood_loss, 5),
            "bins": bins,
        }


def reliability(cases: Iterable[tuple[Decisions, float]]) -> Reliability:
    """Compare confidence and accuracy of the decided class over all cases, each at a temperature of its own.

    Raises:
        ValueError: there is no decision.
    """
    counts, sure, right = (np.zeros(BINS) for _ in range(3))
    loss = 0.0
    for decisions, temperature in cases:
        for logs, truth in decisions.parts():
            scaled = _log_softmax(logs / np.float32(temperature))
            decided = scaled.argmax(1)
            confidence = np.exp(scaled.max(1).astype(np.float64))
            places = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
            counts += np.bincount(places, minlength=BINS)
            sure += np.bincount(places, confidence, BINS)
            right += np.bincount(places, decided == truth, BINS)
            loss -= float(scaled[np.arange(len(truth)), truth].sum(dtype=np.float64))
    if not counts.any():
        raise ValueError("There are no decisions to compare.")
    total = counts.sum()
    empty = np.full(BINS, np.nan)
    return Reliability(
        tuple(int(count) for count in counts),
        tuple(np.divide(sure, counts, out=empty.copy(), where=counts > 0).tolist()),
        tuple(np.divide(right, counts, out=empty.copy(), where=counts > 0).tolist()),
        float(np.abs(right - sure).sum() / total),
        float(loss / total),
    )


# temperature


def fit_temperature(cases: Sequence[Decisions]) -> float:
    """The temperature at which the truth is most likely, between `LOWEST` and `HIGHEST`.

    The loss is the mean negative logarithm of the true class's probability; as a function of 1/T it is convex, so
    it has one minimum. All decisions count alike.

    Raises:
        ValueError: there is no decision.
    """
    total = sum(len(decisions.truth) for decisions in cases)
    if not total:
        raise ValueError("There are no decisions to fit a temperature to.")

    def loss(log_temperature: float) -> float:
        inverse = np.float32(math.exp(-log_temperature))
        return sum(_loss(decisions, inverse) for decisions in cases) / total

    return math.exp(_minimum(loss, math.log(LOWEST), math.log(HIGHEST)))


def cross_fitted(cases: Sequence[Decisions], groups: Sequence[int]) -> list[float]:
    """For each case the temperature that the cases of other groups give; that of all, if there is one group."""
    found = {}
    for group in set(groups):
        others = [case for case, own in zip(cases, groups, strict=True) if own != group]
        found[group] = fit_temperature(others or list(cases))
    return [found[group] for group in groups]


def _minimum(loss: Callable[[float], float], low: float, high: float) -> float:
    found = optimize.minimize_scalar(
        loss, bounds=(low, high), method="bounded", options={"xatol": 1e-3}
    )
    return float(found.x)


def _loss(decisions: Decisions, inverse: np.float32) -> float:
    total = 0.0
    for logs, truth in decisions.parts():
        scaled = _log_softmax(logs * inverse)
        total -= float(scaled[np.arange(len(truth)), truth].sum(dtype=np.float64))
    return total


def _log_softmax(logs: NDArray[np.float32]) -> NDArray[np.float32]:
    logs = logs - logs.max(1, keepdims=True)
    normalised: NDArray[np.float32] = logs - np.log(np.exp(logs).sum(1, keepdims=True))
    return normalised

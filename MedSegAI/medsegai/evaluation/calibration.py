"""How reliable the probabilities of a model are, and the temperature at which they are most reliable.

A model that says 0.9 should be right nine times in ten. Reliability compares the confidence of its decisions
with the share of them that was right, on cases that it has not seen (C. Guo et al., On Calibration of Modern
Neural Networks, ICML 2017, arXiv 1706.04599). One number, the temperature T, then makes all probabilities more or
less confident: they become p^(1/T), normalised, which is the softmax of the logits divided by T. Labels do not
depend on it.
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
"""The number of equal bins of the confidence from 0 to 1, as in the paper."""

SMALLEST = 2.0**-24
"""The lower bound of a probability: the smallest float16 above 0, so that no single voxel decides the fit."""

LOWEST, HIGHEST = 0.1, 10.0
"""The range in which a temperature is searched."""

AT_ONCE = 1 << 22
"""The largest number of probabilities that are computed together, which bounds the memory."""


@dataclass(frozen=True, eq=False)
class Decisions:
    """The probabilities of decisions, and the true class of each.

    Attributes:
        probabilities: any float type, (decision, class); those of each decision sum to one.
        truth: index of the true class from 0, integer (decision).
    """

    probabilities: NDArray[np.floating]
    truth: NDArray[np.integer]

    def __post_init__(self) -> None:
        if self.probabilities.ndim != 2 or self.truth.shape != self.probabilities.shape[:1]:
            raise ValueError(
                f"{self.truth.shape} truths do not fit probabilities of shape {self.probabilities.shape}."
            )

    def parts(self) -> Iterable[tuple[NDArray[np.float32], NDArray[np.int64]]]:
        """Yield the logarithms of the probabilities and the true classes, part by part."""
        size = max(1, AT_ONCE // self.probabilities.shape[1])
        for start in range(0, len(self.truth), size):
            part = slice(start, start + size)
            values = np.maximum(self.probabilities[part].astype(np.float32), SMALLEST)
            yield np.log(values), self.truth[part].astype(int)


def decisions_of_classes(
    probabilities: NDArray[np.floating], truth: NDArray[np.integer]
) -> Decisions:
    """Make one decision per voxel: the class of the voxel.

    Args:
        probabilities: those of all classes except the background, float (class, voxel), as in a result.
        truth: index of the true class, integer (voxel); 0 is the background.
    """
    found = np.asarray(probabilities, np.float32)
    background = np.maximum(1.0 - found.sum(0), _least_rest(probabilities))
    values = np.concatenate([background[None], found]).T
    return Decisions(values / values.sum(1, keepdims=True), truth)


def decisions_of_regions(
    probabilities: NDArray[np.floating], truth: NDArray[np.bool_]
) -> Decisions:
    """Make one decision per voxel and region: whether the voxel is in the region.

    Args:
        probabilities: those of the voxel being in the region, float (region, voxel).
        truth: whether the voxel is in the region, bool (region, voxel).
    """
    rest = _least_rest(probabilities)
    inside = np.clip(np.asarray(probabilities, np.float32).ravel(), SMALLEST, 1.0 - rest)
    return Decisions(np.stack([1.0 - inside, inside], 1), truth.ravel().astype(np.uint8))


def _least_rest(probabilities: NDArray[np.floating]) -> float:
    """The rounding error of a probability near 1: half of the last step below 1 in the type of the values."""
    return max(float(np.finfo(probabilities.dtype).epsneg) / 2, SMALLEST)


def box_with_margin(mask: NDArray[np.bool_], spacing_mm: Sequence[float], margin_mm: float) -> Any:
    """The slices (k, j, i) of the box around a mask, with a margin; an empty mask gives the whole array.

    Far from the structures every voxel is background, and every model is right about it: a wide field of view
    would make any model look well calibrated.

    Args:
        mask: bool (k, j, i).
        spacing_mm: voxel spacing along (i, j, k).
        margin_mm: width of the margin on each side.
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
    """Draw `wanted` of the numbers below `count`, sorted and without repetition; all, if there are fewer.

    The same seed gives the same numbers.
    """
    if count <= wanted:
        return np.arange(count)
    rng = np.random.default_rng(seed)
    return np.sort(rng.choice(count, wanted, replace=False, shuffle=False))


# reliability


@dataclass(frozen=True)
class Reliability:
    """Confidence and accuracy of a model; the lists have one entry per bin of confidence.

    Attributes:
        counts: number of decisions in each bin.
        confidence: mean probability of the decided class; NaN in an empty bin.
        accuracy: share of the decisions that were right; NaN in an empty bin.
        error: expected calibration error, the mean of |accuracy - confidence| over all decisions.
        likelihood_loss: mean negative logarithm of the probability of the true class (NLL), in nats.
    """

    counts: tuple[int, ...]
    confidence: tuple[float, ...]
    accuracy: tuple[float, ...]
    error: float
    likelihood_loss: float

    @property
    def decisions(self) -> int:
        """The number of decisions."""
        return sum(self.counts)

    def to_dict(self) -> dict[str, Any]:
        """All figures as JSON values; those of an empty bin are None."""
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
    """Compare the confidence and the accuracy of the decisions of all cases, each at its own temperature.

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
    """Find the temperature between `LOWEST` and `HIGHEST` at which the true classes are most probable.

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
    """Fit a temperature for each case to the cases of the other groups; to all cases, if there is one group."""
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

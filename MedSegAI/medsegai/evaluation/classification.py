"""The quality of a picture classifier: accuracy, AUC with its interval, sensitivity, confusion and calibration.

The intervals come from a bootstrap over patients or slides, because pictures of one patient are not independent
(B. Efron & R. Tibshirani, "An Introduction to the Bootstrap", 1993).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from medsegai.errors import InputError, RequestError
from medsegai.evaluation.calibration import Decisions, Reliability, fit_temperature, reliability
from medsegai.io import atomic_path, write_table
from medsegai.io.picture_sets import PictureSet

RESAMPLES = 1000
"""The number of bootstrap resamples; 25 of them lie beyond each end of a 95 % interval."""

FEWER_RESAMPLES, MANY_PICTURES = 200, 10_000
"""The number of resamples for sets with more than `MANY_PICTURES` pictures, whose intervals are narrow."""

SPECIFICITY = 0.9
"""The default specificity at which the sensitivity is computed."""


@dataclass(frozen=True, eq=False)
class ClassifiedPictures:
    """Pictures with their true classes and the probabilities of a classifier.

    Attributes:
        classes: names of the classes, in the order of their numbers.
        names: names of the pictures.
        groups: name of the patient or slide of each picture.
        truth: number of the true class from 0, int64 (picture).
        probabilities: float64 (picture, class); those of each picture sum to one.
    """

    classes: tuple[str, ...]
    names: tuple[str, ...]
    groups: tuple[str, ...]
    truth: NDArray[np.int64]
    probabilities: NDArray[np.float64]

    @classmethod
    def of(
        cls, pictures: PictureSet, numbers: Sequence[int], probabilities: NDArray[np.float64]
    ) -> ClassifiedPictures:
        """Return the pictures of a set with these numbers; `probabilities` (picture, class) has the same order."""
        items = [pictures.pictures[number] for number in numbers]
        return cls(
            pictures.classes,
            tuple(item.name for item in items),
            tuple(item.group for item in items),
            pictures.labels[list(numbers)],
            probabilities,
        )

    def __post_init__(self) -> None:
        count = len(self.names)
        if self.probabilities.shape != (count, len(self.classes)) or not count:
            raise InputError(
                f"There are {count} pictures of {len(self.classes)} classes, and probabilities of shape "
                f"{self.probabilities.shape}."
            )

    @property
    def decided(self) -> NDArray[np.int64]:
        """The number of the most probable class of each picture, int64 (picture)."""
        return self.probabilities.argmax(1)

    def losses(self) -> NDArray[np.float64]:
        """The negative logarithm of the probability of the true class, float64 (picture).

        It is large for pictures that were misclassified with high confidence.
        """
        own = self.probabilities[np.arange(len(self.names)), self.truth]
        return -np.log(np.maximum(own, 1e-12))


@dataclass(frozen=True)
class Interval:
    """A figure and its 95 % interval; NaN where it is not defined."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        if math.isnan(self.value):
            return "–"
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


@dataclass(frozen=True, eq=False)
class ClassificationFigures:
    """All figures of an evaluation.

    Attributes:
        accuracy: share of the pictures whose most probable class is the true one.
        balanced_accuracy: mean over the classes of the share of their pictures that was found.
        auc: area under the ROC curve; with more than two classes, the mean of each class against all others.
        sensitivity: share of the positive pictures found at `specificity`; NaN with more than two classes.
        threshold: the probability above which a picture then counts as positive.
        confusion: number of pictures by true class (row) and decided class (column), int64 (class, class).
        calibration: confidence compared with accuracy.
        temperature: the temperature at which the probabilities would be most reliable.
        patients: number of patients or slides, which the intervals are computed over.
    """

    classes: tuple[str, ...]
    pictures: int
    patients: int
    accuracy: Interval
    balanced_accuracy: Interval
    auc: Interval
    specificity: float
    sensitivity: Interval
    threshold: float
    confusion: NDArray[np.int64]
    calibration: Reliability
    temperature: float

    def to_dict(self) -> dict[str, Any]:
        """All figures as JSON values; a figure that is not defined is None."""
        intervals = ("accuracy", "balanced_accuracy", "auc", "sensitivity")
        return {
            "classes": list(self.classes),
            "pictures": self.pictures,
            "patients": self.patients,
            **{name: _plain(asdict(getattr(self, name))) for name in intervals},
            "specificity": self.specificity,
            **_plain({"threshold": self.threshold}),
            "confusion": self.confusion.tolist(),
            "calibration": self.calibration.to_dict(),
            "temperature": round(self.temperature, 4),
        }

    def table(self) -> str:
        """The figures with their intervals and the confusion matrix, as text."""
        lines = [f"{name:<32}{text}" for name, text in self.rows()]
        width = max(10, *(len(name) + 2 for name in self.classes))
        head = "".join(name.rjust(width) for name in self.classes)
        lines += ["", f"{'true / decided':<18}{head}"]
        for name, row in zip(self.classes, self.confusion, strict=True):
            lines.append(f"{name:<18}" + "".join(str(count).rjust(width) for count in row))
        return "\n".join(lines)

    def rows(self) -> list[tuple[str, str]]:
        """The name and the formatted value of each figure."""
        found = [
            ("Pictures", f"{self.pictures} of {self.patients} patients or slides"),
            ("Accuracy", str(self.accuracy)),
            ("Balanced accuracy", str(self.balanced_accuracy)),
            ("AUC", str(self.auc)),
        ]
        if len(self.classes) == 2:
            found.append(
                (f"Sensitivity at specificity {self.specificity:g}", str(self.sensitivity))
            )
        calibration = f"{self.calibration.error:.3f}, best at temperature {self.temperature:.2f}"
        return [*found, ("Calibration error", calibration)]


def check_specificity(specificity: float) -> None:
    """Raise RequestError: the specificity is not between 0 and 1."""
    if not 0 < specificity < 1:
        raise RequestError(
            f"--specificity must be more than 0 and less than 1, not {specificity:g}."
        )


def classification_figures(
    judged: ClassifiedPictures, specificity: float = SPECIFICITY
) -> ClassificationFigures:
    """Compute all figures of a classifier.

    Args:
        judged: the true classes and the classifier's probabilities.
        specificity: share of the negative pictures that must be decided negative, above 0 and below 1.

    Raises:
        RequestError: the specificity is not between 0 and 1.
    """
    check_specificity(specificity)
    decisions = Decisions(judged.probabilities, judged.truth)
    count = len(judged.classes)
    confusion = np.zeros((count, count), np.int64)
    np.add.at(confusion, (judged.truth, judged.decided), 1)
    found = _intervals(judged, specificity)
    threshold = math.nan
    if count == 2:
        threshold = _threshold(judged.truth, judged.probabilities[:, 1], specificity)
    return ClassificationFigures(
        judged.classes,
        len(judged.names),
        len(set(judged.groups)),
        found["accuracy"],
        found["balanced"],
        found["auc"],
        specificity,
        found["sensitivity"],
        threshold,
        confusion,
        reliability([(decisions, 1.0)]),
        fit_temperature([decisions]),
    )


def auc(truth: NDArray[np.integer], probabilities: NDArray[np.float64]) -> float:
    """Area under the ROC curve; with more than two classes, the mean of each class against all others.

    Args:
        truth: number of the true class, integer (picture).
        probabilities: float64 (picture, class).

    Returns:
        The area from 0 to 1; NaN if a class has no pictures.
    """
    classes = [1] if probabilities.shape[1] == 2 else range(probabilities.shape[1])
    areas = [_area(truth == number, probabilities[:, number]) for number in classes]
    return float(np.mean(areas))


def _area(positive: NDArray[np.bool_], score: NDArray[np.float64]) -> float:
    """The share of pairs in which the positive picture has the higher score (Mann and Whitney's U)."""
    high, low = int(positive.sum()), int((~positive).sum())
    if not high or not low:
        return math.nan
    ranks = rankdata(score)
    return float((ranks[positive].sum() - high * (high + 1) / 2) / (high * low))


def sensitivity_at(
    truth: NDArray[np.integer | np.bool_], score: NDArray[np.float64], specificity: float
) -> float:
    """The sensitivity at the lowest threshold that has at least this specificity.

    Args:
        truth: whether a picture is positive, bool or 0 and 1 (picture).
        score: probability of the positive class, float64 (picture).
        specificity: share of the negative pictures that must be decided negative.

    Returns:
        The share of the positive pictures above that threshold; NaN if a class has no pictures.
    """
    positive = truth == 1
    if not positive.any() or positive.all():
        return math.nan
    return float((score[positive] > _threshold(truth, score, specificity)).mean())


def _threshold(
    truth: NDArray[np.integer | np.bool_], score: NDArray[np.float64], specificity: float
) -> float:
    """The lowest score that is at least as high as the share `specificity` of the negative scores."""
    negative = np.sort(score[truth != 1])
    if not len(negative):
        return math.nan
    return float(negative[max(math.ceil(specificity * len(negative) - 1e-9) - 1, 0)])


def roc_curve(
    truth: NDArray[np.integer | np.bool_], score: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The points of the ROC curve, from (0, 0) to (1, 1).

    Args:
        truth: whether a picture is positive, bool or 0 and 1 (picture).
        score: probability of the positive class, float64 (picture).

    Returns:
        The shares of the negative and of the positive pictures at or above each score, both float64 (score).
    """
    order = np.argsort(-score, kind="stable")
    # Scores that are equal count together.
    last = np.flatnonzero(np.diff(score[order], append=np.nan) != 0)
    positive = (truth[order] == 1).cumsum()[last]
    negative = last + 1 - positive
    shares = (values / max(values[-1], 1) for values in (negative, positive))
    false, true = (np.concatenate([[0.0], values]) for values in shares)
    return false, true


Figure = Callable[[NDArray[np.int64]], float]
"""A figure of the pictures with these numbers."""


def _intervals(judged: ClassifiedPictures, specificity: float) -> dict[str, Interval]:
    """Each figure with its interval from a bootstrap over patients or slides."""
    right, two = judged.decided == judged.truth, len(judged.classes) == 2

    def sensitivity(rows: NDArray[np.int64]) -> float:
        if not two:
            return math.nan
        return sensitivity_at(judged.truth[rows], judged.probabilities[rows, 1], specificity)

    figures: dict[str, Figure] = {
        "accuracy": lambda rows: float(right[rows].mean()),
        "balanced": lambda rows: _balanced(judged.truth[rows], right[rows]),
        "auc": lambda rows: auc(judged.truth[rows], judged.probabilities[rows]),
        "sensitivity": sensitivity,
    }
    every = np.arange(len(judged.names))
    drawn = list(_resamples(judged.groups))
    return {name: _interval(figure, every, drawn) for name, figure in figures.items()}


def _balanced(truth: NDArray[np.integer], right: NDArray[np.bool_]) -> float:
    """The mean over classes of the share that is decided rightly."""
    return float(np.mean([right[truth == number].mean() for number in np.unique(truth)]))


def _interval(
    figure: Figure, every: NDArray[np.int64], drawn: Iterable[NDArray[np.int64]]
) -> Interval:
    values = np.array([figure(rows) for rows in drawn])
    known = values[~np.isnan(values)]
    ends = np.percentile(known, [2.5, 97.5]) if len(known) else (math.nan, math.nan)
    return Interval(figure(every), float(ends[0]), float(ends[1]))


def _resamples(groups: Sequence[str]) -> Iterator[NDArray[np.int64]]:
    """Yield the numbers of the pictures of as many groups as there are, drawn with replacement."""
    random = np.random.default_rng(0)
    members: dict[str, list[int]] = {}
    for number, group in enumerate(groups):
        members.setdefault(group, []).append(number)
    rows = [np.array(item) for item in members.values()]
    alone = len(rows) == len(groups)
    for _ in range(RESAMPLES if len(groups) <= MANY_PICTURES else FEWER_RESAMPLES):
        drawn = random.integers(len(rows), size=len(rows))
        yield drawn if alone else np.concatenate([rows[number] for number in drawn])


def write_classified(path: Path | str, judged: ClassifiedPictures) -> None:
    """Write a CSV with a row for each picture: name, patient, true and decided class, and probabilities.

    Raises:
        OutputError: the file cannot be written.
    """
    columns = ("picture", "patient", "true", "decided", *judged.classes)
    write_table(path, columns, _rows(judged))


def _rows(judged: ClassifiedPictures) -> Iterator[dict[str, object]]:
    columns = (judged.names, judged.groups, judged.truth, judged.decided, judged.probabilities)
    for name, group, truth, decided, values in zip(*columns, strict=True):
        yield {
            "picture": name,
            "patient": group,
            "true": judged.classes[truth],
            "decided": judged.classes[decided],
            **{c: round(float(p), 6) for c, p in zip(judged.classes, values, strict=True)},
        }


def write_figures(path: Path | str, figures: ClassificationFigures) -> None:
    """Write `to_dict` as a JSON file. Raises OutputError if the file cannot be written."""
    text = json.dumps(figures.to_dict(), indent=1, allow_nan=False, ensure_ascii=False)
    with atomic_path(path) as partial:
        partial.write_text(text + "\n", encoding="utf-8")


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """Replace NaN by None, and round other numbers to six digits."""
    return {
        name: None if isinstance(value, float) and math.isnan(value) else round(value, 6)
        for name, value in values.items()
    }

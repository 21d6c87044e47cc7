"""The choice of the refinement that helps a model, made on cases that it has not seen."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from medsegai.errors import ModelError, RequestError
from medsegai.evaluation.measures import evaluate
from medsegai.labels import Label
from medsegai.models.card import ModelCard
from medsegai.models.refinement import Refinement
from medsegai.progress import Check, part_of
from medsegai.refinements import Draft, apply_refinement, parse
from medsegai.volume import Volume

ROWS = (
    "islands",
    "islands:keep=1",
    "holes",
    "smoothing",
    "snap",
    "level_set",
    "largest_component",
)
"""The refinements that are tried by default."""

AS_PREDICTED = "as predicted"
MEASURES = ("dice", "hd95_mm", "assd_mm")

CONFIDENCE = 0.95
MATERIAL = 0.001
"""The loss of mean Dice in a structure that rules a refinement out; smaller losses on a few cases are chance."""

Table = dict[str, NDArray[np.float64]]
"""The figures of one case for each row, (structure, measure); NaN where a structure has no figure."""


def for_labels(text: str, labels: Sequence[Label]) -> Refinement:
    """Read a refinement and apply it to all labels, as the engine does with a suggestion of a card.

    Raises:
        RequestError: the refinement or an option of it does not exist.
    """
    return _with_labels(parse(text), [label.value for label in labels])


def _with_labels(refinement: Refinement, values: Sequence[int]) -> Refinement:
    """The refinement restricted to these labels, unless it names its own."""
    return refinement.with_options(**{"labels": tuple(values), **refinement.options})


def as_suggested(
    draft: Draft, card: ModelCard, step: Callable[[float], None] = lambda part: None
) -> Draft:
    """Apply the refinements that the card suggests already.

    Raises:
        ModelError: the card suggests a refinement that does not exist.
    """
    for item in card.suggested_refinements:
        try:
            refined = apply_refinement(draft, _with_labels(item, card.label_values), step)
        except RequestError as error:
            raise ModelError(f"The card of {card.id} cannot be followed: {error}") from None
        labelmap = draft.labelmap.with_voxels(refined.labels)
        draft = Draft(labelmap, draft.labels, draft.image, draft.candidates)
    return draft


def try_all(
    draft: Draft,
    reference: Volume,
    labels: Sequence[Label],
    rows: Sequence[str],
    step: Callable[[float], None] = lambda part: None,
) -> tuple[Table, dict[str, float]]:
    """Compute the figures of one case as predicted and after each refinement, and the changed volume in ml.

    A structure that a refinement does not change keeps its figures without a new measurement.

    Args:
        draft: a prediction with all labels of the model.
        reference: the reference in the values of the model, on the same grid.
        labels: the labels that the reference has.
        rows: the refinements, in the notation of the command line.
        step: called with the finished share, from 0 to 1.
    """
    before = _figures(draft.labelmap, reference, labels, lambda: step(0.0))
    table, changed = {AS_PREDICTED: before}, {}
    for number, text in enumerate(rows):
        now = part_of(step, number, len(rows))
        refined = apply_refinement(draft, for_labels(text, draft.labels), now)
        touched = {change.label.value for change in refined.changes}
        places = [number for number, label in enumerate(labels) if label.value in touched]
        after = before.copy()
        if places:
            labelmap = draft.labelmap.with_voxels(refined.labels)
            after[places] = _figures(
                labelmap,
                reference,
                [labels[place] for place in places],
                functools.partial(now, 1.0),
            )
        table[text], changed[text] = after, refined.ml
    return table, changed


def _figures(
    labelmap: Volume, reference: Volume, labels: Sequence[Label], check: Check
) -> NDArray[np.float64]:
    found = evaluate(labelmap, reference, labels, check)
    return np.array([[getattr(item, name) for name in MEASURES] for item in found])


@dataclass(frozen=True)
class Worth:
    """The effect of a refinement over all cases.

    Attributes:
        name: the refinement, in the notation of the command line.
        dice, hd95_mm, assd_mm: mean over the cases of the mean over the structures.
        rose, fell: numbers of cases in which the mean Dice rose and fell.
        gain: mean change of the mean Dice.
        gain_at_least: lower bound of the gain at 95 % confidence over the cases.
        changed_ml: mean of the changed volume.
        reason: why the refinement does not help, in words; "" if it helps.
    """

    name: str
    dice: float
    hd95_mm: float
    assd_mm: float
    rose: int = 0
    fell: int = 0
    gain: float = 0.0
    gain_at_least: float = 0.0
    changed_ml: float = 0.0
    reason: str = ""

    @property
    def helps(self) -> bool:
        """Whether the refinement helps."""
        return not self.reason

    def to_dict(self) -> dict[str, Any]:
        """All figures as JSON values."""
        return {
            name: round(value, 5) if isinstance(value, float) else value
            for name, value in vars(self).items()
        }


def worth(
    tables: Sequence[Table], changed: Sequence[Mapping[str, float]], labels: Sequence[Label]
) -> list[Worth]:
    """Judge each row over all cases; the first entry of the result is the prediction without a refinement.

    A refinement helps if the mean Dice rises with 95 % confidence (one-sided, Student's t over the cases), no
    structure loses more than `MATERIAL` of its mean Dice, and the HD95 does not rise with the same confidence.
    """
    rows = [name for name in tables[0] if name != AS_PREDICTED]
    before = np.stack([table[AS_PREDICTED] for table in tables])
    return [
        _unjudged(AS_PREDICTED, before),
        *(_judged(name, before, tables, changed, labels) for name in rows),
    ]


def _judged(
    name: str,
    before: NDArray[np.float64],
    tables: Sequence[Table],
    changed: Sequence[Mapping[str, float]],
    labels: Sequence[Label],
) -> Worth:
    after = np.stack([table[name] for table in tables])
    gains = _by_case(after)[:, 0] - _by_case(before)[:, 0]
    return replace(
        _unjudged(name, after),
        rose=int((gains > 1e-6).sum()),
        fell=int((gains < -1e-6).sum()),
        gain=float(gains.mean()),
        gain_at_least=_at_least(gains),
        changed_ml=float(np.mean([item[name] for item in changed])),
        reason=_against(before, after, labels),
    )


def _unjudged(name: str, figures: NDArray[np.float64]) -> Worth:
    dice, hd95, assd = _means(figures)
    return Worth(name, dice, hd95, assd)


def best_of(rows: Sequence[Worth]) -> Worth | None:
    """The helpful refinement with the highest lower bound of the gain in Dice; None if none helps."""
    helping = [row for row in rows if row.name != AS_PREDICTED and row.helps]
    return max(helping, key=lambda row: row.gain_at_least, default=None)


def _against(
    before: NDArray[np.floating], after: NDArray[np.floating], labels: Sequence[Label]
) -> str:
    """The reason against a refinement, "" if there is none; both arrays are (case, structure, measure)."""
    gains = _by_case(after) - _by_case(before)
    if not (gains[:, 0] != 0).any():
        return "changes no Dice"
    if _at_least(gains[:, 0]) <= 0:
        return "Dice does not rise significantly"
    losses = _mean(before[:, :, 0] - after[:, :, 0], 0)
    worst = int(np.nanargmax(losses))
    if losses[worst] > MATERIAL:
        return f"{labels[worst].name} loses {losses[worst]:.3f}"
    if _at_least(gains[:, 1]) > 0:
        return "HD95 rises"
    return ""


def _at_least(values: NDArray[np.floating]) -> float:
    """The one-sided lower bound of the mean at 95 % confidence; minus infinity for a single case that is not 0."""
    values = values[np.isfinite(values)]
    if not values.any():
        return 0.0
    if len(values) < 2:
        return float("-inf")
    reach = stats.t.ppf(CONFIDENCE, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean() - reach)


def _means(figures: NDArray[np.floating]) -> list[float]:
    return [float(value) for value in _mean(_by_case(figures), 0)]


def _by_case(figures: NDArray[np.floating]) -> NDArray[np.floating]:
    """Mean over the structures: (case, structure, measure) becomes (case, measure)."""
    return _mean(figures, 1)


def _mean(figures: NDArray[np.floating], axis: int) -> NDArray[np.floating]:
    """The mean along `axis` of the values that are not NaN; NaN if there are none."""
    known = np.isfinite(figures)
    total, count = np.where(known, figures, 0.0).sum(axis), known.sum(axis)
    return np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)

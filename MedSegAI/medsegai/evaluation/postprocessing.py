"""The choice of the postprocessing that helps in cross-validation, by nnU-Net's rules.

First, the foreground as a whole is reduced to its largest component if the mean Dice rises and the Dice of no
structure falls; then each structure is, if its own Dice rises (MIC-DKFZ/nnUNet, `determine_postprocessing`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from medsegai.evaluation.crossval import Counts, Figures, Task, count
from medsegai.refinements.largest_component import keep_largest
from medsegai.volume import Volume

Groups = tuple[tuple[int, ...], ...]
"""Groups of label values, each of which is reduced to its largest component, one group after the other."""

Pairs = Callable[[], Iterable[tuple[str, Volume, Volume]]]
"""Iterates over the name, the prediction and the reference of all cases, from the start at each call."""


@dataclass(frozen=True)
class Decision:
    """The `groups` that help, and the figures after they were applied."""

    groups: Groups
    figures: Figures


def determine_postprocessing(pairs: Pairs, before: Figures) -> Decision:
    """Decide which groups of labels to reduce to their largest component.

    Args:
        pairs: all cases of the cross-validation.
        before: figures of the predictions without postprocessing.
    """
    task = before.task
    groups: Groups = ()
    whole = _figures(pairs, before, (task.values,))
    if whole.mean_dice() > before.mean_dice() and not _any_falls(whole, before):
        groups, before = (task.values,), whole
    if len(task.structures) == 1:
        return Decision(groups, before)
    trials = _one_by_one(pairs, before, groups) if task.regions else _at_once(pairs, before, groups)
    for values, after in trials:
        groups, before = (*groups, values), after
    return Decision(groups, before)


def _any_falls(after: Figures, before: Figures) -> bool:
    old = before.dice()
    return any(value < old[name] for name, value in after.dice().items())


def _one_by_one(
    pairs: Pairs, before: Figures, groups: Groups
) -> Iterator[tuple[tuple[int, ...], Figures]]:
    """Try each group on the result of the groups before it, because regions overlap."""
    for structure in before.task.structures:
        after = _figures(pairs, before, (*groups, structure.values))
        if after.dice()[structure.name] > before.dice()[structure.name]:
            groups, before = (*groups, structure.values), after
            yield structure.values, after


def _at_once(
    pairs: Pairs, before: Figures, groups: Groups
) -> Iterator[tuple[tuple[int, ...], Figures]]:
    """Try all groups in one pass over the cases, because labels do not overlap and so do not affect each other."""
    task = before.task
    single = tuple(structure.values for structure in task.structures)
    tried = _figures(pairs, before, (*groups, *single))
    for number, structure in enumerate(task.structures):
        if tried.dice()[structure.name] > before.dice()[structure.name]:
            before = _with_row(before, tried, number)
            yield structure.values, before


def _with_row(before: Figures, tried: Figures, number: int) -> Figures:
    """The figures `before` with the counts of one structure replaced by those of `tried`."""
    counts: dict[str, Counts] = {}
    for case, rows in before.counts.items():
        counts[case] = rows.copy()
        counts[case][number] = tried.counts[case][number]
    return Figures(before.name, before.task, counts)


def _figures(pairs: Pairs, before: Figures, groups: Sequence[Sequence[int]]) -> Figures:
    task: Task = before.task
    counts = {}
    for case, predicted, reference in pairs():
        voxels, removed = keep_largest(predicted.voxels, groups)
        counts[case] = (
            count(np.asarray(voxels), reference.voxels, task) if removed else before.counts[case]
        )
    return Figures(before.name, task, counts)

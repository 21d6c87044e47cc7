"""Remove small parts of each structure, or all but its largest, and reassign their voxels.

A removed voxel is assigned to the runner-up of its two candidates if these are known. If they are not, or if the
runner-up would be an island again, the part is assigned to the label, or the background, that touches it by the
most faces.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from medsegai.boxes import label_boxes
from medsegai.refinements import Draft, Refined, Step
from medsegai.refinements._components import CONNECTIVITY_WORDS, Components, Tick, components
from medsegai.refinements._freed import give_to_neighbours, give_to_runner_up
from medsegai.refinements._settings import labels_setting, setting

TITLE = "Remove islands"

ROUNDS = 4
"""The largest number of rounds. Voxels that were assigned to their runner-up can form new islands, which the next
round removes."""


@dataclass(frozen=True)
class Options:
    """Which parts go."""

    labels: tuple[int, ...] = labels_setting()
    smallest_ml: float = setting(
        0.05, "remove parts below this volume, in ml", (0.0, 1e6), title="Smallest part (ml)"
    )
    keep: int = setting(
        0,
        "keep only so many of the largest parts; 0 for any number",
        (0, 10_000),
        title="Parts to keep",
    )
    spare_largest: bool = setting(
        True,
        "never remove the largest part of a structure, however small it is",
        title="Spare the largest",
    )
    connectivity: str = setting(
        "26",
        "what touches: faces (6), also edges (18), also corners (26)",
        choices=CONNECTIVITY_WORDS,
        title="Parts touch by",
    )
    joined: bool = setting(
        False, "take all labels together for one structure", title="All as one structure"
    )


def apply(draft: Draft, options: Options, step: Step) -> Refined:
    labels = np.array(draft.labelmap.voxels, order="C")
    smallest = options.smallest_ml / draft.labelmap.geometry.voxel_volume_ml
    for number in range(ROUNDS):
        step(number / ROUNDS)
        places, parts = _islands(labels, options, smallest, partial(step, number / ROUNDS))
        if not len(places):
            break
        known = np.zeros(len(places), bool)
        if number == 0 and draft.candidates is not None:
            known = give_to_runner_up(labels, places, draft.candidates)
        give_to_neighbours(labels, places[~known], parts[~known])
    return Refined.of(draft, labels)


def _islands(
    labels: NDArray[np.integer], options: Options, smallest: float, tick: Tick
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The indices of all voxels to remove in the flat volume, and the number of the part of each."""
    named = np.array(options.labels or list(label_boxes(labels)), np.int64)
    if options.joined:
        labels, named = np.isin(labels, named).view(np.uint8), np.ones(1, np.int64)
    found = components(labels, named, options.connectivity, tick)
    return found.voxels(_to_remove(found, options, smallest))


def _to_remove(found: Components, options: Options, smallest: float) -> NDArray[np.bool_]:
    """Which parts are removed, bool (part); of equally large parts, the first counts as larger, as in nnU-Net."""
    order = np.lexsort((-found.size, found.value))
    value = found.value[order]
    first = np.searchsorted(value, value)  # where the parts of its label begin
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order)) - first
    removed = found.size < smallest - 1e-6
    if options.keep:
        removed |= rank >= options.keep
    if options.spare_largest:
        removed &= rank > 0
    return np.asarray(removed)

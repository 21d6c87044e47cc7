"""Remove small parts of each structure, or all but its largest, and give their voxels to what is likely there.

Connected components are found in a box around each structure. A removed voxel goes to the runner-up of its two
candidates where these are known. Where they are not, or where the runner-up would only be an island anew, the part
goes to the label, or the background, that touches it by most faces.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsegai.refinements import Draft, Refined, Step
from medsegai.refinements._boxes import (
    CONNECTIVITIES,
    Box,
    boxes,
    connected,
    flat_indices,
    mask_of,
    structures,
)
from medsegai.refinements._freed import give_to_neighbours, give_to_runner_up
from medsegai.refinements._settings import labels_setting, setting

ROUNDS = 4
"""Voxels that go to their runner-up can be islands there, or cut nothing off; the next round looks again."""


@dataclass(frozen=True)
class Options:
    """Which parts go."""

    labels: tuple[int, ...] = labels_setting()
    smallest_ml: float = setting(0.05, "remove parts below this volume, in ml", (0.0, 1e6))
    keep: int = setting(0, "keep only so many of the largest parts; 0 for any number", (0, 10_000))
    spare_largest: bool = setting(
        True, "never remove the largest part of a structure, however small it is"
    )
    connectivity: str = setting(
        "26", "what touches: faces (6), also edges (18), also corners (26)", choices=CONNECTIVITIES
    )
    joined: bool = setting(False, "take all labels together for one structure")


def apply(draft: Draft, options: Options, step: Step) -> Refined:
    labels = np.array(draft.labelmap.voxels, order="C")
    smallest = options.smallest_ml / draft.labelmap.geometry.voxel_volume_ml
    for number in range(ROUNDS):
        places, parts = _islands(labels, options, smallest, step if number == 0 else _quiet(step))
        if not len(places):
            break
        known = np.zeros(len(places), bool)
        if number == 0 and draft.candidates is not None:
            known = give_to_runner_up(labels, places, draft.candidates)
        give_to_neighbours(labels, places[~known], parts[~known])
    return Refined.of(draft, labels)


def _quiet(step: Step) -> Step:
    """Later rounds can be stopped, and add nothing to what is done."""
    return lambda part: step(1.0)


def _islands(
    labels: NDArray[Any], options: Options, smallest: float, step: Step
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Positions of all voxels to remove in the flat volume, and the number of the part of each."""
    found: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
    parts_before = 0
    named = structures(boxes(labels, options.labels), options.joined)
    for number, (values, box) in enumerate(named):
        step(number / len(named))
        places, parts = _islands_of(labels, values, box, options, smallest)
        found.append((places, parts + parts_before))
        parts_before += int(parts.max(initial=-1)) + 1
    nothing = np.zeros(0, np.int64)
    return (
        np.concatenate([places for places, _ in found] or [nothing]),
        np.concatenate([parts for _, parts in found] or [nothing]),
    )


def _islands_of(
    labels: NDArray[Any],
    values: tuple[int, ...],
    box: Box,
    options: Options,
    smallest: float,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    from scipy import ndimage

    mask = mask_of(labels[box], values)
    components, count = ndimage.label(mask, connected(options.connectivity))
    if count == 1 and options.spare_largest:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    sizes = np.bincount(components.reshape(-1), minlength=count + 1)[1:]
    removed = _to_remove(sizes, options, smallest)
    inside = np.r_[False, removed][components]
    parts = components[inside].astype(np.int64)
    return flat_indices(inside, box, labels.shape), parts


def _to_remove(sizes: NDArray[np.int64], options: Options, smallest: float) -> NDArray[np.bool_]:
    """Of equally large parts the first counts as larger, as in nnU-Net."""
    rank = np.empty(len(sizes), np.int64)
    rank[np.argsort(-sizes, kind="stable")] = np.arange(len(sizes))
    removed = sizes < smallest - 1e-6
    if options.keep:
        removed |= rank >= options.keep
    if options.spare_largest:
        removed &= rank > 0
    return np.asarray(removed)

"""Fill cavities of background inside structures.

A cavity is a part of the background that one structure encloses on all sides. Background that reaches the edge of
the volume is open and is not filled. A cavity that several structures enclose is filled only if they are joined:
then each voxel is assigned to the more probable structure, or to the one with the most contacts to the cavity.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from medsegai.boxes import label_boxes
from medsegai.refinements import Draft, Refined, Step
from medsegai.refinements._components import CONNECTIVITY_WORDS, Components, components
from medsegai.refinements._freed import contacts, give_to_neighbours, give_to_runner_up
from medsegai.refinements._settings import labels_setting, setting

TITLE = "Fill holes"

DUAL = {"6": "26", "18": "6", "26": "6"}
"""The connectivity of the background for each connectivity of structures: of two crossing lines, only one may be
unbroken."""


@dataclass(frozen=True)
class Options:
    """Which cavities are filled."""

    labels: tuple[int, ...] = labels_setting()
    largest_ml: float = setting(
        0.0,
        "fill cavities up to this volume, in ml; 0 for any volume",
        (0.0, 1e6),
        title="Largest hole (ml)",
    )
    connectivity: str = setting(
        "26",
        "how a wall holds together: by faces (6), also edges (18), also corners (26)",
        choices=CONNECTIVITY_WORDS,
        title="Walls hold by",
    )
    joined: bool = setting(
        False,
        "also fill what several of the labels enclose together",
        title="Also between structures",
    )


def apply(draft: Draft, options: Options, step: Step) -> Refined:
    labels = np.array(draft.labelmap.voxels, order="C")
    named = np.array(options.labels or list(label_boxes(labels)), np.int64)
    found = components(
        labels, np.zeros(1, np.int64), DUAL[options.connectivity], partial(step, 0.1)
    )
    step(0.7)
    places, parts = found.voxels(_closed(found, labels, options, draft))
    if len(places):
        part, touching = contacts(labels, places, parts)
        foreign = np.unique(part[~np.isin(touching, named)])
        if not options.joined:
            foreign = np.union1d(foreign, _of_several(part, touching))
        mine = ~np.isin(parts, foreign)
        _fill(labels, named, places[mine], parts[mine], draft)
    return Refined.of(draft, labels)


def _closed(
    found: Components, labels: NDArray[np.integer], options: Options, draft: Draft
) -> NDArray[np.bool_]:
    """Which parts of the background are small enough and do not reach the edge of the volume, bool (part)."""
    closed = np.ones(len(found.size), bool)
    ends = np.stack([found.start, found.start + found.length - 1])
    for index, size in zip(np.unravel_index(ends, labels.shape), labels.shape, strict=True):
        at_edge = ((index == 0) | (index == size - 1)).any(0)
        closed[found.number[at_edge]] = False
    if options.largest_ml:
        ml = found.size * draft.labelmap.geometry.voxel_volume_ml
        closed &= ml <= options.largest_ml + 1e-9
    return closed


def _of_several(part: NDArray[np.int64], touching: NDArray[np.int64]) -> NDArray[np.int64]:
    """The parts that more than one label touches."""
    pairs = np.unique(np.stack([part, touching]), axis=1)
    numbers, labels = np.unique(pairs[0], return_counts=True)
    return np.asarray(numbers[labels > 1])


def _fill(
    labels: NDArray[np.integer],
    named: NDArray[np.int64],
    places: NDArray[np.int64],
    parts: NDArray[np.int64],
    draft: Draft,
) -> None:
    """Fill cavities in place: with the more probable of several labels, else with the one of most contacts."""
    flat = labels.reshape(-1)
    if draft.candidates is not None:
        part, touching = contacts(labels, places, parts)
        several = np.isin(parts, _of_several(part, touching))
        chosen = places[several]
        known = give_to_runner_up(labels, chosen, draft.candidates) & np.isin(flat[chosen], named)
        flat[chosen[~known]] = 0
        waiting = flat[places] == 0
        places, parts = places[waiting], parts[waiting]
    if len(places):
        give_to_neighbours(labels, places, parts)

"""Fill cavities of the background inside of structures.

A cavity is background that one structure encloses on all sides. Background that reaches the edge of the volume
is open and stays, as does what several structures enclose, unless they are taken together: then each voxel goes to
the more probable of them, or to the one that touches the cavity most.
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
    structures,
)
from medsegai.refinements._freed import contacts, give_to_neighbours, give_to_runner_up
from medsegai.refinements._settings import labels_setting, setting

DUAL = {"6": "26", "18": "6", "26": "6"}
"""How background touches where a structure touches so: of two lines that cross, only one is unbroken."""


@dataclass(frozen=True)
class Options:
    """Which cavities are filled."""

    labels: tuple[int, ...] = labels_setting()
    largest_ml: float = setting(
        0.0, "fill cavities up to this volume, in ml; 0 for any volume", (0.0, 1e6)
    )
    connectivity: str = setting(
        "26",
        "how a wall holds together: by faces (6), also edges (18), also corners (26)",
        choices=CONNECTIVITIES,
    )
    joined: bool = setting(False, "also fill what several of the labels enclose together")


def apply(draft: Draft, options: Options, step: Step) -> Refined:
    labels = np.array(draft.labelmap.voxels, order="C")
    named = structures(boxes(labels, options.labels), options.joined)
    for number, (values, box) in enumerate(named):
        step(number / len(named))
        places, parts = _cavities(labels, box, options, draft.labelmap.geometry.voxel_volume_ml)
        if len(places):
            _fill(labels, values, places, parts, draft)
    return Refined.of(draft, labels)


def _cavities(
    labels: NDArray[Any], box: Box, options: Options, voxel_ml: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Background in the box that does not reach its faces: positions in the flat volume, and part of each."""
    from scipy import ndimage

    empty = labels[box] == 0
    components, count = ndimage.label(empty, connected(DUAL[options.connectivity]))
    sizes = np.bincount(components.reshape(-1), minlength=count + 1)
    closed = np.ones(count + 1, bool)
    closed[0] = False
    for axis in range(3):
        for end in (0, -1):
            closed[components.take(end, axis)] = False
    if options.largest_ml:
        closed &= sizes * voxel_ml <= options.largest_ml + 1e-9
    if not closed.any():
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    inside = closed[components]
    return flat_indices(inside, box, labels.shape), components[inside].astype(np.int64)


def _fill(
    labels: NDArray[Any],
    values: tuple[int, ...],
    places: NDArray[np.int64],
    parts: NDArray[np.int64],
    draft: Draft,
) -> None:
    """Fill, in place, the cavities that nothing but these labels encloses."""
    part, touching = contacts(labels, places, parts)
    foreign = np.unique(part[~np.isin(touching, values)])
    mine = ~np.isin(parts, foreign)
    places, parts = places[mine], parts[mine]
    if len(values) > 1 and draft.candidates is not None:
        flat, before = labels.reshape(-1), labels.reshape(-1)[places]
        known = give_to_runner_up(labels, places, draft.candidates)
        known &= np.isin(flat[places], values)
        flat[places[~known]] = before[~known]
        places, parts = places[~known], parts[~known]
    if len(places):
        give_to_neighbours(labels, places, parts)

"""Reassign voxels that a structure loses: to their runner-up, or to the neighbour with the most contacts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsegai.refinements import Draft
from medsegai.request import Candidates
from medsegai.volume import Box

Shape = tuple[int, ...]


def give_to_runner_up(
    labels: NDArray[np.integer], places: NDArray[np.int64], candidates: Candidates
) -> NDArray[np.bool_]:
    """Assign each voxel to the other one of its two candidates, in place.

    Args:
        labels: label values, contiguous (k, j, i).
        places: indices of the voxels in the flat volume.

    Returns:
        Which voxels were reassigned, bool (place): their label is one of the two candidates, and the probability
        of the other one is not 0.
    """
    flat = labels.reshape(-1)
    first, second, p_first, p_second = (
        array.reshape(-1)[places]
        for array in (candidates.first, candidates.second, candidates.p_first, candidates.p_second)
    )
    own = flat[places]
    known = (p_second > 0) & (p_first > 0) & (first != second) & ((own == first) | (own == second))
    flat[places[known]] = np.where(own == first, second, first)[known]
    return known


def give_to_neighbours(
    labels: NDArray[np.integer], places: NDArray[np.int64], parts: NDArray[np.int64]
) -> None:
    """Assign each part to the label, or the background, that touches it by the most faces, in place.

    A part that touches only other freed parts is assigned after them; a part that touches nothing becomes
    background.

    Args:
        labels: label values, contiguous (k, j, i).
        places: indices of the freed voxels in the flat volume, each once.
        parts: number of the part of each freed voxel.
    """
    flat = labels.reshape(-1)
    order = np.argsort(places)
    places, (_, parts) = places[order], np.unique(parts[order], return_inverse=True)
    waiting = np.ones(len(places), bool)
    while waiting.any():
        part, label = _contacts(flat, labels.shape, places, parts, waiting)
        if not len(part):
            flat[places[waiting]] = 0
            return
        given = _most_touching(part, label)
        target = np.full(int(parts.max()) + 1, -1, np.int64)
        target[given[0]] = given[1]
        ready = waiting & (target[parts] >= 0)
        flat[places[ready]] = target[parts[ready]].astype(flat.dtype)
        waiting &= ~ready


def give_away(
    labels: NDArray[np.integer], places: NDArray[np.int64], free: NDArray[np.integer]
) -> None:
    """Assign each voxel to the `free` label, other than its own, that touches it by the most faces, in place.

    A voxel that no such label touches keeps its label.
    """
    flat = labels.reshape(-1)
    places = np.sort(places)
    own = flat[places].astype(np.int64)
    waiting = np.ones(len(places), bool)
    parts = np.arange(len(places))
    while waiting.any():
        part, label = _contacts(flat, labels.shape, places, parts, waiting)
        taken = (label != own[part]) & np.isin(label, free)
        if not taken.any():
            return
        part, label = _most_touching(part[taken], label[taken])
        flat[places[part]] = label.astype(flat.dtype)
        waiting[part] = False


def restore_gone(draft: Draft, labels: NDArray[np.integer], found: Mapping[int, Box]) -> list[str]:
    """Restore structures that have lost all their voxels, in place.

    Args:
        draft: the labels before the refinement.
        labels: the labels after it, (k, j, i), which are changed.
        found: the boxes of the structures in the draft, by label value.

    Returns:
        A sentence that names the restored structures; an empty list if there are none.
    """
    before = draft.labelmap.voxels
    places = np.flatnonzero(before != labels)
    lost = set(np.unique(before.reshape(-1)[places]).tolist()) & set(found)
    lost -= set(np.unique(labels.reshape(-1)[places]).tolist())
    gone = sorted(value for value in lost if not (labels[found[value]] == value).any())
    for value in gone:
        labels[found[value]][before[found[value]] == value] = value
    names = ", ".join(draft.label(value).name for value in gone)
    return [f"Too small to be refined, and left as it was: {names}."] if names else []


def contacts(
    labels: NDArray[np.integer], places: NDArray[np.int64], parts: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The part and the neighbour's label of each face between one of `places` and a voxel outside of `places`."""
    order = np.argsort(places)
    waiting = np.ones(len(places), bool)
    return _contacts(labels.reshape(-1), labels.shape, places[order], parts[order], waiting)


def _contacts(
    flat: NDArray[Any],
    shape: Shape,
    places: NDArray[np.int64],
    parts: NDArray[np.int64],
    waiting: NDArray[np.bool_],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    asked, own = places[waiting], parts[waiting]
    found: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
    for inside, beside in neighbours(asked, shape):
        rank = np.minimum(np.searchsorted(asked, beside), len(asked) - 1)
        free = asked[rank] != beside
        found.append((own[inside][free], flat[beside[free]].astype(np.int64)))
    return np.concatenate([part for part, _ in found]), np.concatenate([to for _, to in found])


def neighbours(
    places: NDArray[np.int64], shape: Shape
) -> Iterator[tuple[NDArray[np.bool_], NDArray[np.int64]]]:
    """Yield, for each of the six directions, which places have a neighbour there, and its flat index."""
    ranks = np.unravel_index(places, shape)
    strides = (shape[1] * shape[2], shape[2], 1)
    for rank, size, stride in zip(ranks, shape, strides, strict=True):
        for inside, move in ((rank > 0, -stride), (rank < size - 1, stride)):
            yield inside, places[inside] + move


def _most_touching(
    part: NDArray[np.int64], label: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The label with the most faces of each part; of equal ones, the smallest that is not the background."""
    base = int(label.max()) + 1
    pairs, faces = np.unique(part * base + label, return_counts=True)
    part, label = pairs // base, pairs % base
    order = np.lexsort((np.where(label == 0, base, label), -faces, part))
    first = np.r_[True, np.diff(part[order]) > 0]
    return part[order][first], label[order][first]

"""Connected components of all labels at once, from runs of equal voxels.

A stray voxel far away makes the box around a structure as large as the volume, so components are not searched in
boxes. Instead, the volume is divided into runs of equal labels along its last axis, touching runs are connected in
a graph, and the components of that graph are those of all labels. Time and memory grow with the number of runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medsegai.volume import Box

CONNECTIVITY_WORDS = {"6": "faces", "18": "faces and edges", "26": "faces, edges, corners"}
"""The names of the connectivities on the screen."""

CONNECTIVITIES = tuple(CONNECTIVITY_WORDS)
Tick = Callable[[], None]


@dataclass(frozen=True, eq=False)
class Components:
    """The components of a label array, numbered in the order of their first voxels in memory.

    Attributes:
        start: index of the first voxel of each run in the flat volume, ascending.
        length: number of voxels of each run.
        number: number of the component that each run belongs to.
        value: label value of each component.
        size: number of voxels of each component.
    """

    start: NDArray[np.int64]
    length: NDArray[np.int64]
    number: NDArray[np.int64]
    value: NDArray[np.int64]
    size: NDArray[np.int64]

    def voxels(self, chosen: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The voxels of the chosen components: their indices in the flat volume, ascending, and components."""
        inside = chosen[self.number]
        start, length = self.start[inside], self.length[inside]
        first = np.cumsum(length) - length
        places = np.repeat(start - first, length) + np.arange(int(length.sum()))
        return places, np.repeat(self.number[inside], length)

    def boxes(self, chosen: NDArray[np.bool_], shape: Sequence[int]) -> list[Box]:
        """The box of each chosen component, in their order; `shape` is that of the volume."""
        inside = chosen[self.number]
        order = np.argsort(self.number[inside], kind="stable")
        line, first = np.divmod(self.start[inside][order], shape[2])
        k, j = np.divmod(line, shape[1])
        last = first + self.length[inside][order]
        begins = np.searchsorted(self.number[inside][order], np.flatnonzero(chosen))
        if not len(begins):
            return []
        low = np.stack([np.minimum.reduceat(index, begins) for index in (k, j, first)], 1)
        high = np.stack([np.maximum.reduceat(index, begins) for index in (k + 1, j + 1, last)], 1)
        sides = np.stack([low, high], 2).tolist()
        return [(slice(*k), slice(*j), slice(*i)) for k, j, i in sides]


def components(
    labels: NDArray[np.integer], wanted: NDArray[np.int64], connectivity: str, tick: Tick
) -> Components:
    """Find the connected components of the wanted values; voxels of different values are never connected.

    Args:
        labels: label values, contiguous (k, j, i).
        wanted: the label values, which may include 0.
        connectivity: "6" if voxels that share a face are connected, "18" also an edge, "26" also a corner.
        tick: called regularly; it may raise `Cancelled`.
    """
    from scipy.sparse import coo_matrix, csgraph

    begins = np.ones(labels.shape, bool)
    np.not_equal(labels[:, :, 1:], labels[:, :, :-1], out=begins[:, :, 1:])
    start = np.flatnonzero(begins)
    length = np.diff(np.append(start, labels.size))
    value = labels.reshape(-1)[start].astype(np.int64)
    kept = np.isin(value, wanted)
    start, length, value = start[kept], length[kept], value[kept]
    pairs = []
    for lines, beyond in _ways(connectivity):
        tick()
        pairs.append(_touching(start, length, labels.shape, lines, beyond))
    one, other = (np.concatenate(ends) for ends in zip(*pairs, strict=True))
    same = value[one] == value[other]
    links = (np.ones(int(same.sum()), bool), (one[same], other[same]))
    count, found = csgraph.connected_components(coo_matrix(links, (len(start),) * 2), False)
    _, first, number = np.unique(found, return_index=True, return_inverse=True)
    rank = np.empty(count, np.int64)
    rank[np.argsort(first)] = np.arange(count)
    size = np.bincount(rank[number], length, count).astype(np.int64)
    return Components(start, length, rank[number], value[np.sort(first)], size)


def _ways(connectivity: str) -> Iterator[tuple[tuple[int, int], int]]:
    """Yield the steps (k, j) to the later lines whose runs may touch, and by how many voxels beyond their ends."""
    most = 1 + CONNECTIVITIES.index(connectivity)
    for lines in ((0, 1), (1, -1), (1, 0), (1, 1)):
        steps = abs(lines[0]) + abs(lines[1])
        if steps <= most:
            yield lines, int(steps + 1 <= most)


def _touching(
    start: NDArray[np.int64],
    length: NDArray[np.int64],
    shape: tuple[int, ...],
    lines: tuple[int, int],
    beyond: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """All pairs of touching runs of which the second lies `lines` (k, j) after the first."""
    line, first = np.divmod(start, shape[2])
    k, j = np.divmod(line, shape[1])
    there = (k + lines[0] < shape[0]) & (j + lines[1] >= 0) & (j + lines[1] < shape[1])
    runs = np.flatnonzero(there)
    base = (line[runs] + lines[0] * shape[1] + lines[1]) * shape[2]
    left = np.maximum(first[runs] - beyond, 0)
    right = np.minimum(first[runs] + length[runs] + beyond, shape[2])
    low = np.searchsorted(start + length, base + left, side="right")
    high = np.searchsorted(start, base + right, side="left")
    count = np.maximum(high - low, 0)
    before = np.cumsum(count) - count
    return np.repeat(runs, count), np.repeat(low - before, count) + np.arange(int(count.sum()))

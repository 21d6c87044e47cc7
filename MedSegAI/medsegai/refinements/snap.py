"""Move borders between structures onto edges of the image, where the model itself was uncertain.

A random walker with priors (Grady, "Multilabel random walker image segmentation using prior models", CVPR 2005) on
the uncertain shell between structures. Each voxel of the shell belongs to one of two structures, with the model's
probabilities as a prior, and is tied to its six neighbours; the less their grey values differ, the stronger the
tie. All other voxels keep their labels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medsegai.boxes import grown, label_boxes
from medsegai.errors import RequestError
from medsegai.refinements import Draft, Refined, Step
from medsegai.refinements._freed import neighbours, restore_gone
from medsegai.refinements._places import flat_indices, margin, near_borders, spacing_kji
from medsegai.refinements._settings import labels_setting, setting
from medsegai.request import Candidates
from medsegai.volume import Volume, joined_box

TITLE = "Snap doubtful borders"

UNGUIDED = 0.6
"""The probability of a label at its border if the model's is not known; its neighbour has the rest."""

ROUNDS, RESIDUAL = 60, 1e-3
"""The largest number of iterations of conjugate gradients, and the relative residual at which they stop."""


@dataclass(frozen=True)
class Options:
    """Which voxels count as uncertain, and what counts as an edge."""

    labels: tuple[int, ...] = labels_setting()
    shell_mm: float = setting(
        1.0,
        "how far from a border voxels may change, in mm; at least those beside it",
        (0.0, 20.0),
        title="Move at most (mm)",
    )
    doubt: float = setting(
        0.05,
        "how probable the runner-up must be, where the model's probabilities are known",
        (0.01, 0.5),
        title="Doubt needed",
    )
    prior: float = setting(
        1.0,
        "how much the probabilities weigh against the image",
        (0.01, 100.0),
        title="Weight of the AI",
    )
    contrast: float = setting(
        1.0, "how sharply edges of the image divide", (0.0, 100.0), title="Weight of edges"
    )


def apply(draft: Draft, options: Options, step: Step) -> Refined:
    if draft.image is None:
        raise RequestError("Refinement 'snap' needs the scan. Name it with --image.")
    labels = np.array(draft.labelmap.voxels, order="C")
    found = label_boxes(labels, options.labels or None)
    if not found:
        return Refined.of(draft, labels)
    step(0.05)
    reach = margin(draft.labelmap.geometry, max(options.shell_mm, 1e-6))
    region = grown(joined_box(found.values()), reach, labels.shape)
    shell = flat_indices(near_borders(labels[region], reach), region, labels.shape)
    free = np.array([0, *found], np.int64)
    graph = _Graph(_doubtful(draft, labels, shell, free, options.doubt), labels)
    step(0.2)
    graph.connect(draft.image, options.contrast)
    share = _shares(graph, options.prior, step)
    doubt = graph.doubt
    labels.reshape(-1)[doubt.places] = np.where(share[1] > share[0], doubt.other, doubt.own)
    return Refined.of(draft, labels, restore_gone(draft, labels, found))


def _shares(graph: _Graph, prior: float, step: Step) -> NDArray[np.float32]:
    """The probabilities (own and other label, place) that a walker reaches these labels first."""
    values = graph.values()
    share = np.zeros((2, len(graph.doubt.places)), np.float32)
    for number, value in enumerate(values):
        step(0.3 + 0.7 * number / len(values))
        graph.walk(value, prior, share, step)
    return share


@dataclass(frozen=True, eq=False)
class _Doubt:
    """The uncertain voxels: their flat indices, ascending, their label and rival, and both probabilities."""

    places: NDArray[np.int64]
    own: NDArray[np.int64]
    other: NDArray[np.int64]
    p_own: NDArray[np.float32]
    p_other: NDArray[np.float32]


def _doubtful(
    draft: Draft,
    labels: NDArray[np.integer],
    shell: NDArray[np.int64],
    free: NDArray[np.int64],
    least: float,
) -> _Doubt:
    """The voxels of the shell that are uncertain between two labels that may both change."""
    own = labels.reshape(-1)[shell].astype(np.int64)
    if draft.candidates is None:
        other = _neighbour_label(labels, shell, own)
        p_own = np.full(len(shell), UNGUIDED, np.float32)
        p_other = 1 - p_own
        doubtful = other >= 0
    else:
        other, p_own, p_other = _candidates_of(own, shell, draft.candidates)
        doubtful = (other >= 0) & (np.minimum(p_own, p_other) > 0) & (p_other >= least)
    chosen = doubtful & np.isin(own, free) & np.isin(other, free)
    return _Doubt(shell[chosen], own[chosen], other[chosen], p_own[chosen], p_other[chosen])


def _candidates_of(
    own: NDArray[np.int64], shell: NDArray[np.int64], candidates: Candidates
) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float32]]:
    """The other candidate of each voxel, -1 if its label is not a candidate, and both probabilities."""
    first, second, p_first, p_second = (
        array.reshape(-1)[shell] for array in vars(candidates).values()
    )
    swapped = (own == second) & (own != first)
    other = np.where(swapped, first, second).astype(np.int64)
    p_own, p_other = (
        np.where(swapped, a, b).astype(np.float32) / np.float32(255)
        for a, b in ((p_second, p_first), (p_first, p_second))
    )
    known = ((own == first) | swapped) & (own != other)
    return np.where(known, other, -1), p_own, p_other


def _neighbour_label(
    labels: NDArray[np.integer], places: NDArray[np.int64], own: NDArray[np.int64]
) -> NDArray[np.int64]:
    """The label, other than its own, that most of the six neighbours of each place have; -1 if there is none."""
    flat = labels.reshape(-1)
    around = np.full((6, len(places)), -1, np.int64)
    for row, (inside, beside) in zip(around, neighbours(places, labels.shape), strict=True):
        row[inside] = flat[beside]
    around[around == own] = -1
    votes = np.stack([(around == row).sum(0) * (row >= 0) for row in around])
    return np.take_along_axis(around, votes.argmax(0)[None], 0)[0]


class _Graph:
    """The uncertain voxels and the ties to their neighbours."""

    def __init__(self, doubt: _Doubt, labels: NDArray[np.integer]) -> None:
        self.doubt = doubt
        self._labels = labels
        count = len(doubt.places)
        self._ties = np.zeros((6, count), np.float32)  # 0 beyond the volume
        self._rows = np.full((6, count), -1, np.int64)  # -1: the neighbour is certain
        self._beside = np.zeros((6, count), np.int64)  # the neighbour's label

    def connect(self, image: Volume, contrast: float) -> None:
        """Weight each tie by the difference of the grey values and by the distance."""
        places, shape = self.doubt.places, self._labels.shape
        if not len(places):
            return
        grey, flat = image.voxels.reshape(-1), self._labels.reshape(-1)
        own = grey[places].astype(np.float32)
        spacing = np.repeat(spacing_kji(image.geometry), 2)
        apart = np.full(self._ties.shape, np.nan, np.float32)
        for row, (inside, beside) in enumerate(neighbours(places, shape)):
            apart[row, inside] = grey[beside].astype(np.float32) - own[inside]
            self._beside[row, inside] = flat[beside]
            rank = np.minimum(np.searchsorted(places, beside), len(places) - 1)
            self._rows[row, inside] = np.where(places[rank] == beside, rank, -1)
        scale = float(np.nanmean(apart**2)) or 1.0
        near = (spacing.min() / spacing) ** 2
        ties = near[:, None].astype(np.float32) * np.exp(-contrast * apart**2 / scale)
        self._ties = np.nan_to_num(ties, nan=0.0)

    def values(self) -> list[int]:
        return [int(value) for value in np.union1d(self.doubt.own, self.doubt.other)]

    def walk(self, value: int, prior: float, share: NDArray[np.float32], step: Step) -> None:
        """Write into `share` the probability that a walk from each uncertain voxel ends in `value`."""
        mine, theirs = self.doubt.own == value, self.doubt.other == value
        chosen = np.flatnonzero(mine | theirs)
        rows = np.full(len(mine) + 1, -1, np.int64)  # the last stands for certain neighbours
        rows[chosen] = np.arange(len(chosen))
        ties = self._ties[:, chosen]
        beside = rows[self._rows[:, chosen]]
        fixed = np.where((beside < 0) & (self._beside[:, chosen] == value), ties, 0).sum(0)
        p = np.where(mine, self.doubt.p_own, self.doubt.p_other)[chosen]
        diagonal = ties.sum(0) + np.float32(prior)
        links = np.where(beside >= 0, ties, 0)
        found = _solve(diagonal, links, np.maximum(beside, 0), fixed + np.float32(prior) * p, step)
        for row, part in enumerate((mine, theirs)):
            share[row, part] = found[rows[:-1][part]]


def _solve(
    diagonal: NDArray[np.float32],
    links: NDArray[np.float32],
    beside: NDArray[np.int64],
    right: NDArray[np.float32],
    step: Step,
) -> NDArray[np.float32]:
    """Solve by conjugate gradients with the diagonal as preconditioner; `links` (6, n) lead to rows `beside`."""
    x = right / diagonal
    rest = right - _product(diagonal, links, beside, x)
    eased = rest / diagonal
    direction, energy = eased, float(rest @ eased)
    enough = RESIDUAL**2 * float(right @ right)
    for _ in range(ROUNDS):
        if float(rest @ rest) <= enough:
            break
        image = _product(diagonal, links, beside, direction)
        length = energy / float(direction @ image)
        x, rest = x + length * direction, rest - length * image
        eased = rest / diagonal
        energy, before = float(rest @ eased), energy
        direction = eased + (energy / before) * direction
    return x.astype(np.float32)


def _product(
    diagonal: NDArray[np.float32],
    links: NDArray[np.float32],
    beside: NDArray[np.int64],
    x: NDArray[np.float32],
) -> NDArray[np.float32]:
    total: NDArray[np.float32] = diagonal * x
    for weight, row in zip(links, beside, strict=True):
        total -= weight * x[row]
    return total

"""Smooth the borders of all structures together, without gaps or overlaps, and keep their volumes.

The indicator of each structure is smoothed by a Gaussian, brick by brick, and each voxel near a border is assigned
to the structure with the largest value, as in the scheme of Merriman, Bence and Osher; the background competes
like a structure. To keep the volumes, an offset is added to the values of each structure, and the offsets are
adjusted until all volumes are as before (after Jacobs, Merkurjev and Esedoglu, "Auction dynamics: a volume
constrained MBO scheme", Journal of Computational Physics 354 (2018) 288-310).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medsegai.boxes import grown, label_boxes
from medsegai.refinements import Draft, Refined, Step
from medsegai.refinements._freed import restore_gone
from medsegai.refinements._places import flat_indices, near_borders, spacing_kji
from medsegai.refinements._settings import labels_setting, setting
from medsegai.volume import Box, joined_box

TITLE = "Smooth borders"

TRUNCATE = 3.0
"""The radius at which the Gaussian is truncated, in standard deviations."""

NEAR = 1.5
"""Voxels that are farther from every border than this number of standard deviations keep their label."""

RIVALS = 4
"""The number of structures besides the background that compete for a voxel; others that meet there do not."""

LEAST = 0.01
"""Structures with a smaller smoothed value at a voxel do not compete for it."""

BRICK = 64
"""The side of the bricks, in voxels: a stray voxel far away costs a brick, not a box as large as the volume."""

ROUNDS, FIRST_TURN, TOLERANCE = 40, 0.05, 1e-3
"""The largest number of adjustments of the offsets, the first adjustment, and the tolerated relative error of a
volume."""


@dataclass(frozen=True)
class Options:
    """The strength of the smoothing."""

    labels: tuple[int, ...] = labels_setting()
    sigma_mm: float = setting(
        0.7,
        "standard deviation of the Gaussian that smooths, in mm",
        (0.05, 20.0),
        title="Width (mm)",
    )
    keep_volume: bool = setting(True, "keep the volume of each structure", title="Keep volumes")


def apply(draft: Draft, options: Options, step: Step) -> Refined:
    before = draft.labelmap.voxels
    found = label_boxes(before)
    named = [value for value in found if value in options.labels or not options.labels]
    if not named:
        return Refined.of(draft, before)
    sigmas = [options.sigma_mm / length for length in spacing_kji(draft.labelmap.geometry)]
    near = [math.ceil(NEAR * sigma) for sigma in sigmas]
    region = grown(joined_box(found[value] for value in named), near, before.shape)
    free = near_borders(before[region], near) & np.isin(before[region], [0, *named])
    rivals = _Rivals(flat_indices(free, region, before.shape), named)
    _compete(rivals, before, sigmas, step)
    labels = np.array(before, order="C")
    old = np.searchsorted([0, *named], labels.reshape(-1)[rivals.places])
    tolerances = _tolerances(before, {value: found[value] for value in named})
    ranks = rivals.balanced(old, tolerances, options.keep_volume, step)
    labels.reshape(-1)[rivals.places] = np.array([0, *named], before.dtype)[ranks]
    return Refined.of(draft, labels, restore_gone(draft, labels, found))


def _compete(
    rivals: _Rivals, labels: NDArray[np.integer], sigmas: Sequence[float], step: Step
) -> None:
    bricks = rivals.by_bricks(labels.shape) if len(rivals.places) else []
    for number, (brick, rows) in enumerate(bricks):
        step(0.8 * number / len(bricks))
        _compare(rivals, labels, brick, rows, sigmas)


def _tolerances(labels: NDArray[np.integer], named: dict[int, Box]) -> NDArray[np.float64]:
    """The tolerated error of each structure's volume in voxels; the background may change by any number."""
    counts = [np.count_nonzero(labels[box] == value) for value, box in named.items()]
    return np.r_[np.inf, TOLERANCE * np.array(counts)]


class _Rivals:
    """The structures that compete for each voxel near a border, and their smoothed values there.

    Attributes:
        places: the indices of these voxels in the flat volume, ascending.
    """

    def __init__(self, places: NDArray[np.int64], named: Sequence[int]) -> None:
        self.places = places
        self._rank = {value: rank for rank, value in enumerate(named, start=1)}
        self._ranks = np.zeros((1 + RIVALS, len(places)), np.uint16)
        self._values = np.full((1 + RIVALS, len(places)), -np.inf, np.float32)
        self._values[0] = 1.0  # background: what the structures leave of it
        self._filled = np.ones(len(places), np.uint8)

    def by_bricks(self, shape: Sequence[int]) -> list[tuple[Box, NDArray[np.int64]]]:
        """The bricks of the volume that contain places, and the places in each."""
        k, j, i = (index // BRICK for index in np.unravel_index(self.places, tuple(shape)))
        across = [-(-size // BRICK) for size in shape]
        numbers = (k * across[1] + j) * across[2] + i
        order = np.argsort(numbers, kind="stable")
        found, first = np.unique(numbers[order], return_index=True)
        bricks = []
        for number, rows in zip(found.tolist(), np.split(order, first[1:]), strict=True):
            corner = np.array(np.unravel_index(number, across)) * BRICK
            k0, j0, i0 = corner.tolist()
            whole = (slice(k0, k0 + BRICK), slice(j0, j0 + BRICK), slice(i0, i0 + BRICK))
            bricks.append((grown(whole, (0, 0, 0), shape), rows))
        return bricks

    def add(self, value: int, rows: NDArray[np.int64], smoothed: NDArray[np.float32]) -> None:
        """Add a structure: the places that it is near, and its smoothed indicator there."""
        self._values[0, rows] -= smoothed
        chance = smoothed >= LEAST
        rows, smoothed = rows[chance], smoothed[chance]
        if value not in self._rank:
            return
        slots = self._filled[rows].astype(np.int64)
        full = slots > RIVALS
        if full.any():
            slots[full] = 1 + self._values[1:, rows[full]].argmin(0)
        better = smoothed > self._values[slots, rows]
        slots, rows, smoothed, full = slots[better], rows[better], smoothed[better], full[better]
        self._values[slots, rows] = smoothed
        self._ranks[slots, rows] = self._rank[value]
        self._filled[rows[~full]] += 1

    def balanced(
        self, old: NDArray[np.int64], tolerances: NDArray[np.float64], keep: bool, step: Step
    ) -> NDArray[np.uint16]:
        """The winner at each place, as the rank of its value among the named ones; 0 is the background.

        Args:
            old: the ranks before.
            tolerances: the tolerated error of each rank in voxels.
            keep: whether to adjust the offsets until each rank has as many places as before.
        """
        count = len(self._rank) + 1
        wanted = np.bincount(old, minlength=count)
        offsets, turn = np.zeros(count), np.full(count, FIRST_TURN)
        last, least, best = np.zeros(count), np.inf, np.zeros(0, np.uint16)
        for number in range(ROUNDS):
            step(0.8 + 0.2 * number / ROUNDS)
            winners = self._winners(offsets)
            lacking = (wanted - np.bincount(winners, minlength=count))[1:]
            off = float(np.maximum(np.abs(lacking) - tolerances[1:], 0).sum())
            if off < least:
                least, best = off, winners
            if not keep or off == 0:
                break
            sign = np.r_[0, np.sign(lacking) * (np.abs(lacking) > tolerances[1:])]
            turn *= np.where(sign * last < 0, 0.5, np.where(sign * last > 0, 1.2, 1.0))
            offsets = np.clip(offsets + sign * turn, -1, 1)
            last = np.where(sign == 0, last, sign)
        return best

    def _winners(self, offsets: NDArray[np.float64]) -> NDArray[np.uint16]:
        turned = offsets.astype(np.float32)
        best = self._values[0] + turned[0]
        winners = np.zeros(len(best), np.uint16)
        for ranks, values in zip(self._ranks[1:], self._values[1:], strict=True):
            score = values + turned[ranks]
            better = score > best
            np.copyto(best, score, where=better)
            np.copyto(winners, ranks, where=better)
        return winners


def _smoothed(
    values: NDArray[np.float32], sigmas: Sequence[float], radii: Sequence[int]
) -> NDArray[np.float32]:
    from scipy import ndimage

    for axis, (sigma, radius) in enumerate(zip(sigmas, radii, strict=True)):
        if radius:
            values = ndimage.gaussian_filter1d(
                values, sigma, axis, mode="nearest", truncate=TRUNCATE
            )
    return values


def _compare(
    rivals: _Rivals,
    labels: NDArray[np.integer],
    brick: Box,
    rows: NDArray[np.int64],
    sigmas: Sequence[float],
) -> None:
    """Smooth every structure in and around a brick, and let it compete for the places that its values reach."""
    radii = [int(TRUNCATE * sigma + 0.5) for sigma in sigmas]
    around = grown(brick, radii, labels.shape)
    part = labels[around]
    places = np.stack(np.unravel_index(rivals.places[rows], labels.shape))
    places -= np.array([[side.start] for side in around])
    for value, box in label_boxes(part).items():
        box = grown(box, radii, part.shape)
        low, high = (
            np.array([[side.start] for side in box]),
            np.array([[side.stop] for side in box]),
        )
        near = ((places >= low) & (places < high)).all(0)
        if not near.any():
            continue
        smoothed = _smoothed((part[box] == value).astype(np.float32), sigmas, radii)
        k, j, i = places[:, near] - low
        rivals.add(value, rows[near], smoothed[k, j, i])

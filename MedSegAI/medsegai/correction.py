"""A segment corrected by a few strokes, from what the AI thought and from the image.

The strokes win back what lies near them: a voxel changes sides when it is reached from a stroke of the other
side within a certain geodesic distance, and sooner than from a stroke of its present side. Distances are long
across edges of the image, into intensities that the stroke does not have, and against the probabilities of the
AI. So a change flows along the structure, stops at its border, and cannot be cut off from its stroke. Nothing
further away than the reach changes.

Sources: geodesic segmentation from strokes, A. Criminisi, T. Sharp, A. Blake, "GeoS: Geodesic Image
Segmentation", ECCV 2008; strokes that correct a network through geodesic distances, G. Wang et al., "DeepIGeoS: A
Deep Interactive Geodesic Framework for Medical Image Segmentation", IEEE TPAMI 41, 2019, 1559-1572.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np
from numpy.typing import NDArray

from medsegai.errors import InputError

REACH_MM = 6.0
"""How far a stroke acts where nothing speaks against it."""

EDGE, UNLIKE, IMPROBABLE = 0.15, 0.5, 1.0
"""What a millimetre is longer by: for a jump of the intensity of the usual size, for an intensity one standard
deviation from that under the stroke, and for log odds of one against the side that the stroke asks for. Found on
hippocampi whose networks had not seen them; see docs/performance/strokes.md for other structures."""

FALLOFF_VOXELS = 0.25
"""Without an AI: how far from the border of the segment the odds fall to one in e, in voxels."""

MOST_UNLIKE = 4.0
"""Standard deviations beyond which an intensity is as unlike as any other."""

MOST_IMPROBABLE = float(np.log(255.0))
"""Log odds beyond which eight bits tell nothing."""

ROUNDS = 2
"""Sweeps over all axes, to and fro; each lets a path turn once more against its own direction."""

Mask = NDArray[np.bool_]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Region:
    """The part of a scan around the strokes. All arrays are (k, j, i) and of one shape.

    Attributes:
        image: intensities.
        mask: the segment as it is.
        spacing_mm: distance between voxels along (i, j, k), as `Geometry.spacing_mm`.
        probability: of the segment, from 0 to 1; None where no AI is known. NaN where it is not known.
    """

    image: NDArray[np.generic]
    mask: Mask
    spacing_mm: Sequence[float]
    probability: Floats | None = None

    def __post_init__(self) -> None:
        shapes = {self.image.shape, self.mask.shape}
        if self.probability is not None:
            shapes.add(self.probability.shape)
        if len(shapes) != 1 or len(self.image.shape) != 3:
            raise InputError(
                f"Image, segment and probabilities lie on different grids: {sorted(shapes)}. Resample them first."
            )


def corrected(region: Region, inside: Mask, outside: Mask, reach_mm: float = REACH_MM) -> Mask:
    """The segment after strokes.

    Args:
        region: what is known around the strokes, at least `reach_mm` on all sides.
        inside: voxels (k, j, i) painted as belonging to the segment; may be empty.
        outside: voxels painted as not belonging to it; they win where both are painted.
        reach_mm: how far a stroke acts at most.

    Returns:
        The new mask, bool (k, j, i).

    Raises:
        InputError: the strokes lie on another grid, or the reach is not above 0.
    """
    if inside.shape != region.mask.shape or outside.shape != region.mask.shape:
        raise InputError(
            f"Strokes of shape {inside.shape} and {outside.shape} do not lie on the grid of the segment, "
            f"{region.mask.shape}."
        )
    if not reach_mm > 0:
        raise InputError(f"The reach of a stroke must lie above 0 mm, not {reach_mm:g}.")
    inside = inside & ~outside
    costs = _step_costs(region, inside, outside)
    to_inside, to_outside = _distances(np.stack([inside, outside]), costs, region.spacing_mm)
    added = (to_inside < reach_mm) & (to_inside < to_outside)
    removed = (to_outside < reach_mm) & (to_outside <= to_inside)
    return (region.mask | added | inside) & ~(removed | outside)


def box_around(
    strokes: Mask, spacing_mm: Sequence[float], reach_mm: float = REACH_MM
) -> tuple[slice, slice, slice] | None:
    """The voxels (k, j, i) that strokes can change; None where there are no strokes."""
    box = []
    for axis in range(3):
        hits = np.flatnonzero(strokes.any(axis=tuple({0, 1, 2} - {axis})))
        if not hits.size:
            return None
        box.append(slice(int(hits[0]), int(hits[-1]) + 1))
    return within_reach(box, strokes.shape, spacing_mm, reach_mm)


def within_reach(
    box: Sequence[slice], shape: Sequence[int], spacing_mm: Sequence[float], reach_mm: float
) -> tuple[slice, slice, slice]:
    """The voxels (k, j, i) of a grid of `shape` that strokes in `box` can change."""
    k, j, i = (
        slice(max(part.start - margin, 0), min(part.stop + margin, size))
        for part, size, margin in zip(
            box, shape, (ceil(reach_mm / mm) + 1 for mm in reversed(spacing_mm)), strict=True
        )
    )
    return k, j, i


def _step_costs(region: Region, inside: Mask, outside: Mask) -> Floats:
    """How long a millimetre is for paths from the inside and from the outside strokes: (2, k, j, i)."""
    image = region.image.astype(np.float32)
    edges = _edges(image)
    costs = np.empty((2, *image.shape), np.float32)
    against = _log_odds(region)
    for cost, own, other, sign in zip(
        costs, (inside, outside), (outside, inside), (-1, 1), strict=True
    ):
        cost[...] = 1.0 + EDGE * edges
        if own.any():
            cost += UNLIKE * _unlike(image, own)
        cost += IMPROBABLE * np.maximum(sign * against, 0.0)
        cost[other] = np.inf
    return costs


def _log_odds(region: Region) -> Floats:
    """The log odds of each voxel being in the segment, by the model or by the distance to the segment's border."""
    if region.probability is None:
        sides = np.stack([region.mask, ~region.mask])
        flat = np.ones(sides.shape, np.float32)
        to_mask, to_rest = _distances(sides, flat, region.spacing_mm)
        falloff = np.float32(FALLOFF_VOXELS * min(region.spacing_mm))
        return np.clip((to_rest - to_mask) / falloff, -MOST_IMPROBABLE, MOST_IMPROBABLE)
    least = np.float32(1.0 / 255.0)
    known = np.clip(np.nan_to_num(region.probability, nan=0.5), least, 1 - least)
    return np.log(known / (1 - known))


def _edges(image: Floats) -> Floats:
    """Largest jump of the intensity to a neighbour, in units of the usual jump."""
    largest = np.zeros_like(image)
    jumps = []
    for axis in range(3):
        if image.shape[axis] < 2:
            continue
        jump = np.abs(np.diff(image, axis=axis))
        jumps.append(float(jump.mean()))
        low, high = [slice(None)] * 3, [slice(None)] * 3
        low[axis], high[axis] = slice(0, -1), slice(1, None)
        for side in (tuple(low), tuple(high)):
            np.maximum(largest[side], jump, out=largest[side])
    usual = float(np.mean(jumps)) if jumps else 0.0
    return largest / np.float32(usual) if usual > 0 else largest


def _unlike(image: Floats, stroke: Mask) -> Floats:
    """How far an intensity is from those under the stroke, in their standard deviations."""
    painted = image[stroke]
    middle = float(np.median(painted))
    spread = 1.4826 * float(np.median(np.abs(painted - middle)))
    floor = 0.1 * float(image.std())
    return np.minimum(
        np.abs(image - np.float32(middle)) / np.float32(max(spread, floor, 1e-12)), MOST_UNLIKE
    )


def _distances(seeds: Mask, costs: Floats, spacing_mm: Sequence[float]) -> Floats:
    """Geodesic distances in mm from the seeds, (n, k, j, i), by sweeps of whole planes along each axis.

    A plane takes from the one before it the shortest way to each voxel, straight or diagonal.
    """
    spacing = np.array(spacing_mm[::-1], np.float32)
    distances = np.where(seeds, np.float32(0), np.float32(np.inf))
    for _ in range(ROUNDS):
        for axis in range(3):
            order = (0, 1 + axis, *(1 + other for other in range(3) if other != axis))
            planes = np.ascontiguousarray(distances.transpose(order).swapaxes(0, 1))
            cost = np.ascontiguousarray(costs.transpose(order).swapaxes(0, 1))
            across = [float(spacing[other]) for other in range(3) if other != axis]
            _sweep(planes, cost, float(spacing[axis]), across)
            _sweep(planes[::-1], cost[::-1], float(spacing[axis]), across)
            distances = planes.swapaxes(0, 1).transpose(np.argsort(order))
    return distances


def _sweep(planes: Floats, costs: Floats, step: float, across: Sequence[float]) -> None:
    """Shorten `planes` (plane, n, row, column) from each to the next; `across` is the spacing of rows, columns."""
    by_row, by_column = (float(np.hypot(step, other)) for other in across)
    by_corner = float(np.hypot(by_row, across[1]))
    beside, around = np.empty_like(planes[0]), np.empty_like(planes[0])
    for plane, before, cost in zip(planes[1:], planes[:-1], costs[1:], strict=True):
        np.minimum(plane, before + step * cost, out=plane)
        _lower_neighbour(before, 1, around)
        np.minimum(plane, around + by_row * cost, out=plane)
        _lower_neighbour(before, 2, beside)
        np.minimum(plane, beside + by_column * cost, out=plane)
        _lower_neighbour(beside, 1, around)
        np.minimum(plane, around + by_corner * cost, out=plane)


def _lower_neighbour(values: Floats, axis: int, out: Floats) -> None:
    """The lower of the two neighbours along an axis of `values` (n, row, column)."""
    values, out = np.swapaxes(values, 1, axis), np.swapaxes(out, 1, axis)
    out[:, 1:] = values[:, :-1]
    out[:, 0] = np.inf
    np.minimum(out[:, :-1], values[:, 1:], out=out[:, :-1])

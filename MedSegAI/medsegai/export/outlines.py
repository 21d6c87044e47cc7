"""Outlines of a mask in a plane, as polygons that radiotherapy programs fill to the same pixels again."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Point = tuple[float, float]
Polygon = list[Point]
Corner = tuple[int, int]

TURNS = ((0, 1), (1, 0), (0, -1), (-1, 0))
"""The directions along a row, down a column, and back; each is a right turn from the previous one."""


def outlines(mask: NDArray[np.bool_]) -> list[Polygon]:
    """Return closed polygons around the parts of a mask, none of which contains another's pixels.

    Points lie halfway between pixels, so the centre of each pixel is inside exactly one polygon if it belongs to
    the mask, and inside none otherwise. Parts that touch at a corner are separate. A hole is joined to the outline
    around it by a channel of zero width, because many programs fill every polygon.

    Args:
        mask: the mask (j, i).

    Returns:
        The points (j, i) in pixels, without repeating the first one at the end.
    """
    outer: list[Polygon] = []
    holes: list[Polygon] = []
    for corners in _loops(mask):
        polygon = _halfway(corners)
        (outer if _area(polygon) > 0 else holes).append(polygon)
    for hole in sorted(holes, key=lambda hole: -max(i for _, i in hole)):
        around = min(
            (number for number, polygon in enumerate(outer) if _contains(polygon, hole[0])),
            key=lambda number: abs(_area(outer[number])),
        )
        outer[around] = _with_hole(outer[around], hole)
    return outer


def _loops(mask: NDArray[np.bool_]) -> Iterator[list[Corner]]:
    """Return pixel corners around each part, with the part on the right, and likewise around each hole."""
    next_of = _edges(mask)
    while next_of:
        (begin, way), _corner = next(iter(next_of.items()))
        loop: list[Corner] = []
        at = begin
        while (at, way) in next_of:
            loop.append(at)
            at = next_of.pop((at, way))
            turns = ((way + 1) % 4, way, (way + 3) % 4)  # right turns first: corners do not connect
            way = next((turn for turn in turns if (at, turn) in next_of), way)
        yield loop


def _edges(mask: NDArray[np.bool_]) -> dict[tuple[Corner, int], Corner]:
    """Return the end of each edge between inside and outside, by its start and its direction."""
    padded = np.pad(mask, 1)
    next_of: dict[tuple[Corner, int], Corner] = {}
    edges = (
        padded[1:, :] & ~padded[:-1, :],  # above a pixel: along the row
        padded[:, :-1] & ~padded[:, 1:],  # right of it: down
        padded[:-1, :] & ~padded[1:, :],  # below: back
        padded[:, 1:] & ~padded[:, :-1],  # left: up
    )
    shifts = ((1, 0), (0, 1), (1, 1), (1, 1))
    for way, (found, shift) in enumerate(zip(edges, shifts, strict=True)):
        for j, i in np.argwhere(found):
            start = (int(j) + shift[0], int(i) + shift[1])
            next_of[start, way] = (start[0] + TURNS[way][0], start[1] + TURNS[way][1])
    return next_of


def _halfway(corners: list[Corner]) -> Polygon:
    """Return the middles of edges between corners; corner (1, 1) of the padded mask is that of the first pixel."""
    following = [*corners[1:], corners[0]]
    return [
        ((a[0] + b[0]) / 2 - 1.5, (a[1] + b[1]) / 2 - 1.5)
        for a, b in zip(corners, following, strict=True)
    ]


def _area(polygon: Polygon) -> float:
    """Return the area, positive around a part, negative around a hole."""
    points = np.asarray(polygon)
    j, i = points[:, 0], points[:, 1]
    return float(np.sum(i * np.roll(j, -1) - np.roll(i, -1) * j)) / 2


def _contains(polygon: Polygon, point: Point) -> bool:
    """Whether a ray from a point along the row crosses the polygon an odd number of times."""
    crossings = _crossings(polygon, (point[0] + 0.25, point[1]))
    return len(crossings) % 2 == 1


def _crossings(polygon: Polygon, point: Point) -> list[tuple[float, int]]:
    """Return where a ray from the point along the row crosses the polygon, with the number of the edge."""
    points = np.asarray(polygon)
    ends = np.roll(points, -1, axis=0)
    across = (points[:, 0] > point[0]) != (ends[:, 0] > point[0])
    numbers = np.flatnonzero(across)
    a, b = points[numbers], ends[numbers]
    places = a[:, 1] + (point[0] - a[:, 0]) * (b[:, 1] - a[:, 1]) / (b[:, 0] - a[:, 0])
    return [(float(i), int(n)) for i, n in zip(places, numbers, strict=True) if i > point[1]]


def _with_hole(polygon: Polygon, hole: Polygon) -> Polygon:
    """Join a polygon and a hole to one polygon: to the hole, around it, and back the same way.

    The channel lies a quarter or half of a pixel beside the middle of a row, so that it avoids the centres of
    pixels.
    """
    number = max(range(len(hole)), key=lambda n: hole[n][1])
    first, second, *others = [*hole[number:], *hole[:number]]
    gate = ((first[0] + second[0]) / 2, (first[1] + second[1]) / 2)
    place, edge = min(_crossings(polygon, gate))
    mouth = (gate[0], place)
    around = [gate, second, *others, first, gate]
    return [*polygon[: edge + 1], mouth, *around, mouth, *polygon[edge + 1 :]]

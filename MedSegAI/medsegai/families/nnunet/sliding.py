"""The sliding window: tiles of a network joined into logits, handed on plane by plane.

Tiles stand where nnunetv2's stand and count with its Gaussian; sums are float32, where nnunetv2's are float16.
Only the planes under the current row of tiles are kept: what no later row will touch is final, and leaves.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from medsegai.preprocessing.tiles import gaussian, padded, tile_starts

logger = logging.getLogger(__name__)

PLANES_AT_ONCE = 8
"""Final planes that are handed on together, and planes that a 2D network sees in one batch."""

Box = tuple[slice, slice, slice]

Predict = Callable[[Tensor], Tensor]
"""Patches (N, channel, *patch) to logits (N, class, *patch), float32."""


@dataclass(frozen=True)
class Window:
    """Where tiles stand on an image. A network for single planes sees some of them together, in a batch.

    Attributes:
        image: float32 (channel, k, j, i), padded to at least one tile.
        inside: what of the padded image was asked for.
        patch: size of a tile; (j, i) for networks that see single planes.
        rows: first planes of the rows of tiles, ascending.
        corners: first (j, i) of the tiles in each row.
        reversed: rows and planes go from the last to the first.
    """

    image: Tensor
    inside: Box
    patch: tuple[int, ...]
    rows: list[int]
    corners: list[tuple[int, int]]
    reversed: bool = False

    @property
    def depth(self) -> int:
        """Planes in a row of tiles."""
        return self.patch[0] if len(self.patch) == 3 else PLANES_AT_ONCE

    @property
    def tiles(self) -> int:
        return len(self.rows) * len(self.corners)


def window(
    image: Tensor, patch: Sequence[int], step: float, wanted: Box, reversed: bool = False
) -> Window:
    """All tiles over `image` (channel, k, j, i) that touch the `wanted` box of it."""
    padded_image, inside = padded(image, patch)
    starts = tile_starts(tuple(padded_image.shape[1:]), patch, step)
    tile = (*[1] * (3 - len(patch)), *patch)
    box = tuple(
        slice(place.start + part.start, place.start + part.stop)
        for place, part in zip(inside, wanted, strict=True)
    )
    planes, rows, columns = (
        [at for at in along if at < part.stop and at + size > part.start]
        for along, part, size in zip(starts, box, tile, strict=True)
    )
    if len(patch) == 2:
        planes = planes[::PLANES_AT_ONCE]
    corners = list(itertools.product(rows, columns))
    return Window(padded_image, (box[0], box[1], box[2]), tuple(patch), planes, corners, reversed)


def logits_by_planes(
    at: Window,
    networks: Sequence[tuple[Predict, float]],
    first_class: int,
    classes: int,
    notes: list[str],
) -> Iterator[Tensor]:
    """Weighted mean of the networks' logits, some final planes after another.

    Args:
        at: the tiles.
        networks: what predicts, with its weight; weights sum to one.
        first_class: channel of the result that the networks' first one goes to; those before stay zero.
        classes: channels of the result.
        notes: told when the sums do not fit beside the image on its device, and are kept on the CPU.

    Yields:
        float32 (class, planes, j, i), in order of the planes (of the reversed planes, if the window says so).
    """
    size = (at.depth, *at.image.shape[2:])
    total = zeros((classes, *size), at.image.device, notes)
    device = total.device
    weights = torch.zeros(size, device=device)
    importance = torch.tensor(gaussian(at.patch), device=device).reshape(-1, *at.patch[-2:])
    rows = at.rows[::-1] if at.reversed else at.rows
    for row, following in itertools.zip_longest(rows, rows[1:]):
        for predict, weight in networks:
            for j, i in at.corners:
                tile = (slice(j, j + at.patch[-2]), slice(i, i + at.patch[-1]))
                logits = _tile(at, predict, row, tile)
                total[(slice(first_class, None), slice(logits.shape[1]), *tile)].add_(
                    logits.to(device) * importance, alpha=weight
                )
        for j, i in at.corners:
            weights[:, j : j + at.patch[-2], i : i + at.patch[-1]] += importance
        final = at.depth if following is None else min(abs(following - row), at.depth)
        yield from _final_planes(at, total, weights, row, final)
        _move_on(total, final, at.reversed)
        _move_on(weights[None], final, at.reversed)


def zeros(shape: Sequence[int], device: torch.device, notes: list[str]) -> Tensor:
    """float32 zeros on the device, or on the CPU where it has too little memory."""
    try:
        return torch.zeros(shape, device=device)
    except torch.OutOfMemoryError:
        note = "The GPU had too little memory for the sum of the tiles, which was kept on the CPU."
        logger.warning(note)
        notes.append(note)
        return torch.zeros(shape)


def _tile(at: Window, predict: Predict, row: int, tile: tuple[slice, slice]) -> Tensor:
    """Logits (class, k, j, i) of one tile."""
    patch = at.image[(slice(None), slice(row, row + at.depth), *tile)]
    if len(at.patch) == 2:
        return predict(patch.transpose(0, 1)).transpose(0, 1)
    return predict(patch[None])[0]


def _final_planes(
    at: Window, total: Tensor, weights: Tensor, row: int, count: int
) -> Iterator[Tensor]:
    """The planes of the sum that later rows do not touch, as far as they were asked for."""
    planes = range(at.depth - 1, at.depth - 1 - count, -1) if at.reversed else range(count)
    chosen = [plane for plane in planes if at.inside[0].start <= row + plane < at.inside[0].stop]
    for first in range(0, len(chosen), PLANES_AT_ONCE):
        some = torch.tensor(chosen[first : first + PLANES_AT_ONCE], device=total.device)
        values = total.index_select(1, some)[(..., *at.inside[1:])]
        yield values / weights.index_select(0, some)[(..., *at.inside[1:])]


def _move_on(total: Tensor, count: int, reversed: bool) -> None:
    """Let the planes (class, k, j, i) that are not final follow those that were, and clear the others."""
    depth = total.shape[1]
    order = range(depth - 1, -1, -1) if reversed else range(depth)
    for place in order:
        source = place - count if reversed else place + count
        if 0 <= source < depth:
            total[:, place] = total[:, source]
        else:
            total[:, place] = 0.0


def mirrorings(axes: Sequence[int]) -> list[tuple[int, ...]]:
    """Every way to mirror along `axes` of a patch, none first, as dimensions of (N, channel, *patch)."""
    shifted = [axis + 2 for axis in axes]
    return [
        chosen
        for count in range(len(shifted) + 1)
        for chosen in itertools.combinations(shifted, count)
    ]

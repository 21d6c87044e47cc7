"""The sliding window: the tiles of a network are combined into logits, which are yielded plane by plane.

`window` places the tiles as nnunetv2 does, and they are weighted with its Gaussian; a family may use other places
and weights. Sums are float32, whereas nnunetv2's are float16. Only the planes under the current row of tiles are
kept in memory, because planes that no later row covers are final.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from medsegai.families import Step
from medsegai.networks.backends import Compute
from medsegai.networks.mapped_memory import mapped_zeros
from medsegai.preprocessing.tiles import gaussian, padded, tile_starts
from medsegai.volume import Box

logger = logging.getLogger(__name__)

PLANES_AT_ONCE = 8
"""Planes that a 2D network sees in one batch."""

PLANES_TURNED = 16
"""Planes that are brought into order together, where those of a tile do not lie one after another: their values
fill a line of the processor's cache, and a copy of them is small beside that of a whole tile."""

Predict = Callable[[Tensor], Tensor]
"""Patches (N, channel, *patch) to logits (N, class, *patch), float32 or half precision."""


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
        importance: how much each voxel of a tile counts, float32 of the shape of a patch; None for nnU-Net's
            Gaussian.
    """

    image: Tensor
    inside: Box
    patch: tuple[int, ...]
    rows: list[int]
    corners: list[tuple[int, int]]
    reversed: bool = False
    importance: Tensor | None = None

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
    dtype: torch.dtype = torch.float32,
) -> Iterator[Tensor]:
    """Weighted mean of the networks' logits, some final planes after another.

    Args:
        at: the tiles.
        networks: what predicts, with its weight; weights sum to one.
        first_class: channel of the result that the networks' first one goes to; those before stay zero.
        classes: channels of the result.
        notes: receives a sentence if the sums do not fit on the image's device and are kept on the CPU.
        dtype: of the sums. float16 takes half of the memory, and is finer than what networks compute in bfloat16.

    Yields:
        float32 (class, 1, j, i), in order of the planes (of the reversed planes, if the window says so).
    """
    sums = _Sums(at, classes, notes, dtype)
    rows = at.rows[::-1] if at.reversed else at.rows
    for row, following in itertools.zip_longest(rows, rows[1:]):
        for predict, weight in networks:
            for corner in at.corners:
                sums.add(_tile(at, predict, row, corner), corner, first_class, weight)
        sums.count()
        final = at.depth if following is None else min(abs(following - row), at.depth)
        yield from sums.take(row, final)


def reporting(
    predict: Predict, tiles: int, step: Step, finished: Callable[[], None] | None = None
) -> Predict:
    """The same prediction, which reports after each of `tiles` calls what share of them is done.

    `finished` is called after the last one.
    """
    done = 0

    def reported(patches: Tensor) -> Tensor:
        nonlocal done
        logits = predict(patches)
        done += 1
        step(min(done / tiles, 1.0))
        if done == tiles and finished is not None:
            finished()
        return logits

    return reported


def sums_dtype(compute: Compute) -> torch.dtype:
    """The type of the sums of a network's logits: half precision where the network computes in it."""
    return torch.float16 if compute.mixed else torch.float32


def zeros(
    shape: Sequence[int], device: torch.device, notes: list[str], dtype: torch.dtype
) -> Tensor:
    """Zeros on the device, or on the CPU where it has too little memory."""
    try:
        return torch.zeros(shape, device=device, dtype=dtype)
    except torch.OutOfMemoryError:
        note = "The GPU had too little memory for the sum of the tiles, which was kept on the CPU."
        logger.warning(note)
        notes.append(note)
        return torch.zeros(shape, dtype=dtype)


def _tile(at: Window, predict: Predict, row: int, corner: tuple[int, int]) -> Tensor:
    """Logits (class, k, j, i) of one tile."""
    along_j, along_i = _beside(at, corner)
    patch = at.image[:, row : row + at.depth, along_j, along_i]
    if len(at.patch) == 2:
        return predict(patch.transpose(0, 1)).transpose(0, 1)
    return predict(patch[None])[0]


def _beside(at: Window, corner: tuple[int, int]) -> tuple[slice, slice]:
    j, i = corner
    return slice(j, j + at.patch[-2]), slice(i, i + at.patch[-1])


class _Sums:
    """Sums over the planes under one row of tiles, and what their voxels weigh in them."""

    def __init__(self, at: Window, classes: int, notes: list[str], dtype: torch.dtype) -> None:
        size = at.image.shape[2:]
        total = zeros((at.depth, classes, *size), at.image.device, notes, dtype)
        self._at = at
        self._planes = list(total.unbind())
        self._weights = list(torch.zeros((at.depth, *size), device=total.device).unbind())
        weights = torch.tensor(gaussian(at.patch)) if at.importance is None else at.importance
        importance = weights.to(total.device)
        self._importance = importance.expand(at.depth, *at.patch[-2:])

    def add(self, logits: Tensor, corner: tuple[int, int], first_class: int, weight: float) -> None:
        """Add the logits (class, k, j, i) of a tile; the first of them goes to `first_class`."""
        tile = _beside(self._at, corner)
        for first in range(0, logits.shape[1], PLANES_TURNED):
            part = logits[:, first : first + PLANES_TURNED].to(self._importance.device)
            if 1 not in (part.stride(-1), part.stride(0)):
                part = part.contiguous()
            for number, value in enumerate(part.unbind(1), first):
                plane = self._planes[number][(slice(first_class, None), *tile)]
                plane.addcmul_(_by_class(value), self._importance[number], value=weight)

    def count(self) -> None:
        """Let a whole row of tiles weigh in."""
        for corner in self._at.corners:
            for plane, importance in zip(self._weights, self._importance, strict=True):
                plane[_beside(self._at, corner)] += importance

    def take(self, row: int, count: int) -> Iterator[Tensor]:
        """The first planes, which later rows do not touch, as far as they are wanted; then others stand there."""
        wanted, *inside = self._at.inside
        last = self._at.depth - 1
        for number in range(count):
            place = -1 if self._at.reversed else 0
            plane, weights = self._planes.pop(place), self._weights.pop(place)
            if wanted.start <= row + (last - number if self._at.reversed else number) < wanted.stop:
                values = plane[(slice(None), *inside)]
                mean = beside_the_heap(values.shape, values.device)
                torch.div(values, weights[tuple(inside)], out=mean)
                yield mean[:, None]
            new = 0 if self._at.reversed else last
            self._planes.insert(new, plane.zero_())
            self._weights.insert(new, weights.zero_())


def _by_class(plane: Tensor) -> Tensor:
    """Return logits (class, j, i) with those of a class together: a transposed matrix is the fastest way."""
    if plane.stride(0) != 1 or len(plane) == 1:
        return plane
    pixels = plane.permute(1, 2, 0).flatten(0, 1)
    return pixels.t().contiguous().view(plane.shape)


def beside_the_heap(shape: Sequence[int], device: torch.device) -> Tensor:
    """An empty float32 tensor of a shape; on the CPU in separate memory.

    A plane outlives the tile before it. In the heap it would stand where that tile's logits were, and those of
    the next tile, which are large, would need as much memory again.
    """
    if device.type != "cpu":
        return torch.empty(*shape, device=device)
    return mapped_zeros(shape, torch.float32)


def mirrorings(axes: Sequence[int]) -> list[tuple[int, ...]]:
    """Every way to mirror along `axes` of a patch, none first, as dimensions of (N, channel, *patch)."""
    shifted = [axis + 2 for axis in axes]
    return [
        chosen
        for count in range(len(shifted) + 1)
        for chosen in itertools.combinations(shifted, count)
    ]

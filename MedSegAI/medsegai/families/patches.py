"""The family of classifiers of patches and pictures, which predict heat maps with one value per cell of 32 pixels.

A model of patches runs over the tissue of a slide, tile by tile, at the magnification of its training; the logits
of a patch are the mean of those of its cells. A model of whole pictures sees a radiograph as a whole. Mirrored and
turned images are separate members, so that their disagreement is measured like that of folds.

A card of this family has `settings`: those of `PatchSettings`; each member has the `encoder` that it uses.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn.functional import conv2d

from medsegai.decoding.slides import Box, Pixels
from medsegai.errors import MismatchError, ModelError
from medsegai.families import Inputs, Part, Step
from medsegai.families._dropout import check_dropout
from medsegai.families._member_network import MemberNetwork, NetworkModel
from medsegai.inference.probabilities import Block
from medsegai.io.picture_sets import as_rgb
from medsegai.io.slides import Slide, SlideChannel, SlideGrid, open_slide
from medsegai.models.card import MemberCard, ModelCard
from medsegai.models.json_fields import from_json
from medsegai.models.suitability import WHAT_TO_DO
from medsegai.networks.backends import BatchRunner, Compute
from medsegai.networks.classifier import (
    CELL,
    CellClassifier,
    Cells,
    PictureLogits,
    describe_classifier,
)
from medsegai.preprocessing.tissue import tissue_mask
from medsegai.progress import Progress
from medsegai.request import SegmentationRequest
from medsegai.volume import Geometry, Volume

TILE_CELLS, OVERLAP_CELLS = 32, 8
"""Cells along a side of a tile, and those that neighbours share; they are averaged, those at the edge least."""

LEAST_TISSUE = 0.1
"""The share of a cell that must be tissue for the network to run on it."""

SAME_SIZE = 0.1
"""Pixels that differ by no more than a tenth from those of the training are taken as they are."""

COARSEST = 1.5
"""Pixels of an image that are so many times as long as those of the training cannot show what was learned."""

LARGEST_SIDE = 4096
"""The largest side, in pixels, of the pictures that a card may ask for."""

WAYS: dict[str, tuple[tuple[int, bool], ...]] = {
    "none": ((0, False),),
    "mirror": ((0, False), (0, True)),
    "all": tuple((turns, mirrored) for mirrored in (False, True) for turns in range(4)),
}
"""Quarter turns, and whether the picture is mirrored first, under which it means the same."""


@dataclass(frozen=True)
class PatchSettings:
    """The `settings` of a card of this family.

    Attributes:
        kind: of patch the model is run over the image, of picture the image is brought to `size`.
        size: (rows, columns) that were learned from, multiples of 32.
        mean, std: mean and standard deviation of red, green and blue (0 to 1) by which images are normalised.
        magnified: whether patches were learned at the size of pixels that the card gives as its spacing.
        symmetries: under which pictures mean the same.
    """

    kind: Literal["patch", "picture"]
    size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    magnified: bool = False
    symmetries: Literal["none", "mirror", "all"] = "none"

    def __post_init__(self) -> None:
        """Raises ModelError: sizes or deviations cannot be."""
        if any(side % CELL or not 0 < side <= LARGEST_SIDE for side in self.size):
            raise ModelError(
                f"size must be multiples of {CELL} up to {LARGEST_SIDE}, not {list(self.size)}."
            )
        if min(self.std) <= 0:
            raise ModelError(f"std must be above 0, not {list(self.std)}.")


def load(card: ModelCard) -> PatchesModel:
    """Load a card of this family; networks are read when they are first used.

    Raises:
        ModelError: its settings do not describe classifiers.
    """
    return PatchesModel(card)


class PatchesModel(NetworkModel["_Network"]):
    """Classifiers that are run over an image."""

    def __init__(self, card: ModelCard) -> None:
        try:
            self.settings = from_json(PatchSettings, dict(card.settings))
            networks = {
                member.name: _Network(card, member, self.settings) for member in card.members
            }
        except ModelError as error:
            raise ModelError(f"Model {card.id!r}: {error}") from None
        super().__init__(card, networks)
        if len(card.channels) not in (1, 3) or card.dimensions != 2:
            raise ModelError(
                f"Model {card.id!r} must be of two dimensions, and have the channels red, green and blue, or one."
            )

    def parts(
        self,
        inputs: Inputs,
        output: Geometry,
        request: SegmentationRequest,
        compute: Compute,
        progress: Progress,
    ) -> list[Part]:
        """One part on the grid of cells, with a member for each network and each way to turn the image."""
        check_dropout(request, self.card, has_dropout=False)
        chosen = self.card.chosen_members(request.members)
        ways = WAYS[self.settings.symmetries if request.mirroring else "none"]
        view = _view(self.card, self.settings, inputs.scans, request.anyway)
        wanted = view.cells.box_around_grid(output)
        members = [
            CellMember(self.networks[member.name], view, way, wanted)
            for member in chosen
            for way in ways
        ]
        for member in members:
            member.weight /= len(ways)
        names = [member.name for member in chosen]
        part = Part(view.cells, members, names, warnings=view.warnings)
        return [replace(part, findings=lambda: view.findings(members, self.card))]

    def sized(self, pixels: Pixels) -> Pixels:
        """The picture in the size of the training pictures."""
        return _resized(pixels, self.settings.size)

    def picture_network(self) -> PictureLogits:
        """The first member as a network of pictures with values from 0 to 255, for heat maps."""
        first = self.card.chosen_members(())[0]
        return PictureLogits(self.networks[first.name].load())

    def classify(
        self, pixels: Pixels, compute: Compute, mirroring: bool = True
    ) -> NDArray[np.floating]:
        """Probabilities of the channels for one picture, mean of members and ways to turn it, (channel).

        Args:
            pixels: RGB (row, column, 3), of any size.
            compute: where it runs.
            mirroring: whether turned and mirrored copies are looked at too.
        """
        image = torch.from_numpy(np.moveaxis(self.sized(pixels), -1, 0).astype(np.float32))[None]
        total, weights = np.zeros(len(self.card.members[0].classes)), 0.0
        ways = WAYS[self.settings.symmetries if mirroring else "none"]
        for member in self.card.chosen_members(()):
            runner = self.networks[member.name].runner(compute)
            for way in ways:
                logits = runner(_turned(image, way), compute).float().mean((2, 3)).softmax(1)
                total += member.weight * logits[0].cpu().numpy().astype(np.float64)
                weights += member.weight
        return total / weights


class _Network(MemberNetwork):
    """The classifier of one member."""

    def __init__(self, card: ModelCard, member: MemberCard, settings: PatchSettings) -> None:
        super().__init__(card, member)
        self._settings = settings
        if len(member.classes) < 2:
            raise ModelError(f"member {member.name!r} needs at least two classes.")
        self._empty()

    def _empty(self) -> CellClassifier:
        return describe_classifier(self.member.settings, len(self.member.classes))

    def load(self) -> Cells:
        network = self._filled(self._empty)
        mean, std = (torch.tensor(v) for v in (self._settings.mean, self._settings.std))
        return Cells(network, mean, std).eval()


@dataclass(frozen=True, eq=False)
class View:
    """An image as the networks see it, and the grid of the cells that they predict.

    Attributes:
        cells: the grid of cells, one plane.
        read: gives RGB (row, column, 3) of a box of pixels, white outside of the image.
        tissue: which cells are looked at, bool (row, column).
        window: cells (rows, columns) whose mean is the answer of one; 1 for those of a whole picture.
        tile: cells (rows, columns) of a tile.
        is_whole: whether the image is seen as one picture, in one tile.
        warnings: in words.
    """

    cells: Geometry
    read: Callable[[Box], Pixels]
    tissue: NDArray[np.bool_]
    window: tuple[float, float]
    tile: tuple[int, int] = (TILE_CELLS, TILE_CELLS)
    is_whole: bool = False
    warnings: tuple[str, ...] = ()

    def findings(self, members: Sequence[CellMember], card: ModelCard) -> tuple[str, ...]:
        """What members say of the picture as a whole, in words; nothing of parts of a slide."""
        known = [member.whole for member in members if member.whole is not None]
        if not self.is_whole or not known:
            return ()
        mean = torch.stack(known).mean(0)
        feeds = card.members[0].classes
        names = {label.value: label.name for label in card.labels}
        words = [
            f"{names[values[0]]} {float(mean[number]):.2f}"
            for number, values in enumerate(feeds)
            if values
        ]
        return (f"Probability for the picture as a whole: {', '.join(words)}.",)


def _view(card: ModelCard, settings: PatchSettings, scans: Sequence[Volume], anyway: bool) -> View:
    """Prepare the image for the model.

    Raises:
        RequestError: it has several slices, or another number of channels.
        MismatchError: the size of its pixels is not known or too coarse, and `anyway` is false.
    """
    first = scans[0]
    if settings.kind == "picture":
        return _whole_view(settings, scans)
    if isinstance(first, SlideChannel):
        return _slide_view(card, settings, open_slide(first.slide), anyway)
    pixels = as_rgb(scans)
    factor, warnings = _factor(card, settings, first, anyway)
    rows, columns = (max(1, round(size / factor)) for size in pixels.shape[:2])
    sized = _resized(pixels, (rows, columns))
    grid = first.geometry.resized((1, rows, columns))
    cells = _cell_grid(grid)
    tissue = _share_of_cells(tissue_mask(sized), cells.shape[1:], (CELL, CELL))
    return View(cells, _reader(sized), tissue, _window(settings), warnings=warnings)


def _whole_view(settings: PatchSettings, scans: Sequence[Volume]) -> View:
    sized = _resized(as_rgb(scans), settings.size)
    rows, columns = (size // CELL for size in settings.size)
    cells = scans[0].geometry.resized((1, rows, columns))
    every = np.ones((rows, columns), bool)
    return View(cells, _reader(sized), every, (1.0, 1.0), (rows, columns), is_whole=True)


def _slide_view(card: ModelCard, settings: PatchSettings, slide: Slide, anyway: bool) -> View:
    warnings: tuple[str, ...] = ()
    if settings.magnified and slide.spacing_mm is None:
        words = _size_unknown(slide, card)
        if not anyway:
            raise MismatchError(f"{words} {WHAT_TO_DO}")
        warnings = (f"{words} Its finest pixels were taken.",)
    magnified = settings.magnified and not warnings
    grid = slide.grid_of(card.spacing_mm[0]) if magnified else slide.grid(1.0)
    finest = math.sqrt(math.prod(slide.spacing_mm)) if slide.spacing_mm else 0.0
    if settings.magnified and finest > COARSEST * card.spacing_mm[0] and not anyway:
        raise MismatchError(f"{_too_coarse(str(slide.path), finest, card)} {WHAT_TO_DO}")
    cells = _cell_grid(slide.geometry(grid))
    return View(
        cells,
        lambda box: slide.read(grid, box),
        _tissue_of(slide, grid, cells.shape[1:]),
        _window(settings),
        warnings=warnings,
    )


def _size_unknown(slide: Slide, card: ModelCard) -> str:
    return (
        f"{slide.path} does not state the size of its pixels, so the magnification that "
        f"{card.name} learned at cannot be found."
    )


def _factor(
    card: ModelCard, settings: PatchSettings, scan: Volume, anyway: bool
) -> tuple[float, tuple[str, ...]]:
    """The number of image pixels along one training pixel, and warnings about it."""
    if not settings.magnified:
        return 1.0, ()
    name = scan.source or "The image"
    if not scan.size_known:
        words = f"{name} does not state the size of its pixels, but {card.name} needs it."
        if not anyway:
            raise MismatchError(f"{words} {WHAT_TO_DO}")
        return 1.0, (f"{words} The pixels were used as they are.",)
    own = math.sqrt(math.prod(scan.geometry.spacing_mm[:2]))
    factor = card.spacing_mm[0] / own
    if factor < 1 / COARSEST and not anyway:
        raise MismatchError(f"{_too_coarse(name, own, card)} {WHAT_TO_DO}")
    return (1.0 if abs(factor - 1) <= SAME_SIZE else factor), ()


def _too_coarse(name: str, own: float, card: ModelCard) -> str:
    return (
        f"{name} has pixels of {1000 * own:.3g} micrometres, and {card.name} learned from pixels of "
        f"{1000 * card.spacing_mm[0]:.3g}."
    )


def _cell_grid(grid: Geometry) -> Geometry:
    """The cells over a grid of pixels; the last ones may reach beyond it."""
    rows, columns = (math.ceil(size / CELL) for size in grid.shape[1:])
    return grid.cropped((0, 0, 0), (1, rows * CELL, columns * CELL)).resized((1, rows, columns))


def _window(settings: PatchSettings) -> tuple[float, float]:
    rows, columns = settings.size
    return rows / CELL, columns / CELL


def _reader(pixels: Pixels) -> Callable[[Box], Pixels]:
    """A function that reads boxes of pixels from memory; pixels outside of the image are white."""

    def read(box: Box) -> Pixels:
        result = np.full((box.rows, box.columns, 3), 255, np.uint8)
        inside = box.within(*pixels.shape[:2])
        if inside is not None:
            top, left = inside.top - box.top, inside.left - box.left
            result[top : top + inside.rows, left : left + inside.columns] = pixels[
                inside.top : inside.top + inside.rows, inside.left : inside.left + inside.columns
            ]
        return result

    return read


def _tissue_of(slide: Slide, grid: SlideGrid, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Which cells of a slide have tissue, by an overview with some pixels for each."""
    along = 4 if max(shape) <= 2048 else 2
    coarse = slide.grid(grid.downsample * CELL / along)
    each = CELL * grid.downsample / coarse.downsample
    return _share_of_cells(tissue_mask(slide.overview(coarse)), shape, (each, each))


def _share_of_cells(
    mask: NDArray[np.bool_], shape: tuple[int, ...], each: tuple[float, float]
) -> NDArray[np.bool_]:
    """Cells of which enough is in a mask; `each` pixels of the mask (rows, columns) are a cell."""
    rows, columns = shape
    needed = [math.ceil(count * size) for count, size in zip(shape, each, strict=True)]
    missing = [(0, max(0, n - size)) for n, size in zip(needed, mask.shape, strict=True)]
    padded = np.pad(mask, missing).astype(np.float32)
    edges = (0.0, 0.0, columns * each[1], rows * each[0])
    share = Image.fromarray(padded).resize((columns, rows), Image.Resampling.BOX, box=edges)
    return np.asarray(share) >= LEAST_TISSUE


def _resized(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    if pixels.shape[:2] == size:
        return pixels
    return np.asarray(Image.fromarray(pixels).resize(size[::-1], Image.Resampling.BILINEAR))


def _turned(values: Tensor, way: tuple[int, bool], back: bool = False) -> Tensor:
    """Values (..., row, column) mirrored left to right and turned by quarters; `back` undoes it."""
    turns, mirrored = way
    if back:
        values = values.rot90(-turns, (-2, -1))
        return values.flip(-1) if mirrored else values
    values = values.flip(-1) if mirrored else values
    return values.rot90(turns, (-2, -1))


class CellMember:
    """One network over the cells of an image, turned in one way.

    Attributes:
        whole: probabilities of the channels for the picture as a whole (channel), once it has predicted.
    """

    def __init__(
        self,
        network: _Network,
        view: View,
        way: tuple[int, bool],
        wanted: tuple[slice, slice, slice] | None,
    ) -> None:
        self._network, self._view, self._way, self._wanted = network, view, way, wanted
        turns, mirrored = way
        what = " mirrored" * mirrored + (f" turned {90 * turns}" if turns else "")
        self.name, self.weight = network.member.name + what, network.member.weight
        own = network.member.classes
        self._background = next((n for n, feeds in enumerate(own) if not feeds), None)
        extra: list[tuple[int, ...]] = [()] if self._background is None else []
        self.classes: Sequence[Sequence[int]] = (*extra, *own)
        self.whole: Tensor | None = None

    def predict(self, compute: Compute, step: Step) -> Iterator[Block]:
        """Probabilities of all cells; those without tissue are background."""
        if self._wanted is None:
            return
        logits, seen = self._logits(compute, step)
        if self._view.is_whole:
            self.whole = logits.mean((1, 2)).softmax(0)
        values = _averaged(logits, self._view.window, seen).softmax(0)
        nothing = torch.zeros_like(values[:1])
        if self._background is None:
            values = torch.cat([nothing, values])
        outside = torch.from_numpy(~self._view.tissue)
        values[:, outside] = 0.0
        values[self._background or 0, outside] = 1.0
        yield Block((0, 0, 0), values[:, None])

    def _logits(self, compute: Compute, step: Step) -> tuple[Tensor, Tensor]:
        """Logits of the cells, float32 (channel, row, column), and which were looked at, bool (row, column)."""
        shape = self._view.tissue.shape
        channels = len(self._network.member.classes)
        total, weights = torch.zeros(channels, *shape), torch.zeros(shape)
        runner = self._network.runner(compute)
        places = list(self._places())
        for done, (row, column) in enumerate(places):
            step(done / len(places))
            found = self._tile(runner, compute, row, column)
            share = _tile_weights(found.shape[1:])
            own, there = _common(row, column, found.shape[1:], shape)
            total[(slice(None), *there)] += (found * share)[(slice(None), *own)]
            weights[there] += share[own]
        step(1.0)
        return total / weights.clamp(min=1e-9), weights > 0

    def _tile(self, runner: BatchRunner, compute: Compute, row: int, column: int) -> Tensor:
        rows, columns = self._view.tile
        pixels = self._view.read(Box(row * CELL, column * CELL, rows * CELL, columns * CELL))
        image = torch.from_numpy(np.moveaxis(pixels, -1, 0).astype(np.float32))[None]
        answer = runner(_turned(image, self._way).contiguous().to(compute.device), compute)
        return _turned(answer.float().cpu(), self._way, back=True)[0]

    def _places(self) -> Iterator[tuple[int, int]]:
        """First cells (row, column) of the tiles that have tissue, and that the wanted box needs."""
        if self._view.is_whole:
            yield 0, 0
            return
        assert self._wanted is not None
        tissue = np.zeros_like(self._view.tissue)
        margin = math.ceil(max(self._view.window) / 2)
        box = tuple(
            slice(max(part.start - margin, 0), part.stop + margin) for part in self._wanted[1:]
        )
        tissue[box] = self._view.tissue[box]
        half, (rows, columns) = OVERLAP_CELLS // 2, self._view.tile
        for row in range(-half, tissue.shape[0], rows - OVERLAP_CELLS):
            for column in range(-half, tissue.shape[1], columns - OVERLAP_CELLS):
                if tissue[max(row, 0) : row + rows, max(column, 0) : column + columns].any():
                    yield row, column


def _common(
    row: int, column: int, tile: Sequence[int], shape: Sequence[int]
) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """What a tile that begins at a cell shares with an image of that shape: in the tile, and in the image."""
    own, there = [], []
    for first, count, size in zip((row, column), tile, shape, strict=True):
        begin, end = max(first, 0), min(first + count, size)
        own.append(slice(begin - first, end - first))
        there.append(slice(begin, end))
    return (own[0], own[1]), (there[0], there[1])


def _tile_weights(shape: Sequence[int]) -> Tensor:
    """How much each cell of a tile counts: little at its edge, where the network did not see what lies beyond."""
    along = [
        torch.minimum(torch.arange(n), torch.arange(n).flip(0)).clamp(max=OVERLAP_CELLS).float()
        + 0.5
        for n in shape
    ]
    return torch.minimum(along[0][:, None], along[1][None])


def _averaged(logits: Tensor, window: tuple[float, float], seen: Tensor) -> Tensor:
    """The mean over a window of the cells around each that were looked at, (channel, row, column).

    Args:
        logits: (channel, row, column), 0 where no cell was looked at.
        window: rows and columns of cells.
        seen: which cells were looked at, bool (row, column).
    """
    kernels = [_kernel(size) for size in window]
    kernel = (kernels[0][:, None] * kernels[1][None])[None, None]
    padding = (kernel.shape[2] // 2, kernel.shape[3] // 2)
    sums = conv2d(logits[:, None], kernel, padding=padding)[:, 0]
    count = conv2d(seen[None, None].float(), kernel, padding=padding)[0]
    return sums / count.clamp(min=1e-6)


def _kernel(size: float) -> Tensor:
    """Weights of an odd number of cells whose sum is `size`: of even sizes the outermost two count half."""
    reach = math.ceil((size - 1) / 2)
    weights = torch.ones(2 * reach + 1)
    if reach:
        weights[0] = weights[-1] = (size - (2 * reach - 1)) / 2
    return weights

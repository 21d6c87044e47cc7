"""The family of 3D U-Nets for whole heads: each member sees patches of the conformed head.

A card of this family has `settings`: grid (i, j, k voxels), intensity, antialias; each member has `settings`:
network and its shape (see `networks.volumetric`), patch (k, j, i), perhaps its own spacing_mm and grid, and the
class_weights of its loss with the weight_power to undo them by.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medsegai.boxes import middle
from medsegai.errors import ModelError, RequestError
from medsegai.families import Inputs, Part, Step
from medsegai.families._dropout import check_dropout
from medsegai.families._head import HeadGrid, class_weight_offsets
from medsegai.families._member_network import MemberNetwork, NetworkModel
from medsegai.families._sliding import logits_by_planes, reporting, sums_dtype, window
from medsegai.inference.activation import Activation
from medsegai.inference.probabilities import Block
from medsegai.models.card import MemberCard, ModelCard
from medsegai.models.json_fields import from_json, number
from medsegai.networks.backends import Compute
from medsegai.networks.volumetric import describe_network, smallest_multiple
from medsegai.preprocessing.contrast import inverted
from medsegai.progress import Progress
from medsegai.request import SegmentationRequest
from medsegai.volume import Box, Geometry

MOST_PATCH_VOXELS = 2**23
"""Voxels of a patch that a card may ask for: a cube of 203, more than any network of today was trained on."""


@dataclass(frozen=True)
class Settings:
    """The `settings` of a card and of a member, except those of the network.

    Attributes:
        patch: (k, j, i) voxels that the network sees at once.
        grid, spacing_mm, intensity, antialias: see `HeadGrid`; grid and spacing along (i, j, k).
    """

    patch: tuple[int, int, int]
    grid: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    intensity: str = "percentile"
    antialias: bool = True

    @classmethod
    def of(cls, card: ModelCard, member: MemberCard) -> Settings:
        """Raises ModelError: one of them is missing, of another type, or too large."""
        given = {"spacing_mm": card.spacing_mm, **card.settings, **member.settings}
        own = {item.name for item in fields(cls)}
        settings = from_json(cls, {name: given[name] for name in own & set(given)})
        for size in settings.patch:
            number(size, "patch", 1, MOST_PATCH_VOXELS)
        number(math.prod(settings.patch), "The number of voxels of a patch", 1, MOST_PATCH_VOXELS)
        if not member.classes:
            raise ModelError("classes are missing.")
        return settings

    def head_grid(self) -> HeadGrid:
        return HeadGrid(self.grid, self.spacing_mm, self.intensity, self.antialias)


def load(card: ModelCard) -> UNet3DModel:
    """Load a card of this family; networks are read when they are first used.

    Raises:
        ModelError: its settings do not describe networks, grids and patches.
    """
    return UNet3DModel(card)


class UNet3DModel(NetworkModel["_Network"]):
    """3D networks, each on its own grid."""

    def __init__(self, card: ModelCard) -> None:
        super().__init__(card, {member.name: _Network(card, member) for member in card.members})

    def parts(
        self,
        inputs: Inputs,
        output: Geometry,
        request: SegmentationRequest,
        compute: Compute,
        progress: Progress,
    ) -> list[Part]:
        """One part for each grid, with the members that work on it."""
        if len(inputs.scans) != 1:
            raise RequestError(f"Model {self.card.id!r} takes one image, not {len(inputs.scans)}.")
        check_dropout(request, self.card, has_dropout=False)
        by_grid: dict[HeadGrid, list[MemberCard]] = {}
        for member in self.card.chosen_members(request.members):
            by_grid.setdefault(self.networks[member.name].grid, []).append(member)
        return [
            self._part(grid, members, inputs, output, request) for grid, members in by_grid.items()
        ]

    def entropies(self, inputs: Inputs, compute: Compute) -> tuple[float, float]:
        """See `_contrast.ComparesContrasts`; it looks at one patch in the middle of the head."""
        card = self.card.member(self.card.contrast_member)
        network = self.networks[card.name]
        head = network.grid.head(inputs)
        box = middle(network.grid.kept(head), network.patch)
        plain, other = (
            _mean_entropy(network, card, np.ascontiguousarray(voxels[box]), compute)
            for voxels in (head.voxels, inverted(head.voxels))
        )
        return plain, other

    def _part(
        self,
        grid: HeadGrid,
        members: Sequence[MemberCard],
        inputs: Inputs,
        output: Geometry,
        request: SegmentationRequest,
    ) -> Part:
        head = grid.head(inputs)
        kept = grid.kept(head)
        answered = head.geometry.part(kept)
        wanted = answered.box_around_grid(output)
        image = torch.from_numpy(np.ascontiguousarray(head.voxels[kept]))[None]
        patches = [
            PatchMember(self.networks[member.name], member, image, wanted, request.tile_step)
            for member in members
        ]
        return Part(answered, patches, [member.name for member in members])


class _Network(MemberNetwork):
    """The network of one member, and the grid and patches that it works on."""

    def __init__(self, card: ModelCard, member: MemberCard) -> None:
        super().__init__(card, member)
        try:
            settings = Settings.of(card, member)
            self.patch, self.grid = settings.patch, settings.head_grid()
            self.offsets = class_weight_offsets(member)
            multiples = smallest_multiple(self._empty())
        except ModelError as error:
            raise ModelError(f"Member {member.name!r} of model {card.id!r}: {error}") from None
        if any(size % multiple for size, multiple in zip(self.patch, multiples, strict=True)):
            raise ModelError(
                f"Member {member.name!r} of model {card.id!r} has a patch of {self.patch} voxels, which are not "
                f"multiples of {tuple(multiples)}, as its network needs."
            )

    def usual_batch(self) -> tuple[int, ...]:
        """A patch."""
        return (1, 1, *self.patch)

    def load(self) -> torch.nn.Module:
        return self._filled(self._empty)

    def _empty(self) -> torch.nn.Module:
        """The network without weights, so that memory is taken for those in the file, whatever a card says."""
        return describe_network(self.member.settings, len(self.member.classes))


def _mean_entropy(
    network: _Network, card: MemberCard, voxels: NDArray[np.float32], compute: Compute
) -> float:
    """The mean entropy, in nats, where a member finds structures in (k, j, i); infinity where it finds none."""
    k, j, i = (slice(0, size) for size in voxels.shape)
    member = PatchMember(network, card, torch.from_numpy(voxels)[None], (k, j, i), tile_step=1.0)
    background = next(channel for channel, feeds in enumerate(card.classes) if not feeds)
    total, count = 0.0, 0
    for block in member.predict(compute, lambda share: None):
        found = block.values.argmax(0) != background
        total += float(Activation.PROBABILITIES.entropy(block.values, 0)[found].sum())
        count += int(found.sum())
    return total / count if count else math.inf


@dataclass
class PatchMember:
    """One network over the head.

    Attributes:
        image: the head on the native grid, float32 (1, k, j, i).
        wanted: the box of the native grid that is asked for; None for nothing of it.
        tile_step: distance of neighbouring patches as a part of the patch.
    """

    network: _Network
    member: MemberCard
    image: Tensor
    wanted: Box | None
    tile_step: float
    name: str = field(init=False)
    weight: float = field(init=False)
    classes: Sequence[Sequence[int]] = field(init=False)

    def __post_init__(self) -> None:
        self.name, self.weight = self.member.name, self.member.weight
        self.classes = self.member.classes

    def predict(self, compute: Compute, step: Step) -> Iterator[Block]:
        """Planes of probabilities from front to back of the wanted box."""
        if self.wanted is None:
            return
        image = self.image.to(compute.device)
        at = window(image, self.network.patch, self.tile_step, self.wanted)
        runner = self.network.runner(compute)
        predict = reporting(
            lambda patch: runner(patch, compute), at.tiles, step, compute.release_memory
        )  # half of the planes are only combined after the last patch, and need room themselves
        offsets = self.network.offsets
        start = [part.start for part in self.wanted]
        classes, kind = len(self.classes), sums_dtype(compute)
        planes = logits_by_planes(at, [(predict, 1.0)], 0, classes, compute.notes, kind)
        for plane, logits in enumerate(planes):
            if offsets is not None:
                logits = logits - offsets.to(logits.device)[:, None, None, None]
            yield Block((start[0] + plane, start[1], start[2]), logits.softmax(0))

"""The family of 2D networks for single images: radiographs and photographs, grey or in colours.

A card of this family has `settings`: those of `PictureSettings`; the network (see `UNet2DConfig`), in the card or
in a member; `mirror`, the axes (0: up and down, 1: left and right) along which images may be mirrored; and
`answer`, "softmax" or, of a single channel, "sigmoid".
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from medsegai.errors import ModelError, RequestError
from medsegai.families import Inputs, Part, Step
from medsegai.families._dropout import check_dropout
from medsegai.families._imported_weights import save_imported_weights
from medsegai.families._member_network import MemberNetwork, NetworkModel
from medsegai.families._memory import check_memory
from medsegai.families._sliding import logits_by_planes, mirrorings, reporting, window
from medsegai.inference.probabilities import Block
from medsegai.io import write_card
from medsegai.labels import Label, made_color
from medsegai.models.card import Channel, MemberCard, ModelCard, load_card
from medsegai.models.json_fields import from_json, to_json
from medsegai.networks.backends import Compute
from medsegai.networks.encoder_weights import IMAGENET_MEAN, IMAGENET_STD, read_state
from medsegai.networks.smp_weights import SMP_ENDINGS, Imported, imported
from medsegai.networks.unet2d import UNet2D, UNet2DConfig
from medsegai.preprocessing.pictures import PictureSettings
from medsegai.progress import Progress
from medsegai.request import SegmentationRequest
from medsegai.volume import Box, Geometry, Volume

Kind = TypeVar("Kind")

BYTES_A_VOXEL = 16
"""The memory per voxel and channel of an image: as it is, scaled, resized and normalised."""


@dataclass(frozen=True)
class Answering:
    """The settings of a card for the network's output.

    Attributes:
        mirror: axes of the image (0: rows, 1: columns) along which mirrored images are as good.
        answer: "softmax" over all channels, or "sigmoid" of a single one, for the one label of the card.
    """

    mirror: tuple[int, ...] = ()
    answer: Literal["softmax", "sigmoid"] = "softmax"

    def __post_init__(self) -> None:
        """Raises ModelError: there is no such axis."""
        if not set(self.mirror) <= {0, 1}:
            raise ModelError(f"mirror must name the axes 0 and 1, not {list(self.mirror)}.")

    def mirrorings(self, wanted: bool) -> list[tuple[int, ...]]:
        """Every way to mirror, none first, as dimensions of (N, channel, j, i)."""
        return mirrorings(self.mirror if wanted else ())


def load(card: ModelCard) -> UNet2DModel:
    """Load a card of this family; networks are read when they are first used.

    Raises:
        ModelError: its settings do not describe networks and images.
    """
    return UNet2DModel(card)


class UNet2DModel(NetworkModel["_Network"]):
    """2D networks that see an image as a whole, or tile by tile."""

    def __init__(self, card: ModelCard) -> None:
        try:
            self.picture = _settings(PictureSettings, card)
            self.answering = _settings(Answering, card)
        except ModelError as error:
            raise ModelError(f"Model {card.id!r}: {error}") from None
        if self.picture.mean and len(self.picture.mean) != len(card.channels):
            raise ModelError(
                f"Model {card.id!r}: mean and std must have a number for each channel."
            )
        networks = {member.name: _Network(card, member, self.answering) for member in card.members}
        super().__init__(card, networks)

    def parts(
        self,
        inputs: Inputs,
        output: Geometry,
        request: SegmentationRequest,
        compute: Compute,
        progress: Progress,
    ) -> list[Part]:
        """One part, with a member for each network and each way to mirror the image."""
        wanted, given = len(self.card.channels), len(inputs.scans)
        if given != wanted:
            raise RequestError(f"Model {self.card.id!r} takes {wanted} channels, not {given}.")
        check_dropout(request, self.card, has_dropout=False)
        image, geometry = self.prepare(inputs.scans)
        box = geometry.box_around_grid(output)
        ways = self.answering.mirrorings(request.mirroring)
        chosen = self.card.chosen_members(request.members)
        members = [
            PictureMember(
                self.networks[member.name],
                image,
                box,
                _Tiling(self.picture.tile, request.tile_step),
                way,
            )
            for member in chosen
            for way in ways
        ]
        for member in members:
            member.weight /= len(ways)
        return [Part(geometry, members, [member.name for member in chosen])]

    def prepare(self, inputs: Sequence[Volume]) -> tuple[Tensor, Geometry]:
        """The image (channel, k, j, i) as networks see it, and the grid of its part that they answer for."""
        grid = inputs[0].geometry
        check_memory((len(inputs), *grid.shape), BYTES_A_VOXEL)
        planes = [
            self.picture.normalised(self.picture.fitted(self.picture.scaled(pixels)))
            for pixels in (
                np.stack([volume.voxels[k] for volume in inputs]) for k in range(grid.shape[0])
            )
        ]
        fitted = grid.resized((grid.shape[0], *self.picture.fitted_shape(grid.shape[1:])))
        return torch.stack(planes, dim=1), fitted


@dataclass(frozen=True)
class _Tiling:
    """Size (j, i) of tiles, and their distance as a part of it."""

    patch: tuple[int, int]
    step: float


class _Network(MemberNetwork):
    """The network of one member, and the meaning of its output."""

    def __init__(self, card: ModelCard, member: MemberCard, answering: Answering) -> None:
        super().__init__(card, member)
        self.sigmoid = answering.answer == "sigmoid"
        count = len(member.classes)
        if count < 2 or (self.sigmoid and count != 2):
            raise ModelError(
                f"Member {member.name!r} of model {card.id!r} needs classes: two for a sigmoid, background first, "
                "else one for each channel."
            )
        settings = {**card.settings, **member.settings}
        try:
            self.config = UNet2DConfig.of(
                settings, len(card.channels), 1 if self.sigmoid else count
            )
        except ModelError as error:
            raise ModelError(f"Member {member.name!r} of model {card.id!r}: {error}") from None

    def probabilities(self, logits: Tensor) -> Tensor:
        """Convert logits (channel, ...) to the probabilities of the classes, along the same axis."""
        if self.sigmoid:
            inside = logits.sigmoid()
            return torch.cat([1.0 - inside, inside])
        return logits.softmax(0)

    def load(self) -> UNet2D:
        return self._filled(self._empty, left_out="deep_heads.")

    def _empty(self) -> UNet2D:
        with torch.device("meta"):
            return UNet2D(replace(self.config, deep_supervision=False))


class PictureMember:
    """One network over an image, mirrored in one way.

    Attributes:
        image: float32 (channel, k, j, i), at least one tile large.
        wanted: the box of the native grid that is asked for; None for nothing of it.
        way: dimensions of (N, channel, j, i) that are mirrored.
    """

    def __init__(
        self,
        network: _Network,
        image: Tensor,
        wanted: Box | None,
        tiling: _Tiling,
        way: tuple[int, ...],
    ) -> None:
        self._network, self._tiling = network, tiling
        self.image, self.wanted, self.way = image, wanted, way
        mirrored = " mirrored " + "".join("ji"[axis - 2] for axis in way) if way else ""
        self.name = network.member.name + mirrored
        self.weight = network.member.weight
        self.classes: Sequence[Sequence[int]] = network.member.classes

    def predict(self, compute: Compute, step: Step) -> Iterator[Block]:
        """Probabilities, one plane after another."""
        if self.wanted is None:
            return
        image = self.image.to(compute.device)
        at = window(image, self._tiling.patch, self._tiling.step, self.wanted)
        runner = self._network.runner(compute)
        predict = reporting(
            lambda tiles: runner(tiles.flip(self.way), compute).flip(self.way), at.tiles, step
        )
        start = [part.start for part in self.wanted]
        channels = self._network.config.classes
        planes = logits_by_planes(at, [(predict, 1.0)], 0, channels, compute.notes)
        for plane, logits in enumerate(planes):
            place = (start[0] + plane, start[1], start[2])
            yield Block(place, self._network.probabilities(logits))


def _settings(kind: type[Kind], card: ModelCard) -> Kind:
    own = {item.name for item in fields(kind)} & set(card.settings)  # type: ignore[arg-type]
    return from_json(kind, {name: card.settings[name] for name in own})


def _found(path: Path) -> Imported | None:
    file, config = path, None
    if path.is_dir():
        file, config = path / "model.safetensors", path / "config.json"
        if not file.is_file() or not config.is_file():
            return None
    elif not path.name.endswith(SMP_ENDINGS):
        return None
    try:
        state = read_state(file)
    except ModelError:
        if file.suffix in (".pth", ".pt"):  # another family's, which will say what is wrong
            return None
        raise
    return imported(state, config, file)


def import_model(path: Path, destination: Path) -> ModelCard | None:
    """Turn what segmentation_models_pytorch trained into a model folder with safetensors weights.

    Args:
        path: a state dict (.pth, .pt, .ckpt, .safetensors), or a folder that `save_pretrained` wrote.
        destination: the folder to write; it must not exist.

    Returns:
        The card, or None if `path` does not contain such a network.

    Raises:
        UnsafeModelError: the file wants more than weights.
        ModelError: the network is one that MedSegAI does not have.
    """
    found = _found(path)
    if found is None:
        return None
    destination.mkdir(parents=True)
    weights = destination / "network.safetensors"
    sha256 = save_imported_weights(found.state, weights, path)
    write_card(_imported_card(found, path, sha256), destination)
    return load_card(destination)


def _imported_card(found: Imported, path: Path, sha256: str) -> ModelCard:
    """A card that says what weights alone can say."""
    config = found.config
    count = max(config.classes, 2)
    labels = tuple(Label(n, f"Class {n}", made_color(n)) for n in range(1, count))
    colours = config.channels == 3
    picture = PictureSettings(
        mean=IMAGENET_MEAN if colours else (), std=IMAGENET_STD if colours else ()
    )
    settings = config.settings() | to_json(picture)
    settings["answer"] = "sigmoid" if config.classes == 1 else "softmax"
    return ModelCard(
        id=path.name.split(".")[0][:64] or "imported",
        name=f"{config.decoder} {config.encoder}",
        family="unet2d",
        version="1",
        channels=tuple(
            Channel(("red", "green", "blue")[n] if colours else f"channel {n + 1}", "picture")
            for n in range(config.channels)
        ),
        labels=labels,
        members=(
            MemberCard(
                "network",
                "network.safetensors",
                sha256,
                classes=((), *((label.value,) for label in labels)),
            ),
        ),
        spacing_mm=(1.0, 1.0, 1.0),
        description="Imported from segmentation_models_pytorch. How images were scaled in training, what the "
        "classes are and how predictions become labels is not in the weights: check "
        "settings and labels in card.json.",
        intended_use="Research only. Not for diagnostic use.",
        settings=settings,
        dimensions=2,
    )

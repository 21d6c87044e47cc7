"""The family of QuickNAT: one 2D network for each view of the brain, whose probabilities are fused.

Roy et al., "QuickNAT: A fully convolutional network for quick and accurate segmentation of neuroanatomy",
NeuroImage 2019; uncertainty by Monte-Carlo dropout from Roy et al., "Bayesian QuickNAT", NeuroImage 2019.

A card of this family has `settings`: filters, slices (thick slices as channels), squeeze_excitation, dropout,
grid (i, j, k voxels of the conformed grid), intensity; each member has `settings`: view, and perhaps the
class_weights of its loss with the weight_power to undo them by.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medsegai.errors import ModelError, RequestError
from medsegai.families import Inputs, Part, Step
from medsegai.families._dropout import check_dropout, random_numbers
from medsegai.families._head import HeadGrid, class_weight_offsets
from medsegai.families._imported_weights import save_imported_weights
from medsegai.families._member_network import MemberNetwork, NetworkModel
from medsegai.inference.fusion import side_aware_first
from medsegai.inference.probabilities import Block
from medsegai.io import write_card
from medsegai.models.card import Channel, MemberCard, ModelCard, load_card
from medsegai.models.catalogue import find_card
from medsegai.models.json_fields import from_json, number
from medsegai.networks.backends import BatchRunner, Compute
from medsegai.networks.quicknat import QuickNAT, QuickNATConfig
from medsegai.networks.quicknat_checkpoints import (
    quicknat_checkpoint_config,
    read_quicknat_checkpoint,
)
from medsegai.preprocessing.views import VIEWS, View, thick_slices
from medsegai.progress import Progress
from medsegai.request import SegmentationRequest
from medsegai.volume import Geometry

MOST_FILTERS = 1024
"""The largest number of filters that a card may ask for; with more, a network would not fit into memory."""

AIR = 0.02
"""Slices in which no voxel exceeds this share of the range are background, without running the network."""


@dataclass(frozen=True)
class Settings:
    """The `settings` of a QuickNAT card."""

    filters: int = 64
    slices: int = 1
    squeeze_excitation: str = "none"
    dropout: float = 0.2
    grid: tuple[int, int, int] = (256, 256, 256)
    intensity: str = "minmax"
    antialias: bool = False

    @classmethod
    def of(cls, card: ModelCard) -> Settings:
        try:
            settings = from_json(cls, card.settings)
            number(settings.filters, "filters", 1, MOST_FILTERS)
            number(settings.slices, "slices", 1, MOST_FILTERS)
            number(settings.dropout, "dropout", 0, 1)
        except ModelError as error:
            raise ModelError(
                f"The settings of model {card.id!r} do not fit QuickNAT: {error}"
            ) from None
        if any(size % 16 for size in settings.grid):
            raise ModelError(f"The grid of model {card.id!r} must be three multiples of 16.")
        return settings

    def network(self, classes: int) -> QuickNATConfig:
        """Raises ModelError: the shape is not one that a QuickNAT can have."""
        try:
            return QuickNATConfig(
                channels=self.slices,
                filters=self.filters,
                classes=classes,
                squeeze_excitation=self.squeeze_excitation,  # type: ignore[arg-type]
                dropout=self.dropout,
            )
        except ValueError as error:
            raise ModelError(f"A card cannot ask for this QuickNAT: {error}.") from None


def load(card: ModelCard) -> QuickNATModel:
    """Load a card of this family; networks are read when they are first used.

    Raises:
        ModelError: settings, views or class maps do not fit QuickNAT.
    """
    return QuickNATModel(card)


class QuickNATModel(NetworkModel["_Network"]):
    """A QuickNAT with its views."""

    def __init__(self, card: ModelCard) -> None:
        self.settings = Settings.of(card)
        self._grid = HeadGrid(
            self.settings.grid, card.spacing_mm, self.settings.intensity, self.settings.antialias
        )
        networks = {member.name: _Network(card, member, self.settings) for member in card.members}
        super().__init__(card, networks)

    def parts(
        self,
        inputs: Inputs,
        output: Geometry,
        request: SegmentationRequest,
        compute: Compute,
        progress: Progress,
    ) -> list[Part]:
        """One part: the views, all if none is named; with dropout each view once per pass."""
        if len(inputs.scans) != 1:
            raise RequestError(f"Model {self.card.id!r} takes one image, not {len(inputs.scans)}.")
        head = self._grid.head(inputs)
        chosen = self.card.chosen_members(request.members)
        _check_sides(chosen)
        passes = request.dropout_passes
        check_dropout(request, self.card, has_dropout=self.settings.dropout > 0)
        kept = self._grid.kept(head)
        answered = head.geometry.part(kept)
        wanted = answered.box_around_grid(output)
        members = [
            ViewMember(
                self.networks[card.name],
                head.voxels,
                kept,
                f"{card.name} dropout {number + 1}" if passes else card.name,
                card.weight / max(passes, 1),
                wanted,
                dropout_seed=request.seed * 100_003 + number if passes else None,
            )
            for card in chosen
            for number in range(max(passes, 1))
        ]
        return [Part(answered, side_aware_first(members), [member.name for member in members])]


class _Network(MemberNetwork):
    """The network of one view."""

    half = "decoders"

    def __init__(self, card: ModelCard, member: MemberCard, settings: Settings) -> None:
        super().__init__(card, member)
        self.slices = settings.slices
        name = member.settings.get("view")
        if not isinstance(name, str) or name not in VIEWS or not member.classes:
            raise ModelError(
                f"Member {member.name!r} of model {card.id!r} needs a known view and its classes."
            )
        self.view: View = VIEWS[name]
        self._config = settings.network(len(member.classes))
        self.offsets = class_weight_offsets(member)

    def load(self) -> QuickNAT:
        return self._filled(lambda: QuickNAT(self._config), "QuickNAT")


@dataclass
class ViewMember:
    """A pass of a view over the head, (k, j, i).

    Networks see all of `head`, with the air around it; predictions are kept in its box `kept`, which is the native
    grid. Slices outside of the `wanted` box of that grid are left out.
    """

    network: _Network
    head: NDArray[np.float32]
    kept: tuple[slice, slice, slice]
    name: str
    weight: float
    wanted: tuple[slice, slice, slice] | None
    dropout_seed: int | None = None
    classes: Sequence[Sequence[int]] = field(init=False)

    def __post_init__(self) -> None:
        self.classes = self.network.member.classes

    def predict(self, compute: Compute, step: Step) -> Iterator[Block]:
        """Blocks of neighbouring slices of this view; slices of air are left out."""
        view = self.network.view
        stack = view.stack(self.head)
        runner = self.network.runner(compute, dropout=self.dropout_seed is not None)
        batches = list(_batches(stack, runner.batch_size(compute), self._slices()))
        done, total = 0, sum(last - first for first, last in batches)
        with random_numbers(self.dropout_seed):
            for first, last in batches:
                slices = thick_slices(stack, np.arange(first, last), self.network.slices)
                probabilities = self._probabilities(runner, slices, compute)
                start = [0, 0, 0]
                start[view.axes[0]] = first - self.kept[view.axes[0]].start
                yield Block((start[0], start[1], start[2]), _unstacked(probabilities, view))
                done += last - first
                step(done / total)

    def _probabilities(
        self, runner: BatchRunner, slices: NDArray[np.float32], compute: Compute
    ) -> Tensor:
        rows, columns = (self.kept[axis] for axis in self.network.view.axes[1:])
        logits = runner(torch.from_numpy(slices), compute)[:, :, rows, columns]
        if self.network.offsets is not None:
            logits = logits - self.network.offsets.to(logits.device)[:, None, None]
        return logits.softmax(1)

    def _slices(self) -> slice:
        """The slices of the stack that are asked for."""
        if self.wanted is None:
            return slice(0)
        axis = self.network.view.axes[0]
        offset = self.kept[axis].start
        return slice(self.wanted[axis].start + offset, self.wanted[axis].stop + offset)


def _unstacked(probabilities: Tensor, view: View) -> Tensor:
    """(slice, channel, row, column) to (channel, k, j, i)."""
    return probabilities.movedim(1, 0).permute(0, *(1 + axis for axis in view.back))


def _batches(stack: NDArray[np.float32], size: int, wanted: slice) -> Iterator[tuple[int, int]]:
    """Ranges of at most `size` neighbouring slices among the wanted that hold more than air."""
    bright = np.zeros(len(stack), bool)
    bright[wanted] = stack[wanted].max(axis=(1, 2), initial=0.0) > AIR
    filled = np.flatnonzero(bright)
    for run in np.split(filled, np.flatnonzero(np.diff(filled) > 1) + 1):
        for first in range(0, len(run), size):
            part = run[first : first + size]
            if part.size:
                yield int(part[0]), int(part[-1]) + 1


RELEASED_LABELS_OF = "brain"
"""The bundled model has the label list of the released 33-class networks, in their order."""

TAKES_EVERY_CHECKPOINT = True
"""Its checkpoints are known by their endings, which others have too: those who look inside are asked before."""

RELEASED_SUFFIXES = (".pth.tar", ".pth", ".pt", ".model")


def _check_sides(chosen: Sequence[MemberCard]) -> None:
    if all(any(len(feeds) > 1 for feeds in card.classes) for card in chosen):
        raise RequestError(
            f"{' and '.join(card.name for card in chosen)} alone cannot tell left from right. "
            "Add another view, for example --views axial,sagittal."
        )


def import_model(path: Path, destination: Path) -> ModelCard | None:
    """Turn released checkpoints into a model folder with safetensors weights.

    Args:
        path: a checkpoint, or a folder of them; file names tell the view, as in
            `finetuned_alldata_coronal.pth.tar`.
        destination: the folder to write; it must not exist.

    Returns:
        The card, or None if `path` does not contain such a file.

    Raises:
        UnsafeModelError: a checkpoint wants more than weights.
        ModelError: it is not a QuickNAT of 33 classes, or its view is not known.
    """
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    files = [file for file in files if file.name.endswith(RELEASED_SUFFIXES)]
    if not files:
        return None
    released = {file: _released(file, read_quicknat_checkpoint(file)) for file in files}
    networks = {_view_in_name(file): network for file, network in released.items()}
    if len(networks) < len(files) or len({config for config, _ in networks.values()}) > 1:
        raise ModelError(f"{path} holds several networks of one view, or of different shapes.")
    destination.mkdir(parents=True)
    members = [
        _saved_member(view, state, destination, path) for view, (_, state) in networks.items()
    ]
    config, _ = next(iter(networks.values()))
    card = _released_card(config, tuple(members))
    write_card(card, destination)
    return load_card(destination)


def _saved_member(view: str, state: dict[str, Tensor], folder: Path, source: Path) -> MemberCard:
    weights = folder / f"{view}.safetensors"
    sha256 = save_imported_weights(state, weights, source)
    return MemberCard(
        name=view,
        weights=weights.name,
        sha256=sha256,
        classes=((), *((value,) for value in find_card(RELEASED_LABELS_OF).label_values)),
        settings={"view": view},
    )


def _released(file: Path, state: dict[str, Tensor]) -> tuple[QuickNATConfig, dict[str, Tensor]]:
    config = quicknat_checkpoint_config(state, file)
    classes = 1 + len(find_card(RELEASED_LABELS_OF).labels)
    if config.classes != classes:
        raise ModelError(
            f"{file} has {config.classes} classes; only the list of {classes} is known."
        )
    network = QuickNAT(config)
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise ModelError(f"{file} is not a QuickNAT: {error}") from error
    return config, {name: values.contiguous() for name, values in network.state_dict().items()}


def _view_in_name(file: Path) -> str:
    views = [view for view in VIEWS if view in file.name.lower()]
    if len(views) != 1:
        raise ModelError(
            f"Which view is {file}? Name it axial, coronal or sagittal, as in coronal.pth.tar."
        )
    return views[0]


def _released_card(config: QuickNATConfig, members: tuple[MemberCard, ...]) -> ModelCard:
    return ModelCard(
        id="quicknat-released",
        name="QuickNAT as released",
        family="quicknat",
        version="1.0.0",
        channels=(Channel("MR", "MR"),),
        labels=find_card(RELEASED_LABELS_OF).labels,
        members=members,
        spacing_mm=(1.0, 1.0, 1.0),
        description="Weights released with QuickNAT, imported on this computer.",
        intended_use="Research on T1-weighted MR of the head.",
        licence="As given by the authors of the weights.",
        citation="Roy et al., QuickNAT, NeuroImage 186 (2019)",
        settings=_released_settings(config),
    )


def _released_settings(config: QuickNATConfig) -> dict[str, object]:
    return {
        "filters": config.filters,
        "slices": config.channels,
        "squeeze_excitation": config.squeeze_excitation,
        "grid": [256, 256, 256],
        "intensity": "conform",
    }

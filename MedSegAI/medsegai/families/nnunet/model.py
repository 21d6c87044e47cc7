"""Configurations and folds of an nnU-Net as parts and members.

The folds of a configuration are averaged as logits, which are interpolated before the label is decided;
configurations are averaged as probabilities on the output grid (`nnUNetv2_ensemble`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from medsegai.errors import ModelError, RequestError
from medsegai.families import Inputs, Part, Step
from medsegai.families._channels import require_all_channels
from medsegai.families._dropout import check_dropout
from medsegai.families._member_network import MemberNetwork, NetworkModel
from medsegai.families._sliding import PLANES_AT_ONCE, Window, logits_by_planes, mirrorings, window
from medsegai.families.nnunet.agreement import check_agreement
from medsegai.families.nnunet.preparation import ReorientedScan, prepare, reoriented
from medsegai.inference.activation import Activation
from medsegai.inference.grid_sampling import slabs_of
from medsegai.inference.probabilities import Block, StreamedProbabilities
from medsegai.models.card import MemberCard, ModelCard
from medsegai.models.nnunet_parts import check_member, check_settings
from medsegai.networks.backends import BatchRunner, Compute
from medsegai.networks.checkpoints import read_checkpoint
from medsegai.networks.unet import build_unet, load_state, with_norm_of
from medsegai.progress import Progress
from medsegai.request import SegmentationRequest
from medsegai.volume import Geometry, Volume

PLANES_READ_AT_ONCE = 16
"""Planes of the output grid that are read together when a cascade's first stage becomes labels."""


def load(card: ModelCard) -> NNUNetModel:
    """Load a card of this family; networks are read when they are first used.

    Raises:
        ModelError: its settings are not those of an nnU-Net.
    """
    return NNUNetModel(card)


class NNUNetModel(NetworkModel["FoldNetwork"]):
    """An nnU-Net with its configurations and folds."""

    def __init__(self, card: ModelCard) -> None:
        where = f"Model {card.id!r}"
        check_settings(card.settings, len(card.channels), where)
        for member in card.members:
            name = f"{where}, member {member.name!r}"
            check_member(member.settings, card.settings["configurations"], name)
        super().__init__(card, {member.name: FoldNetwork(card, member) for member in card.members})
        regions = card.settings.get("regions_class_order")
        self._activation = Activation.REGIONS if regions else Activation.LOGITS
        outputs = [(value,) for value in regions] if regions else card.members[0].classes[1:]
        self._classes: tuple[tuple[int, ...], ...] = ((), *outputs)

    def parts(
        self,
        inputs: Inputs,
        output: Geometry,
        request: SegmentationRequest,
        compute: Compute,
        progress: Progress,
    ) -> list[Part]:
        """One part for each configuration: its folds one by one where they matter, else as one member."""
        self._check(inputs.scans)
        check_dropout(request, self.card, has_dropout=False)
        scan = reoriented(
            inputs.scans, self.card.settings["reader"], self.card.settings["transpose"]
        )
        groups: dict[str, list[MemberCard]] = {}
        for member in self.card.chosen_members(request.members):
            groups.setdefault(member.settings["configuration"], []).append(member)
        job = _ScanRun(self, scan, request, compute, progress)
        return [job.part(name, members, output) for name, members in groups.items()]

    def stage_members(self, name: str, request: SegmentationRequest) -> list[MemberCard]:
        """The folds of the stage before in a cascade: those that the request names, or all."""
        folds = [member for member in self.card.members if member.settings["configuration"] == name]
        named = [f for f in folds if any(f.answers_to(wanted) for wanted in request.members)]
        if not folds:
            raise ModelError(f"Model {self.card.id!r} lacks {name}, the stage before its cascade.")
        return named or folds

    def _needed(self, request: SegmentationRequest) -> list[MemberCard]:
        """The folds that are asked for, and those of the stages before them."""
        needed = self.card.chosen_members(request.members)
        names = {member.settings["configuration"] for member in needed}
        before = [self.card.settings["configurations"][n].get("previous_stage") for n in names]
        stages = [self.stage_members(name, request) for name in before if name]
        return list({m.name: m for m in (*needed, *itertools.chain(*stages))}.values())

    def _check(self, inputs: Sequence[Volume]) -> None:
        require_all_channels(self.card, inputs)
        sources = [volume.source for volume in inputs if volume.source]
        doubled = {source for source in sources if sources.count(source) > 1}
        if doubled and not self.card.takes_one_picture:  # whose colours are channels of one file
            raise RequestError(
                f"{doubled.pop()} was given for two channels. Model {self.card.id!r} takes one image each "
                f"for {', '.join(channel.name for channel in self.card.channels)}."
            )


@dataclass
class _ScanRun:
    """One scan through the configurations of a model."""

    model: NNUNetModel
    scan: ReorientedScan
    request: SegmentationRequest
    compute: Compute
    progress: Progress

    def part(self, name: str, members: Sequence[MemberCard], output: Geometry) -> Part:
        card = self.model.card
        configuration = card.settings["configurations"][name]
        before = configuration.get("previous_stage")
        earlier = self.model.stage_members(before, self.request) if before else []
        ready = prepare(
            self.scan,
            configuration,
            card.settings["intensities"],
            (lambda: self._labels_of(before)) if before else None,
        )
        wanted = ready.geometry.box_around_grid(output) or (slice(0, 1),) * 3
        image = ready.voxels.to(self.compute.device)
        at = window(
            image, configuration["patch_size"], self.request.tile_step, wanted, self.scan.reversed
        )
        grid = ready.geometry.part(wanted)
        if self.scan.reversed:
            grid = grid.flipped(0)
        weights = [member.weight or 1.0 for member in members]
        return Part(
            grid,
            self._members(name, members, at),
            [member.name for member in (*members, *earlier)],
            activation=self.model._activation,
            linear=ready.linear,
            weight=sum(weights) / len(weights),
            plane_axis=self.scan.plane_axis,
        )

    def _members(self, name: str, members: Sequence[MemberCard], at: Window) -> list[FoldsMember]:
        """The folds, as one or one by one; of a fold alone its mirrored passes, where their differences matter."""
        folds = [(self.model.networks[m.name], m.weight or 1.0, m.name) for m in members]
        everything = FoldsMember(
            name if len(folds) > 1 else folds[0][2],
            sum(weight for _, weight, _ in folds),
            self.model._classes,
            [(network, weight) for network, weight, _ in folds],
            at,
            first_class=1 if self.model._activation.regions else 0,
            mirrored=None if self.request.mirroring else [()],
        )
        if len(folds) > 1 and self.request.members_apart:
            return [
                replace(everything, name=own, weight=weight, folds=[(network, weight)])
                for network, weight, own in folds
            ]
        if self.request.uncertainty and self.request.mirroring and self.request.fusion == "mean":
            return _passes(everything, mirrorings(folds[0][0].mirror_axes))
        return [everything]

    def _labels_of(self, name: str) -> tuple[NDArray[np.integer], list[int]]:
        """What the stage before found, on the grid of the reoriented scan, and its foreground labels."""
        grid = self.scan.geometry
        if self.scan.reversed:
            grid = grid.flipped(0)
        request = replace(self.request, uncertainty=False, fusion="mean")
        job = _ScanRun(self.model, self.scan, request, self.compute, self.progress)
        part = job.part(name, self.model.stage_members(name, self.request), grid)
        (member,) = part.members
        labels = np.array([feeds[0] if feeds else 0 for feeds in member.classes])
        slabs = (block.values for block in member.predict(self.compute, self._step))
        readable = StreamedProbabilities(
            labels.tolist(), part.geometry, slabs, part.activation, part.linear
        )
        found = np.zeros(grid.shape, np.int16)
        for slab in slabs_of(grid, PLANES_READ_AT_ONCE):
            found[slab.planes] = labels[readable.argmax(slab).cpu().numpy()]
        return found[::-1] if self.scan.reversed else found, foreground(self.model.card)

    def _step(self, part: float) -> None:
        self.progress.step("prepare", part, 1.0)


def foreground(card: ModelCard) -> list[int]:
    """All label values that the training data had, in the order of the cascade's channels."""
    regions = card.settings.get("regions")
    return sorted(
        {value for region in regions for value in region} if regions else card.label_values
    )


class FoldNetwork(MemberNetwork):
    """The network of one fold."""

    def __init__(self, card: ModelCard, member: MemberCard) -> None:
        super().__init__(card, member)
        self._configuration = card.settings["configurations"][member.settings["configuration"]]
        self._mirror_axes: Sequence[int] | None = member.settings.get("mirror_axes")
        self._network: nn.Module | None = None
        stage_before = self._configuration.get("previous_stage")
        self._channels = len(card.channels) + (len(foreground(card)) if stage_before else 0)

    def usual_batch(self) -> tuple[int, ...]:
        """A patch of the image, or the planes that a 2D network sees together."""
        patch = self._configuration["patch_size"]
        count = 1 if len(patch) == 3 else PLANES_AT_ONCE
        return (count, self._channels, *patch)

    @property
    def mirror_axes(self) -> Sequence[int]:
        """Axes of a patch along which the network may be asked for mirrored images."""
        self.load()
        return self._mirror_axes or ()

    def load(self) -> nn.Module:
        if self._network is None:
            path = self.card.weights_path(self.member)
            self.card.verify_member(self.member)
            state = self._state(path)
            settings = self._configuration["network"]
            regions = self.card.settings.get("regions")
            classes = len(regions) if regions else len(self.card.labels) + 1
            try:
                self._network = build_unet(
                    settings["class"],
                    with_norm_of(settings["arguments"], state),
                    self._channels,
                    classes,
                )
                load_state(self._network, state)
            except ModelError as error:
                raise ModelError(f"{path}: {error}") from error
        return self._network

    def _state(self, path: Path) -> Mapping[str, Tensor]:
        if path.suffix == ".safetensors":
            try:
                return load_file(path)
            except (SafetensorError, OSError) as error:
                raise ModelError(
                    f"{path} does not hold the weights of a network: {error}"
                ) from error
        checkpoint = read_checkpoint(path)
        check_agreement(path, checkpoint, self.card, self.member)
        self._mirror_axes = checkpoint.mirror_axes
        return checkpoint.weights


@dataclass
class FoldsMember:
    """One fold, or several of a configuration whose logits are averaged.

    Attributes:
        first_class: 1 for networks of regions, which have no channel for background: channel 0 stays zero.
        mirrored: the ways to mirror patches, as `mirrorings` gives them; None for all that each was trained for.
    """

    name: str
    weight: float
    classes: Sequence[Sequence[int]]
    folds: Sequence[tuple[FoldNetwork, float]]
    window: Window
    first_class: int = 0
    mirrored: list[tuple[int, ...]] | None = None

    def predict(self, compute: Compute, step: Step) -> Iterator[Block]:
        """Whole planes of logits, in order."""
        total = sum(weight for _, weight in self.folds)
        passes = self._running(compute)
        calls = self.window.tiles * sum(len(each.mirrors) for each in passes)
        for each in passes:
            each.finished = lambda: step(min(sum(p.count for p in passes) / calls, 1.0))
        weights = [weight / total for _, weight in self.folds]
        plane = 0
        for values in logits_by_planes(
            self.window,
            list(zip(passes, weights, strict=True)),
            self.first_class,
            len(self.classes),
            compute.notes,
        ):
            yield Block((plane, 0, 0), values)
            plane += values.shape[1]

    def _running(self, compute: Compute) -> list[_Passes]:
        """The passes of each fold."""
        return [
            _Passes(
                network.runner(compute),
                compute,
                mirrorings(network.mirror_axes) if self.mirrored is None else self.mirrored,
            )
            for network, _ in self.folds
        ]


def _passes(member: FoldsMember, passes: Sequence[tuple[int, ...]]) -> list[FoldsMember]:
    """Return a member for each way of mirroring."""
    return [
        replace(
            member,
            name=" mirrored ".join(filter(None, [member.name, _axes(axes)])),
            weight=member.weight / len(passes),
            mirrored=[axes],
        )
        for axes in passes
    ]


def _axes(dimensions: Sequence[int]) -> str:
    """Axes of a patch (0 is the first), such as 0+2, from the dimensions of (N, channel, *patch)."""
    return "+".join(str(dimension - 2) for dimension in dimensions)


class _Passes:
    """A network on patches as they are and mirrored; the mean of the logits (test-time mirroring)."""

    def __init__(
        self, runner: BatchRunner, compute: Compute, mirrors: list[tuple[int, ...]]
    ) -> None:
        self.mirrors = mirrors
        self.count = 0
        self.finished: Callable[[], None] = lambda: None
        self._runner, self._compute = runner, compute

    def __call__(self, patches: Tensor) -> Tensor:
        total: Tensor | None = None
        for axes in self.mirrors:
            logits = self._runner(patches.flip(axes) if axes else patches, self._compute)
            logits = logits.flip(axes) if axes else logits
            if total is None:  # a sum of several needs float32
                total = logits.float() if len(self.mirrors) > 1 else logits
            else:
                total.add_(logits)
            del logits  # it would stand in memory beside the next one
            self.count += 1
            self.finished()
        assert total is not None
        return total.div_(len(self.mirrors))

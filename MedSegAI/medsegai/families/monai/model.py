"""A model of MONAI as one part of a result: its network is applied to the prepared scan plane by plane."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from medsegai.errors import ModelError
from medsegai.families import Inputs, Part, Step
from medsegai.families._channels import require_all_channels
from medsegai.families._dropout import check_dropout, random_numbers
from medsegai.families._member_network import MemberNetwork, NetworkModel
from medsegai.families._sliding import Window, beside_the_heap, logits_by_planes, sums_dtype
from medsegai.families.monai.scan import Scan
from medsegai.families.monai.settings import Settings
from medsegai.families.monai.window import streaming_order, window_over
from medsegai.inference.activation import Activation
from medsegai.inference.probabilities import Block
from medsegai.models.card import MemberCard, ModelCard
from medsegai.networks.backends import Compute
from medsegai.networks.pointwise_head import PointwiseHead
from medsegai.progress import Progress
from medsegai.request import SegmentationRequest
from medsegai.volume import Geometry, Volume


def load(card: ModelCard) -> MonaiModel:
    """Load a card of this family; networks are read when they are first used.

    Raises:
        ModelError: its settings do not describe a network of MONAI and its processing.
    """
    return MonaiModel(card)


class MonaiModel(NetworkModel["_Network"]):
    """One network, or several whose predictions are averaged."""

    def __init__(self, card: ModelCard) -> None:
        self.settings = Settings.of(card)
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
        """Return one part with the requested networks, each once for each pass with dropout."""
        require_all_channels(self.card, inputs.scans)
        networks = [
            self.networks[member.name] for member in self.card.chosen_members(request.members)
        ]
        if request.dropout_passes:
            has_dropout = any(network.has_dropout for network in networks)
            check_dropout(request, self.card, has_dropout)
        scan = self._prepared(inputs.scans, progress)
        order = streaming_order(scan.shape, self.settings.inferer)
        ready = scan.permuted(order)
        plane_axis, reversed = _planes_of(ready.geometry, inputs.scans[0].geometry)
        wanted = ready.geometry.box_around_grid(output) or (slice(0, 1),) * 3
        inferer = self.settings.inferer.permuted(order)
        at = window_over(ready.voxels.to(compute.device), inferer, wanted, reversed)
        grid = ready.moved(
            [part.start for part in wanted],
            [part.stop - part.start for part in wanted],
            ready.voxels[:0],
        )
        geometry, reach = grid.geometry, grid.reach
        if reversed:
            geometry, reach = geometry.flipped(0), reach.flipped(0, geometry.shape[0] - 1)
        linear = self.settings.reading.inversion == "linear"
        members = self._members(networks, at, request, order)
        return [
            Part(
                geometry,
                members,
                [network.member.name for network in networks],
                activation=self.settings.reading.answers,
                linear=(linear, linear, linear),
                plane_axis=plane_axis if len(members) == 1 else None,
                reach=reach,
            )
        ]

    def _prepared(self, inputs: Sequence[Volume], progress: Progress) -> Scan:
        """Return the input of the network."""
        scan = Scan.of(inputs)
        for number, step in enumerate(self.settings.steps):
            progress.step("prepare", number / len(self.settings.steps), 1.0)
            scan = step.apply(scan)
        return scan

    def _members(
        self,
        networks: Sequence[_Network],
        at: Window,
        request: SegmentationRequest,
        order: tuple[int, ...],
    ) -> list[WindowMember]:
        whole = [
            WindowMember(
                network.member.name,
                network.member.weight or 1.0,
                network.member.classes,
                network,
                at,
                self.settings,
                order,
            )
            for network in networks
        ]
        if not request.dropout_passes:
            return whole
        return [
            replace(
                member,
                name=f"{member.name} pass {number + 1}",
                weight=member.weight / request.dropout_passes,
                seed=number,
            )
            for member in whole
            for number in range(request.dropout_passes)
        ]


def _planes_of(ready: Geometry, scan: Geometry) -> tuple[int, bool]:
    """Return the axis (k, j, i) of the scan that became the first of the input, and whether it was reversed."""
    along = (ready.ras_to_ijk @ scan.ijk_to_ras)[2, :3]  # for each of i, j, k; all but one are zero
    axis = int(abs(along).argmax())
    return 2 - axis, bool(along[axis] < 0)


class _Network(MemberNetwork):
    """The network of one member, built by MONAI."""

    def __init__(self, card: ModelCard, member: MemberCard, settings: Settings) -> None:
        super().__init__(card, member)
        self._settings = settings
        self._network: nn.Module | None = None
        self._head: PointwiseHead | None = None

    @property
    def has_dropout(self) -> bool:
        """Whether the network has dropout, so that passes differ."""
        return any(
            isinstance(layer, nn.modules.dropout._DropoutNd) and layer.p > 0
            for layer in self.load().modules()
        )

    def usual_batch(self) -> tuple[int, ...] | None:
        """Return the shape of a window if the model states it. Smaller images have other windows."""
        inferer = self._settings.inferer
        sizes = [
            size for axis, size in enumerate(inferer.roi_size or ()) if axis != inferer.slice_axis
        ]
        channels = self._settings.network.in_channels
        return (1, channels, *sizes) if sizes and min(sizes) > 0 else None

    @property
    def head(self) -> PointwiseHead | None:
        """The last layer, if the network answers with the features before it."""
        self.load()
        return self._head

    def load(self) -> nn.Module:
        """Load the network, which answers with features if it has a `head`: see `MemberNetwork.load`."""
        if self._network is None:
            self.card.verify_member(self.member)
            path = self.card.weights_path(self.member)
            try:
                network = self._settings.network.with_weights(load_file(path))
            except (SafetensorError, OSError) as error:
                raise ModelError(
                    f"{path} does not hold the weights of a network: {error}"
                ) from error
            except ModelError as error:
                raise ModelError(f"{path}: {error}") from error
            self._head = self._settings.network.without_head(network)
            self._network = network
        return self._network


@dataclass
class WindowMember:
    """One pass of one network over the scan.

    Attributes:
        order: the axes (x, y, z) of the network in the order of the window's axes.
        seed: the seed of the dropout; None without dropout.
    """

    name: str
    weight: float
    classes: Sequence[Sequence[int]]
    network: _Network
    window: Window
    settings: Settings
    order: tuple[int, ...] = (0, 1, 2)
    seed: int | None = None

    def predict(self, compute: Compute, step: Step) -> Iterator[Block]:
        """Yield whole planes, in order."""
        done = 0
        runner = self.network.runner(compute, dropout=self.seed is not None)
        runner.expect(compute, self.window.tiles)
        across = self.settings.inferer.slice_axis
        back = [2 + self.order.index(axis) for axis in range(3)]
        there = [2 + axis for axis in self.order]

        def answer(patches: Tensor) -> Tensor:
            nonlocal done
            window = patches.permute(0, 1, *back)
            with random_numbers(None if self.seed is None else (self.seed << 32) + done):
                if across is None:
                    values = self._answer(window, compute)
                else:
                    plane = self._answer(window.squeeze(2 + across), compute)
                    values = plane.unsqueeze(2 + across)
            done += 1
            step(min(done / self.window.tiles, 1.0))
            return values.permute(0, 1, *there)

        head = self.network.head
        channels = self.settings.network.classes if head is None else head.features
        dtype = sums_dtype(compute)
        planes = logits_by_planes(self.window, [(answer, 1.0)], 0, channels, compute.notes, dtype)
        for plane, values in enumerate(planes):
            yield Block((plane, 0, 0), self._activated(self._of_classes(head, values)))

    def _of_classes(self, head: PointwiseHead | None, values: Tensor) -> Tensor:
        """The logits of all classes, of which a background that the network does not have is zero."""
        without = len(self.classes) - self.settings.network.classes
        if head is None and not without:
            return values
        logits = beside_the_heap((len(self.classes), *values.shape[1:]), values.device)
        logits[:without] = 0
        if head is None:
            logits[without:] = values
        else:
            head.into(values, logits[without:])
        return logits

    def _answer(self, patches: Tensor, compute: Compute) -> Tensor:
        runner = self.network.runner(compute, dropout=self.seed is not None)
        try:
            return runner(patches, compute)
        except (RuntimeError, ValueError) as error:
            if (
                compute.backend == "openvino"
            ):  # it does not know windows that transformers shift and pad
                compute.leave_openvino()
                return self._answer(patches, compute)
            size = " x ".join(map(str, patches.shape[2:]))
            raise ModelError(
                f"The network of model {self.network.card.id!r} cannot take a window of {size} voxels: "
                f"{str(error).splitlines()[0][:200]} Set roi_size of its inferer to sizes that it can take."
            ) from error

    def _activated(self, values: Tensor) -> Tensor:
        """Return probabilities if these are interpolated, and not the output of the network."""
        if self.settings.reading.order is not None:
            values = values[[0, *(1 + channel for channel in self.settings.reading.order)]]
        if not self.settings.reading.activated:
            return values
        if not self.settings.reading.regions:
            return values.softmax(0)
        return Activation.REGIONS.probabilities(values, 0)

"""The networks of members: read on first use, or before it, and kept, ready to run, for the next scan."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Generic, TypeVar

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from medsegai.errors import ModelError
from medsegai.models.card import MemberCard, ModelCard
from medsegai.networks.backends import BatchRunner, Compute, Half
from medsegai.request import SegmentationRequest

Network = TypeVar("Network", bound=nn.Module)


class MemberNetwork(ABC):
    """What a family derives its own from: it says how the network is loaded.

    Attributes:
        half: what of the network bears half precision.
    """

    half: ClassVar[Half] = "network"

    def __init__(self, card: ModelCard, member: MemberCard) -> None:
        self.card, self.member = card, member
        self._runners: dict[tuple[Any, ...], BatchRunner] = {}

    @abstractmethod
    def load(self) -> nn.Module:
        """Load the network with its weights, on the CPU.

        Raises:
            ModelError: the weights are missing or damaged, or do not fit the network.
        """

    def runner(self, compute: Compute, dropout: bool = False) -> BatchRunner:
        """The network, ready to run where a job runs; with `dropout` its dropout layers are active."""
        key = (str(compute.device), compute.backend, compute.mixed, dropout)
        if key not in self._runners:
            self._runners[key] = BatchRunner(self.load(), dropout, self.half)
        return self._runners[key]

    def usual_batch(self) -> tuple[int, ...] | None:
        """The shape of most batches (N, channel, ...); None if it depends on the scan."""
        return None

    def _filled(
        self,
        empty: Callable[[], Network],
        what: str = "network",
        left_out: str | tuple[str, ...] = (),
    ) -> Network:
        """A network with the weights of the member's safetensors file, in float32, not learning.

        Args:
            empty: makes it, once the file is known to be that of the card; on the device "meta" it takes no
                memory, whatever the card says.
            what: the kind of network, for messages.
            left_out: how names of weights begin that are not needed.
        """
        self.card.verify_member(self.member)
        path = self.card.weights_path(self.member)
        network = empty()
        try:
            weights = {
                name: values.float() if values.is_floating_point() else values
                for name, values in load_file(path).items()
                if not name.startswith(left_out)
            }
            network.load_state_dict(weights, assign=True)
        except (SafetensorError, RuntimeError, OSError) as error:
            raise ModelError(f"{path} does not hold this {what}: {error}") from error
        return network.eval()


Member = TypeVar("Member", bound=MemberNetwork)


class NetworkModel(Generic[Member]):
    """What a model derives from whose members have one network each.

    Attributes:
        card: of the model.
        networks: by the names of their members.
    """

    def __init__(self, card: ModelCard, networks: Mapping[str, Member]) -> None:
        self.card, self.networks = card, networks

    def warm_up(self, request: SegmentationRequest, compute: Compute) -> None:
        """Read the weights that a request needs, and compile what can be compiled before a scan is there.

        Raises:
            ModelError: weights are missing or damaged.
        """
        for member in self._needed(request):
            network = self.networks[member.name]
            runner = network.runner(compute, dropout=bool(request.dropout_passes))
            runner.warm_up(compute, network.usual_batch())

    def _needed(self, request: SegmentationRequest) -> Sequence[MemberCard]:
        return self.card.chosen_members(request.members)

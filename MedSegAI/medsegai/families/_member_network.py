"""The network of one member: read on first use and kept, ready to run, for the next scan."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from medsegai.errors import ModelError
from medsegai.models.card import MemberCard, ModelCard
from medsegai.networks.backends import BatchRunner, Compute, Half

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
        """The network with its weights, on the CPU.

        Raises:
            ModelError: the weights are missing or damaged, or are not those of the network.
        """

    def runner(self, compute: Compute, dropout: bool = False) -> BatchRunner:
        """The network, ready to run where a job runs; with `dropout` its dropout layers are active."""
        key = (str(compute.device), compute.backend, compute.mixed, dropout)
        if key not in self._runners:
            self._runners[key] = BatchRunner(self.load(), dropout, self.half)
        return self._runners[key]

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

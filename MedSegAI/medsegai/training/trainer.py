"""One member's network in training, with its optimiser, its averaged weights and its best result so far."""

from __future__ import annotations

import copy
import logging
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as distributed
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from medsegai.errors import DeviceError, ModelError
from medsegai.networks.backends import choose_device
from medsegai.training.config import TrainingConfig
from medsegai.training.optimisers import build_optimiser, learning_rate_factor, set_learning_rate
from medsegai.training.sampling import Batch, Task

logger = logging.getLogger(__name__)

SIMILAR = 0.5
"""In bfloat16, the cosine between two gradients of a weight exceeds this if they differ by rounding alone."""

DETERMINED = 0.1
"""A gradient is compared if rounding the batch otherwise changes it by at most this part of its norm."""

BAD_STEPS = 10
"""The number of consecutive losses that are not numbers after which the run ends with an error."""


@dataclass(frozen=True)
class TrainingProcess:
    """One process of a training run.

    Attributes:
        device: the device that it computes on.
        rank: its number among the processes of the run, from 0.
        ranks: the number of processes of the run.
    """

    device: torch.device
    rank: int = 0
    ranks: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes files."""
        return self.rank == 0


class Trainer:
    """One member's network, and all that is needed to train it.

    Args:
        task: what the network learns.
        objective: a module that takes a batch's tensors and returns the (total, Dice, logistic) loss; the network
            is its attribute `network`, and its method `logits` returns the logits.
        config: the configuration of the run.
        place: this process and its device.
        outer: weights of the first convolution and of the head, see `build_optimiser`.
    """

    def __init__(
        self,
        task: Task,
        objective: Any,
        config: TrainingConfig,
        place: TrainingProcess,
        outer: Sequence[nn.Parameter] = (),
    ) -> None:
        self.task = task
        self.place = place
        self.config = config
        self.objective = objective.to(place.device)
        self.network: nn.Module = objective.network
        volumetric = any(weight.ndim == 5 for weight in self.network.parameters())
        self.memory_format = torch.channels_last_3d if volumetric else torch.channels_last
        self.network.to(memory_format=self.memory_format)  # type: ignore[call-overload]
        shared = place.ranks > 1
        self._uncompiled = DistributedDataParallel(self.objective) if shared else self.objective
        self.run: Callable[..., Tensor] = self._uncompiled
        if config.compile and compiler_at_hand(place.device):
            self.run = torch.compile(self.run, dynamic=False)
        self.optimiser = build_optimiser(
            config.optimiser, self.network, outer, half=config.precision == "bf16"
        )
        self.averaged = copy.deepcopy(self.network) if config.optimiser.ema > 0 else None
        self.best = -1.0
        self.done = 0
        self._checked = False
        self.bad_steps = 0

    def step(self, batch: Batch) -> Tensor:
        """Take one optimiser step and return the (total, Dice, logistic) loss, (3,).

        A loss that is not a number leaves the weights unchanged.

        Raises:
            ModelError: ten losses in a row were not numbers.
        """
        self.objective.train()
        self._follow_schedule()
        image, *others = (tensor.to(self.place.device) for tensor in batch.tensors())
        tensors = image.contiguous(memory_format=self.memory_format), *others
        self._check_compiled(tensors)
        losses = self.run(*tensors)
        self.done += 1
        if not self._counted(losses):
            return losses.detach()
        self._descend(losses[0])
        return losses.detach()

    def _descend(self, loss: Tensor) -> None:
        limit = self.config.optimiser.gradient_limit
        self.optimiser.zero_grad()
        loss.backward()
        if limit > 0:
            nn.utils.clip_grad_norm_(self.network.parameters(), limit)
        self.optimiser.step()
        self._average()

    def _check_compiled(self, tensors: Sequence[Tensor]) -> None:
        """Stop using torch.compile if its gradients differ from those of the plain network on the first batch."""
        if self._checked or self.run is self._uncompiled:
            return
        self._checked = True
        wrong = self._wrong_gradients(tensors)
        if wrong:
            logger.warning(
                "torch.compile computes wrong gradients on this computer for %d weights of "
                "%s, such as %s, so training runs uncompiled, at about 0.6 of the speed.",
                len(wrong),
                self.task.name,
                wrong[0],
            )
            self.run = self._uncompiled

    def _wrong_gradients(self, tensors: Sequence[Tensor]) -> list[str]:
        """Return the weights whose gradients differ between the compiled and the plain network.

        A gradient that is zero but for rounding, such as that of a bias before batch normalisation, has another
        direction in each computation, so gradients that change when the batch is rounded otherwise are left out.
        """
        image, *others = tensors
        unit = torch.finfo(torch.bfloat16 if self.config.precision == "bf16" else image.dtype).eps
        with torch.random.fork_rng():
            rounded = self._gradients(self._uncompiled, (image * (1.0 + unit), *others))
            plain = self._gradients(self._uncompiled, tensors)
            compiled = self._gradients(self.run, tensors)
        return [
            name
            for name, expected in plain.items()
            if (rounded[name] - expected).norm() <= DETERMINED * expected.norm()
            and (name not in compiled or _cosine(compiled[name], expected) < SIMILAR)
        ]

    def _gradients(
        self, run: Callable[..., Tensor], tensors: Sequence[Tensor]
    ) -> dict[str, Tensor]:
        """The flat gradient of every weight that has one; the random numbers are the same in each call."""
        torch.manual_seed(0)
        self.optimiser.zero_grad()
        run(*tensors)[0].backward()
        found = {
            name: weight.grad.flatten().float()
            for name, weight in self.network.named_parameters()
            if weight.grad is not None
        }
        self.optimiser.zero_grad()
        return found

    def _follow_schedule(self) -> None:
        factor = learning_rate_factor(self.config.optimiser, self.config.steps, self.done)
        set_learning_rate(self.optimiser, factor)

    def _counted(self, losses: Tensor) -> bool:
        if bool(torch.isfinite(losses).all()):
            self.bad_steps = 0
            return True
        self.bad_steps += 1
        logger.warning("Step %d of %s: the loss is not a number.", self.done, self.task.name)
        if self.bad_steps >= BAD_STEPS:
            raise ModelError(
                f"The loss of {self.task.name} was not a number in {BAD_STEPS} steps in a row. Train again with a "
                "smaller optimiser.learning_rate, or look for damaged training data."
            )
        return False

    @torch.no_grad()
    def _average(self) -> None:
        if self.averaged is None:
            return
        share = min(self.config.optimiser.ema, (1.0 + self.done) / (10.0 + self.done))
        for mean, weight in zip(
            self.averaged.state_dict().values(), self.network.state_dict().values(), strict=True
        ):
            if mean.is_floating_point():
                mean.lerp_(weight, 1.0 - share)
            else:
                mean.copy_(weight)

    @property
    def judged(self) -> nn.Module:
        """The network that is validated and saved: the one with averaged weights, if weights are averaged."""
        return self.network if self.averaged is None else self.averaged

    def predict(self, images: Tensor) -> Tensor:
        """The logits of the judged network, in evaluation mode and without gradients."""
        network = self.judged
        was_training = network.training
        moved = images.to(self.place.device).contiguous(memory_format=self.memory_format)
        network.eval()
        try:
            with torch.inference_mode():
                logits: Tensor = self.objective.logits(moved, network)
        finally:
            network.train(was_training)
        return logits

    def state(self) -> dict[str, Any]:
        """Return the trainer's part of a checkpoint."""
        averaged = {} if self.averaged is None else {"averaged": self.averaged.state_dict()}
        return {
            "network": self.network.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "done": self.done,
            "bad_steps": self.bad_steps,
            "best": self.best,
            "class_weights": self.objective.loss.weights,
            **averaged,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from the trainer's part of a checkpoint, which `state` returned."""
        self.network.load_state_dict(state["network"])
        self.optimiser.load_state_dict(state["optimiser"])
        if self.averaged is not None:
            self.averaged.load_state_dict(state["averaged"])
        self.done, self.bad_steps = int(state["done"]), int(state["bad_steps"])
        self.best = state["best"]
        self._follow_schedule()


def compiler_at_hand(device: torch.device) -> bool:
    """Whether torch.compile can work on this computer; a warning says why it cannot."""
    if device.type != "cpu":
        return True
    names = [os.environ.get("CXX", ""), "g++", "clang++", "cl"]
    if any(name and shutil.which(name) for name in names):
        return True
    logger.warning(
        "No C++ compiler was found, so training runs uncompiled, at about 0.6 of the speed. Install g++."
    )
    return False


def training_process(device: str) -> TrainingProcess:
    """Return the device and the rank of this process; torchrun starts the processes of a run with several.

    Raises:
        DeviceError: the device is unknown, or does not exist.
    """
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    rank = int(os.environ.get("RANK", "0"))
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise DeviceError(
            "This PyTorch does not find a CUDA device. Train with --device cpu, or install PyTorch for CUDA."
        )
    chosen = choose_device(f"cuda:{local}" if device == "cuda" and ranks > 1 else device)
    if ranks > 1 and not distributed.is_initialized():
        distributed.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    return TrainingProcess(chosen, rank, ranks)


def _cosine(first: Tensor, second: Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(first, second, dim=0))

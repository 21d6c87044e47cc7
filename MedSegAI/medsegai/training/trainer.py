"""What learns: one member's network with its optimiser, its averaged weights and its best result so far."""

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
from medsegai.training.config import TrainingConfig
from medsegai.training.optimisers import build_optimiser, learning_rate_factor, set_learning_rate
from medsegai.training.sampling import Batch, Task

logger = logging.getLogger(__name__)

SIMILAR = 0.5
"""Cosine between two gradients of one weight that differ by rounding alone is above this in bfloat16."""

BAD_STEPS = 10
"""Losses in a row that may be no number before a run is given up."""


@dataclass(frozen=True)
class WorkerLocation:
    """Where this process computes, and which of how many it is."""

    device: torch.device
    rank: int = 0
    ranks: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes files."""
        return self.rank == 0


class Trainer:
    """One member's network and all that is needed to make it better.

    Args:
        task: what it learns.
        objective: a module that takes a batch's tensors and gives (total, Dice, logistic) loss; it has the network
            as `network` and gives its logits by `logits`.
        config: of the run.
        place: device and process.
        outer: see `build_optimiser`.
    """

    def __init__(
        self,
        task: Task,
        objective: Any,
        config: TrainingConfig,
        place: WorkerLocation,
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
        self.run: Callable[..., Tensor] = self.objective
        if place.ranks > 1:
            self.run = DistributedDataParallel(self.objective)
        self._uncompiled = self.run
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
        """One optimiser step; gives (total, Dice, logistic) loss. A loss that is not a number changes nothing.

        Raises:
            ModelError: ten losses in a row were not numbers.
        """
        self.objective.train()
        settings = self.config.optimiser
        self._follow_schedule()
        image, *others = (tensor.to(self.place.device) for tensor in batch.tensors())
        tensors = image.contiguous(memory_format=self.memory_format), *others
        self._check_compiled(tensors)
        losses = self.run(*tensors)
        self.done += 1
        if not self._counted(losses):
            return losses.detach()
        self.optimiser.zero_grad()
        losses[0].backward()
        if settings.gradient_limit > 0:
            nn.utils.clip_grad_norm_(self.network.parameters(), settings.gradient_limit)
        self.optimiser.step()
        self._average()
        return losses.detach()

    def _check_compiled(self, tensors: Sequence[Tensor]) -> None:
        """Leave compiling where its gradients are not those of the plain network, on the first batch of a run."""
        if self._checked or self.run is self._uncompiled:
            return
        self._checked = True
        with torch.random.fork_rng():
            compiled, plain = (
                self._gradients(run, tensors) for run in (self.run, self._uncompiled)
            )
        wrong = [
            name
            for name, expected in plain.items()
            if name not in compiled
            or torch.nn.functional.cosine_similarity(compiled[name], expected, dim=0) < SIMILAR
        ]
        if wrong:
            logger.warning(
                "torch.compile computes other gradients here for %d weights of %s, such as %s. Training runs "
                "uncompiled, at about 0.6 of the speed.",
                len(wrong),
                self.task.name,
                wrong[0],
            )
            self.run = self._uncompiled

    def _gradients(
        self, run: Callable[..., Tensor], tensors: Sequence[Tensor]
    ) -> dict[str, Tensor]:
        """The gradient of every weight that has one, flat; random numbers are the same at each call."""
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
                f"The loss of {self.task.name} was not a number in {BAD_STEPS} steps in a row. Resume with a "
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
        """The network that is validated and kept: that of averaged weights where there is one."""
        return self.network if self.averaged is None else self.averaged

    def predict(self, images: Tensor) -> Tensor:
        """Logits of the judged network, in evaluation mode and without gradients."""
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
        """Return what a checkpoint holds of the trainer."""
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
        """Continue from what a checkpoint holds."""
        self.network.load_state_dict(state["network"])
        self.optimiser.load_state_dict(state["optimiser"])
        if self.averaged is not None:
            self.averaged.load_state_dict(state["averaged"])
        self.done, self.bad_steps = int(state["done"]), int(state["bad_steps"])
        self.best = state["best"]
        self._follow_schedule()


def compiler_at_hand(device: torch.device) -> bool:
    """Whether torch.compile can work here; a warning says why not."""
    if device.type != "cpu":
        return True
    names = [os.environ.get("CXX", ""), "g++", "clang++", "cl"]
    if any(name and shutil.which(name) for name in names):
        return True
    logger.warning(
        "No C++ compiler found: training runs uncompiled, at about 0.6 of the speed. Install g++."
    )
    return False


def find_place(device: str) -> WorkerLocation:
    """Device and rank of this process; several processes are those that torchrun starts.

    Raises:
        DeviceError: the device is not there.
    """
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    rank = int(os.environ.get("RANK", "0"))
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise DeviceError(
            "This PyTorch sees no CUDA device. Train with --device cpu, or install PyTorch for CUDA."
        )
    chosen = torch.device(f"cuda:{local}" if device == "cuda" and ranks > 1 else device)
    if ranks > 1 and not distributed.is_initialized():
        distributed.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    return WorkerLocation(chosen, rank, ranks)

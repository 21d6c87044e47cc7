"""Loss, optimiser, Lookahead and learning rates of 2D trainings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from monai.losses import DiceLoss
from monai.optimizers import generate_param_groups
from torch import Tensor, nn
from torch.nn import functional

from medsegai.networks.unet2d import UNet2D
from medsegai.training.unet2d.config import LossConfig, OptimiserConfig

WARM, COOLEST = 0.3, 1e-4
"""The share of the steps of a cycle in which the rate rises, and the last rate as a share of the highest."""

DEEP_WEIGHT = 0.5
"""The weight of all losses of nested U-Nets together, relative to that of the whole network."""

HALF = 0.5
"""The share of the way from the old weights to the new that Lookahead takes."""


class PictureLoss(nn.Module):
    """Dice loss of all classes but background, and weighted cross-entropy."""

    def __init__(self, config: LossConfig) -> None:
        super().__init__()
        self.config = config
        self.dice = DiceLoss(include_background=False, to_onehot_y=True, softmax=True, batch=True)
        weights = torch.tensor(config.class_weights) if config.class_weights else None
        self.weights: Tensor | None
        self.register_buffer("weights", weights)

    def forward(self, logits: Tensor, classes: Tensor) -> Tensor:
        """Return the loss of logits (N, class, j, i) for classes, int64 (N, j, i), a scalar."""
        logits = logits.float()
        dice: Tensor = self.dice(logits, classes[:, None])
        entropy = functional.cross_entropy(logits, classes, self.weights)
        return self.config.dice * dice + self.config.cross_entropy * entropy

    def of_all(self, answers: Sequence[Tensor], classes: Tensor) -> Tensor:
        """Return the loss of the whole network and of its nested U-Nets, if they have heads, a scalar."""
        total: Tensor = self(answers[0], classes)
        for answer in answers[1:]:
            total = total + DEEP_WEIGHT / (len(answers) - 1) * self(answer, classes)
        return total


def build_optimiser(network: UNet2D, config: OptimiserConfig) -> torch.optim.Optimizer:
    """Return AdamW or RAdam; group 0 is the encoder, with its own rate, and group 1 the rest."""
    rates = [config.encoder_rate * config.learning_rate, config.learning_rate]
    groups = generate_param_groups(
        network, [lambda net: net.encoder], ["select"], rates[:1], include_others=True
    )
    groups[1]["lr"] = rates[1]
    if config.name == "radam":
        return torch.optim.RAdam(
            groups, weight_decay=config.weight_decay, decoupled_weight_decay=True
        )
    return torch.optim.AdamW(groups, weight_decay=config.weight_decay)


class Lookahead:
    """Every few steps, moves the weights half-way back to their earlier values (Zhang et al., NeurIPS 2019)."""

    def __init__(self, network: nn.Module, every: int) -> None:
        self._network, self._every, self._count = network, every, 0
        self._slow = [weight.detach().clone() for weight in network.parameters()] if every else []

    @torch.no_grad()
    def step(self) -> None:
        """Follow a step of the optimiser."""
        self._count += 1
        if not self._every or self._count % self._every:
            return
        for slow, fast in zip(self._slow, self._network.parameters(), strict=True):
            slow.lerp_(fast, HALF)
            fast.copy_(slow)

    def state_dict(self) -> dict[str, Any]:
        """Return the state that `load_state_dict` restores."""
        return {"count": self._count, "slow": self._slow}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        self._count = int(state["count"])
        self._slow = [values.clone() for values in state["slow"]]


def one_cycle(share: float) -> float:
    """Return the factor of the learning rate after a share of all steps: up to 1 and down again along cosines."""
    if share < WARM:
        low, high, part = 0.04, 1.0, share / WARM
    else:
        low, high, part = 1.0, COOLEST, (share - WARM) / (1 - WARM)
    return float(high + (low - high) * 0.5 * (1 + torch.cos(torch.tensor(torch.pi * part))))


class Rates:
    """The learning rates of a fold: a schedule, and a frozen encoder during the first epochs."""

    def __init__(
        self, optimiser: torch.optim.Optimizer, config: OptimiserConfig, epochs: int
    ) -> None:
        self._optimiser, self._config, self._epochs = optimiser, config, epochs
        self.factor, self.waited, self.best = 1.0, 0, -1.0

    def follow(self, epoch: float) -> None:
        """Set the rates for a time, in epochs from 0 (may be fractional)."""
        config = self._config
        factor = self.factor
        if config.schedule == "one_cycle":
            factor = one_cycle(min(epoch / self._epochs, 1.0))
        frozen = epoch < config.frozen_epochs
        encoder, others = self._optimiser.param_groups
        encoder["lr"] = 0.0 if frozen else config.encoder_rate * config.learning_rate * factor
        others["lr"] = config.learning_rate * factor
        encoder["weight_decay"] = 0.0 if frozen else config.weight_decay

    def judge(self, dice: float) -> None:
        """Record a validation; after `patience` validations without improvement the rate falls to a tenth."""
        if dice > self.best:
            self.best, self.waited = dice, 0
            return
        self.waited += 1
        patience = self._config.patience
        if self._config.schedule == "plateau" and self.waited % patience == 0:
            self.factor *= 0.1

    @property
    def over(self) -> bool:
        """Whether a fold should end because its validation no longer improves."""
        limit = self._config.early_stopping
        return bool(limit) and self.waited >= limit

    def state_dict(self) -> dict[str, float]:
        """Return the state that `load_state_dict` restores."""
        return {"factor": self.factor, "waited": self.waited, "best": self.best}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Restore the state that `state_dict` returned."""
        self.factor, self.best = float(state["factor"]), float(state["best"])
        self.waited = int(state["waited"])

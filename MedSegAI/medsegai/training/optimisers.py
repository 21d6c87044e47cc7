"""The optimisers that a training file can name, and their learning-rate schedules."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from medsegai.training.config import OptimiserConfig
from medsegai.training.muon import Muon

ADAM_SHARE = 0.4
"""The learning rate of weights that Muon does not train (first convolution, head, norms), relative to Muon's."""


def build_optimiser(
    config: OptimiserConfig,
    network: nn.Module,
    outer: Sequence[nn.Parameter] = (),
    half: bool = False,
) -> torch.optim.Optimizer:
    """Build the optimiser of a network's weights; weight decay acts on convolutions only.

    Args:
        config: the name and settings of the optimiser.
        network: the network whose weights are trained.
        outer: weights of the first convolution and of the head, which Muon leaves to AdamW.
        half: whether Muon iterates in bfloat16.
    """
    outside = {id(weight) for weight in outer}
    matrices = [weight for weight in network.parameters() if weight.ndim > 1]
    others = [weight for weight in network.parameters() if weight.ndim <= 1]
    groups: list[dict[str, Any]] = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    rate = config.learning_rate
    if config.name == "muon":
        hidden = [weight for weight in matrices if id(weight) not in outside]
        own = {"orthogonal": True, "momentum": config.momentum, "lr": rate, "half": half}
        groups[0]["params"] = [weight for weight in matrices if id(weight) in outside]
        groups.insert(0, {"params": hidden, "weight_decay": config.weight_decay, **own})
        return _remembering(Muon(groups, lr=ADAM_SHARE * rate))
    if config.name == "adamw":
        return _remembering(torch.optim.AdamW(groups, lr=rate))
    return _remembering(torch.optim.SGD(groups, lr=rate, momentum=config.momentum))


def _remembering(optimiser: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Store the full learning rate in each group."""
    for group in optimiser.param_groups:
        group["initial_lr"] = group["lr"]
    return optimiser


def set_learning_rate(optimiser: torch.optim.Optimizer, factor: float) -> None:
    """Set each group's learning rate to `factor` of its full one."""
    for group in optimiser.param_groups:
        group["lr"] = group["initial_lr"] * factor


def learning_rate_factor(config: OptimiserConfig, steps: int, step: int) -> float:
    """Return the share of the full learning rate at ``step`` of ``steps``: warm-up, then the schedule."""
    if step < config.warm_up:
        return (step + 1) / config.warm_up
    if config.schedule == "step":
        return config.step_factor ** (step // config.step_every)
    if config.schedule == "trapezoid":
        decay = max(1.0, steps * config.decay_share)
        return min(1.0, max(0.0, (steps - step) / decay))
    part = (step - config.warm_up) / max(1, steps - config.warm_up)
    return 0.5 * (1.0 + math.cos(math.pi * min(part, 1.0)))

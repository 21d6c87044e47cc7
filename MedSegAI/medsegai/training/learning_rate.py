"""The learning rate of a training, found by trials: MONAI's finder, and a plot of the losses.

The rate grows from step to step until the loss grows too (L. Smith, "Cyclical Learning Rates for Training Neural
Networks", 2017). A tenth of the rate of the lowest loss is taken, or that of the steepest fall where this is less.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from medsegai.evaluation.drawing import new_figure, save_figure
from medsegai.progress import Check, unstoppable

LOWEST, HIGHEST = 1e-6, 1.0
"""The range in which a learning rate is searched."""

SMOOTHING = 0.2
"""The share of a step's own loss in the smoothed loss."""

FALLBACK = 1e-3
"""The rate if the loss never fell, for example because the pictures contain nothing to learn."""


@dataclass(frozen=True)
class FoundRate:
    """The rate that was found, and the losses at `rates` on which it is based."""

    rate: float
    rates: tuple[float, ...]
    losses: tuple[float, ...]


def find_learning_rate(
    network: nn.Module,
    optimiser: torch.optim.Optimizer,
    loss: nn.Module,
    batches: Iterable[Any],
    steps: int,
    check: Check = unstoppable,
) -> FoundRate:
    """Try rates on batches of (images, targets). Network and optimiser are restored afterwards.

    Args:
        network: the network, which takes images.
        optimiser: the optimiser of its weights; its groups keep their proportions.
        loss: the loss of (outputs, targets).
        batches: the batches of a DataLoader, which is restarted when it ends.
        steps: the number of rates to try.
        check: called before each batch; after `Cancelled` nothing is restored.
    """
    from monai.optimizers import LearningRateFinder

    def images_of(batch: Any) -> Any:
        check()
        return batch[0]

    device = next(network.parameters()).device
    finder = LearningRateFinder(network, optimiser, loss, device=device, verbose=False)
    finder.range_test(
        batches,
        image_extractor=images_of,
        label_extractor=lambda batch: batch[1],
        start_lr=LOWEST,
        end_lr=HIGHEST,
        num_iter=steps,
        smooth_f=SMOOTHING,
    )
    rates, losses = finder.history["lr"], finder.history["loss"]
    lowest = int(np.argmin(losses))
    steepest = int(np.gradient(losses[: lowest + 1]).argmin()) if lowest > 1 else 0
    rate = min(rates[lowest] / 10, rates[steepest]) if lowest > 1 else FALLBACK
    return FoundRate(float(rate), tuple(map(float, rates)), tuple(map(float, losses)))


def draw_rates(found: FoundRate, path: Path) -> bool:
    """Draw loss over rate and the chosen rate into a PNG; without matplotlib, log this and return False."""
    figure = new_figure(4.5, 3.6)
    if figure is None:
        return False
    axes = figure.subplots()
    axes.plot(found.rates, found.losses, linewidth=1.0)
    axes.axvline(found.rate, color="tab:red", linewidth=1.0)
    axes.set(
        xlabel="learning rate", ylabel="loss", xscale="log", title=f"{found.rate:.2g} is taken"
    )
    axes.grid(alpha=0.3)
    save_figure(figure, path)
    return True

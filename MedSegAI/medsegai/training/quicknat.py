"""Train the QuickNAT networks of a model card, all views in lock-step from one pool of volumes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from medsegai.errors import RequestError
from medsegai.models.card import MemberCard, ModelCard
from medsegai.networks.quicknat import QuickNAT, QuickNATConfig
from medsegai.preprocessing.views import VIEWS
from medsegai.training.config import TrainingConfig
from medsegai.training.data import DROPOUT, SampleSource, seed_for
from medsegai.training.loss import SegmentationLoss, member_weights
from medsegai.training.sampling import ViewTask, view_task
from medsegai.training.trainer import Trainer, TrainingProcess


class Objective(nn.Module):
    """Network and loss in one module, so that both are compiled and distributed together."""

    def __init__(self, network: QuickNAT, loss: SegmentationLoss, precision: str) -> None:
        super().__init__()
        self.network = network
        self.loss = loss
        self.precision = precision

    def logits(self, slices: Tensor, network: nn.Module) -> Tensor:
        """Return the logits of a batch."""
        mixed = self.precision == "bf16"
        with torch.autocast(slices.device.type, dtype=torch.bfloat16, enabled=mixed):
            logits: Tensor = network(slices)
        return logits

    def forward(self, slices: Tensor, classes: Tensor, touches: Tensor) -> Tensor:
        """Return the loss of a batch."""
        losses: Tensor = self.loss(self.logits(slices, self.network), classes, touches)
        return losses


def build_trainers(
    config: TrainingConfig,
    card: ModelCard,
    views: Sequence[str],
    source: SampleSource,
    place: TrainingProcess,
) -> list[Trainer]:
    """Build one trainer for each view, with the network that the card describes."""
    counts = source.target_counts()
    trainers = []
    for number, view in enumerate(views):
        member = card.member(view)
        settings = {**card.settings, **member.settings}
        task = _view_task(card, member, settings)
        torch.manual_seed(seed_for(config.seed, DROPOUT, 2**40 + number))
        network = QuickNAT(network_config(settings, task))
        weights = member_weights(counts, task.class_of, config.loss)
        loss = SegmentationLoss(weights, config.loss)
        trainers.append(Trainer(task, Objective(network, loss, config.precision), config, place))
    return trainers


def _view_task(card: ModelCard, member: MemberCard, settings: dict[str, Any]) -> ViewTask:
    view = str(settings.get("view", member.name))
    if view not in VIEWS:
        raise RequestError(
            f"Member {member.name!r} of {card.id!r} does not name a known view; known are {', '.join(VIEWS)}."
        )
    return view_task(member, view, int(settings.get("slices", 1)), card.label_values)


def network_config(settings: dict[str, Any], task: ViewTask) -> QuickNATConfig:
    """Return the shape of the QuickNAT that the settings of a card and its member describe."""
    return QuickNATConfig(
        channels=task.slices,
        filters=int(settings.get("filters", 64)),
        classes=task.class_count,
        squeeze_excitation=settings.get("squeeze_excitation", "none"),
        dropout=float(settings.get("dropout", 0.2)),
    )

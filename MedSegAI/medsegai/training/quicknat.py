"""Train the QuickNAT networks of a model card, all views in lock-step from one pool of volumes."""

from __future__ import annotations

import logging
import math
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as distributed
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from medsegai.card import ModelCard, load_card
from medsegai.errors import DeviceError, OutputError, RequestError
from medsegai.locks import reserved
from medsegai.networks.backends import keep_freed_memory
from medsegai.networks.quicknat import QuickNAT, QuickNATConfig
from medsegai.preprocessing.views import VIEWS
from medsegai.progress import Progress
from medsegai.training.checkpoint import (
    CHECKPOINT,
    LOG,
    RunLog,
    best_weights_name,
    load_checkpoint,
    refuse_earlier_run,
    save_checkpoint,
    save_weights,
)
from medsegai.training.config import OptimiserConfig, TrainingConfig
from medsegai.training.curves import Board
from medsegai.training.data import DROPOUT, SampleSource, case_source, seed_for
from medsegai.training.export import MODEL_FOLDER, export_model
from medsegai.training.loss import SegmentationLoss, class_weights
from medsegai.training.sampling import Batch, Pool, ViewTask, view_task
from medsegai.training.validation import Validator, evaluating

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Place:
    """Where this process computes, and which of how many it is."""

    device: torch.device
    rank: int = 0
    ranks: int = 1

    @property
    def is_first(self) -> bool:
        return self.rank == 0


class Objective(nn.Module):
    """Network and loss in one module, so that both are compiled and distributed together."""

    def __init__(self, network: QuickNAT, loss: SegmentationLoss, precision: str) -> None:
        super().__init__()
        self.network = network
        self.loss = loss
        self.precision = precision

    def logits(self, slices: Tensor) -> Tensor:
        mixed = self.precision == "bf16"
        with torch.autocast(slices.device.type, dtype=torch.bfloat16, enabled=mixed):
            logits: Tensor = self.network(slices)
        return logits

    def forward(self, slices: Tensor, classes: Tensor, touches: Tensor) -> Tensor:
        losses: Tensor = self.loss(self.logits(slices), classes, touches)
        return losses


def learning_rate_factor(config: OptimiserConfig, steps: int, step: int) -> float:
    """Share of the full learning rate at ``step`` of ``steps``: warm-up, then cosine or steps."""
    if step < config.warm_up:
        return (step + 1) / config.warm_up
    if config.schedule == "step":
        return config.step_factor ** (step // config.step_every)
    part = (step - config.warm_up) / max(1, steps - config.warm_up)
    return 0.5 * (1.0 + math.cos(math.pi * min(part, 1.0)))


class ViewTrainer:
    """One view's network with its optimiser, schedule and best result so far."""

    def __init__(
        self,
        task: ViewTask,
        config: TrainingConfig,
        network: QuickNAT,
        loss: SegmentationLoss,
        place: Place,
    ):
        self.task = task
        self.place = place
        self.objective = Objective(network, loss, config.precision).to(place.device)
        self.objective.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.run: Callable[[Tensor, Tensor, Tensor], Tensor] = self.objective
        if place.ranks > 1:
            self.run = DistributedDataParallel(self.objective)
        if config.compile and compiler_at_hand(place.device):
            self.run = torch.compile(self.run, dynamic=False)
        self.gradient_limit = config.optimiser.gradient_limit
        self.optimiser = build_optimiser(config.optimiser, network)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimiser, lambda step: learning_rate_factor(config.optimiser, config.steps, step)
        )
        self.best = -1.0

    @property
    def network(self) -> QuickNAT:
        return self.objective.network

    def step(self, batch: Batch) -> Tensor:
        """One optimiser step; gives (total, Dice, logistic) loss."""
        self.objective.train()
        device = self.place.device
        slices = batch.slices.to(device, memory_format=torch.channels_last)
        losses = self.run(slices, batch.classes.to(device), batch.touches.to(device))
        self.optimiser.zero_grad()
        losses[0].backward()
        if self.gradient_limit > 0:
            nn.utils.clip_grad_norm_(self.network.parameters(), self.gradient_limit)
        self.optimiser.step()
        self.schedule.step()
        return losses.detach()

    def predict(self, slices: Tensor) -> Tensor:
        moved = slices.to(self.place.device, memory_format=torch.channels_last)
        return evaluating(self.network, self.objective.logits)(moved)

    def state(self) -> dict[str, Any]:
        return {
            "network": self.network.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "schedule": self.schedule.state_dict(),
            "best": self.best,
        }

    def _follow_schedule(self) -> None:
        """Set the learning rate anew, for the run may have been given another number of steps."""
        factors = (factor(self.schedule.last_epoch) for factor in self.schedule.lr_lambdas)
        for group, base, factor in zip(
            self.optimiser.param_groups, self.schedule.base_lrs, factors, strict=True
        ):
            group["lr"] = base * factor

    def restore(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.schedule.load_state_dict(state["schedule"])
        self._follow_schedule()
        self.best = state["best"]


def build_optimiser(config: OptimiserConfig, network: nn.Module) -> torch.optim.Optimizer:
    """Weight decay acts on convolutions only, not on normalisation, biases and slopes."""
    matrices = [weight for weight in network.parameters() if weight.ndim > 1]
    others = [weight for weight in network.parameters() if weight.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    if config.name == "adamw":
        return torch.optim.AdamW(groups, lr=config.learning_rate)
    return torch.optim.SGD(groups, lr=config.learning_rate, momentum=config.momentum)


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


def find_place(device: str) -> Place:
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
    return Place(chosen, rank, ranks)


def build_trainers(
    config: TrainingConfig,
    card: ModelCard,
    views: Sequence[str],
    source: SampleSource,
    place: Place,
) -> list[ViewTrainer]:
    """One trainer for each view, with the network that the card describes."""
    counts = source.target_counts()
    trainers = []
    for number, view in enumerate(views):
        member = card.member(view)
        if str(member.settings.get("view", view)) not in VIEWS:
            raise RequestError(
                f"Member {view!r} of {card.id!r} names no known view; known are {', '.join(VIEWS)}."
            )
        settings = {**card.settings, **member.settings}
        task = view_task(
            member,
            str(settings.get("view", view)),
            int(settings.get("slices", 1)),
            card.label_values,
        )
        torch.manual_seed(seed_for(config.seed, DROPOUT, 2**40 + number))
        network = QuickNAT(network_config(settings, task))
        per_class = torch.zeros(task.class_count, dtype=torch.int64)
        per_class.index_add_(0, torch.from_numpy(task.class_of), torch.from_numpy(counts))
        loss = SegmentationLoss(class_weights(per_class.numpy(), config.loss), config.loss)
        trainers.append(ViewTrainer(task, config, network, loss, place))
    return trainers


def network_config(settings: dict[str, Any], task: ViewTask) -> QuickNATConfig:
    return QuickNATConfig(
        channels=task.slices,
        filters=int(settings.get("filters", 64)),
        classes=task.class_count,
        squeeze_excitation=settings.get("squeeze_excitation", "none"),
        dropout=float(settings.get("dropout", 0.2)),
    )


class Run:
    """A training run: its folder, its log, and where it stands."""

    def __init__(
        self, config: TrainingConfig, trainers: Sequence[ViewTrainer], pool: Pool, folder: Path
    ) -> None:
        self.config = config
        self.trainers = trainers
        self.pool = pool
        self.folder = folder
        self.place = trainers[0].place
        self.done = 0
        self.log: RunLog | None = None
        self.board: Board | None = None
        self.validator: Validator | None = None

    def begin(self, resume: bool) -> None:
        """Restore the last checkpoint if asked to, and open the log."""
        if resume:
            state = load_checkpoint(self.folder, self.config.fingerprint(), self.place.device)
            self.done = int(state["step"])
            for trainer in self.trainers:
                trainer.restore(state["views"][trainer.task.name])
        if self.place.is_first:
            self.log = RunLog(self.folder / LOG, self.done)
            self.board = Board(self.folder / "tensorboard", self.done)

    def advance(self, progress: Progress, until: int) -> None:
        """Train up to step ``until``, with checkpoints and validation on the way.

        Raises:
            Cancelled: the user asked to stop; the last checkpoint stays.
        """
        started, recent = time.perf_counter(), []
        for step in range(self.done, until):
            progress.step("train", step, self.config.steps)
            torch.manual_seed(seed_for(self.config.seed, DROPOUT, step))
            recent.append(
                torch.stack([self._step(trainer, step) for trainer in self.trainers]).cpu()
            )
            self.done = step + 1
            if self.done % self.config.log_every == 0:
                self._log_losses(
                    torch.stack(recent).mean(dim=0), (time.perf_counter() - started) / len(recent)
                )
                started, recent = time.perf_counter(), []
            if self.done % self.config.validation.every == 0 or self.done == self.config.steps:
                self.validate()
            if self.done % self.config.checkpoint_every == 0 or self.done == until:
                self.save()

    def end(self) -> None:
        """Finish what is written beside the log, and leave the group of processes."""
        if self.board is not None:
            self.board.close()
        if distributed.is_initialized():
            distributed.destroy_process_group()

    def _step(self, trainer: ViewTrainer, step: int) -> Tensor:
        return trainer.step(self.pool.draw(step, trainer.task, self.place.rank, self.place.ranks))

    def _log_losses(self, losses: Tensor, seconds: float) -> None:
        for trainer, values in zip(self.trainers, losses.tolist(), strict=True):
            total, dice, logistic = (round(value, 5) for value in values)
            rate = trainer.optimiser.param_groups[0]["lr"]
            self._note(
                trainer,
                event="train",
                loss=total,
                dice_loss=dice,
                logistic_loss=logistic,
                learning_rate=rate,
                seconds=round(seconds, 3),
            )

    def validate(self) -> None:
        """Dice on the held-out volumes; the best network of each view is kept as a file."""
        if not self.place.is_first:
            return
        if self.validator is None:
            settings = self.config.validation
            self.validator = Validator.from_source(
                self.pool.source, settings.volumes, settings.slice_step, self.config.sampling.batch
            )
        for trainer in self.trainers:
            counter = self.validator.dice(trainer.task, trainer.predict)
            dice = {str(number): round(part, 4) for number, part in counter.per_class().items()}
            mean = counter.mean()
            self._note(trainer, event="validate", dice=mean, per_class=dice)
            logger.info("step %d, %s: validation Dice %.4f", self.done, trainer.task.name, mean)
            if mean > trainer.best:
                trainer.best = mean
                path = self.folder / best_weights_name(trainer.task.name)
                save_weights(path, trainer.network.state_dict())

    def _note(self, trainer: ViewTrainer, event: str, **values: Any) -> None:
        if self.log is not None and self.board is not None:
            entry = {"event": event, "step": self.done, "view": trainer.task.name, **values}
            self.log.write(entry)
            self.board.add(entry)

    def save(self) -> None:
        if self.place.is_first:
            views = {trainer.task.name: trainer.state() for trainer in self.trainers}
            state = {"step": self.done, "fingerprint": self.config.fingerprint(), "views": views}
            save_checkpoint(self.folder, state)


def train_quicknat(
    config: TrainingConfig, folder: Path, resume: bool, device: str, progress: Progress
) -> Path:
    """Train what a training file describes, and give the folder of the finished model.

    ``folder`` gets the last checkpoint, the best weights of each view, ``log.jsonl``, curves, and
    at the end ``model``: weights, card, training file and log. With ``resume`` the last checkpoint
    is gone on from, exactly as if there had been no break.

    Raises:
        RequestError, InputError, ModelError: training file, data or card cannot be used; or ``folder`` holds a
            training already, and is not to be resumed.
        DeviceError: the device is not there.
        OutputError: ``folder`` cannot be written, or another training is at work there.
        Cancelled: stopped through ``progress``; the last checkpoint stays.
    """
    keep_freed_memory()
    place = find_place(device)
    card = load_card(config.card_path)
    if config.sampling.batch % place.ranks:
        raise RequestError(
            f"A batch of {config.sampling.batch} cannot be shared by {place.ranks} processes."
        )
    if place.is_first and not resume:
        refuse_earlier_run(folder)  # before hours may be spent on its data
    source = case_source(config, card, place.device)
    trainers = build_trainers(config, card, config.views, source, place)
    run = Run(config, trainers, Pool(source, config.sampling, config.seed), folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with reserved([folder / CHECKPOINT] if place.is_first else []):
            run.begin(resume)
            run.advance(progress, config.steps)
            return export_model(card, config, folder) if place.is_first else folder / MODEL_FOLDER
    except OSError as error:
        raise OutputError(
            f"{folder} cannot be written: {error}. Free space or choose another."
        ) from error
    finally:
        run.end()

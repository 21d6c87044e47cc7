"""A training run of any kind of network, with its folder, log, checkpoints and validation."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import torch
import torch.distributed as distributed
from torch import Tensor

from medsegai.errors import Cancelled, ModelError, RequestError
from medsegai.models.card import ModelCard, load_card
from medsegai.models.catalogue import find_card
from medsegai.progress import Check, Progress, unstoppable
from medsegai.training.checkpoint import (
    BOARD,
    LOG,
    RunLog,
    best_weights_name,
    claimed,
    load_checkpoint,
    load_weights,
    refuse_earlier_run,
    remove_beginning,
    save_checkpoint,
    save_weights,
)
from medsegai.training.config import TrainingConfig
from medsegai.training.curves import Board
from medsegai.training.data import DROPOUT, SampleSource, case_source, seed_for
from medsegai.training.export import MODEL_FOLDER, export_model
from medsegai.training.sampling import Pool
from medsegai.training.stored_pool import StoredPool
from medsegai.training.trainer import Trainer, TrainingProcess, training_process
from medsegai.training.validation import Validator

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 60.0

Build = Callable[
    [TrainingConfig, ModelCard, Sequence[str], SampleSource, TrainingProcess], Sequence[Trainer]
]
"""A function of a family that makes the trainers of a card's members."""


@dataclass(frozen=True)
class TimeLimit:
    """The time at which a run stops, in seconds of `time.monotonic`; None if only its steps end it."""

    end: float | None = None

    @classmethod
    def of(cls, minutes: float | None, until: str | None) -> TimeLimit:
        """Return the limit `minutes` from now, or when a clock next shows `until` (HH:MM); the earlier of both.

        Raises:
            RequestError: `until` is not a time of day, or `minutes` is not positive.
        """
        ends = []
        if minutes is not None:
            if not minutes > 0:
                raise RequestError(f"--minutes must be more than 0, not {minutes}.")
            ends.append(time.monotonic() + 60.0 * minutes)
        if until is not None:
            ends.append(time.monotonic() + _seconds_until(until, datetime.now()))
        return cls(min(ends, default=None))

    def is_over(self) -> bool:
        """Whether the time is over."""
        return self.end is not None and time.monotonic() >= self.end

    def left(self) -> float:
        """Return the seconds that are left; infinite without a limit."""
        return float("inf") if self.end is None else max(0.0, self.end - time.monotonic())


def _seconds_until(text: str, now: datetime) -> float:
    try:
        clock = datetime.strptime(text, "%H:%M")
    except ValueError:
        raise RequestError(
            f"--until takes a time of day such as 06:30 (HH:MM), not {text!r}."
        ) from None
    then = now.replace(hour=clock.hour, minute=clock.minute, second=0, microsecond=0)
    if then <= now:
        then += timedelta(days=1)
    return (then - now).total_seconds()


class Run:
    """A training run: its folder, its log and its state."""

    def __init__(
        self, config: TrainingConfig, trainers: Sequence[Trainer], pool: Pool, folder: Path
    ) -> None:
        self.config = config
        self.trainers = trainers
        self.pool = pool
        self.folder = folder
        self.place = trainers[0].place
        self.done = 0
        self.judged = 0
        self.log: RunLog | None = None
        self.board: Board | None = None
        self.validator: Validator | None = None
        self._line_at = time.monotonic()

    def begin(self, resume: bool) -> None:
        """Restore the last checkpoint if `resume`, otherwise write the first one, and open the log."""
        if resume:
            state = load_checkpoint(self.folder, self.fingerprint(), self.place.device)
            self.done = int(state["step"])
            self.judged = int(state.get("judged", self.done))
            for trainer in self.trainers:
                trainer.restore(state["members"][trainer.task.name])
        else:
            self.save()
        if self.place.is_first:
            self.log = RunLog(self.folder / LOG, self.done)
            self.board = Board(self.folder / BOARD, self.done)

    def advance(self, progress: Progress, limit: TimeLimit) -> None:
        """Train until the steps are done or the time is over, with checkpoints and validation on the way.

        Raises:
            Cancelled: the user asked to stop.
        """
        config = self.config
        if self._is_owed() and self._has_ended(progress, limit):
            return
        started, recent = time.perf_counter(), []
        for step in range(self.done, config.steps):
            self.pool.at(step, progress.check)
            progress.step("train", step, config.steps)
            torch.manual_seed(seed_for(config.seed, DROPOUT, step))
            recent.append(
                torch.stack([self._step(trainer, step) for trainer in self.trainers]).cpu()
            )
            self.done = step + 1
            if self.done % config.log_every == 0:
                seconds = (time.perf_counter() - started) / len(recent)
                self._log_losses(torch.stack(recent).mean(dim=0), seconds, limit)
                started, recent = time.perf_counter(), []
            if self._has_ended(progress, limit):
                return

    def _is_owed(self) -> bool:
        """Whether the networks of the present step must be validated, but are not yet."""
        due = self.done % self.config.validation.every == 0 or self.done == self.config.steps
        return due and self.judged < self.done

    def _has_ended(self, progress: Progress, limit: TimeLimit) -> bool:
        """Validate and save after a step where this is due; return whether the run ends before its last step."""
        config, over = self.config, limit.is_over()
        if self._is_owed():
            self.validate(progress.check)
            self.judged = self.done
            over = over or self.is_settled()
        if self.done % config.checkpoint_every == 0 or self.done == config.steps or over:
            self.save()
        return over

    def is_settled(self) -> bool:
        """Whether the last validation shows that more steps are useless."""
        return False

    def has_learned(self) -> bool:
        """Whether any step changed a network."""
        return any(trainer.bad_steps < trainer.done for trainer in self.trainers)

    def end(self) -> None:
        """Finish the other files of the run, and leave the process group."""
        if self.board is not None:
            self.board.close()
            self.board = None
        if distributed.is_initialized():
            distributed.destroy_process_group()

    def fingerprint(self) -> str:
        """A hash of the settings that the result depends on; a run is resumed only with the same hash."""
        return self.config.fingerprint()

    def _step(self, trainer: Trainer, step: int) -> Tensor:
        return trainer.step(self.pool.draw(step, trainer.task, self.place.rank, self.place.ranks))

    def _log_losses(self, losses: Tensor, seconds: float, limit: TimeLimit) -> None:
        for trainer, values in zip(self.trainers, losses.tolist(), strict=True):
            total, dice, logistic = (round(value, 5) for value in values)
            rate = trainer.optimiser.param_groups[0]["lr"]
            self.note(
                trainer,
                event="train",
                loss=total,
                dice_loss=dice,
                logistic_loss=logistic,
                learning_rate=rate,
                seconds=round(seconds, 3),
            )
        if time.monotonic() - self._line_at >= SECONDS_BETWEEN_LINES and self.place.is_first:
            self._line_at = time.monotonic()
            self._say_how_far(losses[:, 0].tolist(), seconds, limit)

    def _say_how_far(self, losses: Sequence[float], seconds: float, limit: TimeLimit) -> None:
        left = min((self.config.steps - self.done) * seconds, limit.left())
        named = ", ".join(
            f"{trainer.task.name} {loss:.3f}"
            for trainer, loss in zip(self.trainers, losses, strict=True)
        )
        logger.info(
            "step %d of %d, %.2f s per step, %d min left; loss: %s",
            self.done,
            self.config.steps,
            seconds,
            round(left / 60),
            named,
        )

    def class_weights(self) -> dict[str, list[float]]:
        """Return the class weights in the loss for each member."""
        return {
            trainer.task.name: trainer.objective.loss.weights.tolist() for trainer in self.trainers
        }

    def validate(self, check: Check = unstoppable) -> None:
        """Measure the Dice on held-out volumes; the best network of each member is kept as a file.

        Raises:
            Cancelled: the user asked to stop; nothing was kept of any member.
        """
        if not self.place.is_first:
            return
        if self.validator is None:
            settings, batch = self.config.validation, self.config.sampling.batch
            self.validator = Validator.from_source(
                self.pool.source, settings.volumes, settings.slice_step, batch, check
            )
        found = [self.validator.dice(it.task, it.predict, check) for it in self.trainers]
        for trainer, counter in zip(self.trainers, found, strict=True):
            dice = {str(number): round(part, 4) for number, part in counter.per_class().items()}
            mean = counter.mean()
            self.note(trainer, event="validate", dice=mean, per_class=dice)
            logger.info("step %d, %s: validation Dice %.4f", self.done, trainer.task.name, mean)
            if mean > trainer.best:
                trainer.best = mean
                path = self.folder / best_weights_name(trainer.task.name)
                save_weights(path, trainer.judged.state_dict())

    def note(self, trainer: Trainer, event: str, **values: object) -> None:
        """Add an event of a trainer to the log."""
        if self.log is not None and self.board is not None:
            entry = {"event": event, "step": self.done, "view": trainer.task.name, **values}
            self.log.write(entry)
            self.board.add(entry)

    def save(self) -> None:
        """Write a checkpoint of all trainers."""
        if self.place.is_first:
            members = {trainer.task.name: trainer.state() for trainer in self.trainers}
            state = {
                "step": self.done,
                "judged": self.judged,
                "fingerprint": self.fingerprint(),
                "members": members,
            }
            save_checkpoint(self.folder, state)


@contextlib.contextmanager
def _saved_when_stopped(run: Run) -> Iterator[None]:
    """Save a checkpoint if the user stops the run within the block.

    Raises:
        Cancelled: the user asked to stop.
    """
    try:
        yield
    except Cancelled:
        run.save()
        raise Cancelled(
            f"The training was stopped after step {run.done}. Continue it with --resume and the same folder, "
            f"{run.folder}."
        ) from None


def begin_with(trainers: Sequence[Trainer], card: ModelCard) -> None:
    """Give each trainer the weights of the member of the same name.

    Raises:
        ModelError: the model does not have the member, or its network has another shape.
    """
    for trainer in trainers:
        member = card.member(trainer.task.name)
        card.verify_member(member)
        path = card.weights_path(member)
        weights = {name: values.float() for name, values in load_weights(path).items()}
        try:
            for network in filter(None, (trainer.network, trainer.averaged)):
                network.load_state_dict(weights)
        except RuntimeError as error:
            raise ModelError(
                f"{path} does not fit the network of {member.name!r} in the training file: {error}"
            ) from error


@dataclass(frozen=True)
class TrainingOptions:
    """The options of a training of any kind.

    Attributes:
        folder: the folder of its files.
        resume: whether to continue from the checkpoint in the folder.
        device: auto, cpu, cuda or cuda:N.
        limit: the latest time at which it stops, after a whole step or epoch.
    """

    folder: Path
    resume: bool = False
    device: str = "auto"
    limit: TimeLimit = TimeLimit()


@dataclass(frozen=True)
class RunOptions(TrainingOptions):
    """The options of a training on volumes.

    Attributes:
        start: the id or folder of a model whose weights it starts from; empty for random weights.
    """

    start: str = ""


def train(build: Build, config: TrainingConfig, options: RunOptions, progress: Progress) -> Path:
    """Train the networks of a training file, and return the folder of the finished model.

    The output folder gets the last checkpoint, the best weights of each member, ``log.jsonl``, curves, and
    at the end ``model``: weights, card, training file and log. A resumed run continues from the last
    checkpoint exactly as if there had been no break.

    Raises:
        RequestError, InputError, ModelError: training file, data or card cannot be used; or the folder holds a
            training already, and is not to be resumed.
        DeviceError: the device does not exist.
        OutputError: the folder cannot be written, or another training is at work there.
        Cancelled: the training was stopped through ``progress``; a checkpoint was written.
    """
    place = training_process(options.device)
    card = load_card(config.card_path)
    folder = options.folder
    if config.sampling.batch % place.ranks:
        raise RequestError(
            f"A batch of {config.sampling.batch} cannot be divided among {place.ranks} "
            "processes. Change sampling.batch or the number of processes."
        )
    if place.is_first and not options.resume:
        refuse_earlier_run(folder)  # before time is spent on its data
    source: SampleSource = case_source(config, card, place.device, progress.check)
    trainers = build(config, card, config.members, source, place)
    if options.start and not options.resume:
        begin_with(trainers, find_card(options.start))
    if config.sampling.ahead and place.device.type == "cpu":
        source = StoredPool(source, config, folder / "pool", place.rank)
    run = Run(config, trainers, Pool(source, config.sampling, config.seed), folder)

    def finish() -> Path:
        if not place.is_first or any(trainer.best < 0 for trainer in trainers):
            return folder / MODEL_FOLDER
        return export_model(card, config, folder, run.class_weights())

    try:
        return carry_out(run, options, progress, finish)
    finally:
        if isinstance(source, StoredPool):
            source.close()


def carry_out(
    run: Run, options: RunOptions, progress: Progress, finish: Callable[[], Path]
) -> Path:
    """Train with a lock on the folder, and return the result of `finish`.

    If no loss was ever a number, nothing of the run stays in the folder, so that it can be started again there.

    Raises:
        ModelError: the losses were not numbers.
        OutputError: the folder cannot be written, or another training is at work there.
        Cancelled: the user asked to stop.
    """
    try:
        with claimed(options.folder, run.place.is_first):
            try:
                with _saved_when_stopped(run):
                    run.begin(options.resume)
                    run.advance(progress, options.limit)
            except ModelError:
                if run.place.is_first and not run.has_learned():
                    run.end()
                    remove_beginning(options.folder, [it.task.name for it in run.trainers])
                raise
            with _saved_when_stopped(run):
                return finish()
    finally:
        run.end()

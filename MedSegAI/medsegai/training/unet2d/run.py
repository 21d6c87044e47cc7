"""A training of 2D networks over all folds, with checkpoints, log, curves and the model."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medsegai.errors import Cancelled, InputError, ModelError, RequestError, counted
from medsegai.io import write_card, write_table
from medsegai.io.atomic import write_json
from medsegai.models.card import (
    OBJECTS,
    Channel,
    MemberCard,
    ModelCard,
    file_sha256,
)
from medsegai.models.json_fields import to_json
from medsegai.networks.unet2d import UNet2D
from medsegai.progress import Check, Progress
from medsegai.training.checkpoint import (
    BOARD,
    LOG,
    RunLog,
    best_weights_name,
    case_hash,
    check_same_cases,
    claimed,
    compact,
    load_checkpoint,
    load_weights,
    read_log,
    refuse_earlier_run,
    remove_beginning,
    save_checkpoint,
    save_weights,
)
from medsegai.training.curves import Board, draw_curves
from medsegai.training.run import TimeLimit, TrainingOptions
from medsegai.training.trainer import training_process
from medsegai.training.unet2d.config import Training2DConfig
from medsegai.training.unet2d.data import PictureCase, folds_of, read_cases
from medsegai.training.unet2d.fold import Fold, Ready, made_ready

logger = logging.getLogger(__name__)

SCORES, TABLE, CURVES, MODEL_FOLDER = "scores.json", "held-out.csv", "curves.png", "model"

COLOURS = ("red", "green", "blue")


@dataclass(frozen=True)
class RunOptions2D(TrainingOptions):
    """The options of a training on pictures.

    Attributes:
        folds: the numbers of the folds to train; empty for all.
    """

    folds: tuple[int, ...] = ()


@dataclass(frozen=True)
class LearnedEpoch:
    """The mean loss of an epoch, and the seconds that it took; its network is not judged yet."""

    loss: float
    seconds: float

    @classmethod
    def of(cls, fold: Fold, ready: Sequence[Ready], progress: Progress) -> LearnedEpoch:
        """Train one epoch, see `Fold.learn`."""
        started = time.perf_counter()
        loss = fold.learn(ready, progress)
        return cls(loss, time.perf_counter() - started)


def train(config: Training2DConfig, options: RunOptions2D, progress: Progress) -> Path:
    """Train all folds, and return the folder of the finished model.

    Every epoch ends with a checkpoint, and random numbers do not depend on earlier epochs, so that a resumed
    training ends with the same weights as an uninterrupted one.

    Returns:
        `model` in the output folder; it holds one member for each finished fold.

    Raises:
        RequestError, InputError, ModelError: the training file, its data or its weights cannot be used.
        OutputError: the folder cannot be written.
        Cancelled: the training was stopped through `progress`; the last whole epoch was kept.
    """
    folder = options.folder
    chosen = options.folds or tuple(range(config.folds))
    if not all(0 <= number < config.folds for number in chosen):
        raise RequestError(f"--folds must lie between 0 and {config.folds - 1}.")
    if not options.resume:
        refuse_earlier_run(folder)
    device = training_process(options.device).device
    check_buildable(config, chosen[0], device)
    cases = read_cases(config, progress.check)
    held_out = folds_of(cases, config.folds, config.seed)
    _check_enough(config, len(cases) - max(map(len, held_out)))
    with claimed(folder):
        run = Run(config, cases, folder, device)
        run.begin(options.resume)
        try:
            for number in chosen:
                if not run.advance(number, held_out[number], progress, options.limit):
                    break
        except ModelError:  # the loss is not a number, perhaps from the first batch on
            if not options.resume and not run.seconds:
                remove_beginning(folder)
            raise
        return run.end()


def _check_enough(config: Training2DConfig, cases: int) -> None:
    """Raise InputError if the cases of a fold do not make a batch of two, which batch norms need."""
    if cases * config.patches_per_image < 2:
        raise InputError(
            f"{config.root} leaves {counted(cases, 'case', 'cases')} to learn from in a fold, which is too few. "
            "Add cases, or use a larger patches_per_image."
        )


def check_buildable(config: Training2DConfig, number: int, device: torch.device) -> None:
    """Make a network and a card as the training will, so that no training starts that could not be finished.

    Raises:
        RequestError, ModelError: the training file describes a network, weights or a model that cannot be made.
    """
    origin = Fold(config, number, device).origin
    try:
        model_card(config, [_member(config, "fold_0", "")], origin, {})
    except ModelError as error:
        raise RequestError(f"{config.source}: {error}") from error


class Run:
    """The state of a training, and its files."""

    def __init__(
        self,
        config: Training2DConfig,
        cases: Sequence[PictureCase],
        folder: Path,
        device: torch.device,
    ) -> None:
        self.config, self.folder, self.device = config, folder, device
        self.ready = made_ready(config, cases)
        self._cases = case_hash((case.name, case.group, case.content()) for case in cases)
        self.scores: dict[str, list[dict[str, Any]]] = {}
        self.seconds: dict[str, float] = {}
        self.origin = ""
        self._waiting: dict[str, Any] | None = None
        self._learned: LearnedEpoch | None = None

    def begin(self, resume: bool) -> None:
        """Open the log; when resuming, read the finished folds and the state of the unfinished one."""
        step = 0
        if resume:
            state = load_checkpoint(self.folder, self.config.fingerprint(), self.device)
            check_same_cases(state, self._cases, self.folder)
            self.scores, self.seconds = state["scores"], state["seconds"]
            self._waiting = state["fold"]
            step = int(state["step"])
        else:
            self._save(None, 0)  # so that a training that stops in the first epoch can be resumed
        self._log = RunLog(self.folder / LOG, step)
        self._board = Board(self.folder / BOARD, step)

    def advance(
        self, number: int, names: Sequence[str], progress: Progress, limit: TimeLimit
    ) -> bool:
        """Train one fold; return whether it is finished, and was not ended by the time limit."""
        if f"fold_{number}" in self.scores:
            return True
        fold = self._begun(number)
        held_out = [ready for ready in self.ready if ready.case.name in names]
        others = [ready for ready in self.ready if ready.case.name not in names]
        with self._stoppable(fold):
            while self._learned or (fold.epoch < self.config.epochs and not fold.rates.over):
                self._learned = self._learned or LearnedEpoch.of(fold, others, progress)
                self._validate(fold, held_out, self._learned, progress.check)
                self._learned = None
                if limit.is_over() and fold.epoch < self.config.epochs:
                    return False
            self._finish(fold, held_out, progress.check)
        return True

    def _begun(self, number: int) -> Fold:
        """Return a fold, with the state in which it was stopped if it was."""
        fold = Fold(self.config, number, self.device)
        self.origin = fold.origin
        if self._waiting is not None and self._waiting["number"] == number:
            fold.restore(self._waiting["state"])
            learned = self._waiting.get("learned")
            self._learned = None if learned is None else LearnedEpoch(**learned)
        self._waiting = None
        return fold

    @contextlib.contextmanager
    def _stoppable(self, fold: Fold) -> Iterator[None]:
        """If the user stops the block, keep an epoch that was learned but is not judged; raise `Cancelled`."""
        try:
            yield
        except Cancelled:
            epoch = fold.epoch + 1
            if self._learned is not None:
                epoch = fold.epoch
                learned = dataclasses.asdict(self._learned)
                self._save(self._state_of(fold) | {"learned": learned}, self._step(fold))
            raise Cancelled(
                f"The training was stopped in epoch {min(epoch, self.config.epochs)} of {fold.name}. Continue it "
                f"with --resume and the same folder, {self.folder}."
            ) from None

    def _validate(
        self, fold: Fold, held_out: Sequence[Ready], learned: LearnedEpoch, check: Check
    ) -> None:
        """Log an epoch, validate the network if it is due, and write a checkpoint."""
        started = time.perf_counter()
        better, dice = self._judged(fold, held_out, check)
        loss, seconds = learned.loss, round(learned.seconds + time.perf_counter() - started, 1)
        self.seconds[fold.name] = self.seconds.get(fold.name, 0.0) + seconds
        rate = fold.optimiser.param_groups[1]["lr"]
        self._note(fold, "train", loss=round(loss, 5), learning_rate=rate, seconds=seconds)
        told = "not measured"
        if dice is not None:
            self._note(fold, "validate", dice=round(dice, 5))
            told = f"{dice:.4f}"
        about = (fold.name, fold.epoch, self.config.epochs, loss, told, seconds)
        logger.info("%s, epoch %d of %d: loss %.3f, held-out Dice %s, %.0f s", *about)
        if better or self.config.keep == "last":
            path = self.folder / best_weights_name(fold.name)
            save_weights(path, fold.network.state_dict())
        self._save(self._state_of(fold), self._step(fold))

    @staticmethod
    def _state_of(fold: Fold) -> dict[str, Any]:
        return {"number": fold.number, "state": fold.state()}

    def _judged(
        self, fold: Fold, held_out: Sequence[Ready], check: Check
    ) -> tuple[bool, float | None]:
        """Return whether a fold is better than before, and its Dice; None if this epoch is not validated."""
        if fold.epoch % self.config.validate_every and fold.epoch != self.config.epochs:
            return False, None
        dice = float(np.mean([row["dice"] for row in fold.judge(held_out, check)]))
        better = dice > fold.rates.best
        fold.rates.judge(dice)
        return better, dice

    def _note(self, fold: Fold, event: str, **values: float) -> None:
        entry = {"event": event, "step": self._step(fold), "view": fold.name, **values}
        self._log.write(entry)
        self._board.add(entry)

    def _step(self, fold: Fold) -> int:
        return fold.number * self.config.epochs + fold.epoch

    def _finish(self, fold: Fold, held_out: Sequence[Ready], check: Check) -> None:
        """Judge the network that the model gets."""
        weights = load_weights(self.folder / best_weights_name(fold.name))
        fold.network.load_state_dict(weights)
        self.scores[fold.name] = fold.judge(held_out, check)
        self._save(None, (fold.number + 1) * self.config.epochs)

    def _save(self, fold: dict[str, Any] | None, step: int) -> None:
        state = {
            "fingerprint": self.config.fingerprint(),
            "scores": self.scores,
            "seconds": self.seconds,
            "fold": fold,
            "step": step,
            "cases": self._cases,
        }
        save_checkpoint(self.folder, state)

    def end(self) -> Path:
        """Write scores, curves and the model of the finished folds."""
        self._board.close()
        draw_curves(read_log(self.folder / LOG), self.folder / CURVES, unit="epoch of all folds")
        rows = [row for scores in self.scores.values() for row in scores]
        if not rows:
            return self.folder / MODEL_FOLDER
        write_table(self.folder / TABLE, list(rows[0]), rows)
        summary = {
            "parameters": sum(
                weight.numel() for weight in UNet2D(self.config.network_config()).parameters()
            ),
            "seconds": self.seconds,
            "mean": means(rows),
            "folds": {name: means(scores) for name, scores in self.scores.items()},
            "cases": rows,
        }
        write_json(self.folder / SCORES, to_json(summary))
        return write_model(self.config, self.folder, list(self.scores), self.origin)


def means(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Return the mean of every score over cases, without values that are not numbers."""
    names = [name for name in rows[0] if name not in ("case", "group", "fold")]
    return {name: round(float(np.nanmean([row[name] for row in rows])), 5) for name in names}


def write_model(config: Training2DConfig, run: Path, names: Sequence[str], origin: str) -> Path:
    """Write the folder of a model with one member for each of `names`."""
    folder = run / MODEL_FOLDER
    folder.mkdir(exist_ok=True)
    shutil.copyfile(config.source, folder / "training.toml")
    shutil.copyfile(run / LOG, folder / "training-log.jsonl")
    members = []
    for name in names:
        weights = folder / f"{name}.safetensors"
        save_weights(weights, compact(load_weights(run / best_weights_name(name))))
        members.append(_member(config, name, file_sha256(weights)))
    rows = json.loads((run / SCORES).read_text(encoding="utf-8"))["folds"]
    card = model_card(config, members, origin, rows)
    write_card(card, folder)
    return folder


def _member(config: Training2DConfig, name: str, sha256: str) -> MemberCard:
    classes = ((), *((label.value,) for label in config.labels))
    return MemberCard(name, f"{name}.safetensors", sha256, classes=classes)


def model_card(
    config: Training2DConfig, members: Sequence[MemberCard], origin: str, performance: Any
) -> ModelCard:
    """Return the card of the model that a training file and its members describe."""
    colours = config.data.channels == len(COLOURS)
    names = COLOURS if colours else [f"channel {n + 1}" for n in range(config.data.channels)]
    settings = config.network_config().settings() | to_json(config.image)
    if config.augmentation.strength != "none":
        settings["mirror"] = [0, 1] if config.augmentation.orientation == "any" else [1]
    if config.data.instances:
        settings[OBJECTS] = {"inside": 1, "border": 2}
    return ModelCard(
        id=config.id,
        name=config.name,
        family="unet2d",
        version="1",
        channels=tuple(Channel(name, config.modality or "picture") for name in names),
        labels=config.labels,
        members=tuple(members),
        spacing_mm=(1.0, 1.0, 1.0),
        description=config.description,
        intended_use="Research only. Not for diagnostic use.",
        licence=config.licence,
        origin=" ".join(filter(None, [config.origin, origin])),
        settings=settings,
        performance={"held-out cases": performance},
        dimensions=2,
    )

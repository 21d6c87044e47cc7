"""Fine-tuning of a trained model on corrected cases; a new model is written only if it improved.

The networks start from the model's weights and are trained at a small learning rate on corrected images, mixed
with synthetic ones, so that the networks do not forget what they learned. They are judged on held-out corrected
cases. The best network that is not worse than before on the synthetic validation images is kept. If there is none,
weights between the old and the new ones are judged as well, which often keep what the old ones knew (Wortsman et
al., "Robust fine-tuning of zero-shot models", CVPR 2022); if these do not pass either, no new model is written.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from medsegai.errors import ModelError, RequestError, counted
from medsegai.io import write_card
from medsegai.models.card import PICTURE_NAME, MemberCard, ModelCard, file_sha256
from medsegai.models.catalogue import find_card
from medsegai.progress import Check, Progress, unstoppable
from medsegai.training.checkpoint import (
    LOG,
    best_weights_name,
    compact,
    load_weights,
    read_log,
    refuse_earlier_run,
    save_weights,
)
from medsegai.training.config import TrainingConfig
from medsegai.training.corrected import MixedSource, card_of_members, mixed_source
from medsegai.training.curves import Entry
from medsegai.training.export import MODEL_FOLDER, copy_records, draw_log
from medsegai.training.run import Build, Run, RunOptions, TimeLimit, begin_with, carry_out
from medsegai.training.sampling import Pool
from medsegai.training.trainer import Trainer, training_process
from medsegai.training.validation import DiceCounter, Validator

logger = logging.getLogger(__name__)

MIXED = "mixed"
"""The event in the log that has the figures of weights between the old and the new ones."""

SHARES = (0.75, 0.5, 0.25)
"""The shares of the way from the old to the new weights that are judged if the new ones do not pass."""

SUFFIX = "-fine-tuned"
"""The suffix of the new model's id after that of the old one."""


@dataclass(frozen=True)
class Judgement:
    """The mean Dice of a member at a step: on held-out corrected cases, and on synthetic images.

    Attributes:
        share: how far the judged weights are on the way from the old to the new ones, 1 for the new ones.
    """

    step: int
    corrected: float
    synthetic: float
    share: float = 1.0


@dataclass(frozen=True)
class Verdict:
    """All judgements of a member; the first is that of the original network.

    Attributes:
        judgements: the judgements in the order of their steps.
    """

    judgements: Sequence[Judgement]

    @classmethod
    def of(cls, entries: Sequence[Entry], member: str) -> Verdict:
        """Return the judgements of a member in the log of a run."""
        found: dict[str, dict[int, float]] = {"validate": {}, "corrected": {}}
        mixed = []
        for entry in entries:
            if entry.get("event") in found and entry.get("view") == member:
                found[entry["event"]][int(entry["step"])] = float(entry["dice"])
            elif entry.get("event") == MIXED and entry.get("view") == member:
                figures = (float(entry[name]) for name in ("corrected", "synthetic", "share"))
                mixed.append(Judgement(int(entry["step"]), *figures))
        corrected, synthetic = found["corrected"], found["validate"]
        steps = sorted(corrected.keys() & synthetic.keys())
        return cls([Judgement(step, corrected[step], synthetic[step]) for step in steps] + mixed)

    @property
    def before(self) -> Judgement:
        return self.judgements[0]

    @property
    def trained(self) -> list[Judgement]:
        """The judgements of networks as they were trained, without those of weights between old and new ones."""
        return [judged for judged in self.judgements if judged.share == 1]

    @property
    def best(self) -> Judgement | None:
        """The best judgement on corrected cases, if it is better than before and not worse on synthetic images.

        Weights between the old and the new ones only count if no trained network passes.
        """
        return self._best_of(self.trained) or self._best_of(self.judgements)

    @property
    def last_is_best(self) -> bool:
        return self.best is not None and self.best is self.judgements[-1]

    def since_best(self) -> int:
        """The number of trained networks since the best one, or since the beginning."""
        best = self._best_of(self.trained) or self.before
        return len(self.trained) - 1 - self.trained.index(best)

    def _best_of(self, judgements: Sequence[Judgement]) -> Judgement | None:
        better = [
            judged
            for judged in judgements
            if judged.corrected > self.before.corrected
            and judged.synthetic >= self.before.synthetic
        ]
        return max(better, key=lambda judged: judged.corrected, default=None)

    def words(self, member: str) -> str:
        """Return the figures as a sentence for a message."""
        reached = self.best or max(self.judgements[1:], key=lambda judged: judged.corrected)
        return (
            f"{member} has Dice {reached.corrected:.4f} on held-out corrected cases ({self.before.corrected:.4f} "
            f"before) and {reached.synthetic:.4f} on synthetic images ({self.before.synthetic:.4f} before)"
        )

    def figures(self) -> dict[str, Any]:
        """Return the figures as JSON values for the card."""
        best = self.best or self.before
        return {
            "step": best.step,
            "share": best.share,
            "held-out corrected cases": _two(self.before.corrected, best.corrected),
            "synthetic images": _two(self.before.synthetic, best.synthetic),
        }


def _two(before: float, after: float) -> dict[str, float]:
    return {"mean_dice_before": round(before, 4), "mean_dice_after": round(after, 4)}


class FineTuning(Run):
    """A run that is judged on corrected cases, and ends when they no longer improve."""

    def __init__(
        self,
        config: TrainingConfig,
        trainers: Sequence[Trainer],
        source: MixedSource,
        folder: Path,
    ) -> None:
        super().__init__(config, trainers, Pool(source, config.sampling, config.seed), folder)
        self._mixed = source
        self._validators: dict[str, Validator] = {}

    def fingerprint(self) -> str:
        """Return a hash that also depends on the cases and the settings of fine-tuning."""
        parts = (super().fingerprint(), self.config.fine_tuning, self._mixed.names)
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]

    def advance(self, progress: Progress, limit: TimeLimit) -> None:
        """Advance as `Run.advance` does, after judging the networks before they learn."""
        if not self.done:
            self.validate(progress.check)
        super().advance(progress, limit)

    def validate(self, check: Check = unstoppable) -> None:
        """Judge every member, and keep the best network of each as a file.

        Raises:
            Cancelled: the user asked to stop; nothing was kept of any member.
        """
        found = [self._counted(trainer, check) for trainer in self.trainers]
        for trainer, counters in zip(self.trainers, found, strict=True):
            for event, counter in counters.items():
                dice = {str(number): round(part, 4) for number, part in counter.per_class().items()}
                self.note(trainer, event=event, dice=counter.mean(), per_class=dice)
            self._keep_best(trainer)

    def _counted(self, trainer: Trainer, check: Check) -> dict[str, DiceCounter]:
        """Return the Dice counts of a network on the volumes of each judge."""
        judges = self._judges(check)
        return {
            event: validator.dice(trainer.task, trainer.predict, check)
            for event, validator in judges.items()
        }

    def mix(self, card: ModelCard, check: Check = unstoppable) -> None:
        """Judge weights between those of the model `card` and the new ones, for each member that did not pass.

        Raises:
            Cancelled: the user asked to stop; nothing was kept of any member.
        """
        verdicts = ((trainer, self.verdict(trainer)) for trainer in self.trainers)
        failed = [trainer for trainer, it in verdicts if it.best is None and len(it.judgements) > 1]
        found = []
        for trainer in failed:
            for share in SHARES:
                with _between(trainer, card, share):
                    found.append((trainer, share, self._counted(trainer, check)))
        for trainer, share, counters in found:
            synthetic, corrected = (counter.mean() for counter in counters.values())
            self.note(trainer, MIXED, share=share, corrected=corrected, synthetic=synthetic)
            with _between(trainer, card, share):
                self._keep_best(trainer)

    def _keep_best(self, trainer: Trainer) -> None:
        """Write the judged network to a file if the last judgement is the best one."""
        verdict = self.verdict(trainer)
        logger.info("step %d: %s", self.done, _line(verdict.judgements[-1], trainer.task.name))
        if verdict.last_is_best:
            trainer.best = verdict.judgements[-1].corrected
            path = self.folder / best_weights_name(trainer.task.name)
            save_weights(path, trainer.judged.state_dict())

    def is_settled(self) -> bool:
        """Whether all members have not improved for `fine_tuning.patience` judgements."""
        waited = min(self.verdict(trainer).since_best() for trainer in self.trainers)
        return waited >= self.config.fine_tuning.patience

    def verdict(self, trainer: Trainer) -> Verdict:
        """Read the verdict on a member from the log."""
        return Verdict.of(read_log(self.folder / LOG), trainer.task.name)

    def _judges(self, check: Check) -> Mapping[str, Validator]:
        """Return held-out volumes by the log event that has their Dice."""
        if not self._validators:
            settings, batch = self.config.validation, self.config.sampling.batch
            self._validators = {
                "validate": Validator.from_source(
                    self._mixed, settings.volumes, settings.slice_step, batch, check
                ),
                "corrected": Validator(self._mixed.held_out_samples(), settings.slice_step, batch),
            }
        return self._validators


@contextlib.contextmanager
def _between(trainer: Trainer, card: ModelCard, share: float) -> Iterator[None]:
    """Give a network weights between those of the model `card` (share 0) and its own (1) within the block."""
    old = load_weights(card.weights_path(card.member(trainer.task.name)))
    new = {name: values.clone() for name, values in trainer.judged.state_dict().items()}
    between = (old[name].to(values).lerp(values, share) for name, values in new.items())
    trainer.judged.load_state_dict(dict(zip(new, between, strict=True)))
    try:
        yield
    finally:
        trainer.judged.load_state_dict(new)


def _line(judged: Judgement, member: str) -> str:
    between = "" if judged.share == 1 else f", {judged.share:.0%} of the way to the new weights"
    return (
        f"{member}{between}: Dice {judged.corrected:.4f} on held-out corrected cases, {judged.synthetic:.4f} on "
        "synthetic images"
    )


def fine_tune(
    build: Build, config: TrainingConfig, cases: Path, options: RunOptions, progress: Progress
) -> Path:
    """Fine-tune members of the model `options.start` on corrected cases, and return the folder of the new model.

    Args:
        build: the function that makes the trainers of the members.
        config: the configuration of the training that made the model, with `fine_tuning`.
        cases: the folder of the corrected cases.
        options: the options of the run.
        progress: the receiver of each step, which can stop the run.

    Raises:
        InputError, GeometryError: the cases cannot be used for training.
        ModelError: the model cannot be read, or no member improved without becoming worse on synthetic images.
        RequestError: the folder holds a training already, or several processes were started.
        OutputError, DeviceError, Cancelled: as `training.run.train`.
    """
    place = training_process(options.device)
    if place.ranks > 1:
        raise RequestError("Fine-tuning runs in one process. Start it without torchrun.")
    card = find_card(options.start)
    if not options.resume:
        refuse_earlier_run(options.folder)
    config = slowed(config)
    learned = card_of_members(card, config.members)
    source = mixed_source(config, learned, cases, place.device, progress.check)
    trainers = build(config, learned, config.members, source, place)
    for trainer in trainers:
        _weigh_as_before(trainer, card.member(trainer.task.name))
    if not options.resume:
        begin_with(trainers, card)
    run = FineTuning(config, trainers, source, options.folder)
    return carry_out(run, options, progress, lambda: _finished(run, card, source, progress))


def slowed(config: TrainingConfig) -> TrainingConfig:
    """Return the configuration of a training, changed by its `fine_tuning` settings.

    The rate falls to zero over all steps, so that the networks that are judged have settled.
    """
    tuning = config.fine_tuning
    optimiser = replace(
        config.optimiser,
        learning_rate=tuning.rate * config.optimiser.learning_rate,
        schedule="cosine",
        warm_up=min(config.optimiser.warm_up, tuning.steps // 10),
    )
    return replace(
        config,
        steps=tuning.steps,
        optimiser=optimiser,
        sampling=replace(config.sampling, ahead=0, pool=tuning.pool),
        validation=replace(config.validation, every=tuning.every),
    )


def _weigh_as_before(trainer: Trainer, member: MemberCard) -> None:
    """Use the class weights of the training that made the model, because inference undoes those weights."""
    weights = member.settings.get("class_weights")
    if weights is not None:
        trainer.objective.loss.weights.copy_(torch.tensor(weights))


def _finished(run: FineTuning, card: ModelCard, source: MixedSource, progress: Progress) -> Path:
    """Write the new model.

    Raises:
        Cancelled: the user asked to stop.
        ModelError: no member improved, or only by becoming worse on synthetic images.
    """
    if run.done >= run.config.steps or run.is_settled():
        run.mix(card, progress.check)
    verdicts = {trainer.task.name: run.verdict(trainer) for trainer in run.trainers}
    if not any(verdict.best for verdict in verdicts.values()):
        raise ModelError(_why_none(run.done, verdicts))
    return export_fine_tuned(card, run, verdicts, source)


def _why_none(steps: int, verdicts: Mapping[str, Verdict]) -> str:
    """Say why no model was written, and what to do."""
    judged = [v.words(name) for name, v in verdicts.items() if len(v.judgements) > 1]
    if not judged:
        return (
            f"No model was written, because the networks were not judged before step {steps}, at which the "
            "run ended. Continue it with --resume and more time."
        )
    return (
        f"No model was written: {'; '.join(judged)}. A new model must be better on the "
        "former and not worse on the latter, so correct more cases, or lower "
        "fine_tuning.rate or fine_tuning.corrected_share."
    )


def export_fine_tuned(
    card: ModelCard, run: FineTuning, verdicts: Mapping[str, Verdict], source: MixedSource
) -> Path:
    """Write the new model beside the run: the improved weights, the other weights unchanged, and the card.

    The calibration is left out, because it was measured with other weights.
    """
    folder = run.folder / MODEL_FOLDER
    folder.mkdir(exist_ok=True)
    members = [_saved(card, member, run, verdicts.get(member.name)) for member in card.members]
    copy_records(run.config, run.folder, folder)
    if (card.folder / PICTURE_NAME).is_file():
        shutil.copyfile(card.folder / PICTURE_NAME, folder / PICTURE_NAME)
    draw_log(run.folder)
    figures = {name: verdict.figures() for name, verdict in verdicts.items()}
    write_card(replace(described(card, figures, source), members=tuple(members)), folder)
    return folder


def _saved(
    card: ModelCard, member: MemberCard, run: FineTuning, verdict: Verdict | None
) -> MemberCard:
    """Write the weights of a member into the new model, the improved ones if there are any."""
    name = member.weights or f"{member.name}.safetensors"
    path = run.folder / MODEL_FOLDER / name
    if verdict is not None and verdict.best is not None:
        best = load_weights(run.folder / best_weights_name(member.name))
        save_weights(path, compact(best))
    else:
        shutil.copyfile(card.weights_path(member), path)
    return replace(member, weights=name, sha256=file_sha256(path))


def described(card: ModelCard, figures: Mapping[str, Any], source: MixedSource) -> ModelCard:
    """Return the card of the new model, with its origin, its training data and its figures before and after."""
    learned, held = len(source.corrected.cases), len(source.corrected.held_out)
    told = (
        f"Fine-tuned from {card.id} {card.version} with {counted(learned, 'corrected case', 'corrected cases')}; "
        f"{counted(held, 'more was', 'more were')} held out to judge it."
    )
    return replace(
        card,
        id=card.id if card.id.endswith(SUFFIX) else card.id + SUFFIX,
        name=card.name if card.id.endswith(SUFFIX) else f"{card.name}, fine-tuned",
        origin=f"{card.origin} {told}".strip(),
        calibration=None,
        performance={**card.performance, "fine-tuning": figures},
    )

"""A run of `medsegai train patches`: its folder, checkpoints, held-out figures, report and model."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from medsegai.errors import Cancelled, InputError, ModelError, RequestError
from medsegai.evaluation.classification import (
    ClassifiedPictures,
    auc,
    classification_figures,
    write_classified,
    write_figures,
)
from medsegai.evaluation.classification_report import (
    ReportContent,
    ShownPicture,
    write_classification_report,
)
from medsegai.evaluation.heat_maps import heat_maps_of_decision
from medsegai.io.cards import write_card
from medsegai.io.picture_sets import PictureSet, read_pictures
from medsegai.labels import Label
from medsegai.models.card import Channel, MemberCard, ModelCard, file_sha256
from medsegai.networks.classifier import CELL
from medsegai.progress import Check, Progress
from medsegai.training.checkpoint import (
    LOG,
    RunLog,
    best_weights_name,
    case_hash,
    check_same_cases,
    claimed,
    load_checkpoint,
    load_weights,
    read_log,
    refuse_earlier_run,
    remove_beginning,
    save_checkpoint,
    save_weights,
)
from medsegai.training.curves import draw_curves
from medsegai.training.export import CURVES, MODEL_FOLDER
from medsegai.training.learning_rate import draw_rates
from medsegai.training.patches import (
    Encoded,
    Fold,
    FoldTraining,
    FrozenFeatures,
    folds_of,
)
from medsegai.training.patches_options import PatchTraining
from medsegai.training.pictures import SizedPictures
from medsegai.training.run import TrainingOptions
from medsegai.training.trainer import training_process

logger = logging.getLogger(__name__)

REPORT, FIGURES, TABLE = "report.html", "evaluation.json", "held-out.csv"

NORMAL = ("normal", "negative", "background", "healthy", "benign", "none", "no", "0", "false")
"""Usual names of the class which means that nothing was found."""

LOOKED_AT = 20
"""The number of pictures that are checked for colours."""

WHOLE_PICTURE = 320
"""The default side of whole pictures, in pixels."""

COLOURS = ((220, 60, 60), (60, 120, 220), (60, 170, 90), (230, 170, 40), (150, 80, 190))


def train_patches(training: PatchTraining, options: TrainingOptions, progress: Progress) -> Path:
    """Train a classifier on a folder of pictures, judge it on held-out pictures, and return the run's folder.

    The folder gets the last checkpoint, `held-out.csv`, `evaluation.json`, `report.html`, curves, the plot of the
    learning-rate finder, and `model`. A resumed run repeats the epoch that was not finished.

    Raises:
        InputError, RequestError, ModelError: pictures, settings or weights cannot be used; or the folder holds a
            training already, and is not to be resumed.
        OutputError: the folder cannot be written, or another training is at work there.
        Cancelled: the training was stopped through `progress`; finished epochs are kept.
    """
    if importlib.util.find_spec("monai") is None:
        raise RequestError(
            "Classifiers are trained with MONAI, which is not installed: pip install 'medsegai[train]'."
        )
    folder = options.folder
    if not options.resume:
        refuse_earlier_run(folder)
    pictures = read_pictures(training.pictures, training.groups)
    normal_class(pictures.classes, training.normal)
    for note in pictures.notes:
        logger.warning("%s", note)
    sized = SizedPictures(pictures, _size(pictures, training))
    run = PatchRun(training, sized, Encoded.of(training), options)
    _check_describable(run)
    with claimed(folder):
        try:
            if run.train(progress):
                run.finish(progress)
        except InputError:  # a picture that cannot be read, which may be the first of all
            if not options.resume and run.at == _Progressed():
                remove_beginning(folder)
            raise
        except Cancelled:
            raise Cancelled(
                f"The training was stopped. Continue it with --resume and the same folder, {folder}."
            ) from None
    return folder


def _check_describable(run: PatchRun) -> None:
    """Make the card that the training will end with. Raises RequestError if names or numbers do not allow one."""
    classes = run.sized.pictures.classes
    member = MemberCard("fold", "fold.safetensors", "", classes=_fed(classes, run.training)[1])
    try:
        _card(run, [member], {})
    except ModelError as error:
        raise RequestError(
            f"The model of {run.sized.pictures.source} could not be written: {error}"
        ) from error


def _size(pictures: PictureSet, training: PatchTraining) -> tuple[int, int]:
    """Return the rows and columns to which all pictures are resized."""
    if training.size:
        return training.size, training.size
    if training.kind == "picture":
        return WHOLE_PICTURE, WHOLE_PICTURE
    shape = pictures.pictures[0].read().shape[:2]
    rows, columns = (max(CELL, round(size / CELL) * CELL) for size in shape)
    return rows, columns


@dataclass
class _Progressed:
    """The state of a run: its next fold and epoch; epoch 0 is the frozen stage."""

    fold: int = 0
    epoch: int = 0
    rate: float = 0.0


class PatchRun:
    """A run and its state."""

    def __init__(
        self,
        training: PatchTraining,
        sized: SizedPictures,
        encoded: Encoded,
        options: TrainingOptions,
    ) -> None:
        self.training, self.sized, self.encoded = training, sized, encoded
        self.folder, self.limit = options.folder, options.limit
        self.folds = folds_of(sized.pictures, training)
        self.device = training_process(options.device).device
        self.frozen = FrozenFeatures(training, sized, encoded, self.device)
        self.at = _Progressed()
        self.answers: dict[str, torch.Tensor] = {}
        self._resume = options.resume
        self._cases = ""
        self._log: RunLog | None = None

    def train(self, progress: Progress) -> bool:
        """Train all unfinished folds; return whether all are finished before the time is over."""
        state: Mapping[str, Any] = {}
        self._cases = case_hash(self._described(progress.check))
        if self._resume:
            state = load_checkpoint(self.folder, self._fingerprint(), torch.device("cpu"))
            check_same_cases(state, self._cases, self.folder)
            self.at = _Progressed(state["fold"], state["epoch"], state["rate"])
            self.answers = dict(state["answers"])
        self._log = RunLog(self.folder / LOG, int(state.get("step", 0)))
        if not self._resume:
            self._save({})  # so that one who stops in the first stage can resume
        while self.at.fold < len(self.folds):
            if not self._train_fold(self.folds[self.at.fold], state, progress):
                return False
            self.at = _Progressed(self.at.fold + 1)
            self._save({})
            state = {}
        return True

    def _described(self, check: Check) -> Iterator[tuple[object, ...]]:
        """Yield what a training learns from: of each picture its name, class, group, part and bytes."""
        pictures = self.sized.pictures
        for item in pictures.pictures:
            check()
            yield item.name, item.label, item.group, item.part, pictures.content_of(item)

    def _fingerprint(self) -> str:
        return self.training.fingerprint()

    def _begin_fold(self, fold: Fold, work: FoldTraining, progress: Progress) -> None:
        """Train the frozen stage, and find the rate of the unfrozen one. Nothing is kept if this is stopped."""
        loss = work.solve_frozen(progress)
        probabilities = work.held_out(progress.check)
        rate = 0.0
        if self.training.epochs:
            rate = self.training.learning_rate or self._found_rate(work, progress.check)
        self.at = _Progressed(self.at.fold, 1, rate)
        self._note(fold, loss)
        self._take(work, probabilities)

    def _train_fold(self, fold: Fold, state: Mapping[str, Any], progress: Progress) -> bool:
        work = FoldTraining(self.frozen, fold).to(self.device)
        if self.at.epoch == 0:
            self._begin_fold(fold, work, progress)
            optimiser, schedule = self._started(work)
            self._save_stage(work, optimiser, schedule)
        else:
            optimiser, schedule = self._restored(work, state)
        loss = state.get("loss")
        while self.at.epoch <= self.training.epochs:
            if self.limit.is_over() and loss is None:
                return False
            if loss is None:
                loss = work.epoch(self.at.epoch - 1, optimiser, schedule, progress)
            try:
                probabilities = work.held_out(progress.check)
            except Cancelled:
                self._save_stage(work, optimiser, schedule, loss)
                raise
            self.at.epoch += 1
            self._note(fold, loss)
            self._take(work, probabilities)
            self._save_stage(work, optimiser, schedule)
            loss = None
        weights = work.network.classifier.state_dict()
        save_weights(self.folder / best_weights_name(fold.name), weights)
        return True

    def _restored(self, work: FoldTraining, state: Mapping[str, Any]) -> Any:
        work.network.load_state_dict(state["network"])
        optimiser, schedule = self._started(work)
        if self.training.epochs:
            optimiser.load_state_dict(state["optimiser"])
            schedule.load_state_dict(state["schedule"])
        return optimiser, schedule

    def _started(self, work: FoldTraining) -> tuple[Any, Any]:
        """Return optimiser and schedule of the unfrozen stage; None if there is no such stage."""
        if not self.training.epochs:
            return None, None
        optimiser = work.optimiser()
        return optimiser, work.schedule(optimiser, self.at.rate)

    def _found_rate(self, work: FoldTraining, check: Check) -> float:
        found = work.find_rate(check)
        logger.info("fold %s: the finder took a learning rate of %.2g", work.fold.name, found.rate)
        draw_rates(found, self.folder / f"learning-rate-{work.fold.name}.png")
        return found.rate

    def _take(self, work: FoldTraining, probabilities: NDArray[np.float64]) -> None:
        """Keep the probabilities of the held-out pictures, and log how good they are."""
        truth = self.sized.pictures.labels[work.fold.held_out]
        right = float((probabilities.argmax(1) == truth).mean())
        area = auc(truth, probabilities)
        self.answers[work.fold.name] = torch.from_numpy(probabilities)
        what = f"epoch {self.at.epoch - 1}" if self.at.epoch > 1 else "frozen"
        name = work.fold.name
        logger.info("fold %s, %s: accuracy %.3f, AUC %.3f", name, what, right, area)
        values = {"accuracy": right, "auc": None if np.isnan(area) else area}
        self._entry(work.fold, "validate", **values)

    def _note(self, fold: Fold, loss: float) -> None:
        self._entry(fold, "train", loss=round(loss, 5), learning_rate=self.at.rate)

    def _entry(self, fold: Fold, event: str, **values: object) -> None:
        assert self._log is not None
        self._log.write({"event": event, "step": self._step(), "view": fold.name, **values})

    def _step(self) -> int:
        """Return the number of stages that have ended, over all folds."""
        return self.at.fold * (self.training.epochs + 1) + self.at.epoch

    def _save_stage(
        self, work: FoldTraining, optimiser: Any, schedule: Any, loss: float | None = None
    ) -> None:
        """Write a checkpoint; `loss` is that of an epoch whose network is not judged yet."""
        state: dict[str, Any] = {"network": work.network.state_dict(), "loss": loss}
        if optimiser is not None:
            state |= {"optimiser": optimiser.state_dict(), "schedule": schedule.state_dict()}
        self._save(state)

    def _save(self, state: Mapping[str, Any]) -> None:
        own: dict[str, Any] = {"fold": self.at.fold, "epoch": self.at.epoch, "rate": self.at.rate}
        own |= {"step": self._step(), "fingerprint": self._fingerprint(), "answers": self.answers}
        own["cases"] = self._cases
        save_checkpoint(self.folder, {**own, **state})

    # the end

    def finish(self, progress: Progress) -> None:
        """Judge the held-out pictures, and write figures, report and model."""
        judged = self.judged()
        figures = classification_figures(judged)
        write_classified(self.folder / TABLE, judged)
        write_figures(self.folder / FIGURES, figures)
        draw_curves(read_log(self.folder / LOG), self.folder / CURVES, "stage", ("auc", "AUC"))
        title = f"Held-out pictures of {self.sized.pictures.source.name}"
        facts = {
            "Encoder": self.encoded.name,
            "Folds": len(self.folds),
            "Size": " x ".join(map(str, self.sized.size)),
            "Epochs": f"frozen, then {self.training.epochs}",
        }
        content = ReportContent(
            title, judged, figures, self._shower(progress.check), self.sized.pictures.notes, facts
        )
        write_classification_report(self.folder / REPORT, content)
        logger.info("\n%s", figures.table())
        export_classifier(self, figures.to_dict())

    def judged(self) -> ClassifiedPictures:
        """Return the predictions of each fold for its held-out pictures."""
        pictures = self.sized.pictures
        numbers = np.concatenate([fold.held_out for fold in self.folds])
        probabilities = torch.cat([self.answers[fold.name] for fold in self.folds]).numpy()
        return ClassifiedPictures.of(
            pictures, numbers.tolist(), probabilities / probabilities.sum(1, keepdims=True)
        )

    def _shower(self, check: Check) -> Any:
        """Return a function that shows a judged picture with the heat maps of the network that held it out."""
        places = [(fold, int(number)) for fold in self.folds for number in fold.held_out]
        loaded: dict[str, FoldTraining] = {}

        def show(number: int) -> ShownPicture:
            check()
            fold, picture = places[number]
            if fold.name not in loaded:
                loaded.clear()
                work = FoldTraining(self.frozen, fold)
                path = self.folder / best_weights_name(fold.name)
                work.network.classifier.load_state_dict(load_weights(path))
                loaded[fold.name] = work.to(self.device)
            network = loaded[fold.name].network.eval()
            image = self.sized.batch([picture]).to(self.device)
            return ShownPicture(self.sized[picture], heat_maps_of_decision(network, image))

        return show


def export_classifier(run: PatchRun, performance: Mapping[str, Any]) -> Path:
    """Write the model of a run: a card with a member for each fold, and their weights."""
    folder = run.folder / MODEL_FOLDER
    folder.mkdir(exist_ok=True)
    fed = _fed(run.sized.pictures.classes, run.training)[1]
    members = [_saved_member(run, fold, folder, fed) for fold in run.folds]
    write_card(_card(run, members, {"held out": dict(performance)}), folder)
    return folder


def _fed(
    classes: Sequence[str], training: PatchTraining
) -> tuple[list[str], tuple[tuple[int, ...], ...]]:
    """Return the classes that are labels, in the order of their values, and the values that each class feeds."""
    normal = normal_class(classes, training.normal)
    labels = [name for number, name in enumerate(classes) if number != normal]
    fed = tuple(() if n == normal else (labels.index(name) + 1,) for n, name in enumerate(classes))
    return labels, fed


def _card(
    run: PatchRun, members: Sequence[MemberCard], performance: Mapping[str, Any]
) -> ModelCard:
    """Return the card of a model. Raises ModelError: a name or a number is not possible in a card."""
    training, classes = run.training, run.sized.pictures.classes
    spacing = training.spacing_um / 1000 or 1.0
    labels = _fed(classes, training)[0]
    return ModelCard(
        id=_identifier(training.pictures),
        name=f"Classifier of {training.pictures.stem}",
        family="patches",
        version="1",
        channels=tuple(Channel(name, "picture") for name in _channels(run.sized)),
        dimensions=2,
        labels=tuple(
            Label(value, name, COLOURS[(value - 1) % len(COLOURS)])
            for value, name in enumerate(labels, start=1)
        ),
        members=tuple(members),
        spacing_mm=(spacing, spacing, 1.0),
        description=f"Distinguishes {', '.join(classes)} in {training.kind}s.",
        origin=run.encoded.origin,
        settings=_settings(training, run),
        performance=performance,
    )


def _saved_member(
    run: PatchRun, fold: Fold, folder: Path, classes: tuple[tuple[int, ...], ...]
) -> MemberCard:
    name = f"fold-{fold.name}.safetensors"
    save_weights(folder / name, load_weights(run.folder / best_weights_name(fold.name)))
    sha256 = file_sha256(folder / name)
    settings = {"encoder": run.encoded.name, "channels": 3}
    return MemberCard(f"fold {fold.name}", name, sha256, 1.0, classes, settings)


def _channels(sized: SizedPictures) -> tuple[str, ...]:
    """Return the channels of models of these pictures: one grey channel if the first pictures are grey."""
    seen = [sized[number] for number in range(min(len(sized), LOOKED_AT))]
    grey = all((pixels == pixels[..., :1]).all() for pixels in seen)
    return ("grey",) if grey else ("red", "green", "blue")


def _settings(training: PatchTraining, run: PatchRun) -> dict[str, Any]:
    return {
        "kind": training.kind,
        "size": list(run.sized.size),
        "mean": list(run.encoded.mean),
        "std": list(run.encoded.std),
        "magnified": training.spacing_um > 0,
        "symmetries": "all" if training.augmentation == "slide" else "mirror",
    }


def normal_class(classes: Sequence[str], named: str) -> int | None:
    """Return the number of the class which means that nothing was found; None if there is none.

    Raises:
        RequestError: the named class does not exist.
    """
    if named:
        if named not in classes:
            raise RequestError(f"The class {named!r} is unknown. Known are {', '.join(classes)}.")
        return list(classes).index(named)
    usual = [n for n, name in enumerate(classes) if name.strip().lower() in NORMAL]
    return usual[0] if usual else None


def _identifier(source: Path) -> str:
    words = "".join(c if c.isalnum() else "-" for c in source.stem.lower()).strip("-")
    return words or "pictures"

"""nnU-Net's own planning, preprocessing and training, in a process that receives a job and reports events.

`python -m medsegai.training.nnunet` takes one job as a line of JSON on standard input and writes events, one JSON
object per line, on standard output; nnU-Net's own output goes to standard error. It stops when its input ends, so
it never outlives the process that started it (`medsegai.training.nnunet_run`). This is the only file that imports
nnunetv2, and only in that process. nnU-Net's training is not changed: the trainer extends its class, so that it
also reports, saves its state after every epoch in one move, and has a configurable length.
"""

from __future__ import annotations

import json
import math
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from medsegai.errors import InputError, MedSegAIError, RequestError, counted
from medsegai.networks.memory import keep_freed_memory

if TYPE_CHECKING:
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer as _Stock
else:
    _Stock = object  # nnU-Net is imported where it trains

PLANNERS = {
    "default": ("ExperimentPlanner", "nnUNetPlans"),
    "ResEncM": ("nnUNetPlannerResEncM", "nnUNetResEncUNetMPlans"),
    "ResEncL": ("nnUNetPlannerResEncL", "nnUNetResEncUNetLPlans"),
    "ResEncXL": ("nnUNetPlannerResEncXL", "nnUNetResEncUNetXLPlans"),
}
"""The planners by name: nnU-Net's class, and the name of the plans that it makes."""

TRAINER = "nnUNetTrainer"
AUGMENTING = "nnUNet_n_proc_DA"
"""The environment variable with the number of processes that augment data for nnU-Net."""

PLANS = "plans"
LATEST, FINAL = "checkpoint_latest.pth", "checkpoint_final.pth"
VALIDATED = Path("validation", "summary.json")
FAILED, STOPPED = 2, 130
GRACE_SECONDS = 15.0
REPORT_SECONDS = 0.2
TRAINED = 0.97
"""The progress of a run at the end of its training; the rest is the prediction of the validation cases."""


@dataclass(frozen=True)
class NNUNetJob:
    """The job of the process. nnU-Net's environment variables give its folders.

    Attributes:
        dataset: the name of the dataset's folder, such as Dataset004_Hippocampus.
        planner: one of `PLANNERS`.
        configurations: the configurations to train, in this order; all folds of one before the next.
        folds: the numbers of the folds, or "all".
        prepared: the steps that are already done: `PLANS`, and the names of preprocessed configurations.
        epochs: the number of epochs of each training.
        iterations: the number of batches in an epoch; a fifth as many measure the pseudo Dice, as in nnU-Net.
        batch_size: the patches in a batch by configuration, or of all under ""; the rest are as planned.
        mixed: whether the network uses bfloat16 on a CPU. On CUDA nnU-Net always trains in half precision.
        device: "cpu", "cuda" or "mps".
        processes: the number of processes that preprocess and augment; with 0 the trainer augments between
            batches.
        seed: the seed of all random numbers; a run is repeatable with 0 processes.
        validate: whether the validation cases of each fold are predicted at its end.
    """

    dataset: str
    planner: str
    configurations: Sequence[str]
    folds: Sequence[str]
    prepared: Sequence[str]
    epochs: int
    iterations: int
    batch_size: Mapping[str, int]
    mixed: bool
    device: str
    processes: int
    seed: int
    validate: bool

    @property
    def plans_name(self) -> str:
        """The name of the plans in nnU-Net."""
        return PLANNERS[self.planner][1]

    @property
    def preprocessed(self) -> Path:
        """The folder of the preprocessed dataset."""
        return folder_of("preprocessed") / self.dataset

    @property
    def plans_file(self) -> Path:
        """The file of the plans."""
        return self.preprocessed / f"{self.plans_name}.json"

    def results(self, configuration: str, fold: str) -> Path:
        """Return the folder of the results."""
        name = results_name(self.plans_name, configuration)
        return folder_of("results") / self.dataset / name / f"fold_{fold}"


def folder_of(kind: str) -> Path:
    """Return one of nnU-Net's three folders: raw, preprocessed or results."""
    return Path(os.environ[f"nnUNet_{kind}"])


def results_name(plans_name: str, configuration: str) -> str:
    """Return nnU-Net's name of the folder of results."""
    return f"{TRAINER}__{plans_name}__{configuration}"


class Events:
    """Writes events to the process that started this one."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._reported = 0.0

    def send(self, event: str, **values: object) -> None:
        """Write an event for the process that started this one."""
        self._stream.write(json.dumps({"event": event, **values}) + "\n")
        self._stream.flush()

    def report(self, stage: str, part: float) -> None:
        """Report the progress of a stage, at a limited rate."""
        now = time.monotonic()
        if part == 0.0 or now - self._reported >= REPORT_SECONDS:
            self._reported = now
            self.send("progress", stage=stage, part=part)


def main() -> int:
    """Do the job that is read from standard input; if it fails, an event gives the reason."""
    events = Events(os.fdopen(os.dup(1), "w", encoding="utf-8"))
    os.dup2(2, 1)  # nnU-Net's output must not be read as events
    keep_freed_memory()
    job = NNUNetJob(**json.loads(sys.stdin.readline()))
    threading.Thread(target=_stop_with_the_parent, daemon=True).start()
    try:
        prepare(job, events)
        os.environ[AUGMENTING] = str(job.processes)  # only now, because the planner refuses 0
        for configuration in job.configurations:
            for fold in job.folds:
                train(job, configuration, fold, events)
    except MedSegAIError as error:
        events.send("failed", error=type(error).__name__, message=str(error))
        return FAILED
    except KeyboardInterrupt:
        return STOPPED
    return 0


def _stop_with_the_parent() -> None:
    """Interrupt the main thread, as Ctrl-C does, when the input ends; end the process if that does not help."""
    while os.read(0, 1):  # not sys.stdin, whose lock would be held when Python ends
        pass
    main_thread = threading.main_thread().ident
    if hasattr(signal, "pthread_kill") and main_thread is not None:
        signal.pthread_kill(main_thread, signal.SIGINT)
    time.sleep(GRACE_SECONDS)
    if hasattr(os, "killpg") and os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(STOPPED)


# planning and preprocessing


def prepare(job: NNUNetJob, events: Events) -> None:
    """Fingerprint, plan and preprocess the dataset, except for steps that are already done.

    Raises:
        InputError: nnU-Net does not accept the dataset.
        RequestError: nnU-Net did not plan a configuration.
    """
    number = int(job.dataset.removeprefix("Dataset").partition("_")[0])
    events.report("prepare", 0.0)
    if PLANS not in job.prepared:
        _plan(job, number)
        events.send("prepared", what=PLANS)
    _preprocess(job, number, events)


def _preprocess(job: NNUNetJob, number: int, events: Events) -> None:
    from nnunetv2.experiment_planning import plan_and_preprocess_api as nnunet

    data = [_data_configuration(job, name) for name in job.configurations]
    missing = [name for name in dict.fromkeys(data) if name not in job.prepared]
    for done, name in enumerate(missing):
        events.send("progress", stage="prepare", part=0.3 + 0.7 * done / len(missing))
        nnunet.preprocess_dataset(
            number, job.plans_name, [name], [max(1, job.processes)], show_progress_bar=False
        )
        events.send("prepared", what=name)


def _plan(job: NNUNetJob, number: int) -> None:
    from nnunetv2.experiment_planning import plan_and_preprocess_api as nnunet

    _check_dataset(job)
    nnunet.extract_fingerprint_dataset(
        number, num_processes=max(1, job.processes), show_progress_bar=False
    )
    nnunet.plan_experiment_dataset(number, _planner(job.planner))
    _set_batch_size(job)


def _check_dataset(job: NNUNetJob) -> None:
    from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity

    folder = folder_of("raw") / job.dataset
    try:
        verify_dataset_integrity(str(folder), max(1, job.processes))
    except (AssertionError, RuntimeError, FileNotFoundError, KeyError) as error:
        raise InputError(f"nnU-Net cannot train on {folder}: {error}") from error


def _planner(name: str) -> Any:
    import nnunetv2
    from nnunetv2.utilities.find_class_by_name import recursive_find_python_class

    folder = str(Path(nnunetv2.__path__[0], "experiment_planning"))
    return recursive_find_python_class(
        folder, PLANNERS[name][0], current_module="nnunetv2.experiment_planning"
    )


def _set_batch_size(job: NNUNetJob) -> None:
    """Write the batch size into the plans, where nnU-Net reads it and the results folder shows it."""
    if not job.batch_size:
        return
    plans = _read_plans(job)
    for name, configuration in plans["configurations"].items():
        size = job.batch_size.get(name, job.batch_size.get(""))
        if size and "batch_size" in configuration:  # the cascade inherits its own
            configuration["batch_size"] = size
    temporary = job.plans_file.with_suffix(".part")
    temporary.write_text(json.dumps(plans, indent=4), encoding="utf-8")
    os.replace(temporary, job.plans_file)


def _read_plans(job: NNUNetJob) -> dict[str, Any]:
    plans: dict[str, Any] = json.loads(job.plans_file.read_text(encoding="utf-8"))
    return plans


def _data_configuration(job: NNUNetJob, name: str) -> str:
    """Return the configuration whose preprocessed data this one uses; the cascade inherits them."""
    planned = _read_plans(job)["configurations"]
    if name not in planned:
        raise RequestError(
            f"nnU-Net does not plan {name} for {job.dataset}, only {', '.join(planned)}, "
            "because the images are too small. Leave it out of --configurations."
        )
    own = planned[name]
    return name if "data_identifier" in own else _data_configuration(job, own["inherits_from"])


# training


def train(job: NNUNetJob, configuration: str, fold: str, events: Events) -> None:
    """Train one fold of one configuration, or resume it; do nothing if it is finished.

    Raises:
        RequestError: a cascade lacks the predictions of its first stage.
    """
    folder = job.results(configuration, fold)
    run = f"{configuration}/fold_{fold}"
    validate = job.validate or _is_first_stage(job, configuration)
    trained = (folder / FINAL).is_file()
    events.send("progress", stage=run, part=TRAINED if trained else 0.0)
    if not trained or (validate and not (folder / VALIDATED).is_file()):
        trainer = _resumed(job, configuration, fold, events)
        events.send("history", run=run, entries=trainer.history())
        if not trained:
            trainer.run_training()
        if validate:
            events.send("progress", stage=run, part=TRAINED)
            trainer.perform_actual_validation()
    events.send("finished", run=run)


def _is_first_stage(job: NNUNetJob, configuration: str) -> bool:
    """Whether the second stage of a cascade learns from the predictions of this configuration."""
    return "next_stage" in _read_plans(job)["configurations"][configuration]


def _resumed(job: NNUNetJob, configuration: str, fold: str, events: Events) -> Any:
    """Return the trainer of a fold, with its last checkpoint if it has one."""
    folder = job.results(configuration, fold)
    trainer = _trainer(job, configuration, fold, events)
    for name in (FINAL, LATEST):
        if (folder / name).is_file():
            trainer.load_checkpoint(str(folder / name))
            break
    return trainer


def _trainer(job: NNUNetJob, configuration: str, fold: str, events: Events) -> Any:
    import torch

    plans = {**_read_plans(job), "continue_training": False}
    dataset = json.loads((job.preprocessed / "dataset.json").read_text(encoding="utf-8"))
    number = int(fold) if fold.isdigit() else fold
    trainer = trainer_class()(plans, configuration, number, dataset, torch.device(job.device))
    trainer.begin(job, events)
    _check_cascade(trainer)
    return trainer


def _check_cascade(trainer: Any) -> None:
    """Check that the first stage has predicted all cases, because nnU-Net would fail later without a reason."""
    if not trainer.is_cascaded:
        return
    folder = Path(trainer.folder_with_segs_from_previous_stage)
    predicted = {path.name.partition(".")[0] for path in folder.glob("*")}
    training, validation = trainer.do_split()
    missing = sorted({*training, *validation} - predicted)
    if missing:
        stage = trainer.configuration_manager.previous_stage_name
        raise RequestError(
            f"{trainer.configuration_name} learns from the predictions of {stage} for all "
            f"cases, but {counted(len(missing), 'case is', 'cases are')} not predicted yet, "
            f"for example {missing[0]}. Train all folds of {stage} first."
        )


def trainer_class() -> Any:
    """The class of nnU-Net's trainer, extended so that it reports events and saves its state after every epoch.

    It has the name of the original class, which nnU-Net writes into checkpoints and folder names, so that every
    program that reads nnU-Net's results finds the trainer that it knows.
    """
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer as Stock

    class nnUNetTrainer(_Reporting, Stock):  # type: ignore[misc]
        pass

    return nnUNetTrainer


class _Reporting(_Stock):  # type: ignore[misc]
    """The additions to nnU-Net's trainer: it reports, saves its state after every epoch, and can be resumed."""

    def begin(self, job: NNUNetJob, events: Events) -> None:
        self.job, self.events = job, events
        self.run_name = f"{self.configuration_name}/fold_{self.fold}"
        self.num_epochs = job.epochs
        self.num_iterations_per_epoch = job.iterations
        self.num_val_iterations_per_epoch = max(1, job.iterations // 5)
        self.save_every = sys.maxsize  # saved below, after each epoch
        # Our curves show the same; this picture takes two seconds an epoch.
        self.logger.plot_progress_png = lambda output_folder: None
        seed_all(job.seed, 0)

    def initialize(self) -> None:
        super().initialize()
        if self.job.mixed and self.device.type == "cpu":
            self.network.forward = _in_bfloat16(self.network.forward)

    def history(self) -> list[dict[str, Any]]:
        return log_entries(self.run_name, self.logger.get_checkpoint(), self.current_epoch)

    def on_train_epoch_start(self) -> None:
        seed_all(self.job.seed, 1 + self.current_epoch)
        self._steps = 0
        super().on_train_epoch_start()

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        self._count()
        result: dict[str, Any] = super().train_step(batch)
        return result

    def validation_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        self._count()
        result: dict[str, Any] = super().validation_step(batch)
        return result

    def on_epoch_end(self) -> None:
        super().on_epoch_end()
        if self.current_epoch < self.num_epochs:
            self.current_epoch -= 1  # a checkpoint names the epoch after this one
            self.save_checkpoint(str(Path(self.output_folder, LATEST)))
            self.current_epoch += 1
        self.events.send("history", run=self.run_name, entries=self.history())

    def save_checkpoint(self, filename: str) -> None:
        super().save_checkpoint(f"{filename}.part")
        os.replace(f"{filename}.part", filename)

    def _count(self) -> None:
        steps = self.num_iterations_per_epoch + self.num_val_iterations_per_epoch
        epochs = self.current_epoch + self._steps / steps
        self._steps += 1
        self.events.report(self.run_name, TRAINED * epochs / self.num_epochs)


def seed_all(seed: int, part: int) -> None:
    """Seed random numbers by the part of a training only, so that they do not depend on interruptions."""
    import numpy as np
    import torch

    state = np.random.SeedSequence([seed, part]).generate_state(3)
    random.seed(int(state[0]))
    np.random.seed(int(state[1]))
    torch.manual_seed(int(state[2]))


def _in_bfloat16(forward: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A network's forward pass in mixed precision; the loss stays in single precision."""
    import torch

    def mixed(images: Any) -> Any:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            outputs = forward(images)
        if isinstance(outputs, torch.Tensor):
            return outputs.float()
        return [output.float() for output in outputs]  # deep supervision: one for each resolution

    return mixed


def log_entries(run: str, logged: Mapping[str, Any], epochs: int) -> list[dict[str, Any]]:
    """Return nnU-Net's log of the first `epochs` epochs as lines of a run's log."""
    return [entry for epoch in range(epochs) for entry in _epoch_entries(run, logged, epoch)]


def _epoch_entries(run: str, logged: Mapping[str, Any], epoch: int) -> list[dict[str, Any]]:
    place = {"step": epoch + 1, "view": run}
    seconds = logged["epoch_end_timestamps"][epoch] - logged["epoch_start_timestamps"][epoch]
    train = {
        "loss": _rounded(logged["train_losses"][epoch]),
        "learning_rate": _rounded(logged["lrs"][epoch], 7),
        "seconds": round(seconds, 1),
    }
    dice = logged["dice_per_class_or_region"][epoch]
    validate = {
        "loss": _rounded(logged["val_losses"][epoch]),
        "dice": _rounded(logged["mean_fg_dice"][epoch]),
        "per_class": {str(number): _rounded(value) for number, value in enumerate(dice, 1)},
    }
    return [
        {"event": "train", **place, **train},
        {"event": "validate", **place, **validate},
    ]


def _rounded(value: Any, digits: int = 4) -> float | None:
    number = float(value)
    return round(number, digits) if math.isfinite(number) else None


if __name__ == "__main__":
    sys.exit(main())

"""`medsegai train nnunet` runs nnU-Net in a supervised, resumable process, from a dataset to results folders.

The process (`medsegai.training.nnunet`) has its own environment with nnU-Net's variables. The output folder is
nnU-Net's results folder, together with its preprocessed data and our log and curves.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.util
import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from medsegai import errors
from medsegai.errors import InputError, MedSegAIError, OutputError, RequestError, counted
from medsegai.evaluation.folds import (
    FOLDS,
    Split,
    dataset_cases,
    default_folds,
    patient_folds,
    read_groups,
    splits_json,
)
from medsegai.io import atomic_path
from medsegai.networks.backends import Compute, choose_compute
from medsegai.progress import Progress
from medsegai.training.checkpoint import LOG, read_log
from medsegai.training.curves import draw_curves
from medsegai.training.export import CURVES
from medsegai.training.limits import (
    COUNT,
    NOT_NEGATIVE,
    SEED,
    as_option,
    check_limits,
    limited,
)
from medsegai.training.nnunet import AUGMENTING, FINAL, GRACE_SECONDS, LATEST, PLANNERS, NNUNetJob

CONFIGURATIONS = ("2d", "3d_lowres", "3d_fullres", "3d_cascade_fullres")
"""The configurations in the order of their training: the cascade learns from the low resolution."""

STATE = "training.json"
NNUNET_LOG = "nnunet.log"
PREPROCESSED = "preprocessed"
DATASET_NAME = re.compile(r"Dataset\d{3}_.+")
WAIT_SECONDS = 0.5
PREPARE_SHARE = 0.1
"""The weight of planning and preprocessing in the progress; a training has the weight 1."""


@dataclass(frozen=True)
class NnunetTraining:
    """The training to run, see `medsegai.training.nnunet.NNUNetJob`; `groups` is a table of cases and patients."""

    dataset: Path
    configurations: tuple[str, ...] = ("2d", "3d_fullres")
    folds: tuple[str, ...] = ("0", "1", "2", "3", "4")
    planner: str = "default"
    epochs: int = limited(1000, COUNT)
    iterations: int = limited(250, COUNT)
    batch_size: Mapping[str, int] = field(default_factory=dict)
    device: str = "auto"
    precision: str = "auto"
    processes: int = limited(2, NOT_NEGATIVE)
    seed: int = limited(1, SEED)
    validate: bool = True
    groups: Path | None = None

    def __post_init__(self) -> None:
        check_limits(self, as_option)
        unknown = [name for name in self.configurations if name not in CONFIGURATIONS]
        if unknown or not self.configurations:
            raise RequestError(
                f"The configuration {', '.join(unknown)!r} is unknown. Known are {', '.join(CONFIGURATIONS)}."
            )
        for name, size in self.batch_size.items():
            if size < 1 or name not in ("", *CONFIGURATIONS):
                raise RequestError(
                    f"A batch size must be a number of at least 1, or CONFIGURATION=N, not {name}={size}."
                )
        if self.planner not in PLANNERS:
            raise RequestError(
                f"The planner {self.planner!r} is unknown. Known are {', '.join(PLANNERS)}."
            )
        if not self.folds or not all(re.fullmatch(r"\d|all", fold) for fold in self.folds):
            raise RequestError(
                f"Folds must be numbers from 0, or all, not {', '.join(self.folds) or 'none'}."
            )


def train_nnunet(
    training: NnunetTraining, output: Path, resume: bool, progress: Progress | None = None
) -> Path:
    """Train with nnU-Net, and return the folder of results folders, which is a model.

    `output` gets that folder, `preprocessed`, `log.jsonl`, `curves.png`, `nnunet.log` (what nnU-Net printed) and
    `training.json`. With `resume`, finished trainings are kept and the others continue after their last finished
    epoch.

    Raises:
        RequestError: options contradict each other, nnunetv2 is not installed, or there is no training to resume.
        InputError: the dataset cannot be used.
        DeviceError: the device does not exist.
        OutputError: `output` cannot be written.
        MedSegAIError: nnU-Net failed; its log has the reason.
        Cancelled: the training was stopped through `progress`; every finished epoch is kept.
    """
    progress = progress or Progress()
    if importlib.util.find_spec("nnunetv2") is None:
        raise RequestError(
            "Training needs nnU-Net itself: pip install 'medsegai[train]' (see docs/training.md, because it may "
            "replace your PyTorch)."
        )
    _check_name(training.dataset)
    compute = choose_compute(training.device, "torch", training.precision)
    folds = _splits(training)
    try:
        run = Run(training, output, compute, progress)
        run.begin(resume, folds)
        run.work()
    except OSError as error:
        raise OutputError(
            f"{output} cannot be written: {error}. Free space or choose another folder."
        ) from error
    return output / training.dataset.name


def _check_name(dataset: Path) -> None:
    """Check the dataset's name before the training, because nnU-Net would reject it later."""
    if not DATASET_NAME.fullmatch(dataset.name):
        raise InputError(
            f"{dataset} must be named as nnU-Net names datasets, such as Dataset001_{dataset.name}."
        )
    number = dataset.name.partition("_")[0]
    twins = [path.name for path in dataset.parent.glob(f"{number}_*") if path.name != dataset.name]
    if twins:
        raise InputError(
            f"{dataset} and {twins[0]} beside it have the same number, which nnU-Net refuses. Rename one of them."
        )


def _splits(training: NnunetTraining) -> list[Split]:
    """Return the held-out cases of each fold; without a table of patients, these are nnU-Net's own splits."""
    cases = [case.name for case in dataset_cases(training.dataset)]
    if training.folds == ("all",) and training.groups is None and len(cases) < FOLDS:
        return []
    if training.groups is not None:
        folds = patient_folds(read_groups(training.groups, cases))
    else:
        folds = default_folds(cases)
    beyond = [fold for fold in training.folds if fold != "all" and int(fold) >= len(folds)]
    if beyond:
        raise RequestError(
            f"Fold {beyond[0]} does not exist, because there are "
            f"{counted(len(folds), 'fold', 'folds')}, numbered from 0."
        )
    return folds


class Run:
    """A training run: its folder, its process and its progress."""

    def __init__(
        self, training: NnunetTraining, output: Path, compute: Compute, progress: Progress
    ) -> None:
        self.training, self.output = training, output
        self.compute, self.progress = compute, progress
        self.prepared: list[str] = []
        order = sorted(training.configurations, key=CONFIGURATIONS.index)
        self.configurations = tuple(dict.fromkeys(order))
        self.folds = tuple(dict.fromkeys(training.folds))
        self._stage, self._part = "prepare", 0.0
        self._first: dict[str, float] = {}

    def begin(self, resume: bool, folds: Sequence[Split]) -> None:
        """Open the output folder, or find the state of a run in it."""
        self.output.mkdir(parents=True, exist_ok=True)
        cases = [case for fold in folds for case in fold]
        settings = self._settings(splits_json(folds, cases))
        state = self.output / STATE
        if resume:
            self._take_up(state, settings)
        elif state.exists():
            raise RequestError(
                f"{self.output} holds a training already. Add --resume to continue it, or name another folder."
            )
        preprocessed = self.output / PREPROCESSED / self.training.dataset.name
        preprocessed.mkdir(parents=True, exist_ok=True)
        if folds:
            _write(preprocessed / "splits_final.json", splits_json(folds, cases))
        self._save(settings)
        runs = [f"{name}/fold_{fold}" for name in self.configurations for fold in self.folds]
        self.progress.plan({"prepare": PREPARE_SHARE, **dict.fromkeys(runs, 1.0)})

    def _settings(self, splits: str) -> dict[str, Any]:
        """Return the settings that decide the result; a run resumes only with equal ones, or for more epochs."""
        chosen = self.training
        return {
            "dataset": chosen.dataset.name,
            "planner": chosen.planner,
            "epochs": chosen.epochs,
            "iterations": chosen.iterations,
            "batch_size": dict(chosen.batch_size),
            "seed": chosen.seed,
            "splits": hashlib.sha256(splits.encode()).hexdigest()[:16],
        }

    def _take_up(self, state: Path, settings: Mapping[str, Any]) -> None:
        try:
            saved = json.loads(state.read_text(encoding="utf-8"))
            begun, self.prepared = dict(saved["settings"]), list(saved["prepared"])
        except FileNotFoundError:
            raise RequestError(
                f"{state} does not exist, so there is no training to resume. Start without --resume."
            ) from None
        except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            raise RequestError(f"{state} is damaged: {error!r}. Start again elsewhere.") from error
        different = [name for name in settings if begun.get(name) != settings[name]]
        if different == ["epochs"] and int(begun["epochs"]) < settings["epochs"]:
            self._reopen()
        elif different:
            raise RequestError(
                f"{self.output} was started with other settings: "
                f"{', '.join(f'{name} {begun.get(name)}' for name in different)}. Resume with "
                "those, or start again in another folder."
            )

    def _reopen(self) -> None:
        """Turn finished trainings into ones that can be resumed, because they will be trained for longer."""
        for final in self.output.glob(f"{self.training.dataset.name}/*/fold_*/{FINAL}"):
            final.replace(final.with_name(LATEST))

    def _save(self, settings: Mapping[str, Any] | None = None) -> None:
        if settings is not None:
            self.settings = dict(settings)
        state = {"settings": self.settings, "prepared": self.prepared}
        _write(self.output / STATE, json.dumps(state, indent=1) + "\n")

    def work(self) -> None:
        """Run the process until it ends, and handle its events."""
        log = self.output / NNUNET_LOG
        with log.open("a", encoding="utf-8") as file, self._process(file) as process:
            for event in self._events(process):
                self._take(event)
        if process.returncode < 0:
            raise MedSegAIError(
                f"nnU-Net was ended by signal {-process.returncode}, perhaps because memory ran out. See {log}."
            )
        if process.returncode:
            raise MedSegAIError(f"nnU-Net failed: {_last_line(log)} Its whole output is in {log}.")

    @contextlib.contextmanager
    def _process(self, log: IO[str]) -> Iterator[subprocess.Popen[str]]:
        """Start the process for the block; when the block ends, the process and its children are ended, too."""
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "medsegai.training.nnunet"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=self.environment(),
            encoding="utf-8",
            start_new_session=True,  # only this process receives Ctrl-C
        )
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(dataclasses.asdict(self._job())) + "\n")
            process.stdin.flush()
            yield process
        finally:
            process.stdin.close()
            _end(process)

    def environment(self) -> dict[str, str]:
        """Return the environment of the process: nnU-Net's folders, no telemetry, and the path of our code."""
        output = self.output.resolve()
        code = str(Path(errors.__file__).parents[1])
        path = os.pathsep.join(filter(None, (code, os.environ.get("PYTHONPATH"))))
        processes = str(max(1, self.training.processes))
        environment = os.environ | {
            "nnUNet_raw": str(self.training.dataset.resolve().parent),
            "nnUNet_preprocessed": str(output / PREPROCESSED),
            "nnUNet_results": str(output),
            AUGMENTING: processes,
            "nnUNet_def_n_proc": processes,
            "nnUNet_wandb_enabled": "0",
            "PYTHONPATH": path,
        }
        environment.pop("nnUNet_extTrainer", None)
        if self.compute.device.type == "cuda":  # nnU-Net uses the first graphics card that it sees
            environment["CUDA_VISIBLE_DEVICES"] = _card(self.compute.device.index or 0)
        return environment

    def _job(self) -> NNUNetJob:
        chosen = self.training
        return NNUNetJob(
            dataset=chosen.dataset.name,
            planner=chosen.planner,
            configurations=self.configurations,
            folds=self.folds,
            prepared=self.prepared,
            epochs=chosen.epochs,
            iterations=chosen.iterations,
            batch_size=dict(chosen.batch_size),
            mixed=self.compute.mixed,
            device=self.compute.device.type,
            processes=chosen.processes,
            seed=chosen.seed,
            validate=chosen.validate,
        )

    def _events(self, process: subprocess.Popen[str]) -> Iterator[dict[str, Any]]:
        """Yield the events of the process until it ends; Ctrl-C works meanwhile."""
        lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        threading.Thread(target=_listen, args=(process.stdout, lines), daemon=True).start()
        while True:
            try:
                line = lines.get(timeout=WAIT_SECONDS)
            except queue.Empty:
                self.progress.step(self._stage, self._part, 1.0)
                continue
            if line is None:
                return
            yield json.loads(line)

    def _take(self, event: Mapping[str, Any]) -> None:
        kind = event["event"]
        if kind == "failed":
            raise getattr(errors, event["error"], MedSegAIError)(event["message"])
        if kind == "progress":
            self._report(event["stage"], float(event["part"]))
        elif kind == "prepared":
            self.prepared.append(event["what"])
            self._save()
        elif kind == "history":
            self._log(event["run"], event["entries"])
        elif kind == "finished":
            self._report(event["run"], 1.0)
            log = self.output / LOG
            if log.is_file():
                draw_curves(read_log(log), self.output / CURVES, unit="epoch")

    def _report(self, stage: str, part: float) -> None:
        """Report the progress of this session, without the work of earlier sessions, which takes no time now."""
        first = self._first.setdefault(stage, part)
        self._stage, self._part = stage, (part - first) / (1.0 - first) if first < 1.0 else 1.0
        self.progress.step(self._stage, self._part, 1.0)

    def _log(self, run: str, entries: Sequence[Mapping[str, Any]]) -> None:
        """Replace the log entries of one run by those of its checkpoint."""
        path = self.output / LOG
        others = (
            [entry for entry in read_log(path) if entry["view"] != run] if path.is_file() else []
        )
        _write(path, "".join(json.dumps(entry) + "\n" for entry in [*others, *entries]))


def _listen(stream: IO[str] | None, lines: queue.SimpleQueue[str | None]) -> None:
    if stream is not None:
        for line in stream:
            lines.put(line)
    lines.put(None)


def _end(process: subprocess.Popen[str]) -> None:
    """Wait for a process whose input has ended; if it does not end, kill it and its children."""
    try:
        process.wait(GRACE_SECONDS)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        process.kill()
        process.wait()
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)


def _card(index: int) -> str:
    """Return the name of a graphics card for CUDA_VISIBLE_DEVICES, which may already hide some."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",")[index].strip() if visible else str(index)


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(encoding="utf-8").splitlines()]
    text = next((line for line in reversed(lines) if line), "it did not print a reason")
    return text if text.endswith(".") else text + "."


def _write(path: Path, text: str) -> None:
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8")

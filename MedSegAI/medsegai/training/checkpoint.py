"""The state of a run on disk, written so that the file is complete even if the process is killed at any moment."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from medsegai.decoding import PARSER_ERRORS
from medsegai.errors import OutputError, RequestError
from medsegai.system.locks import reserved
from medsegai.system.torch_version import is_sound

CHECKPOINT = "checkpoint.pt"
LOG = "log.jsonl"
BOARD = "tensorboard"
"""The folder of what TensorBoard shows."""


def best_weights_name(view: str) -> str:
    """Return the name of the file with the best weights of a member."""
    return f"best-{view}.safetensors"


def refuse_earlier_run(folder: Path) -> None:
    """Check that no training was started in the folder, because its log and its best weights would be lost.

    Raises:
        RequestError: the folder holds a training.
    """
    if (folder / CHECKPOINT).exists():
        raise RequestError(
            f"{folder} holds a training already. Add --resume to continue it, or name another folder."
        )
    if (folder / LOG).exists():
        raise RequestError(
            f"{folder} holds the beginning of a training without a checkpoint. Remove it, or name another folder."
        )


def remove_beginning(folder: Path, members: Iterable[str] = ()) -> None:
    """Remove what a run that learned nothing has written, so that it can be started again.

    Args:
        folder: the folder of the run.
        members: the members whose weights were judged before they learned anything.
    """
    for name in (CHECKPOINT, LOG, *map(best_weights_name, members)):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / BOARD, ignore_errors=True)


@contextlib.contextmanager
def claimed(folder: Path, alone: bool = True) -> Iterator[None]:
    """Make the folder of a training, and keep other trainings out of it within the block.

    Args:
        folder: where the training writes.
        alone: false for the processes that help the first one, which has claimed the folder.

    Raises:
        OutputError: the folder cannot be written, or another training is at work there.
    """
    try:
        with _made(folder), reserved([folder / CHECKPOINT] if alone else []):
            yield
    except OSError as error:
        raise OutputError(
            f"{folder} cannot be written: {error}. Free space or choose another folder."
        ) from error


@contextlib.contextmanager
def _made(folder: Path) -> Iterator[None]:
    """Make a folder and those around it if they are missing; remove what is empty at the end of the block."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # one holds something
            for path in missing:
                path.rmdir()


def save_checkpoint(folder: Path, state: Mapping[str, Any]) -> None:
    """Write a checkpoint, completely or not at all."""
    temporary = folder / f"{CHECKPOINT}.part"
    torch.save(dict(state), temporary)
    os.replace(temporary, folder / CHECKPOINT)


def load_checkpoint(folder: Path, fingerprint: str, device: torch.device) -> dict[str, Any]:
    """Read the state that `save_checkpoint` wrote.

    Raises:
        RequestError: the folder has no checkpoint, the checkpoint is damaged or belongs to another configuration,
            or this PyTorch is too old to read it safely.
    """
    path = folder / CHECKPOINT
    _check_readable(path)
    state, found = _loaded(path, device)
    if found != fingerprint:
        raise RequestError(
            f"{path} was made with another configuration. Resume with the training file it began with, "
            "or start again in another folder."
        )
    return state


def _check_readable(path: Path) -> None:
    if not path.is_file():
        raise RequestError(
            f"{path} does not exist, so there is no training to resume. Start without --resume."
        )
    if not is_sound(torch.__version__):
        raise RequestError(
            f"{path} was not opened, because with PyTorch {torch.__version__} a checkpoint "
            "can run a program (CVE-2026-24747). Update PyTorch to 2.10 or later."
        )


def _loaded(path: Path, device: torch.device) -> tuple[dict[str, Any], str]:
    """Return a state, and the fingerprint of its configuration."""
    try:
        state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
        return state, state["fingerprint"]
    except (*PARSER_ERRORS, pickle.UnpicklingError) as error:
        raise RequestError(
            f"{path} is damaged, or is not a checkpoint of this training. Start again in another folder."
        ) from error


def case_hash(cases: Iterable[Sequence[object]]) -> str:
    """A hash of what a training learns from: of each case its name, group and content."""
    return hashlib.sha256(json.dumps(sorted(map(list, cases)), default=str).encode()).hexdigest()[
        :16
    ]


def check_same_cases(state: Mapping[str, Any], cases: str, folder: Path) -> None:
    """Compare the cases of a checkpoint with those of now, see `case_hash`.

    Raises:
        RequestError: they differ, so that cases would be judged by networks that have learned from them, or from
            other pictures under their names.
    """
    if state.get("cases", cases) != cases:
        raise RequestError(
            f"{folder} was started with other cases, groups or pictures. Undo what was changed, or start again "
            "in another folder."
        )


def save_weights(path: Path, state: Mapping[str, Tensor]) -> None:
    """Write a state dict as safetensors."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    temporary = path.with_suffix(".part")
    temporary.write_bytes(save(tensors))
    os.replace(temporary, path)


def load_weights(path: Path) -> dict[str, Tensor]:
    """Read weights that this project wrote.

    Raises:
        RequestError: the file is missing or damaged.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise RequestError(
            f"{path} is missing or damaged, and the training needs it. Start again in another folder."
        ) from error


def compact(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert convolutions to half precision; other weights (normalisation, slopes) keep their type."""
    return {name: tensor.half() if tensor.ndim >= 4 else tensor for name, tensor in state.items()}


class RunLog:
    """The log of a run, one JSON object per line; a resumed run drops the lines after its checkpoint's step."""

    def __init__(self, path: Path, resume_at: int) -> None:
        kept = [] if resume_at == 0 or not path.is_file() else read_log(path)
        lines = [json.dumps(entry) for entry in kept if entry.get("step", 0) <= resume_at]
        temporary = path.with_suffix(".part")
        temporary.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        os.replace(temporary, path)
        self._path = path

    def write(self, entry: Mapping[str, Any]) -> None:
        """Add a line to the log."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(dict(entry)) + "\n")


def read_log(path: Path) -> list[dict[str, Any]]:
    """Read all complete lines of a run's log."""
    entries = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            break
        if isinstance(entry, dict):
            entries.append(entry)
    return entries

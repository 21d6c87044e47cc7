"""Checkpoints of nnU-Net v2, read without running anything of them.

`checkpoint_final.pth` and `checkpoint_best.pth` are pickles, and a pickle is a program. torch's restricted
reader takes weights and plain containers; the log of a training adds a few NumPy numbers, which are listed here.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medsegai.errors import ModelError, UnsafeModelError

_NUMBERS = ("float16", "float32", "float64", "int32", "int64", "uint8", "bool")

_SCALAR = np.float64(0).__reduce__()[0]  # a function that has moved within NumPy

ALLOWED: tuple[Any, ...] = (
    np.dtype,
    *(type(np.dtype(name)) for name in _NUMBERS),
    (_SCALAR, "numpy.core.multiarray.scalar"),
    (_SCALAR, "numpy._core.multiarray.scalar"),
)
"""What a checkpoint may hold beside what torch always takes: numbers of NumPy, as 1.x and 2.x name them."""


@dataclass(frozen=True)
class Checkpoint:
    """What is of use in a checkpoint of nnU-Net.

    Attributes:
        weights: state dict of the network, on the CPU. The tensors are views of the file, read when they are used.
        trainer: name of the class that trained it.
        configuration: that it was trained for, such as "3d_fullres".
        fold: "0" to "4", or "all".
        mirror_axes: axes of a patch along which test-time mirroring is allowed; None allows none.
        plans: of the training, as in `plans.json`.
        dataset: of the training, as in `dataset.json`.
    """

    weights: Mapping[str, Tensor]
    trainer: str
    configuration: str
    fold: str
    mirror_axes: tuple[int, ...] | None
    plans: Mapping[str, Any]
    dataset: Mapping[str, Any]


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint of nnU-Net v2; of its optimizer's state nothing is loaded.

    Raises:
        UnsafeModelError: the file names anything beyond weights, plain values and `ALLOWED`. It was not run.
        ModelError: the file is missing, truncated, or no checkpoint of nnU-Net v2.
    """
    content = _load(path)
    if not isinstance(content, dict):
        raise ModelError(
            f"{path} is no checkpoint of nnU-Net v2: it holds a {type(content).__name__}."
        )
    try:
        start, weights = content["init_args"], content["network_weights"]
        axes = content.get("inference_allowed_mirroring_axes")
        if not all(isinstance(values, Tensor) for values in weights.values()) or not weights:
            raise TypeError("network_weights holds no weights")
        return Checkpoint(
            weights=weights,
            trainer=str(content["trainer_name"]),
            configuration=str(start["configuration"]),
            fold=str(start["fold"]),
            mirror_axes=None if axes is None else tuple(int(axis) for axis in axes),
            plans=start.get("plans") or {},
            dataset=start.get("dataset_json") or {},
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        older = "state_dict" in content
        hint = " It may be of nnU-Net v1, which is not supported." if older else ""
        raise ModelError(f"{path} is no checkpoint of nnU-Net v2: {error}.{hint}") from None


def _load(path: Path) -> Any:
    if not path.is_file():
        raise ModelError(f"There is no checkpoint {path}.")
    problem: Exception | str = "it is no complete archive"
    if zipfile.is_zipfile(path):
        try:
            with torch.serialization.safe_globals(list(ALLOWED)):
                # Mapped, so that the optimizer's state, as large as the weights, stays on the disk.
                return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError, LookupError) as error:
            problem = error
        except (TypeError, ValueError, AttributeError, AssertionError) as error:
            problem = error
        except OSError as error:
            raise ModelError(f"{path} cannot be read: {error}.") from None
        _refuse_unsafe(path)
    # torch's own words go on to advise against its restricted reader.
    why = str(problem).rpartition("WeightsUnpickler error:")[2].strip().partition("\n")[0]
    raise ModelError(
        f"{path} is no checkpoint of nnU-Net v2, or is damaged: {why}. Copy it again from where it was trained."
    )


def _refuse_unsafe(path: Path) -> None:
    """Name what a checkpoint asks for beyond what is allowed, if it does."""
    try:
        with torch.serialization.safe_globals(list(ALLOWED)):
            names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except (pickle.UnpicklingError, RuntimeError, EOFError, LookupError, ValueError, TypeError):
        return  # it is damaged, then: not even the names in it can be read
    if names:
        wanted = ", ".join(map(repr, sorted(names)))
        raise UnsafeModelError(
            f"{path} asks to load {wanted}, which no checkpoint of nnU-Net needs. A file like this can run any "
            "program; it was refused and nothing of it was run. Get the weights from their authors."
        )

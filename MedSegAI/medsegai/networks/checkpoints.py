"""Checkpoints of nnU-Net v2, read without running any code in them.

`checkpoint_final.pth` and `checkpoint_best.pth` are pickles, and a pickle is a program. `torch_files` takes
weights and plain containers out of them; the log of a training adds a few NumPy numbers, which are listed here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from medsegai.errors import ModelError
from medsegai.networks.torch_files import StoredTensor, TorchFile, read_torch_file
from medsegai.networks.unpickling import Inert, Name, PickleDamage, Typed, table

_NUMBERS = ("f2", "f4", "f8", "i4", "i8", "u1", "b1")

MOST_VALUES, DEEPEST = 500_000, 40
"""The largest number of values in plans, and the largest depth of their nesting."""

KIND = "checkpoint of nnU-Net v2"


class _NumberType(Typed):
    """A NumPy dtype; `refine` takes its byte order."""

    def __init__(self, name: str, *_: object) -> None:
        if name not in _NUMBERS:
            raise PickleDamage(f"it holds numbers of the type {str(name)[:20]!r}")
        self.dtype = np.dtype(name)

    def refine(self, state: object) -> None:
        if not isinstance(state, tuple) or len(state) < 2 or state[1] not in ("<", ">", "|", "="):
            raise PickleDamage("a type of numbers is described in an impossible way")
        self.dtype = self.dtype.newbyteorder(state[1])


def _number(kind: _NumberType, content: bytes) -> Any:
    """Return a NumPy scalar as a number of Python."""
    if not isinstance(kind, _NumberType) or len(content) != kind.dtype.itemsize:
        raise PickleDamage("a number is described in an impossible way")
    return np.frombuffer(content, kind.dtype)[0].item()


ALLOWED = table(
    Name("numpy.dtype", _NumberType),
    Name("numpy.core.multiarray.scalar", _number),
    Name("numpy._core.multiarray.scalar", _number),
)
"""The objects that a checkpoint may hold besides weights: NumPy numbers, by the names of NumPy 1.x and 2.x."""


@dataclass(frozen=True)
class Checkpoint:
    """The useful part of a checkpoint of nnU-Net.

    Attributes:
        weights: the state dict of the network, on the CPU. The tensors are views of the file, read on first use.
        trainer: the name of the class that trained it.
        configuration: the configuration that was trained, such as "3d_fullres".
        fold: "0" to "4", or "all".
        mirror_axes: axes of a patch along which test-time mirroring is allowed; None allows none.
        plans: the plans of the training, as in `plans.json`.
        dataset: the dataset of the training, as in `dataset.json`.
    """

    weights: Mapping[str, Tensor]
    trainer: str
    configuration: str
    fold: str
    mirror_axes: tuple[int, ...] | None
    plans: Mapping[str, Any]
    dataset: Mapping[str, Any]


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint of nnU-Net v2 without the state of its optimizer.

    Raises:
        UnsafeModelError: the file names something other than weights, plain values and `ALLOWED`. It was not run.
        ModelError: the file is missing, truncated, or not a checkpoint of nnU-Net v2.
    """
    if not path.exists():
        raise ModelError(f"The checkpoint {path} does not exist.")
    file = read_torch_file(path, ALLOWED, KIND)
    content = file.content
    if not isinstance(content, dict):
        kind = "tensor" if isinstance(content, StoredTensor) else type(content).__name__
        raise ModelError(f"{path} is not a {KIND}: it holds a {kind}.")
    try:
        return _checkpoint(file, content)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        older = "state_dict" in content
        hint = " It may come from nnU-Net v1, which is not supported." if older else ""
        raise ModelError(f"{path} is not a {KIND}: {error}.{hint}") from None


def _checkpoint(file: TorchFile, content: Mapping[str, Any]) -> Checkpoint:
    start = content["init_args"]
    weights = _weights(content["network_weights"])
    axes = content.get("inference_allowed_mirroring_axes")
    return Checkpoint(
        weights=file.tensors(weights),
        trainer=_text(content["trainer_name"]),
        configuration=_text(start["configuration"]),
        fold=_text(start["fold"]),
        mirror_axes=None if axes is None else tuple(_axis(axis) for axis in axes),
        plans=plain(start.get("plans") or {}),
        dataset=plain(start.get("dataset_json") or {}),
    )


def _weights(content: object) -> dict[str, StoredTensor]:
    if (
        not isinstance(content, dict)
        or not content
        or not all(isinstance(value, StoredTensor) for value in content.values())
        or not all(isinstance(name, str) for name in content)
    ):
        raise TypeError("network_weights does not hold weights")
    return content


def _text(value: object) -> str:
    if not isinstance(value, str | int):
        raise TypeError(f"a {type(value).__name__} stands where a name belongs")
    return str(value)


def _axis(value: object) -> int:
    if not isinstance(value, int):
        raise TypeError(f"a {type(value).__name__} stands where an axis belongs")
    return value


def plain(value: object) -> Any:
    """Return an independent copy of a value that JSON could hold.

    In a pickle a list can contain another list many times, or itself, and comparing two such lists may never end.

    Raises:
        ValueError: there are too many parts, they are nested too deeply, or they have other types.
    """
    left = MOST_VALUES

    def copy(value: object, depth: int) -> Any:
        nonlocal left
        left -= 1
        if left < 0 or depth > DEEPEST:
            raise ValueError("its plans have more values than plans can have")
        if isinstance(value, dict):
            return {str(key): copy(inner, depth + 1) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [copy(inner, depth + 1) for inner in value]
        if isinstance(value, str | int | float | None):
            return value
        if isinstance(value, Inert):
            return value.kind
        raise ValueError(f"its plans hold a {type(value).__name__}")

    return copy(value, 0)

"""Checkpoints of nnU-Net v2, read without running anything of them.

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
from medsegai.networks.torch_files import StoredTensor, read_torch_file
from medsegai.networks.unpickling import Inert, Name, PickleDamage, Typed, table

_NUMBERS = ("f2", "f4", "f8", "i4", "i8", "u1", "b1")

MOST_VALUES, DEEPEST = 500_000, 40
"""Values in plans, all together, and within each other."""

KIND = "checkpoint of nnU-Net v2"


class _NumberType(Typed):
    """A dtype of NumPy; `refine` takes its order of bytes."""

    def __init__(self, name: str, *_: object) -> None:
        if name not in _NUMBERS:
            raise PickleDamage(f"it holds numbers of the type {str(name)[:20]!r}")
        self.dtype = np.dtype(name)

    def refine(self, state: object) -> None:
        if not isinstance(state, tuple) or len(state) < 2 or state[1] not in ("<", ">", "|", "="):
            raise PickleDamage("a type of numbers is described in an impossible way")
        self.dtype = self.dtype.newbyteorder(state[1])


def _number(kind: _NumberType, content: bytes) -> Any:
    """A NumPy scalar as a number of Python."""
    if not isinstance(kind, _NumberType) or len(content) != kind.dtype.itemsize:
        raise PickleDamage("a number is described in an impossible way")
    return np.frombuffer(content, kind.dtype)[0].item()


ALLOWED = table(
    Name("numpy.dtype", _NumberType),
    Name("numpy.core.multiarray.scalar", _number),
    Name("numpy._core.multiarray.scalar", _number),
)
"""What a checkpoint may hold beside weights: numbers of NumPy, as 1.x and 2.x name them."""


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
        ModelError: the file is missing, truncated, or not a checkpoint of nnU-Net v2.
    """
    if not path.exists():
        raise ModelError(f"There is no checkpoint {path}.")
    file = read_torch_file(path, ALLOWED, KIND)
    content = file.content
    if not isinstance(content, dict):
        kind = "tensor" if isinstance(content, StoredTensor) else type(content).__name__
        raise ModelError(f"{path} is not a {KIND}: it holds a {kind}.")
    try:
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
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        older = "state_dict" in content
        hint = " It may be of nnU-Net v1, which is not supported." if older else ""
        raise ModelError(f"{path} is not a {KIND}: {error}.{hint}") from None


def _weights(content: object) -> dict[str, StoredTensor]:
    if (
        not isinstance(content, dict)
        or not content
        or not all(isinstance(value, StoredTensor) for value in content.values())
        or not all(isinstance(name, str) for name in content)
    ):
        raise TypeError("network_weights holds no weights")
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
    """A copy of what JSON could hold, every part of its own.

    In a pickle a list can be in a list many times, or in itself: a comparison of two such need not end.

    Raises:
        ValueError: there are too many parts, they lie too deep, or are of other types.
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

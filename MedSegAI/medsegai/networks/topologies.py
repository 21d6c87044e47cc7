"""Codes of a searched topology (DiNTS), read from a file of torch without running any code in it.

The training of a DiNTS saves the paths and operations that its search found as NumPy arrays in a pickle.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsegai.errors import ModelError
from medsegai.networks.checkpoints import ALLOWED
from medsegai.networks.torch_files import StoredTensor, TorchFile, read_torch_file
from medsegai.networks.unpickling import Name, PickleDamage, Typed, inert, table

MOST_CODES = 100_000
"""The largest number of values in an array; a search over 12 blocks of 4 resolutions has 600."""

KIND = "file with the topology of a DiNTS"


class StoredArray(Typed):
    """A NumPy array; `refine` takes its shape, type and bytes."""

    def __init__(self, *_: object) -> None:
        self.values: Any = np.zeros(0)

    def refine(self, state: Any) -> None:
        try:
            _, shape, kind, by_columns, content = state
            dtype = kind.dtype
        except (TypeError, ValueError, AttributeError):
            raise PickleDamage("an array is described in an impossible way") from None
        if (
            not isinstance(shape, tuple)
            or not all(type(size) is int and 0 <= size <= MOST_CODES for size in shape)
            or math.prod(shape) > MOST_CODES
            or not isinstance(content, bytes)
            or len(content) != math.prod(shape) * dtype.itemsize
        ):
            raise PickleDamage("an array is described in an impossible way")
        values = np.frombuffer(content, dtype)
        self.values = values.reshape(shape[::-1]).T if by_columns else values.reshape(shape)


_NAMES = {
    **ALLOWED,
    **table(
        Name("numpy.core.multiarray._reconstruct", StoredArray),
        Name("numpy._core.multiarray._reconstruct", StoredArray),
        inert("numpy.ndarray"),
    ),
}


def read_topology(path: Path) -> dict[str, list[Any]]:
    """Read the codes in a file, by their names, as lists of whole numbers.

    Raises:
        UnsafeModelError: the file names something other than arrays and plain values. It was not run.
        ModelError: the file is missing or damaged, or does not hold codes.
    """
    _check_exists(path)
    file = read_torch_file(path, _NAMES, KIND)
    content = file.content
    if not isinstance(content, dict):
        raise ModelError(f"{path} is not a {KIND}.")
    found = {}
    for name, values in _arrays(file, content).items():
        if np.array_equal(values, np.asarray(values, dtype=np.int64)) and values.size <= MOST_CODES:
            found[str(name)] = np.asarray(values, dtype=np.int64).tolist()
    return found


def _check_exists(path: Path) -> None:
    if not path.is_file():
        raise ModelError(
            f"The file {path}, which holds the topology of the network, does not exist. Copy it "
            "from where the network was trained."
        )


def _arrays(file: TorchFile, content: Mapping[Any, Any]) -> dict[Any, NDArray[Any]]:
    stored = {name: value for name, value in content.items() if isinstance(value, StoredTensor)}
    plain = {
        name: value.values for name, value in content.items() if isinstance(value, StoredArray)
    }
    return {name: values.numpy() for name, values in file.tensors(stored).items()} | plain

"""Weights of QuickNAT as its authors released them: a whole pickled module, read without running any of it.

A pickle is a program, so a restricted unpickler reads it, with an allow-list of the names that a QuickNAT is made
of. No class of the file is imported: each stands for an empty object that takes attributes. (torch's own
`weights_only` cannot read whole modules in the file format of before 2020, which the released files have.)
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch._utils
from torch import Tensor

from medsegai.errors import ModelError, UnsafeModelError
from medsegai.networks.quicknat import QuickNATConfig, SqueezeExcitation


class _Inert:
    """Stands for any module class of the file: it holds attributes and does nothing."""

    def __init__(self, *_: Any) -> None: ...


_BLOCKS = ("DenseBlock", "EncoderBlock", "DecoderBlock", "ClassifierBlock")
_EXCITATIONS = ("SELayer", "ChannelSELayer", "SpatialSELayer", "ChannelSpatialSELayer")
_LAYERS = {
    "activation": ("PReLU", "ReLU", "Sigmoid"),
    "batchnorm": ("BatchNorm2d",),
    "container": ("Sequential", "ModuleList", "ModuleDict"),
    "conv": ("Conv2d",),
    "dropout": ("Dropout2d",),
    "linear": ("Linear",),
    "pooling": ("MaxPool2d", "MaxUnpool2d"),
}
INERT = (
    "quicknat.QuickNat",
    *(f"nn_common_modules.modules.{name}" for name in _BLOCKS),
    *(f"squeeze_and_excitation.squeeze_and_excitation.{name}" for name in _EXCITATIONS),
    *(f"torch.nn.modules.{module}.{name}" for module, names in _LAYERS.items() for name in names),
    "torch.nn.backends.thnn._get_thnn_function_backend",
)
"""Names that a released file may hold beside tensors and plain containers, and that do nothing here."""


def read_released(path: Path) -> dict[str, Tensor]:
    """State dict of a released checkpoint: a pickled module, or a dict with the key `state_dict`.

    Raises:
        UnsafeModelError: the file names anything that is not on the allow-list; it was not run.
        ModelError: the file is no checkpoint, or holds no network.
    """
    restricted = ModuleType("restricted_pickle")  # all that torch uses of the module `pickle`
    restricted.__dict__.update(Unpickler=_Unpickler, load=lambda file, **_: _Unpickler(file).load())
    try:
        content = torch.load(path, map_location="cpu", pickle_module=restricted, weights_only=False)
    except UnsafeModelError as error:
        raise UnsafeModelError(f"{path} {error}") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, LookupError) as error:
        raise ModelError(f"{path} is no PyTorch checkpoint, or is damaged: {error}.") from None
    except (TypeError, ValueError, AttributeError) as error:  # a pickle that calls what it may not
        raise ModelError(f"{path} is no QuickNAT checkpoint: {error}.") from None
    if isinstance(content, dict):
        content = content.get("state_dict", content)
    state = dict(_tensors(content))
    if not state:
        raise ModelError(f"{path} holds no weights.")
    return state


class _Unpickler(pickle.Unpickler):
    """Knows the names on the allow-list and no others."""

    def find_class(self, module: str, name: str) -> Any:
        full_name = f"{module}.{name}"
        if full_name in INERT:
            return type(name, (_Inert,), {})
        if full_name == "collections.OrderedDict":
            return OrderedDict
        if full_name in ("builtins.set", "__builtin__.set"):
            return set
        if full_name == "torch._utils._rebuild_tensor_v2":
            return lambda *arguments: torch._utils._rebuild_tensor_v2(*arguments)
        if full_name in ("torch._utils._rebuild_parameter", "torch.nn.parameter.Parameter"):
            return lambda data, *_: data
        raise UnsafeModelError(
            f"asks to load {full_name!r}, which no QuickNAT needs. A file like this can run any program; "
            "it was refused and nothing of it was run. Get the weights from their authors."
        )


def released_config(state: dict[str, Tensor], path: Path) -> QuickNATConfig:
    """The shape of the QuickNAT that these weights belong to.

    Raises:
        ModelError: they belong to another network.
    """
    try:
        first, last = state["encode1.conv1.weight"], state["classifier.conv.weight"]
    except KeyError as error:
        raise ModelError(f"{path} is no QuickNAT: it has no weights {error}.") from None
    return QuickNATConfig(
        channels=first.shape[1],
        filters=first.shape[0],
        classes=last.shape[0],
        squeeze_excitation=_excitation(state),
    )


def _excitation(state: dict[str, Tensor]) -> SqueezeExcitation:
    if "encode1.SELayer.cSE.fc1.weight" in state:
        return "csse"
    if "encode1.SELayer.fc1.weight" in state:
        return "cse"
    return "sse" if "encode1.SELayer.conv.weight" in state else "none"


def _tensors(content: Any, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers by their dotted names, as `Module.state_dict` gives them."""
    if isinstance(content, dict):
        yield from (
            (str(name), value) for name, value in content.items() if isinstance(value, Tensor)
        )
        return
    attributes = getattr(content, "__dict__", {})
    for kind in ("_parameters", "_buffers"):
        for name, value in attributes.get(kind, {}).items():
            if isinstance(value, Tensor):
                yield prefix + name, value.detach()
    for name, child in attributes.get("_modules", {}).items():
        if child is not None:
            yield from _tensors(child, f"{prefix}{name}.")

"""Weights of QuickNAT as its authors released them: a whole pickled module, read without running its code.

A pickle is a program, so `torch_files` reads it, with a list of the names that a QuickNAT is made of. No class of
the file is imported: each stands for an inert object that takes attributes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from medsegai.errors import ModelError
from medsegai.networks.quicknat import QuickNATConfig, SqueezeExcitation
from medsegai.networks.torch_files import StoredTensor, read_torch_file
from medsegai.networks.unpickling import Inert, inert, table

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
"""Names that a released file may hold besides tensors and plain containers; inert objects stand for them."""


MOST_PARTS, DEEPEST = 10_000, 20
"""The largest number of modules in a network, and of modules within each other; a QuickNAT has 200, five deep."""


def read_quicknat_checkpoint(path: Path) -> dict[str, Tensor]:
    """Read the state dict of a released checkpoint: a pickled module, or a dict with the key `state_dict`.

    Raises:
        UnsafeModelError: the file names something that is not on the list, or is a program; it was not run.
        ModelError: the file is not a checkpoint, or does not hold a network.
    """
    file = read_torch_file(path, table(*map(inert, INERT)), "checkpoint of QuickNAT")
    content = file.content
    if isinstance(content, dict):
        content = content.get("state_dict", content)
    try:
        stored = dict(_tensors(content))
    except ValueError as error:
        raise ModelError(f"{path} is not a checkpoint of QuickNAT: {error}.") from None
    if not stored:
        raise ModelError(
            f"{path} does not hold weights. Copy it again from where it was published."
        )
    return file.tensors(stored)


def quicknat_checkpoint_config(state: dict[str, Tensor], path: Path) -> QuickNATConfig:
    """Return the shape of the QuickNAT that these weights belong to.

    Raises:
        ModelError: the weights belong to another network.
    """
    try:
        first, last = state["encode1.conv1.weight"], state["classifier.conv.weight"]
    except KeyError as error:
        raise ModelError(
            f"{path} holds another network than those that can be imported; for example, it is not a QuickNAT, "
            f"which has the weights {error}."
        ) from None
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


def _tensors(content: object) -> Iterator[tuple[str, StoredTensor]]:
    """Return parameters and buffers by their dotted names, as `Module.state_dict` does."""
    if isinstance(content, dict):
        yield from _described(content, "")
        return
    waiting = [(content, "", 0)]
    for _ in range(MOST_PARTS):
        if not waiting:
            return
        module, prefix, depth = waiting.pop()
        if not isinstance(module, Inert) or depth > DEEPEST:
            raise ValueError(
                "one of its modules is not a module"
                if depth <= DEEPEST
                else "it is nested too deeply"
            )
        for kind in ("_parameters", "_buffers"):
            yield from _described(module.attributes.get(kind), prefix)
        waiting += _children(module, prefix, depth)
    raise ValueError(f"it has more than {MOST_PARTS} parts")


def _children(module: Inert, prefix: str, depth: int) -> list[tuple[object, str, int]]:
    """Return the modules inside a module, with the prefixes of their names and their depth."""
    children = module.attributes.get("_modules")
    if not isinstance(children, dict):
        return []
    return [
        (child, f"{prefix}{name}.", depth + 1)
        for name, child in children.items()
        if child is not None
    ]


def _described(values: object, prefix: str) -> Iterator[tuple[str, StoredTensor]]:
    if isinstance(values, dict):
        for name, value in values.items():
            if isinstance(value, StoredTensor):
                yield f"{prefix}{name}", value

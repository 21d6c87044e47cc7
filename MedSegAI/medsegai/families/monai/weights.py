"""Conversion of untrusted state dicts to safetensors by means of their network."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medsegai.errors import ModelError
from medsegai.families._imported_weights import save_imported_weights
from medsegai.models.card import MemberCard
from medsegai.networks.checkpoints import ALLOWED
from medsegai.networks.monai_networks import Description, own_state
from medsegai.networks.torch_files import StoredTensor, TorchFile, read_torch_file

KIND = "file of MONAI's weights"

NAME, FILE = "network", "network.safetensors"

INSIDE = ("state_dict", "model", "network", "net", "model_state_dict", "network_weights")
"""The names under which training programs store the weights."""


def read_weights_file(path: Path) -> TorchFile:
    """Read a file of weights. Raises UnsafeModelError, ModelError: see `read_torch_file`."""
    return read_torch_file(path, ALLOWED, KIND)


def stored_weights(file: TorchFile) -> dict[str, StoredTensor]:
    """Return the weights in a file, which may contain other data, too.

    Raises:
        ModelError: the file does not contain weights.
    """
    content: Any = file.content
    for candidate in (content, *_inside(content)):
        if isinstance(candidate, dict):
            found = {
                name: value
                for name, value in candidate.items()
                if isinstance(name, str) and isinstance(value, StoredTensor)
            }
            if found and len(found) == len(candidate):
                return found
    raise ModelError(f"{file.path} does not contain the weights of a network alone.")


def _inside(content: Any) -> list[Any]:
    return (
        [content[name] for name in INSIDE if name in content] if isinstance(content, dict) else []
    )


def write_member(
    file: TorchFile, network: Mapping[str, Any], classes: tuple[tuple[int, ...], ...], folder: Path
) -> MemberCard:
    """Load the weights into their network, which proves that they fit, and write the weights of the network.

    Raises:
        ModelError: the weights belong to another network.
    """
    description = Description.of(network["class"], network["arguments"])
    try:
        made = description.with_weights(file.tensors(stored_weights(file)))
    except ModelError as error:
        if str(file.path) in str(error):
            raise
        raise ModelError(f"{file.path}: {error}") from None
    folder.mkdir(parents=True)
    sha256 = save_imported_weights(own_state(made), folder / FILE, file.path)
    return MemberCard(NAME, FILE, sha256, classes=classes)

"""The weights of imported models, written as safetensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from medsegai.errors import ModelError
from medsegai.models.card import file_sha256


def save_imported_weights(state: Mapping[str, Tensor], weights: Path, source: Path) -> str:
    """Write the state dict of a network that `source` holds to the file `weights`.

    Returns:
        The SHA-256 of the written file, for the card.

    Raises:
        ModelError: some weights are NaN or infinite, so that the network could not predict anything.
    """
    for name, values in state.items():
        if values.is_floating_point() and not values.isfinite().all():
            raise ModelError(
                f"{source} has weights that are not finite numbers ({name}), as after a training that diverged. "
                "Use an earlier checkpoint."
            )
    save_file({name: values.contiguous() for name, values in state.items()}, weights)
    return file_sha256(weights)

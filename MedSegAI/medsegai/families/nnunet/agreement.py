"""A check that a checkpoint was trained with the plans of its folder; it contains the plans of its training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medsegai.errors import ModelError
from medsegai.models.card import MemberCard, ModelCard
from medsegai.networks.checkpoints import Checkpoint


def _different(checkpoint: Checkpoint, card: ModelCard, name: str) -> list[str]:
    """Return the settings in which the plans of a checkpoint differ from the card."""
    configurations = checkpoint.plans.get("configurations") or {}
    trained = _with_inherited(configurations, name)
    settings = card.settings["configurations"][name]
    ours = {
        "spacing": settings["spacing"],
        "normalization_schemes": settings["normalization"],
        "use_mask_for_norm": settings["use_mask"],
        "transpose_forward": card.settings["transpose"],
    }
    theirs = {**trained, "transpose_forward": checkpoint.plans.get("transpose_forward")}
    return [
        key for key, value in ours.items() if theirs.get(key) is not None and theirs[key] != value
    ]


def check_agreement(
    path: Path, checkpoint: Checkpoint, card: ModelCard, member: MemberCard
) -> None:
    """Check that a checkpoint was trained with this configuration and these plans.

    Only settings that the weights depend on are compared, because a patch may be enlarged after the training.

    Raises:
        ModelError: the checkpoint was trained with another configuration or other plans.
    """
    name = member.settings["configuration"]
    if checkpoint.configuration != name:
        raise ModelError(
            f"{path} was trained for {checkpoint.configuration}, but lies in the folder of {name}. Put it "
            "back where it was trained."
        )
    different = _different(checkpoint, card, name)
    if different:
        raise ModelError(
            f"{path} was trained with other plans than those beside it: {', '.join(different)} differ. "
            "Bring the plans.json of its training, or train this fold again."
        )


def _with_inherited(configurations: Mapping[str, Any], name: str) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for _ in configurations:  # no configuration inherits from more than there are
        own = configurations.get(name) or {}
        values = {**own, **values}
        name = own.get("inherits_from", "")
    return values

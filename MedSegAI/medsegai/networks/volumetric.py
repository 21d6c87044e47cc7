"""The 3D networks that a member of a card can name in its settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from medsegai.errors import ModelError
from medsegai.models.json_fields import from_json, number, shown
from medsegai.networks.compact_unet import CompactUNet, CompactUNetConfig
from medsegai.networks.unet import UNet, build_unet

MOST_STAGES, MOST_CHANNELS, FOLDS = 12, 4096, (1, 2)
"""Limits of the settings of a compact network."""


def build_network(settings: Mapping[str, Any], classes: int) -> nn.Module:
    """Build a network with fresh weights.

    Args:
        settings: the settings of a member. `network` is "compact" (with `widths` and `fold`), or a table with
            `class` and
            `arguments` as in nnU-Net's plans.
        classes: channels of the output, including background.

    Raises:
        ModelError: the settings do not describe a network.
    """
    if isinstance(settings.get("network"), Mapping):
        return describe_network(settings, classes).to_empty(device="cpu").apply(_initialise)
    return CompactUNet(_compact(settings, classes))


def describe_network(settings: Mapping[str, Any], classes: int) -> nn.Module:
    """Build the same network without weights on torch's device "meta", where it takes no memory at any size.

    Raises:
        ModelError: see `build_network`.
    """
    network = settings.get("network", "compact")
    if isinstance(network, Mapping):
        name, arguments = network.get("class"), network.get("arguments")
        if not isinstance(name, str) or not isinstance(arguments, Mapping):
            raise ModelError(
                "network must have a class, which is a text, and arguments, which are an object."
            )
        built = build_unet(name, arguments, 1, classes)
        if len(built.strides) != 3:
            raise ModelError(f"network must have three dimensions, not {len(built.strides)}.")
        return built
    with torch.device("meta"):
        return CompactUNet(_compact(settings, classes))


def _compact(settings: Mapping[str, Any], classes: int) -> CompactUNetConfig:
    """Return the shape of a compact network. Raises ModelError: the settings do not describe one."""
    if settings.get("network", "compact") != "compact":
        raise ModelError(
            f"The network {shown(settings['network'])} is unknown. Known are compact, and the "
            "networks of nnU-Net's plans."
        )
    given = {name: settings[name] for name in ("widths", "fold") if name in settings}
    config = from_json(CompactUNetConfig, {"classes": classes, **given})
    number(len(config.widths), "The number of widths", 1, MOST_STAGES)
    for width in config.widths:
        number(width, "widths", 1, MOST_CHANNELS)
    if config.fold not in FOLDS:
        raise ModelError(f"fold must be 1 or 2, not {shown(config.fold)}.")
    return config


def smallest_multiple(network: nn.Module) -> Sequence[int]:
    """Return the numbers of which the sizes (k, j, i) of a patch must be multiples."""
    if isinstance(network, CompactUNet):
        return (network.config.stride,) * 3
    assert isinstance(network, UNet)
    return network.strides


def _initialise(layer: nn.Module) -> None:
    """Initialise a layer as nnU-Net does: He et al., "Delving Deep into Rectifiers", 2015, for leaky
    rectifiers.
    """
    if isinstance(layer, (nn.Conv3d, nn.ConvTranspose3d)):
        nn.init.kaiming_normal_(layer.weight, a=0.01)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    elif isinstance(layer, (nn.InstanceNorm3d, nn.BatchNorm3d)):
        layer.reset_parameters()

"""The 3D networks that a member of a card can name in its settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from medsegai.errors import ModelError
from medsegai.networks.compact_unet import CompactUNet, CompactUNetConfig
from medsegai.networks.unet import UNet, build_unet


def build_network(settings: Mapping[str, Any], classes: int) -> nn.Module:
    """A network with fresh weights.

    Args:
        settings: of a member. `network` is "compact" (with `widths` and `fold`), or a table with `class` and
            `arguments` as in nnU-Net's plans.
        classes: channels of the answer, background included.

    Raises:
        ModelError: the settings do not describe a network.
    """
    network = settings.get("network", "compact")
    if isinstance(network, Mapping):
        built = build_unet(str(network["class"]), network["arguments"], 1, classes)
        return built.to_empty(device="cpu").apply(_initialise)
    if network != "compact":
        raise ModelError(
            f"There is no network {network!r}. Known are compact, and those of nnU-Net's plans."
        )
    widths = settings.get("widths", CompactUNetConfig.widths)
    return CompactUNet(
        CompactUNetConfig(
            classes, tuple(int(width) for width in widths), int(settings.get("fold", 2))
        )
    )


def smallest_multiple(network: nn.Module) -> Sequence[int]:
    """What the sizes (k, j, i) of a patch must be multiples of."""
    if isinstance(network, CompactUNet):
        return (network.config.stride,) * 3
    assert isinstance(network, UNet)
    return network.strides


def _initialise(layer: nn.Module) -> None:
    """As nnU-Net begins: He et al., "Delving Deep into Rectifiers", 2015, for leaky rectifiers."""
    if isinstance(layer, (nn.Conv3d, nn.ConvTranspose3d)):
        nn.init.kaiming_normal_(layer.weight, a=0.01)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    elif isinstance(layer, (nn.InstanceNorm3d, nn.BatchNorm3d)):
        layer.reset_parameters()

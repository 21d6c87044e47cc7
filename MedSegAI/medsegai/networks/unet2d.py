"""U-Net and U-Net++ for images, on an encoder that may be pre-trained.

Weights are named as in segmentation_models_pytorch, so that models trained with it can be imported; the outputs of
both agree (`Testing/engine/test_unet2d_parity.py`).

Sources: Ronneberger et al., "U-Net", MICCAI 2015; Zhou et al., "UNet++: Redesigning Skip Connections to Exploit
Multiscale Features in Image Segmentation", IEEE TMI 2020.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from medsegai.errors import ModelError
from medsegai.models.json_fields import from_json, number, to_json
from medsegai.networks.encoders import ENCODERS, MOST_CHANNELS, STRIDES, build_encoder

DECODERS = ("unet", "unetplusplus")

STRIDE = STRIDES[-1]
"""Height and width of an image must be multiples of this."""

MOST_CLASSES, MOST_WIDTH = 256, 4096


@dataclass(frozen=True)
class UNet2DConfig:
    """The shape of a network.

    Attributes:
        encoder: one of `ENCODERS`.
        decoder: one of `DECODERS`.
        channels: channels of the image.
        classes: channels of the output.
        widths: channels of the decoder at each size, the coarsest first; the last is that of the whole image.
        deep_supervision: whether a U-Net++ has a head for each of its nested U-Nets, for training only.
    """

    encoder: str = "mobilenet_v2"
    decoder: str = "unet"
    channels: int = 3
    classes: int = 2
    widths: tuple[int, ...] = (256, 128, 64, 32, 16)
    deep_supervision: bool = False

    def __post_init__(self) -> None:
        """Raises ModelError: a value is unknown or out of range."""
        for what, value, known in (
            ("encoder", self.encoder, tuple(ENCODERS)),
            ("decoder", self.decoder, DECODERS),
        ):
            if value not in known:
                raise ModelError(f"The {what} {value!r} is unknown. Known are {', '.join(known)}.")
        number(self.channels, "channels", 1, MOST_CHANNELS)
        number(self.classes, "classes", 1, MOST_CLASSES)
        if len(self.widths) != len(STRIDES):
            raise ModelError(f"widths must be {len(STRIDES)} numbers, not {len(self.widths)}.")
        for width in self.widths:
            number(width, "widths", 1, MOST_WIDTH)
        if self.deep_supervision and self.decoder != "unetplusplus":
            raise ModelError("deep_supervision is for the decoder 'unetplusplus' only.")

    @classmethod
    def of(cls, settings: Mapping[str, Any], channels: int, classes: int) -> UNet2DConfig:
        """Return the network that a card describes; its other settings are ignored.

        Raises:
            ModelError: the settings do not describe a network.
        """
        own = {item.name for item in fields(cls)} & set(settings)
        values = {name: settings[name] for name in own}
        return from_json(cls, values | {"channels": channels, "classes": classes})

    def settings(self) -> dict[str, Any]:
        """Return the settings that `of` reads, as JSON values."""
        return {k: v for k, v in to_json(self).items() if k not in ("channels", "classes")}


class UNet2D(nn.Module):
    """Images (N, channels, H, W) to logits (N, classes, H, W); H and W are multiples of 32."""

    def __init__(self, config: UNet2DConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = build_encoder(config.encoder, config.channels)
        kind = UNetDecoder if config.decoder == "unet" else UNetPlusPlusDecoder
        self.decoder = kind(self.encoder.widths, config.widths)
        self.segmentation_head = nn.Sequential(
            nn.Conv2d(config.widths[-1], config.classes, 3, padding=1)
        )
        nested = self.encoder.widths[0] if config.deep_supervision else 0
        self.deep_heads = nn.ModuleList(
            nn.Conv2d(nested, config.classes, 1) for _ in STRIDES[2:] if nested
        )

    def forward(self, image: Tensor) -> Tensor:
        """Apply the module, as PyTorch calls it."""
        return self.answers(image)[0]

    def answers(self, image: Tensor) -> list[Tensor]:
        """Return the logits, followed by those of the nested U-Nets, from the deepest, if these have heads."""
        features, nested = self.decoder.nested(self.encoder(image))
        found = [self.segmentation_head(features)]
        for head, inner in zip(self.deep_heads, nested, strict=False):
            found.append(functional.interpolate(head(inner), scale_factor=2, mode="bilinear"))
        return found


class ConvNormReLU(nn.Sequential):
    """Convolution, batch norm, ReLU."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__(
            nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )


class Joined(nn.Module):
    """Doubles the size of features, joins them with skips of that size, and convolves them twice.

    Attributes:
        channels: those of the features; the skips have `beside` together.
    """

    def __init__(self, channels: int, beside: int, width: int) -> None:
        super().__init__()
        self.channels, self.beside = channels, beside
        self.conv1 = ConvNormReLU(channels + beside, width)
        self.conv2 = ConvNormReLU(width, width)

    def forward(self, features: Tensor, beside: Sequence[Tensor] = ()) -> Tensor:
        doubled = functional.interpolate(features, scale_factor=2, mode="nearest")
        result: Tensor = self.conv2(self.conv1(torch.cat([doubled, *beside], dim=1)))
        return result


class UNetDecoder(nn.Module):
    """Computes features (N, widths[-1], H, W) from pyramids, the finest level first."""

    def __init__(self, pyramid: Sequence[int], widths: Sequence[int]) -> None:
        super().__init__()
        coarse, *beside = pyramid[::-1]
        inputs = [coarse, *widths[:-1]]
        self.blocks = nn.ModuleList(
            Joined(*sizes) for sizes in zip(inputs, [*beside, 0], widths, strict=True)
        )

    def forward(self, pyramid: Sequence[Tensor]) -> Tensor:
        """Apply the module, as PyTorch calls it."""
        features, *beside = pyramid[::-1]
        for row, block in enumerate(self.blocks):
            features = block(features, beside[row : row + 1])
        return features

    def nested(self, pyramid: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Return only the result of `forward`, because a U-Net does not nest others."""
        return self(pyramid), []


class UNetPlusPlusDecoder(nn.Module):
    """The same with nested skips: every node is joined with all previous nodes of its size.

    Node `x_d_l` is in row l, counted from the coarsest; its own U-Net ends d rows below.
    """

    def __init__(self, pyramid: Sequence[int], widths: Sequence[int]) -> None:
        super().__init__()
        coarse, *beside = pyramid[::-1]
        self.last = len(beside)
        blocks: dict[str, nn.Module] = {}
        for row, skip in enumerate(beside):
            for depth in range(row + 1):
                below = ([coarse, *widths] if depth == 0 else [coarse, *beside])[row]
                width = widths[row] if depth == 0 else skip
                blocks[f"x_{depth}_{row}"] = Joined(below, skip * (row + 1 - depth), width)
        blocks[f"x_0_{self.last}"] = Joined(widths[-2], 0, widths[-1])
        self.blocks = nn.ModuleDict(blocks)

    def forward(self, pyramid: Sequence[Tensor]) -> Tensor:
        """See `UNetDecoder`."""
        return self.nested(pyramid)[0]

    def nested(self, pyramid: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Return the result of `forward` and the features (N, pyramid[0], H / 2, W / 2) of the nested U-Nets, the
        deepest first."""
        levels = pyramid[::-1]
        nodes: dict[tuple[int, int], Tensor] = {}
        for row in range(self.last):
            for depth in range(row, -1, -1):
                below = levels[row] if depth == row else nodes[depth, row - 1]
                before = [nodes[other, row] for other in range(depth + 1, row + 1)]
                block = self.blocks[f"x_{depth}_{row}"]
                nodes[depth, row] = block(below, [*before, levels[row + 1]])
        features = self.blocks[f"x_0_{self.last}"](nodes[0, self.last - 1])
        return features, [nodes[depth, self.last - 1] for depth in range(1, self.last)]

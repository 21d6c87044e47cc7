"""The QuickNAT network: four dense encoders, a bottleneck, four dense decoders.

Sources: Roy et al., "QuickNAT: A fully convolutional network for quick and accurate
segmentation of neuroanatomy", NeuroImage 2019; Roy et al., "Recalibrating fully convolutional
networks with spatial and channel 'squeeze and excitation' blocks", IEEE TMI 2019. Module names
and the order of calls agree with the released PyTorch models, so that their state dicts load
with ``strict=True``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

SqueezeExcitation = Literal["none", "cse", "sse", "csse"]

#: Height and width of an input must be multiples of this: four poolings halve them four times.
STRIDE = 16


@dataclass(frozen=True)
class QuickNATConfig:
    """Shape of a QuickNAT.

    ``channels`` counts the input channels (neighbouring slices), ``filters`` the feature maps of
    every block, ``classes`` the output channels with background.
    """

    channels: int = 1
    filters: int = 64
    classes: int = 33
    squeeze_excitation: SqueezeExcitation = "none"
    dropout: float = 0.2
    kernel: int = 5

    def __post_init__(self) -> None:
        for name in ("channels", "filters", "classes"):
            if getattr(self, name) < 1:
                raise ValueError(f"QuickNAT: {name} must be at least 1, not {getattr(self, name)}")
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise ValueError(f"QuickNAT: kernel must be odd and positive, not {self.kernel}")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"QuickNAT: dropout must lie in [0, 1), not {self.dropout}")
        if self.squeeze_excitation not in get_args(SqueezeExcitation):
            known = ", ".join(get_args(SqueezeExcitation))
            raise ValueError(
                f"QuickNAT: squeeze_excitation must be one of {known}, not {self.squeeze_excitation!r}"
            )


def pool_with_codes(features: Tensor) -> tuple[Tensor, Tensor]:
    """2x2 max pooling that also returns where each maximum stood.

    ``features`` (N, C, H, W), with H and W even, gives the maxima (N, C, H/2, W/2) and their codes (same shape,
    uint8): ``2 * row + column`` inside the window. Equal values are resolved as in ``torch.nn.MaxPool2d``: the
    first in reading order wins. So values, gradients and the unpooled result are bit-identical to those with
    pooling indices, take an eighth of the memory, and need only operations that every compiler and exporter knows.
    """
    top_left, top_right = features[..., 0::2, 0::2], features[..., 0::2, 1::2]
    bottom_left, bottom_right = features[..., 1::2, 0::2], features[..., 1::2, 1::2]
    right_wins_top = top_right > top_left
    right_wins_bottom = bottom_right > bottom_left
    top = torch.where(right_wins_top, top_right, top_left)
    bottom = torch.where(right_wins_bottom, bottom_right, bottom_left)
    bottom_wins = bottom > top
    codes = torch.where(
        bottom_wins, right_wins_bottom.to(torch.uint8) + 2, right_wins_top.to(torch.uint8)
    )
    return torch.where(bottom_wins, bottom, top), codes


def unpool_with_codes(features: Tensor, codes: Tensor) -> Tensor:
    """Put each value of (N, C, H, W) back at its code's place in (N, C, 2H, 2W), zeros elsewhere.

    The inverse of :func:`pool_with_codes`, equal to ``torch.nn.MaxUnpool2d(2)``.
    """
    nothing = torch.zeros((), dtype=features.dtype, device=features.device)
    places = [torch.where(codes == code, features, nothing) for code in range(4)]
    upper = torch.stack(places[:2], dim=-1).flatten(-2)
    lower = torch.stack(places[2:], dim=-1).flatten(-2)
    return torch.stack((upper, lower), dim=-2).flatten(-3, -2)


class ChannelExcitation(nn.Module):
    """cSE: each channel is scaled by a gate computed from all channels' means."""

    def __init__(self, filters: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(filters, filters // 2)
        self.fc2 = nn.Linear(filters // 2, filters)

    def forward(self, features: Tensor) -> Tensor:
        """Apply the module, as PyTorch calls it."""
        squeezed = features.mean(dim=(2, 3))
        gate = torch.sigmoid(self.fc2(torch.relu(self.fc1(squeezed))))
        return features * gate[:, :, None, None]


class SpatialExcitation(nn.Module):
    """sSE: each position is scaled by a gate computed from its channels."""

    def __init__(self, filters: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(filters, 1, kernel_size=1)

    def forward(self, features: Tensor) -> Tensor:
        """Apply the module, as PyTorch calls it."""
        return features * torch.sigmoid(self.conv(features))


class ChannelSpatialExcitation(nn.Module):
    """scSE: the larger of the channel-gated and the position-gated response."""

    def __init__(self, filters: int) -> None:
        super().__init__()
        self.cSE = ChannelExcitation(filters)
        self.sSE = SpatialExcitation(filters)

    def forward(self, features: Tensor) -> Tensor:
        """Apply the module, as PyTorch calls it."""
        return torch.maximum(self.cSE(features), self.sSE(features))


_EXCITATIONS: dict[str, type[nn.Module]] = {
    "cse": ChannelExcitation,
    "sse": SpatialExcitation,
    "csse": ChannelSpatialExcitation,
}


class DenseBlock(nn.Module):
    """Three pre-activated convolutions, each seeing the input and all outputs before it.

    One learned PReLU slope serves all three. The last convolution (1x1) squeezes the stack of
    features back to ``filters`` channels.
    """

    def __init__(self, channels: int, config: QuickNATConfig) -> None:
        super().__init__()
        filters, kernel = config.filters, config.kernel
        self.batchnorm1 = nn.BatchNorm2d(channels)
        self.batchnorm2 = nn.BatchNorm2d(channels + filters)
        self.batchnorm3 = nn.BatchNorm2d(channels + 2 * filters)
        self.conv1 = nn.Conv2d(channels, filters, kernel, padding=kernel // 2)
        self.conv2 = nn.Conv2d(channels + filters, filters, kernel, padding=kernel // 2)
        self.conv3 = nn.Conv2d(channels + 2 * filters, filters, kernel_size=1)
        self.prelu = nn.PReLU()
        if config.squeeze_excitation != "none":
            self.SELayer = _EXCITATIONS[config.squeeze_excitation](filters)

    def forward(self, features: Tensor) -> Tensor:
        """Apply the module, as PyTorch calls it."""
        first = self.conv1(self.prelu(self.batchnorm1(features)))
        features = torch.cat((features, first), dim=1)
        second = self.conv2(self.prelu(self.batchnorm2(features)))
        features = torch.cat((features, second), dim=1)
        return self.conv3(self.prelu(self.batchnorm3(features)))

    def excite(self, features: Tensor) -> Tensor:
        """Apply squeeze-and-excitation to a block's output, if the network has it."""
        return self.SELayer(features) if hasattr(self, "SELayer") else features


class QuickNAT(nn.Module):
    """Slices (N, channels, H, W) to logits (N, classes, H, W); H and W are multiples of 16.

    Two peculiarities of the released models are kept, because their weights depend on them: the decoders are
    called in the order 4, 1, 2, 3, and the bottleneck owns a squeeze-and-excitation layer that is never called.
    """

    def __init__(self, config: QuickNATConfig) -> None:
        super().__init__()
        self.config = config
        filters = config.filters
        self.encode1 = DenseBlock(config.channels, config)
        self.encode2 = DenseBlock(filters, config)
        self.encode3 = DenseBlock(filters, config)
        self.encode4 = DenseBlock(filters, config)
        self.bottleneck = DenseBlock(filters, config)
        self.decode1 = DenseBlock(2 * filters, config)
        self.decode2 = DenseBlock(2 * filters, config)
        self.decode3 = DenseBlock(2 * filters, config)
        self.decode4 = DenseBlock(2 * filters, config)
        self.classifier = nn.ModuleDict({"conv": nn.Conv2d(filters, config.classes, 1)})
        self.dropout = nn.Dropout2d(config.dropout)

    def forward(self, slices: Tensor) -> Tensor:
        """Apply the module, as PyTorch calls it."""
        height, width = slices.shape[-2:]
        if height % STRIDE or width % STRIDE:
            raise ValueError(
                f"QuickNAT: slices of {height} x {width} pixels; both sides must be multiples "
                f"of {STRIDE} (pad them first)"
            )
        features, skips = slices, []
        for block in (self.encode1, self.encode2, self.encode3, self.encode4):
            skip = self.dropout(block.excite(block(features)))
            features, codes = pool_with_codes(skip)
            skips.append((skip, codes))
        features = self.bottleneck(features)
        for block in (self.decode4, self.decode1, self.decode2, self.decode3):
            skip, codes = skips.pop()
            features = torch.cat((skip, unpool_with_codes(features, codes)), dim=1)
            features = self.dropout(block.excite(block(features)))
        logits: Tensor = self.classifier["conv"](features)
        return logits

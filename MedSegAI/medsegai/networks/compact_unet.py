"""A compact 3D U-Net that predicts more voxels than it computes on.

The image is folded by space to depth (W. Shi et al., "Real-Time Single Image and Video Super-Resolution Using an
Efficient Sub-Pixel Convolutional Neural Network", CVPR 2016, in reverse): with `fold` 2 the network works at half
the resolution on eight channels, and its head predicts the eight sub-positions of each coarse voxel. A processor
computes fastest with few voxels and many channels. With `fold` 1 it is a plain U-Net.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

SLOPE = 0.01


@dataclass(frozen=True)
class CompactUNetConfig:
    """The shape of a network.

    Attributes:
        classes: channels of the output, including background.
        widths: channels of each stage, the finest first; each stage halves the resolution of the one before.
        fold: edge of the cube of voxels that is folded into channels, 1 or 2.
        channels: channels of the image.
    """

    classes: int
    widths: tuple[int, ...] = (32, 64, 128, 192)
    fold: int = 2
    channels: int = 1

    @property
    def stride(self) -> int:
        """The number of voxels of which the size of a patch must be a multiple, along each axis."""
        return self.fold * 2 ** (len(self.widths) - 1)


class CompactUNet(nn.Module):
    """Images (N, channels, K, J, I) to logits (N, classes, K, J, I); sizes are multiples of the stride."""

    def __init__(self, config: CompactUNetConfig) -> None:
        super().__init__()
        self.config = config
        widths = config.widths
        inputs = [config.channels * config.fold**3, *widths[:-1]]
        self.encoder = nn.ModuleList(
            nn.Sequential(
                _Block(before, width, stride=1 if stage == 0 else 2), _Block(width, width)
            )
            for stage, (before, width) in enumerate(zip(inputs, widths, strict=True))
        )
        pairs = list(zip(widths[1:], widths, strict=False))[::-1]
        self.narrow = nn.ModuleList(nn.Conv3d(coarse, fine, 1) for coarse, fine in pairs)
        self.decoder = nn.ModuleList(_Block(2 * fine, fine) for _, fine in pairs)
        self.head = nn.Conv3d(widths[0], config.classes * config.fold**3, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Apply the module, as PyTorch calls it."""
        return unfold_voxels(self.head(self.features(image)), self.config.fold)

    def features(self, image: Tensor) -> Tensor:
        """The features that the head sees: (N, widths[0], K / fold, J / fold, I / fold)."""
        features = fold_voxels(image, self.config.fold)
        kept: list[Tensor] = []
        for stage in self.encoder:
            features = stage(features)
            kept.append(features)
        kept.pop()
        for narrow, block in zip(self.narrow, self.decoder, strict=True):
            features = block(torch.cat((kept.pop(), doubled(narrow(features))), dim=1))
        return features

    def logits_at(self, features: Tensor, position: Tensor) -> Tensor:
        """Logits of one of the fold³ sub-positions, (N, classes, K / fold, J / fold, I / fold).

        In training, each step computes one random position, int64 (), which costs a part of what the whole head
        costs. It is a tensor so that one compiled network serves all positions.
        """
        classes = torch.arange(self.config.classes, device=features.device)
        rows = classes * self.config.fold**3 + position
        bias = self.head.bias
        assert bias is not None
        return functional.conv3d(features, self.head.weight[rows], bias[rows])


class _Block(nn.Module):
    """Convolution 3x3x3, instance norm, leaky ReLU."""

    def __init__(self, channels: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv3d(channels, width, 3, stride, padding=1, bias=False)
        self.norm = nn.InstanceNorm3d(width, affine=True)

    def forward(self, features: Tensor) -> Tensor:
        """Apply the module, as PyTorch calls it."""
        return functional.leaky_relu(self.norm(self.conv(features)), SLOPE)


def doubled(values: Tensor) -> Tensor:
    """Repeat each voxel of (N, C, k, j, i) eight times: nearest-neighbour interpolation to twice the size.

    `functional.interpolate` would do, but compiled for a CPU its bfloat16 gradient is zero (torch 2.13).
    """
    n, c, k, j, i = values.shape
    repeated = values[:, :, :, None, :, None, :, None].expand(n, c, k, 2, j, 2, i, 2)
    return repeated.reshape(n, c, 2 * k, 2 * j, 2 * i)


def fold_voxels(values: Tensor, fold: int) -> Tensor:
    """(N, C, K, J, I) to (N, C * fold³, K / fold, J / fold, I / fold).

    Channel c * fold³ + p holds sub-position p = (k * fold + j) * fold + i of channel c.
    """
    if fold == 1:
        return values
    n, c, *size = values.shape
    k, j, i = (length // fold for length in size)
    parts = values.reshape(n, c, k, fold, j, fold, i, fold)
    return parts.permute(0, 1, 3, 5, 7, 2, 4, 6).reshape(n, c * fold**3, k, j, i)


def unfold_voxels(values: Tensor, fold: int) -> Tensor:
    """The inverse of `fold_voxels`."""
    if fold == 1:
        return values
    n, c, k, j, i = values.shape
    parts = values.reshape(n, c // fold**3, fold, fold, fold, k, j, i)
    return parts.permute(0, 1, 5, 2, 6, 3, 7, 4).reshape(
        n, c // fold**3, k * fold, j * fold, i * fold
    )

"""QuickNAT in a form that compilers run fast: the same weights and the same function, with far fewer copies.

A dense block normalises, activates and convolves the concatenation of all features before it, three times. On a
CPU these concatenations take a quarter of the time. But normalisation and activation work channel by channel, and
a convolution of a concatenation is the sum of convolutions of its parts. So here features stay separate, and
compilers let each convolution add to the previous one. Parts are still joined in half precision, where a sum would
be rounded once more for each part.

The form is for inference only. Its results differ from `QuickNAT` by the order of float32 additions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from medsegai.networks.quicknat import DenseBlock, QuickNAT

ENCODERS = ("encode1", "encode2", "encode3", "encode4")
DECODERS = ("decode4", "decode1", "decode2", "decode3")


def streamlined(network: nn.Module) -> nn.Module:
    """Return the streamlined form of a `QuickNAT`, perhaps in half precision; other networks are unchanged."""
    return StreamlinedQuickNAT(network).eval() if isinstance(network, QuickNAT) else network


class StreamlinedQuickNAT(nn.Module):
    """The function of a `QuickNAT` in evaluation mode: slices (N, channels, H, W) to logits (N, classes, H, W)."""

    def __init__(self, network: QuickNAT) -> None:
        super().__init__()
        filters = network.config.filters
        for name in ENCODERS:
            channels = network.config.channels if name == "encode1" else filters
            setattr(self, name, _Block(getattr(network, name), [channels]))
        self.bottleneck = _Block(network.bottleneck, [filters])
        for name in DECODERS:
            setattr(self, name, _Block(getattr(network, name), [filters, filters]))
        self.classifier = network.classifier["conv"]

    def forward(self, slices: Tensor) -> Tensor:
        """Apply the module, as PyTorch calls it."""
        features, skips = slices, []
        for name in ENCODERS:
            block: _Block = getattr(self, name)
            skip = block.excite(block([features]))
            features, codes = pool_with_ranks(skip)
            skips.append((skip, codes))
        features = self.bottleneck([features])
        for name in DECODERS:
            block = getattr(self, name)
            skip, codes = skips.pop()
            features = block.excite(block([skip, unpool_with_ranks(features, codes)]))
        logits: Tensor = self.classifier(features)
        return logits


def pool_with_ranks(features: Tensor) -> tuple[Tensor, Tensor]:
    """Pool like `pool_with_codes`, with whole-image operations instead of strided ones, which compilers run
    slowly.

    ``features`` (N, C, H, W), with H and W even, gives the maxima (N, C, H/2, W/2) and the rank of each maximum's
    place in its window, from 4 for the first in reading order to 1 for the last, in the type of the features.
    """
    maxima = functional.max_pool2d(features, 2)
    nothing = torch.zeros((), dtype=features.dtype, device=features.device)
    ranks = torch.where(features == _doubled(maxima), _ranks_of_places(features), nothing)
    return maxima, functional.max_pool2d(ranks, 2)


def unpool_with_ranks(features: Tensor, ranks: Tensor) -> Tensor:
    """Put each value of (N, C, H, W) back at the place of its rank in (N, C, 2H, 2W), with zeros elsewhere."""
    nothing = torch.zeros((), dtype=features.dtype, device=features.device)
    doubled = _doubled(ranks)
    return torch.where(doubled == _ranks_of_places(doubled), _doubled(features), nothing)


def _doubled(features: Tensor) -> Tensor:
    return functional.interpolate(features, scale_factor=2, mode="nearest")


def _ranks_of_places(features: Tensor) -> Tensor:
    """Return the rank of each place in its window of four, (H, W)."""
    rows, columns = (torch.arange(size, device=features.device) % 2 for size in features.shape[-2:])
    return (4 - 2 * rows[:, None] - columns).to(features.dtype)


class _Block(nn.Module):
    """A `DenseBlock` for features that arrive in parts."""

    def __init__(self, block: DenseBlock, sizes: Sequence[int]) -> None:
        """`sizes` are the channels of each part."""
        super().__init__()
        filters = block.conv3.out_channels
        layers = []
        for number in (1, 2, 3):
            norm, conv = getattr(block, f"batchnorm{number}"), getattr(block, f"conv{number}")
            joined = [*sizes, *[filters] * (number - 1)]
            layers.append(_Layer(norm, block.prelu, conv, joined))
        self.first, self.second, self.third = layers
        self.excitation = getattr(block, "SELayer", nn.Identity())

    def forward(self, parts: Sequence[Tensor]) -> Tensor:
        """Apply the module, as PyTorch calls it."""
        first = self.first(parts)
        second = self.second([*parts, first])
        result: Tensor = self.third([*parts, first, second])
        return result

    def excite(self, features: Tensor) -> Tensor:
        result: Tensor = self.excitation(features)
        return result


class _Layer(nn.Module):
    """Normalisation, activation and convolution for features in parts."""

    def __init__(
        self, norm: nn.BatchNorm2d, prelu: nn.PReLU, conv: nn.Module, sizes: Sequence[int]
    ) -> None:
        super().__init__()
        inner: nn.Conv2d = conv if isinstance(conv, nn.Conv2d) else conv.conv  # type: ignore[assignment]
        self.dtype = inner.weight.dtype
        scale, shift = _affine(norm)
        self.activations = nn.ModuleList(
            _Activation(*of_part, prelu)
            for of_part in zip(scale.split(list(sizes)), shift.split(list(sizes)), strict=True)
        )
        joined = [sum(sizes)] if self.dtype is not torch.float32 else list(sizes)
        weights = inner.weight.detach().split(joined, dim=1)
        self.convolutions = nn.ModuleList(
            _convolution(inner, weight, with_bias=number == 0)
            for number, weight in enumerate(weights)
        )

    def forward(self, parts: Sequence[Tensor]) -> Tensor:
        """Apply the module, as PyTorch calls it."""
        active = [
            activate(part).to(self.dtype)
            for activate, part in zip(self.activations, parts, strict=True)
        ]
        if len(self.convolutions) < len(active):
            active = [torch.cat(active, dim=1)]
        total: Tensor = self.convolutions[0](active[0]).float()
        for convolve, part in zip(self.convolutions[1:], active[1:], strict=True):
            total = total + convolve(part)
        return total


class _Activation(nn.Module):
    """Batch normalisation in evaluation mode and PReLU, for some channels."""

    def __init__(self, scale: Tensor, shift: Tensor, prelu: nn.PReLU) -> None:
        super().__init__()
        self.scale: Tensor
        self.shift: Tensor
        self.register_buffer("scale", scale[:, None, None].clone())
        self.register_buffer("shift", shift[:, None, None].clone())
        self.prelu = prelu

    def forward(self, features: Tensor) -> Tensor:
        """Apply the module, as PyTorch calls it."""
        result: Tensor = self.prelu(features * self.scale + self.shift)
        return result


def _affine(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Return scale and shift of each channel, computed in double precision."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight.detach().double() / (norm.running_var.double() + norm.eps).sqrt()
    shift = norm.bias.detach().double() - norm.running_mean.double() * scale
    return scale.float(), shift.float()


def _convolution(like: nn.Conv2d, weight: Tensor, with_bias: bool) -> nn.Conv2d:
    """Build a convolution like `like` with other weights."""
    channels, kernel = weight.shape[1], (like.kernel_size[0], like.kernel_size[1])
    padding = (int(like.padding[0]), int(like.padding[1]))
    conv = nn.Conv2d(channels, weight.shape[0], kernel, padding=padding, bias=with_bias)
    conv.weight = nn.Parameter(weight.clone(), requires_grad=False)
    if with_bias and like.bias is not None:
        conv.bias = nn.Parameter(like.bias.detach(), requires_grad=False)
    return conv

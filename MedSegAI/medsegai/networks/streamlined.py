"""Networks in a form that compilers run fast: the same weights and the same function, with less work.

A dense block of QuickNAT normalises, activates and convolves the concatenation of all features before it, three
times. On a CPU these concatenations take a quarter of the time. But normalisation and activation work channel by
channel, and a convolution of a concatenation is the sum of convolutions of its parts. So here features stay
separate, and compilers let each convolution add to the previous one. Parts are still joined in half precision,
where a sum would be rounded once more for each part.

A U-Net for images doubles the size of features, so that each pixel becomes four, and convolves them: a pixel is
multiplied by several weights, which are added up here before. That is a transposed convolution of the pixels,
with 4 weights instead of 9 for each.

OpenVINO normalises groups of channels where the values of a channel lie together, and convolves where those of a
voxel do. So it rearranged all features before and after each group normalisation, which took a quarter of the time
of a SegResNet. Means and deviations of single planes can be computed in either order, and their few values are
combined here.

The forms are for inference only. Their results differ by the order of float32 additions.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from medsegai.networks.quicknat import DenseBlock, QuickNAT
from medsegai.networks.unet2d import ConvNormReLU, Joined, UNet2D

ENCODERS = ("encode1", "encode2", "encode3", "encode4")
DECODERS = ("decode4", "decode1", "decode2", "decode3")


def streamlined(network: nn.Module) -> nn.Module:
    """Return the streamlined form of a `QuickNAT`, perhaps in half precision, a `UNet2D`, or with group norms.

    Other networks are returned as they are.
    """
    if isinstance(network, QuickNAT):
        return StreamlinedQuickNAT(network).eval()
    if isinstance(network, UNet2D):
        return _with_transposed(network)
    return _with_group_norms_of_planes(network)


def with_same_weights(network: nn.Module) -> nn.Module:
    """Copy the layers but share the weights, so that the weights are not in memory twice."""
    same: dict[int, object] = {id(values): values for values in network.buffers()}
    for values in network.parameters():
        same[id(values)] = nn.Parameter(values.data, requires_grad=False)
    return copy.deepcopy(network, same)


def _with_group_norms_of_planes(network: nn.Module) -> nn.Module:
    names = [name for name, layer in network.named_modules() if isinstance(layer, nn.GroupNorm)]
    if not names or isinstance(network, nn.GroupNorm):
        return network
    fast = with_same_weights(network)
    for name in names:
        place, _, last = name.rpartition(".")
        norm = fast.get_submodule(name)
        assert isinstance(norm, nn.GroupNorm)
        setattr(fast.get_submodule(place), last, GroupNormOfPlanes(norm))
    return fast.eval()


class GroupNormOfPlanes(nn.Module):
    """The function of a `GroupNorm` of features (N, channel, [depth,] height, width).

    Statistics are computed plane by plane, which is also more precise than one sum over all voxels of a group. No
    matrix is multiplied by them: OpenVINO 2026.4 computes wrong numbers where a root follows such a product.
    """

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.groups, self.eps = norm.num_groups, norm.eps
        self.weight, self.bias = norm.weight, norm.bias

    def extra_repr(self) -> str:
        """Return what PyTorch prints about the layer, by which compiled forms are told apart."""
        return f"{self.groups} groups, eps={self.eps}"

    def forward(self, features: Tensor) -> Tensor:
        """Apply the module, as PyTorch calls it."""
        means = self._of_groups(features.mean((-2, -1)), features)
        centred = features - means
        lengths = torch.linalg.vector_norm(centred, dim=(-2, -1))
        pixels = features.shape[-2] * features.shape[-1]
        deviations = torch.sqrt(self._of_groups(lengths * lengths / pixels, features) + self.eps)
        if self.weight is None:
            return centred / deviations
        ones = (-1, *[1] * (features.ndim - 2))
        return centred * (self.weight.view(ones) / deviations) + self.bias.view(ones)

    def _of_groups(self, planes: Tensor, like: Tensor) -> Tensor:
        """Return the mean over the group of each channel of `planes` (N, channel, ...), as a factor."""
        batch, channels = like.shape[:2]
        members = channels // self.groups
        means = planes.reshape(batch, self.groups, -1).mean(2, keepdim=True)
        spread = means.expand(batch, self.groups, members)
        return spread.reshape(batch, channels, *[1] * (like.ndim - 2))


def _with_transposed(network: UNet2D) -> UNet2D:
    fast = copy.deepcopy(network)
    for name, block in list(fast.decoder.blocks.named_children()):
        assert isinstance(block, Joined)
        setattr(fast.decoder.blocks, name, _TransposedJoined(block))
    return fast.eval()


class _TransposedJoined(nn.Module):
    """A `Joined` in evaluation mode, which does not double features before it convolves them."""

    def __init__(self, joined: Joined) -> None:
        super().__init__()
        weight, shift = _folded(joined.conv1)
        doubled, beside = weight.split([joined.channels, joined.beside], dim=1)
        width = len(weight)
        self.transposed = nn.ConvTranspose2d(
            joined.channels, width, 4, stride=2, padding=1, bias=not joined.beside
        )
        self.transposed.weight = nn.Parameter(_of_single_pixels(doubled).float(), False)
        self.convolution: nn.Module | None = None
        if joined.beside:
            self.convolution = nn.Conv2d(joined.beside, width, 3, padding=1)
            self.convolution.weight = nn.Parameter(beside.float(), False)
        biased = self.convolution or self.transposed
        biased.bias = nn.Parameter(shift.float(), False)
        self.conv2 = joined.conv2

    def forward(self, features: Tensor, beside: Sequence[Tensor] = ()) -> Tensor:
        """Apply the module, as PyTorch calls it."""
        total = self.transposed(features)
        if self.convolution is not None:
            total = total + self.convolution(torch.cat(list(beside), dim=1))
        result: Tensor = self.conv2(functional.relu(total))
        return result


def _folded(layers: ConvNormReLU) -> tuple[Tensor, Tensor]:
    """Return the weights and the bias of a convolution with the normalisation after it, in double precision."""
    conv, norm = layers[0], layers[1]
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    scale, shift = _affine(norm)
    return conv.weight.detach().double() * scale[:, None, None, None].double(), shift.double()


def _of_single_pixels(weight: Tensor) -> Tensor:
    """Return the weights of the transposed convolution, (features, width, 4, 4), from those of doubled features.

    With a stride of 2 and a padding of 1, an even row of the result gets the rows 3 and 1 of these weights, for
    the pixels before it and at it, and an odd row the rows 2 and 0, for those at it and behind it.
    """
    for axis in (2, 3):
        before, at, behind = weight.unbind(axis)
        weight = torch.stack([behind, at + behind, before + at, before], axis)
    return weight.transpose(0, 1).contiguous()


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

"""Encoders of 2D networks, which turn an image into a pyramid of features at 1/2 to 1/32 of its size.

All are written in plain torch, because torchvision and timm cannot be imported with every build of torch. Weights
are named as in the libraries that trained them (torchvision for ResNet and MobileNetV2, timm for EfficientNet-Lite
and RegNetY), so that `encoder_weights` can load them.

Sources: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016; Sandler et al., "MobileNetV2:
Inverted Residuals and Linear Bottlenecks", CVPR 2018; Tan & Le, "EfficientNet", ICML 2019, and its Lite variants;
Radosavovic et al., "Designing Network Design Spaces", CVPR 2020.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.nn import functional

from medsegai.errors import ModelError, counted

STRIDES = (2, 4, 8, 16, 32)
"""The factor by which each level of the pyramid is smaller than the image."""

MOST_CHANNELS = 16
"""The largest number of channels of an image; radiographs have one, photographs three."""


class Encoder(nn.Module):
    """Computes a pyramid of features of images (N, channels, H, W); H and W are multiples of 32.

    Attributes:
        widths: the number of channels of each level of `STRIDES`, the finest first.
    """

    widths: tuple[int, ...]

    def forward(self, image: Tensor) -> list[Tensor]:
        """Return features (N, widths[n], H / STRIDES[n], W / STRIDES[n]) for each level n."""
        raise NotImplementedError


def build_encoder(name: str, channels: int = 3) -> Encoder:
    """Build an encoder with random weights.

    Args:
        name: one of `ENCODERS`.
        channels: channels of the image.

    Raises:
        ModelError: the encoder is unknown, or the number of channels is outside 1 to `MOST_CHANNELS`.
    """
    if name not in ENCODERS:
        raise ModelError(f"The encoder {name!r} is unknown. Known are {', '.join(ENCODERS)}.")
    if not 1 <= channels <= MOST_CHANNELS:
        raise ModelError(
            f"An image of {counted(channels, 'channel', 'channels')} cannot be encoded; 1 to "
            f"{MOST_CHANNELS} channels can."
        )
    encoder = ENCODERS[name](channels)
    _initialise(encoder)
    return encoder


def _initialise(encoder: Encoder) -> None:
    """Give convolutions random weights, except on the device "meta".

    There they would be none, and torch would import its compiler for them, which takes as long as torch itself.
    """
    for layer in encoder.modules():
        if isinstance(layer, nn.Conv2d) and not layer.weight.is_meta:
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def first_convolution(encoder: Encoder) -> str:
    """Return the name of the only weights whose shape depends on the channels of the image."""
    return next(
        f"{name}.weight" for name, layer in encoder.named_modules() if isinstance(layer, nn.Conv2d)
    )


def _convolution(
    channels: int, width: int, size: int = 3, stride: int = 1, groups: int = 1
) -> nn.Conv2d:
    """Build a padded convolution without bias, because a batch norm follows."""
    kind = Depthwise if groups == channels > 1 else nn.Conv2d
    return kind(channels, width, size, stride, size // 2, groups=groups, bias=False)


class Depthwise(nn.Conv2d):
    """A convolution of each channel by itself, which learns in float32 on the processor, whatever the precision.

    There, gradients in bfloat16 take three to ten times as long as those in float32, and answers do not.
    """

    def forward(self, features: Tensor) -> Tensor:
        """See `nn.Conv2d`; the answer has the type of the features."""
        if features.is_cpu and torch.is_grad_enabled() and torch.is_autocast_enabled("cpu"):
            with torch.autocast("cpu", enabled=False):
                return super().forward(features.float()).to(features.dtype)
        return super().forward(features)


def _normed(
    channels: int, width: int, size: int = 3, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    """Build convolution, batch norm and ReLU6: the `Conv2dNormActivation` of torchvision's MobileNetV2."""
    return nn.Sequential(
        _convolution(channels, width, size, stride, groups), nn.BatchNorm2d(width), nn.ReLU6()
    )


class Plain(Encoder):
    """Two convolutions with batch norm at each level; the first of them halves the size."""

    def __init__(self, channels: int, widths: Sequence[int] = (16, 32, 64, 128, 256)) -> None:
        super().__init__()
        self.widths = tuple(widths)
        self.levels = nn.ModuleList(
            nn.Sequential(
                _convolution(before, width, stride=2),
                nn.BatchNorm2d(width),
                nn.ReLU(),
                _convolution(width, width),
                nn.BatchNorm2d(width),
                nn.ReLU(),
            )
            for before, width in zip((channels, *widths), widths, strict=False)
        )

    def forward(self, image: Tensor) -> list[Tensor]:
        """See `Encoder`."""
        features = [image]
        for level in self.levels:
            features.append(level(features[-1]))
        return features[1:]


class ResNet(Encoder):
    """Residual network with two (basic) or three (bottleneck) convolutions per block."""

    def __init__(self, channels: int, blocks: Sequence[int], bottleneck: bool = False) -> None:
        super().__init__()
        growth = 4 if bottleneck else 1
        self.widths = (64, *(64 * 2**level * growth for level in range(4)))
        self.conv1 = _convolution(channels, 64, 7, 2)
        self.bn1 = nn.BatchNorm2d(64)
        for level, count in enumerate(blocks):
            before, width = self.widths[level], self.widths[level + 1]
            first = _Residual(before, width, 1 if level == 0 else 2, bottleneck)
            others = [_Residual(width, width, 1, bottleneck) for _ in range(count - 1)]
            setattr(self, f"layer{level + 1}", nn.Sequential(first, *others))

    def forward(self, image: Tensor) -> list[Tensor]:
        """See `Encoder`."""
        features = [functional.relu(self.bn1(self.conv1(image)))]
        lower = functional.max_pool2d(features[0], 3, 2, 1)
        for level in range(1, 5):
            lower = getattr(self, f"layer{level}")(lower)
            features.append(lower)
        return features


class _Residual(nn.Module):
    """Convolutions whose output is added to their input; `stride` belongs to the 3x3 convolution."""

    def __init__(self, channels: int, width: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        inner = width // 4 if bottleneck else width
        sizes = (1, 3, 1) if bottleneck else (3, 3)
        strides = (1, stride, 1) if bottleneck else (stride, 1)
        through = (channels, *[inner] * (len(sizes) - 1), width)
        self.count = len(sizes)
        for number, (size, step) in enumerate(zip(sizes, strides, strict=True), start=1):
            before, after = through[number - 1], through[number]
            setattr(self, f"conv{number}", _convolution(before, after, size, step))
            setattr(self, f"bn{number}", nn.BatchNorm2d(after))
        self.downsample = (
            nn.Sequential(_convolution(channels, width, 1, stride), nn.BatchNorm2d(width))
            if stride > 1 or channels != width
            else nn.Identity()
        )

    def forward(self, features: Tensor) -> Tensor:
        kept: Tensor = self.downsample(features)
        for number in range(1, self.count + 1):
            features = getattr(self, f"bn{number}")(getattr(self, f"conv{number}")(features))
            if number < self.count:
                features = functional.relu(features)
        return functional.relu(features + kept)


MOBILENET = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
"""The stages of MobileNetV2: expansion, channels, blocks, stride of the first block (Table 2 of its article)."""


class MobileNetV2(Encoder):
    """Inverted residuals: wide inside, narrow between blocks. The last level has the 1280 channels of its head."""

    widths = (16, 24, 32, 96, 1280)
    taken = (1, 3, 6, 13, 18)
    """The indices of the features that form the pyramid: the last ones of each size."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [_normed(channels, 32, stride=2)]
        before = 32
        for expansion, width, count, stride in MOBILENET:
            for number in range(count):
                layers.append(_Inverted(before, width, expansion, stride if number == 0 else 1))
                before = width
        layers.append(_normed(before, self.widths[-1], 1))
        self.features = nn.Sequential(*layers)

    def forward(self, image: Tensor) -> list[Tensor]:
        """See `Encoder`."""
        features, lower = [], image
        for number, layer in enumerate(self.features):
            lower = layer(lower)
            if number in self.taken:
                features.append(lower)
        return features


class _Inverted(nn.Module):
    """A widening 1x1, a 3x3 per channel, and a narrowing 1x1 convolution without activation."""

    def __init__(self, channels: int, width: int, expansion: int, stride: int) -> None:
        super().__init__()
        inner = channels * expansion
        widen = [_normed(channels, inner, 1)] if expansion > 1 else []
        self.conv = nn.Sequential(
            *widen,
            _normed(inner, inner, 3, stride, inner),
            _convolution(inner, width, 1),
            nn.BatchNorm2d(width),
        )
        self.residual = stride == 1 and channels == width

    def forward(self, features: Tensor) -> Tensor:
        result: Tensor = self.conv(features)
        return features + result if self.residual else result


LITE = (
    (1, 16, 1, 3, 1),
    (6, 24, 2, 3, 2),
    (6, 40, 2, 5, 2),
    (6, 80, 3, 3, 2),
    (6, 112, 3, 5, 1),
    (6, 192, 4, 5, 2),
    (6, 320, 1, 3, 1),
)
"""The stages of EfficientNet-Lite0: expansion, channels, blocks, kernel size, stride of the first block."""


def _lite_stage(
    row: tuple[int, int, int, int, int], before: int, width: int, depth_factor: float
) -> nn.Sequential:
    """Build a stage of `LITE`; the first and the last have the same depth in all variants."""
    expansion, _, count, size, stride = row
    more = count if count == 1 else -int(-count * depth_factor // 1)
    steps = [stride, *[1] * (more - 1)]
    inputs = [before, *[width] * (more - 1)]
    return nn.Sequential(
        *(
            _LiteBlock(inside, width, expansion, size, step)
            for inside, step in zip(inputs, steps, strict=True)
        )
    )


class EfficientNetLite(Encoder):
    """EfficientNet without squeeze-and-excitation and with ReLU6.

    `from_stem` takes the first level of the pyramid before the first block, as segmentation_models_pytorch does
    for the encoders that it calls timm-tf_efficientnet_lite; otherwise it is taken after that block, as in timm.
    """

    def __init__(
        self, channels: int, width_factor: float, depth_factor: float, from_stem: bool = False
    ) -> None:
        super().__init__()
        widths = [_to_eights(width * width_factor) for _, width, *_ in LITE]
        self.from_stem = from_stem
        self.widths = (32 if from_stem else widths[0], *(widths[stage] for stage in (1, 2, 4, 6)))
        self.conv_stem = _convolution(channels, 32, stride=2)
        self.bn1 = nn.BatchNorm2d(32)
        stages = zip(LITE, (32, *widths), widths, strict=False)
        self.blocks = nn.Sequential(*(_lite_stage(*stage, depth_factor) for stage in stages))

    def forward(self, image: Tensor) -> list[Tensor]:
        """See `Encoder`."""
        lower = functional.relu6(self.bn1(self.conv_stem(image)))
        features = [lower] if self.from_stem else []
        for number, stage in enumerate(self.blocks):
            lower = stage(lower)
            if number in (1, 2, 4, 6) or (number == 0 and not self.from_stem):
                features.append(lower)
        return features


class _LiteBlock(nn.Module):
    """An inverted residual with timm's names; the very first block does not widen."""

    def __init__(self, channels: int, width: int, expansion: int, size: int, stride: int) -> None:
        super().__init__()
        inner = channels * expansion
        layers = [("conv_dw", _convolution(inner, inner, size, stride, inner))]
        if expansion == 1:
            layers.append(("conv_pw", _convolution(inner, width, 1)))
        else:
            layers.insert(0, ("conv_pw", _convolution(channels, inner, 1)))
            layers.append(("conv_pwl", _convolution(inner, width, 1)))
        self.names = [name for name, _ in layers]
        for number, (name, layer) in enumerate(layers, start=1):
            setattr(self, name, layer)
            setattr(self, f"bn{number}", nn.BatchNorm2d(layer.out_channels))
        self.residual = stride == 1 and channels == width

    def forward(self, features: Tensor) -> Tensor:
        result = features
        for number, name in enumerate(self.names, start=1):
            result = getattr(self, f"bn{number}")(getattr(self, name)(result))
            if number < len(self.names):
                result = functional.relu6(result)
        return features + result if self.residual else result


def _to_eights(width: float) -> int:
    """Return the multiple of eight nearest to `width`, but at least nine tenths of it (MobileNet's rule)."""
    rounded = max(8, int(width + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * width else rounded


class RegNetY(Encoder):
    """Residual blocks with grouped convolutions and squeeze-and-excitation; groups have 8 channels."""

    def __init__(self, channels: int, widths: Sequence[int], blocks: Sequence[int]) -> None:
        super().__init__()
        self.widths = (32, *widths)
        self.stem = _ConvNorm(channels, 32, stride=2)
        for level, (before, width, count) in enumerate(
            zip(self.widths, widths, blocks, strict=False), start=1
        ):
            stage: OrderedDict[str, nn.Module] = OrderedDict(
                (f"b{number}", _RegNetBlock(before if number == 1 else width, width, number == 1))
                for number in range(1, count + 1)
            )
            setattr(self, f"s{level}", nn.Sequential(stage))

    def forward(self, image: Tensor) -> list[Tensor]:
        """See `Encoder`."""
        features = [functional.relu(self.stem(image))]
        for level in range(1, 5):
            features.append(getattr(self, f"s{level}")(features[-1]))
        return features


class _ConvNorm(nn.Module):
    """Convolution and batch norm with timm's names."""

    def __init__(
        self, channels: int, width: int, size: int = 3, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__()
        self.conv = _convolution(channels, width, size, stride, groups)
        self.bn = nn.BatchNorm2d(width)

    def forward(self, features: Tensor) -> Tensor:
        result: Tensor = self.bn(self.conv(features))
        return result


class _RegNetBlock(nn.Module):
    def __init__(self, channels: int, width: int, first: bool) -> None:
        super().__init__()
        stride = 2 if first else 1
        self.conv1 = _ConvNorm(channels, width, 1)
        self.conv2 = _ConvNorm(width, width, 3, stride, width // 8)
        self.se = _SqueezeExcitation(width, round(channels / 4))
        self.conv3 = _ConvNorm(width, width, 1)
        self.downsample = _ConvNorm(channels, width, 1, stride) if first else nn.Identity()

    def forward(self, features: Tensor) -> Tensor:
        result = functional.relu(self.conv1(features))
        result = self.se(functional.relu(self.conv2(result)))
        return functional.relu(self.conv3(result) + self.downsample(features))


class _SqueezeExcitation(nn.Module):
    """Weigh channels by their means over the whole image."""

    def __init__(self, width: int, squeezed: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(width, squeezed, 1)
        self.fc2 = nn.Conv2d(squeezed, width, 1)

    def forward(self, features: Tensor) -> Tensor:
        weights = self.fc2(functional.relu(self.fc1(features.mean((2, 3), keepdim=True))))
        return features * torch.sigmoid(weights)


ENCODERS: Mapping[str, Callable[[int], Encoder]] = MappingProxyType(
    {
        "plain": Plain,
        "mobilenet_v2": MobileNetV2,
        "efficientnet_lite0": partial(EfficientNetLite, width_factor=1.0, depth_factor=1.0),
        "efficientnet_lite1": partial(EfficientNetLite, width_factor=1.0, depth_factor=1.1),
        "efficientnet_lite2": partial(EfficientNetLite, width_factor=1.1, depth_factor=1.2),
        "efficientnet_lite0_stem": partial(
            EfficientNetLite, width_factor=1.0, depth_factor=1.0, from_stem=True
        ),
        "efficientnet_lite1_stem": partial(
            EfficientNetLite, width_factor=1.0, depth_factor=1.1, from_stem=True
        ),
        "efficientnet_lite2_stem": partial(
            EfficientNetLite, width_factor=1.1, depth_factor=1.2, from_stem=True
        ),
        "resnet18": partial(ResNet, blocks=(2, 2, 2, 2)),
        "resnet34": partial(ResNet, blocks=(3, 4, 6, 3)),
        "resnet50": partial(ResNet, blocks=(3, 4, 6, 3), bottleneck=True),
        "regnety_002": partial(RegNetY, widths=(24, 56, 152, 368), blocks=(1, 1, 4, 7)),
        "regnety_004": partial(RegNetY, widths=(48, 104, 208, 440), blocks=(1, 3, 6, 6)),
    }
)
"""The functions that build encoders for a number of image channels, by the encoder's name."""

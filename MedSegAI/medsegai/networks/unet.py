"""The U-Nets that nnU-Net plans: plain, and with residual encoders; 2D and 3D.

Sources: Isensee et al., "nnU-Net: a self-configuring method for deep learning-based biomedical image
segmentation", Nature Methods 2021; Isensee et al., "nnU-Net Revisited", MICCAI 2024 (residual encoders); He et
al., "Bag of Tricks for Image Classification with Convolutional Neural Networks", CVPR 2019 (their blocks). Weights
are named as in `dynamic_network_architectures`, the package with which nnU-Net builds its networks. Each weight is
held once, and of the heads of deep supervision only the one at full resolution exists.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from medsegai.errors import ModelError, counted
from medsegai.models.nnunet_parts import NETWORK_PACKAGE, check_network

OPERATIONS = {
    "conv_op": ("Conv2d", "Conv3d"),
    "norm_op": ("InstanceNorm2d", "InstanceNorm3d", "BatchNorm2d", "BatchNorm3d"),
    "dropout_op": ("Dropout", "Dropout2d", "Dropout3d"),
    "nonlin": ("LeakyReLU", "ReLU", "ELU", "GELU", "SiLU", "Mish"),
    "block": ("BasicBlockD", "BottleneckD"),
}
"""Operations that plans may name, by the last part of their names."""

PACKAGES = ("", "torch", NETWORK_PACKAGE)
"""The modules that hold these operations; an operation of the same name elsewhere may do something else."""

_COMMON = {
    "n_stages",
    "features_per_stage",
    "conv_op",
    "kernel_sizes",
    "strides",
    "n_conv_per_stage_decoder",
    "conv_bias",
    "norm_op",
    "norm_op_kwargs",
    "dropout_op",
    "dropout_op_kwargs",
    "nonlin",
    "nonlin_kwargs",
    "deep_supervision",
}
_PLAIN = {"n_conv_per_stage", "nonlin_first"}
_RESIDUAL = {"n_blocks_per_stage", "block", "bottleneck_channels", "stem_channels"}


def build_unet(
    network_class: str, arguments: Mapping[str, Any], in_channels: int, classes: int
) -> UNet:
    """Build the network that plans describe, without weights: it is on torch's device "meta" until `load_state`.

    Args:
        network_class: `network_class_name` of the plans.
        arguments: `arch_kwargs` of the plans: operations by name, sizes by stage. Sizes of kernels and strides are
            (z, y, x).
        in_channels: channels of the image, including those from a previous stage of a cascade.
        classes: channels of the output.

    Raises:
        ModelError: the class, an operation or an argument is unknown, or the arguments contradict each other.
    """
    check_network(network_class, "The plans")
    name = network_class.rpartition(".")[2]
    unknown = set(arguments) - _COMMON - (_PLAIN if name == "PlainConvUNet" else _RESIDUAL)
    if unknown:
        raise ModelError(
            f"The plans give {name} the arguments {', '.join(sorted(unknown))}, which MedSegAI does not know. "
            "Run this model with nnU-Net itself."
        )
    try:
        with torch.device("meta"):
            return UNet(_Plan(name, arguments), in_channels, classes)
    except KeyError as error:
        raise ModelError(f"The plans do not give {name} its argument {error}.") from None
    except (TypeError, ValueError, IndexError, RuntimeError) as error:
        raise ModelError(f"The plans of this {name} contradict each other: {error}") from None


def load_state(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give `network` copies of the weights in `state`, in float32.

    `state` is a state dict of nnU-Net, with or without the weights that it holds twice, and may come from wrapped
    networks (`module.`, `_orig_mod.`).

    Raises:
        ModelError: weights are missing, have another shape, or belong to another network. The message does not
            name the file.
    """
    wanted = network.state_dict()
    given = {}
    for name, values in state.items():
        name = name.replace("_orig_mod.", "").removeprefix("module.")
        if name in wanted:
            given[name] = _copied(values)
        elif not _is_repeated(name):
            raise ModelError(_misfit(network, f"they hold {name!r}, which it lacks"))
    _check_complete(network, given)
    network.load_state_dict(given, assign=True)


def _copied(values: Tensor) -> Tensor:
    """Return a copy in float32; whole numbers keep their type."""
    kind = torch.float32 if values.is_floating_point() else values.dtype
    return values.detach().to("cpu", kind, copy=True)


def _check_complete(network: nn.Module, given: Mapping[str, Tensor]) -> None:
    for name, values in network.state_dict().items():
        if name not in given:
            raise ModelError(_misfit(network, f"they do not hold {name!r}"))
        if given[name].shape != values.shape:
            shapes = f"{tuple(given[name].shape)}, not {tuple(values.shape)}"
            raise ModelError(_misfit(network, f"{name!r} is {shapes}"))


def with_norm_of(arguments: Mapping[str, Any], state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return `arguments` with batch norm if the weights have its running means.

    nnU-Net's trainer nnUNetTrainerBN, and those derived from it, replace the instance norm that plans name.
    """
    norm = str(arguments.get("norm_op"))
    if not any(name.endswith(".norm.running_mean") for name in state) or "Instance" not in norm:
        return dict(arguments)
    batch_norm = f"torch.nn.BatchNorm{norm[-2:]}"
    options = {"eps": 1e-5, "affine": True}
    return {**arguments, "norm_op": batch_norm, "norm_op_kwargs": options}


def _is_repeated(name: str) -> bool:
    """Whether a weight is also held under another name, or is only used in training."""
    return ".all_modules." in name or name.startswith(("decoder.encoder.", "decoder.seg_layers."))


def _misfit(network: nn.Module, why: str) -> str:
    kind = getattr(network, "kind", type(network).__name__)
    return (
        f"The weights do not fit the {kind} that the plans describe: {why}. Use plans and "
        "weights of the same model; a trainer that builds its own network is not supported."
    )


class _Plan:
    """The checked arguments of a network, with one entry for each stage."""

    def __init__(self, kind: str, arguments: Mapping[str, Any]) -> None:
        self.kind = kind
        self._arguments = arguments
        self.stages = int(arguments["n_stages"])
        self.ops = _Ops.of(arguments)
        self.features = self._per_stage("features_per_stage", self.stages)
        self.kernels = self._per_stage("kernel_sizes", self.stages)
        self.strides = self._per_stage("strides", self.stages)
        counts = "n_conv_per_stage" if kind == "PlainConvUNet" else "n_blocks_per_stage"
        self.encoder_counts = self._per_stage(counts, self.stages)
        self.decoder_counts = self._per_stage("n_conv_per_stage_decoder", self.stages - 1)
        if self.stages < 2:
            raise ValueError("a U-Net has at least two stages")
        self.bottlenecks = [None] * self.stages
        if _operation(arguments, "block") == "BottleneckD":
            self.bottlenecks = self._per_stage("bottleneck_channels", self.stages)
        self.stem = int(arguments.get("stem_channels") or self.features[0])

    def smallest(self) -> list[int]:
        """The smallest patch: two voxels are left at the coarsest stage, because one voxel has no deviation."""
        first, *others = self.total_strides()
        return [2 * first, *others]

    def total_strides(self) -> list[int]:
        """The number of voxels of the image that become one at the coarsest stage, along each axis."""
        return [math.prod(along) for along in zip(*map(self.ops.sizes, self.strides), strict=True)]

    def _per_stage(self, name: str, stages: int) -> list[Any]:
        values = self._arguments[name]
        if isinstance(values, int):
            return [values] * stages
        if len(values) != stages:
            raise ValueError(
                f"{name} has {counted(len(values), 'entry', 'entries')} for {counted(stages, 'stage', 'stages')}."
            )
        return list(values)


@dataclass(frozen=True)
class _Ops:
    """The operations of which a network is made."""

    conv: Callable[..., nn.Module]
    transposed: Callable[..., nn.Module]
    pool: Callable[..., nn.Module]
    norm: Callable[[int], nn.Module] | None
    dropout: Callable[[], nn.Module] | None
    nonlin: Callable[[], nn.Module] | None
    bias: bool
    nonlin_first: bool
    dimensions: int

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> _Ops:
        """The operations that `arguments` name."""
        conv = _operation(arguments, "conv_op")
        if conv is None:
            raise KeyError("conv_op")
        made: dict[str, Any] = {}
        for name in ("norm", "dropout", "nonlin"):
            key = name if name == "nonlin" else f"{name}_op"
            operation = _operation(arguments, key)
            options = arguments.get(f"{key}_kwargs") or {}
            made[name] = partial(getattr(nn, operation), **options) if operation else None
        return cls(
            conv=getattr(nn, conv),
            transposed=getattr(nn, conv.replace("Conv", "ConvTranspose")),
            pool=getattr(nn, conv.replace("Conv", "AvgPool")),
            bias=bool(arguments.get("conv_bias", False)),
            nonlin_first=bool(arguments.get("nonlin_first", False)),
            dimensions=int(conv[-2]),
            **made,
        )

    def sizes(self, size: int | Sequence[int]) -> list[int]:
        """One entry for each axis."""
        sizes = [size] * self.dimensions if isinstance(size, int) else list(size)
        if len(sizes) != self.dimensions:
            raise ValueError(
                f"{sizes} does not have one entry for each of the {self.dimensions} axes."
            )
        return sizes


def _operation(arguments: Mapping[str, Any], key: str) -> str | None:
    """Return the last part of the name of an operation, if it is given and known."""
    value = arguments.get(key)
    if value is None:
        return None
    module, _, name = str(value).rpartition(".")
    if name not in OPERATIONS[key] or module.partition(".")[0] not in PACKAGES:
        raise ModelError(
            f"The plans ask for {key} {value!r}, which MedSegAI does not know (known are "
            f"{', '.join(OPERATIONS[key])}). Run this model with nnU-Net itself."
        )
    return name


def _conv_block(
    ops: _Ops,
    channels: tuple[int, int],
    kernel: int | Sequence[int],
    stride: int | Sequence[int] = 1,
    plain: bool = False,
) -> nn.Sequential:
    """Build a convolution that keeps the size (except for its stride), and dropout, norm and nonlinearity if there
    are any.

    `plain` leaves out dropout and nonlinearity.
    """
    sizes = ops.sizes(kernel)
    padding = [(size - 1) // 2 for size in sizes]
    layers = OrderedDict(conv=ops.conv(*channels, sizes, ops.sizes(stride), padding, bias=ops.bias))
    if ops.dropout and not plain:
        layers["dropout"] = ops.dropout()
    if ops.norm:
        layers["norm"] = ops.norm(channels[1])
    if ops.nonlin and not plain:
        layers["nonlin"] = ops.nonlin()
        if ops.nonlin_first and ops.norm:
            layers.move_to_end("norm")
    return nn.Sequential(layers)


def _skip(ops: _Ops, channels: tuple[int, int], stride: int | Sequence[int]) -> nn.Sequential:
    """Build what brings the input of a residual block to the size of its output."""
    before, after = channels
    skip: list[nn.Module] = []
    if any(step != 1 for step in ops.sizes(stride)):
        skip.append(ops.pool(ops.sizes(stride), ops.sizes(stride)))
    if before != after:
        skip.append(_conv_block(replace(ops, bias=False), channels, 1, plain=True))
    return nn.Sequential(*skip)


class ResidualBlock(nn.Module):
    """Two convolutions, or three around a bottleneck, whose result is added to the input (ResNet-D).

    Where the size changes, the input is averaged over the stride and then projected voxel by voxel.
    """

    def __init__(
        self,
        ops: _Ops,
        channels: tuple[int, int],
        kernel: int | Sequence[int],
        stride: int | Sequence[int],
        bottleneck: int | None,
    ) -> None:
        super().__init__()
        before, after = channels
        if bottleneck is None:
            self.conv1 = _conv_block(ops, channels, kernel, stride)
            self.conv2 = _conv_block(ops, (after, after), kernel, plain=True)
        else:
            self.conv1 = _conv_block(replace(ops, dropout=None), (before, bottleneck), 1)
            self.conv2 = _conv_block(ops, (bottleneck, bottleneck), kernel, stride)
            self.conv3 = _conv_block(ops, (bottleneck, after), 1, plain=True)
        self.skip = _skip(ops, channels, stride)
        self.nonlin = ops.nonlin() if ops.nonlin else nn.Identity()

    def forward(self, features: Tensor) -> Tensor:
        """Apply the module, as PyTorch calls it."""
        changed = self.conv2(self.conv1(features))
        if hasattr(self, "conv3"):
            changed = self.conv3(changed)
        changed += self.skip(features)
        result: Tensor = self.nonlin(changed)
        return result


def _encoder(plan: _Plan, in_channels: int) -> dict[str, nn.Module]:
    if plan.kind == "PlainConvUNet":
        return {"stages": _plain_encoder(plan, in_channels)}
    stem = _convolutions(plan.ops, 1, (in_channels, plan.stem), plan.kernels[0])
    return {"stem": stem, "stages": _residual_encoder(plan)}


def _convolutions(
    ops: _Ops, count: int, channels: tuple[int, int], kernel: Any, stride: Any = 1
) -> nn.Sequential:
    """Build a stage of `count` convolutions; the first has the stride."""
    before, after = channels
    blocks = [_conv_block(ops, (before, after), kernel, stride)]
    blocks += [_conv_block(ops, (after, after), kernel) for _ in range(1, count)]
    return nn.Sequential(OrderedDict(convs=nn.Sequential(*blocks)))


def _residuals(
    ops: _Ops,
    count: int,
    channels: tuple[int, int],
    kernel: Any,
    stride: Any = 1,
    bottleneck: int | None = None,
) -> nn.Sequential:
    """Build a stage of `count` residual blocks; the first has the stride."""
    before, after = channels
    blocks = [ResidualBlock(ops, (before, after), kernel, stride, bottleneck)]
    blocks += [ResidualBlock(ops, (after, after), kernel, 1, bottleneck) for _ in range(1, count)]
    return nn.Sequential(OrderedDict(blocks=nn.Sequential(*blocks)))


class UNet(nn.Module):
    """Patches (N, channels, [D,] H, W) to logits (N, classes, [D,] H, W); sizes are multiples of all strides."""

    def __init__(self, plan: _Plan, in_channels: int, classes: int) -> None:
        super().__init__()
        self.kind, self.smallest, self.strides = plan.kind, plan.smallest(), plan.total_strides()
        self.encoder = nn.ModuleDict(_encoder(plan, in_channels))
        stage = _residuals if plan.kind == "ResidualUNet" else _convolutions
        transposed, merges = nn.ModuleList(), nn.ModuleList()
        for level, count in zip(reversed(range(plan.stages - 1)), plan.decoder_counts, strict=True):
            below, here = plan.features[level + 1], plan.features[level]
            stride = plan.ops.sizes(plan.strides[level + 1])
            transposed.append(plan.ops.transposed(below, here, stride, stride, bias=plan.ops.bias))
            merges.append(stage(plan.ops, count, (2 * here, here), plan.kernels[level]))
        head = plan.ops.conv(plan.features[0], classes, 1)
        self.decoder = nn.ModuleDict(
            {
                "stages": merges,
                "transpconvs": transposed,
                "seg_layers": nn.ModuleDict({str(plan.stages - 2): head}),
            }
        )

    def forward(self, patches: Tensor) -> Tensor:
        """Apply the module, as PyTorch calls it."""
        features = self.encoder["stem"](patches) if "stem" in self.encoder else patches
        skips = []
        for stage in self.encoder["stages"].children():
            features = stage(features)
            skips.append(features)
        skips.pop()
        decoder = self.decoder
        pairs = zip(decoder["transpconvs"].children(), decoder["stages"].children(), strict=True)
        for transposed, merge in pairs:
            features = _merged(merge, transposed, features, skips)
        (head,) = decoder["seg_layers"].children()
        logits: Tensor = head(features)
        return logits


def _merged(
    stage: nn.Module, transposed: nn.Module, features: Tensor, skips: list[Tensor]
) -> Tensor:
    """Apply `stage` to the enlarged `features` and the last of `skips`, which is removed from the list.

    A convolution of two concatenated inputs is the sum of two convolutions. So they are not concatenated, which
    would make the largest tensor of the network.
    """
    convs = getattr(stage, "convs", None)
    if convs is None:
        result: Tensor = stage(torch.cat((transposed(features), skips.pop()), 1))
        return result
    (conv, *layers), *others = convs
    convolve = functional.conv3d if conv.weight.ndim == 5 else functional.conv2d
    of_features, of_skip = conv.weight.split(conv.weight.shape[1] // 2, 1)
    merged = convolve(skips.pop(), of_skip, padding=conv.padding)
    merged += convolve(transposed(features), of_features, conv.bias, padding=conv.padding)
    for layer in (*layers, *others):
        merged = layer(merged)
    return merged


def _plain_encoder(plan: _Plan, channels: int) -> nn.Sequential:
    stages = []
    for features, kernel, stride, count in zip(
        plan.features, plan.kernels, plan.strides, plan.encoder_counts, strict=True
    ):
        stages.append(
            nn.Sequential(_convolutions(plan.ops, count, (channels, features), kernel, stride))
        )
        channels = features
    return nn.Sequential(*stages)


def _residual_encoder(plan: _Plan) -> nn.Sequential:
    stages, channels = [], plan.stem
    for level, features in enumerate(plan.features):
        stages.append(
            _residuals(
                plan.ops,
                plan.encoder_counts[level],
                (channels, features),
                plan.kernels[level],
                plan.strides[level],
                plan.bottlenecks[level],
            )
        )
        channels = features
    return nn.Sequential(*stages)

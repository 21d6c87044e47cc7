"""Checkpoints of segmentation_models_pytorch: which of our networks they hold, by names and shapes of weights."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medsegai.errors import ModelError
from medsegai.models.json_fields import read_json
from medsegai.networks.encoder_weights import mapped_names
from medsegai.networks.encoders import ENCODERS, build_encoder, first_convolution
from medsegai.networks.unet2d import UNet2D, UNet2DConfig

SMP_ENDINGS = (".pth", ".pt", ".ckpt", ".safetensors")

ARCHITECTURES = {"Unet": "unet", "UnetPlusPlus": "unetplusplus"}
"""Our architectures, by the names that its configuration files use."""

AS_IT_IS = {
    "decoder_interpolation": "nearest",
    "decoder_attention_type": None,
    "decoder_add_center_block": False,
    "encoder_depth": 5,
    "aux_params": None,
}
"""Settings for which a configuration file may have only the value that our networks implement."""

AMBIGUOUS = re.compile(r"tu-tf_")
"""Encoders of timm that pad as TensorFlow does; their weights look like those of other encoders."""


@dataclass(frozen=True)
class Imported:
    """A network and its weights under our names."""

    config: UNet2DConfig
    state: dict[str, Tensor]


def imported(state: Mapping[str, Tensor], config: Path | None, source: Path) -> Imported | None:
    """Recognise the network of a state dict; None if it does not come from segmentation_models_pytorch.

    Args:
        state: names to tensors, perhaps within a Lightning module.
        config: the configuration file beside the weights, if there is one.
        source: the file of the weights, for messages.

    Raises:
        ModelError: the weights come from that library, but belong to a network that MedSegAI does not have.
    """
    parts = _parts(state)
    if not all(parts.values()):
        return None
    if config is not None:
        _check_config(config)
    shape = _shape(parts, source)
    return Imported(shape, _renamed(parts, shape, source))


def _parts(state: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Return the weights of each part of a network, without what wrappers write before their names."""
    bare = {re.sub(r"^(?:module\.|_orig_mod\.|model\.|net\.)+", "", k): v for k, v in state.items()}
    return {
        part: {name: v for name, v in bare.items() if name.startswith(f"{part}.")}
        for part in ("encoder", "decoder", "segmentation_head")
    }


def _renamed(
    parts: Mapping[str, Mapping[str, Tensor]], shape: UNet2DConfig, source: Path
) -> dict[str, Tensor]:
    """Return the weights by the names of our own network, and check that they fit it."""
    own = UNet2D(shape).state_dict()
    wanted = {k.removeprefix("encoder."): v for k, v in own.items() if k.startswith("encoder.")}
    encoder = mapped_names(parts["encoder"], wanted)
    given = {f"encoder.{name}": values for name, values in encoder.items()}
    given |= {**parts["decoder"], **parts["segmentation_head"]}
    counters = {k: v for k, v in own.items() if k.endswith("num_batches_tracked")}
    given = counters | {k: v.float() for k, v in given.items() if k not in counters}
    problem = next((k for k in own.keys() ^ given.keys()), None) or next(
        (k for k in own if own[k].shape != given[k].shape), None
    )
    if problem:
        raise ModelError(
            f"{source} holds a network that MedSegAI does not have: it differs in "
            f"{problem!r}. Run it with segmentation_models_pytorch itself."
        )
    return given


def _shape(parts: Mapping[str, Mapping[str, Tensor]], source: Path) -> UNet2DConfig:
    """Recognise the network by its weights."""
    decoder, head = parts["decoder"], parts["segmentation_head"]["segmentation_head.0.weight"]
    nested = "decoder.blocks.x_0_0.conv1.0.weight" in decoder
    if any(".attention" in name or ".center." in name for name in decoder):
        raise ModelError(
            f"{source} has a decoder with attention or a center block, which MedSegAI does not have. Run it with "
            "segmentation_models_pytorch itself."
        )
    place = "decoder.blocks.x_0_{}.conv1.0.weight" if nested else "decoder.blocks.{}.conv1.0.weight"
    widths = _widths(decoder, place, source)
    name, channels = _encoder(parts["encoder"], source)
    kind = "unetplusplus" if nested else "unet"
    skip = int(decoder[place.format(3)].shape[1]) - widths[2]
    if name.startswith("efficientnet_lite") and skip % 32 == 0:
        name += "_stem"
    return UNet2DConfig(name, kind, channels, int(head.shape[0]), widths)


def _widths(decoder: Mapping[str, Tensor], place: str, source: Path) -> tuple[int, ...]:
    try:
        return tuple(int(decoder[place.format(row)].shape[0]) for row in range(5))
    except KeyError:
        raise ModelError(
            f"{source} does not have the five levels of a U-Net or U-Net++ of segmentation_models_pytorch."
        ) from None


def _encoder(state: Mapping[str, Tensor], source: Path) -> tuple[str, int]:
    """Return the encoder whose weights have these names and shapes, and the number of channels of its image."""
    for name in ENCODERS:
        if name.endswith("_stem"):
            continue
        with torch.device("meta"):
            encoder = build_encoder(name)
        wanted, first = encoder.state_dict(), first_convolution(encoder)
        given = mapped_names(state, wanted)
        needed = {k for k in wanted if not k.endswith("num_batches_tracked")}
        if needed == given.keys() and all(
            wanted[k].shape == given[k].shape for k in needed if k != first
        ):
            return name, int(given[first].shape[1])
    known = ", ".join(name for name in ENCODERS if not name.endswith("_stem"))
    raise ModelError(
        f"{source} has an encoder that MedSegAI does not have; the known encoders are "
        f"{known}. Run it with segmentation_models_pytorch itself."
    )


def _check_config(path: Path) -> None:
    """Refuse differences that the weights would not show. Raises ModelError."""
    values: dict[str, Any] = read_json(path)
    name = values.get("_model_class")
    if name is not None and name not in ARCHITECTURES:
        raise ModelError(
            f"{path} describes a {name}, but MedSegAI has only {' and '.join(ARCHITECTURES)}."
        )
    if AMBIGUOUS.match(str(values.get("encoder_name", ""))):
        raise ModelError(
            f"{path} names the encoder {values['encoder_name']!r}, which pads images as "
            "TensorFlow does and which MedSegAI does not have."
        )
    for key, wanted in AS_IT_IS.items():
        if values.get(key, wanted) != wanted:
            raise ModelError(
                f"{path} sets {key} to {values[key]!r}, but MedSegAI only has networks with {wanted!r}."
            )

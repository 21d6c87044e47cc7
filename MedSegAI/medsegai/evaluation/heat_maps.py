"""Where a classifier looks: Grad-CAM and occlusion, both as MONAI computes them.

Grad-CAM weighs the last features by how much the class grows with them (R. Selvaraju et al., ICCV 2017). Occlusion
greys one place after another and looks how much the class falls (M. Zeiler & R. Fergus, ECCV 2014).
"""

from __future__ import annotations

import logging
import warnings

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from medsegai.decoding.slides import Pixels

logger = logging.getLogger(__name__)

SEEN_LAYER = "classifier.seen"
"""The module of our classifiers whose output still has places."""

HIDDEN = 1 / 5
"""Part of the shorter side of a picture that is hidden at once."""

OVERLAP = 0.25
"""Of neighbouring places that are hidden."""

HEAT = ((0, 0, 80), (0, 60, 255), (0, 220, 220), (250, 230, 0), (220, 20, 0))
"""Colours from nothing to the most."""


def heat_maps(
    network: nn.Module, layer: str, image: Tensor, number: int
) -> dict[str, NDArray[np.float32]]:
    """Both maps of a class by name, see `grad_cam`; none where MONAI is not installed, which is logged."""
    try:
        import monai.visualize  # noqa: F401
    except ImportError:
        logger.warning("No heat maps: install MONAI (pip install 'medsegai[train]').")
        return {}
    return {
        "Grad-CAM": grad_cam(network, layer, image, number),
        "occlusion": occlusion(network, image, number),
    }


def heat_maps_of_decision(network: nn.Module, image: Tensor) -> dict[str, NDArray[np.float32]]:
    """Return both maps, see `heat_maps`, for the class that a network of this project decides for.

    Args:
        network: images (1, 3, row, column) to logits (1, class).
        image: float32 (1, 3, row, column).
    """
    with torch.inference_mode():
        decided = int(network(image).argmax())
    return heat_maps(network, SEEN_LAYER, image, decided)


def grad_cam(network: nn.Module, layer: str, image: Tensor, number: int) -> NDArray[np.float32]:
    """How much each place speaks for a class, from 0 to 1, float32 (row, column).

    Args:
        network: images (1, 3, row, column) to logits (1, class).
        layer: name of the module whose answer is looked at.
        image: float32 (1, 3, row, column).
        number: of the class.
    """
    from monai.visualize import GradCAM

    cam = GradCAM(network, layer, postprocessing=lambda values: values)
    with torch.enable_grad():
        found = cam(image.clone().requires_grad_(), class_idx=number)
    return _from_zero(found[0, 0])


def occlusion(network: nn.Module, image: Tensor, number: int) -> NDArray[np.float32]:
    """How much less probable a class is without each place, from 0 to 1 of the most, float32 (row, column)."""
    from monai.visualize import OcclusionSensitivity

    side = max(8, int(min(image.shape[2:]) * HIDDEN))
    hiding = OcclusionSensitivity(
        network, side, n_batch=8, verbose=False, mode="mean_img", overlap=OVERLAP
    )
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of MONAI's way to index
        whole = network(image).softmax(1)[0, number]
        hidden, _ = hiding(image)
    return _from_zero(whole - torch.as_tensor(hidden)[0, number])


def _from_zero(values: Tensor) -> NDArray[np.float32]:
    """What is above zero, the largest as one."""
    positive = values.detach().float().clamp(min=0.0).cpu()
    scaled = positive / max(float(positive.max()), 1e-9)
    return np.asarray(scaled.numpy(), np.float32)


def over_picture(pixels: Pixels, heat: NDArray[np.float32], most: float = 0.55) -> Pixels:
    """A heat map laid over its picture: what is cold is seen through.

    Args:
        pixels: RGB (row, column, 3).
        heat: from 0 to 1, of any size.
        most: how opaque the hottest is.
    """
    if heat.shape != pixels.shape[:2]:
        size = pixels.shape[1::-1]
        heat = np.asarray(Image.fromarray(heat).resize(size, Image.Resampling.BILINEAR))
    places = np.linspace(0, 1, len(HEAT))
    colours = np.stack(
        [np.interp(heat, places, channel) for channel in zip(*HEAT, strict=True)], -1
    )
    opacity = most * np.clip(heat, 0, 1)[..., None]
    return np.asarray(np.rint(pixels * (1 - opacity) + colours * opacity), np.uint8)

"""Heat maps that show where a classifier looks: Grad-CAM and occlusion, both computed by MONAI.

Grad-CAM weights the last features by the gradient of the class (R. Selvaraju et al., ICCV 2017). Occlusion hides
one part of the picture after another and measures how much the probability of the class falls (M. Zeiler &
R. Fergus, ECCV 2014).
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
"""The last module of this project's classifiers whose output still has spatial axes."""

HIDDEN = 1 / 5
"""The side of the hidden part, as a share of the picture's shorter side."""

OVERLAP = 0.25
"""The overlap of neighbouring hidden parts, as a share of their side."""

HEAT = ((0, 0, 80), (0, 60, 255), (0, 220, 220), (250, 230, 0), (220, 20, 0))
"""The colours (RGB) of a heat map from 0 to 1, at equal steps."""


def heat_maps(
    network: nn.Module, layer: str, image: Tensor, number: int
) -> dict[str, NDArray[np.float32]]:
    """Both maps of a class by name, see `grad_cam`; an empty dict without MONAI, which is logged."""
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
    """Both maps, see `heat_maps`, of the class that a network of this project decides for.

    Args:
        network: images (1, 3, row, column) to logits (1, class).
        image: float32 (1, 3, row, column).
    """
    with torch.inference_mode():
        decided = int(network(image).argmax())
    return heat_maps(network, SEEN_LAYER, image, decided)


def grad_cam(network: nn.Module, layer: str, image: Tensor, number: int) -> NDArray[np.float32]:
    """How much each pixel supports a class by Grad-CAM, from 0 to 1, float32 (row, column).

    Args:
        network: images (1, 3, row, column) to logits (1, class).
        layer: name of the module whose output is weighted.
        image: float32 (1, 3, row, column).
        number: number of the class.
    """
    from monai.visualize import GradCAM

    cam = GradCAM(network, layer, postprocessing=lambda values: values)
    with torch.enable_grad():
        found = cam(image.clone().requires_grad_(), class_idx=number)
    return _from_zero(found[0, 0])


def occlusion(network: nn.Module, image: Tensor, number: int) -> NDArray[np.float32]:
    """How much hiding each pixel lowers the probability of a class, float32 (row, column).

    The values are divided by the largest one, and pixels that raise the probability are 0. The arguments are those
    of `grad_cam`.
    """
    from monai.visualize import OcclusionSensitivity

    side = max(8, int(min(image.shape[2:]) * HIDDEN))
    hiding = OcclusionSensitivity(
        network, side, n_batch=8, verbose=False, mode="mean_img", overlap=OVERLAP
    )
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # about MONAI's own indexing
        whole = network(image).softmax(1)[0, number]
        hidden, _ = hiding(image)
    return _from_zero(whole - torch.as_tensor(hidden)[0, number])


def _from_zero(values: Tensor) -> NDArray[np.float32]:
    """The values with negative ones set to 0, divided by the largest; float32."""
    positive = values.detach().float().clamp(min=0.0).cpu()
    scaled = positive / max(float(positive.max()), 1e-9)
    return np.asarray(scaled.numpy(), np.float32)


def over_picture(pixels: Pixels, heat: NDArray[np.float32], most: float = 0.55) -> Pixels:
    """Lay a heat map over its picture; the higher the heat, the more opaque the colour.

    Args:
        pixels: RGB, uint8 (row, column, 3).
        heat: float32 from 0 to 1, (row, column) of any size; it is resized to the picture.
        most: the opacity of a heat of 1.
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

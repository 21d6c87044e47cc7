"""Augmentation of pictures in three strengths, by MONAI's transforms.

An augmentation depends on a seed only, so that an interrupted training continues exactly as it would have.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from monai import transforms as vary
from monai.transforms import Randomizable, Transform
from torch import Tensor

from medsegai.training.unet2d.config import AugmentationConfig

BOTH = ("image", "target")
STRENGTHS = {"light": 0.5, "medium": 1.0, "heavy": 1.6}
"""The factors of variation of shapes and grey values, relative to "medium"."""

TURN, SCALE, SHIFT = 0.2, 0.15, 0.06
"""The largest rotation (radians), shift and scaling (parts of the size) at medium strength."""


def augmentation(config: AugmentationConfig, patch: tuple[int, int] | None) -> vary.Compose:
    """Return a transform that augments a sample.

    It takes and returns {"image": (channel, j, i) from 0 to 1, "target": (1, j, i)}. With `patch`, the result is a
    part of that height and width at a random place.
    """
    steps: list[Any] = []
    if patch is not None:
        steps += [
            vary.SpatialPadd(BOTH, patch, mode="constant"),
            vary.RandSpatialCropd(BOTH, patch, random_size=False),
        ]
    if config.strength != "none":
        turned = config.orientation == "any"
        steps += [vary.RandFlipd(BOTH, prob=0.5, spatial_axis=1), *_turns() * turned]
        beside = "reflection" if turned else "zeros"
        steps += _shapes(config.strength, beside) + _values(config.strength, config.stain)
    return vary.Compose(steps)


def _turns() -> list[object]:
    return [
        vary.RandFlipd(BOTH, prob=0.5, spatial_axis=0),
        vary.RandRotate90d(BOTH, prob=0.5, max_k=3),
    ]


def _shapes(strength: str, beside: str) -> list[Any]:
    """`beside` is MONAI's name for what is seen beyond the borders of the image."""
    factor = STRENGTHS[strength]
    how = {"mode": ("bilinear", "nearest"), "padding_mode": beside}
    steps: list[Any] = [
        vary.RandAffined(
            BOTH,
            prob=0.7,
            rotate_range=TURN * factor,
            scale_range=(SCALE * factor,) * 2,
            translate_range=(SHIFT * factor * 256,) * 2,
            **how,
        )
    ]
    if strength == "heavy":
        steps.append(
            vary.Rand2DElasticd(BOTH, spacing=(32, 32), magnitude_range=(1, 4), prob=0.3, **how)
        )
    return steps


def _values(strength: str, stain: bool) -> list[Any]:
    factor = STRENGTHS[strength]
    steps: list[Any] = [
        vary.RandAdjustContrastd("image", prob=0.5 * min(factor, 1), gamma=(0.7, 1.5)),
        vary.RandScaleIntensityd("image", factors=0.15 * factor, prob=0.5),
        vary.RandShiftIntensityd("image", offsets=0.08 * factor, prob=0.5),
    ]
    if stain:
        steps.append(RandomStain(0.15 * factor))
    if strength != "light":
        steps += [
            vary.RandGaussianNoised("image", prob=0.2, std=0.03 * factor),
            vary.RandGaussianSmoothd("image", (0.3, 1.2), (0.3, 1.2), prob=0.2),
        ]
    if strength == "heavy":
        steps.append(
            vary.RandCoarseDropoutd("image", holes=4, spatial_size=(24, 24), fill_value=0, prob=0.3)
        )
    return [*steps, vary.ScaleIntensityRanged("image", 0, 1, 0, 1, clip=True)]


class RandomStain(Randomizable, Transform):
    """Multiplies and shifts the optical density of each colour, as more or less of a stain would."""

    def __init__(self, amount: float) -> None:
        self.amount = amount

    def __call__(self, sample: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the sample with other colours."""
        image = torch.as_tensor(sample["image"])
        factors, shifts = (
            torch.tensor(self.R.uniform(-self.amount, self.amount, len(image))) for _ in range(2)
        )
        density = -torch.log((image.clamp(0, 1) * 255 + 1) / 256)
        density = density * (1 + factors[:, None, None]) + 0.3 * shifts[:, None, None]
        seen = (torch.exp(-density) * 256 - 1) / 255
        return {**sample, "image": seen.clamp(0, 1).to(image.dtype)}


def varied(
    transform: vary.Compose, image: Tensor, target: Tensor, seed: int
) -> tuple[Tensor, Tensor]:
    """Return one augmentation of an image (channel, j, i), float32, and its classes (j, i), int64."""
    transform.set_random_state(seed=seed % (2**32))
    sample = transform({"image": image, "target": target[None].float()})
    seen = torch.as_tensor(np.asarray(sample["image"]), dtype=torch.float32)
    classes = torch.as_tensor(np.asarray(sample["target"]))[0]
    return seen, classes.round().long()

"""Preprocessing of single images: grey values are brought to a common range, and images fitted into a size.

Training and inference call the same functions, so that a network sees images like those it learned from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from medsegai.errors import ModelError
from medsegai.models.json_fields import number

STRIDE = 32
"""Height and width of the images that a network sees are multiples of this."""

LARGEST_SIDE = 4096
"""The smallest and largest number of pixels along a side that a card may ask for."""

LOW_PERCENT, HIGH_PERCENT = 0.5, 99.5


@dataclass(frozen=True)
class PictureSettings:
    """How images are prepared for a network.

    Attributes:
        fit: (height, width) that the whole image is fitted into, its sides in proportion; the rest is filled with
            zeros. None where the network sees tiles of the image's own pixels.
        patch: (height, width) of these tiles.
        intensity: "percentile" maps the 0.5 and 99.5 percentiles of the image to 0 and 1, for radiographs; "unit"
            maps the range of eight bits to 0 to 1, for photographs (of other images, zero, or the
            lowest value if it is negative, to the largest).
        mean, std: the mean and standard deviation by which each channel is then normalised; empty for 0 and 1.
    """

    fit: tuple[int, int] | None = None
    patch: tuple[int, int] = (256, 256)
    intensity: Literal["percentile", "unit"] = "unit"
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Raises ModelError: a size is not possible, or a standard deviation is missing or zero."""
        for name, size in (("fit", self.fit), ("patch", self.patch)):
            for side in size or ():
                number(side, name, STRIDE, LARGEST_SIDE)
                if side % STRIDE:
                    raise ModelError(f"{name} must be multiples of {STRIDE}, not {side}.")
        if len(self.mean) != len(self.std):
            raise ModelError("mean and std must have a number for each channel.")
        for value in self.mean:
            number(value, "mean", -1e6, 1e6)
        for value in self.std:
            number(value, "std", 1e-6, 1e6)

    def scaled(self, pixels: NDArray[np.generic]) -> NDArray[np.float32]:
        """Scale the grey values of an image (channel, j, i) to 0 to 1, float32, all channels alike."""
        values = np.asarray(pixels, dtype=np.float32)
        if self.intensity == "percentile":
            low, high = np.percentile(values, (LOW_PERCENT, HIGH_PERCENT))
        else:
            low = min(0.0, float(values.min()))  # grey values may be signed
            high = 255.0 if pixels.dtype == np.uint8 else float(values.max())
        if high <= low:
            return np.zeros(values.shape, np.float32)
        return np.clip((values - np.float32(low)) / np.float32(high - low), 0.0, 1.0)

    def normalised(self, image: Tensor) -> Tensor:
        """Normalise an image (..., channel, j, i) with values from 0 to 1."""
        if not self.mean:
            return image
        mean, std = (
            torch.tensor(values)[:, None, None].to(image) for values in (self.mean, self.std)
        )
        return (image - mean) / std

    def fitted_shape(self, shape: Sequence[int]) -> tuple[int, int]:
        """Return height and width of an image of `shape` (j, i) after fitting."""
        if self.fit is None:
            return int(shape[0]), int(shape[1])
        factor = min(most / size for most, size in zip(self.fit, shape, strict=True))
        height, width = (
            min(most, max(1, round(size * factor)))
            for most, size in zip(self.fit, shape, strict=True)
        )
        return height, width

    def fitted(self, image: NDArray[np.float32]) -> Tensor:
        """Fit an image (channel, j, i) into the size that the network needs, with zeros to the right and below.

        The image is resized if the settings say so, and holds at least one tile.
        """
        values = torch.from_numpy(np.ascontiguousarray(image))
        shape = self.fitted_shape(image.shape[1:])
        if shape != tuple(image.shape[1:]):
            values = functional.interpolate(
                values[None], shape, mode="bilinear", antialias=True, align_corners=False
            )[0]
        right, below = (
            max(side - size, 0) for side, size in zip(self.tile[::-1], shape[::-1], strict=True)
        )
        return functional.pad(values, (0, right, 0, below))

    @property
    def tile(self) -> tuple[int, int]:
        """The (height, width) that the network sees at once."""
        return self.patch if self.fit is None else self.fit

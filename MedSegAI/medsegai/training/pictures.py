"""Training pictures of a classifier: pictures of one size, in memory or read when needed, and augmented."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from medsegai.decoding.slides import Pixels
from medsegai.io.picture_sets import PictureSet

if TYPE_CHECKING:
    from monai.transforms import Compose

Augmentation = Literal["none", "slide", "radiograph"]

KEPT_BYTES = 1 << 31
"""Sets that take fewer bytes are kept in memory."""

Item = tuple[Tensor, Tensor]
"""A picture, float32 (3, row, column) from 0 to 255, and the number of its class."""


@dataclass
class SizedPictures:
    """The pictures of a set in one size, as 8-bit RGB, which are kept in memory if they fit.

    Attributes:
        size: the (rows, columns) of all pictures.
    """

    pictures: PictureSet
    size: tuple[int, int]
    _kept: dict[int, Pixels] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.pictures.pictures)

    def __getitem__(self, number: int) -> Pixels:
        if number in self._kept:
            return self._kept[number]
        pixels = resized(self.pictures.pictures[number].read(), self.size)
        if len(self) * pixels.nbytes <= KEPT_BYTES:
            self._kept[number] = pixels
        return pixels

    def batch(self, numbers: Sequence[int]) -> Tensor:
        """Return pictures as float32 (N, 3, row, column) from 0 to 255."""
        return as_tensor(np.stack([self[number] for number in numbers]))


def resized(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    """Resize a picture to (rows, columns), with averaging where it becomes smaller."""
    if pixels.shape[:2] == size:
        return pixels
    return np.asarray(Image.fromarray(pixels).resize(size[::-1], Image.Resampling.BILINEAR))


def as_tensor(pixels: NDArray[np.uint8]) -> Tensor:
    """Convert (..., row, column, 3) to float32 (..., 3, row, column)."""
    return torch.from_numpy(np.moveaxis(pixels, -1, -3).astype(np.float32))


class TrainingPictures(Dataset[Item]):
    """Some of the pictures, augmented; the augmentation depends on seed, epoch and picture only.

    Args:
        pictures: all pictures.
        numbers: the numbers of the pictures to learn from.
        augmentation: the kind of augmentation.
        seed: the seed of the training.
    """

    def __init__(
        self,
        pictures: SizedPictures,
        numbers: Sequence[int],
        augmentation: Augmentation,
        seed: int,
    ) -> None:
        self.pictures, self.numbers, self.seed = pictures, list(numbers), seed
        self.epoch = 0
        self._change = change_of(augmentation)

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> Item:
        number = self.numbers[index]
        picture = as_tensor(self.pictures[number])
        seeds = np.random.SeedSequence([self.seed, self.epoch, number]).generate_state(1)
        changed = self._change(picture, int(seeds[0]))
        return changed, torch.tensor(self.pictures.pictures.pictures[number].label)


def change_of(augmentation: Augmentation) -> Callable[[Tensor, int], Tensor]:
    """Return a function that changes a picture (3, row, column) at random, by a seed.

    Slides can have any orientation, and stains any strength. A radiograph may be mirrored, rotated a little, and
    have more or less contrast.
    """
    if augmentation == "none":
        return lambda picture, seed: picture
    steps = _of_slides() if augmentation == "slide" else _of_radiographs()

    def change(picture: Tensor, seed: int) -> Tensor:
        steps.set_random_state(seed=seed)
        changed = torch.as_tensor(steps(picture)).clamp(0.0, 255.0)
        return stained(changed, seed) if augmentation == "slide" else changed

    return change


def _of_slides() -> Compose:
    from monai import transforms

    affine = transforms.RandAffine(
        prob=0.5, scale_range=0.1, translate_range=4, padding_mode="reflection"
    )
    return transforms.Compose(
        [
            transforms.RandFlip(0.5, 0),
            transforms.RandRotate90(0.75, 3),
            affine,
            transforms.RandAdjustContrast(0.3, (0.8, 1.25)),
        ]
    )


def _of_radiographs() -> Compose:
    from monai import transforms

    affine = transforms.RandAffine(
        prob=0.9, rotate_range=0.12, scale_range=0.1, translate_range=8, padding_mode="border"
    )
    contrast = transforms.RandAdjustContrast(0.5, (0.7, 1.5))
    return transforms.Compose([transforms.RandFlip(0.5, 1), affine, contrast])


def stained(picture: Tensor, seed: int) -> Tensor:
    """Change a picture (3, row, column) so that its stain absorbs a little more or less of each colour.

    The optical density, which is the logarithm of the transmitted light, is proportional to the amount of a stain
    (Beer and Lambert), so it is scaled, as by D. Tellez et al. ("Whole-Slide Mitosis Detection ... with stain
    augmentation", 2018), here without separating the stains.
    """
    random = np.random.default_rng(seed)
    strength = torch.tensor(random.uniform(0.8, 1.25, (3, 1, 1)), dtype=torch.float32)
    density = -torch.log((picture + 1.0) / 256.0) * strength
    return (256.0 * torch.exp(-density) - 1.0).clamp(0.0, 255.0)


def mixed(images: Tensor, targets: Tensor, alpha: float, seed: int) -> tuple[Tensor, Tensor]:
    """Mixup: mix each picture and its classes with those of another picture.

    H. Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018.

    Args:
        images: the pictures (N, ...).
        targets: the shares of the classes, (N, class).
        alpha: the parameter of the beta distribution of shares; 0 for no mixing.
        seed: the seed of the shares.
    """
    if alpha <= 0:
        return images, targets
    random = np.random.default_rng(seed)
    share = torch.tensor(random.beta(alpha, alpha, len(images)), dtype=images.dtype)
    share = torch.maximum(share, 1 - share).to(images.device)
    other = torch.tensor(random.permutation(len(images)), device=images.device)
    of_image = share.reshape(-1, *[1] * (images.ndim - 1))
    return _blend(images, other, of_image), _blend(targets, other, share.reshape(-1, 1))


def _blend(values: Tensor, other: Tensor, share: Tensor) -> Tensor:
    return values * share + values[other] * (1 - share)

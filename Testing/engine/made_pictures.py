"""Made pictures for tests: discs on a ground, their masks, and a training file that learns them in seconds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

TRAINING = """
id = "discs"
name = "Discs"
folds = 2
epochs = 6
batch = 4
patches_per_image = 5
labels = [{value = 1, name = "Disc", color = [200, 60, 60]}]
[data]
threshold = 127
groups = "groups.csv"
channels = 1
[image]
fit = [64, 64]
[network]
encoder = "plain"
widths = [16, 16, 8, 8, 8]
[augmentation]
strength = "light"
[optimiser]
learning_rate = 1e-2
encoder_rate = 1.0
"""


def picture(
    seed: int, shape: tuple[int, int] = (70, 90)
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A bright disc on noise, and where it is (0 or 255)."""
    random = np.random.default_rng(seed)
    j, i = np.mgrid[: shape[0], : shape[1]]
    middle = random.uniform(0.35, 0.65, 2) * shape
    radius = random.uniform(0.15, 0.3) * min(shape)
    disc = (j - middle[0]) ** 2 + (i - middle[1]) ** 2 < radius**2
    image = 60 + 110 * disc + random.normal(0, 12, shape)
    return image.clip(0, 255).astype(np.uint8), (255 * disc).astype(np.uint8)


def dataset(folder: Path, count: int = 8) -> Path:
    """Pictures, masks, groups of two cases each, and the training file; gives the latter."""
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for number in range(count):
        image, mask = picture(number)
        Image.fromarray(image).save(folder / "images" / f"p{number}.png")
        Image.fromarray(mask).save(folder / "masks" / f"p{number}.png")
    rows = [f"p{number},g{number // 2}" for number in range(count)]
    (folder / "groups.csv").write_text("\n".join(["case,group", *rows]) + "\n")
    (folder / "training.toml").write_text(TRAINING)
    return folder / "training.toml"

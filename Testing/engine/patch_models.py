"""A classifier of stained patches that tests can make in a second: violet tumour on pink tissue on white glass."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from medsegai.decoding.slides import Pixels
from medsegai.progress import Progress
from medsegai.training.patches_options import PatchTraining
from medsegai.training.patches_run import train_patches
from medsegai.training.run import RunOptions

PINK, VIOLET, GLASS = (225, 150, 190), (110, 50, 150), (242, 242, 242)


def stain(colour: tuple[int, int, int], rows: int, columns: int, seed: int) -> Pixels:
    random = np.random.default_rng(seed)
    pixels = np.array(colour) + random.normal(0, 6, (rows, columns, 3))
    return np.clip(pixels, 0, 255).astype(np.uint8)


def write_patches(root: Path, count: int = 8, side: int = 96) -> Path:
    for name, colour in (("normal", PINK), ("tumor", VIOLET)):
        (root / name).mkdir(parents=True)
        for number in range(count):
            Image.fromarray(stain(colour, side, side, number)).save(root / name / f"{number}.png")
    return root


def trained(folder: Path, kind: str = "patch", spacing_um: float = 1.0, side: int = 96) -> Path:
    """A model of two folds that tells violet from pink."""
    training = PatchTraining(
        write_patches(folder / "patches", side=side),
        kind=kind,  # type: ignore[arg-type]
        encoder="plain",
        folds=2,
        epochs=0,
        size=side,
        spacing_um=spacing_um,
        prior=1.0,
        augmentation="slide" if kind == "patch" else "none",
    )
    return train_patches(training, RunOptions(folder / "run", device="cpu"), Progress()) / "model"


def slide_pixels(
    side: int, tissue: tuple[int, int, int, int], tumour: tuple[int, int, int, int]
) -> Pixels:
    """Glass with a box (top, left, bottom, right) of tissue, and one of tumour within it."""
    pixels = stain(GLASS, side, side, 1)
    grey = pixels.mean(2, keepdims=True)
    pixels = np.repeat(grey, 3, 2).astype(np.uint8)
    for (top, left, bottom, right), colour in ((tissue, PINK), (tumour, VIOLET)):
        pixels[top:bottom, left:right] = stain(colour, bottom - top, right - left, 2)
    return pixels

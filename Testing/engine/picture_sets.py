"""Small sets of pictures, as people keep them: one class has bright discs, the other bright stripes."""

from __future__ import annotations

import csv
from pathlib import Path

import h5py
import numpy as np
from PIL import Image

from medsegai.decoding.slides import Pixels

CLASSES = ("disc", "stripes")


def drawn(label: int, seed: int, side: int = 32) -> Pixels:
    """A picture of a class: a disc or stripes at a random place, pink on violet."""
    random = np.random.default_rng(1000 * label + seed)
    rows, columns = np.mgrid[:side, :side]
    if label == 0:
        centre = random.uniform(0.35, 0.65, 2) * side
        shape = np.hypot(rows - centre[0], columns - centre[1]) < side / 4
    else:
        shape = (columns + random.integers(8)) % 8 < 4
    pixels = np.where(shape[..., None], (240, 150, 200), (110, 60, 140))
    return np.clip(pixels + random.normal(0, 8, pixels.shape), 0, 255).astype(np.uint8)


def write_folders(
    root: Path, count: int = 6, parts: tuple[str, ...] = ("",), side: int = 32
) -> Path:
    """`count` pictures of each class in each part: root/part/class/number.png."""
    for at, part in enumerate(parts):
        for label, name in enumerate(CLASSES):
            folder = root / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                Image.fromarray(drawn(label, 100 * at + number, side)).save(
                    folder / f"{number}.png"
                )
    return root


def write_table(path: Path, rows: list[dict[str, str]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_patch_camelyon(
    root: Path, counts: dict[str, int], side: int = 32, slides: bool = True
) -> Path:
    """Files of PatchCamelyon's names and layout, with the made pictures in them."""
    root.mkdir(parents=True, exist_ok=True)
    for part, count in counts.items():
        labels = np.arange(count) % 2
        patches = np.stack([drawn(int(label), number, side) for number, label in enumerate(labels)])
        stem = f"camelyonpatch_level_2_split_{part}"
        with h5py.File(root / f"{stem}_x.h5", "w") as file:
            file["x"] = patches
        with h5py.File(root / f"{stem}_y.h5", "w") as file:
            file["y"] = labels.astype(np.uint8).reshape(-1, 1, 1, 1)
        if slides:
            rows = [{"wsi": f"{part}_slide_{number // 4}"} for number in range(count)]
            write_table(root / f"{stem}_meta.csv", rows)
    return root

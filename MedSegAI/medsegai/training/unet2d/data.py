"""Pictures with label maps: found, paired, grouped into folds, and kept in memory as networks see them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from medsegai.errors import InputError, RequestError, counted
from medsegai.evaluation.folds import groups_of, patient_folds
from medsegai.io import COLOURS, grey, read_channels, read_labelmap, read_pixels, read_table
from medsegai.preprocessing.pictures import PictureSettings
from medsegai.progress import Check, unstoppable
from medsegai.training.config import matching_files
from medsegai.training.unet2d.config import DataConfig, Training2DConfig
from medsegai.volume import Volume

MANY_NAMES = 5
"""The largest number of names that a message lists."""


@dataclass(frozen=True)
class PictureCase:
    """One picture with its label map.

    Attributes:
        name: the name of the picture, without its ending.
        group: the group of the case; cases of one group are never on both sides of a split.
        image: the image (channel, j, i) from 0 to 1, float32, on its own grid.
        target: the class of each pixel, uint8 (j, i), on the same grid.
        objects: a number for each object, if the label map has them, int32 (j, i).
    """

    name: str
    group: str
    image: NDArray[np.float32]
    target: NDArray[np.uint8]
    objects: NDArray[np.int32] | None = None

    def content(self) -> str:
        """Return a hash of the pixels and their classes."""
        return hashlib.sha256(self.image.tobytes() + self.target.tobytes()).hexdigest()


def read_cases(config: Training2DConfig, check: Check = unstoppable) -> list[PictureCase]:
    """Read all cases of a training file, sorted by name. `check` is called before each.

    Raises:
        RequestError: no file matches, or images and label maps cannot be paired.
        InputError: a file cannot be read, differs in size from its partner, or holds unknown labels; or a label is
            in none of them.
    """
    pairs = find_pairs(config)
    groups = read_groups(config, list(pairs))
    cases = []
    for name, files in sorted(pairs.items()):
        check()
        cases.append(read_case(config, name, groups[name], *files))
    _check_labels(config, cases)
    return cases


def _check_labels(config: Training2DConfig, cases: Sequence[PictureCase]) -> None:
    """Raise InputError if a label is in no label map, so that nothing could be learned of it."""
    found = set().union(*(np.unique(case.target).tolist() for case in cases))
    for number, label in enumerate(config.labels, start=1):
        if number not in found:
            raise InputError(
                f"No label map of {config.root} has a pixel of the label {label.name!r}. Check data.labels, "
                "data.threshold and data.border_pixels, or leave out the label."
            )


def find_pairs(config: Training2DConfig) -> dict[str, tuple[Path, Path]]:
    """Return image and label map of each case, by its name.

    Raises:
        RequestError: see `read_cases`.
    """
    data, root = config.data, config.root
    images = _by_name(matching_files(root, data.images, "data.images"), "")
    labels = _by_name(matching_files(root, data.labels, "data.labels"), data.label_suffix)
    lonely = sorted(images.keys() ^ labels.keys())
    if lonely:
        what = "label map" if lonely[0] in images else "image"
        raise RequestError(
            f"{root}: {counted(len(lonely), 'name has', 'names have')} only an image or only a label map, such as "
            f"{lonely[0]!r}, which has no {what}. Check data.images, data.labels and data.label_suffix."
        )
    return {name: (images[name], labels[name]) for name in images}


def _by_name(paths: Sequence[Path], suffix: str) -> dict[str, Path]:
    """Files by their names without ending and suffix. Raises RequestError: two have the same."""
    found: dict[str, Path] = {}
    for path in paths:
        other = found.setdefault(path.stem.removesuffix(suffix), path)
        if other != path:
            raise RequestError(
                f"{other} and {path} have the same name, so they would be one case. Rename one, or narrow the "
                "patterns data.images and data.labels."
            )
    return found


def read_groups(config: Training2DConfig, names: Sequence[str]) -> dict[str, str]:
    """Return the group of each case; without a table, every case is its own group.

    Raises:
        InputError: the table cannot be read, lacks a column, or does not name each case once.
    """
    data = config.data
    if not data.groups:
        return {name: name for name in names}
    path = config.root / data.groups
    groups = groups_of(read_table(path), data.case_column, data.group_column)
    missing = sorted(name for name in names if name not in groups)
    if missing:
        raise InputError(
            f"{path} does not give a group for {', '.join(missing[:MANY_NAMES])}. Add a row for every case."
        )
    return {name: groups[name] for name in names}


def folds_of(cases: Sequence[PictureCase], count: int, seed: int) -> list[list[str]]:
    """Return the held-out names of each fold. Raises InputError: there are fewer groups than folds."""
    return [
        list(fold) for fold in patient_folds({case.name: case.group for case in cases}, count, seed)
    ]


def _wanted_channels(path: Path, count: int) -> Sequence[Volume]:
    """Return as many channels as the training file says, from a picture in grey or in colours."""
    channels = read_channels(path)
    if count == 1:
        return (grey(channels),)
    if len(channels) == 1 and count == len(COLOURS):
        return channels * len(COLOURS)
    if len(channels) != count:
        raise InputError(
            f"{path} has {counted(len(channels), 'channel', 'channels')}, and the training file says "
            f"{count} (data.channels)."
        )
    return channels


def read_case(
    config: Training2DConfig, name: str, group: str, image_path: Path, label_path: Path
) -> PictureCase:
    """Read one case. Raises InputError: see `read_cases`."""
    channels = _wanted_channels(image_path, config.data.channels)
    pixels = np.stack([_only_slice(channel, image_path) for channel in channels])
    labels = read_mask(config.data, label_path)
    if labels.shape != pixels.shape[1:]:
        raise InputError(
            f"{label_path} has {labels.shape[1]} x {labels.shape[0]} pixels, but its image {image_path} has "
            f"{pixels.shape[2]} x {pixels.shape[1]}."
        )
    objects = labels.astype(np.int32) if config.data.instances else None
    if objects is not None:
        target = inside_and_border(objects, config.data.border_pixels)
    else:
        numbers = {label.value: n for n, label in enumerate(config.labels, 1)}
        target = classes_of(labels, numbers, label_path)
    return PictureCase(name, group, config.image.scaled(pixels), target, objects)


def read_mask(data: DataConfig, path: Path) -> NDArray[np.int64]:
    """Read the label values of a label map, (j, i)."""
    if data.threshold is None:
        return _only_slice(read_labelmap(path)[0], path).astype(np.int64)
    pixels = read_pixels(path).pixels
    values = pixels if pixels.ndim == 2 else pixels.max(axis=2)
    return (values > data.threshold).astype(np.int64)


def _only_slice(volume: Volume, path: Path) -> NDArray[Any]:
    """The pixels (j, i) of a volume of one slice. Raises InputError: it has several."""
    slices = volume.geometry.shape[0]
    if slices != 1:
        raise InputError(
            f"{path} has {slices} slices, and networks for pictures learn from single images. Save each slice as "
            "a separate image."
        )
    return volume.voxels[0]


def classes_of(
    labels: NDArray[np.int64], numbers: Mapping[int, int], path: Path
) -> NDArray[np.uint8]:
    """Return the class of each pixel from its label value. Raises InputError: a value has no class."""
    unknown = sorted(set(np.unique(labels).tolist()) - numbers.keys() - {0})
    if unknown:
        raise InputError(
            f"{path} holds the label {unknown[0]}, which the training file does not name. Add "
            "it to labels, or set data.threshold if the file is a mask."
        )
    table = np.zeros(max([0, *numbers]) + 1, np.uint8)
    for value, number in numbers.items():
        table[value] = number
    return table[labels]


def inside_and_border(objects: NDArray[np.int32], pixels: int = 1) -> NDArray[np.uint8]:
    """Return uint8 (j, i): 0 outside objects, 2 within `pixels` of their border (or diagonally), 1 inside."""
    size = 2 * pixels + 1
    largest = ndimage.maximum_filter(objects, size, mode="nearest")
    smallest = ndimage.minimum_filter(objects, size, mode="nearest")
    inside = (objects > 0) & (largest == smallest)
    return np.where(objects > 0, np.where(inside, 1, 2), 0).astype(np.uint8)


def fitted_target(image: PictureSettings, target: NDArray[np.uint8]) -> Tensor:
    """Return classes int64 (j, i) for an image of `PictureSettings.fitted`; the padding is background."""
    values = torch.from_numpy(target.astype(np.int64))
    shape = image.fitted_shape(target.shape)
    if shape != target.shape:
        resized = functional.interpolate(values[None, None].float(), shape, mode="nearest-exact")
        values = resized[0, 0].long()
    right, below = (
        max(side - size, 0) for side, size in zip(image.tile[::-1], shape[::-1], strict=True)
    )
    return functional.pad(values, (0, right, 0, below))

"""Corrected cases, which are kept on this computer as a dataset for `medsegai train nnunet`, and never sent.

The folder is a raw nnU-Net data set: `dataset.json`, `imagesTr` and `labelsTr`. A case gets a random name, and its
files only hold voxels and their geometry, without personal data.
"""

from __future__ import annotations

import contextlib
import filecmp
import json
import os
import re
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsegai.errors import InputError, MedSegAIError, OutputError, RequestError, counted
from medsegai.labels import Label
from medsegai.models.card import ModelCard
from medsegai.volume import Geometry, Volume
from MedSegAILib.correction.nifti import write_nifti
from MedSegAILib.scene.inputs import read_channels, transform_to_world
from MedSegAILib.scene.layers import layers_of, on_grid
from MedSegAILib.scene.segments import label_value
from MedSegAILib.slicer_types import SegmentationNode, VolumeNode
from MedSegAILib.translation import tr as _

CONSENT = _(
    "Keep this image and its corrected segmentation in a folder on this computer, so that a "
    "model can learn from them? Nothing is sent anywhere. The files do not hold a name, date "
    "or other entry of the patient's record, but the image itself is unchanged, and a scan "
    "of a head shows the face. Keep only images that the rules of your institution allow, "
    "and delete the files when they are no longer needed."
)
"""The text to which a user agrees before `keep_case` may be called with consent."""

IMAGES, LABELS, DATASET = "imagesTr", "labelsTr", "dataset.json"
ENDING = ".nii.gz"
FIRST = f"_0000{ENDING}"
"""The end of the name of a case's first image."""

TWICE = _(
    "The same image was kept before: {cases}. Delete the case that is not needed, because a model would "
    "learn from both, and be tested on what it has learned."
)
FIRST_NUMBER, LAST_NUMBER = 900, 999
"""The first number of a user's own datasets in nnU-Net."""


@dataclass(frozen=True)
class KeptCase:
    """The written case.

    Attributes:
        name: the name of the case.
        dataset: the folder of the dataset, for `medsegai train nnunet`.
        notes: what was left out, in words.
    """

    name: str
    dataset: Path
    notes: tuple[str, ...] = ()


def keep_case(
    folder: Path,
    card: ModelCard,
    sources: Sequence[VolumeNode],
    segmentation: SegmentationNode,
    consent: bool,
) -> KeptCase:
    """Keep images and corrected segmentation for training.

    The dataset of a model is a subfolder of `folder`; it is made with the first case, and takes further cases of
    the same channels and labels. Files of other cases are not changed.

    Args:
        folder: the folder that the user chose, which must exist.
        card: the card of the model that was corrected, with its channels and labels.
        sources: one volume node per channel, in the order of the card.
        segmentation: the corrected segmentation node.
        consent: whether the user agreed to `CONSENT`.

    Raises:
        RequestError: consent is missing, or the number of images differs from that of the channels.
        InputError: images cannot be read, or none of the segments is a structure of the model.
        GeometryError: images have different grids, or a parent transform that is not linear.
        OutputError: the folder cannot be written, or holds another dataset.
    """
    if not consent:
        raise RequestError(_("Nothing was kept, because the user did not agree to it."))
    if len(sources) != len(card.channels):
        needed = counted(len(card.channels), _("image"), _("images"))
        text = _("The model {model} takes {images}, not {number}. Choose one per channel.")
        raise RequestError(text.format(model=card.name, images=needed, number=len(sources)))
    images = read_channels(sources)
    labels, notes = _labels(segmentation, card.labels, images[0].geometry)
    return _Dataset(_dataset_folder(folder, card), card).add(
        images, images[0].with_voxels(labels), notes
    )


def _labels(
    segmentation: SegmentationNode, labels: Sequence[Label], grid: Geometry
) -> tuple[NDArray[np.integer], tuple[str, ...]]:
    """Return each voxel's position in the list of labels, from 1, on the images' grid; and notes on omissions."""
    kind = np.uint8 if len(labels) < 256 else np.uint16
    out = np.zeros(grid.shape, kind)
    to_world = transform_to_world(segmentation)
    numbers = {label.value: number for number, label in enumerate(labels, start=1)}
    names = {label.name: label.value for label in labels}
    left_out, doubled, kept = [], 0, 0
    for layer in layers_of(segmentation):
        own = Geometry(layer.geometry.shape, to_world @ layer.geometry.ijk_to_ras)
        voxels = on_grid(layer.voxels, own, grid)
        for segment_id, shown in layer.values.items():
            name = segmentation.GetSegmentation().GetSegment(segment_id).GetName()
            value = label_value(segmentation, segment_id)
            number = numbers.get(names.get(name, -1) if value is None else value)
            if number is None:
                left_out.append(name)
                continue
            mask = voxels == shown
            doubled += int((mask & (out != 0)).sum())
            out[mask & (out == 0)] = number
            kept += 1
    if not kept:
        raise InputError(
            _(
                "{name} does not have a segment that is a structure of the model, so nothing was kept. "
                "Choose the model that it was made with."
            ).format(name=segmentation.GetName())
        )
    return out, tuple(_notes(left_out, doubled))


def _notes(left_out: Sequence[str], doubled: int) -> Iterator[str]:
    if left_out:
        text = _("Left out, because the model does not have them: {names}.")
        yield text.format(names=", ".join(left_out))
    if doubled:
        text = _("{voxels} in two segments count for the first of them.")
        yield text.format(voxels=counted(doubled, _("voxel"), _("voxels")))


def _dataset_folder(folder: Path, card: ModelCard) -> Path:
    """Return the folder for cases of this model, by its name, or with the next free number."""
    if not folder.is_dir():
        raise OutputError(_("{path} is not a folder. Choose an existing one.").format(path=folder))
    title = "Corrected_" + (re.sub(r"[^0-9A-Za-z]+", "_", card.id).strip("_") or "model")
    numbers = set()
    for path in sorted(folder.glob("Dataset[0-9][0-9][0-9]_*")):
        if path.name[11:] == title:
            return path
        numbers.add(int(path.name[7:10]))
    free = [number for number in range(FIRST_NUMBER, LAST_NUMBER + 1) if number not in numbers]
    if not free:
        text = _("{folder} holds datasets of all numbers from {first} on. Choose another folder.")
        raise OutputError(text.format(folder=folder, first=FIRST_NUMBER))
    return folder / f"Dataset{free[0]:03d}_{title}"


class _Dataset:
    """A raw nnU-Net dataset to which cases are added."""

    def __init__(self, folder: Path, card: ModelCard) -> None:
        self._folder, self._card = folder, card

    def add(self, images: Sequence[Volume], labels: Volume, notes: tuple[str, ...]) -> KeptCase:
        """Write a case; after any error the dataset is unchanged."""
        with _errors_named(self._folder):
            for name in (IMAGES, LABELS):
                (self._folder / name).mkdir(parents=True, exist_ok=True)
            self._check()
            case = self._free_name()
            # nnU-Net counts a case by its images, so they are written last
            files = {self._folder / LABELS / f"{case}{ENDING}": labels}
            for number, image in enumerate(images):
                files[self._folder / IMAGES / f"{case}_{number:04d}{ENDING}"] = image
            with contextlib.ExitStack() as undone:
                _write_all(files)
                for path in files:
                    undone.callback(path.unlink, missing_ok=True)
                self._describe()
                undone.pop_all()
            twice = self._same_image(case)
        more = (TWICE.format(cases=", ".join(twice)),) if twice else ()
        return KeptCase(case, self._folder, notes + more)

    def _same_image(self, case: str) -> list[str]:
        """Return the other cases of the same image, whose files are equal to the last byte."""
        new = self._folder / IMAGES / f"{case}{FIRST}"
        return [
            path.name.removesuffix(FIRST)
            for path in sorted(new.parent.glob(f"*{FIRST}"))
            if path != new and filecmp.cmp(path, new, shallow=False)
        ]

    def _free_name(self) -> str:
        while True:
            name = f"case_{secrets.token_hex(4)}"
            if not (self._folder / LABELS / f"{name}{ENDING}").exists():
                return name

    def _check(self) -> None:
        """Raise OutputError if the folder holds another dataset."""
        path = self._folder / DATASET
        if not path.exists():
            return
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            text = _("{path} is damaged. Repair it, or choose another folder.")
            raise OutputError(text.format(path=path)) from error
        wanted = self._description(0)
        for key in ("channel_names", "labels", "file_ending"):
            if not isinstance(found, dict) or found.get(key) != wanted[key]:
                text = _(
                    "{path} belongs to a model with another entry {key}. Choose another folder."
                )
                raise OutputError(text.format(path=path, key=key))

    def _describe(self) -> None:
        cases = len(list((self._folder / IMAGES).glob(f"*{FIRST}")))
        text = json.dumps(self._description(cases), indent=1, ensure_ascii=False) + "\n"
        partial = self._folder / f".{secrets.token_hex(8)}.json"
        try:
            partial.write_text(text, encoding="utf-8")
            _flush(partial)
            partial.replace(self._folder / DATASET)
        finally:
            partial.unlink(missing_ok=True)

    def _description(self, cases: int) -> dict[str, Any]:
        labels = {label.name: number for number, label in enumerate(self._card.labels, start=1)}
        return {
            "channel_names": {
                str(n): channel.name for n, channel in enumerate(self._card.channels)
            },
            "labels": {"background": 0, **labels},
            "numTraining": cases,
            "file_ending": ENDING,
        }


def _write_all(files: dict[Path, Volume]) -> None:
    """Write all files or none; the last one appears last."""
    partials: dict[Path, Path] = {}
    with contextlib.ExitStack() as cleared, contextlib.ExitStack() as undone:
        for path, volume in files.items():
            partials[path] = path.with_name(f".{secrets.token_hex(8)}{ENDING}")
            cleared.callback(partials[path].unlink, missing_ok=True)
            write_nifti(partials[path], volume)
            _flush(partials[path])
        for path, partial in partials.items():
            os.rename(partial, path)
            undone.callback(path.unlink, missing_ok=True)
        undone.pop_all()


def _flush(path: Path) -> None:
    """Flush a file to the disk, so that a power cut does not leave half of it under its final name."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


@contextlib.contextmanager
def _errors_named(folder: Path) -> Iterator[None]:
    try:
        yield
    except MedSegAIError:
        raise
    except OSError as error:
        text = _(
            "Nothing was kept, because {folder} cannot be written: {reason}. "
            "Free space there, or choose another folder."
        )
        raise OutputError(text.format(folder=folder, reason=error.strerror or error)) from error

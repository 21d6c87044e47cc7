"""Conversion of MONAI bundles and Auto3DSeg models to model folders with safetensors weights.

The input is the folder of a bundle, or a zip archive of it; or the `model.pt` that Auto3DSeg trained, its folder
with `labels.csv`, or a zip archive of that folder.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path, PurePosixPath

from medsegai.errors import ModelError
from medsegai.families.monai import auto3dseg, bundle
from medsegai.io.archives import DAMAGED, Kind, open_zip, unpacked
from medsegai.models.card import CARD_NAME, ModelCard, load_card
from medsegai.system.regular_files import open_regular

MOST_FILES = 20_000

_ABOVE = r"(?:[^/]+/){0,3}"

WANTED = re.compile(
    rf"{_ABOVE}configs/[^/]+\.(?i:json|ya?ml)|{_ABOVE}models/[^/]+\.pth?|{_ABOVE}(?:model\.pt|labels\.csv)"
    rf"|{_ABOVE}(?:docs/)?LICEN[CS]E(?:\.(?:md|txt))?"
)
"""The files of an archive from which a card is made."""

METADATA = re.compile(rf"({_ABOVE})configs/(?i:metadata\.json)")

ALONE = re.compile(rf"({_ABOVE})model\.pt")


def import_model(path: Path, destination: Path) -> ModelCard | None:
    """Turn a bundle or a model of Auto3DSeg into a model folder with safetensors weights.

    Args:
        path: the folder of a bundle, a `model.pt` of Auto3DSeg or its folder, or a zip archive of a folder.
        destination: the folder to write; it must not exist. An archive is unpacked beside it meanwhile.

    Returns:
        The card, or None if `path` is none of these.

    Raises:
        UnsafeModelError: a file asks for more than weights, or Python would have to run a configuration.
        ModelError: a part is missing or unknown, or parts contradict each other.
    """
    if path.is_dir():
        return _import_folder(path, destination)
    if path.is_file() and path.suffix.lower() == ".zip":
        return _import_archive(path, destination)
    if not path.is_file():
        return None
    for place in path.absolute().parents[:2]:
        if bundle.is_bundle(place):
            raise ModelError(f"{path} is one file of a MONAI bundle. Name its folder: {place}")
    return _written(auto3dseg.convert(path, destination), destination)


def _import_folder(folder: Path, destination: Path) -> ModelCard | None:
    if bundle.is_bundle(folder):
        return _written(bundle.convert(folder, destination), destination)
    if bundle.is_bundle(folder.absolute().parent) and folder.name in ("configs", "models", "docs"):
        raise ModelError(
            f"{folder} is a part of a MONAI bundle. Name its folder: {folder.absolute().parent}"
        )
    file = folder / auto3dseg.WEIGHTS
    if file.is_file():
        return _written(auto3dseg.convert(file, destination), destination)
    alone = _only_folder(folder)
    if alone is not None and bundle.is_bundle(alone):  # unpacked into a folder of its own
        return _written(bundle.convert(alone, destination), destination)
    return None


def _only_folder(folder: Path) -> Path | None:
    """Return the only folder inside a folder, besides what systems add; None if there are several, or none."""
    inside = (path for path in folder.iterdir() if path.name[0] != "." and path.is_dir())
    found = [path for path in inside if path.name != "__MACOSX"]
    return found[0] if len(found) == 1 else None


def _import_archive(archive: Path, destination: Path) -> ModelCard | None:
    inside = _model_in(archive)
    if inside is None:
        return None
    with unpacked(archive, _kind_of, destination.parent) as folder:
        try:
            card = _import_folder(folder / inside, destination)
        except ModelError as error:  # users know the archive, not where it was unpacked
            raise type(error)(str(error).replace(str(folder), str(archive))) from error
    return card


def _model_in(archive: Path) -> str | None:
    """Return the folder of a bundle, or of a model.pt, in an archive; None if there is none."""
    try:
        with open_regular(archive) as file, open_zip(file, MOST_FILES) as opened:
            names = opened.namelist()
    except (OSError, *DAMAGED):
        return None  # whoever knows such archives says what is wrong
    for pattern in (METADATA, ALONE):
        found = sorted({match[1] for name in names if (match := pattern.fullmatch(name))}, key=len)
        if len(found) > 1:
            raise ModelError(f"{archive} holds {len(found)} models. Make an archive of one.")
        if found:
            return found[0]
    return None


def _kind_of(path: PurePosixPath) -> Kind:
    """Return whether a file is unpacked. Other files of a bundle, such as scripts, stay in the archive."""
    return Kind.WANTED if WANTED.fullmatch(str(path)) else Kind.KNOWN


def _written(card: ModelCard | None, destination: Path) -> ModelCard | None:
    if card is None:
        return None
    text = json.dumps(replace(card, folder=destination).to_dict(), indent=1)
    (destination / CARD_NAME).write_text(text, encoding="utf-8")
    return load_card(destination)

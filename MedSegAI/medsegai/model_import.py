"""Adding a model to the user's own: checked, converted where needed, and moved in as a whole.

A family that can read weights as others released them offers `import_model(path, destination)`, which
writes a model folder at `destination` and returns its card, or returns None if `path` is nothing it knows.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from medsegai.card import CARD_NAME, PICTURE_NAME, ModelCard, load_card
from medsegai.catalogue import BUNDLED_MODELS
from medsegai.errors import InputError, ModelError, OutputError, UnsafeModelError

Importer = Callable[[Path, Path], ModelCard | None]

SAFE_WEIGHTS = ".safetensors"
ID_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""What an id may be: it becomes a folder name and an option on the command line."""


STAGING = ".import-"
"""Starts the names of folders in which an import is under way."""

ABANDONED_SECONDS = 24 * 3600.0
"""An import that is older was killed; where the system has file locks it is known at once."""


def import_model(
    path: Path, models_folder: Path, replace: bool = False, id: str | None = None
) -> ModelCard:
    """Add the model at `path` to `models_folder`, under its id.

    Args:
        path: a folder with card.json and safetensors weights, or a folder or file that a family can convert.
        models_folder: made if it does not exist.
        replace: whether a model of the same id in `models_folder` may be replaced.
        id: the id to give the model, in place of its own.

    Returns:
        The card as it stands in `models_folder`.

    Raises:
        InputError: `path` does not exist.
        ModelError: there is no model that MedSegAI knows at `path`, it is damaged, or its id is taken.
        UnsafeModelError: the model could run code or reach outside its folder.
        OutputError: `models_folder` cannot be written.
    """
    if not path.exists():
        raise InputError(f"{path} does not exist. Check the path.")
    try:
        models_folder.mkdir(parents=True, exist_ok=True)
        with _staging(models_folder) as staged:
            card = _stage(path, staged, id)
            return _move_in(card, models_folder, replace)
    except OSError as error:
        raise OutputError(f"The model cannot be written to {models_folder}: {error}.") from error


@contextlib.contextmanager
def _staging(models_folder: Path) -> Iterator[Path]:
    """Where the model is made. It goes away after the block, or, if the process is killed, at the next import."""
    for folder in models_folder.glob(f"{STAGING}*"):
        if _is_abandoned(folder):
            shutil.rmtree(folder, ignore_errors=True)
    # One level below a dot folder: the catalogue looks at MODELS/*/card.json and cannot see it.
    with tempfile.TemporaryDirectory(prefix=STAGING, dir=models_folder) as name:
        staged = Path(name) / "models" / "new"
        staged.parent.mkdir()
        with (Path(name) / "lock").open("w") as lock:
            _try_lock(lock)
            yield staged


def _is_abandoned(folder: Path) -> bool:
    try:
        with (folder / "lock").open("r+") as lock:
            if _try_lock(lock):
                return True
    except OSError:
        pass  # it is only just being made, or cannot be read
    try:
        return time.time() - folder.stat().st_mtime > ABANDONED_SECONDS
    except OSError:
        return False


def _try_lock(file: IO[str]) -> bool:
    """Lock a file until it is closed or the process ends; False if another has it, or there are no locks here."""
    try:
        import fcntl
    except ImportError:  # Windows
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _stage(path: Path, staged: Path, id: str | None) -> ModelCard:
    """Write the model to `staged` and check it there."""
    if path.name == CARD_NAME or (path / CARD_NAME).is_file():
        _copy_folder(load_card(path), staged)
    elif not any(importer(path, staged) for importer in _importers()):
        raise ModelError(
            f"{path} is no model that MedSegAI knows. A model is a folder with {CARD_NAME} and "
            f"{SAFE_WEIGHTS} weights; a folder that nnU-Net v2 trained, or the zip archive that it exports; "
            "or weights as the authors of a family released them."
        )
    card = load_card(staged)
    if id is not None:
        card = dataclasses.replace(card, id=id)
        text = json.dumps(card.to_dict(), indent=1)
        (staged / CARD_NAME).write_text(text, encoding="utf-8")
    card.verify()
    return card


def _copy_folder(card: ModelCard, staged: Path) -> None:
    """Copy the card, its picture and the weights it names, and nothing else that lies in the folder."""
    staged.mkdir()
    shutil.copyfile(card.folder / CARD_NAME, staged / CARD_NAME)
    if (card.folder / PICTURE_NAME).is_file():
        shutil.copyfile(card.folder / PICTURE_NAME, staged / PICTURE_NAME)
    for name in {member.weights for member in card.members if member.weights is not None}:
        _check_weights_name(card, name)
        if not (card.folder / name).is_file():
            raise ModelError(
                f"{card.folder / name} is missing, but the card of {card.id!r} names it."
            )
        shutil.copyfile(card.folder / name, staged / name)


def _check_weights_name(card: ModelCard, name: str) -> None:
    if Path(name).name != name or "\\" in name:
        raise UnsafeModelError(
            f"The card of {card.id!r} names the weights {name!r}, which lie outside its folder. "
            "The model was not imported."
        )
    if not name.endswith(SAFE_WEIGHTS):
        raise UnsafeModelError(
            f"{card.folder / name} is no {SAFE_WEIGHTS} file. Other formats can run code when they are "
            f"opened; the model was not imported. Ask its authors for {SAFE_WEIGHTS} weights."
        )


def _importers() -> Iterator[Importer]:
    """What the families offer to read released weights with."""
    from medsegai.families import family, family_names  # loads torch

    for name in family_names():
        importer = getattr(family(name), "import_model", None)
        if importer is not None:
            yield importer


def _move_in(card: ModelCard, models_folder: Path, replace: bool) -> ModelCard:
    """Give the staged model its place under its id, in one step."""
    if not ID_PATTERN.fullmatch(card.id):
        raise ModelError(
            f"A model id has letters, digits, dots, dashes and underscores, unlike {card.id!r}. "
            "Give the model another with --id."
        )
    place = models_folder / card.id
    if (BUNDLED_MODELS / card.id).exists():
        raise ModelError(f"{card.id!r} comes with MedSegAI. Give the model another id with --id.")
    if place.exists() and not replace:
        raise ModelError(
            f"There is a model {card.id!r} in {place}. Add --replace to replace it, or --id to keep both."
        )
    old = card.folder.parent / "old"  # goes away with the staging folder
    if place.exists():
        place.rename(old)
    try:
        card.folder.rename(place)
    except OSError:
        if old.exists():
            old.rename(place)
        raise
    return load_card(place)

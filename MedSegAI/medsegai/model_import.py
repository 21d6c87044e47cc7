"""Adding a model to the user's own: checked, converted where needed, and moved in as a whole.

A family that can read weights as others released them offers `import_model(path, destination)`, which
writes a model folder at `destination` and returns its card, or returns None if `path` is nothing it knows.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from medsegai.card import CARD_NAME, ModelCard, load_card
from medsegai.catalogue import BUNDLED_MODELS
from medsegai.errors import InputError, ModelError, OutputError, UnsafeModelError

Importer = Callable[[Path, Path], ModelCard | None]

SAFE_WEIGHTS = ".safetensors"
ID_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""What an id may be: it becomes a folder name and an option on the command line."""


def import_model(path: Path, models_folder: Path, replace: bool = False) -> ModelCard:
    """Add the model at `path` to `models_folder`, under its id.

    Args:
        path: a folder with card.json and safetensors weights, or weights that a family can convert.
        models_folder: made if it does not exist.
        replace: whether a model of the same id in `models_folder` may be replaced.

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
        # One level below a dot folder: the catalogue looks at MODELS/*/card.json and cannot see it.
        with tempfile.TemporaryDirectory(prefix=".import-", dir=models_folder) as staging:
            staged = Path(staging) / "models" / "new"
            staged.parent.mkdir()
            card = _stage(path, staged)
            return _move_in(card, models_folder, replace)
    except OSError as error:
        raise OutputError(f"The model cannot be written to {models_folder}: {error}.") from error


def _stage(path: Path, staged: Path) -> ModelCard:
    """Write the model to `staged` and check it there."""
    if path.name == CARD_NAME or (path / CARD_NAME).is_file():
        _copy_folder(load_card(path), staged)
    elif not any(importer(path, staged) for importer in _importers()):
        raise ModelError(
            f"{path} is no model that MedSegAI knows. A model is a folder with {CARD_NAME} and "
            f"{SAFE_WEIGHTS} weights, or weights as the authors of a family released them."
        )
    card = load_card(staged)
    card.verify()
    return card


def _copy_folder(card: ModelCard, staged: Path) -> None:
    """Copy the card and the weights it names, and nothing else that lies in the folder."""
    staged.mkdir()
    shutil.copyfile(card.folder / CARD_NAME, staged / CARD_NAME)
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
            f"Change it in {CARD_NAME}."
        )
    place = models_folder / card.id
    if (BUNDLED_MODELS / card.id).exists():
        raise ModelError(
            f"{card.id!r} comes with MedSegAI. Give the model another id in {CARD_NAME}."
        )
    if place.exists() and not replace:
        raise ModelError(f"There is a model {card.id!r} in {place}. Add --replace to replace it.")
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

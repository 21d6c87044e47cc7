"""The available models: the bundled ones, the user's own, and any folder that is named by its path."""

from __future__ import annotations

import atexit
import os
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath

from medsegai.errors import ModelError, OutputError
from medsegai.models.card import CARD_NAME, ModelCard, load_card
from medsegai.models.nnunet_plans import card_of_folder, is_nnunet_folder
from medsegai.system.private_folders import PrivateFolder
from medsegai.system.user_folders import own_folder

MODELS_VARIABLE = "MEDSEGAI_MODELS"


def _bundled_models(package: Path) -> Path:
    """The folder of the models that come with MedSegAI.

    Where Python runs the package from a zip archive they are unpacked for the life of this process, because
    weights are read from files.
    """
    folder = package / "bundled"
    archive = next((path for path in package.parents if zipfile.is_zipfile(path)), None)
    if folder.is_dir() or archive is None:
        return folder
    made = PrivateFolder("models")
    atexit.register(made.remove)
    inside = folder.relative_to(archive).as_posix() + "/"
    with zipfile.ZipFile(archive) as file:
        file.extractall(made.path, [name for name in file.namelist() if name.startswith(inside)])
    return made.path / PurePosixPath(inside)


BUNDLED_MODELS = _bundled_models(Path(__file__).parent)


def user_models_folder() -> Path | None:
    """The folder of imported models: MEDSEGAI_MODELS, or a folder in the user's home; None without a home."""
    return own_folder("models", MODELS_VARIABLE)


def own_models_folder() -> Path:
    """Return the folder of imported models.

    Raises:
        OutputError: the user has no home, and `MODELS_VARIABLE` is not set.
    """
    folder = user_models_folder()
    if folder is None:
        raise OutputError(
            f"There is no folder for models of your own, because this user has no home. Name one in the variable "
            f"{MODELS_VARIABLE}."
        )
    return folder


def card_files() -> Iterator[Path]:
    """The card of every installed model: the bundled ones, then the user's, each sorted by name."""
    for root in filter(None, (BUNDLED_MODELS, user_models_folder())):
        yield from sorted(root.glob(f"*/{CARD_NAME}"))


def read_cards(
    files: Iterable[Path] | None = None,
) -> Iterator[tuple[Path, ModelCard | ModelError]]:
    """Every installed card file with its card, or with the error that says why that model cannot be used.

    Of several models with one id the first is used, so that the id of a bundled model is always the bundled model.
    """
    known: dict[str, Path] = {}
    for source in card_files() if files is None else files:
        try:
            card = load_card(source)
            _check_new(card, source, known)
        except ModelError as error:
            yield source, error
        else:
            known[card.id] = source
            yield source, card


def _check_new(card: ModelCard, source: Path, known: Mapping[str, Path]) -> None:
    if card.id in known:
        raise ModelError(
            f"{source} has the id {card.id!r} of {known[card.id]}, which is used. Give it another id: "
            f"medsegai models import {source.parent} --id NAME"
        )


def is_path(name: str) -> bool:
    """Whether a model is named as a path, such as ./brain or a/b, and not by its id."""
    separators = {os.sep, os.altsep or os.sep, "/"}
    return name in (".", "..") or any(separator in name for separator in separators)


def find_card(name: str) -> ModelCard:
    """The model with this id, or in the folder at this path. A broken card of another model does not matter.

    A folder holds a `card.json`, or is what nnU-Net v2 trained; that is used as it stands. It is meant only where
    it is written as a path (`is_path`), so no folder that happens to lie here replaces a model.

    Raises:
        ModelError: there is none, and the message lists those there are, or its card is broken.
    """
    if is_path(name) and os.path.isfile(os.path.join(name, CARD_NAME)):
        return load_card(name)
    if is_path(name) and is_nnunet_folder(Path(name)):
        return card_of_folder(Path(name))
    cards, broken = _installed()
    if name in cards:
        return cards[name]
    raise broken.get(name) or ModelError(_unknown(name, sorted(cards)))


def _installed() -> tuple[dict[str, ModelCard], dict[str, ModelError]]:
    """The usable cards by their ids, and the errors of the others by the names of their folders."""
    cards: dict[str, ModelCard] = {}
    broken: dict[str, ModelError] = {}
    for source, found in read_cards():
        if isinstance(found, ModelError):
            broken.setdefault(source.parent.name, found)
        else:
            cards[found.id] = found
    return cards, broken


def _unknown(name: str, known: list[str]) -> str:
    names = f"Known models: {', '.join(known) or 'none'}."
    if os.path.isdir(name) and not is_path(name):
        return (
            f"There is no model {name!r}. If the folder {name} is meant, write it as a path: "
            f"{os.path.join(os.curdir, name)}. {names}"
        )
    if os.path.isdir(name):
        return (
            f"{name} does not hold a model: neither a {CARD_NAME} nor the dataset.json, plans.json and folds "
            f"of an nnU-Net. {names}"
        )
    if os.path.isfile(name) and is_nnunet_folder(Path(name).parent):
        return f"{name} is one file of an nnU-Net. Name its folder: {Path(name).parent}"
    if os.path.isfile(name):
        return f"{name} is a file. `medsegai models import {name}` may make a model of it. {names}"
    return f"There is no model {name!r}. {names}"

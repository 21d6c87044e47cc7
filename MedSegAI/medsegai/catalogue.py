"""Which models there are: the bundled ones, the user's own, and any folder that is named by its path."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from medsegai.card import CARD_NAME, ModelCard, load_card
from medsegai.errors import ModelError
from medsegai.nnunet_plans import card_of_folder, is_nnunet_folder

BUNDLED_MODELS = Path(__file__).parent / "models"


def user_models_folder() -> Path:
    """Where imported models are kept: MEDSEGAI_MODELS, or a folder of the user's own."""
    chosen = os.environ.get("MEDSEGAI_MODELS")
    return Path(chosen) if chosen else Path.home() / ".medsegai" / "models"


def card_files() -> Iterator[Path]:
    """The card of every model at hand: the bundled ones, then the user's, each sorted by name."""
    for root in (BUNDLED_MODELS, user_models_folder()):
        yield from sorted(root.glob(f"*/{CARD_NAME}"))


def find_cards() -> Iterator[ModelCard]:
    """All models that are at hand.

    Raises:
        ModelError: a card cannot be read; `card_files` lists them all the same.
    """
    return map(load_card, card_files())


def find_card(name: str) -> ModelCard:
    """The model with this id, or in this folder. The broken card of another model does no harm.

    A folder holds a `card.json`, or is what nnU-Net v2 trained; that is used as it stands.

    Raises:
        ModelError: there is none, and the message lists those there are, or its card is broken.
    """
    folder = Path(name)
    if (folder / CARD_NAME).is_file():
        return load_card(folder)
    if is_nnunet_folder(folder):
        return card_of_folder(folder)
    cards: dict[str, ModelCard] = {}
    broken: dict[str, ModelError] = {}
    for source in card_files():
        try:
            card = load_card(source)
            cards[card.id] = card
        except ModelError as error:
            broken[source.parent.name] = error
    if name in broken and name not in cards:
        raise broken[name]
    if name not in cards:
        raise ModelError(_unknown(name, sorted(cards)))
    return cards[name]


def _unknown(name: str, known: list[str]) -> str:
    names = f"Known models: {', '.join(known) or 'none'}."
    if Path(name).is_dir():
        return (
            f"{name} holds no model: neither a {CARD_NAME} nor the dataset.json, plans.json and folds "
            f"of an nnU-Net. {names}"
        )
    if Path(name).is_file() and is_nnunet_folder(Path(name).parent):
        return f"{name} is one file of an nnU-Net. Name its folder: {Path(name).parent}"
    if Path(name).is_file():
        return f"{name} is a file. `medsegai models import {name}` may make a model of it. {names}"
    return f"There is no model {name!r}. {names}"

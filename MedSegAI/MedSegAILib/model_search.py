"""Search and description of models, without Qt, MRML and torch."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from medsegai.errors import ModelError
from medsegai.labels import without_side
from medsegai.models import catalogue
from medsegai.models.card import PICTURE_NAME, ModelCard
from medsegai.models.catalogue import BUNDLED_MODELS
from MedSegAILib.translation import tr as _

if TYPE_CHECKING:
    from medsegai.models.card import Channel
    from medsegai.models.index import ListedModel


@dataclass(frozen=True)
class Query:
    """The user's search; "" matches anything."""

    text: str = ""
    modality: str = ""
    structure: str = ""


def read_cards(files: Iterable[Path] | None = None) -> tuple[list[ModelCard], list[str]]:
    """Return the readable cards, and the errors of the others."""
    cards, problems = [], []
    for _source, found in catalogue.read_cards(files):
        if isinstance(found, ModelError):
            problems.append(str(found))
        else:
            cards.append(found)
    return cards, problems


def modalities(cards: Iterable[ModelCard]) -> list[str]:
    """Return the modalities of these models, each once, sorted."""
    return sorted({channel.modality for card in cards for channel in card.channels})


def structures(cards: Iterable[ModelCard]) -> list[str]:
    """Return the structures of the models, each once for both sides."""
    return sorted({name for card in cards for name in _structures(card)}, key=str.lower)


def found(cards: Iterable[ModelCard], query: Query) -> list[ModelCard]:
    """Return the matching models, whose cards contain every word."""
    return [card for card in cards if _fits(card, query)]


def _fits(card: ModelCard, query: Query) -> bool:
    if query.modality and query.modality not in modalities([card]):
        return False
    if query.structure and query.structure not in _structures(card):
        return False
    told = (
        card.id,
        card.name,
        card.family,
        card.description,
        card.intended_use,
        *modalities([card]),
    )
    text = " ".join((*told, *(label.name for label in card.labels))).lower()
    return all(word in text for word in query.text.lower().split())


def found_listed(listed: Iterable[ListedModel], query: Query) -> list[ListedModel]:
    """Return the matching models of an index."""
    words = query.text.lower().split()
    return [
        item
        for item in listed
        if (not query.modality or query.modality in item.modalities)
        and (not query.structure or query.structure in map(without_side, item.structures))
        and all(word in _told_of(item) for word in words)
    ]


def _told_of(item: ListedModel) -> str:
    told = (item.id, item.name, item.description, *item.modalities, *item.structures)
    return " ".join(told).lower()


def describe_listed(item: ListedModel) -> str:
    """Return a model of an index as simple HTML. Its texts come from the host of the index."""
    facts = [
        (_("Input"), ", ".join(item.modalities)),
        (_("Structures"), ", ".join(item.structures)),
        (_("Licence"), item.licence),
        (_("Version"), item.version),
        (_("Loaded from"), item.url.partition("?")[0]),
        (_("SHA-256"), item.sha256),
    ]
    parts = [f"<h3>{html.escape(item.name or item.id)}</h3>"]
    parts += [f"<p>{html.escape(item.description)}</p>"] if item.description else []
    parts += [f"<p><b>{html.escape(k)}</b><br>{html.escape(v)}</p>" for k, v in facts if v]
    return "".join(parts)


def _structures(card: ModelCard) -> set[str]:
    return {without_side(label.name) for label in card.labels}


def is_bundled(card: ModelCard) -> bool:
    """Return whether the model comes with the extension."""
    return card.folder.is_relative_to(BUNDLED_MODELS)


def picture(card: ModelCard) -> Path | None:
    """Return the file with the picture of the model; None if it does not have one."""
    path = card.folder / PICTURE_NAME
    return path if path.is_file() else None


def describe(card: ModelCard, expectation: str) -> str:
    """Return the card as simple HTML.

    Args:
        expectation: time and memory on this device, in words; "" if unknown.
    """
    image = picture(card)
    parts = [f"<h3>{html.escape(card.name)}</h3>"]
    parts += [f'<p><img src="{image.as_uri()}" width="300"></p>'] if image else []
    parts += [f"<p>{html.escape(card.description)}</p>"] if card.description else []
    facts = _facts(card, expectation)
    parts += [f"<p><b>{html.escape(k)}</b><br>{html.escape(v)}</p>" for k, v in facts if v]
    return "".join(parts)


def _facts(card: ModelCard, expectation: str) -> list[tuple[str, str]]:
    return [
        (_("Intended use"), card.intended_use),
        (_("Input"), ", ".join(_channel(channel) for channel in card.channels)),
        (_("Structures"), ", ".join(label.name for label in card.labels)),
        (_("Networks"), ", ".join(member.name for member in card.members)),
        (_("Time and memory"), expectation),
        (_("Licence"), card.licence),
        (_("Plausible volumes"), card.reference.source if card.reference else ""),
        (_("Origin"), card.origin),
        (_("Please cite"), card.citation),
        (_("Version"), f"{card.version} ({card.family})"),
        (_("Folder"), str(card.folder)),
    ]


def _channel(channel: Channel) -> str:
    text = (
        channel.name if channel.name == channel.modality else f"{channel.name} ({channel.modality})"
    )
    return text if channel.required else _("{channel} (optional)").format(channel=text)


def titled(cards: Sequence[ModelCard]) -> dict[str, ModelCard]:
    """Return models by their titles: the name, with the id or the folder if several have the same name."""
    names = Counter(card.name for card in cards)
    titles: dict[str, ModelCard] = {}
    for card in cards:
        title = card.name if names[card.name] == 1 else f"{card.name} ({card.id})"
        titles[f"{card.name} ({card.folder})" if title in titles else title] = card
    return titles


def usable_together(card: ModelCard, cards: Sequence[ModelCard]) -> list[ModelCard]:
    """Return the other models that take the same images."""
    wanted = [channel.modality for channel in card.channels]
    return [
        other
        for other in cards
        if other is not card and [channel.modality for channel in other.channels] == wanted
    ]

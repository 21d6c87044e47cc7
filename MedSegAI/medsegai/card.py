"""The model card: everything known about one model stands here and nowhere else.

A card is a folder with `card.json` and the weights it names. Reading cards imports no torch, so a
catalogue of models opens at once, also inside Slicer's own process.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import Any

from medsegai.errors import ModelError
from medsegai.labels import Label

CARD_NAME = "card.json"
BUNDLED_MODELS = Path(__file__).parent / "models"


@dataclass(frozen=True)
class Channel:
    """One input image of the model."""

    name: str
    modality: str
    required: bool = True


@dataclass(frozen=True)
class MemberCard:
    """One network of a model.

    Attributes:
        name: unique in its card, such as a view or a fold.
        weights: file name in the card's folder; None for members that need no file.
        sha256: of that file, as hexadecimal digits.
        weight: share in the fusion.
        classes: for each output channel the label values it feeds; () is background. A channel that
            cannot tell left from right feeds both sides.
        settings: what only this member's family understands.
    """

    name: str
    weights: str | None = None
    sha256: str | None = None
    weight: float = 1.0
    classes: tuple[tuple[int, ...], ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ModelCard:
    """A model: what it is, what it takes, what it gives, and what it is not for."""

    id: str
    name: str
    family: str
    version: str
    channels: tuple[Channel, ...]
    labels: tuple[Label, ...]
    members: tuple[MemberCard, ...]
    spacing_mm: tuple[float, float, float]
    description: str = ""
    intended_use: str = ""
    licence: str = ""
    origin: str = ""
    citation: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    suggested_refinements: tuple[Mapping[str, Any], ...] = ()
    memory_mb: float = 0.0
    performance: Mapping[str, Any] = field(default_factory=dict)
    folder: Path = Path()

    def __post_init__(self) -> None:
        for name in ("id", "name", "family", "version"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name):
                raise ModelError(f"Model {self.id!r}: {name} must be text, and not empty.")
        _no_doubles(self, "label value", [label.value for label in self.labels])
        _no_doubles(self, "label name", [label.name for label in self.labels])
        _no_doubles(self, "member", [member.name for member in self.members])
        if not self.members or not self.labels or not self.channels:
            raise ModelError(
                f"Model {self.id!r} needs at least one channel, one label and one member."
            )
        known = {label.value for label in self.labels}
        for member in self.members:
            unknown = {value for feeds in member.classes for value in feeds} - known
            if unknown:
                raise ModelError(
                    f"Member {member.name!r} of model {self.id!r} feeds unknown labels {sorted(unknown)}."
                )

    @property
    def label_values(self) -> tuple[int, ...]:
        return tuple(label.value for label in self.labels)

    def member(self, name: str) -> MemberCard:
        for member in self.members:
            if member.name == name:
                return member
        names = ", ".join(member.name for member in self.members)
        raise ModelError(f"Model {self.id!r} has no member {name!r}; it has {names}.")

    def weights_path(self, member: MemberCard) -> Path:
        if member.weights is None:
            raise ModelError(f"Member {member.name!r} of model {self.id!r} names no weights file.")
        return self.folder / member.weights

    def verify(self) -> None:
        """Check that every weights file is there and has the hash that the card gives.

        Raises:
            ModelError: a file is missing or differs.
        """
        for member in self.members:
            if member.weights is not None:
                self.verify_member(member)

    def verify_member(self, member: MemberCard) -> None:
        path = self.weights_path(member)
        if not path.is_file():
            raise ModelError(f"{path} is missing: import model {self.id!r} again.")
        if member.sha256 is None:
            raise ModelError(
                f"The card of model {self.id!r} gives no SHA-256 for {path.name}: import it again."
            )
        if file_sha256(path) != member.sha256:
            raise ModelError(
                f"{path} is not the file its card describes (SHA-256 differs): it was damaged or replaced. "
                f"Import model {self.id!r} again."
            )

    def to_dict(self) -> dict[str, Any]:
        """The card as JSON values; `load_card` reads them back."""
        data = {
            item.name: getattr(self, item.name) for item in fields(self) if item.name != "folder"
        }
        data["channels"] = [vars(channel).copy() for channel in self.channels]
        data["labels"] = [label.to_dict() for label in self.labels]
        data["members"] = [
            vars(member) | {"classes": [list(c) for c in member.classes]} for member in self.members
        ]
        data["spacing_mm"] = list(self.spacing_mm)
        data["suggested_refinements"] = [dict(item) for item in self.suggested_refinements]
        return data


def card_from_dict(data: Mapping[str, Any], folder: Path = Path()) -> ModelCard:
    """A card from the values of a `card.json`.

    Raises:
        ModelError: a key is unknown or missing, or a value has the wrong form.
    """
    source = folder / CARD_NAME
    try:
        return _card(data, folder)
    except ModelError as error:
        raise ModelError(f"{source}: {error}") from error
    except (TypeError, ValueError) as error:
        raise ModelError(f"{source} is no valid model card: {error}.") from error


def _card(data: Mapping[str, Any], folder: Path) -> ModelCard:
    values = _checked(data, {item.name for item in fields(ModelCard)} - {"folder"}, ModelCard)
    values["channels"] = tuple(
        Channel(**_checked(item, None, Channel)) for item in data["channels"]
    )
    values["labels"] = tuple(Label.from_dict(item) for item in data["labels"])
    values["members"] = tuple(_member(item) for item in data["members"])
    first, second, third = (float(value) for value in data["spacing_mm"])
    values["spacing_mm"] = (first, second, third)
    values["suggested_refinements"] = tuple(data.get("suggested_refinements", ()))
    return ModelCard(**values, folder=folder)


def load_card(path: str | os.PathLike[str]) -> ModelCard:
    """Read a model folder, or the `card.json` in it.

    Raises:
        ModelError: there is no card, it is not JSON, or it has unknown or missing keys.
    """
    folder = Path(path)
    folder = folder.parent if folder.name == CARD_NAME else folder
    source = folder / CARD_NAME
    try:
        data = json.loads(source.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(
            f"{source} does not exist. A model is a folder with a {CARD_NAME}."
        ) from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ModelError(f"{source} cannot be read as JSON: {error}.") from error
    if not isinstance(data, dict):
        raise ModelError(f"{source} must hold a JSON object.")
    return card_from_dict(data, folder)


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

    Raises:
        ModelError: there is none, and the message lists those there are, or its card is broken.
    """
    if (Path(name) / CARD_NAME).is_file():
        return load_card(name)
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
        raise ModelError(
            f"There is no model {name!r}. Known models: {', '.join(sorted(cards)) or 'none'}."
        )
    return cards[name]


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _member(data: Mapping[str, Any]) -> MemberCard:
    values = _checked(data, None, MemberCard)
    values["classes"] = tuple(
        tuple(int(value) for value in feeds) for feeds in data.get("classes", ())
    )
    return MemberCard(**values)


def _checked(data: Any, known: set[str] | None, kind: type) -> dict[str, Any]:
    if not isinstance(data, Mapping):
        raise ModelError(f"{kind.__name__} must be an object, not {data!r}.")
    unknown = set(data) - (known or {item.name for item in fields(kind)})
    if unknown:
        raise ModelError(f"unknown keys {', '.join(sorted(unknown))} in {kind.__name__}.")
    missing = {item.name for item in fields(kind) if _is_required(item)} - set(data)
    if missing:
        raise ModelError(f"missing keys {', '.join(sorted(missing))} in {kind.__name__}.")
    return dict(data)


def _is_required(item: Field[Any]) -> bool:
    return item.default is MISSING and item.default_factory is MISSING


def _no_doubles(card: ModelCard, what: str, values: list[Any]) -> None:
    doubles = {value for value in values if values.count(value) > 1}
    if doubles:
        raise ModelError(f"Model {card.id!r} has the {what} {sorted(doubles)[0]!r} twice.")

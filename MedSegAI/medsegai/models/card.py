"""The model card, which contains everything that is known about a model.

A model is a folder with `card.json` and the weights that it names. Reading cards does not import torch, so a
catalogue of models opens at once, also inside Slicer's own process. The module `catalogue` lists the models.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from medsegai.errors import ModelError
from medsegai.labels import Label
from medsegai.models.json_fields import (
    NOT_IN_JSON,
    UNLESS_DEFAULT,
    from_json,
    number,
    read_json,
    shortened,
    to_json,
)
from medsegai.models.quality import Calibration, Reference
from medsegai.models.refinement import Refinement

CARD_NAME = "card.json"

PICTURE_NAME = "picture.png"
"""A picture of what the model does, beside its card; it may be missing."""

LARGEST_VALUE = 2**16 - 1
"""The largest label value, because label maps have 16 bits per value."""

LONGEST_NAME = 255
"""The largest number of characters of a name, as in a file name."""

OBJECTS = "instances"
"""The key of `settings` that names the labels of a model which learned to separate objects."""

FAMILIES_WITH_EXTRAS = ("monai",)
"""Families whose networks need further packages; the extra has the name of the family."""

SPACINGS_MM = (1e-5, 1000.0)
"""The range of allowed voxel spacings in mm, from optical microscopy to a whole body in one slice."""

SIDES_MM = (0.01, 10_000.0)
"""The range of allowed lengths of the sides of a scan in mm."""


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
        sha256: the SHA-256 of that file, as hexadecimal digits.
        weight: the weight in the fusion.
        classes: for each output channel its target labels; () is the background. A channel that
            cannot distinguish left from right has those of both sides.
        settings: settings that only the family of this member understands.
        family: the family of the member, if it is not that of the card.
    """

    name: str
    weights: str | None = None
    sha256: str | None = None
    weight: float = 1.0
    classes: tuple[tuple[int, ...], ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    family: str = field(default="", metadata=UNLESS_DEFAULT)

    def answers_to(self, name: str) -> bool:
        """Whether `name` is its name, the configuration or the fold in its name, or its family."""
        return name in (self.name, *self.name.split("/"), *filter(None, [self.family]))


@dataclass(frozen=True)
class ModelCard:
    """A model: what it is, its input, its output, and what it is not intended for.

    Attributes:
        spacing_mm: of the voxels that the members work on, along (i, j, k).
        folder: where the weights are; not in the file.
        in_place: whether the card was made from the folder of another program, such as nnU-Net. There is
            no file then that could say which hashes the weights should have. Not in the file.
        calibration: its temperature and the agreement of its members, measured on held-out cases, if known.
        reference: which volumes are plausible, if known.
        field_of_view_mm: the sides of a usual scan, shortest first, if known.
        sample: name of the scan in Slicer's module Sample Data that shows what the model does; "" for none.
        intracranial: values of the labels that together fill the skull; () where not all of it has labels.
        dimensions: 2 for a model of single images, such as radiographs and photographs.
        contrast_member: name of the member that decides whether a scan is segmented as it is or with inverted
            intensities; "" for as it is.
    """

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
    suggested_refinements: tuple[Refinement, ...] = ()
    memory_mb: float = 0.0
    performance: Mapping[str, Any] = field(default_factory=dict)
    calibration: Calibration | None = field(default=None, metadata=UNLESS_DEFAULT)
    reference: Reference | None = field(default=None, metadata=UNLESS_DEFAULT)
    field_of_view_mm: tuple[float, float, float] | None = field(
        default=None, metadata=UNLESS_DEFAULT
    )
    sample: str = field(default="", metadata=UNLESS_DEFAULT)
    intracranial: tuple[int, ...] = field(default=(), metadata=UNLESS_DEFAULT)
    dimensions: int = field(default=3, metadata=UNLESS_DEFAULT)
    contrast_member: str = field(default="", metadata=UNLESS_DEFAULT)
    folder: Path = field(default=Path(), metadata=NOT_IN_JSON)
    in_place: bool = field(default=False, metadata=NOT_IN_JSON)

    def __post_init__(self) -> None:
        for name in ("id", "name", "family", "version"):
            _check_line(f"Model {self.id!r}: {name}", getattr(self, name))
        _no_doubles(self, "label value", [label.value for label in self.labels])
        _no_doubles(self, "label name", [label.name for label in self.labels])
        _no_doubles(self, "member", [member.name for member in self.members])
        if not self.members or not self.labels or not self.channels:
            raise ModelError(
                f"Model {self.id!r} needs at least one channel, one label and one member."
            )
        known = {label.value for label in self.labels}
        self._check_largest(max(known))
        self._check_sizes()
        if self.dimensions not in (2, 3):
            raise ModelError(
                f"Model {self.id!r}: dimensions must be 2 or 3, not {self.dimensions}."
            )
        self._check_members(known)
        self._check_quality(known)
        _ = self.object_labels

    def _check_largest(self, value: int) -> None:
        if value > LARGEST_VALUE:
            raise ModelError(
                f"Model {self.id!r} has the label {value}; the largest value is {LARGEST_VALUE}."
            )

    def _check_sizes(self) -> None:
        number(self.memory_mb, "memory_mb", low=0)
        for length in self.spacing_mm:
            number(length, "spacing_mm", *SPACINGS_MM)
        sides = self.field_of_view_mm or ()
        for side in sides:
            number(side, "field_of_view_mm", *SIDES_MM)
        if sides != tuple(sorted(sides)):
            raise ModelError("field_of_view_mm must be three sides above 0, the shortest first.")

    def _check_members(self, known: set[int]) -> None:
        """Check that members have weight, their names and files are valid names, and their targets are labels."""
        for name in (item.name for items in (self.channels, self.members) for item in items):
            _check_line(f"Model {self.id!r}: the name of a channel or member", name)
        for member in self.members:
            if member.weights is not None:
                _check_line(f"Member {member.name!r}: weights", Path(member.weights).name)
            number(member.weight, f"Member {member.name!r}: weight", low=0)
            unknown = {value for feeds in member.classes for value in feeds} - known
            if unknown:
                raise ModelError(
                    f"Member {member.name!r} of model {self.id!r} contributes to unknown labels {sorted(unknown)}."
                )
        if not any(member.weight for member in self.members):
            raise ModelError(f"No member of model {self.id!r} has a weight above 0.")

    def _check_quality(self, known: set[int]) -> None:
        """Check that what the card says about quality concerns its own labels and members."""
        spoken_of = {
            "calibration": set(self.calibration.structures) if self.calibration else set(),
            "reference": self.reference.label_values if self.reference else set(),
            "intracranial volume": set(self.intracranial),
        }
        for what, values in spoken_of.items():
            if values - known:
                raise ModelError(
                    f"The {what} of model {self.id!r} names unknown labels {sorted(values - known)}."
                )

    @property
    def label_values(self) -> tuple[int, ...]:
        return tuple(label.value for label in self.labels)

    @property
    def takes_one_picture(self) -> bool:
        """Whether its channels are those of a single image, which is grey or in red, green and blue."""
        return self.dimensions == 2 and len(self.channels) in (1, 3)

    @property
    def object_labels(self) -> tuple[int, int] | None:
        """The labels of the inside and of the border of objects, if the model learned to separate objects.

        Raises:
            ModelError: `settings` name others than two labels of the model.
        """
        named = self.settings.get(OBJECTS)
        if named is None:
            return None
        inside, border = (
            (named.get("inside"), named.get("border")) if isinstance(named, Mapping) else (0, 0)
        )
        known = self.label_values
        if inside not in known or border not in known or inside == border:
            raise ModelError(
                f"Model {self.id!r}: {OBJECTS} must name two of its labels, as inside and border."
            )
        return int(inside), int(border)

    def families(self) -> tuple[str, ...]:
        """The families of its members, each once."""
        return tuple(dict.fromkeys(member.family or self.family for member in self.members))

    def extras(self) -> tuple[str, ...]:
        """What of `pip install medsegai[...]` its families need, beyond what every network needs."""
        return tuple(name for name in self.families() if name in FAMILIES_WITH_EXTRAS)

    def of_family(self, name: str) -> ModelCard:
        """The part of the card that belongs to one of its families."""
        own = tuple(m for m in self.members if (m.family or self.family) == name)
        return replace(self, family=name, members=own, calibration=None, reference=None)

    def member(self, name: str) -> MemberCard:
        for member in self.members:
            if member.name == name:
                return member
        names = ", ".join(member.name for member in self.members)
        raise ModelError(f"Model {self.id!r} has no member {name!r}; it has {names}.")

    def chosen_members(self, names: Sequence[str]) -> tuple[MemberCard, ...]:
        """The members with these names, in the card's order; without names those with a weight.

        The members of a model with several configurations are named configuration/fold; either half names all
        that share it. In a model of several families a family names all of its members.

        Raises:
            ModelError: no member has one of the names.
        """
        if not names:
            return tuple(member for member in self.members if member.weight > 0)
        for name in names:
            if not any(member.answers_to(name) for member in self.members):
                self.member(name)
        groups = {part for m in self.members for part in (m.family, *m.name.split("/")[:-1])}
        wide = [name for name in names if name in groups]
        narrow = [name for name in names if name not in groups]
        return tuple(
            member
            for member in self.members
            if (
                any(map(member.answers_to, wide))
                if wide
                else member.weight > 0 or member.name in names
            )
            and (not narrow or any(map(member.answers_to, narrow)))
        )

    def weights_path(self, member: MemberCard) -> Path:
        if member.weights is None:
            raise ModelError(
                f"Member {member.name!r} of model {self.id!r} does not name a weights file."
            )
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
        if not os.path.isfile(path):  # Path.is_file raises an error where a name is too long
            raise ModelError(f"{path} is missing: import model {self.id!r} again.")
        if self.in_place:
            return
        if member.sha256 is None:
            raise ModelError(
                f"The card of model {self.id!r} does not give a SHA-256 for {path.name}: import it again."
            )
        if _readable_sha256(path) != member.sha256:
            raise ModelError(
                f"{path} is not the file its card describes (SHA-256 differs): it was damaged or replaced. "
                f"Import model {self.id!r} again."
            )

    def weights_sha256(self, member: MemberCard) -> str | None:
        """Hash of the member's weights: as the card gives it, else of the file. None without weights.

        Raises:
            ModelError: the file cannot be read.
        """
        if member.sha256 is not None or member.weights is None:
            return member.sha256
        path = self.weights_path(member)
        try:
            state = path.stat()
            return _known_sha256(path, state.st_size, state.st_mtime_ns)
        except OSError as error:
            raise ModelError(f"{path} cannot be read: {error}.") from error

    def fingerprint(self) -> str:
        """Hash that changes with the card, and with weights that the card gives no hash for."""
        digest = hashlib.sha256(repr(self).encode())
        for member in self.members:
            if member.sha256 is None and member.weights is not None:
                with contextlib.suppress(OSError):
                    state = self.weights_path(member).stat()
                    digest.update(f"{state.st_size} {state.st_mtime_ns}".encode())
        return digest.hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """The card as JSON values; `card_from_dict` reads them back."""
        values: dict[str, Any] = to_json(self, {Refinement: Refinement.to_dict})
        return values


def card_from_dict(data: Mapping[str, Any], folder: Path = Path()) -> ModelCard:
    """A card from the values of a `card.json`.

    Raises:
        ModelError: a key is unknown or missing, or a value has the wrong form.
    """
    source = folder / CARD_NAME
    try:
        return _card(data, folder)
    except ModelError as error:
        raise ModelError(f"{source}: {shortened(error)}") from error
    except (TypeError, ValueError) as error:
        raise ModelError(f"{source} is not a valid model card: {error}.") from error


def _card(data: Mapping[str, Any], folder: Path) -> ModelCard:
    return replace(
        from_json(ModelCard, data, hooks={Refinement: Refinement.from_dict}), folder=folder
    )


def load_card(path: str | os.PathLike[str]) -> ModelCard:
    """Read a model folder, or the `card.json` in it.

    The folder of the card is absolute, so that it is found again from another working directory,
    and is taken for a path wherever a name may also be an id.

    Raises:
        ModelError: there is no card, it is not JSON, or it has unknown or missing keys.
    """
    folder = Path(path)
    folder = folder.parent if folder.name == CARD_NAME else folder
    source = folder / CARD_NAME
    try:
        data = read_json(source)
    except FileNotFoundError:
        raise ModelError(
            f"{source} does not exist. A model is a folder with a {CARD_NAME}."
        ) from None
    return card_from_dict(data, folder.absolute())


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _readable_sha256(path: Path) -> str:
    try:
        return file_sha256(path)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error}.") from error


@functools.lru_cache(maxsize=256)
def _known_sha256(path: Path, _size: int, _mtime_ns: int) -> str:
    """Checkpoints are large: the same file is read once."""
    return file_sha256(path)


def _check_line(what: str, text: object) -> None:
    """Refuse names that are empty, or would break a table, a command line or a file name."""
    if not isinstance(text, str) or not text.strip() or not text.isprintable():
        raise ModelError(f"{what} must be text of one line, and not empty.")
    if len(text) > LONGEST_NAME:
        raise ModelError(f"{what} has {len(text)} letters, and {LONGEST_NAME} are allowed.")


def _no_doubles(card: ModelCard, what: str, values: list[Any]) -> None:
    doubles = {value for value in values if values.count(value) > 1}
    if doubles:
        raise ModelError(f"Model {card.id!r} has the {what} {sorted(doubles)[0]!r} twice.")

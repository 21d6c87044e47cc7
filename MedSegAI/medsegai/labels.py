"""What a voxel value means: name, colour and clinical code of a structure."""

from __future__ import annotations

import colorsys
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from medsegai.errors import ModelError
from medsegai.models.json_fields import UNLESS_DEFAULT, shown

SLICER_CONTEXT = "Segmentation category and type - 3D Slicer General Anatomy list"

SIDES = {"7771000": "left", "24028007": "right"}
"""SNOMED CT codes of the sides, as modifiers of a terminology."""

_SIDE_WORD = re.compile(
    r"(?i)(?<![a-z])(left|right|lh|rh)(?![a-z])|^(L|R)(?=[ _.-])|(?<=[ _.-])(L|R)$"
)

Code = tuple[str, str, str]
"""A coded concept: coding scheme, code value, meaning. For example ("SCT", "10200004", "Liver")."""


@dataclass(frozen=True)
class Terminology:
    """DICOM codes of a segment: category, type and, where there is one, the type's modifier (side)."""

    category: Code
    type: Code
    modifier: Code | None = field(default=None, metadata=UNLESS_DEFAULT)

    def __post_init__(self) -> None:
        for code in filter(None, (self.category, self.type, self.modifier)):
            text = "".join(code)
            if not text.isprintable() or set("^~|") & set(text):
                raise ModelError(f"A code is one line without ^, ~ and |, not {shown(code)}.")

    def to_slicer(self) -> str:
        """Slicer's segment tag: context~category~type~modifier~anatomic context~region~modifier."""
        parts = [self.category, self.type, self.modifier or ("", "", "")]
        joined = "~".join("^".join(part) for part in parts)
        return f"{SLICER_CONTEXT}~{joined}~Anatomic codes - DICOM master list~^^~^^"

    @classmethod
    def from_slicer(cls, text: str) -> Terminology | None:
        """The codes of such a tag; None where category or type are missing."""
        parts = [part.split("^") for part in text.split("~")[1:4]]
        if (
            len(parts) < 3
            or any(len(part) != 3 for part in parts)
            or not (parts[0][1] and parts[1][1])
        ):
            return None
        category, kind, modifier = ((scheme, value, meaning) for scheme, value, meaning in parts)
        return cls(category, kind, modifier if modifier[1] else None)


@dataclass(frozen=True)
class Label:
    """One structure: voxel `value` (1 or more), `name`, `color` as 8-bit RGB, and its codes.

    Attributes:
        corrected: whether people correct it. Where they do not, as with the fluid around a brain, nobody is led to
            the places where the networks were uncertain about it.
        opacity_3d: how opaque its surface is in 3D views, from 0 to 1. With 0 it is not shown there at first, as
            the fluid around a brain, which would hide the brain.
    """

    value: int
    name: str
    color: tuple[int, int, int]
    terminology: Terminology | None = field(default=None, metadata=UNLESS_DEFAULT)
    corrected: bool = field(default=True, metadata=UNLESS_DEFAULT)
    opacity_3d: float = field(default=1.0, metadata=UNLESS_DEFAULT)

    def __post_init__(self) -> None:
        if self.value < 1:
            raise ModelError(
                f"Label {self.name!r} has value {self.value}; labels start at 1, 0 is background."
            )
        if not self.name.strip() or not self.name.isprintable():
            raise ModelError(f"Label {self.value} needs a name of one line, not {self.name!r}.")
        if len(self.color) != 3 or not all(0 <= part <= 255 for part in self.color):
            raise ModelError(
                f"Label {self.name!r} needs a colour of three numbers from 0 to 255, not {self.color}."
            )
        if not 0 <= self.opacity_3d <= 1:
            raise ModelError(
                f"Label {self.name!r} needs an `opacity_3d` from 0 to 1, not {self.opacity_3d}."
            )


GOLDEN_TURN = 0.618034
"""Hues a golden section apart differ well for any number of labels."""


def made_color(value: int) -> tuple[int, int, int]:
    """The colour of a label that brings none, always the same for a value."""
    red, green, blue = colorsys.hsv_to_rgb(value * GOLDEN_TURN % 1.0, 0.6, 0.9)
    return round(255 * red), round(255 * green), round(255 * blue)


def without_side(name: str) -> str:
    """The name of a structure without its word for the side: of "Left hippocampus", "Hippocampus"."""
    rest = " ".join(_SIDE_WORD.sub(" ", name, count=1).split()).strip(" _-.,")
    return rest[:1].upper() + rest[1:] if rest else name


def counterparts(labels: Sequence[Label]) -> list[tuple[int, int]]:
    """Positions (left, right) of the structures that are one structure on both sides of the body.

    By name, less its word for the side; those without a partner by their codes. What several
    structures share pairs none of them.
    """
    pairs: list[tuple[int, int]] = []
    paired: set[int] = set()
    for key_of in (_name_key, _code_key):
        groups: dict[Any, dict[str, list[int]]] = {}
        for number, label in enumerate(labels):
            side, key = _side(label), key_of(label)
            if side and key and number not in paired:
                groups.setdefault(key, {"left": [], "right": []})[side].append(number)
        for found in groups.values():
            if len(found["left"]) == len(found["right"]) == 1:
                pairs.append((found["left"][0], found["right"][0]))
                paired.update(pairs[-1])
    return sorted(pairs)


def _side(label: Label) -> str | None:
    """`left`, `right` or neither, by the modifier of the codes and, without one, by the name."""
    modifier = label.terminology.modifier if label.terminology else None
    if modifier is not None and modifier[1] in SIDES:
        return SIDES[modifier[1]]
    word = _SIDE_WORD.search(label.name)
    return None if word is None else "left" if word.group()[0] in "lL" else "right"


def _name_key(label: Label) -> str:
    """The name without its side; empty if it names none."""
    rest, count = _SIDE_WORD.subn(" ", label.name, count=1)
    return " ".join(rest.replace("_", " ").split()).casefold() if count else ""


def _code_key(label: Label) -> Any:
    codes = label.terminology
    return None if codes is None else (codes.category[:2], codes.type[:2])

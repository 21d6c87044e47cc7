"""Components of a configuration: entries with a `_target_`, of which only known ones are looked at."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from medsegai.errors import ModelError
from medsegai.families.monai.configuration import SEPARATOR, Configuration
from medsegai.models.json_fields import shown

TARGET = "_target_"

ASIDE = frozenset({TARGET, "_desc_", "_disabled_", "_requires_", "_mode_"})
"""What MONAI itself reads of a component; its requirements would be run for nothing."""

MOST_COMPONENTS = 200

BOOLEANS = {"True": True, "False": True}
"""Texts in place of truth values, as some bundles have them. Python takes any text that is not empty for true."""


@dataclass(frozen=True)
class Component:
    """One entry with a `_target_`.

    Attributes:
        place: name of the entry, for messages.
        target: what it is to be made of, as written, such as `monai.transforms.Spacingd`.
    """

    configuration: Configuration
    place: str
    target: str

    @classmethod
    def at(cls, configuration: Configuration, name: str) -> Component:
        """Raises ModelError: there is no component."""
        place = configuration.followed(name)
        raw = configuration.raw(place)
        target = raw.get(TARGET) if isinstance(raw, dict) else None
        if not isinstance(target, str):
            raise configuration.wrong(
                name, f"a component with a {TARGET} belongs here, not {shown(raw)}"
            )
        if target[:1] in "$@%":
            raise configuration.refused(
                f"{place}{SEPARATOR}{TARGET}",
                f"{shown(target)} does not say which class it is",
                "write the name of a class of MONAI there",
            )
        return cls(configuration, place, target)

    @property
    def disabled(self) -> bool:
        """Whether MONAI would leave it out."""
        place = f"{self.place}{SEPARATOR}_disabled_"
        return place in self.configuration and bool(self.configuration.value(place))

    def names(self) -> set[str]:
        """The names of its arguments."""
        return set(self.configuration.raw(self.place)) - ASIDE

    def only(self, known: str, ignored: str = "") -> None:
        """Refuse arguments that are neither known nor of no effect here; both are names apart by blanks."""
        unknown = self.names() - set(known.split()) - set(ignored.split())
        if unknown:
            raise self.wrong(
                sorted(unknown)[0], f"{self.target} has no such argument that is known"
            )

    def value(self, argument: str, default: Any = None) -> Any:
        """An argument with its references followed."""
        if argument not in self.names():
            return default
        return self.configuration.value(f"{self.place}{SEPARATOR}{argument}")

    def flag(self, argument: str) -> bool:
        """An argument that is true or false, and false without it."""
        value = self.value(argument, False)
        if isinstance(value, list) and value and all(item == value[0] for item in value):
            value = value[0]  # one for each key
        value = BOOLEANS.get(value, value) if isinstance(value, str) else value
        if value is None or isinstance(value, bool):
            return bool(value)
        raise self.wrong(argument, f"true or false belongs here, not {shown(value)}")

    def alike(self, argument: str, default: Any = None) -> Any:
        """An argument that may be given once for each key, if it is the same for all."""
        value = self.value(argument, default)
        if isinstance(value, list):
            if not value or any(item != value[0] for item in value):
                raise self.wrong(
                    argument, f"one value for all keys belongs here, not {shown(value)}"
                )
            return value[0]
        return value

    def three(self, argument: str, default: Any = None) -> Any:
        """An argument with a number for each axis, which MONAI lets be one number for all."""
        value = self.value(argument, default)
        if not isinstance(value, list):
            return None if value is None else [value] * 3
        return [*value, *value[-1:] * 3][:3]

    def keys(self) -> list[str]:
        """The entries of a case that a transform changes."""
        keys = self.value("keys", [])
        keys = keys if isinstance(keys, list) else [keys]
        if not keys or not all(isinstance(key, str) for key in keys):
            raise self.wrong("keys", f"names of images belong here, not {shown(keys)}")
        return keys

    def wrong(self, argument: str, why: str) -> ModelError:
        return self.configuration.wrong(f"{self.place}{SEPARATOR}{argument}", why)

    def unknown(self, what: str, remedy: str) -> ModelError:
        """The error for a component that is not on the list."""
        if self.target.partition(".")[0] != "monai" and "." in self.target:
            what = "code of the bundle's own or of another library"
        return self.configuration.refused(
            f"{self.place}{SEPARATOR}{TARGET}",
            f"{shown(self.target)} is {what}, which MedSegAI does not run",
            remedy,
        )


def transforms_of(configuration: Configuration, name: str) -> Iterator[Component]:
    """The transforms of a `Compose`, and of those within it, in order; those that are disabled are left out."""
    waiting, count = [name], 0
    while waiting:
        component = Component.at(configuration, waiting.pop(0))
        count += 1
        if count > MOST_COMPONENTS:
            raise configuration.wrong(name, f"it has more than {MOST_COMPONENTS} transforms")
        if component.disabled:
            continue
        if transform_name(component.target) != "Compose":
            yield component
            continue
        place = configuration.followed(f"{component.place}{SEPARATOR}transforms")
        inside = configuration.raw(place)
        if not isinstance(inside, list):
            raise configuration.refused(
                place, f"{shown(inside)} is not a list of transforms", "write the list out there"
            )
        waiting = [f"{place}{SEPARATOR}{number}" for number in range(len(inside))] + waiting


def transform_name(target: str) -> str | None:
    """The name of a transform of MONAI without what tells that it takes dictionaries; None for other classes."""
    place, _, name = target.rpartition(".")
    if place and not place.startswith("monai.transforms"):
        return None
    for ending in ("Dict", "D", "d"):
        if name.endswith(ending) and len(name) > len(ending) and name not in _NAMES_IN_D:
            return name.removesuffix(ending)
    return name


_NAMES_IN_D = frozenset({"SpatialPad", "DivisiblePad", "BorderPad", "CropForeground", "Pad"})
"""Names of arrays' transforms that end in d themselves."""

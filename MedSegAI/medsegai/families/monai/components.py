"""Components of a configuration, which are entries with a `_target_`. Only known ones are read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from medsegai.errors import ModelError
from medsegai.families.monai.configuration import SEPARATOR, Configuration
from medsegai.models.json_fields import shown

TARGET = "_target_"

ASIDE = frozenset({TARGET, "_desc_", "_disabled_", "_requires_", "_mode_"})
"""The keys of a component that MONAI itself reads. `_requires_` only runs other components, so it is ignored."""

MOST_COMPONENTS = 200

BOOLEANS = {"True": True, "False": True}
"""Texts that some bundles contain in place of truth values. In Python, every text that is not empty is true."""


@dataclass(frozen=True)
class Component:
    """One entry with a `_target_`.

    Attributes:
        place: the name of the entry, for messages.
        target: the class as it is written, such as `monai.transforms.Spacingd`.
    """

    configuration: Configuration
    place: str
    target: str

    @classmethod
    def at(cls, configuration: Configuration, name: str) -> Component:
        """Return the component at a place. Raises ModelError: there is none."""
        place = configuration.followed(name)
        raw = configuration.raw(place)
        target = raw.get(TARGET) if isinstance(raw, dict) else None
        if not isinstance(target, str):
            raise configuration.wrong(
                name, f"it must be a component with a {TARGET}, not {shown(raw)}"
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
        """Whether MONAI would skip this component."""
        place = f"{self.place}{SEPARATOR}_disabled_"
        return place in self.configuration and bool(self.configuration.value(place))

    def names(self) -> set[str]:
        """Return the names of its arguments."""
        return set(self.configuration.raw(self.place)) - ASIDE

    def only(self, known: str, ignored: str = "") -> None:
        """Refuse arguments except known ones and those without effect; both are names separated by blanks."""
        unknown = self.names() - set(known.split()) - set(ignored.split())
        if unknown:
            raise self.wrong(
                sorted(unknown)[0], f"{self.target} does not have a supported argument of this name"
            )

    def value(self, argument: str, default: Any = None) -> Any:
        """Return the value of an argument, with references resolved."""
        if argument not in self.names():
            return default
        return self.configuration.value(f"{self.place}{SEPARATOR}{argument}")

    def flag(self, argument: str) -> bool:
        """Return an argument that is true or false; False if it is missing."""
        value = self.value(argument, False)
        if isinstance(value, list) and value and all(item == value[0] for item in value):
            value = value[0]  # one for each key
        value = BOOLEANS.get(value, value) if isinstance(value, str) else value
        if value is None or isinstance(value, bool):
            return bool(value)
        raise self.wrong(argument, f"it must be true or false, not {shown(value)}")

    def alike(self, argument: str, default: Any = None) -> Any:
        """Return an argument that may be given once for each key, but must be the same for all keys."""
        value = self.value(argument, default)
        if isinstance(value, list):
            if not value or any(item != value[0] for item in value):
                raise self.wrong(argument, f"it must be one value for all keys, not {shown(value)}")
            return value[0]
        return value

    def three(self, argument: str, default: Any = None) -> Any:
        """Return an argument with a number for each axis. MONAI also accepts one number for all axes."""
        value = self.value(argument, default)
        if not isinstance(value, list):
            return None if value is None else [value] * 3
        return [*value, *value[-1:] * 3][:3]

    def keys(self) -> list[str]:
        """Return the entries of a case that a transform changes."""
        keys = self.value("keys", [])
        keys = keys if isinstance(keys, list) else [keys]
        if not keys or not all(isinstance(key, str) for key in keys):
            raise self.wrong("keys", f"it must be names of images, not {shown(keys)}")
        return keys

    def wrong(self, argument: str, why: str) -> ModelError:
        return self.configuration.wrong(f"{self.place}{SEPARATOR}{argument}", why)

    def unknown(self, what: str, remedy: str) -> ModelError:
        """Return the error about a component that is not supported."""
        if self.target.partition(".")[0] != "monai" and "." in self.target:
            what = "code of the bundle's own or of another library"
        return self.configuration.refused(
            f"{self.place}{SEPARATOR}{TARGET}",
            f"{shown(self.target)} is {what}, which MedSegAI does not run",
            remedy,
        )


def transforms_of(configuration: Configuration, name: str) -> Iterator[Component]:
    """Return the transforms of a `Compose`, and of those inside it, in order, without disabled ones."""
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
        inside_it = f"{component.place}{SEPARATOR}transforms"
        if not configuration.has_value(inside_it):
            continue
        place = configuration.followed(inside_it)
        inside = configuration.raw(place)
        if not isinstance(inside, list):
            raise configuration.refused(
                place, f"{shown(inside)} is not a list of transforms", "write the list out there"
            )
        waiting = [f"{place}{SEPARATOR}{number}" for number in range(len(inside))] + waiting


def transform_name(target: str) -> str | None:
    """Return the name of a MONAI transform without the suffix for dictionaries; None for other classes."""
    place, _, name = target.rpartition(".")
    if place and not place.startswith("monai.transforms"):
        return None
    for ending in ("Dict", "D", "d"):
        if name.endswith(ending) and len(name) > len(ending) and name not in _NAMES_IN_D:
            return name.removesuffix(ending)
    return name


_NAMES_IN_D = frozenset({"SpatialPad", "DivisiblePad", "BorderPad", "CropForeground", "Pad"})
"""Names of transforms of arrays that end in d."""

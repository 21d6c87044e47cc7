"""The configuration of a bundle as data: references and arithmetic are resolved, and nothing is run.

MONAI's own parser makes objects of every entry, imports what `imports` says, and evaluates each `$`. Here an entry
is looked at only when it is asked for; `imports`, `initialize`, `run` and whatever else is not needed to segment
is never read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medsegai.errors import ModelError, UnsafeModelError
from medsegai.families.monai.expressions import REFERENCE, Refused, evaluate
from medsegai.families.monai.files import read_configuration
from medsegai.models.json_fields import shown

DEEPEST = 60
"""References and objects within each other."""

MOST_VALUES = 100_000
"""Values that one entry may consist of once its references are followed."""

SEPARATOR = "::"
"""Between the parts of the name of an entry; MONAI also writes #."""

METADATA = "_meta_"
"""Under which name MONAI gives a configuration its metadata."""


class Configuration:
    """Entries of a configuration file, by names such as `preprocessing::transforms::0::keys`.

    Args:
        path: the file, for messages.
        data: what it holds.
        metadata: of the bundle, which a configuration may refer to.
    """

    def __init__(
        self, path: Path, data: Mapping[str, Any], metadata: Mapping[str, Any] | None = None
    ) -> None:
        self.path = path
        self._data = {**data, METADATA: dict(metadata or {})}

    @classmethod
    def read(cls, path: Path, metadata: Mapping[str, Any] | None = None) -> Configuration:
        """Raises FileNotFoundError, ModelError: see `read_configuration`."""
        return cls(path, read_configuration(path), metadata)

    def __contains__(self, name: str) -> bool:
        return self._find(name) is not _MISSING

    def raw(self, name: str) -> Any:
        """An entry as the file has it, with references and expressions as text.

        Raises:
            ModelError: there is no such entry.
        """
        found = self._find(name)
        if found is _MISSING:
            raise ModelError(f"{self.path} has no entry {name!r}.")
        return found

    def followed(self, name: str) -> str:
        """The name of the entry that `name` stands for: its own, unless it is nothing but a reference.

        Raises:
            ModelError: there is no such entry, or references lead in a circle.
        """
        passed = [name]
        while True:
            raw = self.raw(passed[-1])
            match = _ALONE.fullmatch(raw) if isinstance(raw, str) else None
            if match is None:
                return passed[-1]
            passed.append(match[1].replace("#", SEPARATOR))
            if passed[-1] in passed[:-1]:
                raise self.wrong(name, f"{shown(raw)} refers to itself")

    def value(self, name: str) -> Any:
        """An entry with its references followed and its expressions computed.

        Raises:
            ModelError: it or what it refers to is missing, or refers to itself.
            UnsafeModelError: an expression would have to be run by Python.
        """
        return _Resolver(self).resolve(self.raw(name), name)

    def refused(self, name: str, why: str, remedy: str) -> UnsafeModelError:
        """The error for an entry that only Python could make a value of."""
        return UnsafeModelError(
            f"{self.path}, entry {name}: {why}. Nothing of the configuration was run; {remedy}."
        )

    def wrong(self, name: str, why: str) -> ModelError:
        """The error for an entry that says what cannot be, or what MedSegAI does not do."""
        return ModelError(f"{self.path}, entry {name}: {why}.")

    def _find(self, name: str) -> Any:
        place: Any = self._data
        for part in name.replace("#", SEPARATOR).split(SEPARATOR):
            if isinstance(place, dict) and part in place:
                place = place[part]
            elif isinstance(place, list) and part.isdecimal() and int(part) < len(place):
                place = place[int(part)]
            else:
                return _MISSING
        return place


_MISSING = object()

_ALONE = re.compile(r"(?:\$\s*@|@|%)([A-Za-z_]\w*(?:(?:#|::)\w+)*)\s*")
"""A text that is a reference and nothing else."""


class _Resolver:
    """Follows the references of one entry; it remembers where it is, so that a circle is seen."""

    def __init__(self, configuration: Configuration) -> None:
        self._configuration = configuration
        self._following: list[str] = []
        self._depth = 0
        self._made = 0

    def resolve(self, raw: Any, name: str) -> Any:
        self._depth += 1
        self._made += 1
        if self._depth > DEEPEST:
            raise self._configuration.wrong(name, f"values lie more than {DEEPEST} deep")
        if self._made > MOST_VALUES:
            raise self._configuration.wrong(name, f"it stands for more than {MOST_VALUES} values")
        try:
            if isinstance(raw, dict):
                inner = {key: f"{name}{SEPARATOR}{key}" for key in raw}
                return {key: self.resolve(value, inner[key]) for key, value in raw.items()}
            if isinstance(raw, list):
                return [
                    self.resolve(value, f"{name}{SEPARATOR}{number}")
                    for number, value in enumerate(raw)
                ]
            return self._text(raw, name) if isinstance(raw, str) else raw
        finally:
            self._depth -= 1

    def _text(self, text: str, name: str) -> Any:
        if text.startswith("$"):
            try:
                return evaluate(text[1:], lambda reference: self._follow(reference, name))
            except Refused as error:
                raise self._configuration.refused(
                    name,
                    f"the expression {shown(text)} cannot be computed, because {error}",
                    "write its value there, as a number, a text or a list",
                ) from None
        if text.startswith("@"):
            if not REFERENCE.fullmatch(text):
                raise self._configuration.wrong(name, f"{shown(text)} refers to nothing")
            return self._follow(text, name)
        if text.startswith("%"):
            return self._follow("@" + text[1:], name)
        return text

    def _follow(self, reference: str, name: str) -> Any:
        target = reference[1:].replace("#", SEPARATOR)
        if target not in self._configuration:
            raise self._configuration.wrong(name, f"{shown(reference)} refers to nothing")
        if target in self._following:
            raise self._configuration.wrong(
                name, f"{shown(reference)} refers to itself through {len(self._following)} others"
            )
        self._following.append(target)
        try:
            return self.resolve(self._configuration.raw(target), target)
        finally:
            self._following.pop()

"""The configuration of a bundle as data: references and arithmetic are resolved, and nothing is run.

MONAI's own parser instantiates every entry, executes `imports`, and evaluates each `$`. Here an entry is read
only when its value is needed. `imports`, `initialize`, `run` and other entries that segmentation does not need are
never read.
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
"""The largest depth of references and objects inside each other."""

MOST_VALUES = 100_000
"""The largest number of values in one entry after its references are resolved."""

SEPARATOR = "::"
"""The separator in the name of an entry; MONAI also accepts #."""

METADATA = "_meta_"
"""The name by which a configuration refers to the metadata in MONAI."""


class Configuration:
    """Entries of a configuration file, by names such as `preprocessing::transforms::0::keys`.

    Args:
        path: the file, for messages.
        data: the content of the file.
        metadata: the metadata of the bundle, to which a configuration may refer.
    """

    def __init__(
        self, path: Path, data: Mapping[str, Any], metadata: Mapping[str, Any] | None = None
    ) -> None:
        self.path = path
        self._data = {**data, METADATA: dict(metadata or {})}

    @classmethod
    def read(cls, path: Path, metadata: Mapping[str, Any] | None = None) -> Configuration:
        """Read a configuration. Raises FileNotFoundError, ModelError: see `read_configuration`."""
        return cls(path, read_configuration(path), metadata)

    def __contains__(self, name: str) -> bool:
        return self._find(name) is not _MISSING

    def has_value(self, name: str) -> bool:
        """Whether an entry exists and is not null, which MONAI treats as a missing entry."""
        return name in self and self.raw(self.followed(name)) is not None

    def raw(self, name: str) -> Any:
        """Return an entry as it is in the file, with references and expressions as text.

        Raises:
            ModelError: there is no such entry.
        """
        found = self._find(name)
        if found is _MISSING:
            raise ModelError(f"{self.path} has no entry {name!r}.")
        return found

    def followed(self, name: str) -> str:
        """Return the name of the entry that `name` leads to: the same name, unless the entry is a reference.

        Raises:
            ModelError: there is no such entry, or references are circular.
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
        """Return an entry with references resolved and expressions computed.

        Raises:
            ModelError: the entry, or one that it refers to, is missing or refers to itself.
            UnsafeModelError: Python would have to run an expression.
        """
        return _Resolver(self).resolve(self.raw(name), name)

    def refused(self, name: str, why: str, remedy: str) -> UnsafeModelError:
        """Return the error about an entry whose value only Python could compute."""
        return UnsafeModelError(
            f"{self.path}, entry {name}: {why}. Nothing of the configuration was run; {remedy}."
        )

    def wrong(self, name: str, why: str) -> ModelError:
        """Return the error about an entry that is impossible or not supported."""
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
"""The pattern of a text that only consists of a reference."""


class _Resolver:
    """Resolves the references of one entry. It remembers the path, so that circular references are found."""

    def __init__(self, configuration: Configuration) -> None:
        self._configuration = configuration
        self._following: list[str] = []
        self._depth = 0
        self._made = 0

    def resolve(self, raw: Any, name: str) -> Any:
        self._depth += 1
        self._made += 1
        if self._depth > DEEPEST:
            raise self._configuration.wrong(name, f"values are nested more than {DEEPEST} deep")
        if self._made > MOST_VALUES:
            raise self._configuration.wrong(name, f"it expands to more than {MOST_VALUES} values")
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
                raise self._configuration.wrong(name, f"{shown(text)} refers to a missing entry")
            return self._follow(text, name)
        if text.startswith("%"):
            return self._follow("@" + text[1:], name)
        return text

    def _follow(self, reference: str, name: str) -> Any:
        target = reference[1:].replace("#", SEPARATOR)
        if target not in self._configuration:
            raise self._configuration.wrong(name, f"{shown(reference)} refers to a missing entry")
        if target in self._following:
            raise self._configuration.wrong(
                name, f"{shown(reference)} refers to itself through {len(self._following)} others"
            )
        self._following.append(target)
        try:
            return self.resolve(self._configuration.raw(target), target)
        finally:
            self._following.pop()

"""JSON values and the dataclasses that they stand for, in both directions, for cards, messages and settings alike.

Reading is strict: what is unknown, missing or of another type is reported by its place, never guessed. A file may
come from anyone, so what `read_json` returns can be compared, printed, hashed and written again without another
look: it is small, not deep, and its numbers and texts are ordinary ones.
"""

from __future__ import annotations

import functools
import json
import math
import types
from collections.abc import Callable, Collection, Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from medsegai.errors import MedSegAIError, ModelError
from medsegai.models.limits import Limits
from medsegai.system.regular_files import read_regular

MOST_BYTES = 64 * 1024 * 1024
"""A JSON file of a model that is larger is refused; nnU-Net's largest have some megabytes."""

DEEPEST = 40
"""Objects and lists within each other. Cards and plans have up to 8."""

MOST_DIGITS = 40
"""Digits of a whole number: more than any count or identifier has."""

LONGEST_REASON = 800
"""Letters of the reason why a model cannot be used."""

SHOWN = 80
"""Letters of a wrong value that a message quotes."""

NOT_IN_JSON: Mapping[str, Any] = {"json": "never"}
"""Metadata of a field that JSON never holds, such as the folder that a file was read from."""

UNLESS_DEFAULT: Mapping[str, Any] = {"json": "unless default"}
"""Metadata of a field that is written only where it differs from its default."""

Kind = TypeVar("Kind")


def read_json(path: Path, nan_as_null: bool = False) -> dict[str, Any]:
    """Read a JSON object whose values are harmless.

    Args:
        path: the file.
        nan_as_null: read NaN and Infinity, which Python writes though they are not JSON, as null.

    Raises:
        FileNotFoundError: there is no such file.
        ModelError: it cannot be read, is not a regular file, is too large, or is not a JSON object; or it holds
            values within more than `DEEPEST` others, a number that is not finite or has more than `MOST_DIGITS`
            digits, or text that is not Unicode.
    """
    data = _parsed(path, nan_as_null)
    if not isinstance(data, dict):
        raise ModelError(f"{path} must hold a JSON object.")
    return data


def _parsed(path: Path, nan_as_null: bool) -> object:
    try:
        # Editors of Windows put a mark in front.
        return harmless(read_regular(path, MOST_BYTES).decode("utf-8-sig"), nan_as_null)
    except FileNotFoundError:
        raise
    except RecursionError:
        reason = "its values are nested too deep"
        raise ModelError(f"{path} cannot be read as JSON: {reason}.") from None
    except (OSError, ValueError) as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise ModelError(f"{path} cannot be read as JSON: {error}.") from error


def harmless(text: str, nan_as_null: bool = False) -> Any:
    """The values of JSON, see `read_json`.

    Raises:
        ValueError, RecursionError: it is not JSON, or its values are not harmless.
    """
    constant = _null if nan_as_null else _finite
    data = json.loads(text, parse_int=_whole, parse_float=_finite, parse_constant=constant)
    _check_harmless(data, DEEPEST)
    return data


def _whole(text: str) -> int:
    if len(text) > MOST_DIGITS:
        raise ValueError(f"the number {text[:10]}... has {len(text)} digits")
    return int(text)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:SHOWN]} is not finite")
    return value


def _null(_constant: str) -> None:
    """What stands for NaN and Infinity."""


def _check_harmless(value: object, depth: int) -> None:
    """Refuse what is nested deeper than `depth`, and text with halves of letters (lone surrogates)."""
    if isinstance(value, str):
        value.encode()  # a UnicodeEncodeError is a ValueError
    elif isinstance(value, (dict, list)):
        if depth == 0:
            raise ValueError(f"its values are nested more than {DEEPEST} deep")
        for item in [*value, *value.values()] if isinstance(value, dict) else value:
            _check_harmless(item, depth - 1)


Hooks = Mapping[type, Callable[[Any], Any]]
"""How values of other classes become JSON values, or come from them, by their class."""


def to_json(value: object, hooks: Hooks | None = None) -> Any:
    """A value as JSON values: a dataclass as an object of its fields, a tuple as a list, NaN as null.

    Args:
        value: a dataclass, a container or a plain value.
        hooks: for each class of which instances are written in another way, what makes a JSON value of one.
    """
    for kind, convert in (hooks or {}).items():
        if isinstance(value, kind):
            return convert(value)
    if is_dataclass(value):
        return _written_fields(value, hooks)
    if isinstance(value, Mapping):
        return {str(key): to_json(item, hooks) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [to_json(item, hooks) for item in value]
    if isinstance(value, Path):
        return str(value)
    return None if isinstance(value, float) and math.isnan(value) else value


def _written_fields(value: Any, hooks: Hooks | None) -> dict[str, Any]:
    return {
        item.name: to_json(getattr(value, item.name), hooks)
        for item in fields(value)
        if _is_written(item, getattr(value, item.name))
    }


def _is_written(item: Field[Any], value: object) -> bool:
    rule = item.metadata.get("json")
    return rule is None or (rule != "never" and value != item.default)


def from_json(
    kind: type[Kind],
    data: object,
    place: str = "",
    error: type[MedSegAIError] = ModelError,
    hooks: Hooks | None = None,
) -> Kind:
    """The dataclass that JSON values stand for: `to_json` the other way.

    Args:
        kind: the dataclass. Its annotations decide what each value must be, at every depth.
        data: JSON values, or those of TOML.
        place: where they stand, for messages; "" for the whole file.
        error: what is raised.
        hooks: for each class of annotations that is read in another way, what makes an instance of a JSON value.
            A ValueError that it raises says what the value must be, such as "must be a number".

    Raises:
        MedSegAIError: of the class `error`: a key is unknown or missing, or a value is of another type. And
            what the dataclass itself raises.
    """
    return _Reader(error, hooks or {}).instance(kind, data, place)


@functools.lru_cache(maxsize=256)
def _hints(kind: type) -> Mapping[str, Any]:
    return get_type_hints(kind)


@functools.lru_cache(maxsize=256)
def _known(kind: type) -> Mapping[str, Field[Any]]:
    """The fields that a file may have."""
    there = fields(cast(Any, kind))
    return {item.name: item for item in there if item.metadata.get("json") != "never"}


@functools.lru_cache(maxsize=1024)
def _taken_apart(hint: Any) -> tuple[Any, tuple[Any, ...], bool]:
    """The origin and the parts of an annotation, and whether it is a dataclass; a card asks 2000 times."""
    return get_origin(hint), get_args(hint), is_dataclass(hint)


@dataclass(frozen=True)
class _Reader:
    """Makes values of what annotations say; a mistake is reported as `error`, with its place."""

    error: type[MedSegAIError]
    hooks: Hooks

    def instance(self, kind: type[Kind], data: object, place: str) -> Kind:
        if not isinstance(data, Mapping):
            raise self.error(f"{place or kind.__name__} must be an object, not {shown(data)}.")
        where = f"{place}: " if place else ""
        self._check_keys(_known(cast(Any, kind)), data, where)
        hints = _hints(cast(Any, kind))
        values = {name: self.value(hints[name], data[name], _within(place, name)) for name in data}
        try:
            return kind(**values)
        except MedSegAIError as error:
            raise type(error)(f"{where}{error}") from error

    def _check_keys(self, known: Mapping[str, Any], data: Collection[object], where: str) -> None:
        unknown = sorted(str(key) for key in data if key not in known)
        if unknown:
            raise self.error(f"{where}unknown {_keys(unknown)}; known are {', '.join(known)}.")
        missing = [
            name
            for name, item in known.items()
            if name not in data and item.default is MISSING and item.default_factory is MISSING
        ]
        if missing:
            raise self.error(f"{where}missing {_keys(missing)}.")

    def value(self, hint: Any, value: Any, place: str) -> Any:
        """What an annotation makes of a JSON value."""
        origin, parts, is_object = _taken_apart(hint)
        convert = self.hooks.get(origin or hint)
        if convert is not None:
            return self._converted(convert, value, place)
        if is_object:
            return self.instance(cast(Any, hint), value, place)
        if origin in (Union, types.UnionType):
            return self._one_of(hint, value, place)
        if origin is tuple and isinstance(value, (list, tuple)):
            return self._items(hint, value, place)
        if origin in (dict, Mapping) and isinstance(value, Mapping):
            keys = by_label(value, place, self.error) if parts[0] is int else value
            return {key: self.value(parts[1], keys[key], _within(place, key)) for key in keys}
        if hint is Path and isinstance(value, str):
            return Path(value)
        if hint is Any or (origin is Literal and value in parts) or _is(value, hint):
            return float(value) if hint is float else value
        raise self.error(f"{place} must be {_in_words(hint)}, not {shown(value)}.")

    def _converted(self, convert: Callable[[Any], Any], value: Any, place: str) -> Any:
        try:
            return convert(value)
        except ValueError as error:
            raise self.error(f"{place} {error}, not {shown(value)}.") from error

    def _one_of(self, hint: Any, value: object, place: str) -> Any:
        """The first kind of value that fits; the message of the only one that could have."""
        choices = _taken_apart(hint)[1]
        parts = [part for part in choices if part is not type(None)]
        if value is None and len(parts) < len(choices):
            return None
        likely = [part for part in parts if is_dataclass(part) == isinstance(value, Mapping)]
        if len(parts) == 1 or (len(likely) == 1 and is_dataclass(likely[0])):
            return self.value((likely or parts)[0], value, place)
        for part in parts:
            try:
                return self.value(part, value, place)
            except self.error:
                continue
        raise self.error(f"{place} must be {_in_words(hint)}, not {shown(value)}.")

    def _items(self, hint: Any, value: list[Any] | tuple[Any, ...], place: str) -> tuple[Any, ...]:
        parts = _taken_apart(hint)[1]
        if parts[-1] is ...:
            parts = parts[:1] * len(value)
        if len(value) != len(parts):
            raise self.error(f"{place} must be {_in_words(hint)}, not {shown(value)}.")
        return tuple(
            self.value(part, item, f"{place}[{index}]")
            for index, (part, item) in enumerate(zip(parts, value, strict=True))
        )


def _within(place: str, name: object) -> str:
    return f"{place}.{name}" if place else str(name)


def _keys(names: list[str]) -> str:
    return f"key{'s' if len(names) > 1 else ''} {', '.join(names)}"


def _is(value: Any, kind: Any) -> bool:
    """Whether a plain JSON value is of a plain type; true and false are not numbers, and a whole number is one."""
    if not isinstance(kind, type):
        return False
    if kind is float:
        return _is_number(value) and -math.inf < value < math.inf
    return isinstance(value, kind) and (kind is bool) == isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _in_words(hint: Any) -> str:
    """What an annotation asks for, as a person would say it."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join("null" if part is type(None) else _in_words(part) for part in parts)
    if origin is tuple:
        count = "" if parts[-1] is ... else f"{len(parts)} values, each "
        return f"a list of {count}{_in_words(parts[0])}"
    if origin is Literal:
        return f"one of {', '.join(map(str, parts))}"
    named = {
        str: "text",
        Path: "text",
        bool: "true or false",
        int: "a whole number",
        float: "a number",
    }
    return named.get(hint, "an object")


def shortened(error: Exception) -> str:
    """The text of an error, shortened where it quotes too much of an untrusted file."""
    text = str(error)
    return text if len(text) <= LONGEST_REASON else text[:LONGEST_REASON] + "..."


def shown(value: object) -> str:
    """A wrong value as a message quotes it: in one line, and not longer than `SHOWN` letters."""
    text = repr(value)
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."


def number(value: Any, what: str, low: float = -math.inf, high: float = math.inf) -> float:
    """A finite number from `low` to `high`, both included. Raises ModelError, which names `what`."""
    if not _is_number(value) or not -math.inf < value < math.inf:
        raise ModelError(f"{what} must be a number, not {shown(value)}.")
    problem = Limits(low, high).problem(value)
    if problem is not None:
        raise ModelError(f"{what} {problem}.")
    return float(value)


def words(value: object, what: str) -> str:
    """Text that is not empty. Raises ModelError."""
    if not isinstance(value, str) or not value.strip():
        raise ModelError(f"{what} must be text, and not empty.")
    return value


def by_label(data: object, what: str, error: type[MedSegAIError] = ModelError) -> dict[int, Any]:
    """A JSON object whose keys are label values, with the keys as numbers. Raises `error`, which names `what`."""
    if not isinstance(data, Mapping):
        raise error(f"{what} must be an object with a label value for each key, not {shown(data)}.")
    for key in data:
        if not (
            isinstance(key, int)
            or (isinstance(key, str) and key.isdecimal() and len(key) < MOST_DIGITS)
        ):
            raise error(f"{what}: {shown(key)} is not a label value.")
    return {int(key): value for key, value in data.items()}

"""JSON files and dataclasses from them, strictly: what is unknown, missing or not a number is said, never guessed.

A file may come from anyone, so what `read_json` returns can be compared, printed, hashed and written again without
another look: it is small, not deep, and its numbers and texts are ordinary ones.
"""

from __future__ import annotations

import json
import math
import types
from collections.abc import Collection, Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from medsegai.errors import ModelError
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


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object whose values are harmless.

    Raises:
        FileNotFoundError: there is no such file.
        ModelError: it cannot be read, is not a regular file, is too large, or is not a JSON object; or it holds
            values within more than `DEEPEST` others, a number that is not finite or has more than `MOST_DIGITS`
            digits, or text that is not Unicode.
    """
    try:
        text = read_regular(path, MOST_BYTES).decode("utf-8")
        data = json.loads(text, parse_int=_whole, parse_float=_finite)
        _check_harmless(data, DEEPEST)
    except FileNotFoundError:
        raise
    except RecursionError:
        raise ModelError(
            f"{path} cannot be read as JSON: its values are nested too deep."
        ) from None
    except (OSError, ValueError) as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise ModelError(f"{path} cannot be read as JSON: {error}.") from error
    if not isinstance(data, dict):
        raise ModelError(f"{path} must hold a JSON object.")
    return data


def _whole(text: str) -> int:
    if len(text) > MOST_DIGITS:
        raise ValueError(f"the number {text[:10]}... has {len(text)} digits")
    return int(text)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:SHOWN]} is too large")
    return value


def _check_harmless(value: Any, depth: int) -> None:
    """Refuse what is nested deeper than `depth`, and text with halves of letters (lone surrogates)."""
    if isinstance(value, str):
        value.encode()  # a UnicodeEncodeError is a ValueError
    elif isinstance(value, (dict, list)):
        if depth == 0:
            raise ValueError(f"its values are nested more than {DEEPEST} deep")
        for item in [*value, *value.values()] if isinstance(value, dict) else value:
            _check_harmless(item, depth - 1)


def typed_fields(data: Any, kind: type, left_out: Collection[str] = ()) -> dict[str, Any]:
    """The same as `checked_fields`, and every value is what the dataclass says that its field holds.

    Lists stand for tuples and objects for dataclasses, which are made by who asked.

    Raises:
        ModelError: see `checked_fields`; or a value is of another kind.
    """
    values = checked_fields(data, kind, left_out)
    hints = get_type_hints(kind)
    for name, value in values.items():
        if not _conforms(value, hints[name]):
            raise ModelError(
                f"{name} of {kind.__name__} must be {_in_words(hints[name])}, not {shown(value)}."
            )
    return values


def _conforms(value: Any, hint: Any) -> bool:
    """Whether a JSON value can become what an annotation says."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(_conforms(value, part) for part in parts)
    if origin is tuple:
        parts = (
            parts[:1] * len(value)
            if parts[-1] is ... and isinstance(value, (list, tuple))
            else parts
        )
        return (
            isinstance(value, (list, tuple))
            and len(value) == len(parts)
            and all(map(_conforms, value, parts))
        )
    if origin is not None or is_dataclass(hint):
        return isinstance(value, Mapping)
    if hint is float:
        return _is_number(value) and math.isfinite(value)
    return hint is Any or (isinstance(value, hint) and (hint is bool) == isinstance(value, bool))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _in_words(hint: Any) -> str:
    """What an annotation asks for, as a person would say it."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join("null" if part is type(None) else _in_words(part) for part in parts)
    if origin is tuple:
        count = "" if parts[-1] is ... else f"{len(parts)} values, each "
        return f"a list of {count}{_in_words(parts[0])}"
    named = {str: "text", bool: "true or false", int: "a whole number", float: "a number"}
    return named.get(hint, "an object")


def shortened(error: Exception) -> str:
    """What an error says, cut where it quotes too much of what a stranger wrote."""
    text = str(error)
    return text if len(text) <= LONGEST_REASON else text[:LONGEST_REASON] + "..."


def shown(value: Any) -> str:
    """A wrong value as a message quotes it: in one line, and not longer than `SHOWN` letters."""
    text = repr(value)
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."


def checked_fields(data: Any, kind: type, left_out: Collection[str] = ()) -> dict[str, Any]:
    """The values for the fields of a dataclass.

    Args:
        data: what the file holds.
        kind: the dataclass.
        left_out: its fields that a file cannot give.

    Raises:
        ModelError: `data` is no JSON object, or a key is unknown or missing.
    """
    if not isinstance(data, Mapping):
        raise ModelError(f"{kind.__name__} must be an object, not {shown(data)}.")
    known = [item for item in fields(kind) if item.name not in left_out]
    unknown = set(data) - {item.name for item in known}
    if unknown:
        raise ModelError(f"unknown keys {', '.join(sorted(map(str, unknown)))} in {kind.__name__}.")
    required = {
        item.name for item in known if item.default is MISSING and item.default_factory is MISSING
    }
    missing = required - set(data)
    if missing:
        raise ModelError(f"missing keys {', '.join(sorted(missing))} in {kind.__name__}.")
    return dict(data)


def number(value: Any, what: str, low: float = -math.inf, high: float = math.inf) -> float:
    """A finite number from `low` to `high`, both included. Raises ModelError, which names `what`."""
    if not _is_number(value) or not math.isfinite(value):
        raise ModelError(f"{what} must be a number, not {shown(value)}.")
    if not low <= value <= high:
        raise ModelError(f"{what} must lie from {low:g} to {high:g}, not {value:g}.")
    return float(value)


def words(value: Any, what: str) -> str:
    """Text that is not empty. Raises ModelError."""
    if not isinstance(value, str) or not value.strip():
        raise ModelError(f"{what} must be text, and not empty.")
    return value


def by_label(data: Any, what: str) -> dict[int, Any]:
    """A JSON object whose keys are label values, with the keys as numbers. Raises ModelError."""
    if not isinstance(data, Mapping):
        raise ModelError(
            f"{what} must be an object with a label value for each key, not {shown(data)}."
        )
    for key in data:
        if not (
            isinstance(key, int)
            or (isinstance(key, str) and key.isdecimal() and len(key) < MOST_DIGITS)
        ):
            raise ModelError(f"{what}: {shown(key)} is not a label value.")
    return {int(key): value for key, value in data.items()}

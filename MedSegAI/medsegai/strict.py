"""Dataclasses from JSON values, strictly: what is unknown, missing or no number is said, never guessed."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import MISSING, fields
from typing import Any

from medsegai.errors import ModelError


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
        raise ModelError(f"{kind.__name__} must be an object, not {data!r}.")
    known = [item for item in fields(kind) if item.name not in left_out]
    unknown = set(data) - {item.name for item in known}
    if unknown:
        raise ModelError(f"unknown keys {', '.join(sorted(unknown))} in {kind.__name__}.")
    required = {
        item.name for item in known if item.default is MISSING and item.default_factory is MISSING
    }
    missing = required - set(data)
    if missing:
        raise ModelError(f"missing keys {', '.join(sorted(missing))} in {kind.__name__}.")
    return dict(data)


def number(value: Any, what: str, low: float = -math.inf, high: float = math.inf) -> float:
    """A finite number from `low` to `high`, both included. Raises ModelError, which names `what`."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ModelError(f"{what} must be a number, not {value!r}.")
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
        raise ModelError(f"{what} must be an object with a label value for each key, not {data!r}.")
    for key in data:
        if not (isinstance(key, int) or (isinstance(key, str) and key.isdecimal())):
            raise ModelError(f"{what}: {key!r} is no label value.")
    return {int(key): value for key, value in data.items()}

"""The fields of a refinement's `Options`, with their defaults, help texts and bounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Any


def setting(
    default: object,
    help: str,
    bounds: tuple[float, float] | None = None,
    choices: Mapping[str, str] | Sequence[str] = (),
    title: str = "",
) -> Any:
    """Make a field of `Options` with its default, its help text, and its bounds or choices.

    Args:
        default: the default value.
        help: the help text.
        bounds: the smallest and the largest value.
        choices: the values, mapped to their names on the screen, or the values alone, which are then shown.
        title: the name of the option on the screen; if "", the name of the field is shown.
    """
    words = dict(choices) if isinstance(choices, Mapping) else {}
    known = {
        "help": help,
        "bounds": bounds,
        "choices": tuple(choices),
        "words": words,
        "title": title,
    }
    return field(default=default, metadata=known)


def labels_setting() -> Any:
    """Make the field for the labels that a refinement changes."""
    text = "values of the labels to refine, such as 17+53; all if none is named"
    return setting((), text, title="Structures")

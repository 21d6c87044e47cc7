"""The fields of a refinement's `Options`: default, help and bounds together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Any


def setting(
    default: Any,
    help: str,
    bounds: tuple[float, float] | None = None,
    choices: Mapping[str, str] | Sequence[str] = (),
    title: str = "",
) -> Any:
    """A field of `Options`: its default, help text, smallest and largest value, or its choices.

    Args:
        choices: values, and by these what each is called on the screen; values without such words are shown.
        title: what it is called on the screen; its name in plain letters if "".
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
    """The field that says which labels a refinement works on."""
    text = "values of the labels to refine, such as 17+53; all if none is named"
    return setting((), text, title="Structures")

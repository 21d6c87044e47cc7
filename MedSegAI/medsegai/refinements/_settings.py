"""The fields of a refinement's `Options`: default, help and bounds together."""

from __future__ import annotations

from dataclasses import field
from typing import Any


def setting(
    default: Any,
    help: str,
    bounds: tuple[float, float] | None = None,
    choices: tuple[str, ...] = (),
    title: str = "",
) -> Any:
    """A field of `Options`: its default, help text, smallest and largest value, or its choices.

    Args:
        title: what it is called on the screen; its name in plain letters if "".
    """
    known = {"help": help, "bounds": bounds, "choices": choices, "title": title}
    return field(default=default, metadata=known)


def labels_setting() -> Any:
    """The field that says which labels a refinement works on."""
    text = "values of the labels to refine, such as 17+53; all if none is named"
    return setting((), text, title="Structures")

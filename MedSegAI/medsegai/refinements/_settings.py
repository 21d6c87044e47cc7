"""The fields of a refinement's `Options`: default, help and bounds together."""

from __future__ import annotations

from dataclasses import field
from typing import Any


def setting(
    default: Any,
    help: str,
    bounds: tuple[float, float] | None = None,
    choices: tuple[str, ...] = (),
) -> Any:
    """A field of `Options`: its default, help text, smallest and largest value, or its choices."""
    return field(default=default, metadata={"help": help, "bounds": bounds, "choices": choices})


def labels_setting() -> Any:
    """The field that says which labels a refinement works on."""
    return setting((), "values of the labels to refine, such as 17+53; all if none is named")

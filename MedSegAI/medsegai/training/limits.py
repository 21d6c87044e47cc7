"""What the numbers of a training may be, written beside each number: mistakes are found before anything runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import field, fields, is_dataclass
from typing import Any

from medsegai.errors import RequestError
from medsegai.models.limits import Limits, Numbers
from medsegai.request import LARGEST_SEED

Range = tuple[float, float]
"""From the one number to the other; what lies between is drawn from."""


SHARE = Limits(0, 1)
NOT_NEGATIVE = Limits(0)
POSITIVE = Limits(0, above=True)
COUNT = Limits(1)
SEED = Limits(0, LARGEST_SEED)
RANGE = Limits(0, ascending=True)
"""From the one length or strength to the other."""


def limited(default: object, limits: Limits) -> Any:
    """A field of a configuration whose number must lie within limits, which `check_limits` compares."""
    return field(default=default, metadata={"limits": limits})


def in_file(name: str) -> str:
    """What a message calls a value of a training file."""
    return f"Training file: {name}"


def as_option(name: str) -> str:
    """What a message calls a value that an option of the command line gives."""
    return f"--{name.replace('_', '-')}"


def check_limits(config: Any, called: Callable[[str], str] = in_file) -> None:
    """Compare the numbers of a configuration, and of those within it, with their limits.

    Args:
        config: a dataclass with fields made by `limited`.
        called: what a message calls a value, by its name.

    Raises:
        RequestError: a number is too small or too large, or the ends of a range are exchanged.
    """
    for name, value, limits in _limited(config):
        if (problem := limits.problem(value)) is not None:
            raise RequestError(f"{called(name)} {problem}.")


def _limited(config: Any, prefix: str = "") -> Iterator[tuple[str, Numbers, Limits]]:
    for item in fields(config):
        value, name = getattr(config, item.name), f"{prefix}{item.name}"
        if is_dataclass(value):
            yield from _limited(value, f"{name}.")
        elif "limits" in item.metadata and value is not None:
            yield name, value, item.metadata["limits"]

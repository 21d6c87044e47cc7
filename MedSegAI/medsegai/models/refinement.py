"""Which refinement is asked for, as requests, cards, reports and messages carry it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from medsegai.models.json_fields import to_json


@dataclass(frozen=True)
class Refinement:
    """One change to labels after the AI: which one, and the options that are not left at their defaults.

    `medsegai.refinements` knows which refinements there are, reads one from text, and checks its options.

    Attributes:
        name: the refinement, such as "islands".
        options: values by the name of their option. Lists become tuples, so that two refinements compare equal
            whether they come from text, from a card or from a message.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        options = {option: _without_lists(value) for option, value in self.options.items()}
        object.__setattr__(self, "options", options)

    @classmethod
    def from_dict(cls, data: object) -> Refinement:
        """Make a refinement from one JSON object that holds the name and the options, as cards and reports do.

        Raises:
            ValueError: it is not an object, or its name is missing or is not text.
        """
        if not isinstance(data, Mapping) or not isinstance(data.get("name"), str):
            raise ValueError("must be an object with a name")
        options = {str(option): value for option, value in data.items() if option != "name"}
        return cls(data["name"], options)

    def to_dict(self) -> dict[str, Any]:
        """Return the name and the options as one object of JSON values."""
        return {"name": self.name} | to_json(self.options)

    def with_options(self, **options: Any) -> Refinement:
        """Return the same refinement with these options added or replaced."""
        return replace(self, options={**self.options, **options})


def _without_lists(value: Any) -> Any:
    several = isinstance(value, (list, tuple))
    return tuple(_without_lists(item) for item in value) if several else value

"""A list of models that somebody hosts, with addresses and hashes. Nothing of it is loaded unasked."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from dataclasses import dataclass, field

from medsegai.errors import ModelError, listed

INDEX_VARIABLE = "MEDSEGAI_INDEX"
"""Names the index of this computer: an https address, or a file."""

SHOWN = 12
"""How many models a message names."""

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class ListedModel:
    """A model in an index.

    Attributes:
        id: what it is fetched by, and called afterwards.
        url: https address of a zip archive or of weights, as `medsegai models import` takes them.
        sha256: of that file.
        bytes: of that file.
        name, version, description, licence: for people.
        modalities, structures: what it is for.
    """

    id: str
    url: str
    sha256: str
    bytes: int
    name: str = ""
    version: str = ""
    description: str = ""
    licence: str = ""
    modalities: tuple[str, ...] = ()
    structures: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.id):
            raise ModelError(f"a model cannot be called {self.id[:80]!r}.")
        if not re.fullmatch(r"[0-9a-fA-F]{64}", self.sha256):
            raise ModelError(f"the sha256 of {self.id} is not a SHA-256.")
        if self.bytes <= 0:
            raise ModelError(f"the bytes of {self.id} must be a number above 0.")
        if not self.url.startswith("https://"):
            raise ModelError(f"the url of {self.id} does not begin with https://.")


@dataclass(frozen=True)
class ModelIndex:
    """All that an index file holds."""

    models: tuple[ListedModel, ...] = field(default=())

    def __post_init__(self) -> None:
        counts = Counter(model.id for model in self.models)
        doubled = sorted(name for name, count in counts.items() if count > 1)
        if doubled:
            verb = "is" if len(doubled) == 1 else "are"
            raise ModelError(f"{listed(doubled, SHOWN)} {verb} listed several times.")

    def find(self, name: str) -> ListedModel:
        """The model with this id. Raises ModelError, which lists those there are."""
        for model in self.models:
            if model.id == name:
                return model
        known = [model.id for model in self.models]
        like = difflib.get_close_matches(name[:64], known, SHOWN) if len(known) > SHOWN else known
        raise ModelError(
            f"The index has no model {name[:80]!r}. It lists {listed(like or known, SHOWN) or 'none'}."
        )

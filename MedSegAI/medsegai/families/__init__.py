"""Model families: one file each, found by the name that a model card gives.

A family is a module with `load(card) -> Model`. It may also have `import_model(path, destination) ->
ModelCard | None`, which turns a foreign file into a model folder, or answers None where the file is not of
its kind. Families never import each other.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Protocol

from numpy.typing import NDArray

from medsegai.card import ModelCard
from medsegai.errors import ModelError
from medsegai.networks.backends import Compute
from medsegai.probabilities import Block
from medsegai.volume import Geometry, Volume


@dataclass(frozen=True)
class Prepared:
    """The input as a model's members want it.

    Attributes:
        geometry: the native grid that members answer for.
        voxels: channels on that grid, float32 (channel, k, j, i).
        warnings: what the user should know of the input, in words.
    """

    geometry: Geometry
    voxels: NDArray[Any]
    warnings: tuple[str, ...] = ()


class Member(Protocol):
    """One answer to "how probable is each class here?".

    `classes` gives for each output channel the label values that it feeds; () is background.
    """

    name: str
    weight: float
    classes: Sequence[Sequence[int]]

    def predict(self, prepared: Prepared, compute: Compute) -> Iterator[Block]:
        """Answer block by block; what no block covers is background."""
        ...


class Model(Protocol):
    """A loaded model: it prepares an input once, and its members predict on that."""

    card: ModelCard

    def prepare(self, inputs: Sequence[Volume]) -> Prepared: ...

    def members(self, names: Sequence[str], dropout_passes: int, seed: int) -> Sequence[Member]: ...


def family(name: str) -> ModuleType:
    """The module of a family.

    Raises:
        ModelError: there is no such family.
    """
    if name not in family_names():
        raise ModelError(
            f"There is no model family {name!r}. Known families: {', '.join(family_names())}."
        )
    return importlib.import_module(f"{__name__}.{name}")


def family_names() -> tuple[str, ...]:
    return tuple(module.name for module in pkgutil.iter_modules(__path__))


def load_model(card: ModelCard) -> Model:
    """The model of a card, its weights checked against their hashes."""
    model: Model = family(card.family).load(card)
    return model

"""Model families: one module or package each, found by the name that a model card gives.

A family has `load(card) -> Model`. It may also have `import_model(path, destination) -> ModelCard | None`, which
turns a foreign file into a model folder, or answers None where the file is not of its kind. Families never import
each other.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Protocol

from medsegai.card import ModelCard
from medsegai.errors import ModelError
from medsegai.networks.backends import Compute
from medsegai.probabilities import Block
from medsegai.progress import Progress
from medsegai.request import SegmentationRequest
from medsegai.scale import Scale
from medsegai.volume import Geometry, Volume

Step = Callable[[float], None]
"""Told which share of some work is done, from 0 to 1, in small steps; it may raise `Cancelled`."""


class Member(Protocol):
    """One answer to "how probable is each class here?".

    `classes` gives for each output channel the label values that it feeds; () is background.
    """

    name: str
    weight: float
    classes: Sequence[Sequence[int]]

    def predict(self, compute: Compute, step: Step) -> Iterator[Block]:
        """Answer block by block; of probabilities, what no block covers is background."""
        ...


@dataclass(frozen=True)
class Part:
    """Members that share a native grid, and how their answers are joined and read there.

    Attributes:
        geometry: the native grid that the members answer for.
        members: at least one.
        networks: which members of the card give these answers, those of an earlier stage included.
        scale: what they answer.
        linear: along which native axes (k, j, i) answers are interpolated.
        weight: share in the fusion with other parts; None for the sum of its members' weights.
        plane_axis: the axis (k, j, i) of the input along which native planes lie one after another, for members
            whose blocks are whole planes in order; such a part may be read while it predicts. None for others.
        warnings: what the user should know of the input, in words.
    """

    geometry: Geometry
    members: Sequence[Member]
    networks: Sequence[str]
    scale: Scale = Scale.PROBABILITIES
    linear: tuple[bool, bool, bool] = (True, True, True)
    weight: float | None = None
    plane_axis: int | None = None
    warnings: tuple[str, ...] = ()


class Model(Protocol):
    """A loaded model."""

    card: ModelCard

    def parts(
        self,
        inputs: Sequence[Volume],
        output: Geometry,
        request: SegmentationRequest,
        compute: Compute,
        progress: Progress,
    ) -> Sequence[Part]:
        """Prepare the input, and name the members that are to predict on it.

        `output` is the part of the inputs' grid that is asked for; no more need be predicted. Where
        `request.members_apart` is false, members that are only averaged may come as one.
        """
        ...


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
    names = (module.name for module in pkgutil.iter_modules(__path__))
    return tuple(name for name in names if not name.startswith("_"))


def load_model(card: ModelCard) -> Model:
    """The model of a card, its weights checked against their hashes."""
    model: Model = family(card.family).load(card)
    return model

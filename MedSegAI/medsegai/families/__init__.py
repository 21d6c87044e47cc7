"""Model families: one module or package each, found by the name that a model card gives.

A family has `load(card) -> Model`. It may also have `import_model(path, destination) -> ModelCard | None`, which
turns a foreign file into a model folder, or returns None if the file is not of its kind. Families never import
each other.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Protocol

from medsegai.errors import ModelError
from medsegai.inference.activation import Activation
from medsegai.inference.fusion import side_aware_first
from medsegai.inference.grid_sampling import Reach
from medsegai.inference.probabilities import Block
from medsegai.models.card import ModelCard
from medsegai.networks.backends import Compute
from medsegai.progress import Progress
from medsegai.request import SegmentationRequest
from medsegai.volume import Geometry, Volume

Step = Callable[[float], None]
"""Receives the finished share of some work, from 0 to 1, in small steps; it may raise `Cancelled`."""


@dataclass(frozen=True)
class Inputs:
    """The scans to segment, and volumes prepared from them, which families that need the same one share.

    Attributes:
        scans: the scans, one for each channel.
    """

    scans: Sequence[Volume]
    _prepared: dict[Hashable, Volume] = field(default_factory=dict)

    def prepared(self, way: Hashable, prepare: Callable[[], Volume]) -> Volume:
        """The result of `prepare`, which is called only once for each `way`."""
        if way not in self._prepared:
            self._prepared[way] = prepare()
        return self._prepared[way]


class Member(Protocol):
    """A network, fold or view, which predicts the probability of each class at each voxel.

    `classes` gives for each output channel its target labels; () is the background.
    """

    name: str
    weight: float
    classes: Sequence[Sequence[int]]

    def predict(self, compute: Compute, step: Step) -> Iterator[Block]:
        """Predict block by block. For probabilities, voxels that no block covers are background."""
        ...


@dataclass(frozen=True)
class Part:
    """Members that share a native grid, and how their predictions are combined and read there.

    Attributes:
        geometry: the native grid on which the members predict.
        members: at least one.
        networks: the members of the card that are used, including those of an earlier stage.
        activation: the meaning of the predictions, such as probabilities or logits.
        linear: for each native axis (k, j, i), whether predictions are interpolated along it.
        weight: the weight in the fusion with other parts; None for the sum of its members' weights.
        plane_axis: the axis (k, j, i) of the input along which native planes lie one after another, for members
            whose blocks are whole planes in order; such a part may be read while it predicts. None for others.
        warnings: what the user should know about the input, as sentences.
        reach: the part of the native grid on which predictions are valid; outside of it all is background. None
            for half a voxel beyond the outermost centres.
        findings: returns sentences on the image as a whole, after the members have predicted.
    """

    geometry: Geometry
    members: Sequence[Member]
    networks: Sequence[str]
    activation: Activation = Activation.PROBABILITIES
    linear: tuple[bool, bool, bool] = (True, True, True)
    weight: float | None = None
    plane_axis: int | None = None
    warnings: tuple[str, ...] = ()
    reach: Reach | None = None
    findings: Callable[[], tuple[str, ...]] = tuple


class Model(Protocol):
    """A loaded model."""

    card: ModelCard

    def parts(
        self,
        inputs: Inputs,
        output: Geometry,
        request: SegmentationRequest,
        compute: Compute,
        progress: Progress,
    ) -> Sequence[Part]:
        """Prepare the input, and return the members that will predict on it.

        `output` is the requested part of the inputs' grid; nothing outside of it needs a prediction. If
        `request.members_apart` is false, members that are only averaged may be combined into one.
        """
        ...

    def warm_up(self, request: SegmentationRequest, compute: Compute) -> None:
        """Prepare the networks that a request needs before there is a scan."""
        ...


def family(name: str) -> ModuleType:
    """Import the module of a family.

    Raises:
        ModelError: the family does not exist.
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
    """Load the model of a card, after its weights were checked against their hashes."""
    if len(card.families()) > 1:
        return JointModel(card)
    (name,) = card.families()
    model: Model = family(name).load(card)
    return model


class JointModel:
    """A model whose members belong to several families. Members on one native grid are fused as one part."""

    def __init__(self, card: ModelCard) -> None:
        self.card = card
        self._models: dict[str, Model] = {
            name: family(name).load(card.of_family(name)) for name in card.families()
        }

    def parts(
        self,
        inputs: Inputs,
        output: Geometry,
        request: SegmentationRequest,
        compute: Compute,
        progress: Progress,
    ) -> list[Part]:
        """The parts of all requested families; parts on the same grid are combined."""
        found: list[Part] = []
        for model, asked in self._asked(request):
            for part in model.parts(inputs, output, asked, compute, progress):
                _join(found, part)
        return found

    def warm_up(self, request: SegmentationRequest, compute: Compute) -> None:
        """Warm up the models of all requested families."""
        for model, asked in self._asked(request):
            model.warm_up(asked, compute)

    def model_of(self, member: str) -> Model:
        """The model of the family to which a member belongs."""
        return self._models[self.card.member(member).family or self.card.family]

    def _asked(self, request: SegmentationRequest) -> Iterator[tuple[Model, SegmentationRequest]]:
        """The models that have requested members, each with the request for those."""
        chosen = {member.name for member in self.card.chosen_members(request.members)}
        for model in self._models.values():
            own = tuple(member.name for member in model.card.members if member.name in chosen)
            if own:
                yield model, replace(request, members=own)


def _join(parts: list[Part], part: Part) -> None:
    """Add `part` to `parts`, or combine it with a part on the same grid, if there is one."""
    for index, other in enumerate(parts):
        if (
            other.geometry.matches(part.geometry)
            and (other.activation, other.linear) == (part.activation, part.linear)
            and other.reach is part.reach is None
            and other.weight is part.weight is other.plane_axis is part.plane_axis is None
        ):
            parts[index] = replace(
                other,
                members=side_aware_first([*other.members, *part.members]),
                networks=[*other.networks, *part.networks],
                warnings=(*other.warnings, *part.warnings),
            )
            return
    parts.append(part)

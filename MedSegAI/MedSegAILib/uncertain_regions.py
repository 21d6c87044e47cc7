"""Uncertain regions and their descriptions: plain values, without Qt and MRML."""

from __future__ import annotations

from dataclasses import dataclass

from MedSegAILib.translation import tr as _

HEAT, UNCERTAINTY = "heat map", "uncertainty"
"""The maps that are walked and shown over an image: probability of any structure, and uncertainty."""


@dataclass(frozen=True)
class UncertainRegion:
    """A region to check.

    Attributes:
        segment_id: the segment at the place, or next to it; "" if there is none.
        name: the name of that segment.
        ras: the place in the world, in mm.
        score: the mean entropy around it in nats, or the probability.
        voxel: the voxel (i, j, k) of the entropy volume, or of the heat map.
        suspicious: whether it is a maximum of a heat map, and not of uncertainty.
    """

    segment_id: str
    name: str
    ras: tuple[float, float, float]
    score: float
    voxel: tuple[int, int, int] = (0, 0, 0)
    suspicious: bool = False


@dataclass(frozen=True)
class Step:
    """A step of a walk: the place, its number from 1, and the number of places."""

    place: UncertainRegion
    number: int
    count: int


def step_in_words(step: Step | None) -> str:
    """Return the description of a step, or that there is no region."""
    if step is None:
        return _("There is no uncertain region to go to.")
    words = _("Uncertain region {number} of {count}: {name}.")
    if step.place.suspicious:
        words = _("Suspicious place {number} of {count}: {name}.")
    return words.format(
        number=step.number,
        count=step.count,
        name=step.place.name or _("outside all segments"),
    )

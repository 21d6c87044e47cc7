"""Uncertain regions, and what is said of the one that is shown: plain values, without Qt and without MRML."""

from __future__ import annotations

from dataclasses import dataclass

from MedSegAILib.translation import tr as _

HEAT, UNCERTAINTY = "heat map", "uncertainty"
"""The maps that are walked and laid over an image: how probable it is that there is anything, and doubt."""


@dataclass(frozen=True)
class DoubtfulPlace:
    """A place to look at.

    Attributes:
        segment_id: the segment that is there, or next to it; "" where there is none.
        name: of that segment.
        ras: where, in the world, in mm.
        score: mean entropy around it, in nats, or probability.
        voxel: (i, j, k) in the volume of the entropy, or of the heat map.
        suspicious: whether it is a top of a heat map, and not of doubt.
    """

    segment_id: str
    name: str
    ras: tuple[float, float, float]
    score: float
    voxel: tuple[int, int, int] = (0, 0, 0)
    suspicious: bool = False


@dataclass(frozen=True)
class Step:
    """Where a walk has come to: the place, its number from 1, and how many places there are."""

    place: DoubtfulPlace
    number: int
    count: int


def place_in_words(step: Step | None) -> str:
    """Where the walk stands, or that there is nowhere to go."""
    if step is None:
        return _("There is no uncertain region to go to.")
    words = _("Doubtful place {number} of {count}: {name}.")
    if step.place.suspicious:
        words = _("Suspicious place {number} of {count}: {name}.")
    return words.format(
        number=step.number,
        count=step.count,
        name=step.place.name or _("outside of all segments"),
    )

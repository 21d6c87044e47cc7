"""How long a job will take: as long as jobs of the same kind took on this computer."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from statistics import median

from medsegai.card import ModelCard
from medsegai.request import SegmentationRequest, SegmentationResult
from medsegai.volume import Volume

KEPT = 5
"""How many times of each kind are kept; the median of them stands against a busy computer."""


class Estimates:
    """Remembers what jobs took.

    Args:
        read, write: a text that outlives the session, such as a setting.
    """

    def __init__(self, read: Callable[[], str], write: Callable[[str], None]) -> None:
        self._write = write
        self._times = _times(read())

    def seconds(self, cards: Sequence[ModelCard], request: SegmentationRequest) -> float | None:
        """How long this will take; None where nothing like it ran here."""
        times = self._times.get(_kind(cards, request))
        return None if not times else median(times) * _megavoxels(request)

    def typical_seconds(self, card: ModelCard) -> float | None:
        """How long this model took for a volume of ten million voxels, whatever the options."""
        start = f"{card.id} {card.version} "
        times = [
            value
            for kind, values in self._times.items()
            if kind.startswith(start)
            for value in values
        ]
        return 10 * median(times) if times else None

    def learn(
        self, cards: Sequence[ModelCard], request: SegmentationRequest, result: SegmentationResult
    ) -> None:
        """Remember what a job took."""
        taken = sum(result.seconds.values())
        if taken <= 0:
            return
        kind = _kind(cards, request)
        known = self._times.get(kind, [])
        self._times[kind] = [*known, taken / _megavoxels(request)][-KEPT:]
        self._write(json.dumps(self._times))


def _times(text: str) -> dict[str, list[float]]:
    """What was written; a damaged setting is forgotten, for it is learnt again soon."""
    try:
        data = json.loads(text or "{}")
        return {str(kind): [float(value) for value in values] for kind, values in data.items()}
    except (ValueError, TypeError, AttributeError):
        return {}


def _kind(cards: Sequence[ModelCard], request: SegmentationRequest) -> str:
    """Jobs that take as long per voxel: the same models, networks, device and passes."""
    models = " + ".join(f"{card.id} {card.version}" for card in cards)
    names = [member.name for card in cards for member in card.members]
    members = len(request.members) or len(names)
    box = "box" if request.region else ""
    passes = request.dropout_passes
    return (
        f"{models} {members} {request.device} {request.backend} {request.mirroring} {passes} {box}"
    )


def _megavoxels(request: SegmentationRequest) -> float:
    volume = request.inputs[0]
    assert isinstance(volume, Volume)
    return max(volume.voxels.size / 1e6, 0.01)

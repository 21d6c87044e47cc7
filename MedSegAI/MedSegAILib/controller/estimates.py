"""The expected time of a job, from jobs of the same kind on this computer."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from statistics import median

from medsegai.models.card import ModelCard
from medsegai.request import SegmentationRequest, SegmentationResult
from medsegai.volume import Volume

KEPT = 5
"""The number of times that are kept for each kind; their median is robust against a busy computer."""


class Estimates:
    """Remembers the times of jobs.

    Args:
        read, write: the functions that read and write a persistent text, such as a setting.
    """

    def __init__(self, read: Callable[[], str], write: Callable[[str], None]) -> None:
        self._write = write
        self._times = _times(read())

    def seconds(self, cards: Sequence[ModelCard], request: SegmentationRequest) -> float | None:
        """Return the expected time in seconds; None if no similar job ran here."""
        times = self._times.get(_kind(cards, request))
        return None if not times else median(times) * _megavoxels(cards, request)

    def typical_seconds(self, card: ModelCard) -> float | None:
        """Return how long this model took for ten million voxels of its own grid, with any options."""
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
        """Remember the time of a job."""
        taken = sum(result.seconds.values())
        if taken <= 0:
            return
        kind = _kind(cards, request)
        known = self._times.get(kind, [])
        self._times[kind] = [*known, taken / _megavoxels(cards, request)][-KEPT:]
        self._write(json.dumps(self._times))


def _times(text: str) -> dict[str, list[float]]:
    """Read the times; a damaged setting is discarded, because the times are soon learnt again."""
    try:
        data = json.loads(text or "{}")
        found = {str(kind): [float(value) for value in values] for kind, values in data.items()}
    except (ValueError, TypeError, AttributeError, RecursionError):
        return {}
    return found if all(0 < time < math.inf for times in found.values() for time in times) else {}


def _kind(cards: Sequence[ModelCard], request: SegmentationRequest) -> str:
    """Return the kind of a job, whose time per voxel is the same: models, networks, device and passes."""
    models = " + ".join(f"{card.id} {card.version}" for card in cards)
    names = [member.name for card in cards for member in card.members]
    members = len(request.members) or len(names)
    box = "box" if request.region else ""
    passes = request.dropout_passes
    return (
        f"{models} {members} {request.device} {request.backend} {request.mirroring} {passes} {box}"
    )


def _megavoxels(cards: Sequence[ModelCard], request: SegmentationRequest) -> float:
    """Return the amount of work: millions of voxels of the models' own grids, whatever the voxels of the scan.

    A scan of thick slices is as much work for a network as one of thin slices, because it is resampled first. A
    family with a fixed grid never does more than this grid.
    """
    volume = request.inputs[0]
    assert isinstance(volume, Volume)
    cubic_mm = 1000 * volume.geometry.voxel_volume_ml * volume.voxels.size
    if request.region:
        low, high = request.region[::2], request.region[1::2]
        box = math.prod(last - first for first, last in zip(low, high, strict=True))
        cubic_mm = min(cubic_mm, box)
    voxels = [
        min(
            cubic_mm / math.prod(card.spacing_mm), math.prod(card.settings.get("grid", (math.inf,)))
        )
        for card in cards
    ]
    return max(sum(voxels) / 1e6, 0.01)

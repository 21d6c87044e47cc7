"""What is said before a job and after it."""

from __future__ import annotations

from collections.abc import Sequence

from medsegai.card import ModelCard
from medsegai.request import NOT_FOR_DIAGNOSIS, SegmentationRequest, SegmentationResult
from medsegai.volume import Volume
from MedSegAILib.controller.devices import Devices
from MedSegAILib.translation import tr as _

MEMBERS_NAMED = 4
"""More networks than these are counted and not named."""


def plan(
    cards: Sequence[ModelCard],
    request: SegmentationRequest,
    devices: Devices,
    seconds: float | None,
) -> str:
    """What Segment will do.

    Args:
        seconds: how long it will take; None where that is not known yet.
    """
    volume = request.inputs[0]
    assert isinstance(volume, Volume)
    models = " + ".join(f"{card.name} {card.version}" for card in cards)
    parts = [
        _("{model} on {volume} ({grid}): {members}.").format(
            model=models,
            volume=", ".join(item.source for item in request.inputs if isinstance(item, Volume)),
            grid=volume.geometry.describe(),
            members=_members(cards, request),
        ),
        _("Device: {device}.").format(device=devices.describe(request.device)),
        memory(sum(card.memory_mb for card in cards), devices, request.device),
        _("The first run here shows how long it takes.")
        if seconds is None
        else _("About {time}.").format(time=duration(seconds)),
    ]
    return " ".join(part for part in parts if part)


def expectation(card: ModelCard, devices: Devices, seconds: float | None) -> str:
    """Time and memory of one model on this device, as far as they are known."""
    needed = memory(card.memory_mb, devices, "auto")
    time = "" if seconds is None else _("About {time}.").format(time=duration(seconds))
    return " ".join(part for part in (time, needed) if part)


def memory(needed_mb: float, devices: Devices, device: str) -> str:
    """What a job needs beside what is free; "" where the card does not say."""
    if not needed_mb:
        return ""
    needed = _("Memory: about {size:.1f} GB").format(size=needed_mb / 1000)
    free = devices.free_gb(device)
    if free is None:
        return f"{needed}."
    text = _("{needed} of {free:.1f} GB that are free.").format(needed=needed, free=free)
    if needed_mb / 1000 <= free:
        return text
    return text + " " + _("That is tight: close other programs, or choose fewer networks.")


def summary(name: str, result: SegmentationResult, notes: Sequence[str]) -> str:
    """What a job found, in how long, where; `notes` say what was left as it was."""
    found = sum(1 for measures in result.structures if measures.voxels)
    lines = [
        _("{name}: {found} of {all} structures in {seconds:.1f} s on {device}.").format(
            name=name,
            found=found,
            all=len(result.structures),
            seconds=sum(result.seconds.values()),
            device=result.provenance.get("device", "?"),
        ),
        *notes,
        *result.warnings,
        _(NOT_FOR_DIAGNOSIS),
    ]
    return "\n".join(lines)


def duration(seconds: float) -> str:
    """Roughly, for a guess."""
    if seconds < 90:
        return _("{seconds} s").format(seconds=max(round(seconds), 1))
    if seconds < 90 * 60:
        return _("{minutes} min").format(minutes=round(seconds / 60))
    return _("{hours:.1f} h").format(hours=seconds / 3600)


def _members(cards: Sequence[ModelCard], request: SegmentationRequest) -> str:
    names = [
        member.name
        for card in cards
        for member in (card.chosen_members(request.members) if len(cards) == 1 else card.members)
    ]
    if len(names) > MEMBERS_NAMED:
        return _("{count} networks").format(count=len(names))
    return ", ".join(names)

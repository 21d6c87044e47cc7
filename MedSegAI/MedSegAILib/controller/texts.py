"""The texts before and after a job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from medsegai.models.card import ModelCard
from medsegai.models.quality import MANY, NAMED_AT_MOST
from medsegai.request import NOT_FOR_DIAGNOSIS, SegmentationRequest, refined_text
from medsegai.volume import Volume
from MedSegAILib.controller.devices import Devices
from MedSegAILib.panel_values import DONE, DOUBT, PLAIN, PROBLEM, StructureRow, Verdict
from MedSegAILib.translation import counted
from MedSegAILib.translation import tr as _
from MedSegAILib.worker.location import WorkerLocation

SAVED_PREVIEW = _(
    "This scene was saved while a preview waited to be accepted or rejected. {original} is as it was before, and "
    "{preview} became a segmentation of its own, which is hidden."
)
MEMBERS_NAMED = 4
"""The number of networks above which they are counted instead of named."""


def plan(
    cards: Sequence[ModelCard],
    request: SegmentationRequest,
    devices: Devices,
    seconds: float | None,
) -> str:
    """Return what Segment will do: networks, device, memory and time.

    Args:
        seconds: the expected time; None if it is unknown.
    """
    needed = sum(card.memory_mb for card in cards) / 1000
    needs = [_("about {size:.1f} GB").format(size=needed)] if needed else []
    needs += [_("about {time}").format(time=rough_duration(seconds))] if seconds is not None else []
    text = _("Runs {members} on {device}").format(
        members=_members(cards, request), device=devices.describe(request.device)
    )
    text += _("; needs {what}.").format(what=_(" and ").join(needs)) if needs else "."
    return f"{text} {tightness(needed, devices, request.device)}".strip()


def travel(place: WorkerLocation) -> str:
    """Return where the images are sent; "" if they stay on this computer."""
    if place.shares_files:
        return ""
    return _("The images are sent to {host} through ssh.").format(host=place.target)


def details(cards: Sequence[ModelCard], request: SegmentationRequest) -> str:
    """Return which models run on which volumes."""
    volumes = [
        f"{volume.source} ({volume.geometry.describe()})"
        for volume in request.inputs
        if isinstance(volume, Volume)
    ]
    models = " + ".join(f"{card.name} {card.version}" for card in cards)
    return _("{models} on {volumes}").format(models=models, volumes=", ".join(volumes))


def expectation(card: ModelCard, devices: Devices, seconds: float | None) -> str:
    """Return time and memory of one model on this device, if they are known."""
    needed = card.memory_mb / 1000
    parts = []
    if seconds is not None:
        parts.append(_("About {time} here.").format(time=rough_duration(seconds)))
    if needed:
        free = devices.free_gb("auto")
        text = _("About {size:.1f} GB of memory").format(size=needed)
        parts.append(text + (f" ({free:.1f} GB free)." if free is not None else "."))
    parts.append(tightness(needed, devices, "auto"))
    return " ".join(part for part in parts if part)


def tightness(needed_gb: float, devices: Devices, device: str) -> str:
    """Return a warning if a job needs more memory than is free; "" if it does not, or this is unknown."""
    free = devices.free_gb(device)
    if free is None or needed_gb <= free:
        return ""
    text = _("Only {free:.1f} GB are free, so close other programs, or choose fewer networks.")
    return text.format(free=free)


def verdict(rows: Sequence[StructureRow], report: Mapping[str, Any]) -> Verdict:
    """Return the summary of a segmentation.

    Args:
        rows: its present structures.
        report: its origin, from `SegmentationResult.report`; empty if the AI did not make it.
    """
    if not rows:
        return Verdict()
    open_rows = [row for row in rows if row.to_check]
    line, tone = counted(len(rows), _("structure"), _("structures")), PLAIN
    if len(open_rows) > MANY * len(rows) and len(rows) > 1:
        line += _(", {count} to check: was the model made for this kind of image?")
        tone = PROBLEM
    elif open_rows:
        line += _(", {count} to check")
        tone = DOUBT
    elif all(row.review == DONE for row in rows):
        line += _(", all completed")
    elif any(row.quality for row in rows):
        line += _(", none to check")
    details = "\n".join(_details(rows, report))
    return Verdict(line.format(count=len(open_rows)), tone, details)


def _details(rows: Sequence[StructureRow], report: Mapping[str, Any]) -> list[str]:
    """Return the details as sentences: structures that were not found, remarks, device and time."""
    if not report:
        return []
    missing = _missing(rows, report)
    provenance = report.get("provenance", {})
    lines = [*report.get("warnings", ())]
    if missing and len(missing) <= NAMED_AT_MOST:
        lines.append(_("Not found: {names}.").format(names=", ".join(missing)))
    elif missing:
        lines.append(_("{count} structures were not found.").format(count=len(missing)))
    lines += filter(None, [refined_text(provenance.get("refinements", ()))])
    lines.append(
        _("It took {time} on {device}.").format(
            time=rough_duration(sum(report.get("seconds", {}).values())),
            device=provenance.get("device", "?"),
        )
    )
    return [*lines, NOT_FOR_DIAGNOSIS]


def _missing(rows: Sequence[StructureRow], report: Mapping[str, Any]) -> list[str]:
    """Return the structures that were not found, also later in a region."""
    found = {row.name for row in rows if row.volume_ml}
    empty = (item["name"] for item in report.get("structures", ()) if not item["voxels"])
    return [name for name in empty if name not in found]


def defect(error: Exception) -> str:
    """Return the message of an unexpected error."""
    text = _("Unexpected error in MedSegAI: {error}. Please report it, with the log.")
    return text.format(error=f"{type(error).__name__}: {error}")


def rough_duration(seconds: float) -> str:
    """Return a time as an estimate gives it: in one unit, without false precision."""
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

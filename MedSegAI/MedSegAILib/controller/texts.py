"""What is said before a job and after it."""

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

MEMBERS_NAMED = 4
"""More networks than these are counted and not named."""


def plan(
    cards: Sequence[ModelCard],
    request: SegmentationRequest,
    devices: Devices,
    seconds: float | None,
) -> str:
    """What Segment will do: networks, device, memory and time.

    Args:
        seconds: how long it will take; None where that is not known yet.
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
    """Where the images go; "" where they stay on this computer."""
    if place.shares_files:
        return ""
    return _("The images are sent to {host} through ssh.").format(host=place.target)


def details(cards: Sequence[ModelCard], request: SegmentationRequest) -> str:
    """Which models on which volumes."""
    volumes = [
        f"{volume.source} ({volume.geometry.describe()})"
        for volume in request.inputs
        if isinstance(volume, Volume)
    ]
    models = " + ".join(f"{card.name} {card.version}" for card in cards)
    return _("{models} on {volumes}").format(models=models, volumes=", ".join(volumes))


def expectation(card: ModelCard, devices: Devices, seconds: float | None) -> str:
    """Time and memory of one model on this device, as far as they are known."""
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
    """A warning where a job needs more memory than is free; "" where it does not, or nobody knows."""
    free = devices.free_gb(device)
    if free is None or needed_gb <= free:
        return ""
    text = _("Only {free:.1f} GB are free: close other programs, or choose fewer networks.")
    return text.format(free=free)


def verdict(rows: Sequence[StructureRow], report: Mapping[str, Any]) -> Verdict:
    """What a segmentation comes to.

    Args:
        rows: its structures as they are now.
        report: how it was made, as `SegmentationResult.report` gives it; empty where the AI did not make it.
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
    return Verdict(line.format(count=len(open_rows)), tone, "\n".join(_details(report)))


def _details(report: Mapping[str, Any]) -> list[str]:
    """Why and how, in sentences: what the model could not find, what was remarked, where and how long it ran."""
    if not report:
        return []
    missing = [item["name"] for item in report.get("structures", ()) if not item["voxels"]]
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
    return [*lines, _(NOT_FOR_DIAGNOSIS)]


def defect(error: Exception) -> str:
    """What to say of an error that nobody thought of."""
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

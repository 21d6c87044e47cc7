"""The progress of a job in words, for the page, the queue and the status bar of the application."""

from __future__ import annotations

from medsegai.progress import ProgressEvent, duration
from MedSegAILib.translation import tr as _

STAGES = {
    "read": _("Reading"),
    "prepare": _("Preparing"),
    "predict": _("Predicting"),
    "labels": _("Combining"),
    "refine": _("Refining"),
    "measure": _("Measuring"),
    "write": _("Writing"),
}


def progress_text(event: ProgressEvent) -> str:
    """Return stage, per cent and time left."""
    stage = stage_text(event.stage)
    percent = f"{100 * event.fraction:.0f} %"
    if event.seconds_left is None:
        return f"{stage} – {percent}"
    left = _("{time} left").format(time=duration(event.seconds_left))
    return f"{stage} – {percent} – {left}"


def stage_text(stage: str) -> str:
    """Return a stage of a job in words."""
    return STAGES.get(stage, stage.capitalize())

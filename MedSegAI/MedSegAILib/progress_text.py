"""The progress of a job in words, for the page, the queue and the status bar of the application."""

from __future__ import annotations

from medsegai import progress
from medsegai.progress import ProgressEvent
from MedSegAILib.translation import tr as _

STAGES = {
    "read": "Reading",
    "prepare": "Preparing",
    "predict": "Predicting",
    "labels": "Combining",
    "refine": "Refining",
    "measure": "Measuring",
    "write": "Writing",
}


def progress_text(event: ProgressEvent) -> str:
    """Return stage, per cent and time left."""
    stage = _(STAGES.get(event.stage, event.stage.capitalize()))
    percent = f"{100 * event.fraction:.0f} %"
    if event.seconds_left is None:
        return f"{stage} – {percent}"
    left = _("{time} left").format(time=duration(event.seconds_left))
    return f"{stage} – {percent} – {left}"


def duration(seconds: float) -> str:
    """Return a time as a person says it, such as `3 min 05 s`, in the language of the application."""
    return progress.duration(seconds, _)

"""The words of a batch: states of cases, files of the folder, flags, and the events that `medsegai batch` prints.

The command writes them and the panel reads them, so both take them from here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from medsegai.progress import ProgressEvent

TABLE_NAME, VOLUMES_NAME = "batch.csv", "volumes.csv"
"""Files in the folder of results: how far each case is, and the structures of all cases."""

EVENTS_FLAG, RESUME_FLAG, OVERWRITE_FLAG = "--events", "--resume", "--overwrite"

FLAGS: Mapping[str, tuple[str, ...]] = {
    "models": ("--model",),
    "members": ("--members", "--views", "--folds"),
    "refinements": ("--refinement",),
}
"""Options of a request whose flags are not simply their names."""

CASE, PROGRESS, NOTE = "case", "progress", "note"
"""What an event is: the line of a case changed, how far a case is, or something that the user should know."""


def flags_of(option: str) -> tuple[str, ...]:
    """Return the flags of an option of `SegmentationRequest` on the command line, the long one first."""
    return FLAGS.get(option, ("--" + option.replace("_", "-"),))


class CaseState(StrEnum):
    """How far a case is, as the table, the events and the panel name it."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"

    @property
    def is_over(self) -> bool:
        """Whether nothing more happens to the case in this batch."""
        return self in (CaseState.DONE, CaseState.FAILED)


@dataclass(frozen=True)
class Entry:
    """A line of the table.

    Attributes:
        remarks: how many structures a person should look at; None unless the case is done.
        message: why a case failed, or what the user should know of it.
    """

    case: str
    state: CaseState = CaseState.WAITING
    seconds: float | None = None
    remarks: int | None = None
    message: str = ""

    @classmethod
    def done(cls, case: str, report: Mapping[str, Any]) -> Entry:
        """Return the line of a case that is done, from its report."""
        seconds = round(sum(report["seconds"].values()), 1)
        remarks = sum(bool(item["remarks"]) for item in report["structures"])
        return cls(case, CaseState.DONE, seconds, remarks, " ".join(report["warnings"]))


@dataclass(frozen=True)
class CaseProgress:
    """How far a case is, from 0 to 1."""

    case: str
    fraction: float


def case_event(entry: Entry) -> dict[str, Any]:
    """Return the event that says that the line of a case changed, as JSON values."""
    return {"event": CASE, **asdict(entry)}


def progress_event(case: str, event: ProgressEvent) -> dict[str, Any]:
    """Return the event that says how far a case is, as JSON values."""
    return {"event": PROGRESS, "case": case, **vars(event)}


def note_event(message: str) -> dict[str, Any]:
    """Return the event with something that the user should know, as JSON values."""
    return {"event": NOTE, "message": message}


def read_event(line: str) -> Entry | CaseProgress | None:
    """Read what a batch printed about a case.

    Returns:
        The line of the case or its progress; None for notes, and for what a library printed in between.
    """
    try:
        event = json.loads(line)
        kind, case = event["event"], event["case"]
        if kind == CASE:
            told = (event[name] for name in ("seconds", "remarks", "message"))
            return Entry(case, CaseState(event["state"]), *told)
        if kind == PROGRESS:
            return CaseProgress(case, float(event["fraction"]))
    except (ValueError, LookupError, TypeError, RecursionError):
        pass
    return None

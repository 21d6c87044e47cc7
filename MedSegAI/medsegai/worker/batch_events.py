"""The vocabulary of a batch: states of cases, files of the folder, flags, and events of `medsegai batch`.

The command writes them and the panel reads them, so both import them from here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any

from medsegai.progress import ProgressEvent

TABLE_NAME, VOLUMES_NAME, OBJECTS_NAME = "batch.csv", "volumes.csv", "objects.csv"
"""The files in the folder of results: the state of each case, and the structures and objects of all cases."""

EVENTS_FLAG, RESUME_FLAG, OVERWRITE_FLAG = "--events", "--resume", "--overwrite"

FLAGS: Mapping[str, tuple[str, ...]] = {
    "models": ("--model",),
    "members": ("--members", "--views", "--folds"),
    "refinements": ("--refinement",),
}
"""The options of a request whose flags differ from their names."""

CASE, PROGRESS, NOTE = "case", "progress", "note"
"""The kinds of events: a changed line of a case, the progress of a case, or a message for the user."""


def flags_of(option: str) -> tuple[str, ...]:
    """Return the flags of an option of `SegmentationRequest` on the command line, the long one first."""
    return FLAGS.get(option, ("--" + option.replace("_", "-"),))


class CaseState(StrEnum):
    """The state of a case, as the table, the events and the panel name it."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"

    @property
    def is_over(self) -> bool:
        """Whether the case is finished or failed in this batch."""
        return self in (CaseState.DONE, CaseState.FAILED)


@dataclass(frozen=True)
class Entry:
    """A line of the table.

    Attributes:
        remarks: the number of structures that a person should look at; None unless the case is done.
        message: the reason why a case failed, or a remark about it.
    """

    case: str
    state: CaseState = CaseState.WAITING
    seconds: float | None = None
    remarks: int | None = None
    message: str = ""

    @classmethod
    def done(cls, case: str, report: Mapping[str, Any]) -> Entry:
        """Return the line of a finished case, from its report."""
        seconds = round(sum(report["seconds"].values()), 1)
        remarks = sum(bool(item["remarks"]) for item in report["structures"])
        return cls(case, CaseState.DONE, seconds, remarks, " ".join(report["warnings"]))

    def remarked(self, remark: str) -> Entry:
        """Return the line with a remark in front of its message."""
        return replace(self, message=f"{remark} {self.message}".strip())


@dataclass(frozen=True)
class CaseProgress:
    """The progress of a case, from 0 to 1."""

    case: str
    fraction: float


def case_event(entry: Entry) -> dict[str, Any]:
    """Return the event for a changed line of a case, as JSON values."""
    return {"event": CASE, **asdict(entry)}


def progress_event(case: str, event: ProgressEvent) -> dict[str, Any]:
    """Return the event for the progress of a case, as JSON values."""
    return {"event": PROGRESS, "case": case, **vars(event)}


def note_event(message: str) -> dict[str, Any]:
    """Return the event with a message for the user, as JSON values."""
    return {"event": NOTE, "message": message}


def read_event(line: str) -> Entry | CaseProgress | None:
    """Read what a batch printed about a case.

    Returns:
        The line of the case or its progress; None for messages, and for the output of libraries.
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

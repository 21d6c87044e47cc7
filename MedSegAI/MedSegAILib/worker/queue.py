"""The queue: several volumes or models one after another, while the user continues to work.

It uses neither Qt nor MRML. The worker client does one job at a time. Here the next jobs wait, each with a state
that a table can show, and jobs that are over stay until they are removed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from medsegai.errors import Cancelled, MedSegAIError, WorkerError
from medsegai.progress import ProgressEvent
from MedSegAILib.guarding import guarded
from MedSegAILib.signals import Signal
from MedSegAILib.translation import tr as _
from MedSegAILib.worker.listener import JobListener


class JobClient(Protocol):
    """The client of the queue, see `client.WorkerClient`.

    Attributes:
        freed: a job is over, and its listener was notified.
        stalled: the job does not progress, although the worker is alive.
    """

    freed: Signal
    stalled: Signal

    @property
    def busy(self) -> bool: ...
    def start(self, request: object, listener: JobListener) -> None: ...
    def cancel(self) -> None: ...


class JobState(StrEnum):
    """The state of a job, as the panel names it."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(eq=False)
class Entry:
    """One job in the queue, which must only be changed through the queue.

    Attributes:
        title: the title in the table, such as volume and model.
        make_request: the function that makes the request when the job's turn comes, with the voxels of that
            moment.
        listener: the receiver of the job's events; also of `failed` with `Cancelled` if it never started.
        state: the state of the job.
        stopping: whether it is running and was asked to stop.
        fraction: the finished fraction of the job, 0 to 1.
        seconds_left: the seconds left; None until they are known.
        stage: the present stage.
        message: the reason why it failed, or a remark for the user.
        kept: the result of the job, if the listener could not use it; `JobQueue.again` delivers it once more.
    """

    title: str
    make_request: Callable[[], object] = field(repr=False)
    listener: JobListener = field(repr=False)
    state: JobState = JobState.WAITING
    stopping: bool = False
    fraction: float = 0.0
    seconds_left: float | None = None
    stage: str = ""
    message: str = ""
    kept: object = field(default=None, repr=False)

    @property
    def over(self) -> bool:
        """Whether the job is finished, failed or cancelled."""
        return self.state not in (JobState.WAITING, JobState.RUNNING)


class JobQueue:
    """Runs entries one after another through a client, which may be shared.

    A failing entry or listener does not stop the others; exceptions of listeners are logged. If a listener cannot
    use its result, the entry fails and keeps the result.

    Attributes:
        changed: state, order or progress of any entry changed.
    """

    def __init__(self, client: JobClient) -> None:
        self.changed = Signal()
        self._client = client
        self._entries: list[Entry] = []
        self._running: Entry | None = None
        self._leaving: set[Entry] = set()
        self._advancing = False
        client.freed.connect(self._advance)
        client.stalled.connect(self._warn)

    @property
    def entries(self) -> tuple[Entry, ...]:
        """All jobs, in the order in which they run."""
        return tuple(self._entries)

    @property
    def busy(self) -> bool:
        """Whether an entry runs or waits."""
        return not all(entry.over for entry in self._entries)

    def add(self, title: str, make_request: Callable[[], object], listener: JobListener) -> Entry:
        """Add a job at the end; it starts at once if no other job runs.

        Args:
            title: the title in the table.
            make_request: the function that makes the request when the job's turn comes; a `MedSegAIError` fails
                this entry.
            listener: the receiver of the job's events.
        """
        entry = Entry(title, make_request, listener)
        self._entries.append(entry)
        self._notify(self.changed.emit)
        self._advance()
        return entry

    def move(self, entry: Entry, by: int) -> None:
        """Move a waiting entry `by` places later among the waiting ones, or earlier if negative."""
        places = [
            number for number, item in enumerate(self._entries) if item.state is JobState.WAITING
        ]
        waiting = [self._entries[place] for place in places]
        if entry not in waiting:
            return
        position = waiting.index(entry)
        waiting.insert(min(max(position + by, 0), len(waiting) - 1), waiting.pop(position))
        for place, item in zip(places, waiting, strict=True):
            self._entries[place] = item
        self._notify(self.changed.emit)

    def remove(self, entry: Entry) -> None:
        """Remove an entry from the list; a running entry is cancelled, and removed when it has stopped."""
        if entry not in self._entries:
            return
        if entry.state is JobState.RUNNING:
            self._leaving.add(entry)
            self.cancel(entry)
            return
        self._entries.remove(entry)
        if entry.state is JobState.WAITING:
            self._conclude(
                entry, Cancelled(_("The job was removed from the queue before it started."))
            )
        else:
            self._notify(self.changed.emit)

    def remove_ended(self) -> None:
        """Remove every entry that is over."""
        self._entries = [entry for entry in self._entries if not entry.over]
        self._notify(self.changed.emit)

    def again(self, entry: Entry) -> Entry:
        """Run an entry again.

        Returns:
            The entry itself if it kept its result, which its listener receives again; otherwise a new entry at the
            end, and the old one is unchanged.
        """
        if entry.kept is not None:
            result, entry.kept = entry.kept, None
            self._deliver(entry, result)
            self._notify(self.changed.emit)
            return entry
        return self.add(entry.title, entry.make_request, entry.listener)

    def cancel(self, entry: Entry) -> None:
        """Stop a running entry, or prevent a waiting one from starting."""
        if entry.state is JobState.WAITING and entry in self._entries:
            self._conclude(entry, Cancelled(_("The job was cancelled before it started.")))
        elif entry.state is JobState.RUNNING and not entry.stopping:
            entry.stopping = True
            self._client.cancel()
            self._notify(self.changed.emit)

    def cancel_all(self) -> None:
        """Stop the running job, cancel waiting ones, and discard kept results."""
        for entry in self.entries[::-1]:  # waiting jobs first, so that none starts
            self.cancel(entry)
            entry.kept = None

    def _advance(self) -> None:
        """Start the next job, if none is running. A job may end before its start returns."""
        if self._advancing:
            return
        self._advancing = True
        try:
            while self._running is None and not self._client.busy:
                entry = next((item for item in self._entries if not item.over), None)
                if entry is None:
                    return
                self._begin(entry)
        finally:
            self._advancing = False

    def _begin(self, entry: Entry) -> None:
        self._running, entry.state = entry, JobState.RUNNING
        self._notify(self.changed.emit)
        failures: list[Exception] = []
        # The other jobs are independent of this one, and must not wait for ever.
        with guarded(failures.append, "Unexpected error while %s was prepared", entry.title):
            try:
                request = entry.make_request()
                if entry.stopping:  # the scene was closed while its voxels were read
                    raise Cancelled(_("The job was cancelled before it started."))
                self._client.start(request, _Relay(self, entry))
            except MedSegAIError as error:
                self._conclude(entry, error)
        for failure in failures:
            text = _("Unexpected error in MedSegAI: {error}. Please report it.")
            self._conclude(entry, WorkerError(text.format(error=_named(failure))))

    def _progress(self, entry: Entry, event: ProgressEvent) -> None:
        entry.stage, entry.fraction = event.stage, event.fraction
        entry.seconds_left, entry.message = event.seconds_left, ""
        self._notify(entry.listener.progressed, event)
        self._notify(self.changed.emit)

    def _warn(self) -> None:
        if self._running is not None:
            self._running.message = _(
                "No progress for a long time. Wait, or cancel; the log of the worker may say why."
            )
            self._notify(self.changed.emit)

    def _conclude(self, entry: Entry, answer: object) -> None:
        """End the entry, with the result of its job or the error that ended it."""
        entry.seconds_left, entry.stopping = None, False
        if self._running is entry:
            self._running = None
        if entry in self._leaving:
            self._leaving.discard(entry)
            self._entries.remove(entry)
        if isinstance(answer, MedSegAIError):
            self._fail(entry, answer)
        else:
            self._deliver(entry, answer)
        self._notify(self.changed.emit)

    def _deliver(self, entry: Entry, result: object) -> None:
        """Give a result to the listener. If it cannot use the result, the work of minutes must not be lost."""
        entry.state, entry.fraction, entry.message = JobState.DONE, 1.0, ""
        failures: list[Exception] = []
        with guarded(failures.append, "The result of %s could not be used", entry.title):
            try:
                entry.listener.finished(result)
            except MedSegAIError as error:
                entry.kept = result
                self._fail(entry, error)
        for failure in failures:
            entry.kept = result
            text = _(
                "The result of {title} was kept, because it could not be added to the scene "
                "({error}). Choose the job in the queue, press Try again, and please report "
                "this with the log."
            )
            self._fail(entry, WorkerError(text.format(title=entry.title, error=_named(failure))))

    def _fail(self, entry: Entry, error: MedSegAIError) -> None:
        entry.state = JobState.CANCELLED if isinstance(error, Cancelled) else JobState.FAILED
        entry.message = str(error)
        self._notify(entry.listener.failed, error)

    def _notify(self, receiver: Callable[..., None], *values: object) -> None:
        # Exceptions of a listener must not stop the queue.
        with guarded(None, "A listener of the queue failed"):
            receiver(*values)


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


class _Relay:
    """Passes events from the client to the listener, and keeps the entry up to date."""

    def __init__(self, queue: JobQueue, entry: Entry) -> None:
        self._queue, self._entry = queue, entry

    def progressed(self, event: ProgressEvent) -> None:
        self._queue._progress(self._entry, event)

    def finished(self, result: object) -> None:
        self._queue._conclude(self._entry, result)

    def failed(self, error: MedSegAIError) -> None:
        self._queue._conclude(self._entry, error)

"""The client of the worker process, which sends jobs and receives events, and never hangs.

The process is started with the first job, or before, and kept, so that the next job finds its models loaded. If a
cancelled job does not stop, or the worker violates the protocol, is silent, does not start or dies, then the
process is ended with its children, this is reported once to the job's listener, and the next job starts a new
process. Exceptions of a listener do not affect the client.
"""

from __future__ import annotations

import re
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import qt

from medsegai.errors import Cancelled, MedSegAIError, WorkerError
from medsegai.models.json_fields import from_json
from medsegai.progress import ProgressEvent
from medsegai.worker.array_transfer import ExchangeFolder, blocks, take_block
from medsegai.worker.protocol import (
    ALIVE,
    ARRAY,
    CANCEL,
    ERROR,
    PROGRESS,
    PROTOCOL_VERSION,
    QUIT,
    READY,
    RESULT,
    WARM,
    Kind,
    Message,
    decode,
    encode,
    kind_of,
    packed,
    unpack_error,
    unpacked,
)
from MedSegAILib.signals import Signal
from MedSegAILib.translation import tr as _
from MedSegAILib.worker.listener import JobListener
from MedSegAILib.worker.location import WorkerLocation, for_elsewhere
from MedSegAILib.worker.location import worker_command as worker_command
from MedSegAILib.worker.location import worker_environment as worker_environment
from MedSegAILib.worker.process import WorkerProcess

CANCEL_SECONDS = 1.5
"""The seconds that a cancelled job may take to stop by itself."""

START_SECONDS = 60.0
"""The seconds until a process must be ready; a virus scanner can make the first start slow."""

SILENCE_SECONDS = 120.0
"""The seconds that a worker may be silent; it sends `alive` every two seconds unless a library blocks it."""

IDLE_SECONDS = 1800.0
"""The seconds for which a process without a job is kept."""

STALL_SECONDS = 900.0
"""The seconds that a job may be without progress before the user is notified."""

TICK_SECONDS = 0.2
AWAKE_SECONDS = 1.0
"""The largest time that one tick counts, because a computer may sleep, or the interface may be busy."""

UNSENT_BYTES = 1 << 18
"""The number of unsent bytes above which no further array is read for sending."""

NOT_STARTED = _("The worker did not start within {seconds:g} s ({command}).")
SILENT = _(
    "The worker did not respond for {seconds:g} s and was ended. Press Segment "
    "again, and if it happens again, choose another device or fewer networks."
)
OUT_OF_MEMORY = _(
    "The worker was ended by the system, most likely because memory ran out. "
    "Close other programs, crop the volume, or choose fewer models or networks."
)
LACKS = _(
    "The Python of the worker ({python}) lacks the package {package}. Press Test "
    "in the settings to list all missing packages, or choose another Python "
    "there."
)
CRASHED = _("The worker crashed (signal {code}). Slicer and your scene are not affected.")
ENDED = _(
    "The worker ended unexpectedly (exit code {code}). Slicer and your scene are not affected."
)
SENDING, RECEIVING = 0.05, 0.05
"""The share of a job on another computer for the transfer of arrays."""


@dataclass
class _SentJob:
    kind: Kind
    listener: JobListener
    folder: ExchangeFolder
    carried: bool
    name: str = field(default_factory=lambda: uuid.uuid4().hex)
    unsent: Iterator[Message] | None = None
    kill_at: float | None = None
    stalled: bool = False


class WorkerClient:
    """Runs one job at a time in the worker process.

    Args:
        place: the location of the worker, or a command that starts it on this computer.
        environment: environment variables to set in addition to those of this process, with a command.
        idle_seconds: the time for which a process without a job is kept.
        stall_seconds: the time that a job may be without progress before `stalled` is emitted.

    Attributes:
        freed: a job is over, and its listener was notified; the next one may start.
        stalled: the job has made no progress for a long time, although the worker is alive.
    """

    def __init__(
        self,
        place: WorkerLocation | Sequence[str],
        environment: Mapping[str, str] | None = None,
        idle_seconds: float = IDLE_SECONDS,
        stall_seconds: float = STALL_SECONDS,
    ) -> None:
        self.freed, self.stalled = Signal(), Signal()
        self.idle_seconds, self.stall_seconds = idle_seconds, stall_seconds
        if not isinstance(place, WorkerLocation):
            place = WorkerLocation.running(place, environment)
        self._place = place
        self._launched: WorkerLocation | None = None
        self._command: list[str] = []
        self._leaving = False
        self._job: _SentJob | None = None
        self._used_folders: list[ExchangeFolder] = []
        self._hello: Message | None = None
        self._ticked = time.monotonic()
        self._silent = self._still = self._idle = 0.0
        self._process = WorkerProcess(self._hear, self._pump, self._on_end, self._on_missing)
        self._timer = qt.QTimer()
        self._timer.setInterval(int(1000 * TICK_SECONDS))
        self._timer.connect("timeout()", self._tick)

    @property
    def busy(self) -> bool:
        """Whether a job is running."""
        return self._job is not None

    @property
    def warm(self) -> bool:
        """Whether the process runs."""
        return self._process.running

    @property
    def log(self) -> str:
        """The end of the worker's output on stderr."""
        return self._process.log

    @property
    def place(self) -> WorkerLocation:
        """The location of the worker."""
        return self._place

    def set_place(self, place: WorkerLocation) -> None:
        """Set the location of the next job. A running job is not affected."""
        self._place = place
        if self._job is None and self._process.running:
            self._let_go()

    def warm_up(self) -> None:
        """Start the process before there is a job; a failure is reported to the first job."""
        if self._job is None:
            self._make_ready()
            self._send(WARM)

    def start(self, request: Any, listener: JobListener) -> None:
        """Send a job; `listener` receives all events, even if the start fails.

        Args:
            request: the request of a kind of job in `protocol.KINDS`, such as a SegmentationRequest.
            listener: the receiver of the job's events.

        Raises:
            WorkerError: another job is running, or the request is of an unknown kind.
            RequestError: the worker runs on another computer, and cannot read a file of this computer.
            OutputError: the exchange folder cannot be made or written.
        """
        if self._job is not None:
            raise WorkerError(_("A job is running. Wait until it ends, or cancel it first."))
        kind = kind_of(request)
        if not self._place.shares_files:
            request = for_elsewhere(request, self._place)
        folder = ExchangeFolder()
        try:
            packed_request = packed(request, folder.path)
        except MedSegAIError:
            folder.remove()
            raise
        job = self._job = _SentJob(kind, listener, folder, carried=not self._place.shares_files)
        self._still = 0.0
        self._make_ready()
        job.unsent = _messages(
            job, packed_request
        )  # not before, because earlier failures do not belong to this job
        self._pump()

    def cancel(self) -> None:
        """Stop the job within two seconds; its listener then receives `Cancelled`."""
        if self._job is not None and self._job.kill_at is None:
            self._job.kill_at = time.monotonic() + CANCEL_SECONDS
            self._job.unsent = None
            self._send(CANCEL, job=self._job.name)

    def wait(self, meanwhile: Callable[[], None] | None = None) -> None:
        """Wait until the present job is over, without an event loop.

        `meanwhile` is called several times per second.
        """
        job = self._job
        while job is not None and self._job is job:
            self._process.wait_for_output(50)
            if meanwhile is not None:
                meanwhile()
            self._tick()

    def close(self) -> None:
        """End the process; a running job is cancelled."""
        if self._process.running and self._job is None:
            self._send(QUIT)
            self._process.wait_for_end()
        self._break(Cancelled(_("The job was stopped, because MedSegAI was closed.")))
        self._timer.stop()
        self._remove_used_folders()

    # --- the process ---

    def _make_ready(self) -> None:
        """Make sure that a process is running; if that is impossible, the job is notified."""
        self._idle = 0.0
        if self._process.running and (self._leaving or self._launched != self._place):
            self._kill()
        if self._process.running:
            return
        try:
            self._command = self._place.command()
            environment = self._place.environment()
        except WorkerError as error:
            self._fail(error)
            return
        self._launched, self._hello, self._leaving = self._place, None, False
        self._silent, self._ticked = 0.0, time.monotonic()
        self._timer.start()
        self._process.launch(self._command, environment)

    def _let_go(self) -> None:
        self._leaving = True
        self._send(QUIT)

    def _kill(self) -> None:
        """End the process. A worker on another computer ends by itself when its connection ends."""
        if self._hello is None or self._launched is None or not self._launched.shares_files:
            self._process.kill(None, False)
        else:
            self._process.kill(self._hello["pid"], self._hello["leads_group"])

    def _send(self, kind: str, /, **values: object) -> None:
        if self._process.running:
            self._process.send(encode({"type": kind, **values}))

    def _pump(self) -> None:
        """Send the rest of the job, block by block, as fast as the process reads it."""
        job = self._job
        while job is not None and job.unsent is not None and self._takes_more(job):
            try:
                message = next(job.unsent, None)
            except MedSegAIError as error:
                self._break(error)
                return
            if message is None:
                job.unsent = None
                return
            self._process.send(encode(message))
            if message["type"] == ARRAY:
                part = message["done"] / max(message["total"], 1)
                self._report(job, ProgressEvent("send", SENDING * part))

    def _takes_more(self, job: _SentJob) -> bool:
        process = self._process
        return job is self._job and process.running and process.unsent < UNSENT_BYTES

    def _tick(self) -> None:
        now = time.monotonic()
        awake, self._ticked = min(now - self._ticked, AWAKE_SECONDS), now
        self._process.read()  # pending output counts, however late it is read
        self._silent += awake
        self._still += awake
        self._idle += awake
        if self._job is not None:
            self._pump()
        elif not self._process.running:
            self._timer.stop()
        self._check_patience(now)

    def _check_patience(self, now: float) -> None:
        job = self._job
        if job is not None and job.kill_at is not None and now > job.kill_at:
            self._break(Cancelled(_stopped()))
        elif self._hello is None and self._silent > START_SECONDS:
            text = NOT_STARTED
            text = text.format(seconds=START_SECONDS, command=" ".join(self._command))
            self._break(WorkerError(text + self._last_words()))
        elif self._silent > SILENCE_SECONDS:
            text = SILENT.format(seconds=SILENCE_SECONDS)
            self._break(WorkerError(text + self._last_words()))
        elif job is not None and self._still > self.stall_seconds and not job.stalled:
            job.stalled = True
            self.stalled.emit()
        elif job is None and self._process.running and self._idle > self.idle_seconds:
            if self._leaving:
                self._kill()
            else:
                self._idle = 0.0
                self._let_go()

    # --- what the process says ---

    def _hear(self, line: bytes) -> None:
        self._silent = 0.0
        try:
            act = self._understand(decode(line))
        except MedSegAIError as error:
            if self._hello is None:  # output of the Python installation at its start
                self._process.note(line.decode(errors="replace"))
                return
            act = _doing(self._break, error)
        except (KeyError, TypeError, ValueError) as error:
            text = _(
                "The worker sent an invalid message: {error}. Restart Slicer, and press "
                "Segment again."
            )
            act = _doing(self._break, WorkerError(text.format(error=repr(error))))
        act()

    def _understand(self, message: Message) -> Callable[[], None]:
        """Return the action for a message; listeners are not notified yet."""
        kind, job = message["type"], self._job
        if kind == READY:
            return self._greeted(message)
        if kind == ALIVE:
            return _doing(self._rest)
        if kind == ERROR and message["job"] is None:
            return _doing(self._break, self._error(message))
        if job is None or message["job"] != job.name:
            return _doing(self._rest)
        if job.kill_at is not None:
            over = kind in (RESULT, ERROR)
            return _doing(self._fail, Cancelled(_stopped())) if over else _doing(self._rest)
        return self._advanced(job, kind, message)

    def _rest(self) -> None:
        """Do nothing."""

    def _greeted(self, message: Message) -> Callable[[], None]:
        if message["version"] != PROTOCOL_VERSION:
            text = _(
                "The worker has version {theirs} of the protocol, but the panel has {ours}. "
                "Install the same MedSegAI for both, and restart Slicer."
            ).format(theirs=message["version"], ours=PROTOCOL_VERSION)
            return _doing(self._break, WorkerError(text))
        self._hello = {"pid": int(message["pid"]), "leads_group": bool(message["leads_group"])}
        return self._rest

    def _advanced(self, job: _SentJob, kind: str, message: Message) -> Callable[[], None]:
        if kind == PROGRESS:
            event = from_json(ProgressEvent, message["event"], error=WorkerError)
            if job.carried:
                fraction = SENDING + (1 - SENDING - RECEIVING) * event.fraction
                event = replace(event, fraction=fraction)
            return _doing(self._report, job, event)
        if kind == ARRAY:
            part = take_block(message, job.folder.path).part
            return _doing(self._report, job, ProgressEvent("receive", 1 - RECEIVING * (1 - part)))
        if kind == RESULT:
            result: Any = unpacked(job.kind.answered, message["result"], job.folder.path)
            return _doing(self._end, lambda listener: listener.finished(result))
        if kind == ERROR:
            return _doing(self._fail, self._error(message))
        raise KeyError(kind)

    def _error(self, message: Message) -> MedSegAIError:
        error = unpack_error(message)
        if self._launched is None or self._launched.shares_files:
            return error
        return type(error)(_("On {host}: {error}").format(host=self._launched.name, error=error))

    def _report(self, job: _SentJob, event: ProgressEvent) -> None:
        self._still, job.stalled = 0.0, False
        job.listener.progressed(event)

    # --- the end of a job ---

    def _end(self, tell: Callable[[JobListener], None]) -> None:
        self._tell(self._take_job(), tell)

    def _fail(self, error: MedSegAIError) -> None:
        self._end(lambda listener: listener.failed(error))

    def _break(self, error: MedSegAIError) -> None:
        """End the process, which can no longer be used, and notify the listener."""
        job = self._take_job()
        self._kill()
        self._tell(job, lambda listener: listener.failed(error))

    def _take_job(self) -> _SentJob | None:
        """Return the job and forget it, so that its listener may start the next one."""
        job, self._job = self._job, None
        self._idle = 0.0
        return job

    def _tell(self, job: _SentJob | None, tell: Callable[[JobListener], None]) -> None:
        if job is None:
            return
        try:
            tell(job.listener)
        finally:
            self._used_folders.append(job.folder)
            self._remove_used_folders()
            if self._job is None:  # the listener may have started the next one
                self.freed.emit()

    def _remove_used_folders(self) -> None:
        """Remove used folders; a folder whose arrays are still in use is removed with the next job."""
        self._used_folders = [folder for folder in self._used_folders if not folder.remove()]

    def _on_missing(self, reason: str) -> None:
        text = _("The worker could not be started: {reason} ({command}). Reinstall the extension.")
        self._fail(WorkerError(text.format(reason=reason, command=" ".join(self._command))))

    def _on_end(self, code: int, crashed: bool) -> None:
        if self._job is not None and self._job.kill_at is not None:
            self._fail(Cancelled(_stopped()))
        else:
            self._fail(WorkerError(self._obituary(code, crashed) + self._last_words()))

    def _obituary(self, code: int, crashed: bool) -> str:
        place = self._launched or self._place
        explained = None if crashed else place.explain(code)
        if explained is not None:
            return explained
        if code in (9, 128 + 9) or (crashed and sys.platform == "win32"):
            return OUT_OF_MEMORY
        missing = re.search(
            r"^ModuleNotFoundError: .*?(?:named '|import of )([\w.]+)", self.log, re.MULTILINE
        )
        if missing:
            return LACKS.format(python=place.target, package=missing.group(1))
        return (CRASHED if crashed else ENDED).format(code=code)

    def _last_words(self) -> str:
        words = self._process.stderr_tail()
        return "\n" + _("The last lines of its log: {words}").format(words=words) if words else ""


def _messages(job: _SentJob, request: Message) -> Iterator[Message]:
    """Yield the messages of a job: its arrays, if the worker does not see them, and then the job itself."""
    if job.carried:
        for block in blocks(job.folder.path):
            yield {"type": ARRAY, "job": job.name, **block}
    exchange = None if job.carried else str(job.folder.path)
    yield {"type": job.kind.name, "job": job.name, "exchange": exchange, "request": request}


def _doing(function: Callable[..., None], *values: object) -> Callable[[], None]:
    return lambda: function(*values)


def _stopped() -> str:
    return _("Stopped. The scene was not changed.")

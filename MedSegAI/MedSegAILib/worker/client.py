"""The client of the worker process: QProcess, JSON lines, and an end to everything it starts.

The process is started with the first job and kept, so that the next one finds its models loaded. A job
that is cancelled and does not stop, a worker that breaks the protocol, does not start or dies: each ends
the process with its children, is told once to the job's listener, and the next job starts a new process.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import qt

from medsegai.errors import Cancelled, MedSegAIError, WorkerError
from medsegai.protocol import (
    CANCEL,
    ERROR,
    PROGRESS,
    PROTOCOL_VERSION,
    QUIT,
    READY,
    RESULT,
    SEGMENT,
    Message,
    decode,
    encode,
    pack_request,
    unpack_error,
    unpack_progress,
    unpack_result,
)
from medsegai.request import SegmentationRequest
from MedSegAILib.signals import Signal
from MedSegAILib.worker.exchange import ExchangeFolder
from MedSegAILib.worker.listener import JobListener

CANCEL_SECONDS = 1.5
"""How long a cancelled job may take to stop by itself."""

START_SECONDS = 60.0
"""How long a process may take until it is ready; a virus scanner can make a first start slow."""

LOG_CHARACTERS = 20_000
"""How much of what the process wrote to stderr is kept."""


STOPPED = "Stopped. The scene is as it was."


@dataclass
class _Job:
    listener: JobListener
    folder: ExchangeFolder
    name: str = field(default_factory=lambda: uuid.uuid4().hex)
    kill_at: float | None = None


class WorkerClient:
    """Runs one job at a time in the worker process.

    Args:
        command: program and arguments that start the worker.
        environment: variables to set for it besides those of this process.

    Attributes:
        freed: a job is over, and its listener has heard so; the next one may start.
    """

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str] | None = None
    ) -> None:
        self.freed = Signal()
        self._command = list(command)
        self._job: _Job | None = None
        self._used_folders: list[ExchangeFolder] = []
        self._launches = 0
        self._received = b""
        self._hello: Message | None = None
        self._ready_by = 0.0
        self._log = ""
        self._process = qt.QProcess()
        variables = qt.QProcessEnvironment.systemEnvironment()
        for name, value in (environment or {}).items():
            variables.insert(name, value)
        self._process.setProcessEnvironment(variables)
        self._process.connect("readyReadStandardOutput()", self._read_events)
        self._process.connect("readyReadStandardError()", self._read_log)
        self._process.connect("errorOccurred(QProcess::ProcessError)", self._on_process_error)
        self._process.connect("finished(int,QProcess::ExitStatus)", self._on_process_finished)
        self._timer = qt.QTimer()
        self._timer.setInterval(200)
        self._timer.connect("timeout()", self._check_deadlines)

    @property
    def busy(self) -> bool:
        return self._job is not None

    @property
    def log(self) -> str:
        """The end of what the worker wrote to stderr."""
        return self._log

    def start(self, request: SegmentationRequest, listener: JobListener) -> None:
        """Send a job; `listener` hears of everything that follows, also if the start fails.

        Raises:
            WorkerError: another job is under way.
            OutputError: the exchange folder cannot be made or written.
        """
        if self._job is not None:
            raise WorkerError("A job is under way. Wait for it, or cancel it first.")
        folder = ExchangeFolder()
        try:
            message = pack_request(request, folder.path)
        except MedSegAIError:
            folder.remove()
            raise
        job = self._job = _Job(listener, folder)
        self._timer.start()
        if not self._is_running():
            self._launch()
        if self._job is job:
            self._send(SEGMENT, job=job.name, exchange=str(folder.path), **message)

    def cancel(self) -> None:
        """Stop the job, within two seconds: its listener then hears `Cancelled`."""
        if self._job is not None and self._job.kill_at is None:
            self._job.kill_at = time.monotonic() + CANCEL_SECONDS
            self._send(CANCEL, job=self._job.name)

    def wait(self, meanwhile: Callable[[], None] | None = None) -> None:
        """Return when the job is over; needs no event loop. Calls `meanwhile` several times a second."""
        while self._job is not None:
            self._process.waitForReadyRead(50)
            if meanwhile is not None:
                meanwhile()
            self._check_deadlines()

    def close(self) -> None:
        """End the process; a job under way is cancelled."""
        if self._is_running() and self._job is None:
            self._send(QUIT)
            self._process.waitForFinished(int(1000 * CANCEL_SECONDS))
        self._break(Cancelled("MedSegAI was closed. The job was stopped."))
        self._remove_used_folders()

    def _is_running(self) -> bool:
        return bool(self._process.state() != qt.QProcess.NotRunning)

    def _launch(self) -> None:
        self._launches += 1
        self._received, self._hello, self._log = b"", None, ""
        self._ready_by = time.monotonic() + START_SECONDS
        self._process.start(self._command[0], self._command[1:])

    def _send(self, kind: str, /, **values: Any) -> None:
        self._process.write(encode({"type": kind, **values}))

    def _read_events(self) -> None:
        self._received += _as_bytes(self._process.readAllStandardOutput())
        *lines, self._received = self._received.split(b"\n")
        process = self._launches
        for line in lines:
            if (
                process == self._launches
            ):  # what a line tells may end the process that sent the rest
                self._hear(line)

    def _read_log(self) -> None:
        text = _as_bytes(self._process.readAllStandardError()).decode(errors="replace")
        self._log = (self._log + text)[-LOG_CHARACTERS:]

    def _hear(self, line: bytes) -> None:
        try:
            message = decode(line)
            self._obey(message)
        except WorkerError as error:
            if self._hello is None:  # a greeting that the Python installation prints
                self._log += line.decode(errors="replace") + "\n"
            else:
                self._break(error)
        except (KeyError, TypeError, ValueError) as error:
            self._break(WorkerError(f"The worker sent a message that makes no sense: {error!r}."))

    def _obey(self, message: Message) -> None:
        kind = message["type"]
        if kind == READY:
            self._greet(message)
        elif kind == ERROR and message["job"] is None:
            self._break(unpack_error(message))
        elif self._job is not None and message["job"] == self._job.name:
            self._advance(self._job, kind, message)

    def _greet(self, message: Message) -> None:
        if message["version"] != PROTOCOL_VERSION:
            self._break(
                WorkerError(
                    f"The worker speaks version {message['version']} of the protocol, the panel "
                    f"{PROTOCOL_VERSION}. Install the same MedSegAI for both, and restart Slicer."
                )
            )
        self._hello = message

    def _advance(self, job: _Job, kind: str, message: Message) -> None:
        if kind == PROGRESS:
            job.listener.progressed(unpack_progress(message))
        elif job.kill_at is not None and kind in (RESULT, ERROR):
            self._fail(Cancelled(STOPPED))
        elif kind == RESULT:
            result = unpack_result(message)
            self._end(lambda listener: listener.finished(result))
        elif kind == ERROR:
            self._fail(unpack_error(message))

    def _end(self, tell: Callable[[JobListener], None]) -> None:
        self._tell(self._take_job(), tell)

    def _fail(self, error: MedSegAIError) -> None:
        self._end(lambda listener: listener.failed(error))

    def _break(self, error: MedSegAIError) -> None:
        """The process is of no more use: end it, then tell the listener."""
        job = self._take_job()
        self._kill()
        self._tell(job, lambda listener: listener.failed(error))

    def _take_job(self) -> _Job | None:
        """From here on there is no job, so its listener may start the next one."""
        job, self._job = self._job, None
        self._timer.stop()
        return job

    def _tell(self, job: _Job | None, tell: Callable[[JobListener], None]) -> None:
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
        """What cannot go yet, because somebody still looks at its arrays, goes with the next job."""
        self._used_folders = [folder for folder in self._used_folders if not folder.remove()]

    def _check_deadlines(self) -> None:
        now = time.monotonic()
        if self._job is None:
            return
        if self._job.kill_at is not None and now > self._job.kill_at:
            self._break(Cancelled(STOPPED))
        elif self._hello is None and now > self._ready_by:
            self._break(
                WorkerError(
                    f"The worker did not start within {START_SECONDS:g} s "
                    f"({' '.join(self._command)}).{self._last_words()}"
                )
            )

    def _on_process_error(self, error: Any) -> None:
        if error == qt.QProcess.FailedToStart:
            self._fail(
                WorkerError(
                    f"The worker could not be started: {self._process.errorString()} "
                    f"({' '.join(self._command)}). Reinstall the extension."
                )
            )

    def _on_process_finished(self, code: int, status: Any) -> None:
        self._read_events()
        self._read_log()
        if self._job is not None and self._job.kill_at is not None:
            self._fail(Cancelled(STOPPED))
        else:
            crashed = status == qt.QProcess.CrashExit
            self._fail(WorkerError(_obituary(code, crashed) + self._last_words()))

    def _last_words(self) -> str:
        """What the process said about its end: the fatal error where there is one, else the end."""
        lines = [line for line in self._log.splitlines() if line.strip()]
        fatal = [line for line in lines if line.startswith("Fatal")]
        words = fatal[-1:] or lines[-3:]
        return "\nIts last words: " + "\n".join(words) if words else ""

    def _kill(self) -> None:
        """End the process and its children. Slicer's Python is a launcher: the worker is its child."""
        if not self._is_running():
            return
        if self._hello is not None:
            _kill_tree(int(self._hello["pid"]), bool(self._hello["leads_group"]))
        self._process.kill()
        self._process.waitForFinished(int(1000 * CANCEL_SECONDS))


def _as_bytes(data: Any) -> bytes:
    """What a QByteArray holds; versions of PythonQt differ in what `data` gives."""
    content = data.data() if hasattr(data, "data") else data
    if content is None:
        return b""
    return content.encode() if isinstance(content, str) else bytes(content)


def _kill_tree(pid: int, leads_group: bool) -> None:
    if sys.platform == "win32":
        command = ["taskkill", "/F", "/T", "/PID", str(pid)]
        no_window = getattr(subprocess, "CREATE_NO_WINDOW", 0)
        subprocess.run(command, capture_output=True, check=False, creationflags=no_window)
        return
    try:
        if leads_group:
            os.killpg(pid, signal.SIGKILL)
        else:
            os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _obituary(code: int, crashed: bool) -> str:
    killed = code in (9, 128 + 9) or (crashed and sys.platform == "win32")
    if killed:
        return (
            "The worker was ended by the system, most likely because memory ran out. "
            "Close other programs, crop the volume, or choose fewer models or members."
        )
    if crashed:
        return f"The worker crashed (signal {code}). Slicer and your scene are as they were."
    return (
        f"The worker ended unexpectedly (exit code {code}). Slicer and your scene are as they were."
    )


def worker_command(python: str) -> list[str]:
    """The command that starts the worker with this Python."""
    return [python, "-m", "medsegai.worker"]


def worker_environment(module_folder: Path) -> dict[str, str]:
    """What lets any Python find the package `medsegai` that lies in `module_folder`.

    The safe path keeps a file of the current folder from passing for a library.
    """
    inherited = os.environ.get("PYTHONPATH")
    paths = [str(module_folder)] + ([inherited] if inherited else [])
    return {"PYTHONPATH": os.pathsep.join(paths), "PYTHONSAFEPATH": "1"}

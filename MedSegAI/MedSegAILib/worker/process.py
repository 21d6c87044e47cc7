"""The worker's process: lines in, lines out, its log, and an end to everything that it starts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence

import qt

from MedSegAILib.slicer_types import QtValue

END_SECONDS = 1.5
"""How long a process may take to end by itself."""

LOG_CHARACTERS = 20_000
"""How much of what the process wrote to stderr is kept."""


class WorkerProcess:
    """A QProcess that can be started again and again.

    Args:
        hear: called with each line that it writes to stdout.
        written: called when some of what was sent has left.
        ended: called with exit code and whether it crashed, unless `kill` ended it.
        missing: called with the reason where the program could not be started at all.
    """

    def __init__(
        self,
        hear: Callable[[bytes], None],
        written: Callable[[], None],
        ended: Callable[[int, bool], None],
        missing: Callable[[str], None],
    ) -> None:
        self._hear, self._ended, self._missing = hear, ended, missing
        self._received = bytearray()
        self._log = ""
        self._launches = 0
        self._killed = False
        self._written = written
        self._dying: list[QtValue] = []
        self._process = self._new_process()

    @property
    def running(self) -> bool:
        """Whether the process is alive."""
        return bool(self._process.state() != qt.QProcess.NotRunning)

    @property
    def log(self) -> str:
        """The end of what it wrote to stderr, the last time that it was started."""
        return self._log

    @property
    def unsent(self) -> int:
        """Bytes that were sent and have not left yet."""
        return int(self._process.bytesToWrite())

    def launch(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """Start it; `missing` may be called before this returns.

        Args:
            command: program and arguments.
            environment: all its variables.
        """
        self._launches += 1
        self._received.clear()
        self._log, self._killed = "", False
        variables = qt.QProcessEnvironment()
        for name, value in environment.items():
            variables.insert(name, value)
        self._process.setProcessEnvironment(variables)
        self._process.start(command[0], list(command[1:]))

    def send(self, line: bytes) -> None:
        """Send one line to the process."""
        self._process.write(line)

    def read(self) -> None:
        """Pass on every line that is there. What a receiver raises leaves the rest for the next call."""
        self._received += _as_bytes(self._process.readAllStandardOutput())
        launch = self._launches
        while launch == self._launches:  # what a line tells may end the process that sent the rest
            end = self._received.find(b"\n")
            if end < 0:
                return
            line = bytes(self._received[: end + 1])
            del self._received[: end + 1]
            self._hear(line)

    def wait_for_output(self, milliseconds: int) -> None:
        """Needs no event loop."""
        self._process.waitForReadyRead(milliseconds)

    def note(self, text: str) -> None:
        """Add to the log."""
        self._log = (self._log + text)[-LOG_CHARACTERS:]

    def stderr_tail(self) -> str:
        """What it said about its end: the fatal error where there is one, else the end of its log."""
        lines = [line for line in self._log.splitlines() if line.strip()]
        fatal = [line for line in lines if line.startswith("Fatal")]
        return "\n".join(fatal[-1:] or lines[-3:])

    def wait_for_end(self) -> bool:
        """Whether it ended by itself in time."""
        return bool(self._process.waitForFinished(int(1000 * END_SECONDS)))

    def kill(self, worker: int | None, leads_group: bool) -> None:
        """End it and its children.

        Args:
            worker: process number of the worker, where it is one of this computer's. Slicer's Python is a
                launcher: the worker is its child.
            leads_group: whether that number is a process group as well.
        """
        if not self.running:
            return
        self._killed = True
        if worker is not None:
            _kill_tree(worker, leads_group)
        self._process.kill()
        if not self.wait_for_end():  # a computer that stands still; what comes next need not wait
            self._dying.append(self._process)
            self._process = self._new_process()

    def _new_process(self) -> QtValue:
        """A QProcess of which we hear while it is ours."""
        process = qt.QProcess()

        def if_ours(function: Callable[..., None]) -> Callable[..., None]:
            return lambda *values: function(*values) if process is self._process else None

        process.connect("readyReadStandardOutput()", if_ours(self.read))
        process.connect("readyReadStandardError()", if_ours(self._read_log))
        process.connect("bytesWritten(qint64)", if_ours(lambda _count: self._written()))
        process.connect("errorOccurred(QProcess::ProcessError)", if_ours(self._on_error))
        process.connect("finished(int,QProcess::ExitStatus)", if_ours(self._on_finished))
        process.connect(
            "finished(int,QProcess::ExitStatus)", lambda *_values: self._forget(process)
        )
        return process

    def _forget(self, process: QtValue) -> None:
        if process in self._dying:
            self._dying.remove(process)

    def _read_log(self) -> None:
        self.note(_as_bytes(self._process.readAllStandardError()).decode(errors="replace"))

    def _on_error(self, error: QtValue) -> None:
        if error == qt.QProcess.FailedToStart:
            self._missing(str(self._process.errorString()))

    def _on_finished(self, code: int, status: QtValue) -> None:
        if self._killed:
            return
        launch = self._launches
        try:
            self._read_log()
            self.read()
        finally:
            if launch == self._launches:
                self._ended(code, status == qt.QProcess.CrashExit)


def _as_bytes(data: QtValue) -> bytes:
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

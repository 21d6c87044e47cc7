"""The worker's process with its input and output lines, its log, and the end of all its children."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence

import qt

from MedSegAILib.slicer_types import QtValue

END_SECONDS = 1.5
"""The milliseconds that a process may take to end by itself."""

LOG_CHARACTERS = 20_000
"""The amount of the process's stderr output that is kept."""


class WorkerProcess:
    """A QProcess that can be started again and again.

    Args:
        hear: the function that receives each line of its stdout.
        written: the function that is called when sent bytes were written.
        ended: the function that receives exit code and whether it crashed, unless `kill` ended it.
        missing: the function that receives the reason if the program could not be started.
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
        """The end of its stderr output since its last start."""
        return self._log

    @property
    def unsent(self) -> int:
        """The number of sent bytes that are not yet written."""
        return int(self._process.bytesToWrite())

    def launch(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """Start the process; `missing` may be called before this returns.

        Args:
            command: the program and its arguments.
            environment: all environment variables of the process.
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
        """Pass on all available lines. If a receiver raises, the rest is left for the next call."""
        self._received += _as_bytes(self._process.readAllStandardOutput())
        launch = self._launches
        while launch == self._launches:  # a line may end the process that sent the rest
            end = self._received.find(b"\n")
            if end < 0:
                return
            line = bytes(self._received[: end + 1])
            del self._received[: end + 1]
            self._hear(line)

    def wait_for_output(self, milliseconds: int) -> None:
        """Wait for output, without an event loop."""
        self._process.waitForReadyRead(milliseconds)

    def note(self, text: str) -> None:
        """Add to the log."""
        self._log = (self._log + text)[-LOG_CHARACTERS:]

    def stderr_tail(self) -> str:
        """Return its output about its end: the fatal error if there is one, otherwise the end of its log."""
        lines = [line for line in self._log.splitlines() if line.strip()]
        fatal = [line for line in lines if line.startswith("Fatal")]
        return "\n".join(fatal[-1:] or lines[-3:])

    def wait_for_end(self) -> bool:
        """Wait for its end; return whether it ended by itself in time."""
        return bool(self._process.waitForFinished(int(1000 * END_SECONDS)))

    def kill(self, worker: int | None, leads_group: bool) -> None:
        """End the process and its children.

        Args:
            worker: the process id of the worker, if it is on this computer. Slicer's Python is a launcher, whose
                child is the worker.
            leads_group: whether the worker leads a process group.
        """
        if not self.running:
            return
        self._killed = True
        if worker is not None:
            _kill_tree(worker, leads_group)
        self._process.kill()
        if not self.wait_for_end():  # the computer hangs, so do not wait any longer
            self._dying.append(self._process)
            self._process = self._new_process()

    def _new_process(self) -> QtValue:
        """Make a QProcess whose signals are received while it is in use."""
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
    """Return the content of a QByteArray; versions of PythonQt differ in what `data` returns."""
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

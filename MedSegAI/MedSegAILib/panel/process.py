"""Short programs in the background: the doctor, imports and checks of hashes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import qt

from MedSegAILib.slicer_types import QtValue


@dataclass(frozen=True)
class Finished:
    """A program that ended: its exit code, or -1 if it did not start or crashed, and its output."""

    code: int
    output: str
    errors: str


class Programs:
    """Starts programs and reports when they have ended, without waiting."""

    def __init__(self) -> None:
        self._running: list[QtValue] = []

    def run(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        done: Callable[[Finished], None],
        heard: Callable[[str], None] | None = None,
        given: str = "",
    ) -> Any:
        """Start a program.

        Args:
            environment: all environment variables of the program.
            done: the function that is called once, when the program has ended or could not be started.
            heard: the function that receives each line of its output.
            given: its standard input.

        Returns:
            The process, for `stop`.
        """
        process = qt.QProcess()
        variables = qt.QProcessEnvironment()
        for name, value in environment.items():
            variables.insert(name, value)
        process.setProcessEnvironment(variables)
        self._running.append(process)
        told = _Told(self, process, done, heard)
        process.connect("readyReadStandardOutput()", told.on_output)
        process.connect("errorOccurred(QProcess::ProcessError)", told.on_error)
        process.connect("finished(int,QProcess::ExitStatus)", told.on_finished)
        process.start(command[0], list(command[1:]))
        if given:
            process.write(given.encode())
        process.closeWriteChannel()  # after pending output is written
        return process

    def stop(self, process: QtValue) -> None:
        """End a program; its `done` is called."""
        if process in self._running:
            process.kill()

    def close(self) -> None:
        """End all programs."""
        for process in list(self._running):
            process.kill()
            process.waitForFinished(1000)
        self._running = []

    def _forget(self, process: QtValue) -> None:
        self._running = [item for item in self._running if item is not process]


class _Told:
    """Receives the signals of one program."""

    def __init__(
        self,
        programs: Programs,
        process: QtValue,
        done: Callable[[Finished], None],
        heard: Callable[[str], None] | None,
    ) -> None:
        self._programs, self._process = programs, process
        self._done, self._heard = done, heard
        self._output = b""
        self._lines = b""
        self._over = False

    def on_output(self) -> None:
        data = _as_bytes(self._process.readAllStandardOutput())
        self._output += data
        if self._heard is None:
            return
        *lines, self._lines = (self._lines + data).split(b"\n")
        for line in lines:
            self._heard(line.decode(errors="replace"))

    def on_error(self, error: QtValue) -> None:
        if error == qt.QProcess.FailedToStart:
            self._tell(-1, self._process.errorString())

    def on_finished(self, code: int, status: QtValue) -> None:
        self.on_output()
        errors = _as_bytes(self._process.readAllStandardError()).decode(errors="replace")
        self._tell(-1 if status == qt.QProcess.CrashExit else code, errors)

    def _tell(self, code: int, errors: str) -> None:
        if not self._over:
            self._over = True
            self._programs._forget(self._process)
            self._done(Finished(code, self._output.decode(errors="replace"), errors))


def _as_bytes(data: QtValue) -> bytes:
    """Return the content of a QByteArray; versions of PythonQt differ in what `data` returns."""
    content = data.data() if hasattr(data, "data") else data
    if content is None:
        return b""
    return content.encode() if isinstance(content, str) else bytes(content)

"""The Test button: what is installed where the worker would run, what is missing, and how to repair it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import qt

from medsegai.errors import WorkerError
from MedSegAILib.translation import tr as _
from MedSegAILib.worker.location import WorkerLocation
from MedSegAILib.worker.process import WorkerProcess

DOCTOR_SECONDS = 120.0
"""The seconds that the doctor may take; loading torch for the first time can take most of a minute."""


@dataclass(frozen=True)
class Report:
    """The doctor's report on a location.

    Attributes:
        place: the location that was checked.
        ready: whether jobs can run there.
        findings: the findings, each from `medsegai.doctor.Finding.to_dict`.
        repairs: the steps that repair everything.
        trouble: the reason why the doctor could not run, or "".
    """

    place: WorkerLocation
    ready: bool
    findings: tuple[Mapping[str, Any], ...] = ()
    repairs: tuple[str, ...] = ()
    trouble: str = ""

    @property
    def devices(self) -> tuple[Mapping[str, Any], ...]:
        """Return the findings about devices for jobs; `name` is a value of the option device."""
        return tuple(
            finding
            for finding in self.findings
            if finding["topic"] == "device"
            and finding["health"] == "good"
            and finding["name"] != "cuda"  # it says that there is none
        )

    def text(self) -> str:
        """Return the report as readable text."""
        if self.trouble:
            return self.trouble
        lines = [f"{finding['name']}: {finding['found']}" for finding in self.findings]
        if self.repairs:
            lines += ["", _("What to do:"), *self.repairs]
        verdict = _("Ready to segment.") if self.ready else _("Not ready.")
        return "\n".join([verdict, "", *lines])


class EnvironmentCheck:
    """One run of the doctor, which does not block; `told` receives its report once.

    Keep a reference until then, because the run ends when it is deleted.
    """

    def __init__(self, place: WorkerLocation, told: Callable[[Report], None]) -> None:
        self._place, self._told = place, told
        self._over = False
        self._lines: list[bytes] = []
        self._process = WorkerProcess(self._lines.append, lambda: None, self._on_end, self._fail)
        self._timer = qt.QTimer()
        self._timer.setSingleShot(True)
        self._timer.connect("timeout()", self._on_timeout)

    def start(self) -> None:
        """Start the doctor; if that fails, the report arrives before this returns."""
        try:
            command, environment = self._place.doctor_command(), self._place.environment()
        except WorkerError as error:
            self._fail(str(error))
            return
        self._timer.start(int(1000 * DOCTOR_SECONDS))
        self._process.launch(command, environment)

    def cancel(self) -> None:
        """End the doctor without a report."""
        self._over = True
        self._timer.stop()
        self._process.kill(None, False)

    def _on_timeout(self) -> None:
        self._process.kill(None, False)
        self._fail(
            _("{place} did not respond within {seconds:g} s.").format(
                place=self._place.name, seconds=DOCTOR_SECONDS
            )
        )

    def _on_end(self, code: int, crashed: bool) -> None:
        self._tell(
            read_report(self._place, b"".join(self._lines), code, self._process.stderr_tail())
        )

    def _fail(self, trouble: str) -> None:
        self._tell(Report(self._place, False, trouble=trouble))

    def _tell(self, report: Report) -> None:
        if not self._over:
            self._over = True
            self._timer.stop()
            self._told(report)


def read_report(place: WorkerLocation, output: bytes, code: int, stderr_tail: str) -> Report:
    """Read the report that the doctor printed, and ignore other output before it."""
    text = output.decode(errors="replace")
    try:
        data = json.loads(text[text.index("{") :])
        findings = tuple(dict(finding) for finding in data["findings"])
        for finding in findings:
            if not {"topic", "name", "found", "health"} <= finding.keys():
                raise KeyError("finding")
        return Report(place, bool(data["ready"]), findings, tuple(map(str, data["repairs"])))
    except (ValueError, KeyError, TypeError):
        why = place.explain(code) or _(
            "{place} could not be checked (exit code {code}). It needs Python 3.11 or later."
        ).format(place=place.name, code=code)
        return Report(place, False, trouble=f"{why}\n{stderr_tail or text[-500:]}".strip())

"""What the worker's computer has: read from the answer of `medsegai doctor --json`."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from medsegai.errors import WorkerError
from MedSegAILib.translation import tr as _
from MedSegAILib.view import DeviceChoice

FREE = re.compile(r"([\d.]+) GB (?:free|available)")


@dataclass(frozen=True)
class Devices:
    """The answer of a doctor, or nothing yet.

    Attributes:
        ready: whether a job can run there; None where nobody has asked.
        findings: as the doctor gives them.
    """

    ready: bool | None = None
    findings: tuple[dict[str, str], ...] = ()

    def choices(self) -> list[DeviceChoice]:
        """What the option `device` can be; graphics cards that do not work are left out."""
        return [
            DeviceChoice("auto", _("the fastest there is")),
            *(
                DeviceChoice(item["name"], item["found"])
                for item in self._usable()
                if item["name"] != "cuda"
            ),
        ]

    def describe(self, device: str) -> str:
        """A device in words; of `auto` also which one it will be, where that is known."""
        found = {item["name"]: item["found"] for item in self._usable()}
        if device != "auto":
            return f"{device} ({found[device]})" if device in found else device
        fastest = self._fastest()
        if fastest is None:
            return _("the fastest device there is")
        return f"{fastest['name']} ({fastest['found']})"

    def free_gb(self, device: str) -> float | None:
        """Free memory of a device; of the processor that of the computer."""
        chosen = self._fastest() if device == "auto" else self._named(device)
        if chosen is None:
            return None
        if chosen["name"] != "cpu":
            return _gigabytes(chosen["found"])
        memory = next((item for item in self.findings if item["topic"] == "memory"), None)
        return None if memory is None else _gigabytes(memory["found"])

    def text(self) -> str:
        """Everything, for a person: problems first, each with what to do."""
        marks = {"problem": "✗", "advice": "!", "good": "✓"}
        order = sorted(self.findings, key=lambda item: list(marks).index(item["health"]))
        lines = [_("Ready to segment.") if self.ready else _("Not ready: see the lines with ✗.")]
        for item in order:
            lines.append(f"{marks[item['health']]} {item['name']}: {item['found']}")
            if item["cure"]:
                lines.append(f"    → {item['cure']}")
        return "\n".join(lines)

    def _usable(self) -> list[dict[str, str]]:
        return [
            item for item in self.findings if item["topic"] == "device" and item["health"] == "good"
        ]

    def _named(self, device: str) -> dict[str, str] | None:
        return next((item for item in self._usable() if item["name"] == device), None)

    def _fastest(self) -> dict[str, str] | None:
        """As the engine chooses: the graphics card with most free memory, else the processor."""
        cards = [item for item in self._usable() if item["name"].startswith("cuda:")]
        if cards:
            return max(cards, key=lambda item: _gigabytes(item["found"]) or 0.0)
        return self._named("cpu")


def read_devices(output: str) -> Devices:
    """What a doctor printed.

    Raises:
        WorkerError: this is no answer of a doctor.
    """
    start = output.find("{")  # a login on another computer may say hello first
    try:
        report: Any = json.loads(output[start:])
        findings = tuple(
            {key: str(item[key]) for key in ("topic", "name", "found", "health", "cure")}
            for item in report["findings"]
        )
        return Devices(bool(report["ready"]), findings)
    except (ValueError, KeyError, TypeError) as error:
        raise WorkerError(
            _("The answer of `medsegai doctor` there cannot be read: {text}").format(
                text=output.strip()[:200] or _("it said nothing")
            )
        ) from error


def _gigabytes(text: str) -> float | None:
    match = FREE.search(text)
    return float(match.group(1)) if match else None

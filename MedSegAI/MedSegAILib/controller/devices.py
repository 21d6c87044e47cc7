"""What the worker's computer has, as its doctor says."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from MedSegAILib.panel_values import DeviceChoice
from MedSegAILib.translation import tr as _

FREE = re.compile(r"([\d.]+) GB (?:free|available)")


@dataclass(frozen=True)
class Devices:
    """The findings of a doctor, or nothing where nobody has asked yet: see `medsegai.doctor.Finding`."""

    findings: tuple[Mapping[str, Any], ...] = ()

    def choices(self) -> list[DeviceChoice]:
        """What the option `device` can be; graphics cards that do not work are left out."""
        return [
            DeviceChoice("auto", _("the fastest there is")),
            *(DeviceChoice(item["name"], item["found"]) for item in self._usable()),
        ]

    def describe(self, device: str) -> str:
        """A device in words; of `auto` also which one it will be, where that is known."""
        chosen = self._fastest() if device == "auto" else self._named(device)
        if chosen is None:
            return _("the fastest device there is") if device == "auto" else device
        what = ", ".join(chosen["found"].split(", ")[:2])  # instruction sets are for experts
        return f"{chosen['name']} ({what})"

    def free_gb(self, device: str) -> float | None:
        """Free memory of a device; of the processor that of the computer."""
        chosen = self._fastest() if device == "auto" else self._named(device)
        if chosen is None:
            return None
        if chosen["name"] != "cpu":
            return _gigabytes(chosen["found"])
        memory = next((item for item in self.findings if item["topic"] == "memory"), None)
        return None if memory is None else _gigabytes(memory["found"])

    def _usable(self) -> list[Mapping[str, Any]]:
        """Devices that a job can be given; `cuda` alone says that there is no graphics card."""
        return [
            item
            for item in self.findings
            if item["topic"] == "device" and item["health"] == "good" and item["name"] != "cuda"
        ]

    def _named(self, device: str) -> Mapping[str, Any] | None:
        return next((item for item in self._usable() if item["name"] == device), None)

    def _fastest(self) -> Mapping[str, Any] | None:
        """As the engine chooses: the graphics card with most free memory, else the processor."""
        cards = [item for item in self._usable() if item["name"].startswith("cuda:")]
        if cards:
            return max(cards, key=lambda item: _gigabytes(item["found"]) or 0.0)
        return self._named("cpu")


def _gigabytes(text: str) -> float | None:
    match = FREE.search(text)
    return float(match.group(1)) if match else None

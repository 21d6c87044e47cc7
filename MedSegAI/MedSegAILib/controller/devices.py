"""The devices of the worker's computer, as its doctor reports them."""

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
    """The findings of a doctor, which are empty before it has run: see `medsegai.doctor.Finding`."""

    findings: tuple[Mapping[str, Any], ...] = ()

    def choices(self) -> list[DeviceChoice]:
        """Return the choices of the option `device`, without graphics cards that do not work."""
        return [
            DeviceChoice("auto", _("the fastest one")),
            *(DeviceChoice(item["name"], item["found"]) for item in self._usable()),
        ]

    def describe(self, device: str) -> str:
        """Return a device in words; for `auto` also which one it will be, if that is known."""
        chosen = self._fastest() if device == "auto" else self._named(device)
        if chosen is None:
            return _("the fastest available device") if device == "auto" else device
        what = ", ".join(chosen["found"].split(", ")[:2])  # instruction sets are for experts
        return f"{chosen['name']} ({what})"

    def free_gb(self, device: str) -> float | None:
        """Return the free memory of a device in GB; for the processor, that of the computer."""
        chosen = self._fastest() if device == "auto" else self._named(device)
        if chosen is None:
            return None
        if chosen["name"] != "cpu":
            return _gigabytes(chosen["found"])
        memory = next((item for item in self.findings if item["topic"] == "memory"), None)
        return None if memory is None else _gigabytes(memory["found"])

    def _usable(self) -> list[Mapping[str, Any]]:
        """Return the devices for jobs; a finding `cuda` without a number means that there is no graphics card."""
        return [
            item
            for item in self.findings
            if item["topic"] == "device" and item["health"] == "good" and item["name"] != "cuda"
        ]

    def _named(self, device: str) -> Mapping[str, Any] | None:
        return next((item for item in self._usable() if item["name"] == device), None)

    def _fastest(self) -> Mapping[str, Any] | None:
        """Return the engine's choice: the graphics card with most free memory, or the processor."""
        cards = [item for item in self._usable() if item["name"].startswith("cuda:")]
        if cards:
            return max(cards, key=lambda item: _gigabytes(item["found"]) or 0.0)
        return self._named("cpu")


def _gigabytes(text: str) -> float | None:
    match = FREE.search(text)
    return float(match.group(1)) if match else None

"""Signals without Qt, from the panel to the controller."""

from __future__ import annotations

from collections.abc import Callable


class Signal:
    """Calls connected receivers, in the order of their connection, with the values of `emit`."""

    def __init__(self) -> None:
        self._receivers: list[Callable[..., object]] = []

    def connect(self, receiver: Callable[..., object]) -> None:
        """Call this receiver with each value from now on."""
        self._receivers.append(receiver)

    def emit(self, *values: object) -> None:
        """Call all receivers, in the order in which they were connected."""
        for receiver in self._receivers:
            receiver(*values)

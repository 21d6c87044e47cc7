"""Signals without Qt, from the panel to the controller."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Signal:
    """Calls connected receivers, in the order of their connection, with the values of `emit`."""

    def __init__(self) -> None:
        self._receivers: list[Callable[..., object]] = []
        self._held: list[tuple[object, ...]] | None = None

    def connect(self, receiver: Callable[..., object]) -> None:
        """Call this receiver with each value from now on."""
        self._receivers.append(receiver)

    def emit(self, *values: object) -> None:
        """Call all receivers, in the order in which they were connected."""
        if self._held is not None:
            self._held.append(values)
            return
        for receiver in self._receivers:
            receiver(*values)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Within the block, nothing is received; after it, the last emission is, if there was one."""
        self._held = []
        try:
            yield
        finally:
            held, self._held = self._held, None
        for values in held[-1:]:
            self.emit(*values)

"""A network that OpenVINO takes long to prepare: PyTorch runs it until it is measured that preparing pays."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor

PREPARING_SECONDS = 20.0
"""What exporting and compiling a SwinUNETR takes on one core: 16 s with 12 or 24 features, 22 s with 48."""

SAVED = 0.5
"""The part of PyTorch's time that OpenVINO saves at least. A SwinUNETR saves 0.8 in windows of 64 voxels."""


CLOCKS = (time.perf_counter, time.process_time)
"""On many cores a batch takes less time than the processors do, and beside other programs more."""


class Eager(Protocol):
    """Runs a network at once."""

    def __call__(self, batch: Tensor) -> Tensor: ...


class Compiled(Eager, Protocol):
    """Runs a network fast, once it is prepared for batches of a shape."""

    def is_ready(self, shape: Sequence[int]) -> bool: ...

    def prepare(self, shape: Sequence[int]) -> None: ...


class MeasuredRunner:
    """Batches (N, channels, ...) to logits (N, classes, ...) by one of two runners of a network (see `Runner`)."""

    def __init__(
        self, eager: Eager, compiled: Compiled, clocks: Sequence[Callable[[], float]] = CLOCKS
    ) -> None:
        """`clocks` tell seconds, of which the fewest count."""
        self._eager, self._compiled, self._clocks = eager, compiled, clocks
        self._left: int | None = None
        self._least = self._spent = 0.0

    def expect(self, batches: int) -> None:
        """So many batches are about to come. If this is not known, as many are expected as there were."""
        self._left = batches

    def prepare(self, shape: Sequence[int]) -> None:
        """Prepare batches of this shape, while there is nothing else to do."""
        self._compiled.prepare(shape)

    def __call__(self, batch: Tensor) -> Tensor:
        fast = self._compiled.is_ready(batch.shape) or self._pays()
        begun = [clock() for clock in self._clocks]
        logits = (self._compiled if fast else self._eager)(batch)
        if not fast:
            seconds = min(clock() - at for clock, at in zip(self._clocks, begun, strict=True))
            self._least = min(seconds, self._least or seconds)
            self._spent += seconds
        if self._left is not None:
            self._left = max(self._left - 1, 0)
        return logits

    def _pays(self) -> bool:
        """Whether preparing takes less time than it saves."""
        ahead = self._spent if self._left is None else self._least * self._left
        return ahead * SAVED > PREPARING_SECONDS

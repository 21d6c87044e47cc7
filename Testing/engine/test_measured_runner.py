"""A network that takes long to prepare is prepared where that saves time, and else not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from medsegai.networks.measured import PREPARING_SECONDS, SAVED, MeasuredRunner

BATCH = torch.zeros(1, 1, 4, 4, 4)


@dataclass
class Clock:
    """Seconds that pass where something is done."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Eager:
    clock: Clock
    seconds: float

    def __call__(self, batch: Tensor) -> Tensor:
        self.clock.now += self.seconds
        return batch


@dataclass
class Compiled:
    clock: Clock
    seconds: float
    ready: set[tuple[int, ...]] = field(default_factory=set)

    def is_ready(self, shape: Sequence[int]) -> bool:
        return tuple(shape) in self.ready

    def prepare(self, shape: Sequence[int]) -> None:
        if not self.is_ready(shape):
            self.clock.now += PREPARING_SECONDS
            self.ready.add(tuple(shape))

    def __call__(self, batch: Tensor) -> Tensor:
        self.prepare(batch.shape)
        self.clock.now += self.seconds
        return batch


def taken(seconds: float, batches: int, told: bool) -> tuple[float, bool]:
    """What so many batches take, and whether the compiled runner was prepared."""
    clock = Clock()
    compiled = Compiled(clock, seconds * (1 - SAVED))
    runner = MeasuredRunner(Eager(clock, seconds), compiled, (clock,))
    if told:
        runner.expect(batches)
    for _ in range(batches):
        assert runner(BATCH) is BATCH
    return clock.now, bool(compiled.ready)


@given(seconds=st.floats(0.01, 60), batches=st.integers(1, 200))
def test_it_never_takes_longer_than_pytorch_alone(seconds: float, batches: int) -> None:
    """If preparing and saving are as was measured; and never much longer than the better of both."""
    time, _ = taken(seconds, batches, told=True)
    alone = seconds * batches
    at_once = PREPARING_SECONDS + alone * (1 - SAVED)
    assert time <= alone + 1e-6
    assert time <= min(alone, at_once) + seconds + 1e-6


@given(seconds=st.floats(0.01, 60), batches=st.integers(1, 200))
def test_without_a_number_it_takes_less_than_twice_the_better(seconds: float, batches: int) -> None:
    time, _ = taken(seconds, batches, told=False)
    alone = seconds * batches
    at_once = PREPARING_SECONDS + alone * (1 - SAVED)
    assert time <= 2 * min(alone, at_once) + seconds + 1e-6


@pytest.mark.parametrize(
    ("seconds", "batches", "prepared"),
    [(11, 4, False), (11, 8, True), (1.7, 4, False), (1.7, 100, True)],
)
def test_few_small_windows_are_not_worth_it(seconds: float, batches: int, prepared: bool) -> None:
    assert taken(seconds, batches, told=True)[1] == prepared


def test_what_is_ready_is_used_at_once() -> None:
    clock = Clock()
    compiled = Compiled(clock, 0.1)
    runner = MeasuredRunner(Eager(clock, 1.0), compiled, (clock,))
    runner.prepare(BATCH.shape)
    before = clock.now
    runner(BATCH)
    assert clock.now == pytest.approx(before + 0.1)

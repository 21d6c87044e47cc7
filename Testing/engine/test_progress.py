"""Progress: a fraction that tells the truth and never falls, seconds per stage, and the stop."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator

import pytest

from medsegai import progress as progress_module
from medsegai.errors import Cancelled
from medsegai.progress import Progress, ProgressEvent

PLAN = {"read": 10.0, "predict": 80.0, "write": 10.0}


class Clock:
    """Stands in for time.perf_counter: time passes only when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    clock = Clock()
    monkeypatch.setattr(progress_module, "time", clock)
    return clock


def recorded(plan: dict[str, float]) -> tuple[Progress, list[ProgressEvent]]:
    events: list[ProgressEvent] = []
    progress = Progress(events.append)
    progress.plan(plan)
    return progress, events


def test_the_fraction_follows_the_weights() -> None:
    progress, events = recorded(PLAN)
    for stage, done, total in (
        ("read", 0, 1),
        ("read", 1, 1),
        ("predict", 1, 4),
        ("predict", 4, 4),
        ("write", 1, 2),
        ("write", 2, 2),
    ):
        progress.step(stage, done, total)
    assert [event.fraction for event in events] == pytest.approx([0, 0.1, 0.3, 0.9, 0.95, 1.0])
    assert [event.stage for event in events] == ["read"] * 2 + ["predict"] * 2 + ["write"] * 2


def test_the_fraction_never_falls_nor_leaves_0_to_1() -> None:
    progress, events = recorded(PLAN)
    amounts = [(-1, 4), (0, 4), (3, 4), (1, 4), (9, 4), (0, 0)]
    for stage, (done, total) in itertools.product(
        ["predict", "read", "unplanned", "write"], amounts
    ):
        progress.step(stage, done, total)
    fractions = [event.fraction for event in events]
    assert fractions == sorted(fractions)
    assert min(fractions) >= 0
    assert max(fractions) <= 1


def test_stages_that_take_turns_are_over_together() -> None:
    progress, events = recorded({"read": 1, "predict": 6, "labels": 2, "refine": 1})
    progress.plan(progress.weights, together=("predict", "labels"))
    progress.step("read", 1, 1)
    progress.step("predict", 4, 5)  # planes that need no prediction are left out
    progress.step("labels", 4, 5)
    progress.step("refine", 0, 1)
    assert events[-1].fraction == pytest.approx(0.9)
    progress.step("refine", 1, 1)
    assert events[-1].fraction == pytest.approx(1.0)


def test_an_unplanned_stage_leaves_the_fraction() -> None:
    progress, events = recorded(PLAN)
    progress.step("read", 1, 1)
    progress.step("surprise", 1, 2)
    assert events[-1] == ProgressEvent("surprise", pytest.approx(0.1), None)


def test_without_a_listener_or_plan_steps_are_silent() -> None:
    Progress().step("anything", 1, 2)


def test_the_time_since_the_last_step_counts_for_the_stage_under_way(clock: Clock) -> None:
    progress = Progress()
    progress.step("read", 0, 1)
    clock.now += 2
    progress.step("predict", 0, 2)
    clock.now += 3
    progress.step("predict", 1, 2)
    clock.now += 4
    progress.step("predict", 2, 2)
    clock.now += 5
    progress.step("write", 1, 1)
    assert progress.seconds["read"] == pytest.approx(2)
    assert progress.seconds["predict"] == pytest.approx(3 + 4 + 5)
    assert sum(progress.seconds.values()) == pytest.approx(14)


def test_the_time_left_is_told_as_soon_as_it_can_be(clock: Clock) -> None:
    progress, events = recorded(PLAN)
    progress.step("read", 0, 1)
    clock.now += 0.1
    progress.step("read", 1, 1)
    assert events[-1].seconds_left is None
    clock.now += 9.9
    progress.step("predict", 1, 4)  # 30 % in 10 seconds
    assert events[-1].seconds_left == pytest.approx(10 * 0.7 / 0.3)


def test_a_stop_from_another_thread_ends_the_next_step() -> None:
    progress, events = recorded(PLAN)
    progress.step("read", 0, 1)
    thread = threading.Thread(target=progress.cancel.set)
    thread.start()
    thread.join()
    with pytest.raises(Cancelled, match="Nothing was written") as caught:
        progress.step("read", 1, 1)
    assert caught.value.exit_code == 130
    assert len(events) == 1

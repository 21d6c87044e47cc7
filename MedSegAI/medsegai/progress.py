"""Progress with a true fraction, and the one place where a job can be stopped."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from threading import Event

from medsegai.errors import Cancelled


@dataclass(frozen=True)
class ProgressEvent:
    """`fraction` of the whole job from 0 to 1, never falling; `seconds_left` is None until it is known."""

    stage: str
    fraction: float
    seconds_left: float | None = None


ProgressListener = Callable[[ProgressEvent], None]

Check = Callable[[], None]
"""Raises `Cancelled` if the user asked to stop; long loops call it, such as `Progress.check`."""


def unstoppable() -> None:
    """A `Check` for work that nobody can stop."""


def part_of(step: Callable[[float], None], number: int, count: int) -> Callable[[float], None]:
    """Return the step of part `number` of `count` equal parts of a job; `step` receives the share of the whole."""
    return lambda share: step((number + share) / count)


@dataclass
class Progress:
    """Joins the stages of a job into one fraction, measures each stage, and raises `Cancelled`.

    Attributes:
        listener: called with each event.
        cancel: set it from any thread; the next `step` raises `Cancelled`.
        weights: share of the whole that each stage is expected to take, in any unit.
        seconds: what each stage took so far.
    """

    listener: ProgressListener | None = None
    cancel: Event = field(default_factory=Event)
    weights: Mapping[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._started = time.perf_counter()
        self._last = self._started
        self._stage: str | None = None
        self._finished: set[str] = set()
        self._together: frozenset[str] = frozenset()
        self._parts: dict[str, float] = {}
        self._fraction = 0.0

    def plan(self, weights: Mapping[str, float], together: Iterable[str] = ()) -> None:
        """Say which stages are to come and how they weigh against each other.

        Any other stage is finished when the next one begins; those named in `together` take turns, and each
        is as far as its own steps say.
        """
        self.weights = dict(weights)
        self._together = frozenset(together)

    def step(self, stage: str, done: float, total: float) -> None:
        """Report that `done` of `total` parts of `stage` are finished.

        Raises:
            Cancelled: the user asked to stop.
        """
        self.check()
        self._measure(stage)
        share = self._share(stage, done / total if total else 1.0)
        self._fraction = max(self._fraction, min(share, 1.0))
        if self.listener is not None:
            self.listener(ProgressEvent(stage, self._fraction, self._seconds_left()))

    def check(self) -> None:
        """Raise `Cancelled` if the user asked to stop; between two calls of `step`, for work of unknown length."""
        if self.cancel.is_set():
            raise Cancelled("Stopped by the user. Nothing was written.")

    def _measure(self, stage: str) -> None:
        """Time since the last step belongs to the stage that was under way, not to the one that begins."""
        now = time.perf_counter()
        under_way = self._stage or stage
        if under_way != stage and not {under_way, stage} <= self._together:
            self._finished.add(under_way)
            if under_way in self._together:  # their turns are over, whichever had the last
                self._finished |= self._together
        self.seconds[under_way] = self.seconds.get(under_way, 0.0) + now - self._last
        self._last, self._stage = now, stage

    def _share(self, stage: str, part: float) -> float:
        whole = sum(self.weights.values())
        if stage not in self.weights or whole <= 0:
            return self._fraction
        self._parts[stage] = min(max(part, 0.0), 1.0)
        done = sum(
            weight * (1.0 if name in self._finished - {stage} else self._parts.get(name, 0.0))
            for name, weight in self.weights.items()
            if name in self._finished | self._together | {stage}
        )
        return done / whole

    def _seconds_left(self) -> float | None:
        spent = time.perf_counter() - self._started
        if self._fraction < 0.02 or spent < 0.5:
            return None
        return spent * (1.0 - self._fraction) / self._fraction


def duration(seconds: float) -> str:
    """Return a time, 0 or more, as a person says it: `12 s`, `3 min 05 s`, `1 h 02 min`."""
    hours, rest = divmod(round(seconds), 3600)
    minutes, rest = divmod(rest, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    if minutes:
        return f"{minutes} min {rest:02d} s"
    return f"{rest} s"


class MemberProgress:
    """Progress over members, several of which may be running."""

    def __init__(self, progress: Progress, members: int) -> None:
        self._progress = progress
        self._begun = 0
        self.done = [0.0] * members

    def next_member(self) -> Callable[[float], None]:
        """A function to call with the share that the next member has done."""
        number = self._begun
        self._begun += 1

        def step(part: float) -> None:
            self.done[number] = part
            self._progress.step("predict", sum(self.done), len(self.done))

        return step

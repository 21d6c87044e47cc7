"""The queue with a client whose jobs end when the test says so."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from medsegai.errors import Cancelled, MedSegAIError, OutputError, WorkerError
from medsegai.progress import ProgressEvent
from medsegai.request import SegmentationRequest, SegmentationResult
from medsegai.volume import Geometry, Volume
from MedSegAILib.signals import Signal
from MedSegAILib.worker.listener import JobListener
from MedSegAILib.worker.queue import Entry, JobQueue

GRID = Geometry.from_spacing((2, 3, 4), (1, 1, 1))
RESULT = SegmentationResult(Volume(np.zeros((2, 3, 4), np.uint8), GRID), (), ())


class Client:
    """Does one job at a time, as `WorkerClient`: tells its listener, then says that it is free."""

    def __init__(self) -> None:
        self.freed, self.stalled = Signal(), Signal()
        self.begun: list[str] = []
        self.listener: JobListener | None = None
        self.cancelled = 0
        self.start_error: MedSegAIError | None = None
        self.ends_at_once = False

    @property
    def busy(self) -> bool:
        return self.listener is not None

    def start(self, request: SegmentationRequest, listener: JobListener) -> None:
        assert not self.busy
        self.begun.append(request.models[0])
        if self.start_error is not None:
            error, self.start_error = self.start_error, None
            raise error
        self.listener = listener
        if self.ends_at_once:
            self.fail(WorkerError("The worker could not be started."))

    def cancel(self) -> None:
        self.cancelled += 1

    def progress(self, stage: str, fraction: float, left: float | None = None) -> None:
        assert self.listener is not None
        self.listener.progressed(ProgressEvent(stage, fraction, left))

    def finish(self) -> None:
        self._tell(lambda listener: listener.finished(RESULT))

    def fail(self, error: MedSegAIError) -> None:
        self._tell(lambda listener: listener.failed(error))

    def _tell(self, tell: Callable[[JobListener], None]) -> None:
        assert self.listener is not None
        listener, self.listener = self.listener, None
        try:
            tell(listener)
        finally:
            if not self.busy:
                self.freed.emit()


class Ear:
    def __init__(self) -> None:
        self.events: list[ProgressEvent] = []
        self.results: list[SegmentationResult] = []
        self.errors: list[MedSegAIError] = []

    def progressed(self, event: ProgressEvent) -> None:
        self.events.append(event)

    def finished(self, result: SegmentationResult) -> None:
        self.results.append(result)

    def failed(self, error: MedSegAIError) -> None:
        self.errors.append(error)


class BrokenEar(Ear):
    """As a scene that cannot take a result for a reason that nobody thought of."""

    def progressed(self, event: ProgressEvent) -> None:
        raise ZeroDivisionError("made up")

    def finished(self, result: SegmentationResult) -> None:
        raise ZeroDivisionError("made up")

    def failed(self, error: MedSegAIError) -> None:
        raise ZeroDivisionError("made up")


def request(name: str) -> SegmentationRequest:
    return SegmentationRequest((Path(f"{name}.nii"),), models=(name,))


@pytest.fixture
def client() -> Client:
    return Client()


@pytest.fixture
def queue(client: Client) -> JobQueue:
    return JobQueue(client)


def add(queue: JobQueue, name: str, ear: Ear | None = None) -> Entry:
    return queue.add(name, lambda: request(name), ear or Ear())


def states(queue: JobQueue) -> dict[str, str]:
    return {entry.title: str(entry.state) for entry in queue.entries}


def test_entries_run_one_after_another_in_their_order(queue: JobQueue, client: Client) -> None:
    ears = {name: Ear() for name in "abc"}
    for name, ear in ears.items():
        add(queue, name, ear)
    assert states(queue) == {"a": "running", "b": "waiting", "c": "waiting"}
    assert client.begun == ["a"]
    client.finish()
    assert states(queue) == {"a": "done", "b": "running", "c": "waiting"}
    client.finish()
    client.finish()
    assert client.begun == ["a", "b", "c"]
    assert not queue.busy
    assert all(ear.results == [RESULT] and not ear.errors for ear in ears.values())


def test_an_entry_shows_how_far_it_is(queue: JobQueue, client: Client) -> None:
    ear = Ear()
    entry = add(queue, "a", ear)
    client.progress("predict", 0.25, 12.0)
    assert (entry.stage, entry.fraction, entry.seconds_left) == ("predict", 0.25, 12.0)
    assert [event.fraction for event in ear.events] == [0.25]
    client.finish()
    assert (entry.fraction, entry.seconds_left) == (1.0, None)


def test_a_job_that_stalls_says_so_until_it_goes_on(queue: JobQueue, client: Client) -> None:
    client.stalled.emit()
    entry = add(queue, "a")
    client.stalled.emit()
    assert "No progress" in entry.message
    client.progress("predict", 0.5)
    assert entry.message == ""


def test_every_change_is_told(queue: JobQueue, client: Client) -> None:
    seen: list[dict[str, str]] = []
    queue.changed.connect(lambda: seen.append(states(queue)))
    entry = add(queue, "a")
    assert seen[-1] == {"a": "running"}
    count = len(seen)
    client.progress("predict", 0.5)
    assert len(seen) == count + 1
    client.finish()
    assert seen[-1] == {"a": "done"}
    queue.remove(entry)
    assert seen[-1] == {}


def test_the_request_is_made_when_the_turn_comes(queue: JobQueue, client: Client) -> None:
    made: list[str] = []

    def make(name: str) -> Callable[[], SegmentationRequest]:
        def make_request() -> SegmentationRequest:
            made.append(name)
            return request(name)

        return make_request

    for name in "ab":
        queue.add(name, make(name), Ear())
    assert made == ["a"]
    client.finish()
    assert made == ["a", "b"]


def test_an_entry_that_fails_says_why_and_the_next_one_runs(
    queue: JobQueue, client: Client
) -> None:
    ear = Ear()
    first, second = add(queue, "a", ear), add(queue, "b")
    client.progress("predict", 0.5, 9.0)
    client.fail(WorkerError("The worker crashed."))
    assert (first.state, first.message) == ("failed", "The worker crashed.")
    assert first.seconds_left is None
    assert [type(error) for error in ear.errors] == [WorkerError]
    assert second.state == "running"


@pytest.mark.parametrize("error", [OutputError("The disk is full."), KeyError("defect")])
def test_a_request_that_cannot_be_made_fails_that_entry_only(
    queue: JobQueue, client: Client, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse() -> SegmentationRequest:
        raise error

    ear = Ear()
    add(queue, "a")
    entry = queue.add("b", refuse, ear)
    add(queue, "c")
    client.finish()
    assert states(queue) == {"a": "done", "b": "failed", "c": "running"}
    (told,) = ear.errors
    assert entry.message == str(told)
    assert str(error) in entry.message
    assert bool(caplog.records) == isinstance(error, KeyError), "a defect leaves its traceback"


def test_a_start_that_fails_fails_that_entry_only(queue: JobQueue, client: Client) -> None:
    client.start_error = OutputError("The temporary folder is read-only.")
    ear = Ear()
    first, second = add(queue, "a", ear), add(queue, "b")
    assert (first.state, second.state) == ("failed", "running")
    assert len(ear.errors) == 1


def test_a_client_that_can_start_nothing_fails_each_once(queue: JobQueue, client: Client) -> None:
    """A queue of many must not run into itself when each job ends before its start returns."""
    ears = [Ear() for _ in range(2000)]
    add(queue, "first")
    for number, ear in enumerate(ears):
        add(queue, str(number), ear)
    client.ends_at_once = True
    client.finish()
    assert all(len(ear.errors) == 1 for ear in ears)
    assert not queue.busy


def test_a_listener_that_fails_does_not_stop_the_queue(
    queue: JobQueue, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    first = add(queue, "a", BrokenEar())
    second, third = add(queue, "b", BrokenEar()), add(queue, "c")
    client.progress("predict", 0.5)
    client.finish()
    assert (first.state, second.state) == ("failed", "running")
    client.fail(WorkerError("why"))
    assert (second.state, third.state) == ("failed", "running")
    assert len([item for item in caplog.records if item.levelno == logging.ERROR]) == 4
    assert "made up" in caplog.text


class FullEar(Ear):
    """As a scene that cannot take a result until there is room for it."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error: Exception | None = error

    def finished(self, result: SegmentationResult) -> None:
        if self.error is not None:
            raise self.error
        super().finished(result)


@pytest.mark.parametrize("error", [OutputError("The disk is full."), MemoryError("no room")])
def test_a_result_that_cannot_be_used_is_kept_and_tried_again(
    queue: JobQueue, client: Client, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    ear = FullEar(error)
    entry, other = add(queue, "a", ear), add(queue, "b")
    client.finish()
    assert (entry.state, other.state) == ("failed", "running")
    assert str(error) in entry.message
    (told,) = ear.errors
    assert isinstance(told, WorkerError) == isinstance(error, MemoryError), "a defect has a log"
    assert bool(caplog.records) == isinstance(error, MemoryError)
    assert queue.again(entry) is entry, "still no room"
    assert entry.state == "failed"
    ear.error = None
    queue.again(entry)
    assert (entry.state, entry.message, ear.results) == ("done", "", [RESULT])
    assert client.begun == ["a", "b"], "nothing was computed again"
    assert queue.again(entry) is not entry


def test_a_result_that_is_kept_goes_with_the_scene(queue: JobQueue, client: Client) -> None:
    entry = add(queue, "a", FullEar(MemoryError("no room")))
    client.finish()
    queue.cancel_all()
    assert entry.kept is None


def test_whoever_watches_may_fail_too(queue: JobQueue, client: Client) -> None:
    def broken() -> None:
        raise ZeroDivisionError("made up")

    queue.changed.connect(broken)
    add(queue, "a")
    add(queue, "b")
    client.finish()
    assert states(queue) == {"a": "done", "b": "running"}


@pytest.mark.parametrize(
    ("by", "order"),
    [(1, "acbd"), (2, "acdb"), (9, "acdb"), (0, "abcd"), (-1, "abcd")],
)
def test_waiting_entries_move_among_themselves(
    queue: JobQueue, client: Client, by: int, order: str
) -> None:
    entries = {name: add(queue, name) for name in "abcd"}
    queue.move(entries["b"], by)
    assert "".join(entry.title for entry in queue.entries) == order
    for _ in order:
        client.finish()
    assert client.begun == list(order)


def test_only_waiting_entries_move(queue: JobQueue, client: Client) -> None:
    first, second = add(queue, "a"), add(queue, "b")
    queue.move(first, 1)
    client.finish()
    client.finish()
    queue.move(second, -1)
    assert [entry.title for entry in queue.entries] == ["a", "b"]


def test_a_move_passes_over_what_is_over(queue: JobQueue, client: Client) -> None:
    entries = {name: add(queue, name) for name in "abcd"}
    queue.cancel(entries["c"])
    queue.move(entries["d"], -1)
    assert [entry.title for entry in queue.entries] == ["a", "d", "c", "b"]


def test_a_waiting_entry_can_be_taken_out(queue: JobQueue, client: Client) -> None:
    ear = Ear()
    add(queue, "a")
    second = add(queue, "b", ear)
    queue.remove(second)
    queue.remove(second)
    assert states(queue) == {"a": "running"}
    assert [type(error) for error in ear.errors] == [Cancelled]
    client.finish()
    assert client.begun == ["a"]


def test_a_running_entry_leaves_when_it_has_stopped(queue: JobQueue, client: Client) -> None:
    entry = add(queue, "a")
    queue.remove(entry)
    assert client.cancelled == 1
    assert entry.stopping
    assert entry in queue.entries
    client.fail(Cancelled("Stopped."))
    assert queue.entries == ()


def test_what_is_over_can_be_taken_out_at_once(queue: JobQueue, client: Client) -> None:
    add(queue, "a")
    add(queue, "b")
    waiting = add(queue, "c")
    client.finish()
    queue.remove_ended()
    assert states(queue) == {"b": "running", "c": "waiting"}
    assert waiting in queue.entries


def test_an_entry_can_run_again(queue: JobQueue, client: Client) -> None:
    ear = Ear()
    first = add(queue, "a", ear)
    client.fail(WorkerError("why"))
    second = queue.again(first)
    assert second is not first
    assert (first.state, second.state) == ("failed", "running")
    client.finish()
    assert len(ear.results) == 1
    assert client.begun == ["a", "a"]


def test_cancel_stops_what_runs_and_the_next_one_begins(queue: JobQueue, client: Client) -> None:
    first, second = add(queue, "a"), add(queue, "b")
    queue.cancel(first)
    queue.cancel(first)
    assert client.cancelled == 1
    assert (first.state, first.stopping) == ("running", True)
    client.fail(Cancelled("Stopped."))
    assert (first.state, first.stopping, first.message) == ("cancelled", False, "Stopped.")
    assert second.state == "running"


def test_what_is_cancelled_before_its_turn_never_begins(queue: JobQueue, client: Client) -> None:
    ear = Ear()
    add(queue, "a")
    second = add(queue, "b", ear)
    queue.cancel(second)
    assert second.state == "cancelled"
    assert [type(error) for error in ear.errors] == [Cancelled]
    client.finish()
    queue.cancel(second)
    assert client.begun == ["a"]
    assert len(ear.errors) == 1


def test_cancelling_all_lets_nothing_begin(queue: JobQueue, client: Client) -> None:
    for name in "abc":
        add(queue, name)
    queue.cancel_all()
    client.fail(Cancelled("Stopped."))
    assert set(states(queue).values()) == {"cancelled"}
    assert client.begun == ["a"]
    assert not queue.busy


def test_cancelling_while_the_request_is_made_starts_no_job(
    queue: JobQueue, client: Client
) -> None:
    def make_request() -> SegmentationRequest:
        queue.cancel_all()
        return request("a")

    entry = queue.add("a", make_request, Ear())
    assert entry.state == "cancelled"
    assert client.begun == []


def test_a_listener_may_add_the_next_entry(queue: JobQueue, client: Client) -> None:
    class Chain(Ear):
        def finished(self, result: SegmentationResult) -> None:
            add(queue, "b")

    add(queue, "a", Chain())
    client.finish()
    assert states(queue) == {"a": "done", "b": "running"}


def test_the_queue_waits_while_a_script_has_the_client(queue: JobQueue, client: Client) -> None:
    client.start(request("script"), Ear())
    entry = add(queue, "a")
    assert entry.state == "waiting"
    client.finish()
    assert entry.state == "running"

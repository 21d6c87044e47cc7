"""A job that a script started and waits for, while Slicer stays alive."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

from medsegai.errors import MedSegAIError
from medsegai.progress import ProgressEvent
from MedSegAILib.worker.queue import Entry, JobQueue

Written = TypeVar("Written")


class Waiting(Protocol):
    """A client of the worker that can be waited for."""

    def wait(self, meanwhile: Callable[[], None] | None = None) -> None: ...


class Job(Generic[Written]):
    """Receives the events of the job, and writes its result.

    Args:
        queue: where the job is.
        client: a `WorkerClient`, which does it.
        live: lets Slicer work for a moment.
        write: brings the result into the scene, and gives what `wait` returns.
        progress: called with stage, fraction and seconds left.

    Attributes:
        entry: its place in the queue: state, fraction, seconds_left, message.
        over: whether it has ended.
    """

    entry: Entry

    def __init__(
        self,
        queue: JobQueue,
        client: Waiting,
        live: Callable[[], None],
        write: Callable[[Any], Written],
        progress: Callable[[ProgressEvent], None] | None,
    ) -> None:
        self._queue, self._client, self._live = queue, client, live
        self._write, self._progress = write, progress
        self._events: list[ProgressEvent] = []
        self._written: list[Written] = []
        self._error: MedSegAIError | None = None
        self.over = False

    def wait(self) -> Written:
        """What the result became, such as the segmentation node, as soon as it is there.

        Raises:
            MedSegAIError: why there is none.
        """
        try:
            self._work_until_over()
        finally:
            if not self.over:  # `progress` raised, or Ctrl-C came
                self._progress = None
                self.cancel()
                self._work_until_over()
        if self._error is not None:
            raise self._error
        return self._written[-1]

    def cancel(self) -> None:
        """Stop it; `wait` then raises `Cancelled`."""
        self._queue.cancel(self.entry)

    def progressed(self, event: ProgressEvent) -> None:
        """Hand progress on to the caller."""
        self._events.append(event)

    def finished(self, result: object) -> None:
        """Keep the result for the caller."""
        self._written = [self._write(result)]
        self._error, self.over = None, True

    def failed(self, error: MedSegAIError) -> None:
        """Keep the error for the caller."""
        self._error, self.over = error, True

    def _work_until_over(self) -> None:
        while not self.over:
            self._client.wait(self._meanwhile)
            self._meanwhile()
        self._tell()

    def _meanwhile(self) -> None:
        self._live()
        self._tell()

    def _tell(self) -> None:
        """From here and not from Qt, which would swallow an exception."""
        while self._events:
            event = self._events.pop(0)
            if self._progress is not None:
                self._progress(event)

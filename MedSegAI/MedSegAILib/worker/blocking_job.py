"""A job that a script started and waits for, while Slicer stays responsive."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

from medsegai.errors import MedSegAIError
from medsegai.progress import ProgressEvent
from MedSegAILib.worker.queue import Entry, JobQueue

Written = TypeVar("Written")


class Waiting(Protocol):
    """A client of the worker that can wait."""

    def wait(self, meanwhile: Callable[[], None] | None = None) -> None: ...


class Job(Generic[Written]):
    """Receives the events of the job, and writes its result.

    Args:
        queue: the queue of the job.
        client: the `WorkerClient` that does the job.
        live: the function that lets Slicer process events.
        write: the function that writes the result into the scene; `wait` returns its value.
        progress: the function that receives stage, fraction and seconds left.

    Attributes:
        entry: its entry in the queue, with state, fraction, seconds_left and message.
        over: whether the job has ended.
        notes: what of the result was not written as it was asked for, as sentences.
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
        self.notes: tuple[str, ...] = ()

    def wait(self) -> Written:
        """Wait for the result in the scene, such as the segmentation node, and return it.

        Raises:
            MedSegAIError: the job failed.
        """
        try:
            self._work_until_over()
        finally:
            if not self.over:  # `progress` raised, or Ctrl-C was pressed
                self._progress = None
                self.cancel()
                self._work_until_over()
        if self._error is not None:
            raise self._error
        return self._written[-1]

    def cancel(self) -> None:
        """Stop the job; `wait` then raises `Cancelled`."""
        self._queue.cancel(self.entry)

    def progressed(self, event: ProgressEvent) -> None:
        """Pass progress on to the caller."""
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
        """Report progress from here and not from Qt, which would swallow an exception."""
        while self._events:
            event = self._events.pop(0)
            if self._progress is not None:
                self._progress(event)

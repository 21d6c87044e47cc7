"""What a job in the queue is about, read twice: to find mistakes at once, and when its turn comes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

Request = TypeVar("Request", covariant=True)
Result = TypeVar("Result")
Written = TypeVar("Written")


class Requesting(Protocol[Request]):
    """What is read of the scene for a job."""

    @property
    def request(self) -> Request:
        """What the worker is asked."""


ReadAs = TypeVar("ReadAs", bound=Requesting[object])


class Reading(Generic[ReadAs]):
    """What `read` gives, an object with a `request` for the worker.

    Attributes:
        read_as: what it gave when the turn came; None after `forget`.

    Raises:
        MedSegAIError: `read` does.
    """

    def __init__(self, read: Callable[[], ReadAs]) -> None:
        self._read = read
        self._fresh: ReadAs | None = read()
        self._owed = False
        self.read_as: ReadAs | None = self._fresh

    def make_request(self) -> object:
        """The request of this moment; what was read a moment ago is not read again."""
        read_as = self._fresh or self._read()
        self.read_as, self._fresh, self._owed = read_as, None, False
        return read_as.request

    def waits(self) -> None:
        """Where the turn has not come at once, what was read will be old by then."""
        self._fresh = None

    def answered(self, then: Callable[[ReadAs, Result], Written], result: Result) -> Written:
        """Give `then` what was read and the answer to it, and return what it makes of them.

        Where `then` raises, what was read is kept, because the answer may come again and belongs to it.
        """
        assert self.read_as is not None, "what was read is kept until it is answered"
        self._owed = True
        written = then(self.read_as, result)
        self._owed = False
        self.forget()
        return written

    def forget(self) -> None:
        """It holds voxels, and the queue keeps the job."""
        if not self._owed:
            self._fresh = self.read_as = None

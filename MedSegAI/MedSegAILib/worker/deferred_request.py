"""The request of a job in the queue, which is read twice: to find mistakes at once, and when its turn comes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

Request = TypeVar("Request", covariant=True)
Result = TypeVar("Result")
Written = TypeVar("Written")


class Requesting(Protocol[Request]):
    """The data that are read from the scene for a job."""

    @property
    def request(self) -> Request:
        """The request to the worker."""


ReadAs = TypeVar("ReadAs", bound=Requesting[object])


class Reading(Generic[ReadAs]):
    """The result of `read`, an object with a `request` for the worker.

    Attributes:
        read_as: the result when the job's turn came; None after `forget`.

    Raises:
        MedSegAIError: `read` raised it.
    """

    def __init__(self, read: Callable[[], ReadAs]) -> None:
        self._read = read
        self._fresh: ReadAs | None = read()
        self._owed = False
        self.read_as: ReadAs | None = self._fresh

    def make_request(self) -> object:
        """Return the present request; data that were read a moment ago are not read again."""
        read_as = self._fresh or self._read()
        self.read_as, self._fresh, self._owed = read_as, None, False
        return read_as.request

    def waits(self) -> None:
        """Note that the job waits, so that its data must be read again."""
        self._fresh = None

    def answered(self, then: Callable[[ReadAs, Result], Written], result: Result) -> Written:
        """Call `then` with the read data and the result, and return its value.

        If `then` raises, the data are kept, because the result may be delivered again and belongs to them.
        """
        assert self.read_as is not None, "the data are kept until the result was delivered"
        self._owed = True
        written = then(self.read_as, result)
        self._owed = False
        self.forget()
        return written

    def forget(self) -> None:
        """Forget the data, because they hold voxels and the queue keeps the job."""
        if not self._owed:
            self._fresh = self.read_as = None

"""What a job in the queue is about, read twice: to find mistakes at once, and when its turn comes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Reading:
    """What `read` gives, an object with a `request` for the worker.

    Attributes:
        read_as: what it gave when the turn came; None after `forget`.

    Raises:
        MedSegAIError: `read` does.
    """

    def __init__(self, read: Callable[[], Any]) -> None:
        self._read = read
        self._fresh: Any = read()
        self._owed = False
        self.read_as: Any = self._fresh

    def make_request(self) -> Any:
        """The request of this moment; what was read a moment ago is not read again."""
        self.read_as, self._fresh, self._owed = self._fresh or self._read(), None, False
        return self.read_as.request

    def waits(self) -> None:
        """Where the turn has not come at once, what was read will be old by then."""
        self._fresh = None

    def answer(self, then: Callable[[Any, Any], None], result: Any) -> None:
        """Give `then` what was read and the answer to it.

        Where `then` raises, what was read is kept, because the answer may come again and belongs to it.
        """
        self._owed = True
        then(self.read_as, result)
        self._owed = False
        self.forget()

    def forget(self) -> None:
        """It holds voxels, and the queue keeps the job."""
        if not self._owed:
            self._fresh = self.read_as = None

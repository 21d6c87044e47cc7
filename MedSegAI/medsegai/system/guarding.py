"""The one place of the engine that catches anything, where a process or a batch must outlive one failure."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")
Failure = TypeVar("Failure")


def attempt(work: Callable[[], Result], failed: Callable[[Exception], Failure]) -> Result | Failure:
    """Do some work, and answer for it if it fails.

    What ends a process, such as `KeyboardInterrupt` and `SystemExit`, passes.

    Args:
        work: is called first.
        failed: is called with what `work` raises, while that is handled: `logging` finds its traceback, and what
            `failed` raises in turn names it.

    Returns:
        What `work` returns, or else what `failed` returns. The error and its frames are not kept.
    """
    try:
        return work()
    except Exception as error:  # noqa: BLE001, the purpose of this file
        return failed(error)


def ignore(error: Exception) -> None:
    """For `attempt`: the error does not matter, because it must not hide another one."""

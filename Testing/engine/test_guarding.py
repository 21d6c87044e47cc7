"""`medsegai.system.guarding`: what is caught, what passes, and what the handler sees."""

import gc
import weakref

import pytest

from medsegai.errors import WorkerError
from medsegai.system.guarding import attempt, ignore


@pytest.mark.parametrize("kind", [ValueError, MemoryError, WorkerError, StopIteration])
def test_any_error_is_answered_for(kind: type[Exception]) -> None:
    def work() -> str:
        raise kind("why")

    assert attempt(work, lambda error: (type(error), str(error))) == (kind, "why")
    assert attempt(work, ignore) is None
    assert attempt(lambda: "done", ignore) == "done"


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_what_ends_a_process_passes(kind: type[BaseException]) -> None:
    def work() -> None:
        raise kind

    with pytest.raises(kind):
        attempt(work, ignore)


def test_what_the_handler_raises_names_the_error() -> None:
    def failed(error: Exception) -> None:
        raise WorkerError("It is over.")

    with pytest.raises(WorkerError) as caught:
        attempt(lambda: 1 // 0, failed)
    assert isinstance(caught.value.__context__, ZeroDivisionError)


def test_the_frames_of_a_failure_are_not_kept() -> None:
    class Large:
        pass

    seen: list[weakref.ref[Large]] = []

    def work() -> None:
        large = Large()
        seen.append(weakref.ref(large))
        raise ValueError

    attempt(work, ignore)
    gc.collect()
    assert seen[0]() is None

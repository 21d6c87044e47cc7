"""The options of `medsegai batch` for several cases at once, and how their progress is reported."""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from medsegai.errors import RequestError
from medsegai.progress import Progress, ProgressEvent

if TYPE_CHECKING:
    from medsegai.output.batch import Work


def add_worker_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("several cases at once (needs medsegai[cluster])")
    chosen = group.add_mutually_exclusive_group()
    chosen.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="segment N cases at once, in processes on this computer that share its cores; each "
        "gets its own graphics card if there are enough",
    )
    chosen.add_argument(
        "--scheduler",
        metavar="ADDRESS|FILE",
        help="segment a case on each worker of this Dask scheduler, on other computers; give its address, or the "
        "file with its address. All computers must see the scans and OUT under the same paths",
    )


def has_workers(arguments: argparse.Namespace) -> bool:
    """Whether other processes segment the cases."""
    return arguments.workers is not None or arguments.scheduler is not None


@contextlib.contextmanager
def work_of(
    arguments: argparse.Namespace, progress: Progress, tell: Callable[[str], None]
) -> Iterator[Work]:
    """Return what segments the cases: this process, or workers.

    Args:
        arguments: the command line.
        progress: the progress of the batch; its listener receives the progress of single cases if this process
            segments them.
        tell: the function that receives messages for the user.

    Raises:
        Cancelled: the user asked to stop while they start.
        RequestError: the package for workers is missing, or their number is below 1.
        WorkerError: the scheduler is not found, or workers do not start.
    """
    if not has_workers(arguments):
        from medsegai.engine import segment
        from medsegai.output.batch import one_after_another

        yield one_after_another(segment, lambda case: Progress(progress.listener, progress.cancel))
        return
    if arguments.workers is not None and arguments.workers < 1:
        raise RequestError(f"--workers must be at least 1, not {arguments.workers}.")
    try:
        from medsegai.output.cluster.connection import local_workers, scheduler_at
        from medsegai.output.cluster.jobs import on_workers
    except ImportError as error:
        raise RequestError(
            f"--workers and --scheduler need packages that are not installed ({error.name}). "
            "Run pip install 'medsegai[cluster]'."
        ) from error
    if arguments.scheduler is not None:
        with scheduler_at(arguments.scheduler, progress.check) as client:
            yield on_workers(client, progress.cancel, tell, wait=True)
    else:
        device = getattr(arguments, "device", "auto")
        with local_workers(arguments.workers, device, progress.check) as client:
            yield on_workers(client, progress.cancel, tell)


class Rate:
    """The rate of a batch, from the cases that have ended.

    Args:
        cases: the number of cases.
        ended: the number of cases that had ended before.
        clock: the function that returns the time in seconds.
    """

    def __init__(self, cases: int, ended: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._cases, self._before, self._ended = cases, ended, ended
        self._clock, self._begun = clock, clock()

    def one_more(self) -> ProgressEvent:
        """Count another case as ended, and return the cases, rate and time left in words."""
        self._ended += 1
        spent = max(self._clock() - self._begun, 1e-3)
        seconds = spent / (self._ended - self._before)
        per_hour = 3600 / seconds
        rate = f"{per_hour / 60:.0f}/min" if per_hour >= 600 else f"{per_hour:.0f}/h"
        return ProgressEvent(
            f"{self._ended} of {self._cases} cases, {rate}",
            self._ended / self._cases,
            seconds * (self._cases - self._ended),
        )

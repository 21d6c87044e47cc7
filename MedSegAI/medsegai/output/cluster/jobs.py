"""Distribution of the jobs of a batch to workers.

The batch writes its table as usual; a worker reads the scan itself, writes the files of the case and returns one
line of the table, so only small data are sent. Each worker has one case at a time, which no other worker gets. So
if a worker ends, exactly one known case is affected.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Event
from typing import Any, NoReturn

from distributed import Client, Future

from medsegai import __version__
from medsegai.errors import Cancelled, MedSegAIError, WorkerError
from medsegai.output.batch import CaseJob, Work
from medsegai.output.cluster.connection import ANSWER_SECONDS
from medsegai.output.cluster.worker import (
    NO_SCAN,
    CaseWorker,
    Expected,
    Unseen,
    can_read,
    do_case,
    in_worker,
    look,
    model_hash,
)
from medsegai.system.guarding import attempt, ignore
from medsegai.worker.batch_events import CaseState, Entry

MOST_DEATHS = 2
"""The number of workers that may end while they have a case, before the case is given up."""

LOOK_SECONDS = 1.0
"""The seconds between two searches for new and lost workers."""

PATIENCE_SECONDS = 300.0
"""The seconds that workers of this computer may take to start; for other workers a batch waits with a message."""

MOST_STARTS = 6
"""The number of workers that may end in a row before one was found ready."""

DO_WITHOUT = "Run `medsegai doctor` to find the reason, or segment without workers."


def on_workers(
    client: Client, cancel: Event, tell: Callable[[str], None], wait: bool = False
) -> Work:
    """Do jobs on the workers of a scheduler.

    Args:
        client: the client of the scheduler.
        cancel: the event that stops the batch.
        tell: the function that receives messages for the user.
        wait: whether to wait for workers without a limit.
    """

    def work(jobs: Sequence[CaseJob]) -> Generator[Entry, None, None]:
        if not jobs:
            return
        name = f"medsegai-{secrets.token_hex(8)}"
        with _token(jobs[0].absolute().files.folder) as token:
            request = replace(jobs[0].request, inputs=(Path(),))  # without patient data
            models = {model: model_hash(model) for model in request.models}
            plugin = CaseWorker(name, Expected(__version__, models, request, token))
            with _registered(client, plugin):
                hand_out = _HandOut(client, name, tell, wait)
                yield from hand_out.run([job.absolute() for job in jobs], cancel)

    return work


@contextlib.contextmanager
def _token(folder: Path) -> Iterator[tuple[Path, str]]:
    """Make a file in the folder of the results, by which workers check that they see that folder."""
    path, content = folder / f".{secrets.token_hex(8)}.txt", secrets.token_hex(16)
    path.write_text(content, encoding="ascii")
    try:
        yield path, content
    finally:
        with contextlib.suppress(OSError):
            path.unlink()


@contextlib.contextmanager
def _registered(client: Client, plugin: CaseWorker) -> Iterator[None]:
    """Give each worker the plugin within the block, and remove it afterwards, which stops running cases."""
    try:
        client.register_plugin(plugin, name=plugin.name)
    except (ImportError, AttributeError) as error:
        raise WorkerError(
            f"A worker lacks MedSegAI {__version__} with the extra cluster: {error}. Install it there."
        ) from error
    except (OSError, TimeoutError) as error:
        raise _gone(client) from error
    try:
        yield
    finally:
        unregister = client._unregister_worker_plugin
        attempt(lambda: client.sync(unregister, name=plugin.name, callback_timeout=5), ignore)


def _gone(client: Client) -> WorkerError:
    address = client.scheduler.address if client.scheduler else "?"
    return WorkerError(
        f"The Dask scheduler at {address} no longer responds, but finished cases are kept. "
        "Continue with --resume; if you started the scheduler yourself, start it again first."
    )


@dataclass(frozen=True)
class _Task:
    """The task of a worker: a job, or without a job a check of the worker itself."""

    worker: str
    future: Future[Any]
    job: CaseJob | None


class _HandOut:
    """Gives one case to each ready worker, until all are done."""

    def __init__(self, client: Client, name: str, tell: Callable[[str], None], wait: bool) -> None:
        self._client, self._name, self._tell, self._wait = client, name, tell, wait
        self._ready: deque[str] = deque()
        self._refused: dict[str, str] = {}
        self._tasks: dict[str, _Task] = {}
        self._completed: SimpleQueue[str] = SimpleQueue()
        self._deaths: Counter[str] = Counter()
        self._looked = -LOOK_SECONDS
        self._had_workers = time.monotonic()
        self._told = False
        self._started_in_vain = 0

    def run(self, jobs: Sequence[CaseJob], cancel: Event) -> Generator[Entry, None, None]:
        """Yield lines of the table as they change.

        Raises:
            Cancelled: the user stopped the batch.
            WorkerError: the scheduler, or all workers, are gone.
            MedSegAIError: what would go wrong with every case.
        """
        waiting = deque(jobs)
        while waiting or any(task.job for task in self._tasks.values()):
            _check_wanted(cancel)
            for job in self._look_around():
                yield from self._given_back(job, waiting)
            while waiting and self._ready:
                job = waiting.popleft()
                yield Entry(job.case.name, CaseState.RUNNING)
                self._submit(self._ready.popleft(), do_case, job)
            with contextlib.suppress(Empty):
                yield from self._take(self._completed.get(timeout=LOOK_SECONDS / 4), waiting)

    def _submit(
        self, worker: str, function: Callable[..., Any], job: CaseJob | None = None
    ) -> None:
        """Submit a task under a random name, because Dask writes names into its log and shows them on its page."""
        key = f"medsegai-{secrets.token_hex(8)}"
        arguments = () if job is None else (job,)
        future = self._client.submit(
            in_worker,
            self._name,
            function,
            *arguments,
            key=key,
            workers=[worker],
            allow_other_workers=False,
            pure=False,
        )
        self._tasks[key] = _Task(worker, future, job)
        future.add_done_callback(partial(self._note, key))

    def _note(self, key: str, _future: Future[Any]) -> None:
        self._completed.put(key)

    def _take(self, key: str, waiting: deque[CaseJob]) -> Iterator[Entry]:
        """Take the result of a task, which is released at once."""
        if (task := self._tasks.get(key)) is None:
            return  # its worker was already gone
        answer = self._answer(task)
        del self._tasks[key]
        if answer is None:
            yield from self._given_back(task.job, waiting)
        elif isinstance(answer, Entry):
            self._ready.append(task.worker)
            yield answer
        elif isinstance(answer, Unseen) and task.job is not None:
            yield from self._not_seen(task.worker, task.job, answer, waiting)
        elif isinstance(answer, MedSegAIError):
            raise answer
        elif answer:
            self._refuse(task.worker, answer)
        else:
            self._started_in_vain = 0
            self._ready.append(task.worker)

    def _not_seen(
        self, worker: str, job: CaseJob, unseen: Unseen, waiting: deque[CaseJob]
    ) -> Iterator[Entry]:
        """Handle a case that its worker cannot read: another worker gets it, if it can be read here."""
        if can_read(unseen.path):
            self._refuse(worker, NO_SCAN.format(path=unseen.path))
            waiting.appendleft(job)
            yield Entry(job.case.name, CaseState.WAITING)
        else:
            self._ready.append(worker)
            yield unseen.entry

    def _answer(self, task: _Task) -> Any:
        """Return the result of a task; None if its worker ended, because our own errors are results."""
        answer = None
        with contextlib.suppress(asyncio.CancelledError):
            answer = attempt(lambda: task.future.result(timeout=ANSWER_SECONDS), ignore)
        if answer is None and self._client.status != "running":
            raise _gone(self._client)
        return answer

    def _given_back(self, job: CaseJob | None, waiting: deque[CaseJob]) -> Iterator[Entry]:
        """Handle a case whose worker ended: it may be done, is tried once more, or is given up."""
        if job is None:
            self._count_vain_start()
            return
        name = job.case.name
        self._deaths[name] += 1
        ended = job.ended()
        if ended is not None:
            yield ended
        elif self._deaths[name] >= MOST_DEATHS:
            yield Entry(
                name,
                CaseState.FAILED,
                message="Two workers ended while they segmented this case. They may have too little "
                "memory, or the file may crash programs that read it.",
            )
        else:
            waiting.append(job)
            yield Entry(name, CaseState.WAITING)

    def _count_vain_start(self) -> None:
        self._started_in_vain += 1
        if self._started_in_vain >= MOST_STARTS:
            raise WorkerError(
                f"{self._started_in_vain} workers ended while they started. {DO_WITHOUT}"
            )

    def _refuse(self, worker: str, reason: str) -> None:
        self._refused[worker] = reason
        self._tell(f"The worker {worker} is not used: {reason}.")

    def _look_around(self) -> list[CaseJob | None]:
        """Add new workers, and return the cases of workers that are gone.

        Raises:
            WorkerError: the scheduler does not respond, workers cannot be used, or were missing for too long.
        """
        now = time.monotonic()
        if now - self._looked < LOOK_SECONDS:
            return []
        self._looked = now
        there = self._workers()
        known = {*self._ready, *self._refused, *(task.worker for task in self._tasks.values())}
        jobs = self._dropped(there)
        for worker in sorted(there - known):
            self._submit(worker, look)
        if there - self._refused.keys():
            self._had_workers, self._told = now, False
        else:
            self._without_workers(now - self._had_workers, there)
        return jobs

    def _dropped(self, there: set[str]) -> list[CaseJob | None]:
        """Forget workers that are gone, and return their cases."""
        self._ready = deque(worker for worker in self._ready if worker in there)
        lost = [key for key, task in self._tasks.items() if task.worker not in there]
        return [self._tasks.pop(key).job for key in lost]

    def _without_workers(self, seconds: float, there: set[str]) -> None:
        if there:
            worker = min(there)
            raise WorkerError(
                f"The cases cannot be segmented, because every worker was refused. {worker}: "
                f"{self._refused[worker]}."
            )
        if seconds > PATIENCE_SECONDS and not self._wait:
            raise WorkerError(f"Workers have been missing for {seconds:.0f} s. {DO_WITHOUT}")
        if self._wait and not self._told:
            self._told = True
            self._tell(
                "Cases are waiting, because no worker is connected at the moment. Press Ctrl-C to stop."
            )

    def _workers(self) -> set[str]:
        def lost(error: Exception) -> NoReturn:
            raise _gone(self._client) from error

        return attempt(lambda: set(self._client.nthreads(callback_timeout=ANSWER_SECONDS)), lost)


def _check_wanted(cancel: Event) -> None:
    if cancel.is_set():
        raise Cancelled("Stopped by the user. Finished cases are kept, and --resume continues.")

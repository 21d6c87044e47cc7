"""The jobs of a batch, handed out to workers.

The batch writes its table, as ever; a worker reads the scan itself, writes the files of the case and returns one
line of the table, so nothing large travels. Each worker has one case at a time, which is given to that worker and
to no other. So a worker that ends takes one case with it, and it is known which.
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
    CaseWorker,
    Expected,
    do_case,
    in_worker,
    look,
    model_hash,
)
from medsegai.system.guarding import attempt, ignore
from medsegai.worker.batch_events import CaseState, Entry

MOST_DEATHS = 2
"""So many workers may end while they have a case; then the case is given up."""

LOOK_SECONDS = 1.0
"""How often workers that came and went are looked for."""

PATIENCE_SECONDS = 300.0
"""How long workers of this computer may take to start; with those of others a batch waits, and says so."""

MOST_STARTS = 6
"""So many workers may end, one after another, before one was found ready."""

DO_WITHOUT = "`medsegai doctor` may say why; without workers the cases are done in this process."


def on_workers(
    client: Client, cancel: Event, tell: Callable[[str], None], wait: bool = False
) -> Work:
    """Work on the workers of a scheduler.

    Args:
        client: of the scheduler.
        cancel: stops the batch when it is set.
        tell: is called with what the user should know meanwhile, in words.
        wait: whether to wait for workers for as long as it takes.
    """

    def work(jobs: Sequence[CaseJob]) -> Generator[Entry, None, None]:
        if not jobs:
            return
        name = f"medsegai-{secrets.token_hex(8)}"
        with _token(jobs[0].absolute().files.folder) as token:
            request = replace(jobs[0].request, inputs=(Path(),))  # it names no patient
            models = {model: model_hash(model) for model in request.models}
            plugin = CaseWorker(name, Expected(__version__, models, request, token))
            with _registered(client, plugin):
                hand_out = _HandOut(client, name, tell, wait)
                yield from hand_out.run([job.absolute() for job in jobs], cancel)

    return work


@contextlib.contextmanager
def _token(folder: Path) -> Iterator[tuple[Path, str]]:
    """A file in the folder of the results, by which workers know that they see that folder."""
    path, content = folder / f".{secrets.token_hex(8)}.txt", secrets.token_hex(16)
    path.write_text(content, encoding="ascii")
    try:
        yield path, content
    finally:
        with contextlib.suppress(OSError):
            path.unlink()


@contextlib.contextmanager
def _registered(client: Client, plugin: CaseWorker) -> Iterator[None]:
    """Within, each worker has the plugin; afterwards none has, so that what they still do stops."""
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
        f"The Dask scheduler at {address} does not answer any more. What is done is kept: start it again, "
        "and continue with --resume."
    )


@dataclass(frozen=True)
class _Task:
    """What a worker was given; a look at the worker itself where there is no job."""

    worker: str
    future: Future[Any]
    job: CaseJob | None


class _HandOut:
    """One case for each worker that is ready, until all are done."""

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
        """Lines of the table as they change.

        Raises:
            Cancelled: the user stopped.
            WorkerError: the scheduler, or all workers, are gone.
            MedSegAIError: what would go wrong with every case.
        """
        waiting = deque(jobs)
        while waiting or any(task.job for task in self._tasks.values()):
            if cancel.is_set():
                raise Cancelled(
                    "Stopped by the user. Finished cases are kept: continue with --resume."
                )
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
        """Names of tasks are random: Dask writes them into its log and shows them on its page."""
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
        """The answer of a task, which is released at once."""
        task = self._tasks.get(key)
        if task is None:
            return  # its worker had gone before
        answer = None  # unless the worker ended: our own errors come as answers
        with contextlib.suppress(asyncio.CancelledError):
            answer = attempt(lambda: task.future.result(timeout=ANSWER_SECONDS), ignore)
        if answer is None and self._client.status != "running":
            raise _gone(self._client)
        del self._tasks[key]
        if answer is None:
            yield from self._given_back(task.job, waiting)
        elif isinstance(answer, Entry):
            self._ready.append(task.worker)
            yield answer
        elif isinstance(answer, MedSegAIError):
            raise answer
        elif answer:
            self._refuse(task.worker, answer)
        else:
            self._started_in_vain = 0
            self._ready.append(task.worker)

    def _given_back(self, job: CaseJob | None, waiting: deque[CaseJob]) -> Iterator[Entry]:
        """A case whose worker ended: it may be done all the same, is tried once more, or is given up."""
        if job is None:
            self._started_in_vain += 1
            if self._started_in_vain >= MOST_STARTS:
                raise WorkerError(
                    f"{self._started_in_vain} workers ended while they were started. {DO_WITHOUT}"
                )
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
                message="Two workers ended while they segmented this case. Their memory may not "
                "be enough, or the file may crash programs that read it.",
            )
        else:
            waiting.append(job)
            yield Entry(name, CaseState.WAITING)

    def _refuse(self, worker: str, reason: str) -> None:
        self._refused[worker] = reason
        self._tell(f"The worker {worker} is not used: {reason}.")

    def _look_around(self) -> list[CaseJob | None]:
        """Take in workers that came, and say which cases those had that went.

        Raises:
            WorkerError: the scheduler does not answer, no worker can be used, or there was none for too long.
        """
        now = time.monotonic()
        if now - self._looked < LOOK_SECONDS:
            return []
        self._looked = now
        there = self._workers()
        known = {*self._ready, *self._refused, *(task.worker for task in self._tasks.values())}
        self._ready = deque(worker for worker in self._ready if worker in there)
        lost = [key for key, task in self._tasks.items() if task.worker not in there]
        jobs = [self._tasks.pop(key).job for key in lost]
        for worker in sorted(there - known):
            self._submit(worker, look)
        if there - self._refused.keys():
            self._had_workers, self._told = now, False
        else:
            self._without_workers(now - self._had_workers, there)
        return jobs

    def _without_workers(self, seconds: float, there: set[str]) -> None:
        if there:
            worker = min(there)
            raise WorkerError(f"No worker can be used. {worker}: {self._refused[worker]}.")
        if seconds > PATIENCE_SECONDS and not self._wait:
            raise WorkerError(f"There has been no worker for {seconds:.0f} s. {DO_WITHOUT}")
        if self._wait and not self._told:
            self._told = True
            self._tell("There is no worker at the moment. Cases are waiting; Ctrl-C stops.")

    def _workers(self) -> set[str]:
        def lost(error: Exception) -> NoReturn:
            raise _gone(self._client) from error

        return attempt(lambda: set(self._client.nthreads(callback_timeout=ANSWER_SECONDS)), lost)

"""Connections to workers: those that are started here, and those of an existing scheduler."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import logging
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from multiprocessing import resource_tracker
from pathlib import Path
from threading import Thread
from typing import Generic, TypeVar
from urllib.parse import urlsplit

import dask.config
from distributed import Client, Nanny, Scheduler, SpecCluster
from distributed.security import Security

from medsegai.errors import InputError, MedSegAIError, RequestError, WorkerError
from medsegai.progress import Check, unstoppable
from medsegai.system.guarding import attempt, ignore
from medsegai.system.machine import usable_cores
from medsegai.system.private_folders import PrivateFolder

ANSWER_SECONDS = 20.0
"""The seconds that a scheduler may take to respond."""

CLOSE_SECONDS = 5.0
"""The seconds that closing may take."""

START_SECONDS = 600.0
"""The seconds that workers may take to start; a busy computer starts processes late."""

CHECK_SECONDS = 0.2
"""The seconds between two looks whether the user asked to stop."""

LOOPBACK = "127.0.0.1"

Opened = TypeVar("Opened", Client, SpecCluster)

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@contextlib.contextmanager
def local_workers(count: int, device: str = "auto", check: Check = unstoppable) -> Iterator[Client]:
    """Start worker processes on this computer, which only this process can reach.

    They share its cores, and each gets its own graphics card if there are enough.

    Args:
        count: the number of workers.
        device: the device as in a request; graphics cards are distributed if none is named.
        check: called while they start.

    Raises:
        Cancelled: the user asked to stop.
        WorkerError: the workers do not start.
    """
    cards = visible_gpus() if device in ("auto", "cuda") else []
    with (
        _quiet(),
        PrivateFolder("workers") as folder,
        dask.config.set(_dask_settings(count, folder)),
        contextlib.ExitStack() as stack,
    ):
        # By cryptography, because other users of this computer can reach the port.
        security = Security.temporary()
        cluster = _local_cluster(count, cards, security, check)
        stack.callback(_close, cluster)
        client = Client(cluster, security=security)
        stack.callback(_close, client)
        yield client


def _dask_settings(count: int, folder: Path) -> dict[str, object]:
    """Return Dask's settings for workers that share the cores of this computer, with their temporary files."""
    threads = str(max(1, usable_cores() // count))
    return {
        **{f"distributed.nanny.pre-spawn-environ.{name}": threads for name in THREAD_VARIABLES},
        "temporary-directory": str(folder),
        # A busy computer starts processes late; after 15 s Dask would refuse them.
        "distributed.deploy.lost-worker-timeout": "1 hour",
    }


ON_LOOPBACK = {
    "protocol": "tls://",
    "host": LOOPBACK,
    "dashboard": False,
    "dashboard_address": f"{LOOPBACK}:0",
}
"""What keeps other computers out."""


def _local_cluster(
    count: int, cards: Sequence[str], security: Security, check: Check
) -> SpecCluster:
    """Start a scheduler and workers that only this computer reaches. Raises WorkerError: they do not start."""
    common = {"security": security, **ON_LOOPBACK}
    of_worker = common | {
        "nthreads": 1,
        "memory_limit": 0,
        "silence_logs": logging.CRITICAL,
    }
    workers = {}
    for number in range(count):
        env = {"CUDA_VISIBLE_DEVICES": cards[number % len(cards)]} if cards else {}
        workers[number] = {"cls": Nanny, "options": of_worker | {"env": env}}
    scheduler = {"cls": Scheduler, "options": {**common, "port": 0}}
    make = partial(
        SpecCluster, workers, scheduler, security=security, silence_logs=logging.CRITICAL
    )
    return _Opening(make, partial(_not_started, count)).wait(START_SECONDS, check)


def _not_started(count: int, error: Exception) -> WorkerError:
    return WorkerError(f"The {count} workers did not start: {error}.")


def _no_answer(address: str, error: Exception) -> WorkerError:
    if isinstance(error, MemoryError):  # it takes any text for the size of a message
        return WorkerError(
            f"What responds at {address} is not a Dask scheduler. Check the address."
        )
    tls = " Name its certificates in Dask's configuration (docs/cluster.md)."
    return WorkerError(
        f"The Dask scheduler at {address} does not respond: {error}."
        + (tls if address.startswith("tls:") else " Start it (`dask scheduler`), and its workers.")
    )


@contextlib.contextmanager
def scheduler_at(place: str, check: Check = unstoppable) -> Iterator[Client]:
    """Connect to an existing scheduler with its workers.

    Args:
        place: its address, or the file with its address (`--scheduler-file`).
        check: called while it does not respond.

    Raises:
        Cancelled: the user asked to stop.
        InputError: the file cannot be read.
        RequestError: the scheduler is on another computer, and not encrypted.
        WorkerError: the scheduler does not respond.
    """
    address = check_address(_address(place))
    with _quiet():
        make = partial(Client, address, timeout=ANSWER_SECONDS)
        opening = _Opening(make, partial(_no_answer, address))
        client = opening.wait(ANSWER_SECONDS + CLOSE_SECONDS, check)
        try:
            yield client
        finally:
            _close(client)


class _Opening(Generic[Opened], Thread):
    """Opens a client or a cluster in a thread, because Dask waits without a limit for servers of another kind.

    Ctrl-C does not reach that thread, nor the threads and processes that it starts: workers would end with a
    traceback each, before they are stopped in order.

    Args:
        make: opens it.
        failed: returns our own error for one of Dask's, or for a TimeoutError.
    """

    def __init__(
        self, make: Callable[[], Opened], failed: Callable[[Exception], WorkerError]
    ) -> None:
        super().__init__(daemon=True)
        self._make: Callable[[], Opened] = make
        self._failed, self._abandoned = failed, False

    def run(self) -> None:
        if hasattr(signal, "pthread_sigmask"):
            resource_tracker.ensure_running()  # when it starts, it lets Ctrl-C through again
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        self._made: Opened | WorkerError = attempt(self._make, self._failed)
        if self._abandoned:
            self._close()

    def wait(self, seconds: float, check: Check) -> Opened:
        """Return what was opened.

        Raises:
            Cancelled: the user asked to stop.
            WorkerError: it failed, or took longer than so many seconds.
        """
        self.start()
        try:
            self._finish(seconds, check)
        except MedSegAIError:
            self._abandon()
            raise
        if isinstance(self._made, WorkerError):
            raise self._made
        return self._made

    def _finish(self, seconds: float, check: Check) -> None:
        end = time.monotonic() + seconds
        while self.is_alive():
            check()
            if time.monotonic() > end:
                raise self._failed(TimeoutError(f"{seconds:.0f} s were not enough"))
            self.join(CHECK_SECONDS)

    def _abandon(self) -> None:
        self._abandoned = True
        self.join(CLOSE_SECONDS)
        if not self.is_alive():
            self._close()

    def _close(self) -> None:
        if not isinstance(self._made, WorkerError):
            _close(self._made)


def _close(opened: Client | SpecCluster) -> None:
    """Close a client or cluster; errors of Dask meanwhile must not hide why it ends."""
    attempt(lambda: opened.close(timeout=CLOSE_SECONDS), ignore)


def check_address(address: str) -> str:
    """Return the address with its protocol.

    Raises:
        RequestError: the text is not an address, or is that of another computer without encryption.
    """
    address = address if "://" in address else f"tcp://{address}"
    parts = urlsplit(address)
    if parts.scheme not in ("tcp", "tls") or not parts.hostname:
        raise RequestError(
            f"{address} is not the address of a Dask scheduler. Write tls://HOST:PORT, or name its file."
        )
    if parts.scheme != "tls" and not _is_loopback(parts.hostname):
        raise RequestError(
            f"The scheduler {address} is on another computer and is not encrypted, although its workers run any "
            "program that they receive. Start it with --protocol tls and certificates (docs/cluster.md)."
        )
    return address


def _address(place: str) -> str:
    path = Path(place)
    if "://" in place or (not path.exists() and not place.endswith(".json")):
        return place
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["address"])
    except OSError as error:
        raise InputError(
            f"{path} cannot be read: {error.strerror}. Start `dask scheduler --scheduler-file "
            f"{path}`, which writes it."
        ) from error
    except (ValueError, LookupError, TypeError, RecursionError):
        raise InputError(
            f"{path} is not a file of a Dask scheduler. Name a file that `dask scheduler "
            "--scheduler-file FILE` wrote."
        ) from None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def visible_gpus() -> list[str]:
    """Return the graphics cards that this process may use, as in CUDA_VISIBLE_DEVICES."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip() not in ("", "-1")]
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    try:
        done = subprocess.run([program, "--list-gpus"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return []
    lines = done.stdout.splitlines() if done.returncode == 0 else []
    return [str(number) for number, _ in enumerate(line for line in lines if line.strip())]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence Dask's log within the block, because this file reports events in few words.

    Dask's configuration may give some of its loggers a level of their own.
    """
    silenced = ("distributed", "tornado", "asyncio")
    known = [name for name in logging.root.manager.loggerDict if name.startswith(silenced)]
    loggers = [logging.getLogger(name) for name in {*silenced, *known}]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)

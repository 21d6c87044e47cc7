"""Connections to workers: those that are started here, and those of an existing scheduler."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import logging
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import dask.config
from distributed import Client, Nanny, Scheduler, SpecCluster
from distributed.security import Security

from medsegai.errors import InputError, RequestError, WorkerError
from medsegai.system.guarding import attempt, ignore
from medsegai.system.machine import usable_cores
from medsegai.system.private_folders import PrivateFolder

ANSWER_SECONDS = 20.0
"""The seconds that a scheduler may take to respond."""

CLOSE_SECONDS = 5.0
"""The seconds that closing may take."""

LOOPBACK = "127.0.0.1"

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@contextlib.contextmanager
def local_workers(count: int, device: str = "auto") -> Iterator[Client]:
    """Start worker processes on this computer, which only this process can reach.

    They share its cores, and each gets its own graphics card if there are enough.

    Args:
        count: the number of workers.
        device: the device as in a request; graphics cards are distributed if none is named.

    Raises:
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
        cluster = _local_cluster(count, cards, security)
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


def _local_cluster(count: int, cards: Sequence[str], security: Security) -> SpecCluster:
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
    try:
        return SpecCluster(workers, scheduler, security=security, silence_logs=logging.CRITICAL)
    except (OSError, RuntimeError, TimeoutError) as error:
        raise WorkerError(f"The {count} workers did not start: {error}.") from error


def _no_answer(address: str, error: Exception) -> WorkerError:
    tls = " Name its certificates in Dask's configuration (docs/cluster.md)."
    return WorkerError(
        f"The Dask scheduler at {address} does not respond: {error}."
        + (tls if address.startswith("tls:") else " Start it (`dask scheduler`), and its workers.")
    )


@contextlib.contextmanager
def scheduler_at(place: str) -> Iterator[Client]:
    """Connect to an existing scheduler with its workers.

    Args:
        place: its address, or the file with its address (`--scheduler-file`).

    Raises:
        InputError: the file cannot be read.
        RequestError: the scheduler is on another computer, and not encrypted.
        WorkerError: the scheduler does not respond.
    """
    address = check_address(_address(place))
    with _quiet():
        try:
            client = Client(address, timeout=ANSWER_SECONDS)
        except (OSError, TimeoutError, ValueError, RuntimeError, TypeError) as error:
            raise _no_answer(address, error) from error
        try:
            yield client
        finally:
            _close(client)


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
    """Silence Dask's log within the block, because this file reports events in few words."""
    loggers = [logging.getLogger(name) for name in ("distributed", "tornado", "asyncio")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)

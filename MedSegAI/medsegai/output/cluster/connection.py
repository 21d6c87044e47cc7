"""Workers: those that are started here, and those of a scheduler that somebody else started."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import logging
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import dask.config
from distributed import Client, Nanny, Scheduler, SpecCluster
from distributed.security import Security

from medsegai.errors import InputError, RequestError, WorkerError
from medsegai.system.guarding import attempt, ignore
from medsegai.system.machine import usable_cores
from medsegai.worker.array_transfer import temporary_folder

ANSWER_SECONDS = 20.0
"""How long a scheduler may take to answer."""

CLOSE_SECONDS = 5.0
"""How long leaving may take."""

LOOPBACK = "127.0.0.1"

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@contextlib.contextmanager
def local_workers(count: int, device: str = "auto") -> Iterator[Client]:
    """Worker processes on this computer, which nobody else can reach or give work to.

    They share its cores, and each has a graphics card of its own where there are enough.

    Args:
        count: how many.
        device: as in a request; cards are dealt out where none is named.

    Raises:
        WorkerError: they do not start.
    """
    cards = visible_gpus() if device in ("auto", "cuda") else []
    with (
        _quiet(),
        tempfile.TemporaryDirectory(
            prefix="medsegai-workers-", dir=temporary_folder(), ignore_cleanup_errors=True
        ) as folder,
        dask.config.set(_dask_settings(count)),
        contextlib.ExitStack() as stack,
    ):
        security = (
            Security.temporary()
        )  # by cryptography: other users of this computer reach the port too
        cluster = _local_cluster(count, cards, folder, security)
        stack.callback(_close, cluster)
        client = Client(cluster, security=security)
        stack.callback(_close, client)
        yield client


def _dask_settings(count: int) -> dict[str, object]:
    """Dask's settings while so many workers share the cores of this computer."""
    threads = str(max(1, usable_cores() // count))
    return {
        **{f"distributed.nanny.pre-spawn-environ.{name}": threads for name in THREAD_VARIABLES},
        # A computer that is busy starts the next process late; after 15 s Dask would not have it any more.
        "distributed.deploy.lost-worker-timeout": "1 hour",
    }


def _local_cluster(
    count: int, cards: Sequence[str], folder: str, security: Security
) -> SpecCluster:
    """A scheduler and workers that only this computer reaches. Raises WorkerError where they do not start."""
    common = {
        "security": security,
        "protocol": "tls://",
        "host": LOOPBACK,
        "dashboard": False,
        "dashboard_address": f"{LOOPBACK}:0",
    }
    workers = {
        number: {
            "cls": Nanny,
            "options": {
                **common,
                "nthreads": 1,
                "memory_limit": 0,
                "local_directory": folder,
                "silence_logs": logging.CRITICAL,
                "env": {"CUDA_VISIBLE_DEVICES": cards[number % len(cards)]} if cards else {},
            },
        }
        for number in range(count)
    }
    scheduler = {"cls": Scheduler, "options": {**common, "port": 0}}
    try:
        return SpecCluster(workers, scheduler, security=security, silence_logs=logging.CRITICAL)
    except (OSError, RuntimeError, TimeoutError) as error:
        raise WorkerError(f"The {count} workers did not start: {error}.") from error


@contextlib.contextmanager
def scheduler_at(place: str) -> Iterator[Client]:
    """A scheduler that somebody started, with its workers.

    Args:
        place: its address, or the file that it wrote its address to (`--scheduler-file`).

    Raises:
        InputError: the file cannot be read.
        RequestError: it is on another computer, and not encrypted.
        WorkerError: it does not answer.
    """
    address = check_address(_address(place))
    with _quiet():
        try:
            client = Client(address, timeout=ANSWER_SECONDS)
        except (OSError, TimeoutError, ValueError, RuntimeError, TypeError) as error:
            tls = " Name its certificates in Dask's configuration (docs/cluster.md)."
            raise WorkerError(
                f"The Dask scheduler at {address} does not answer: {error}."
                + (
                    tls
                    if address.startswith("tls:")
                    else " Start it (`dask scheduler`), and its workers."
                )
            ) from error
        try:
            yield client
        finally:
            _close(client)


def _close(opened: Client | SpecCluster) -> None:
    """What Dask complains about on its way out must not hide why it ends. Workers end with this process anyway."""
    attempt(lambda: opened.close(timeout=CLOSE_SECONDS), ignore)


def check_address(address: str) -> str:
    """The same address, with the protocol that is meant.

    Raises:
        RequestError: it is on another computer, and not encrypted, or it is not an address.
    """
    address = address if "://" in address else f"tcp://{address}"
    parts = urlsplit(address)
    if parts.scheme not in ("tcp", "tls") or not parts.hostname:
        raise RequestError(
            f"{address} is not the address of a Dask scheduler. Write tls://HOST:PORT, or name its file."
        )
    if parts.scheme != "tls" and not _is_loopback(parts.hostname):
        raise RequestError(
            f"The scheduler {address} is on another computer and is not encrypted, and its workers run whatever "
            "reaches them. Start it with --protocol tls and certificates (docs/cluster.md)."
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
            f"{path} cannot be read: {error.strerror}. `dask scheduler --scheduler-file {path}` writes it."
        ) from error
    except (ValueError, LookupError, TypeError, RecursionError):
        raise InputError(
            f"{path} is not a file of a Dask scheduler. `dask scheduler --scheduler-file FILE` writes one."
        ) from None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def visible_gpus() -> list[str]:
    """The graphics cards that this process may use, as CUDA_VISIBLE_DEVICES names them."""
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
    """Within, Dask logs nothing: what happens is said by this file, and in few words."""
    loggers = [logging.getLogger(name) for name in ("distributed", "tornado", "asyncio")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)

"""Locks that end with the process that holds them, so that two processes do not do one thing at once."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from medsegai.errors import OutputError


def try_lock(file: IO[Any] | int) -> bool:
    """Lock a file or descriptor until it is closed or the process ends; False if another process has it.

    Raises:
        OSError: there are no locks here, as on some disks in a network.
    """
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(file if isinstance(file, int) else file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True


@contextlib.contextmanager
def reserved(paths: Iterable[Path]) -> Iterator[None]:
    """Within the block no other process that asks for it may write any of these files.

    A hidden file beside each carries the lock, and goes away after the block. Where a folder cannot be written or
    has no locks there is nothing to reserve.

    Raises:
        OutputError: another process is writing one of them.
    """
    with contextlib.ExitStack() as stack:
        for path in sorted({path.resolve() for path in paths}):
            lock = path.with_name(f".{path.name}.lock")
            with contextlib.suppress(OSError):
                file = _locked(path, lock)
                stack.callback(_release, lock, file)
        yield


def _locked(path: Path, lock: Path) -> IO[str]:
    while True:  # again where the one that had it before removed it meanwhile
        file = lock.open("a+", encoding="ascii", errors="replace")
        with contextlib.ExitStack() as closing:
            closing.callback(file.close)
            try:
                if not try_lock(file):
                    file.seek(0)
                    raise OutputError(
                        f"{path} is being written by another run of MedSegAI (process {file.read(20).strip()}). "
                        "Wait until that ends, or name another place."
                    )
                if os.path.exists(lock) and os.path.samestat(
                    os.stat(lock), os.fstat(file.fileno())
                ):
                    with contextlib.suppress(OSError):  # a full disk has no room for the number
                        file.truncate(0)
                        os.write(file.fileno(), str(os.getpid()).encode())
                    closing.pop_all()  # the caller closes it
                    return file
            except OSError:  # there are no locks, so nobody has it
                file.close()
                lock.unlink(missing_ok=True)
                raise


def _release(lock: Path, file: IO[str]) -> None:
    with contextlib.suppress(OSError):  # Windows keeps a file that is open
        lock.unlink()
    file.close()
    if sys.platform == "win32":
        with contextlib.suppress(OSError):
            lock.unlink()

"""Locks that end with the process that holds them, so that two processes do not write the same files."""

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
        OSError: the file system does not have locks, as on some network drives.
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
    """Reserve files within the block: other processes that reserve one of them are refused.

    A hidden file beside each carries the lock, and is removed after the block. Nothing is reserved if a folder is
    not writable or does not have locks.

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


def _busy(path: Path, file: IO[str]) -> OutputError:
    file.seek(0)
    return OutputError(
        f"{path} is being written by another run of MedSegAI (process "
        f"{file.read(20).strip()}). Wait until it ends, or name another path."
    )


def _locked(path: Path, lock: Path) -> IO[str]:
    while True:  # again if its last owner removed it meanwhile
        file = lock.open("a+", encoding="ascii", errors="replace")
        with contextlib.ExitStack() as closing:
            closing.callback(file.close)
            try:
                if not try_lock(file):
                    raise _busy(path, file)
                if os.path.exists(lock) and os.path.samestat(
                    os.stat(lock), os.fstat(file.fileno())
                ):
                    with contextlib.suppress(OSError):  # the number does not fit on a full disk
                        file.truncate(0)
                        os.write(file.fileno(), str(os.getpid()).encode())
                    closing.pop_all()  # the caller closes it
                    return file
            except OSError:  # there are no locks, so no process has it
                file.close()
                lock.unlink(missing_ok=True)
                raise


def _release(lock: Path, file: IO[str]) -> None:
    with contextlib.suppress(OSError):  # Windows does not remove an open file
        lock.unlink()
    file.close()
    if sys.platform == "win32":
        with contextlib.suppress(OSError):
            lock.unlink()

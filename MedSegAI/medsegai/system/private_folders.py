"""Private folders for temporary files. Those that a killed process left are removed with the next one."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path

from medsegai.errors import OutputError
from medsegai.system.locks import try_lock

ABANDONED_SECONDS = 24 * 3600.0
"""The age in seconds from which the folder of a process in another container may be removed."""

_NAME = re.compile(r"medsegai-[a-z]+-(?P<pid>\d+)\.(?P<numbering>[0-9a-f]{8})-.*")


class PrivateFolder:
    """A new private folder; `remove` it at the end, or use it in a `with` statement, which yields its path.

    Its name contains the process id and the place where that id is valid, so that folders which a crash left can
    be recognised: each new folder removes those of dead processes. The folder is locked while this process lives,
    because another container that shares the temporary folder cannot see this process.

    Args:
        kind: what the folder is for, one word of the letters a to z.
        parent: where to make it; None is the folder of temporary files.

    Raises:
        OutputError: the temporary folder does not exist or is not writable, or its disk is full.
    """

    def __init__(self, kind: str, parent: Path | None = None) -> None:
        parent = temporary_folder() if parent is None else parent
        sweep(parent)
        try:
            prefix = f"medsegai-{kind}-{os.getpid()}.{_numbering()}-"
            self.path = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
            self._lock = _locked(self.path)
        except OSError as error:
            raise OutputError(
                f"A folder cannot be made in the temporary folder {parent}: {error.strerror}. Free space there, "
                "make it writable, or choose another one with the variable TMPDIR."
            ) from error

    def __enter__(self) -> Path:
        return self.path

    def __exit__(self, *_error: object) -> None:
        self.remove()

    def remove(self) -> bool:
        """Delete the folder; return False if Windows keeps it because a file in it is mapped."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
        return not self.path.exists()


def temporary_folder() -> Path:
    """Return the folder of temporary files, but never the working folder, which Python uses as a last resort.

    Raises:
        OutputError: the usual folders are all not writable.
    """
    named = [os.environ[name] for name in ("TMPDIR", "TEMP", "TMP") if os.environ.get(name)]
    try:
        folder = Path(tempfile.gettempdir())
        if not _same(folder, Path.cwd()) or any(_same(folder, Path(name)) for name in named):
            return folder
    except FileNotFoundError:
        pass
    reason = f": {named[0]} is full or read-only" if named else ""
    raise OutputError(
        f"Temporary files cannot be written{reason}. Free space on the disk, or name another "
        "folder in the variable TMPDIR."
    )


def _same(one: Path, other: Path) -> bool:
    return os.path.abspath(one) == os.path.abspath(other)


def sweep(parent: Path) -> None:
    """Delete the private folders of processes that have ended."""
    for folder in parent.glob("medsegai-*"):
        named = _NAME.fullmatch(folder.name)
        if named is None:
            continue
        here = named["numbering"] == _numbering()
        if not _is_alive(int(named["pid"])) if here else _is_abandoned(folder):
            shutil.rmtree(folder, ignore_errors=True)


@functools.cache
def _numbering() -> str:
    """Return a name for the range of process ids: this computer since its start, or this container."""
    parts = [platform.node()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii"))
        parts.append(os.readlink("/proc/self/ns/pid"))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:8]


def _locked(folder: Path) -> int | None:
    """Return a descriptor that keeps `folder` locked while it is open; None if folders cannot be locked."""
    if sys.platform == "win32":
        return None
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        if try_lock(descriptor):
            return descriptor
    except OSError:
        pass
    os.close(descriptor)
    return None


def _is_abandoned(folder: Path) -> bool:
    """Whether a folder is old and unlocked, if its process cannot be found."""
    try:
        if time.time() - folder.stat().st_mtime < ABANDONED_SECONDS:
            return False
        descriptor = _locked(folder)
    except OSError:
        return False
    if descriptor is not None:
        os.close(descriptor)
    return descriptor is not None


def _is_alive(pid: int) -> bool:
    if sys.platform == "win32":
        return _is_alive_on_windows(pid)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def _is_alive_on_windows(pid: int) -> bool:
    """Whether a process is alive on Windows, where `os.kill` would end it."""
    kernel = getattr(ctypes, "windll").kernel32  # noqa: B009, absent from the stubs of other systems
    query_limited_information, still_active = 0x1000, 259
    handle = kernel.OpenProcess(query_limited_information, False, pid)
    if not handle:
        return False
    code = ctypes.c_ulong()
    known = kernel.GetExitCodeProcess(handle, ctypes.byref(code))
    kernel.CloseHandle(handle)
    return not known or code.value == still_active

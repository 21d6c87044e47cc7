"""Transfer of arrays between panel and worker: through a folder that both see, or through the pipe.

In both cases an array is a .npy file in a private folder on the reader's computer, which is mapped into memory
there. If both sides see one folder, that is all. Otherwise each side has its own folder, and files are sent in
messages of type `array`: blocks of a file, each compressed separately, so that neither side holds more than a
block, and other messages can pass between them.
"""

from __future__ import annotations

import base64
import binascii
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
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medsegai.errors import OutputError, WorkerError
from medsegai.system.locks import try_lock

BLOCK_BYTES = 1 << 20
"""The bytes of a file that one message carries, before compression."""

MOST_BYTES = 1 << 50
"""The largest number of arrays in a job."""

ABANDONED_SECONDS = 24 * 3600.0
"""The age in seconds from which the folder of a process in another container may be removed."""

_PREFIX = "medsegai-exchange-"
_NAME = re.compile(r"[0-9a-f]{32}\.npy")


class ExchangeFolder:
    """A new private folder; `remove` it when the job is over.

    Its name contains the process id and the place where that id is valid, so that folders which a crash left can
    be recognised: each new folder removes those of dead processes. The folder is locked while this process lives,
    because another container that shares the temporary folder cannot see this process.

    Raises:
        OutputError: the temporary folder does not exist or is not writable, or its disk is full.
    """

    def __init__(self, parent: Path | None = None) -> None:
        parent = temporary_folder() if parent is None else parent
        sweep(parent)
        try:
            prefix = f"{_PREFIX}{os.getpid()}.{_numbering()}-"
            self.path = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
            self._lock = _locked(self.path)
        except OSError as error:
            raise OutputError(
                f"A folder cannot be made in the temporary folder {parent}: {error.strerror}. Free space there, "
                "make it writable, or choose another one with the variable TMPDIR."
            ) from error

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
    """Delete the folders of processes that have ended."""
    for folder in parent.glob(f"{_PREFIX}*"):
        number, _, numbering = folder.name.removeprefix(_PREFIX).split("-")[0].partition(".")
        if not number.isdecimal():
            continue
        here = numbering in ("", _numbering())
        if not _is_alive(int(number)) if here else _is_abandoned(folder):
            shutil.rmtree(folder, ignore_errors=True)


def remove_abandoned(folder: Path) -> None:
    """Delete the exchange folder of a client that has ended; any other folder is kept."""
    if folder.name.startswith(_PREFIX):
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


def file_in(folder: Path, name: str) -> Path:
    """Return the array file of a name in a folder.

    Raises:
        WorkerError: the name is not allowed, such as one that leads out of the folder.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise WorkerError(
            f"The worker pipe named an array {name!r}, which is not the name of an array."
        )
    return folder / name


@dataclass(frozen=True)
class Travel:
    """The number of sent bytes and of all bytes to send, before compression."""

    done: int
    total: int

    @property
    def part(self) -> float:
        return min(self.done / self.total, 1.0) if self.total > 0 else 1.0


def blocks(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the array files of a folder as the fields of messages of type `array`: name, data, first, done, total.

    Raises:
        OutputError: a file is missing or cannot be read.
    """
    try:
        files = sorted(folder.iterdir())
        total = sum(file.stat().st_size for file in files)
        done = 0
        for file in files:
            with file.open("rb") as stream:
                while block := stream.read(BLOCK_BYTES):
                    done += len(block)
                    data = base64.b64encode(zlib.compress(block, 1)).decode()
                    first = stream.tell() - len(block)
                    travel = {"first": first, "done": done, "total": total}
                    yield {"name": file.name, "data": data, **travel}
    except OSError as error:
        text = f"The temporary files in {folder} cannot be read: {error.strerror}."
        raise OutputError(text) from error


def take_block(message: Mapping[str, Any], folder: Path) -> Travel:
    """Add the content of a message of type `array` to its file in `folder`.

    Raises:
        WorkerError: the message is damaged.
        OutputError: the file cannot be written.
    """
    path = file_in(folder, message["name"])
    block = _unpacked(message["data"])
    travel = Travel(_count(message["done"]), _count(message["total"]))
    _append(path, block, _count(message.get("first")))
    return travel


def _unpacked(data: str) -> bytes:
    try:
        packed = base64.b64decode(data, validate=True)
        reader = zlib.decompressobj()
        block = reader.decompress(packed, BLOCK_BYTES + 1)  # one more byte to reach the end
    except (binascii.Error, zlib.error, TypeError, ValueError) as error:
        raise WorkerError(f"An array arrived damaged through the pipe: {error}.") from error
    if not reader.eof:
        raise WorkerError("An array arrived damaged through the pipe: a block does not end.")
    return block


def _append(path: Path, block: bytes, first: int) -> None:
    """Add a block to a file, which must have `first` bytes until then."""
    try:
        here = path.stat().st_size if path.exists() else 0
        if first != here:
            raise WorkerError(
                "An array arrived damaged through the pipe: a block is missing, or arrived twice."
            )
        with path.open("ab") as stream:
            stream.write(block)
    except OSError as error:
        raise OutputError(
            f"The temporary file {path} cannot be written: {error.strerror}. Free space on that disk, or "
            "choose another temporary folder."
        ) from error


def _count(number: object) -> int:
    if not isinstance(number, int) or not 0 <= number < MOST_BYTES:
        raise WorkerError("An array arrived damaged through the pipe: its length is missing.")
    return number


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

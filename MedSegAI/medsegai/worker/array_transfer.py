"""How arrays travel between panel and worker: through a folder that both see, or through the pipe.

Either way an array is a .npy file in a private folder of the reader's computer, which is mapped into memory
there. Where both see one folder, that is all. Else each keeps a folder of its own, and the files of one are
sent to the other in messages of type `array`: blocks of a file, compressed each for itself, so that neither
side holds more than a block, and other messages pass between them.
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
"""What one message carries of a file, before it is compressed."""

MOST_BYTES = 1 << 50
"""No job has more."""

ABANDONED_SECONDS = 24 * 3600.0
"""When the folder of a process of another container may be looked at."""

_PREFIX = "medsegai-exchange-"
_NAME = re.compile(r"[0-9a-f]{32}\.npy")


class ExchangeFolder:
    """A new private folder; `remove` it when the job is over.

    Its name holds the number of this process and where that number counts, so that folders which a crash left
    behind are known for what they are: each new folder sweeps those of dead processes away. The folder is locked
    for as long as this process lives: another container that shares the temporary folder cannot see our processes.

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
                f"No folder can be made in the temporary folder {parent}: {error.strerror}. "
                "Free space there or make it writable, or choose another with the variable TMPDIR."
            ) from error

    def remove(self) -> bool:
        """Delete the folder; False where Windows keeps it, as long as a file in it is mapped."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
        return not self.path.exists()


def temporary_folder() -> Path:
    """Where temporary files go: never the working folder, which Python takes if no other can be written.

    Raises:
        OutputError: none of the usual folders can be written.
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
        f"No temporary folder can be written{reason}. Free space on the disk, or name another folder in the "
        "variable TMPDIR."
    )


def _same(one: Path, other: Path) -> bool:
    return os.path.abspath(one) == os.path.abspath(other)


def sweep(parent: Path) -> None:
    """Delete the folders of processes that are no more."""
    for folder in parent.glob(f"{_PREFIX}*"):
        number, _, numbering = folder.name.removeprefix(_PREFIX).split("-")[0].partition(".")
        if not number.isdecimal():
            continue
        here = numbering in ("", _numbering())
        if not _is_alive(int(number)) if here else _is_abandoned(folder):
            shutil.rmtree(folder, ignore_errors=True)


def remove_abandoned(folder: Path) -> None:
    """Delete the exchange folder of a client that has ended; any other folder is left alone."""
    if folder.name.startswith(_PREFIX):
        shutil.rmtree(folder, ignore_errors=True)


@functools.cache
def _numbering() -> str:
    """Names where numbers of processes count: this computer since it was started, this container."""
    parts = [platform.node()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii"))
        parts.append(os.readlink("/proc/self/ns/pid"))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:8]


def _locked(folder: Path) -> int | None:
    """A descriptor that keeps `folder` locked while it is open; None where folders cannot be locked."""
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
    """Whether nobody, anywhere, keeps a folder whose process cannot be asked for, and it is old."""
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
    """The array file of this name in a folder.

    Raises:
        WorkerError: the other side may not give this name, such as one that leads out of the folder.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise WorkerError(
            f"The worker pipe named an array {name!r}, which is not the name of an array."
        )
    return folder / name


@dataclass(frozen=True)
class Travel:
    """How much of what is to be sent has been sent, in bytes before compression."""

    done: int
    total: int

    @property
    def part(self) -> float:
        return min(self.done / self.total, 1.0) if self.total > 0 else 1.0


def blocks(folder: Path) -> Iterator[dict[str, Any]]:
    """The array files of a folder as what messages of type `array` hold: name, data, first, done, total.

    Raises:
        OutputError: a file is gone or cannot be read.
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
        raise OutputError(
            f"The temporary files in {folder} cannot be read: {error.strerror}."
        ) from error


def take_block(message: Mapping[str, Any], folder: Path) -> Travel:
    """Add what a message of type `array` holds to its file in `folder`.

    Raises:
        WorkerError: the message is damaged.
        OutputError: the file cannot be written.
    """
    path = file_in(folder, message["name"])
    try:
        packed = base64.b64decode(message["data"], validate=True)
        reader = zlib.decompressobj()
        block = reader.decompress(packed, BLOCK_BYTES + 1)  # one more, so that its end is read
    except (binascii.Error, zlib.error, TypeError, ValueError) as error:
        raise WorkerError(f"An array arrived damaged through the pipe: {error}.") from error
    if not reader.eof:
        raise WorkerError("An array arrived damaged through the pipe: a block has no end.")
    travel = Travel(_count(message["done"]), _count(message["total"]))
    try:
        here = path.stat().st_size if path.exists() else 0
        if _count(message.get("first")) != here:
            raise WorkerError(
                "An array arrived damaged through the pipe: a block is missing, or came twice."
            )
        with path.open("ab") as stream:
            stream.write(block)
    except OSError as error:
        raise OutputError(
            f"The temporary file {path} cannot be written: {error.strerror}. Free space on that disk, or "
            "choose another temporary folder."
        ) from error
    return travel


def _count(number: object) -> int:
    if not isinstance(number, int) or not 0 <= number < MOST_BYTES:
        raise WorkerError(
            "An array arrived damaged through the pipe: it does not say how long it is."
        )
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
    """`os.kill` would end the process here."""
    kernel = getattr(ctypes, "windll").kernel32  # noqa: B009, absent from the stubs of other systems
    query_limited_information, still_active = 0x1000, 259
    handle = kernel.OpenProcess(query_limited_information, False, pid)
    if not handle:
        return False
    code = ctypes.c_ulong()
    known = kernel.GetExitCodeProcess(handle, ctypes.byref(code))
    kernel.CloseHandle(handle)
    return not known or code.value == still_active

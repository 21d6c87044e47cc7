"""Transfer of arrays between panel and worker: through a folder that both see, or through the pipe.

In both cases an array is a .npy file in a private folder on the reader's computer, which is mapped into memory
there. If both sides see one folder, that is all. Otherwise each side has its own folder, and files are sent in
messages of type `array`: blocks of a file, each compressed separately, so that neither side holds more than a
block, and other messages can pass between them.
"""

from __future__ import annotations

import base64
import binascii
import re
import shutil
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medsegai.errors import OutputError, WorkerError
from medsegai.system.private_folders import PrivateFolder

BLOCK_BYTES = 1 << 20
"""The bytes of a file that one message carries, before compression."""

MOST_BYTES = 1 << 50
"""The largest number of arrays in a job."""

_KIND = "exchange"
_NAME = re.compile(r"[0-9a-f]{32}\.npy")


class ExchangeFolder(PrivateFolder):
    """A private folder for arrays; `remove` it when the job is over. Raises as `PrivateFolder`."""

    def __init__(self, parent: Path | None = None) -> None:
        super().__init__(_KIND, parent)


def remove_abandoned(folder: Path) -> None:
    """Delete the exchange folder of a client that has ended; any other folder is kept."""
    if folder.name.startswith(f"medsegai-{_KIND}-"):
        shutil.rmtree(folder, ignore_errors=True)


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

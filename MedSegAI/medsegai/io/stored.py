"""Bytes of voxels as files hold them: plain, packed or as text, and read to their end.

A packed stream ends with a checksum of what it held. Libraries stop at the last voxel and never come to it, so
damage would pass as part of the image; here every stream is read until its checksum has been compared.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from medsegai.errors import InputError

GZIP_MAGIC = b"\x1f\x8b"

CHUNK = 1 << 20

SURPLUS = 1 << 24
"""Bytes that may follow the voxels: tags of MGH, padding. A stream with more is not what its header says."""

DAMAGED_STREAM = (EOFError, OSError, zlib.error)
"""What unpacking raises where a checksum differs or the end is missing."""


@dataclass(frozen=True)
class Stored:
    """Where the voxels of an image lie, and how they are stored.

    Attributes:
        files: which hold the voxels, one after another.
        packing: "raw", "gzip", "bzip2", "zlib" (which may also be gzip), "text" or "hex".
        big_endian: whether the first byte of a number is the largest.
        before: bytes of each file before what is stored; -1 if the voxels are the last bytes of the file.
        lines: lines of each file to skip after those bytes.
        within: bytes to skip of what was unpacked.
    """

    files: tuple[Path, ...]
    packing: str = "raw"
    big_endian: bool = False
    before: int = 0
    lines: int = 0
    within: int = 0

    @property
    def is_packed(self) -> bool:
        return self.packing not in ("raw", "text")

    def bytes_there(self) -> int:
        """How many bytes the files hold, without what is skipped."""
        return sum(file.stat().st_size - max(self.before, 0) for file in self.files)

    def read(self, path: Path, count: int, kind: np.dtype[Any]) -> NDArray[Any]:
        """The voxels, one after another.

        Args:
            path: the image, for messages.
            count: how many there are.
            kind: their type.

        Raises:
            InputError: voxels are missing, or a checksum is wrong.
        """
        stored_kind = kind.newbyteorder(">" if self.big_endian else "<")
        voxels = np.empty(count, stored_kind)
        share, rest = divmod(count, len(self.files))
        if rest:
            raise InputError(
                f"{path}: {count} voxels cannot be shared out among {len(self.files)} files. Export it again."
            )
        for number, file in enumerate(self.files):
            part = voxels[number * share : (number + 1) * share]
            try:
                self._read_file(file, part)
            except DAMAGED_STREAM as error:
                raise damaged(path, error) from error
        return voxels

    def _read_file(self, path: Path, voxels: NDArray[np.generic]) -> None:
        with path.open("rb") as file:
            file.seek(path.stat().st_size - voxels.nbytes if self.before < 0 else self.before)
            for _ in range(self.lines):
                file.readline()
            if self.packing in ("text", "hex"):
                _fill_from_text(file.read(), self.packing, voxels)
                return
            stream = _unpacked(file, self.packing)
            _skip(stream, self.within)
            fill(stream, voxels)
            if self.is_packed:
                check_end(stream)


@contextlib.contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """The content of a file, unpacked if it begins as gzip does: its name may say otherwise."""
    with path.open("rb") as file:
        yield unpacked_by_content(file)


def unpacked_by_content(file: BinaryIO) -> BinaryIO:
    """The stream itself, or what it holds if it begins as gzip does."""
    magic = file.read(len(GZIP_MAGIC))
    file.seek(0)
    return cast(BinaryIO, gzip.GzipFile(fileobj=file)) if magic == GZIP_MAGIC else file


def fill(stream: IO[bytes], voxels: NDArray[np.generic]) -> None:
    """Read as many bytes as the array has.

    Raises:
        EOFError: there are fewer.
    """
    view = memoryview(voxels.reshape(-1).view(np.uint8).data)
    while len(view):
        count = stream.readinto(view)  # type: ignore[attr-defined]
        if not count:
            raise EOFError(f"{len(view)} bytes are missing at the end")
        view = view[count:]


def check_end(stream: BinaryIO) -> None:
    """Read a packed stream to its end, where its checksum is compared.

    Raises:
        EOFError, OSError, zlib.error: it is damaged, or goes on for more than `SURPLUS` bytes.
    """
    surplus = 0
    while block := stream.read(CHUNK):
        surplus += len(block)
        if surplus > SURPLUS:
            raise OSError("it holds far more than its header promises")


def damaged(path: Path, error: BaseException) -> InputError:
    """The error for a file whose bytes are not those that were written."""
    return InputError(f"{path} is damaged: {_cause(error)}. Copy or export it again.")


def _cause(error: BaseException) -> str:
    if isinstance(error, zlib.error) or "CRC" in str(error):
        return "its compressed voxels cannot be unpacked or do not fit their checksum"
    return str(error).rstrip(".") or "its end is missing"


def _unpacked(file: BinaryIO, packing: str) -> BinaryIO:
    if packing == "gzip":
        return cast(BinaryIO, gzip.GzipFile(fileobj=file))
    if packing == "bzip2":
        return cast(BinaryIO, bz2.BZ2File(file))
    if packing == "zlib":
        return cast(BinaryIO, io.BufferedReader(_Inflated(file), CHUNK))
    return file


class _Inflated(io.RawIOBase):
    """The content of a zlib or gzip stream, whose end must be present and whose checksum must be right."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._inflate = zlib.decompressobj(zlib.MAX_WBITS | 32)  # either header

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill some of the buffer; 0 at the end."""
        while not self._inflate.eof:
            packed = self._inflate.unconsumed_tail or self._file.read(CHUNK)
            block = self._inflate.decompress(packed, len(buffer))
            if block:
                buffer[: len(block)] = block
                return len(block)
            if not packed:
                raise EOFError("its compressed voxels have no end")
        return 0


def _skip(stream: BinaryIO, count: int) -> None:
    while count > 0:
        block = stream.read(min(count, CHUNK))
        if not block:
            raise EOFError("its end is missing")
        count -= len(block)


def _fill_from_text(text: bytes, packing: str, voxels: NDArray[np.generic]) -> None:
    """Numbers as people write them, or two hexadecimal digits for each byte."""
    try:
        if packing == "hex":
            fill(io.BytesIO(bytes.fromhex(text.decode("ascii"))), voxels)
            return
        kind = voxels.dtype.newbyteorder("=")
        with warnings.catch_warnings(action="error", category=DeprecationWarning):
            numbers = text.replace(b",", b" ")
            voxels[...] = np.fromstring(numbers, kind, count=voxels.size, sep=" ")
    except (ValueError, DeprecationWarning) as error:
        raise EOFError("its voxels are not as many numbers as its header promises") from error

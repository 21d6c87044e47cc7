"""The bytes of voxels in files: plain, packed or as text, read to their end.

A packed stream ends with a checksum of its content. Libraries stop at the last voxel and never reach it, so damage
would become part of the image. Here every stream is read until its checksum has been compared.
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

from medsegai.errors import InputError, counted

GZIP_MAGIC = b"\x1f\x8b"

CHUNK = 1 << 20

SURPLUS = 1 << 24
"""The number of bytes that may follow the voxels, such as tags of MGH or padding; more contradict the header."""

DAMAGED_STREAM = (EOFError, OSError, zlib.error)
"""The exceptions of unpacking if a checksum differs or the end is missing."""


@dataclass(frozen=True)
class Stored:
    """Where and how the voxels of an image are stored.

    Attributes:
        files: the files that hold the voxels, one after another.
        packing: "raw", "gzip", "bzip2", "zlib" (which may also be gzip), "text" or "hex".
        big_endian: whether the first byte of a number is the most significant.
        before: the number of bytes before the stored content of each file; -1 if the voxels are its last bytes.
        lines: the number of lines of each file to skip after those bytes.
        within: the number of unpacked bytes to skip.
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
        """Return how many bytes the files hold, without skipped ones."""
        return sum(file.stat().st_size - max(self.before, 0) for file in self.files)

    def read(self, path: Path, count: int, kind: np.dtype[Any]) -> NDArray[Any]:
        """Read the voxels in order.

        Args:
            path: the image, for messages.
            count: the number of voxels.
            kind: the type of the voxels.

        Raises:
            InputError: voxels are missing, or a checksum is wrong.
        """
        voxels = np.empty(count, kind.newbyteorder(">" if self.big_endian else "<"))
        share = self._voxels_per_file(path, count)
        for number, file in enumerate(self.files):
            part = voxels[number * share : (number + 1) * share]
            try:
                self._read_file(file, part)
            except DAMAGED_STREAM as error:
                raise damaged(path, error) from error
        return voxels

    def _voxels_per_file(self, path: Path, count: int) -> int:
        share, rest = divmod(count, len(self.files))
        if rest:
            raise InputError(
                f"{path}: {count} voxels cannot be divided evenly among {len(self.files)} files. Export it again."
            )
        return share

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
    """Return the content of a file, unpacked if it begins like gzip, whatever its name is."""
    with path.open("rb") as file:
        yield unpacked_by_content(file)


def unpacked_by_content(file: BinaryIO) -> BinaryIO:
    """Return the stream itself, or its unpacked content if it begins like gzip."""
    magic = file.read(len(GZIP_MAGIC))
    file.seek(0)
    return cast(BinaryIO, gzip.GzipFile(fileobj=file)) if magic == GZIP_MAGIC else file


def fill(stream: IO[bytes], voxels: NDArray[np.generic]) -> None:
    """Fill the array with bytes of the stream.

    Raises:
        EOFError: the stream has fewer bytes.
    """
    view = memoryview(voxels.reshape(-1).view(np.uint8).data)
    while len(view):
        count = stream.readinto(view)  # type: ignore[attr-defined]
        if not count:
            raise EOFError(f"{counted(len(view), 'byte is', 'bytes are')} missing at the end")
        view = view[count:]


def check_end(stream: BinaryIO) -> None:
    """Read a packed stream to its end, where its checksum is compared.

    Raises:
        EOFError, OSError, zlib.error: the stream is damaged, or has more than `SURPLUS` further bytes.
    """
    surplus = 0
    while block := stream.read(CHUNK):
        surplus += len(block)
        if surplus > SURPLUS:
            raise OSError("it holds far more data than its header promises")


def damaged(path: Path, error: BaseException) -> InputError:
    """Return the error for a file whose bytes changed after it was written."""
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
    """The content of a zlib or gzip stream, whose end must be present and whose checksum must be correct."""

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
                raise EOFError("its compressed voxels do not end")
        return 0


def _skip(stream: BinaryIO, count: int) -> None:
    while count > 0:
        block = stream.read(min(count, CHUNK))
        if not block:
            raise EOFError("its end is missing")
        count -= len(block)


def _fill_from_text(text: bytes, packing: str, voxels: NDArray[np.generic]) -> None:
    """Parse decimal numbers, or two hexadecimal digits for each byte."""
    try:
        if packing == "hex":
            fill(io.BytesIO(bytes.fromhex(text.decode("ascii"))), voxels)
            return
        kind = voxels.dtype.newbyteorder("=")
        with warnings.catch_warnings(action="error", category=DeprecationWarning):
            numbers = text.replace(b",", b" ")
            voxels[...] = np.fromstring(numbers, kind, count=voxels.size, sep=" ")
    except (ValueError, DeprecationWarning) as error:
        raise EOFError("it does not have as many numbers as its header promises") from error

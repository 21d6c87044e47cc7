"""Common code of readers: checks of a file before it is opened, and errors that name it."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medsegai.errors import GeometryError, InputError
from medsegai.io.stored import Stored
from medsegai.system.machine import available_memory, total_memory
from medsegai.volume import Geometry, Scalar

DEFLATE_LIMIT = 1032
"""Deflate (gzip, zlib) cannot make data smaller than 1/1032 of its size (zlib technical details)."""

BZIP2_LIMIT = 50_000
"""bzip2 packs blocks of 900 kB, even of one value, into some 40 bytes."""

HEADER_BYTES = 4096
"""The tolerance of comparisons with the file size, in bytes."""

COPIES = 4
"""The number of times that voxels must fit into the free memory, because they are also reoriented and used."""

_ITK_PREFIX = re.compile(
    r"^(ITK ERROR: |itk::ERROR: )?(\w+\(0x[0-9a-f]+\): )?(\[nrrd\] )?(_?nrrd\w+: )?"
)
"""The text before the reason in the last line of ITK's errors."""

_LACKS = re.compile(r"'\w+' object has no attribute '(\w+)'")
"""Python's message for an element that a header does not have."""


def check_stored_size(path: Path, needed: int, where: Stored, parts: int = 1) -> None:
    """Compare the voxels that a header promises with the existing bytes, before memory is allocated.

    Args:
        path: the image, for messages.
        needed: the size of the voxels in bytes, according to the header.
        where: the files of the voxels.
        parts: the number of parts in which they are read, one at a time.

    Raises:
        InputError: the file is truncated, its header is wrong, or this machine does not have enough memory.
    """
    there = where.bytes_there()
    if where.packing == "raw":
        possible = there - where.within * len(where.files)
    else:
        ratio = BZIP2_LIMIT if where.packing == "bzip2" else DEFLATE_LIMIT
        possible = (there + HEADER_BYTES) * ratio
    check_promise(path, needed, there, possible)
    check_memory(path, needed // parts)


def check_promise(path: Path, needed: int, there: int, possible: int | None = None) -> None:
    """Refuse a header that promises more voxels than the existing bytes can hold.

    Args:
        path: the image, for messages.
        needed: the size of the voxels in bytes, according to the header.
        there: the number of bytes in the file.
        possible: the largest size to which these can be unpacked; None if they are not packed.

    Raises:
        InputError: the file is truncated, or its header is wrong.
    """
    if needed > (there if possible is None else possible):
        raise InputError(
            f"{path}: the header promises {_size(needed)} of voxels, but the file has "
            f"{_size(max(there, 0))}. It is truncated or damaged. Copy or export it again."
        )


def check_memory(path: Path, needed: int) -> None:
    """Refuse voxels that this machine cannot hold now.

    Raises:
        InputError: the voxels need more memory than is free.
    """
    memory = _memory_bytes()
    if memory and COPIES * needed > memory:
        raise InputError(
            f"{path}: reading its {_size(needed)} of voxels takes {_size(COPIES * needed)} of memory, but this "
            f"computer has {_size(memory)} free. Crop or downsample the image first."
        )


def check_regular(path: Path) -> None:
    """Refuse a path that is neither a file nor a folder, because reading it may never end.

    Raises:
        InputError: the path is a device, a pipe or a socket.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        raise InputError(
            f"{path} is a device or a pipe, not a file. Copy its content to a file, and name that file."
        )


def check_name(path: Path) -> None:
    """Refuse names that are not Unicode, because ITK, tables and reports cannot hold them.

    Raises:
        InputError: the name of the file or of a folder on the way has bytes that are not UTF-8.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise InputError(
            f"{path}: its name has bytes that are not UTF-8. Rename it; on Linux, `convmv` renames many files."
        ) from None


def check_3d(path: Path, shape: Sequence[int]) -> tuple[int, int, int]:
    """Return the three sizes of an image whose further axes, if any, have one element.

    Args:
        path: the image, for messages.
        shape: the sizes in the order of the file, (i, j, k, time or channel...).

    Raises:
        InputError: the image has another number of dimensions, or a size below one.
    """
    sizes = [int(size) for size in shape]
    if not sizes or min(sizes) < 1:
        raise InputError(
            f"{path}: the image has the size {_times(sizes)}, so it does not have voxels. Export it again."
        )
    if len(sizes) < 3:
        raise InputError(
            f"{path} is a {len(sizes)}D image, but a 3D volume is needed. Choose another file."
        )
    if math.prod(sizes[3:]) > 1:
        raise InputError(
            f"{path} is a {len(sizes)}D image of {_times(sizes)}: a time series or several "
            "channels. Extract one 3D volume from it first."
        )
    return sizes[0], sizes[1], sizes[2]


def placed(path: Path, shape: Sequence[int], ijk_to_ras: ArrayLike) -> Geometry:
    """Return the grid of an image; if it is impossible, the error names the file.

    Raises:
        GeometryError: see `Geometry`.
    """
    try:
        k, j, i = shape
        return Geometry((k, j, i), np.asarray(ijk_to_ras, dtype=np.float64))
    except GeometryError as error:
        raise GeometryError(f"{path}: {error}") from error


def native(voxels: NDArray[Scalar]) -> NDArray[Scalar]:
    """Return the same voxels in the byte order of this computer, contiguous."""
    return np.ascontiguousarray(voxels, dtype=voxels.dtype.newbyteorder("="))


def unreadable(path: Path, error: BaseException | str, kind: str) -> InputError:
    """Return the error for a file that a library could not read.

    Args:
        path: the file.
        error: the cause, or the exception of the library, of which one line is quoted.
        kind: the expected kind of file, with its article, such as "a NIfTI image".
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    line = (lines or [type(error).__name__])[
        -1 if re.search("(?i)itk.{1,2}error", str(error)) else 0
    ]
    cause = _LACKS.sub(r"it lacks \1", _ITK_PREFIX.sub("", line))[:200].rstrip(".")
    return InputError(
        f"{path} cannot be read as {kind}: {cause}. It is not such an image, or it is damaged. Copy or "
        "export it again."
    )


def _memory_bytes() -> int:
    """Return the free memory of this computer or its container; 0 if the system does not report it."""
    free = available_memory()
    free = total_memory() if free is None else free
    return 0 if free is None else max(free, 1)


def _size(count: int) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000  # type: ignore[assignment]
    return f"{count:.3g} TB"


def _times(sizes: Sequence[int]) -> str:
    return " x ".join(str(size) for size in sizes)

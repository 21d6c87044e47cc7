"""Untrusted zip archives, which are inspected before any of their files is written.

The directory of an archive is not trusted: names that leave the folder, links, files that do not belong there, and
implausibly many bytes are refused, and unpacked bytes are counted.
"""

from __future__ import annotations

import contextlib
import shutil
import stat
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast

from medsegai.errors import ModelError, UnsafeModelError
from medsegai.system.regular_files import open_regular

CHUNK = 1 << 20

_END_BYTES, _LONGEST_COMMENT = 22, 0xFFFF
"""The size of the end record in bytes, and of the comment after it at most."""

_ENTRY_BYTES = 46 + 1000
"""The size of a directory entry in bytes: the fixed part, and a long name with its extra fields."""

DAMAGED = (
    *(zipfile.BadZipFile, zlib.error, struct.error, EOFError, NotImplementedError, ValueError),
    *(FileExistsError, NotADirectoryError),  # the same name for a file and a folder
)
"""The exceptions of zipfile for contradictory archives; ValueError for impossible names and offsets."""


class Kind(Enum):
    """What to do with a file of an archive: unpack it, leave it there, or refuse the archive."""

    WANTED = "wanted"
    KNOWN = "known"
    FOREIGN = "foreign"


@dataclass(frozen=True)
class Limits:
    """Limits beyond which an archive is refused.

    Attributes:
        files: the number of files in the archive.
        bytes: the number of bytes to be unpacked. The largest published nnU-Nets have five checkpoints of under 2
            GB.
        ratio: the ratio of those bytes to the archive's own size. Weights shrink by a tenth, JSON by a factor of
            ten.
    """

    files: int = 20_000
    bytes: int = 64 << 30
    ratio: float = 50.0


@contextlib.contextmanager
def unpacked(
    archive: Path,
    kind_of: Callable[[PurePosixPath], Kind],
    parent: Path,
    limits: Limits | None = None,
) -> Iterator[Path]:
    """Unpack the wanted files of a zip archive into a folder that is removed after the block in any case.

    The folder has the name of the archive, and contains all of its folders, even those without wanted files.

    Args:
        archive: the path of the archive.
        kind_of: the function that says what to do with a file, by its path in the archive.
        parent: the folder in which that folder is made.
        limits: the limits of the archive; `Limits()` if None.

    Raises:
        UnsafeModelError: a name leaves the folder or is not a plain file, a file is foreign, or the archive is a
            zip bomb.
        ModelError: the file is not a zip archive, is damaged, encrypted, or packed in an unusual way.
    """
    with tempfile.TemporaryDirectory(prefix="archive-", dir=parent) as name:
        folder = Path(name) / archive.stem
        folder.mkdir()
        try:
            with (
                open_regular(archive) as file,
                open_zip(file, (limits or Limits()).files) as opened,
            ):
                chosen = _chosen(archive, opened, kind_of, limits or Limits())
                for entry, path in chosen:
                    _unpack(archive, opened, entry, folder / path)
        except DAMAGED as error:
            raise ModelError(
                f"{archive} is not a zip archive, or is damaged: {error}. Download it again."
            ) from error
        yield folder


class _Sparing:
    """A file from which only a limited number of bytes is read at once."""

    def __init__(self, file: BinaryIO, most: int) -> None:
        self._file, self._most = file, most
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, size: int = -1) -> bytes:
        content = self._file.read(self._most + 1 if size < 0 else min(size, self._most + 1))
        if len(content) > self._most:
            raise zipfile.BadZipFile(f"its directory has more than {self._most} bytes")
        return content


def open_zip(file: BinaryIO, most_entries: int) -> zipfile.ZipFile:
    """Open a zip archive if its directory is not longer than that of the given number of entries can be.

    zipfile reads the whole directory, and makes objects of ten times its size, before entries can be counted.

    Raises:
        zipfile.BadZipFile: the file is not an archive, is cut off, or its directory is longer.
    """
    _check_end(file)
    sparing = _Sparing(file, most_entries * _ENTRY_BYTES)
    opened = zipfile.ZipFile(cast(BinaryIO, sparing))
    if min((entry.header_offset for entry in opened.infolist()), default=0) > 0:
        raise zipfile.BadZipFile("it begins with something else, or is cut off")
    return opened


def _check_end(file: BinaryIO) -> None:
    """Refuse a file that does not end with an archive's end record, which zipfile also finds further inside.

    An archive that is cut off may hold another archive, such as a file of torch, and would be taken for it. The
    other one begins later in the file.
    """
    file.seek(-min(file.seek(0, 2), _END_BYTES + _LONGEST_COMMENT), 2)
    tail = file.read()
    at = tail.rfind(b"PK\5\6")
    comment = int.from_bytes(tail[at + _END_BYTES - 2 : at + _END_BYTES], "little")
    if at < 0 or at + _END_BYTES + comment != len(tail):
        raise zipfile.BadZipFile("its end is missing")


def _chosen(
    archive: Path,
    opened: zipfile.ZipFile,
    kind_of: Callable[[PurePosixPath], Kind],
    limits: Limits,
) -> list[tuple[zipfile.ZipInfo, PurePosixPath]]:
    """Return the folders and wanted files, after checking all entries."""
    _check_size(archive, opened.infolist(), limits)
    found = [(entry, _safe_path(archive, entry)) for entry in opened.infolist()]
    _check_unique(archive, found)
    return [
        (entry, path)
        for entry, path in found
        if entry.is_dir() or _is_wanted(archive, entry, kind_of(path))
    ]


def _check_unique(archive: Path, found: Sequence[tuple[zipfile.ZipInfo, PurePosixPath]]) -> None:
    """Refuse two files that have one name on systems that do not tell capitals from small letters."""
    seen: set[str] = set()
    for entry, path in found:
        name = path.as_posix().casefold()
        if name in seen:
            raise _unsafe(archive, f"holds {entry.filename!r} twice")
        if not entry.is_dir():
            seen.add(name)


def _is_wanted(archive: Path, entry: zipfile.ZipInfo, kind: Kind) -> bool:
    """Return whether a file is unpacked, which must be possible then; a foreign file is refused."""
    if kind is Kind.FOREIGN:
        raise _unsafe(archive, f"holds {entry.filename!r}, which does not belong in a model")
    if kind is Kind.WANTED:
        _check_readable(archive, entry)
    return kind is Kind.WANTED


def _check_size(archive: Path, entries: list[zipfile.ZipInfo], limits: Limits) -> None:
    size = archive.stat().st_size
    total = sum(entry.file_size for entry in entries)
    if len(entries) > limits.files:
        raise _unsafe(archive, f"holds {len(entries)} files")
    if total > limits.bytes or total > limits.ratio * size + CHUNK:
        raise _unsafe(
            archive, f"would unpack {size} to {total} bytes, as an archive made to fill disks"
        )
    if sum(entry.compress_size for entry in entries) > size:
        raise _unsafe(
            archive, "holds files that share their bytes, as an archive made to fill disks"
        )


def _safe_path(archive: Path, entry: zipfile.ZipInfo) -> PurePosixPath:
    """Return the path of an entry, if it stays inside the folder on every system."""
    name = entry.orig_filename
    path = PurePosixPath(name)
    if (
        not path.parts
        or path.is_absolute()
        or not name.isprintable()
        or set(name) & set('\\:*?"<>|')
        or any(part == ".." or part[-1] in " ." for part in path.parts)
    ):
        raise _unsafe(archive, f"names a file {name!r}, which could lie outside its folder")
    mode = entry.external_attr >> 16
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise _unsafe(archive, f"holds {name!r}, which is a link or a device")
    return path


def _check_readable(archive: Path, entry: zipfile.ZipInfo) -> None:
    if not 0 <= entry.header_offset < archive.stat().st_size:
        raise zipfile.BadZipFile(f"{entry.filename} lies outside")
    if entry.flag_bits & 0x1:
        raise ModelError(f"{archive} is encrypted. Unpack it yourself, and import the folder.")
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ModelError(
            f"{archive} is packed in a way that is not supported. Unpack it yourself, and import the folder."
        )


def _unpack(archive: Path, opened: zipfile.ZipFile, entry: zipfile.ZipInfo, path: Path) -> None:
    """Write one file or folder; zipfile gives no more bytes than declared, and checks their sum."""
    (path if entry.is_dir() else path.parent).mkdir(parents=True, exist_ok=True)
    if entry.is_dir():
        return
    with opened.open(entry) as source, path.open("xb") as target:
        shutil.copyfileobj(source, target, CHUNK)
    if path.stat().st_size != entry.file_size:
        raise ModelError(f"{archive} is damaged: {entry.filename} is cut off. Download it again.")


def _unsafe(archive: Path, why: str) -> UnsafeModelError:
    return UnsafeModelError(f"{archive} {why}. It was refused, and its files were not kept.")

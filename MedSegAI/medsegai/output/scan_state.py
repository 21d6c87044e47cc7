"""What the files of a scan hold, so that a scan that was replaced under its name is noticed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from medsegai.io.dicom_files import is_dicom
from medsegai.models.card import file_sha256

DETACHED = (".mhd", ".nhdr", ".hdr", ".img")
"""The endings of files whose voxels, or header, are in another file of the same name."""


@dataclass(frozen=True)
class ScanState:
    """The files of a scan when it was segmented. Neither value names a patient.

    Attributes:
        stamp: a hash of the sizes and times of the files.
        content: a hash of their bytes.
    """

    stamp: str
    content: str

    @classmethod
    def of(cls, inputs: Sequence[Path]) -> ScanState:
        """Read the files of a scan. Raises OSError: one cannot be read."""
        return cls(_stamp(inputs), _content(inputs))

    def to_dict(self) -> dict[str, str]:
        """Return the state as JSON values."""
        return asdict(self)


def was_replaced(inputs: Sequence[Path], before: Any) -> bool:
    """Whether files hold other bytes than before. They are only read if their sizes or times differ.

    Args:
        inputs: the files, or folders of DICOM files, of a scan.
        before: the `ScanState` of a report; of another type if the report does not have one.
    """
    if not isinstance(before, dict) or "content" not in before:
        return False
    try:
        return _stamp(inputs) != before.get("stamp") and _content(inputs) != before.get("content")
    except OSError:
        return False  # it is not here now, as after `datalad drop`


def _stamp(inputs: Sequence[Path]) -> str:
    states = [path.stat() for path in _files(inputs)]
    return _hash(f"{state.st_size} {state.st_mtime_ns}" for state in states)


def _content(inputs: Sequence[Path]) -> str:
    """Hash the bytes of all files, but not of notes beside the slices of a series."""
    folders = {path for path in inputs if path.is_dir()}
    return _hash(
        file_sha256(path) for path in _files(inputs) if path.parent not in folders or is_dicom(path)
    )


def _files(inputs: Sequence[Path]) -> Iterator[Path]:
    """Yield the files of a scan, those of a folder in the order of their names."""
    for path in inputs:
        if path.is_dir():
            yield from sorted(it for it in path.iterdir() if it.is_file() and it.name[0] != ".")
        elif path.suffix.lower() in DETACHED:
            named = (it for it in path.parent.iterdir() if it.stem == path.stem)
            yield from sorted(it for it in named if it.is_file())
        elif path.is_file():
            yield path
        else:  # a pipe would never end
            raise FileNotFoundError(path)


def _hash(parts: Iterator[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()

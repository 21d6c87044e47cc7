"""The text at the beginning of NRRD and MetaImage files, checked before any library reads it.

A header may name other files. They must be regular files beside or below the header, so that the sender of an
image cannot make a program read other files of the computer.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from medsegai.errors import InputError
from medsegai.io.stored import Stored

HEADER_BYTES = 1 << 20
"""More bytes than any real header has: Slicer writes less than a kilobyte for each segment."""

NRRD_ENDINGS = (".nrrd", ".nhdr")

MAX_FILES = 100_000
"""The largest number of files of an image, which may have one for each slice."""

_DIMENSIONS = re.compile(rb"^NDims *= *[1-9][ \t\r]*$", re.MULTILINE)
_META_DATA = re.compile(rb"^ElementDataFile *=[ \t]*(.*?)[ \t\r]*(?:\n|\Z)", re.MULTILINE)
_FIELD = re.compile(r"([\w .]+?) *(?::(?!=)|=) *(.*?)\s*")
_NUMBERED = re.compile(r"[^%]*%0?\d{0,2}[di][^%]*")
"""The pattern of file names that are numbered."""

_UNIT_FIELDS = ("spaceunits", "units", "distanceunits")
"""The fields for units: of NRRD as a whole, of each axis of NRRD, and of MetaImage."""

_OTHER_UNITS = re.compile(
    r"([nuµμc]|nano|micro|centi)?m(et(er|re)s?)?|microns?|in|inch(es)?|angstroms?"
)
"""Units of length other than mm."""

_PACKINGS = {
    "raw": "raw",
    "gz": "gzip",
    "gzip": "gzip",
    "bz2": "bzip2",
    "bzip2": "bzip2",
    "txt": "text",
    "text": "text",
    "ascii": "text",
    "hex": "hex",
}


def header_text(path: Path) -> bytes:
    """Return the text before the voxels, as it is in the file.

    Raises:
        InputError: the header does not end.
        ValueError: the number of dimensions of a MetaImage is not one digit; ITK would write beyond its arrays
            (in 5.4, NDims = 83 ends the process).
    """
    with path.open("rb") as file:
        start = file.read(HEADER_BYTES)
    if path.suffix.lower() in NRRD_ENDINGS:
        return _until_empty_line(path, start)
    if start.count(b"NDims") != 1 or not _DIMENSIONS.search(start):
        raise ValueError("NDims is missing, or is not a number from 1 to 9")
    last = _META_DATA.search(start)
    if last is None or last[1].upper().startswith(b"LIST"):
        return start
    return start[: last.end()]


def _until_empty_line(path: Path, start: bytes) -> bytes:
    """Return the header of an NRRD; without an empty line, the whole file is one."""
    end = re.search(rb"\r?\n\r?\n", start)
    if end is None and len(start) == HEADER_BYTES:
        raise InputError(f"{path}: its header does not end. Copy or export it again.")
    return start if end is None else start[: end.end()]


def stored(path: Path, header: bytes) -> Stored:
    """Return where the voxels of an NRRD or MetaImage are stored.

    Args:
        path: the file of the header, which may also hold the voxels.
        header: the header from `header_text`.

    Raises:
        InputError: the header names a file that is missing, is not a regular file, or is outside its folder; or
            its lengths are not in mm.
        ValueError: the header cannot be understood.
    """
    fields, listed = _fields(header)
    _check_units(path, fields)
    if path.suffix.lower() in NRRD_ENDINGS:
        return _stored_nrrd(path, header, fields, listed)
    return _stored_meta(path, header, fields, listed)


def _check_units(path: Path, fields: dict[str, str]) -> None:
    """Refuse lengths that are not in mm, because ITK and Slicer take them for mm and would misplace the image."""
    words = " ".join(fields.get(name, "") for name in _UNIT_FIELDS).lower()
    for word in re.findall(r"[^\s\"]+", words):
        if _OTHER_UNITS.fullmatch(word):
            raise InputError(
                f"{path} has its lengths in {word}, which other programs take for mm. Write "
                "it again with spacing, directions and origin in mm."
            )


def _stored_nrrd(path: Path, header: bytes, fields: dict[str, str], listed: list[str]) -> Stored:
    packing = _PACKINGS.get(fields.get("encoding", "").lower(), "")
    if not packing:
        raise ValueError(f"its encoding {fields.get('encoding', '')!r} is not known")
    big_endian = fields.get("endian", "little").lower() == "big"
    within, lines = int(fields.get("byteskip", 0)), int(fields.get("lineskip", 0))
    if lines < 0 or within < -1 or (within < 0 and packing != "raw"):
        raise ValueError("its skipped bytes or lines cannot be understood")
    before = 0
    name = fields.get("datafile")
    if name is None:
        files: tuple[Path, ...] = (path,)
        before = len(header)
    else:
        files = _data_files(path, name, listed)
    if within < 0:
        before, within = -1, 0
    return Stored(files, packing, big_endian, before, lines, within)


def _stored_meta(path: Path, header: bytes, fields: dict[str, str], listed: list[str]) -> Stored:
    packing = "zlib" if _is_true(fields.get("compresseddata", "")) else "raw"
    if "binarydata" in fields and not _is_true(fields["binarydata"]):
        packing = "text"
    order = fields.get("elementbyteordermsb", fields.get("binarydatabyteordermsb", ""))
    before = int(fields.get("headersize", 0))
    if before < -1 or (before < 0 and packing != "raw"):
        raise ValueError("its HeaderSize cannot be understood")
    name = fields.get("elementdatafile", "LOCAL")
    if name.upper() == "LOCAL":
        return Stored((path,), packing, _is_true(order), len(header))
    return Stored(_data_files(path, name, listed), packing, _is_true(order), before)


def _fields(header: bytes) -> tuple[dict[str, str], list[str]]:
    """Return the fields by lower-case name without blanks, and the lines after the one that begins a list."""
    fields: dict[str, str] = {}
    lines = header.decode("utf-8", errors="surrogateescape").splitlines()
    for number, line in enumerate(lines):
        match = _FIELD.fullmatch(line)
        if match is None or line.startswith("#"):
            continue
        name = match[1].replace(" ", "").lower()
        fields.setdefault(name, match[2])
        if name in ("datafile", "elementdatafile") and match[2].upper().startswith("LIST"):
            return fields, [other.strip() for other in lines[number + 1 :] if other.strip()]
    return fields, []


def _is_true(value: str) -> bool:
    return value[:1] in ("T", "t", "1")


def _data_files(path: Path, name: str, listed: Sequence[str]) -> tuple[Path, ...]:
    """Return the files that a header names: one, a list, or numbered ones."""
    if name.upper().startswith("LIST"):
        names: Sequence[str] = listed
    elif "%" in name:
        names = list(_numbered(name))
    else:
        names = [name]
    if not 0 < len(names) <= MAX_FILES:
        raise ValueError(f"it names {len(names)} files of voxels")
    return tuple(beside(path, item) for item in names)


def _numbered(pattern: str) -> Iterator[str]:
    """Return the names of a pattern with its first and last number and step, such as `slice%03d.raw 1 40 1`."""
    name, *numbers = pattern.split()
    if not _NUMBERED.fullmatch(name) or not 2 <= len(numbers) <= 4:
        raise ValueError(f"its file names {pattern!r} cannot be understood")
    first, last, step = (int(number) for number in [*numbers, "1"][:3])
    if step == 0 or abs(last - first) // abs(step) >= MAX_FILES:
        raise ValueError(f"its file names {pattern!r} are too many")
    return (name % number for number in range(first, last + (1 if step > 0 else -1), step))


def beside(path: Path, name: str) -> Path:
    """Return the file that a header names.

    Raises:
        InputError: the file is not beside or below the header, does not exist, or is not a regular file.
    """
    folder = path.resolve().parent
    data = folder / name
    if not data.resolve().is_relative_to(folder):
        raise InputError(
            f"{path}: its voxels should be in {name}, which is outside its folder, but only files beside or below "
            "an image are read. Copy both into one folder and name the file in the header."
        )
    if not data.is_file():
        what = "is not a regular file" if data.exists() else "does not exist"
        raise InputError(f"{path}: its voxels should be in {data}, which {what}. Copy both files.")
    return data

"""The cases of a batch, from a folder or a table."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medsegai.errors import InputError, counted
from medsegai.io import PICTURE_ENDINGS, READABLE, parse_table, read_volume
from medsegai.io.dicom_files import is_dicom, read_file
from medsegai.io.slides import SLIDE_ENDINGS
from medsegai.models.card import Channel
from medsegai.volume import Volume

ENDINGS = sorted(set(READABLE) - {".hdr", ".dcm"}, key=len, reverse=True)
"""The endings of images; the voxels of an Analyze pair are in its .img file."""

PICTURE_FILES = sorted({*ENDINGS, *PICTURE_ENDINGS, *SLIDE_ENDINGS, ".dcm"}, key=len, reverse=True)
"""The endings of inputs of models for single images; a DICOM file is a radiograph, not a slice of a series."""

CHANNEL = re.compile(r"(.+)_(\d{4})")
"""The pattern of nnU-Net's raw images: case and channel."""

CASE_NAME = re.compile(r'[^.\s\\/:*?"<>|\x00-\x1f][^\\/:*?"<>|\x00-\x1f]*(?<![.\s])')
"""The pattern of file names that every system accepts and that are not hidden."""


@dataclass(frozen=True)
class Case:
    """One scan.

    Attributes:
        name: the name of the case and its results.
        inputs: one image per channel of the model.
        series: the DICOM series of each input, as for `read_volume`; "" if there is only one.
    """

    name: str
    inputs: tuple[Path, ...]
    series: tuple[str, ...] = ()

    def source(self) -> str:
        """Return a hash of the names of the files and series, which says whether a result is of these without
        naming a patient. Folders do not matter, because datasets are moved.
        """
        names = [*(os.fsencode(path.name) for path in self.inputs), *map(os.fsencode, self.series)]
        return hashlib.sha256(b"\0".join(names)).hexdigest()

    def images(self) -> tuple[Path | Volume, ...]:
        """Return the inputs for the engine: paths, or volumes if a series was named.

        Raises:
            MedSegAIError: a series cannot be read, or an input is a link whose file does not exist.
        """
        for path in self.inputs:
            if is_dangling(path) or _is_pointer(path):
                raise InputError(
                    f"{path} stands for a file that is not here. Get the file first (datalad get, or git lfs "
                    "pull), and run again with --resume."
                )
        series = (*self.series, *[""] * len(self.inputs))
        return tuple(
            read_volume(path, wanted) if wanted else path
            for path, wanted in zip(self.inputs, series, strict=False)
        )


def check_alike(cases: Iterable[Case]) -> None:
    """Compare the names of cases as file systems do that do not tell capitals apart, or spellings of accents.

    Raises:
        InputError: two cases are named alike, so the results of one would replace those of the other.
    """
    found: dict[str, Case] = {}
    for case in cases:
        other = found.setdefault(unicodedata.normalize("NFC", case.name).casefold(), case)
        if other is not case:
            raise InputError(
                f"{other.inputs[0]} and {case.inputs[0]} would be the cases {other.name} and {case.name}, whose "
                "results many file systems would not tell apart. Rename one, or name the cases in a table."
            )


def find_cases(
    folder: Path, channels: int, tell: Callable[[str], None] = lambda words: None
) -> list[Case]:
    """Find the cases in a folder: image files, or folders that hold one DICOM series each, at any depth.

    Images of several channels must be named as in nnU-Net, case_0000.nii.gz, case_0001.nii.gz and so on; images of
    one channel may be.

    Args:
        folder: the folder to search.
        channels: the number of images that the model takes for each case.
        tell: the function that receives messages about omitted files.

    Raises:
        InputError: the folder does not hold a case, a channel is missing, or two files have the name of one image.
    """
    _check_folder(folder, "scans")
    images = _images_in(folder)
    cases = [_of_channels(name, images, channels) for name in dict.fromkeys(n for n, _ in images)]
    if channels == 1:
        cases += _of_series(folder, {case.name for case in cases}, tell)
    below = _images_below(folder)
    if not cases:
        raise InputError(
            f"{folder} does not hold a scan, which is an image ({', '.join(ENDINGS)}) or a "
            "folder with a DICOM series. " + below
        )
    if below:
        tell(below)
    return cases


def _check_folder(folder: Path, content: str) -> None:
    if not folder.is_dir():
        raise InputError(
            f"{folder} is not a folder. Name the folder that holds the {content}, or a table of cases."
        )


def _images_in(folder: Path) -> dict[tuple[str, int], Path]:
    """The images in a folder, not below it, by case and number of the channel."""
    images: dict[tuple[str, int], Path] = {}
    for path in sorted(folder.iterdir()):
        name = _image_name(path)
        if name is not None:
            name = _unicode(name)
            numbered = CHANNEL.fullmatch(name)
            key = (numbered[1], int(numbered[2])) if numbered else (name, 0)
            if key in images:
                raise InputError(
                    f"{images[key].name} and {path.name} in {folder} have the same name. Rename one."
                )
            images[key] = path
    return images


def find_pictures(folder: Path) -> list[Case]:
    """Find the pictures, radiographs and slides in a folder; each is a case with the name of its file.

    Args:
        folder: the folder to search, without its subfolders.

    Raises:
        InputError: the folder does not hold any, or two names differ only in the ending.
    """
    _check_folder(folder, "pictures")
    found = _pictures_in(folder)
    if not found:
        raise InputError(f"{folder} does not hold a picture ({', '.join(PICTURE_FILES)}).")
    return [Case(name, (path,)) for name, path in found.items()]


def _pictures_in(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    named = ((_image_name(path, PICTURE_FILES), path) for path in sorted(folder.iterdir()))
    for name, path in named:
        if name is None:
            continue
        first = found.setdefault(_unicode(name), path)
        if first != path:
            raise InputError(
                f"{first.name} and {path.name} in {folder} have the same name. Rename one."
            )
    return found


def _images_below(folder: Path) -> str:
    """Return a hint about images in subfolders, which may be scans or their labels; "" if there are none."""
    below = (path for path in sorted(folder.rglob("*")) if path.parent != folder)
    images = [path for path in below if _image_name(path) is not None]
    if not images:
        return ""
    return (
        f"Its subfolders hold {counted(len(images), 'image', 'images')}, such as {images[0].relative_to(folder)}, "
        "which may be labels or results. Name the folder that holds the scans, or write a table of cases."
    )


def _unicode(name: str) -> str:
    """Return a name that tables and reports can hold: bytes that are not UTF-8 are written as numbers."""
    return re.sub(r"[\udc80-\udcff]", lambda byte: f"x{ord(byte[0]) - 0xDC00:02X}", name)


def _image_name(path: Path, endings: Sequence[str] = ENDINGS) -> str | None:
    """Return the name of an image file without its ending; None for other files, including segmentations.

    A pipe or a dangling link with the name of an image counts as an image, so that its case fails with the reason
    and is not silently omitted.
    """
    name = path.name.lower()
    if name.startswith(".") or name.endswith(".seg.nrrd") or path.is_dir():
        return None
    return next((path.name[: -len(end)] for end in endings if name.endswith(end)), None)


def is_dangling(path: Path) -> bool:
    """Whether a path is a link whose file does not exist."""
    return path.is_symlink() and not path.exists()


POINTERS = (b"/annex/objects/", b"version https://git-lfs.")
"""How files begin that stand for the content of others: of an unlocked git-annex, and of Git LFS."""


def _is_pointer(path: Path) -> bool:
    """Whether a file only names its content, which is elsewhere."""
    if not path.is_file():
        return False
    with contextlib.suppress(OSError), path.open("rb") as file:
        return file.read(max(map(len, POINTERS))).startswith(POINTERS)
    return False


def _of_channels(name: str, images: Mapping[tuple[str, int], Path], channels: int) -> Case:
    found = {channel: path for (case, channel), path in images.items() if case == name}
    if sorted(found) != list(range(channels)):
        there = ", ".join(path.name for path in found.values())
        raise InputError(
            f"Case {name} must have {channels} images, {name}_0000 to "
            f"{name}_{channels - 1:04}, but the folder only holds {there}. Add the others."
        )
    return Case(name, tuple(found[channel] for channel in range(channels)))


def _of_series(folder: Path, taken: set[str], tell: Callable[[str], None]) -> Iterator[Case]:
    for inner in sorted(path for path in (folder, *folder.rglob("*")) if path.is_dir()):
        if not _has_slices(inner, tell):
            continue
        name = "_".join(inner.relative_to(folder).parts) or folder.resolve().name
        name = _unicode(name)
        if name in taken:
            raise InputError(f"{inner} and an image in {folder} have the same name. Rename one.")
        yield Case(name, (inner,))


def _has_slices(folder: Path, tell: Callable[[str], None]) -> bool:
    """Whether a folder holds slices, even damaged ones, because faults of slices are reported for their case.

    Other files may be beside them, such as notes, reports or a DICOMDIR.
    """
    others = 0
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or not path.is_file() or _image_name(path) is not None:
            continue
        try:
            found = read_file(path) if is_dicom(path) else None
        except OSError:
            return True
        if found is not None and (found.slices or found.problem is not None):
            return True
        others += found is not None and bool(found.uid)
    if others:
        _tell_others(folder, others, tell)
    return False


def _tell_others(folder: Path, others: int, tell: Callable[[str], None]) -> None:
    files = f"{others} DICOM files that are" if others > 1 else "1 DICOM file that is"
    tell(
        f"{folder} was left out, because it holds {files} not a scan but, for example, a "
        "segmentation or a report."
    )


def read_cases(table: bytes, where: str, folder: Path, channels: Sequence[Channel]) -> list[Case]:
    """Read the cases of a table: CSV in UTF-8, separated by commas, semicolons or tabs, with a line of headings.

    Columns are `case`; `image`, or, for a model with several channels, `image_0000`, `image_0001` and so on or the
    names of the channels; and, if a folder holds several DICOM series, `series`, or `series_0000` and so on. Other
    columns are ignored.

    Args:
        table: the content of the table.
        where: the name of the table in messages.
        folder: the folder from which relative paths start.
        channels: the channels of the model; the last ones may be omitted if the model does not require them.

    Raises:
        InputError: the content is not such a table, or a line does not name a case, repeats a case, or names a
            missing image.
    """
    found = parse_table(table, where)
    columns = found.headings
    images = [_column(columns, "image", number, channels) for number in range(len(channels))]
    _check_columns(where, columns, images, channels)
    series = [_column(columns, "series", number, channels) for number in range(len(channels))]
    wanted = list(zip(images, series, strict=True))
    cases: dict[str, Case] = {}
    for number, line in found.rows.items():
        place = f"{where}, line {number}"
        case = _of_line(place, line, folder, wanted)
        if len(case.inputs) < sum(channel.required for channel in channels):
            raise InputError(
                f"{place}: case {case.name} lacks an image, because the model takes "
                f"{', '.join(channel.name for channel in channels)}."
            )
        if cases.setdefault(case.name.casefold(), case) is not case:
            raise InputError(
                f"{place}: the case {case.name} is listed twice. Give each case its own name."
            )
    if not cases:
        raise InputError(
            f"{where} does not list any case. Write a line for each, below the headings."
        )
    return list(cases.values())


def _check_columns(
    where: str,
    columns: Sequence[str],
    images: Sequence[str],
    channels: Sequence[Channel],
) -> None:
    missing = [] if "case" in columns else ["case"]
    missing += [
        "image" if len(channels) == 1 else f"image_{number:04} or {channel.name}"
        for number, channel in enumerate(channels)
        if channel.required and not images[number]
    ]
    if missing:
        there = f"Its columns are {', '.join(columns)}" if columns else "It is empty"
        raise InputError(f"{where} does not have the column {', '.join(missing)}. {there}.")


def _column(columns: Sequence[str], kind: str, number: int, channels: Sequence[Channel]) -> str:
    """Return the heading of a channel's images or series; "" if there is none."""
    names = [f"{kind}_{number:04}"]
    names += [kind] if len(channels) == 1 else []
    names += [channels[number].name.casefold()] if kind == "image" else []
    return next((name for name in names if name in columns), "")


def _of_line(
    where: str, line: Mapping[str, str], folder: Path, columns: Sequence[tuple[str, str]]
) -> Case:
    name = line.get("case", "")
    if not CASE_NAME.fullmatch(name):
        raise InputError(f"{where}: a file cannot be named {name!r}. Give the case another name.")
    named = [(line.get(image, ""), line.get(series, "")) for image, series in columns]
    while named and not named[-1][0]:
        named.pop()
    inputs = tuple(folder / image for image, _series in named)
    for (image, _series), path in zip(named, inputs, strict=True):
        if not image or not path.exists():
            problem = (
                f"{path} does not exist" if image else "an image is missing before another one"
            )
            raise InputError(f"{where}, case {name}: {problem}. Correct the table.")
    return Case(name, inputs, tuple(series for _image, series in named))

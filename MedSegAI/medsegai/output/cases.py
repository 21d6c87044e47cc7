"""Which cases there are: those of a folder, or those that a table names."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medsegai.errors import InputError
from medsegai.io import PICTURE_ENDINGS, READABLE, parse_table, read_volume
from medsegai.io.dicom_files import is_dicom, read_file
from medsegai.io.slides import SLIDE_ENDINGS
from medsegai.models.card import Channel
from medsegai.volume import Volume

ENDINGS = sorted(set(READABLE) - {".hdr", ".dcm"}, key=len, reverse=True)
"""Endings of images; the voxels of an Analyze pair are in its .img."""

PICTURE_FILES = sorted({*ENDINGS, *PICTURE_ENDINGS, *SLIDE_ENDINGS, ".dcm"}, key=len, reverse=True)
"""Endings of what a model of single images takes; a DICOM file is a radiograph, and not a slice of a series."""

CHANNEL = re.compile(r"(.+)_(\d{4})")
"""Names of nnU-Net's raw images: case, channel."""

CASE_NAME = re.compile(r'[^.\s\\/:*?"<>|\x00-\x1f][^\\/:*?"<>|\x00-\x1f]*(?<![.\s])')
"""What a file can be named on every system, and is not hidden."""


@dataclass(frozen=True)
class Case:
    """One scan.

    Attributes:
        name: its results are named after it.
        inputs: one image per channel of the model.
        series: which DICOM series of each input, as `read_volume` takes it; "" where there is one only.
    """

    name: str
    inputs: tuple[Path, ...]
    series: tuple[str, ...] = ()

    def images(self) -> tuple[Path | Volume, ...]:
        """What the engine takes: paths, and the voxels where a series was named.

        Raises:
            MedSegAIError: such a series cannot be read, or an input is a link whose file is not here.
        """
        for path in self.inputs:
            if _is_dangling(path):
                raise InputError(
                    f"{path} is a link to a file that is not here. If git-annex or DataLad keeps this dataset, "
                    "get the file first (datalad get), and run again with --resume."
                )
        series = (*self.series, *[""] * len(self.inputs))
        return tuple(
            read_volume(path, wanted) if wanted else path
            for path, wanted in zip(self.inputs, series, strict=False)
        )


def find_cases(
    folder: Path, channels: int, tell: Callable[[str], None] = lambda words: None
) -> list[Case]:
    """The cases in a folder: image files, or folders that hold one DICOM series each, at any depth.

    Images of several channels are named as nnU-Net's are, case_0000.nii.gz, case_0001.nii.gz and so on; those of
    one channel may be.

    Args:
        folder: where to look.
        channels: how many images the model takes of each case.
        tell: is called with what is left out, in words.

    Raises:
        InputError: there is no case, a channel is missing, or two files are named as one image.
    """
    if not folder.is_dir():
        raise InputError(
            f"{folder} is not a folder. Name the folder that holds the scans, or a table of cases."
        )
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
    cases = [_of_channels(name, images, channels) for name in dict.fromkeys(n for n, _ in images)]
    if channels == 1:
        cases += _of_series(folder, {case.name for case in cases}, tell)
    below = _images_below(folder)
    if not cases:
        raise InputError(
            f"{folder} holds no scan: neither an image ({', '.join(ENDINGS)}) nor a folder with a DICOM series. "
            + below
        )
    if below:
        tell(below)
    return cases


def find_pictures(folder: Path) -> list[Case]:
    """The pictures, radiographs and slides in a folder, each of them a case with the name of its file.

    Args:
        folder: where to look; subfolders are left out.

    Raises:
        InputError: there is none, or two have one name but for the ending.
    """
    if not folder.is_dir():
        raise InputError(
            f"{folder} is not a folder. Name the folder that holds the pictures, or a table of cases."
        )
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        name = _image_name(path, PICTURE_FILES)
        if name is None:
            continue
        name = _unicode(name)
        if name in found:
            raise InputError(
                f"{found[name].name} and {path.name} in {folder} have the same name. Rename one."
            )
        found[name] = path
    if not found:
        raise InputError(f"{folder} holds no picture ({', '.join(PICTURE_FILES)}).")
    return [Case(name, (path,)) for name, path in found.items()]


def _images_below(folder: Path) -> str:
    """What to say of images in subfolders, which may be scans or the labels of these; "" where there are none."""
    below = (path for path in sorted(folder.rglob("*")) if path.parent != folder)
    images = [path for path in below if _image_name(path) is not None]
    if not images:
        return ""
    return (
        f"Images in subfolders are not searched, because they may be labels or results: {len(images)} are there, "
        f"such as {images[0].relative_to(folder)}. Name the folder that they lie in, or write a table of cases."
    )


def _unicode(name: str) -> str:
    """A name that tables and reports can hold: bytes that are not UTF-8 are written as numbers."""
    return re.sub(r"[\udc80-\udcff]", lambda byte: f"x{ord(byte[0]) - 0xDC00:02X}", name)


def _image_name(path: Path, endings: Sequence[str] = ENDINGS) -> str | None:
    """The name of an image file without its ending; None for anything else, segmentations among it.

    A pipe or a link to nothing that has the name of an image counts: its case fails with the reason, and is not
    passed over.
    """
    name = path.name.lower()
    if name.startswith(".") or name.endswith(".seg.nrrd") or path.is_dir():
        return None
    return next((path.name[: -len(end)] for end in endings if name.endswith(end)), None)


def _is_dangling(path: Path) -> bool:
    """Whether it is a link whose file is not here."""
    return path.is_symlink() and not path.exists()


def _of_channels(name: str, images: Mapping[tuple[str, int], Path], channels: int) -> Case:
    found = {channel: path for (case, channel), path in images.items() if case == name}
    if sorted(found) != list(range(channels)):
        there = ", ".join(path.name for path in found.values())
        raise InputError(
            f"Case {name} must have {channels} images, {name}_0000 to {name}_{channels - 1:04}; there is {there}."
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
    """Whether a folder holds slices, sound or not: what is wrong with them is the affair of their case.

    Other files may lie beside them, such as notes, reports or a DICOMDIR.
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
        files = f"{others} DICOM files that are" if others > 1 else "1 DICOM file that is"
        tell(
            f"{folder} was left out: it holds {files} no scan, such as a segmentation or a report."
        )
    return False


def read_cases(table: bytes, where: str, folder: Path, channels: Sequence[Channel]) -> list[Case]:
    """The cases of a table: CSV in UTF-8, separated by commas, semicolons or tabs, with a line of headings.

    Columns are `case`; `image`, or, of a model with several channels, `image_0000`, `image_0001` and so on or the
    names of the channels; and, where a folder holds several DICOM series, `series`, or `series_0000` and so on.
    Other columns are left alone.

    Args:
        table: its content.
        where: what it is called in messages.
        folder: what relative paths start from.
        channels: those of the model; the last may be left out where the model does not require them.

    Raises:
        InputError: it is no such table, or a line names no case, one that is named already, or a missing image.
    """
    found = parse_table(table, where)
    columns = found.headings
    images = [_column(columns, "image", number, channels) for number in range(len(channels))]
    missing = [] if "case" in columns else ["case"]
    missing += [
        "image" if len(channels) == 1 else f"image_{number:04} or {channel.name}"
        for number, channel in enumerate(channels)
        if channel.required and not images[number]
    ]
    if missing:
        there = f"Its columns are {', '.join(columns)}" if columns else "It is empty"
        raise InputError(f"{where} has no column {', '.join(missing)}. {there}.")
    series = [_column(columns, "series", number, channels) for number in range(len(channels))]
    cases: dict[str, Case] = {}
    for number, line in found.rows.items():
        case = _of_line(
            f"{where}, line {number}", line, folder, list(zip(images, series, strict=True))
        )
        if len(case.inputs) < sum(channel.required for channel in channels):
            raise InputError(
                f"{where}, line {number}: case {case.name} lacks an image; the model takes "
                f"{', '.join(channel.name for channel in channels)}."
            )
        if cases.setdefault(case.name.casefold(), case) is not case:
            raise InputError(
                f"{where}, line {number}: there is a case {case.name} already. Give each a name of its own."
            )
    if not cases:
        raise InputError(
            f"{where} does not list any case. Write a line for each, below the headings."
        )
    return list(cases.values())


def _column(columns: Sequence[str], kind: str, number: int, channels: Sequence[Channel]) -> str:
    """The heading of a channel's images or series; "" where there is none."""
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
            problem = f"{path} does not exist" if image else "an image is left out before another"
            raise InputError(f"{where}, case {name}: {problem}. Correct the table.")
    return Case(name, inputs, tuple(series for _image, series in named))

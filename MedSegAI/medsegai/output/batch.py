"""Many cases one after another: what is done is known by its report, so a batch can be stopped and resumed.

A case that cannot be segmented does not keep the others from it. Models stay loaded from case to case.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from medsegai.errors import DeviceError, InputError, OutputError, RequestError
from medsegai.io import PARTIAL, READABLE, read_volume, write_table
from medsegai.io.dicom_files import is_dicom, read_file
from medsegai.models.card import Channel
from medsegai.output.result_files import Outputs, recorded_hashes
from medsegai.progress import Progress
from medsegai.request import SegmentationRequest, SegmentationResult
from medsegai.system.locks import reserved
from medsegai.system.outside_text import table_cell
from medsegai.volume import Volume

Segment = Callable[[SegmentationRequest, Progress], SegmentationResult]

ENDINGS = sorted(set(READABLE) - {".hdr", ".dcm"}, key=len, reverse=True)
"""Endings of images; the voxels of an Analyze pair are in its .img."""

CHANNEL = re.compile(r"(.+)_(\d{4})")
"""Names of nnU-Net's raw images: case, channel."""

CASE_NAME = re.compile(r'[^.\s\\/:*?"<>|\x00-\x1f][^\\/:*?"<>|\x00-\x1f]*(?<![.\s])')
"""What a file can be named on every system, and is not hidden."""

DELIMITERS = ",;\t"
"""Spreadsheets write the second where the comma stands in numbers."""

OF_THE_CASE = (InputError, DeviceError)
"""What is wrong with one case; any other error would meet the next case too, and ends the batch."""

WAITING, RUNNING, DONE, FAILED = "waiting", "running", "done", "failed"
TABLE_NAME, VOLUMES_NAME = "batch.csv", "volumes.csv"


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
            MedSegAIError: such a series cannot be read.
        """
        series = (*self.series, *[""] * len(self.inputs))
        return tuple(
            read_volume(path, wanted) if wanted else path
            for path, wanted in zip(self.inputs, series, strict=False)
        )


@dataclass(frozen=True)
class Entry:
    """A line of the table.

    Attributes:
        remarks: how many structures a person should look at; None unless the case is done.
        message: why a case failed, or what the user should know of it.
    """

    case: str
    state: str = WAITING
    seconds: float | None = None
    remarks: int | None = None
    message: str = ""

    @classmethod
    def done(cls, case: str, report: Mapping[str, Any]) -> Entry:
        """That of a case that is done, from its report."""
        seconds = round(sum(report["seconds"].values()), 1)
        remarks = sum(bool(item["remarks"]) for item in report["structures"])
        return cls(case, DONE, seconds, remarks, " ".join(report["warnings"]))


@dataclass(frozen=True)
class BatchFiles:
    """What is written of each case, into one folder, under the name of the case.

    Attributes:
        folder: where to.
        ending: type of the segmentations, such as `.seg.nrrd`.
        uncertainty, preview: whether there are entropy maps and pictures too.
    """

    folder: Path
    ending: str = ".seg.nrrd"
    uncertainty: bool = False
    preview: bool = False

    def outputs(self, case: str) -> Outputs:
        return Outputs(
            segmentation=self.folder / f"{case}{self.ending}",
            uncertainty=self.folder / f"{case}_uncertainty.nii.gz" if self.uncertainty else None,
            preview=self.folder / f"{case}.png" if self.preview else None,
            report=self.report(case),
        )

    def report(self, case: str) -> Path:
        return self.folder / f"{case}.json"


class Batch:
    """Cases and how far they are. The table is written anew with each change.

    Args:
        cases: what to segment.
        request: how; its inputs are replaced by those of each case.
        files: what to write, and where to. The folder is made if it is missing.
        listener: told of each line of the table that changes.

    Raises:
        OutputError: the folder cannot be made.
    """

    def __init__(
        self,
        cases: Sequence[Case],
        request: SegmentationRequest,
        files: BatchFiles,
        listener: Callable[[Entry], None] = lambda entry: None,
    ) -> None:
        self._cases = {case.name: case for case in cases}
        self._request, self._files, self._listener = request, files, listener
        self.entries = {name: Entry(name) for name in self._cases}
        try:
            files.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"The folder {files.folder} cannot be made: {error.strerror}. Name another one."
            ) from error

    def reserved(self) -> AbstractContextManager[None]:
        """Within its block no other batch writes into this folder.

        Raises:
            OutputError: another batch is at work there.
        """
        return reserved([self._files.folder / TABLE_NAME])

    def check(self, resume: bool, overwrite: bool) -> None:
        """Find what is there already, before anything runs.

        Raises:
            OutputError: results are there, and neither going on nor replacing them was asked for; or a file cannot
                be written.
            RequestError: the results that are there were made with other options or models.
        """
        unfinished = unfinished_hashes(self._files.folder) if resume else set()
        for name, case in self._cases.items():
            if overwrite or not self._files.report(name).is_file():
                ours = overwrite or self._are_leftovers(name, unfinished)
                self._files.outputs(name).check(case.inputs, ours)
            elif resume:
                self._take_up(name, case, unfinished)
            else:
                raise OutputError(
                    f"{self._files.folder} holds a result of {name} already. Keep what is there and do the "
                    "rest (--resume), or do everything again (--overwrite)."
                )

    def _are_leftovers(self, name: str, unfinished: set[str]) -> bool:
        """Whether all files of a case were left by a run that was ended before its report was in place."""
        hashes = set(self._files.outputs(name).hashes().values())
        return bool(hashes) and hashes <= unfinished

    def _take_up(self, name: str, case: Case, unfinished: set[str]) -> None:
        """Compare the files of a case with its report: it is done, done again, or was changed by somebody."""
        entry, options, _ = self._report(name)
        outputs = self._files.outputs(name)
        recorded, there = recorded_hashes(self._files.report(name)), outputs.hashes()
        changed = [part for part, digest in there.items() if recorded.get(part) != digest]
        if not changed and set(outputs.paths()) - {"report"} <= set(there):
            self._check_options(name, options)
            self.entries[name] = entry
        elif all(there[part] in unfinished for part in changed):
            outputs.check(case.inputs, overwrite=True)
        else:
            self._check_options(name, options)
            files = ", ".join(outputs.paths()[part].name for part in changed)
            note = f"{files} was changed after it was written, and is kept as it is."
            self.entries[name] = replace(entry, message=f"{note} {entry.message}".strip())

    def run(self, segment: Segment, progress_of: Callable[[str], Progress]) -> None:
        """Do the cases that are not done.

        Args:
            segment: the engine.
            progress_of: makes the progress of a case.

        Raises:
            Cancelled: the user stopped; what is done stays.
            MedSegAIError: what would go wrong with every case.
        """
        order = self._order()
        _sweep(self._files.folder)
        self._write_table()
        try:
            for name in order:
                self._set(Entry(name, RUNNING))
                try:
                    self._do(self._cases[name], segment, progress_of(name))
                except BaseException:
                    self._set(Entry(name))
                    raise
        finally:
            self._write_volumes()

    def _do(self, case: Case, segment: Segment, progress: Progress) -> None:
        try:
            images = case.images()
            result = segment(replace(self._request, inputs=images), progress)
            self._files.outputs(case.name).write(result, images[0], progress)
        except OF_THE_CASE as error:
            self._set(Entry(case.name, FAILED, message=str(error)))
            return
        self._set(Entry.done(case.name, result.report()))

    def _order(self) -> list[str]:
        """Those that were under way when the batch was ended last, perhaps by them, come last."""
        before = self._states_before()
        left = {name for name in self._cases if before.get(table_cell(name)) == RUNNING}
        waiting = [name for name, entry in self.entries.items() if entry.state != DONE]
        return sorted(waiting, key=lambda name: name in left)

    def _states_before(self) -> dict[str, str]:
        try:
            with (self._files.folder / TABLE_NAME).open(newline="", encoding="utf-8") as file:
                return {row.get("case", ""): row.get("state", "") for row in csv.DictReader(file)}
        except (OSError, UnicodeDecodeError, csv.Error):
            return {}

    def _report(self, name: str) -> tuple[Entry, Mapping[str, Any], list[dict[str, Any]]]:
        """What the report of a case that is done says of it, its options, and its structures."""
        path = self._files.report(name)
        try:
            report = json.loads(path.read_text(encoding="utf-8"))
            options = dict(report["provenance"]["options"])
            return Entry.done(name, report), options, list(report["structures"])
        except (
            OSError,
            ValueError,
            LookupError,
            TypeError,
            AttributeError,
            RecursionError,
        ) as error:
            raise InputError(
                f"{path} is not a report of a segmentation. Delete it, and that case is done again."
            ) from error

    def _check_options(self, name: str, before: Mapping[str, Any]) -> None:
        now = self._request.options()
        other = sorted(key for key in now if before.get(key, now[key]) != now[key])
        if other:
            raise RequestError(
                f"The result of {name} in {self._files.folder} was made with other options "
                f"({', '.join(other)}). Name another folder, or do everything again (--overwrite)."
            )

    def _set(self, entry: Entry) -> None:
        self.entries[entry.case] = entry
        self._write_table()
        self._listener(entry)

    def _write_table(self) -> None:
        names = [item.name for item in fields(Entry)]
        write_table(self._files.folder / TABLE_NAME, names, map(asdict, self.entries.values()))

    def _write_volumes(self) -> None:
        """One table with the structures of all cases that are done."""
        done = [name for name, entry in self.entries.items() if entry.state == DONE]
        rows = [{"case": name, **row} for name in done for row in self._report(name)[2]]
        if rows:
            write_table(self._files.folder / VOLUMES_NAME, list(rows[0]), rows)


def unfinished_hashes(folder: Path) -> set[str]:
    """SHA-256 of files whose report was written, but not moved to its place before its process was ended."""
    reports = (path for path in folder.iterdir() if _is_partial(path) and path.suffix == ".json")
    return {digest for report in reports for digest in recorded_hashes(report).values()}


def _sweep(folder: Path) -> None:
    """Remove what a process that was ended was writing; the folder is reserved, so nobody writes there now."""
    for path in [path for path in folder.iterdir() if _is_partial(path)]:
        with contextlib.suppress(OSError):
            path.unlink()


def _is_partial(path: Path) -> bool:
    return PARTIAL.fullmatch(path.name) is not None and path.is_file() and not path.is_symlink()


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
                    f"{images[key].name} and {path.name} in {folder} have one name. Rename one."
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


def _image_name(path: Path) -> str | None:
    """The name of an image file without its ending; None for anything else, segmentations among it."""
    name = path.name.lower()
    if name.startswith(".") or name.endswith(".seg.nrrd") or not path.is_file():
        return None
    return next((path.name[: -len(end)] for end in ENDINGS if name.endswith(end)), None)


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
            raise InputError(f"{inner} and an image in {folder} have one name. Rename one.")
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
    columns, lines = _lines(table, where)
    images = [_column(columns, "image", number, channels) for number in range(len(channels))]
    missing = [] if "case" in columns else ["case"]
    missing += [
        "image" if len(channels) == 1 else f"image_{number:04} or {channel.name}"
        for number, channel in enumerate(channels)
        if channel.required and not images[number]
    ]
    if missing:
        raise InputError(
            f"{where} has no column {', '.join(missing)}. Its columns are {', '.join(columns)}."
        )
    series = [_column(columns, "series", number, channels) for number in range(len(channels))]
    cases: dict[str, Case] = {}
    for number, line in lines:
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
        raise InputError(f"{where} has no case. Write a line for each, below the headings.")
    return list(cases.values())


def _lines(table: bytes, where: str) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """Headings in lower case, and the lines that are not empty, each with its number in the file."""
    try:
        text = table.decode("utf-8-sig")
        head = text.partition("\n")[0]
        delimiter = max(DELIMITERS, key=head.count)
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        lines = [(reader.line_num, [cell.strip() for cell in line]) for line in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(
            f"{where} is not a table of cases ({error}). Save it as CSV in UTF-8, with the columns case and image."
        ) from error
    lines = [(number, line) for number, line in lines if any(line)]
    if not lines:
        raise InputError(f"{where} is empty. It needs the columns case and image.")
    columns = [name.casefold() for name in lines[0][1]]
    return columns, [(number, dict(zip(columns, line, strict=False))) for number, line in lines[1:]]


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

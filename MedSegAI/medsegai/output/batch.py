"""Segmentation of many cases: finished cases are known by their reports, so a batch can be stopped and resumed.

A case that cannot be segmented does not stop the others. Models stay loaded between cases.
"""

from __future__ import annotations

import contextlib
import csv
import functools
import json
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from medsegai.errors import DeviceError, InputError, OutputError, RequestError
from medsegai.io import PARTIAL, write_table
from medsegai.io.atomic import make_folder
from medsegai.models.card import ModelCard, file_sha256
from medsegai.models.catalogue import find_card
from medsegai.output.cases import Case, check_alike
from medsegai.output.layouts import BatchFiles
from medsegai.output.object_files import write_tables_together
from medsegai.output.result_files import recorded_hashes
from medsegai.output.scan_state import ScanState, was_replaced
from medsegai.progress import Progress
from medsegai.request import SegmentationRequest, SegmentationResult
from medsegai.system.locks import reserved
from medsegai.system.outside_text import table_cell
from medsegai.worker.batch_events import OBJECTS_NAME, TABLE_NAME, VOLUMES_NAME, CaseState, Entry

Segment = Callable[[SegmentationRequest, Progress], SegmentationResult]

OF_THE_CASE = (InputError, DeviceError)
"""Errors of a single case; any other error would also meet the next case, and ends the batch."""


@dataclass(frozen=True, repr=False)
class CaseJob:
    """One case to segment. It can be sent to another process; its `repr` does not name a patient.

    Attributes:
        case: the case.
        request: the request, whose inputs are replaced by those of the case.
        files: the files to write, and their places.
        before: the SHA-256 of the report that existed before the batch began; "" if there was none.
        remark: why a case that was finished is done again; "" if there is no such reason.
    """

    case: Case
    request: SegmentationRequest
    files: BatchFiles
    before: str = ""
    remark: str = ""

    def do(self, segment: Segment, progress: Progress) -> Entry:
        """Segment the case and write its files; return its line of the table.

        Raises:
            Cancelled: the user stopped the case; nothing was written.
            MedSegAIError: an error that every case would meet.
        """
        name = self.case.name
        try:
            images = self.case.images()
            made = {SOURCE: self.case.source(), STATE: _state_of(self.case)}
            result = segment(replace(self.request, inputs=images), progress)
            result = replace(result, provenance={**result.provenance, **made})
            self.files.write(name, result, images[0], progress)
        except OF_THE_CASE as error:
            return Entry(name, CaseState.FAILED, message=str(error))
        return Entry.done(name, result.report()).remarked(self.remark)

    def ended(self) -> Entry | None:
        """Return the line of the table if the case was done since the batch began and all of its files exist."""
        name, path = self.case.name, self.files.report(self.case.name)
        if not path.is_file() or file_sha256(path) == self.before:
            return None
        if recorded_hashes(path) != self.files.outputs(name).hashes():
            return None
        return read_report(path, name).entry.remarked(self.remark)

    def absolute(self) -> CaseJob:
        """Return the same job with absolute paths, which are valid in any working folder."""
        inputs = tuple(path.absolute() for path in self.case.inputs)
        files = replace(self.files, folder=self.files.folder.absolute())
        return replace(self, case=replace(self.case, inputs=inputs), files=files)


SOURCE, STATE = "files_sha256", "scan"
"""Where the provenance of a result has `Case.source` and the `ScanState`."""

REPLACED = "The scan was replaced after its last result, so it was segmented again."


def _state_of(case: Case) -> dict[str, str] | None:
    """Return the state of the files of a case; None if they cannot be read, which the reader will report."""
    try:
        return ScanState.of(case.inputs).to_dict()
    except OSError:
        return None


Work = Callable[[Sequence[CaseJob]], Generator[Entry, None, None]]
"""Does jobs, and yields a line of the table for each job that begins and for each that ends."""


def one_after_another(segment: Segment, progress_of: Callable[[str], Progress]) -> Work:
    """Do the jobs in this process, in order.

    Args:
        segment: the function that segments.
        progress_of: the function that makes the progress of a case.
    """

    def work(jobs: Sequence[CaseJob]) -> Generator[Entry, None, None]:
        for job in jobs:
            yield Entry(job.case.name, CaseState.RUNNING)
            yield job.do(segment, progress_of(job.case.name))

    return work


class Pace:
    """Calls an action, but skips it if it would take more than a tenth of the time.

    Otherwise, writing a table of ten thousand lines after each change would take longer than the cases.

    Args:
        clock: the function that returns the time in seconds.
    """

    SHARE, MOST_SECONDS = 0.1, 1.0

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._at, self._credit = clock, clock(), self.MOST_SECONDS

    def __call__(self, action: Callable[[], None]) -> None:
        begun = self._clock()
        self._credit = min(self._credit + self.SHARE * (begun - self._at), self.MOST_SECONDS)
        self._at = begun
        if self._credit > 0:
            action()
            self._at = self._clock()
            self._credit -= self._at - begun


class Batch:
    """Cases and their states. The table is written after each change, and always at the end.

    Args:
        cases: the cases to segment.
        request: the request, whose inputs are replaced by those of each case.
        files: the files to write, and their places. The folder is made if it is missing.
        listener: the function that receives each changed line of the table.

    Raises:
        InputError: two cases are named alike.
        OutputError: the folder cannot be made.
    """

    def __init__(
        self,
        cases: Sequence[Case],
        request: SegmentationRequest,
        files: BatchFiles,
        listener: Callable[[Entry], None] = lambda entry: None,
    ) -> None:
        check_alike(cases)
        self._cases = {case.name: case for case in cases}
        self._request, self._files, self._listener = request, files, listener
        self.entries = {name: Entry(name) for name in self._cases}
        self._remarks: dict[str, str] = {}
        self._pace = Pace()
        make_folder(files.folder)

    def reserved(self) -> AbstractContextManager[None]:
        """Prevent other batches from writing into this folder within the block.

        Raises:
            OutputError: another batch is writing into the folder.
        """
        return reserved([self._files.folder / TABLE_NAME])

    def check(self, resume: bool, overwrite: bool) -> None:
        """Check existing results before anything runs.

        Raises:
            OutputError: results exist, and neither `resume` nor `overwrite` is set; or a file cannot be written.
            RequestError: the existing results were made with other options or models.
        """
        self._files.check(self._cases)
        unfinished = self._unfinished() if resume else set()
        for name, case in self._cases.items():
            self._files.make_folders(name)
            if overwrite or not self._files.report(name).is_file():
                ours = overwrite or self._are_leftovers(name, unfinished)
                self._files.outputs(name).check(case.inputs, ours)
            elif resume:
                self._take_up(name, case, unfinished)
            else:
                raise self._exists(name)

    def _exists(self, name: str) -> OutputError:
        return OutputError(
            f"{self._files.folder} already holds a result of {name}. Keep existing results and do the "
            "other cases (--resume), or do all cases again (--overwrite)."
        )

    def _unfinished(self) -> set[str]:
        folders = (path for path in self._files.folders(self._cases) if path.is_dir())
        return {digest for folder in folders for digest in unfinished_hashes(folder)}

    def _are_leftovers(self, name: str, unfinished: set[str]) -> bool:
        """Whether all files of a case come from a run that ended before its report was in place."""
        hashes = set(self._files.outputs(name).hashes().values())
        return bool(hashes) and hashes <= unfinished

    def _take_up(self, name: str, case: Case, unfinished: set[str]) -> None:
        """Compare the files of a case with its report: the case is done, must be done again, or was changed."""
        before, outputs = read_report(self._files.report(name), name), self._files.outputs(name)
        replaced = was_replaced(case.inputs, before.made.get(STATE))
        recorded, there = recorded_hashes(self._files.report(name)), outputs.hashes()
        changed = [part for part, digest in there.items() if recorded.get(part) != digest]
        if not changed and set(outputs.paths()) - {"report"} <= set(there):
            self._check_same(case, before.made)
            if replaced:
                outputs.check(case.inputs, overwrite=True)
                self._remarks[name] = REPLACED
            else:
                self.entries[name] = before.entry
        elif all(there[part] in unfinished for part in changed):
            outputs.check(case.inputs, overwrite=True)
        else:
            self._check_same(case, before.made)
            files = ", ".join(outputs.paths()[part].name for part in changed)
            note = f"{files} was changed after it was written, so it is kept as it is."
            note += " Its scan was replaced since." * replaced
            self.entries[name] = before.entry.remarked(note)

    def run(self, work: Work) -> None:
        """Segment the cases that are not done.

        Args:
            work: the function that does them, such as `one_after_another`.

        Raises:
            Cancelled: the user stopped the batch; finished cases are kept.
            MedSegAIError: an error that every case would meet.
        """
        jobs = [self._job(name) for name in self._order()]
        self._sweep()
        self._files.begin(any(it.state == CaseState.DONE for it in self.entries.values()))
        self._write_table()
        try:
            with contextlib.closing(work(jobs)) as lines:
                for entry in lines:
                    self._set(entry)
        finally:
            self._leave()

    def _leave(self) -> None:
        """Write what is known at the end; cases that were not finished count as not begun."""
        self._sweep()
        running = (name for name, it in self.entries.items() if it.state == CaseState.RUNNING)
        for name in list(running):
            self._set(Entry(name))
        self._write_table()
        self._write_volumes()
        self._write_objects()
        self._files.remove_empty_folders(self._cases)

    def _sweep(self) -> None:
        for folder in self._files.folders(self._cases):
            _sweep(folder)

    def _job(self, name: str) -> CaseJob:
        report = self._files.report(name)
        before = file_sha256(report) if report.is_file() else ""
        remark = self._remarks.get(name, "")
        return CaseJob(self._cases[name], self._request, self._files, before, remark)

    def _order(self) -> list[str]:
        """Return the order of cases: those that were running when the batch last ended come last."""
        before = self._states_before()
        left = {name for name in self._cases if before.get(table_cell(name)) == CaseState.RUNNING}
        waiting = [name for name, entry in self.entries.items() if entry.state != CaseState.DONE]
        return sorted(waiting, key=lambda name: name in left)

    def _states_before(self) -> dict[str, str]:
        try:
            with (self._files.folder / TABLE_NAME).open(newline="", encoding="utf-8") as file:
                return {row.get("case", ""): row.get("state", "") for row in csv.DictReader(file)}
        except (OSError, UnicodeDecodeError, csv.Error):
            return {}

    def _check_same(self, case: Case, before: Mapping[str, Any]) -> None:
        """Raise RequestError if a result was made from other files, with other options or with another model."""
        now = self._request.options()
        options = dict(before["options"])
        if other := sorted(key for key in now if options.get(key, now[key]) != now[key]):
            how = f"with other options ({', '.join(other)})"
        elif before.get(SOURCE, case.source()) != case.source():
            how = f"from other files than {', '.join(path.name for path in case.inputs)}"
        elif models := [card.id for card in self._cards if not _is_recorded(card, before)]:
            how = f"with another version of {', '.join(models)}"
        else:
            return
        raise RequestError(
            f"The result of {case.name} in {self._files.folder} was made {how}. Name another folder, or do all "
            "cases again (--overwrite)."
        )

    @functools.cached_property
    def _cards(self) -> list[ModelCard]:
        return [find_card(name) for name in self._request.models]

    def _set(self, entry: Entry) -> None:
        self.entries[entry.case] = entry
        self._pace(self._write_table)
        self._listener(entry)

    def _write_table(self) -> None:
        names = [item.name for item in fields(Entry)]
        write_table(self._files.folder / TABLE_NAME, names, map(asdict, self.entries.values()))

    def _write_volumes(self) -> None:
        """Write a table with the structures of all finished cases."""
        rows = [
            {"case": name, **row}
            for name in self._done()
            for row in read_report(self._files.report(name), name).structures
        ]
        if rows:
            write_table(self._files.folder / VOLUMES_NAME, list(rows[0]), rows)

    def _write_objects(self) -> None:
        """Write a table with the objects of all finished cases, if the model separates objects."""
        if not self._files.objects:
            return
        tables = {name: self._files.outputs(name).object_table for name in self._done()}
        found = {name: table for name, table in tables.items() if table is not None}
        write_tables_together(self._files.folder / OBJECTS_NAME, found)

    def _done(self) -> list[str]:
        return [name for name, entry in self.entries.items() if entry.state == CaseState.DONE]


@dataclass(frozen=True)
class Finished:
    """The report of a finished case: its line of the table, how it was made, and its structures."""

    entry: Entry
    made: Mapping[str, Any]
    structures: list[dict[str, Any]]


def read_report(path: Path, case: str) -> Finished:
    """Read the report of a finished case.

    Raises:
        InputError: the file is not the report of a segmentation.
    """
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        made = dict(report["provenance"])
        made["options"] = dict(made["options"])
        return Finished(Entry.done(case, report), made, list(report["structures"]))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(
            f"{path} is not a report of a segmentation. Delete it, so that the case is done again."
        ) from error


def _is_recorded(card: ModelCard, made: Mapping[str, Any]) -> bool:
    """Whether a result was made with this model, or does not say with which."""
    try:
        records = {item["id"]: item for item in made["models"]}
        record = records.get(card.id, {})
        if record.get("version", card.version) != card.version:
            return False
        hashes = dict(record.get("weights_sha256", {}))
    except (LookupError, TypeError, ValueError, AttributeError):
        return True
    members = [member for member in card.members if member.name in hashes]
    return all(card.weights_sha256(member) == hashes[member.name] for member in members)


def unfinished_hashes(folder: Path) -> set[str]:
    """Return the SHA-256 of files whose report was written, but not moved before its process ended."""
    reports = (path for path in folder.iterdir() if _is_partial(path) and path.suffix == ".json")
    return {digest for report in reports for digest in recorded_hashes(report).values()}


def _sweep(folder: Path) -> None:
    """Remove partial files of a process that has ended; the folder is reserved, so no process writes there now."""
    for path in [path for path in folder.iterdir() if _is_partial(path)]:
        with contextlib.suppress(OSError):
            path.unlink()


def _is_partial(path: Path) -> bool:
    return PARTIAL.fullmatch(path.name) is not None and path.is_file() and not path.is_symlink()

"""`medsegai batch`: segment every scan in a folder or table, and record the state of each."""

from __future__ import annotations

import argparse
import functools
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medsegai.commands.batch_workers import Rate, add_worker_options, has_workers, work_of
from medsegai.commands.console import ProgressBar, stoppable
from medsegai.commands.parsing import add_output, add_quiet, add_switch
from medsegai.commands.segment import (
    add_request_options,
    check_request,
    request_from_arguments,
)
from medsegai.errors import InputError, RequestError
from medsegai.models.card import ModelCard
from medsegai.models.catalogue import find_card
from medsegai.progress import Progress, ProgressEvent, duration
from medsegai.request import NOT_FOR_DIAGNOSIS, SegmentationRequest
from medsegai.system.outside_text import one_line
from medsegai.system.regular_files import read_regular
from medsegai.worker.batch_events import (
    EVENTS_FLAG,
    OVERWRITE_FLAG,
    RESUME_FLAG,
    CaseState,
    Entry,
    case_event,
    note_event,
    progress_event,
)

if TYPE_CHECKING:
    from medsegai.commands.console import Subparsers
    from medsegai.output.batch import Batch
    from medsegai.output.cases import Case
    from medsegai.output.layouts import BatchFiles

FORMATS = (".seg.nrrd", ".nii.gz", ".nrrd", ".mha")
LAYOUTS = ("plain", "bids", "freesurfer")
SOME_FAILED = 1

MOST_OF_A_TABLE = 64 << 20
"""The largest size of a table in bytes; a table of a million cases is smaller."""


def add_parser(subparsers: Subparsers) -> None:
    """Add `medsegai batch` to the command line."""
    parser = subparsers.add_parser(
        "batch",
        help="segment every scan in a folder or table",
        description="Segment every scan in a folder, the T1w images of a BIDS dataset, or the scans in a "
        "table. A folder may hold image files (CASE_0000, CASE_0001 … if the model takes "
        "several channels) and folders of a DICOM series, at any depth. A table has the "
        "columns case, image (or image_0000, image_0001 … or the names of the channels if "
        "there are several) and, for a folder of several DICOM series, series: the number of "
        "the series or its SeriesInstanceUID. For each case, OUT gets the segmentation and a "
        "report; batch.csv has the state of each case, and volumes.csv the structures of "
        "all. A model that separates objects, such as nuclei, adds a map and a table of them for each case, and "
        "objects.csv with those of all. A case that fails does not stop the others.",
    )
    _add_sources(parser)
    _add_outputs(parser)
    add_worker_options(parser)
    add_request_options(parser)
    parser.set_defaults(run=run)


def _add_sources(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source",
        metavar="FOLDER|TABLE",
        type=Path,
        help="folder that holds the scans, or table (CSV) of cases; - reads the table from standard input",
    )
    parser.add_argument(
        "--bids-filter",
        action="append",
        nargs="+",
        metavar="KEY=VALUE",
        help="images to take from a BIDS dataset, such as suffix=T2w session=01 run=1 (default: "
        "suffix=T1w); give it once for each channel of the model, in its order",
    )


def _add_outputs(parser: argparse.ArgumentParser) -> None:
    """Add the options for what is written for each case, where, and what is printed meanwhile."""
    group = parser.add_argument_group("outputs")
    add_output(group, "folder for the results", metavar="OUT")
    group.add_argument(
        "--format",
        choices=FORMATS,
        help="type of the segmentations: named segments for 3D Slicer, or labelmaps (default: "
        ".seg.nrrd); only for the plain layout",
    )
    group.add_argument(
        "--layout",
        choices=LAYOUTS,
        default=LAYOUTS[0],
        help="files named after their cases; a BIDS derivative; or folders of subjects as in "
        "FreeSurfer (default: %(default)s)",
    )
    _add_additions(group)
    _add_conduct(group)


def _add_additions(group: argparse._ArgumentGroup) -> None:
    """Add the options for what is written of each case besides its segmentation."""
    add_switch(group, "--uncertainty", "measure uncertainty and write entropy maps")
    add_switch(
        group,
        "--save-probabilities",
        "write the probability of every structure, as one 4D image for each case",
    )
    group.add_argument("--preview", action="store_true", help="write a picture for each case")
    add_switch(
        group,
        "--pages",
        "write an HTML report for each case, and cohort.html for all cases: which to check "
        "first, how volumes are distributed, which scans were left out",
    )


def _add_conduct(group: argparse._ArgumentGroup) -> None:
    """Add the options for results that exist, and for what is printed meanwhile."""
    group.add_argument(
        RESUME_FLAG, action="store_true", help="keep existing results, and segment the other cases"
    )
    group.add_argument(OVERWRITE_FLAG, action="store_true", help="segment all cases again")
    add_quiet(group, "print nothing but errors")
    group.add_argument(
        EVENTS_FLAG, action="store_true", help="print events as JSON, one object per line"
    )


def run(arguments: argparse.Namespace) -> int:
    """Carry out the command and return its exit code."""
    from medsegai.output.batch import Batch

    models = getattr(arguments, "models", None) or SegmentationRequest.models
    left_out: list[str] = []
    tell_of = functools.partial(_warn_and_keep, left_out)
    cases = _cases(arguments.source, find_card(models[0]), arguments.bids_filter or (), tell_of)
    request = request_from_arguments(
        arguments,
        cases[0].inputs,
        uncertainty=arguments.uncertainty,
        probabilities=arguments.save_probabilities,
    )
    check_request(request)
    files = _files(arguments, [find_card(name) for name in request.models], cases)
    tell: Callable[[dict[str, Any]], None] = _print_json if arguments.events else _ignore
    console = _Console(tell, arguments.quiet or arguments.events)
    batch = Batch(cases, request, files, console.entry_changed)
    with batch.reserved():
        batch.check(arguments.resume, arguments.overwrite)
        try:
            _run(batch, console, arguments)
        finally:
            _write_cohort(batch, files, left_out)
    failed = [entry for entry in batch.entries.values() if entry.state == CaseState.FAILED]
    if not console.quiet:
        print(
            f"{len(cases) - len(failed)} of {len(cases)} cases: {files.folder}. {NOT_FOR_DIAGNOSIS}"
        )
    return SOME_FAILED if failed else 0


OWN_FORMATS = (
    "--format is only for the plain layout, because --layout {layout} has "
    "its own formats. Leave out one of them."
)


def _files(
    arguments: argparse.Namespace, cards: Sequence[ModelCard], cases: Sequence[Case]
) -> BatchFiles:
    """Return what is written for each case, in the chosen layout. Raises RequestError."""
    from medsegai.output.bids_files import dataset_of_all
    from medsegai.output.layouts import BatchFiles, BidsFiles, FreeSurferFiles

    given = {name: getattr(arguments, name) for name in ("uncertainty", "preview", "pages")}
    given["probabilities"] = arguments.save_probabilities
    given["objects"] = any(card.object_labels for card in cards)
    folder: Path = arguments.output
    if arguments.layout == "plain":
        return BatchFiles(folder, arguments.format or FORMATS[0], **given)
    if arguments.format is not None:
        raise RequestError(OWN_FORMATS.format(layout=arguments.layout))
    if arguments.layout == "bids":
        made_by = tuple(f"{card.id} {card.version}" for card in cards)
        source = dataset_of_all(path for case in cases for path in case.inputs)
        return BidsFiles(folder, **given, source=source, models=made_by)
    labels = tuple({label.name: label for card in cards for label in card.labels}.values())
    return FreeSurferFiles(folder, **given, labels=labels)


def _run(batch: Batch, console: _Console, arguments: argparse.Namespace) -> None:
    console.begin(batch, has_workers(arguments))
    progress = Progress(console)
    try:
        with stoppable(progress), work_of(arguments, progress, console.tell) as work:
            batch.run(work)
    finally:
        console.clear()


def _write_cohort(batch: Batch, files: BatchFiles, left_out: Sequence[str]) -> None:
    """Write the table with a row for each case and, with the pages of cases, the page over all."""
    from medsegai.output.cohort import read_cohort, write_cohort_table
    from medsegai.output.cohort_page import write_cohort_page

    cohort = read_cohort(batch.entries.values(), files, left_out)
    write_cohort_table(files.cohort_table, cohort)
    if files.pages:
        write_cohort_page(files.cohort_page, cohort)


def _cases(
    source: Path,
    card: ModelCard,
    filters: Sequence[Sequence[str]],
    tell: Callable[[str], None],
) -> list[Case]:
    from medsegai.output.bids_dataset import Filter, find_bids_cases, is_dataset
    from medsegai.output.cases import find_cases, find_pictures, read_cases

    channels = card.channels[:1] if card.takes_one_picture else card.channels
    if source.is_dir() and (filters or is_dataset(source)):
        wanted = [Filter.parse(words) for words in filters]
        return find_bids_cases(source, wanted, [item.name for item in card.channels], tell)
    if filters:
        raise RequestError("--bids-filter is only for a folder that holds a BIDS dataset.")
    if str(source) == "-":
        return read_cases(sys.stdin.buffer.read(), "The table", Path(), channels)
    if not source.is_file() and card.takes_one_picture:
        return find_pictures(source)
    if not source.is_file():
        return find_cases(source, len(card.channels), tell)
    try:
        table = read_regular(source, MOST_OF_A_TABLE)
    except OSError as error:
        raise InputError(f"{source} cannot be opened: {error.strerror}.") from error
    return read_cases(table, str(source), source.parent, channels)


def _warn(words: str) -> None:
    print(f"medsegai: warning: {one_line(words)}", file=sys.stderr)


def _warn_and_keep(kept: list[str], words: str) -> None:
    _warn(words)
    kept.append(words)


class _Console:
    """Shows a batch: a progress bar and a line for each case, or events for another program."""

    def __init__(self, tell: Callable[[dict[str, Any]], None], quiet: bool) -> None:
        self.quiet = quiet
        self._tell = tell
        self._bar = ProgressBar(quiet=quiet)
        self._case = ""
        self._rate: Rate | None = None

    def begin(self, batch: Batch, together: bool) -> None:
        """Show the state of the cases. If several cases run at once, only their common progress is shown."""
        for entry in batch.entries.values():
            self._tell(case_event(entry))
        if together:
            done = sum(entry.state == CaseState.DONE for entry in batch.entries.values())
            self._rate = Rate(len(batch.entries), done)

    def entry_changed(self, entry: Entry) -> None:
        self._case = entry.case
        self._tell(case_event(entry))
        if entry.state.is_over:
            self._bar.clear()
            took = "" if entry.seconds is None else f" in {duration(entry.seconds)}"
            line = one_line(f"{entry.case}: {entry.state}{took}. {entry.message}".rstrip())
            if entry.state == CaseState.FAILED:
                print(f"medsegai: {line}", file=sys.stderr)
            elif not self.quiet:
                print(line, flush=True)
            if self._rate is not None:
                self._case = ""
                self(self._rate.one_more())

    def tell(self, words: str) -> None:
        """Show a message to the user while the batch runs."""
        self._bar.clear()
        self._tell(note_event(words))
        _warn(words)

    def __call__(self, event: ProgressEvent) -> None:
        self._bar(event)
        self._tell(progress_event(self._case, event))

    def clear(self) -> None:
        self._bar.clear()


def _print_json(event: dict[str, Any]) -> None:
    print(json.dumps(event), flush=True)


def _ignore(event: dict[str, Any]) -> None:
    pass

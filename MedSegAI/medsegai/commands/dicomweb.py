"""`medsegai dicomweb`: find, download and segment series of an archive, and store the results there."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from medsegai.commands.console import print_written, shown_progress, table
from medsegai.commands.parsing import add_output, add_quiet, add_switch, help_alone
from medsegai.commands.segment import (
    add_request_options,
    check_request,
    print_summary,
    request_from_arguments,
    segment_to_files,
)
from medsegai.errors import InputError, OutputExistsError, RequestError, counted
from medsegai.progress import Progress
from medsegai.system.outside_text import one_line

if TYPE_CHECKING:
    from medsegai.commands.console import Subparsers
    from medsegai.io.dicomweb import Archive, Found, Series

FILTERS = {
    "patient": ("PatientID", "patient ID"),
    "date": ("StudyDate", "date, or range such as 20260101-20261231"),
    "description": ("StudyDescription", "description; * stands for anything"),
}
MOST_SHOWN = 20
"""The largest number of series that a message lists."""

MODALITIES = ("CT", "MR", "PT", "NM", "CR", "DX", "MG")
"""The modalities of images; others in a study are results, reports or photographs."""

DATE = "%Y%m%d"


def add_parser(subparsers: Subparsers) -> None:
    """Add `medsegai dicomweb` to the command line."""
    parser = subparsers.add_parser(
        "dicomweb",
        help="find, download and segment series of an archive, and store results there",
        description="Communicate with an archive by DICOMweb. Credentials come from MEDSEGAI_DICOMWEB_USER and "
        "MEDSEGAI_DICOMWEB_PASSWORD, from MEDSEGAI_DICOMWEB_TOKEN, or from ~/.netrc.",
    )
    help_alone(parser)
    actions = parser.add_subparsers(title="actions", metavar="ACTION")
    _add_find(_action(actions, "find", "list studies, or the series of one study", run_find))
    _add_fetch(_action(actions, "fetch", "download a series into a folder", run_fetch))
    _add_segment(_action(actions, "segment", "segment a series", run_segment))
    _add_store(_action(actions, "store", "store results in their study", run_store))


def _add_find(find: argparse.ArgumentParser) -> None:
    for name, (_keyword, text) in FILTERS.items():
        find.add_argument(f"--{name}", help=f"only studies with this {text}")
    find.add_argument("--modality", help="only studies or series of this modality, such as MR")
    find.add_argument("--study", metavar="UID", help="list the series of this study")
    find.add_argument(
        "--limit",
        type=int,
        default=100,
        metavar="N",
        help="the largest number of results (default: %(default)s)",
    )
    find.add_argument("--json", action="store_true", help="print JSON")


def _add_fetch(fetch: argparse.ArgumentParser) -> None:
    _add_series(fetch)
    add_output(fetch, "folder for the files; made if missing", metavar="FOLDER")


def _add_segment(segment: argparse.ArgumentParser) -> None:
    _add_series(segment)
    add_output(
        segment,
        "folder for segmentation.seg.nrrd, report.json, seg.dcm and sr.dcm; made if missing",
        metavar="FOLDER",
    )
    add_switch(segment, "--store", "store seg.dcm and sr.dcm in the study")
    add_request_options(segment)


def _add_store(store: argparse.ArgumentParser) -> None:
    store.add_argument(
        "files", type=Path, nargs="+", metavar="FILE", help="DICOM files, such as seg.dcm"
    )
    store.add_argument("--study", metavar="UID", required=True, help="StudyInstanceUID")


def _action(actions: Subparsers, name: str, text: str, run: object) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = actions.add_parser(name, help=text)
    parser.add_argument(
        "archive",
        metavar="URL",
        help="DICOMweb address of the archive, such as https://host/dicom-web",
    )
    add_switch(parser, "--unencrypted", "allow http to other computers, too")
    add_quiet(parser, "print nothing but errors")
    parser.set_defaults(run=run)
    return parser


def _add_series(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--study", metavar="UID", required=True, help="StudyInstanceUID")
    parser.add_argument(
        "--series",
        metavar="UID",
        help="SeriesInstanceUID; not needed if the study has one series of images",
    )


def run_find(arguments: argparse.Namespace) -> int:
    """Print studies, or the series of one study."""
    if arguments.limit < 1:
        raise RequestError(f"--limit must be at least 1, not {arguments.limit}.")
    _check_filters(arguments)
    archive = _archive(arguments)
    found = _found(archive, arguments)
    shown, more = found[: arguments.limit], len(found) - arguments.limit
    if arguments.json:
        print(json.dumps(shown, indent=2))
    elif shown:
        print(_listed(shown))
    else:
        print("Nothing fits.")
    if more > 0:
        print(
            "medsegai: the archive has more results. Use a larger --limit to see them.",
            file=sys.stderr,
        )
    return 0


def _check_filters(arguments: argparse.Namespace) -> None:
    """Refuse filters that cannot be applied. Raises RequestError."""
    given = [f"--{name}" for name in FILTERS if getattr(arguments, name)]
    if arguments.study and given:
        raise RequestError(
            f"{given[0]} chooses among studies, and --study names one. Leave out one of them."
        )
    ends = (arguments.date or "").split("-", maxsplit=1)
    if any(ends) and not all(map(_is_date, filter(None, ends))):
        raise RequestError(
            f"{arguments.date} is not a date in DICOM. Write 20260131, or 20260101-20260131."
        )


def _is_date(text: str) -> bool:
    try:
        return len(text) == 8 and bool(datetime.strptime(text, DATE))
    except ValueError:
        return False


def _found(archive: Archive, arguments: argparse.Namespace) -> list[Found]:
    """Return the series of a study, or studies, one more than are shown."""
    if arguments.study:
        filters = {"Modality": arguments.modality} if arguments.modality else {}
        return archive.series(arguments.study, filters)
    chosen = {key: getattr(arguments, name) for name, (key, _) in FILTERS.items()}
    chosen["ModalitiesInStudy"] = arguments.modality
    return archive.studies({k: v for k, v in chosen.items() if v}, arguments.limit + 1)


def run_fetch(arguments: argparse.Namespace) -> int:
    """Download one series."""
    _check_free(arguments.output)
    archive = _archive(arguments)
    count = _fetch(archive, _series(archive, arguments), arguments.output, arguments.quiet)
    if not arguments.quiet:
        print(f"Downloaded {counted(count, 'file', 'files')} into {arguments.output}.")
    return 0


def run_segment(arguments: argparse.Namespace) -> int:
    """Download one series, segment it, and store the results if asked to."""
    from medsegai.export.files import Exports, Inputs, export
    from medsegai.output.result_files import Outputs
    from medsegai.system.private_folders import PrivateFolder

    out: Path = arguments.output
    _check_free(out)
    archive = _archive(arguments)
    series = _series(archive, arguments)
    with _made(out), PrivateFolder("dicomweb") as folder:
        scan = folder / "series"
        _fetch(archive, series, scan, arguments.quiet)
        request = request_from_arguments(arguments, [scan])
        check_request(request)
        outputs = Outputs(out / "segmentation.seg.nrrd", report=out / "report.json")
        with outputs.reserved():
            result = segment_to_files(request, outputs, arguments.quiet)
        inputs = Inputs(outputs.segmentation, dicom=scan, run=outputs.report)
        exports = Exports(seg=out / "seg.dcm", sr=out / "sr.dcm")
        for warning in export(inputs, exports, Progress()):
            print(f"medsegai: warning: {one_line(warning)}", file=sys.stderr)
    files = list(exports.files().values())
    if not arguments.quiet:
        print_summary(result)
        print_written([*outputs.paths().values(), *files])
    if arguments.store:
        _store(archive, files, series.study, arguments.quiet)
    return 0


def run_store(arguments: argparse.Namespace) -> int:
    """Store results that were made before."""
    _store(_archive(arguments), arguments.files, arguments.study, arguments.quiet)
    return 0


def _store(archive: Archive, files: list[Path], study: str, quiet: bool) -> None:
    archive.store(files, study)
    if not quiet:
        print(f"Stored {' and '.join(file.name for file in files)} in the study.")


@contextlib.contextmanager
def _made(folder: Path) -> Iterator[None]:
    """Make a folder, and remove it again if nothing is written into it. Raises OutputError."""
    from medsegai.io.atomic import output_error

    try:
        new = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise output_error(folder, error) from error
    try:
        yield
    finally:
        if new:
            with contextlib.suppress(OSError):  # it is not empty
                folder.rmdir()


def _archive(arguments: argparse.Namespace) -> Archive:
    try:
        from medsegai.io.dicomweb import Archive
    except ImportError as error:
        raise RequestError(
            f"DICOMweb needs packages that are not installed ({error.name}). Run pip install "
            "'medsegai[dicomweb]'."
        ) from error
    return Archive(arguments.archive, arguments.unencrypted)


def _series(archive: Archive, arguments: argparse.Namespace) -> Series:
    """Return the named series, or the only one with images."""
    from medsegai.io.dicomweb import Series, check_uid

    check_uid(arguments.study)
    if arguments.series:
        return Series(arguments.study, arguments.series)
    found = archive.series(arguments.study, {})
    images = [item for item in found if item["Modality"] in MODALITIES]
    if len(images) == 1:
        return Series(arguments.study, images[0]["SeriesInstanceUID"])
    _print_choices(images or found)
    raise InputError(
        f"The study has {len(images)} series of images, among {len(found)} in all. Name one with --series."
    )


def _print_choices(found: list[Found]) -> None:
    if found:
        more = f"\n… and {len(found) - MOST_SHOWN} more" if len(found) > MOST_SHOWN else ""
        print(_listed(found[:MOST_SHOWN]) + more, file=sys.stderr)


def _listed(found: list[Found]) -> str:
    header = [name.removesuffix("InstanceUID") for name in found[0]]
    return table(header, [[one_line(text) for text in item.values()] for item in found], left=9)


def _fetch(archive: Archive, series: Series, folder: Path, quiet: bool) -> int:
    with shown_progress(quiet, {"fetch": 1.0}) as progress:
        return archive.fetch(series, folder, lambda done, of: progress.step("fetch", done, of))


def _check_free(folder: Path) -> None:
    """Refuse a folder that is not empty, so that existing files are never changed."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputExistsError(f"{folder} exists already and is not empty. Name another folder.")

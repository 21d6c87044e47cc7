"""`medsegai demo`: the main job on a real scan, every kind of output in one folder."""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from medsegai.commands.segment import (
    add_request_options,
    check_inputs,
    check_request,
    print_summary,
    request_from_arguments,
    segment_to_files,
)
from medsegai.errors import InputError, OutputError

if TYPE_CHECKING:
    from medsegai.commands.console import Subparsers
    from medsegai.output.result_files import Outputs

SCAN_IN_NILEARN = "datasets/data/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"
"""The ICBM 2009a nonlinear symmetric T1 at 1 mm, which nilearn's package carries."""

FILES = {
    "segmentation": "segmentation.seg.nrrd",
    "uncertainty": "uncertainty.nii.gz",
    "volumes": "volumes.csv",
    "preview": "preview.png",
    "page": "index.html",
    "report": "report.json",
}
MEANING = {
    "segmentation": "named, coloured, editable segments",
    "uncertainty": "where the networks disagree (entropy)",
    "volumes": "volume and uncertainty of each structure",
    "preview": "picture of three planes",
    "page": "all of it on a page to open in a browser",
    "report": "how it was made",
}


def add_parser(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "demo",
        help="segment a head MR that comes with a package",
        description="Segment INPUT, or the ICBM152 T1 that the package nilearn carries, and write "
        "segmentation, uncertainty, volumes, report, picture and a page into one folder.",
    )
    parser.add_argument("input", metavar="INPUT", nargs="?", type=Path, help="scan to segment")
    parser.add_argument(
        "-o", "--output", metavar="FOLDER", type=Path, default=Path("demo"), help="(default: demo)"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace results even if they were edited"
    )
    add_request_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from medsegai.export.viewer import viewer_is_here
    from medsegai.output.result_files import Outputs

    scan = nilearn_scan() if arguments.input is None else arguments.input
    folder: Path = arguments.output
    request = request_from_arguments(arguments, [scan], uncertainty=True)
    check_request(request)
    check_inputs(request)
    make_folder(folder)
    parts = {"page": "viewer"} if viewer_is_here() else {}
    outputs = Outputs(**{parts.get(name, name): folder / file for name, file in FILES.items()})
    with outputs.reserved():
        outputs.check([scan], overwrite=arguments.overwrite or untouched(outputs))
        print(f"Segmenting {scan}")
        print_summary(segment_to_files(request, outputs))
    print(f"\nIn {folder.resolve()}:")
    for name, file in FILES.items():
        print(f"  {file:<22} {MEANING[name]}")
    print(f"\nTo look at it, drag these two into 3D Slicer:\n  {scan}")
    print(f"  {outputs.segmentation.resolve()}")
    return 0


def nilearn_scan() -> Path:
    """The scan in the installed nilearn package, found without importing it.

    Raises:
        InputError: nilearn is not installed, or does not carry the scan any more.
    """
    spec = importlib.util.find_spec("nilearn")
    if spec is None or spec.origin is None:
        raise InputError(
            "The demo's scan comes with the package nilearn, which is not installed. Run "
            "`pip install 'medsegai[demo]'`, or name a T1 of your own: medsegai demo INPUT"
        )
    path = Path(spec.origin).parent / SCAN_IN_NILEARN
    if not path.is_file():
        raise InputError(
            f"This version of nilearn does not carry {path.name}. Name a T1 of your own: "
            "medsegai demo INPUT"
        )
    return path


def make_folder(folder: Path) -> None:
    """Make the folder for the results.

    Raises:
        OutputError: that is not possible.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"The folder {folder} cannot be made: {error.strerror}.") from error


def untouched(outputs: Outputs) -> bool:
    """Whether all results are as the last demo wrote them, so that replacing them loses nothing."""
    from medsegai.output.result_files import recorded_hashes

    if outputs.report is None or not outputs.report.is_file():
        return False
    recorded = recorded_hashes(outputs.report)
    # Only the hashes count: the page is called otherwise in the report where it got a viewer since.
    return bool(recorded) and set(outputs.hashes().values()) <= set(recorded.values())

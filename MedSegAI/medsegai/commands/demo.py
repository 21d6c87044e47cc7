"""`medsegai demo`: segment a scan or a picture, and write every kind of output into one folder."""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from medsegai.commands.parsing import add_output, add_overwrite
from medsegai.commands.segment import (
    add_request_options,
    check_inputs,
    check_request,
    print_summary,
    request_from_arguments,
    segment_to_files,
)
from medsegai.errors import InputError, OutputError, OutputExistsError
from medsegai.models.catalogue import find_card
from medsegai.request import SegmentationRequest

if TYPE_CHECKING:
    from medsegai.commands.console import Subparsers
    from medsegai.models.card import ModelCard
    from medsegai.output.result_files import Outputs

SCAN_IN_NILEARN = "datasets/data/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"
"""The ICBM 2009a nonlinear symmetric T1 at 1 mm, which the package nilearn contains."""

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
    "uncertainty": "where the networks are uncertain (entropy)",
    "volumes": "volume and uncertainty of each structure",
    "preview": "picture with outlines",
    "page": "all results on a page to open in a browser",
    "report": "how it was made",
    "objects": "the number of the object that each pixel belongs to",
    "object_table": "area, centroid and colour of each object",
}

PICTURE = "picture.png"
"""The sample that a model of pictures segments if no input is named."""

OBJECT_FILES = {"objects": "objects.png", "object_table": "objects.csv"}
"""The files of models that separate objects."""


def add_parser(subparsers: Subparsers) -> None:
    """Add `medsegai demo` to the command line."""
    parser = subparsers.add_parser(
        "demo",
        help="segment a head MR that comes with a package, or a drawn picture of tissue",
        description="Segment INPUT, or the ICBM152 T1 from the package nilearn, and write segmentation, "
        "uncertainty, volumes, report, picture and a page into one folder. With a model for "
        "pictures, such as nuclei, a picture of tissue is drawn if no INPUT is named.",
    )
    parser.add_argument("input", metavar="INPUT", nargs="?", type=Path, help="scan to segment")
    add_output(parser, "(default: demo)", metavar="FOLDER", default=Path("demo"))
    add_overwrite(parser, "replace results even if they were edited")
    add_request_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Carry out the command and return its exit code."""
    from medsegai.io.atomic import make_folder

    folder: Path = arguments.output
    card = find_card((getattr(arguments, "models", None) or SegmentationRequest.models)[0])
    scan = arguments.input or demo_scan(card, folder, arguments.overwrite)
    request = request_from_arguments(arguments, [scan], uncertainty=True)
    check_request(request)
    check_inputs(request)
    make_folder(folder)
    files = FILES | (OBJECT_FILES if card.object_labels else {})
    outputs = _outputs(folder, files)
    with outputs.reserved():
        outputs.check([scan], overwrite=arguments.overwrite or untouched(outputs))
        print(f"Segmenting {scan}")
        result = segment_to_files(request, outputs)
        print_summary(result)
    _print_files(folder, files, scan)
    return 0


def _print_files(folder: Path, files: Mapping[str, str], scan: Path) -> None:
    print(f"\nIn {folder.resolve()}:")
    for name, file in files.items():
        print(f"  {file:<22} {MEANING[name]}")
    print(f"\nTo view the result, drag these two files into 3D Slicer:\n  {scan.resolve()}")
    print(f"  {(folder / files['segmentation']).resolve()}")


def _outputs(folder: Path, files: Mapping[str, str]) -> Outputs:
    from medsegai.export.viewer import viewer_is_here
    from medsegai.output.result_files import Outputs

    parts = {"page": "viewer"} if viewer_is_here() else {}
    outputs = Outputs(**{parts.get(name, name): folder / file for name, file in files.items()})
    return outputs


def demo_scan(card: ModelCard, folder: Path, overwrite: bool) -> Path:
    """Return the input of a model's demo if no input is named.

    Raises:
        InputError: see `nilearn_scan`.
        OutputError: the picture cannot be written, or another file has its name.
    """
    if card.dimensions != 2:
        return nilearn_scan()
    from PIL import Image

    from medsegai.commands.drawn_tissue import drawn_tissue
    from medsegai.io.atomic import make_folder

    make_folder(folder)
    with beside(folder) as made:
        Image.fromarray(drawn_tissue()[0]).save(made / PICTURE, format="PNG")
        move_all(made, folder, overwrite)
    return folder / PICTURE


@contextmanager
def beside(folder: Path) -> Iterator[Path]:
    """Make a temporary folder for incomplete files. Raises OutputError: it cannot be made."""
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".demo-") as name:
            yield Path(name)
    except OSError as error:
        raise OutputError(f"{folder} cannot be written: {error.strerror}.") from error


def move_all(made: Path, folder: Path, overwrite: bool) -> None:
    """Move files to their places. Raises OutputExistsError: another file is at one of them."""
    for path in made.iterdir():
        there = folder / path.name
        if there.exists() and there.read_bytes() != path.read_bytes() and not overwrite:
            raise OutputExistsError(
                f"{there} was edited, or comes from another picture. Move it, or add --overwrite."
            )
    for path in made.iterdir():
        path.replace(folder / path.name)


def nilearn_scan() -> Path:
    """Return the scan in the installed nilearn package, which is not imported.

    Raises:
        InputError: nilearn is not installed, or no longer contains the scan.
    """
    spec = importlib.util.find_spec("nilearn")
    if spec is None or spec.origin is None:
        raise InputError(
            "The demo's scan comes with the package nilearn, which is not installed. Run "
            "`pip install 'medsegai[demo]'`, or name your own T1 scan: medsegai demo INPUT"
        )
    path = Path(spec.origin).parent / SCAN_IN_NILEARN
    if not path.is_file():
        raise InputError(
            f"This version of nilearn does not contain {path.name}. Name your own T1 scan: medsegai demo INPUT"
        )
    return path


def untouched(outputs: Outputs) -> bool:
    """Whether all results are unchanged since the last demo, so that replacing them does not lose anything."""
    from medsegai.output.result_files import recorded_hashes

    if outputs.report is None or not outputs.report.is_file():
        return False
    recorded = recorded_hashes(outputs.report)
    # Only the hashes count, because the page has another name in the report if it got a viewer later.
    return bool(recorded) and set(outputs.hashes().values()) <= set(recorded.values())

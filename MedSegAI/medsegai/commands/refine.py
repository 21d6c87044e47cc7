"""`medsegai refine`: clean and sharpen an existing segmentation, whoever made it."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medsegai.commands.console import print_written, shown_progress
from medsegai.commands.parsing import add_output, add_overwrite, add_path, add_quiet
from medsegai.commands.segment import comma_list
from medsegai.errors import OutputError, RequestError
from medsegai.refinements import (
    Draft,
    option_fields,
    parse,
    refinement_names,
    summary,
    value_as_text,
)
from medsegai.system.locks import reserved
from medsegai.worker.requests import RefinementRequest, RefinementResult

if TYPE_CHECKING:
    from medsegai.commands.console import Subparsers


NOTHING = "Nothing was changed, because the refinements did not find anything to change."


def add_parser(subparsers: Subparsers) -> None:
    """Add `medsegai refine` to the command line."""
    parser = subparsers.add_parser(
        "refine",
        help="clean and sharpen a segmentation",
        description="Refine an existing segmentation, whoever made it.",
        epilog=_options_text(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "segmentation", metavar="SEGMENTATION", type=Path, help=".seg.nrrd, DICOM SEG, or labelmap"
    )
    _add_evidence(parser)
    parser.add_argument(
        "--refinement",
        dest="refinements",
        action="extend",
        type=comma_list,
        required=True,
        metavar="NAME[:OPTION=VALUE;…]",
        help="refinements, in this order; separated by commas or given repeatedly",
    )
    add_output(
        parser,
        "refined segmentation: .seg.nrrd, or a labelmap: .nii.gz, .nrrd, .mha, .mgz",
        metavar="OUT",
    )
    add_path(parser, "--report", "JSON", "what changed, structure by structure")
    add_overwrite(parser, "replace existing outputs")
    add_quiet(parser, "print neither progress nor what changed")
    parser.set_defaults(run=run)


def _add_evidence(parser: argparse.ArgumentParser) -> None:
    """Add the options for what refinements may look at besides the labels."""
    add_path(parser, "--image", "SCAN", "the scan, for refinements that use it")
    add_path(
        parser,
        "--probabilities",
        "IMAGE",
        "probabilities from `segment --save-probabilities`: with them, removed voxels go to "
        "the second most probable structure, and borders move where the model was uncertain",
    )


def _options_text() -> str:
    """Return every refinement with its options as help text."""
    lines = ["refinements and their options:"]
    for name in refinement_names():
        lines.append(f"  {name}: {summary(name)}")
        for item in option_fields(name):
            bounds, choices = item.metadata["bounds"], item.metadata["choices"]
            known = f"; one of {', '.join(choices)}" if choices else ""
            known += f"; {bounds[0]:g} to {bounds[1]:g}" if bounds else ""
            default = value_as_text(item.default)
            lines.append(f"    {item.name}={default}  {item.metadata['help']}{known}")
    return "\n".join(lines)


def run(arguments: argparse.Namespace) -> int:
    """Carry out the command and return its exit code."""
    with reserved(path for path in (arguments.output, arguments.report) if path is not None):
        return _run(arguments)


def _run(arguments: argparse.Namespace) -> int:
    refinements = tuple(parse(text) for text in arguments.refinements)
    _check_outputs(arguments)

    from medsegai.io import read_candidates, read_labelmap, read_volume, write_segmentation

    labelmap, labels = read_labelmap(arguments.segmentation)
    image = None if arguments.image is None else read_volume(arguments.image)
    path = arguments.probabilities
    candidates = None if path is None else read_candidates(path, labelmap, labels)
    Draft(labelmap, labels, image, candidates)  # refuses a scan on another grid
    asked = RefinementRequest(labelmap, labels, refinements, image=image, candidates=candidates)
    result = _refine(asked, arguments.quiet)
    write_segmentation(arguments.output, result.labelmap, labels)
    if arguments.report is not None:
        _write_report(arguments.report, result.report)
    if not arguments.quiet:
        print("\n".join(result.words or [NOTHING]))
        print_written([arguments.output, arguments.report])
    return 0


def _refine(asked: RefinementRequest, quiet: bool) -> RefinementResult:
    from medsegai.worker.refine_job import refine

    with shown_progress(quiet) as progress:
        return refine(asked, progress)


def _check_outputs(arguments: argparse.Namespace) -> None:
    """Check that the result can be written, before the work begins.

    Raises:
        RequestError: an output is one of the inputs, or both outputs are the same file.
        OutputError: a file exists already, or cannot be written.
    """
    from medsegai.io import WRITABLE, check_output

    inputs = (arguments.segmentation, arguments.image, arguments.probabilities)
    seen = {path.resolve() for path in inputs if path}
    for path, endings in ((arguments.output, WRITABLE), (arguments.report, (".json",))):
        if path is None:
            continue
        if path.resolve() in seen:
            raise RequestError(f"{path} is named twice. Name another file.")
        seen.add(path.resolve())
        check_output(path, endings)
        if path.exists() and not arguments.overwrite:
            raise OutputError(f"{path} exists already. Name another file, or add --overwrite.")


def _write_report(path: Path, report: Sequence[Mapping[str, Any]]) -> None:
    from medsegai.io.atomic import write_json

    write_json(path, {"refinements": list(report)})

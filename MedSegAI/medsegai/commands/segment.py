"""`medsegai segment`: segment a scan, and write the segmentation and its figures."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Container, Sequence
from dataclasses import Field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medsegai.commands.console import print_written, shown_progress, table
from medsegai.commands.parsing import add_output, add_overwrite, add_quiet
from medsegai.errors import InputError, ModelError, RequestError, counted
from medsegai.models.card import ModelCard
from medsegai.models.catalogue import find_card, is_path
from medsegai.models.quality import quality_of
from medsegai.progress import duration
from medsegai.refinements import parse
from medsegai.request import (
    NOT_FOR_DIAGNOSIS,
    SegmentationRequest,
    SegmentationResult,
    request_from_options,
    request_options,
)
from medsegai.system.outside_text import one_line
from medsegai.worker.batch_events import flags_of

if TYPE_CHECKING:
    from medsegai.commands.console import Subparsers
    from medsegai.output.result_files import Outputs

IMPLIED = {"uncertainty", "probabilities", "candidates"}
"""Switches of the request that are on exactly if the output that needs them is requested."""

MEASURES = {
    "volume_cv": "CV",
    "pairwise_dice": "Dice",
    "iou": "IoU",
    "mean_entropy": "entropy",
    "mutual_information": "MI",
    "expected_dice": "expected Dice",
}
"""The columns of the table that are shown only if uncertainty was measured."""


def add_parser(subparsers: Subparsers) -> None:
    """Add `medsegai segment` to the command line."""
    parser = subparsers.add_parser(
        "segment",
        help="segment one scan",
        description="Segment one scan. Several INPUTs are the channels of one scan, in the model's order, or "
        "named as in T1=first.nii.gz T2=second.nii.gz.",
    )
    parser.add_argument(
        "inputs",
        metavar="INPUT",
        nargs="+",
        help="image file (NIfTI, NRRD, MHA, Analyze, MGZ) or folder of one DICOM series; CHANNEL=INPUT names "
        "the channel",
    )
    add_output_options(parser)
    add_request_options(parser)
    parser.set_defaults(run=run)


MICROSCOPIC_MM2 = 1e-3
"""Structures are given in square millimetres, instead of centimetres, if a pixel covers less."""

OUTPUT_FILES = (
    ("--uncertainty", "IMAGE", "measure uncertainty and write the entropy map (nats)"),
    (
        "--mutual-information",
        "IMAGE",
        "write a map of how much the members disagree, beyond the uncertainty of each (nats)",
    ),
    ("--volumes", "CSV", "table of structures with volumes and uncertainty"),
    (
        "--places",
        "CSV",
        "table of connected regions with areas and probabilities, the most probable first",
    ),
    (
        "--objects",
        "IMAGE",
        "map of the numbers of separate objects, if the model separates them",
    ),
    ("--object-table", "CSV", "table of these objects: area, centroid, mean of each channel"),
    ("--report", "JSON", "report of this run: model hashes, versions, options, times"),
    ("--preview", "PNG", "picture of three planes with outlines"),
    ("--save-probabilities", "IMAGE", "probability of every structure, as one 4D image"),
)
"""Options that name what is written besides the segmentation: flag, placeholder and help."""


def add_output_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("outputs")
    add_output(
        group,
        "segmentation: .seg.nrrd (named segments for 3D Slicer), or a labelmap: .nii.gz, .nrrd, .mha, .mgz",
        metavar="OUT",
    )
    for flag, metavar, text in OUTPUT_FILES:
        group.add_argument(flag, type=Path, metavar=metavar, help=text)
    add_overwrite(group, "replace existing outputs")
    add_quiet(group, "print neither progress nor the table")


def add_request_options(parser: argparse.ArgumentParser) -> None:
    """Add every option of `SegmentationRequest`, with its help, default and choices."""
    group = parser.add_argument_group("how to segment")
    for item in request_options():
        if item.name not in IMPLIED:
            group.add_argument(*flags_of(item.name), dest=item.name, **_argument(item))


def _argument(item: Field[Any]) -> dict[str, Any]:
    """Return how argparse reads one option. Options that are not given keep the request's default."""
    text = item.metadata["help"].replace("%", "%%")
    argument: dict[str, Any] = {"default": argparse.SUPPRESS}
    if isinstance(item.default, bool):
        return argument | {"action": argparse.BooleanOptionalAction, "help": text}
    if item.type == "tuple[float, ...]":
        return argument | {"type": number_list, "metavar": "NUMBERS", "help": text}
    if isinstance(item.default, tuple):
        shown = ",".join(item.default) or {"refinements": "none"}.get(item.name, "all")
        text += f"; separated by commas (default: {shown})"
        kind = model_list if item.name == "models" else comma_list
        return argument | {"action": "extend", "type": kind, "metavar": "NAME", "help": text}
    argument |= {"type": type(item.default), "help": f"{text} (default: {item.default})"}
    if item.metadata["choices"]:
        return argument | {"choices": item.metadata["choices"]}
    return argument | {"metavar": type(item.default).__name__.upper()}


def comma_list(text: str) -> list[str]:
    """Parse `axial, coronal` as two names."""
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise argparse.ArgumentTypeError(f"{text!r} has an empty name between its commas")
    return names


def model_list(text: str) -> list[str]:
    """Parse a list of models; a folder is one name even if its path has a comma."""
    return [text] if is_path(text) and os.path.isdir(text) else comma_list(text)


def number_list(text: str) -> list[float]:
    """Parse `-10,12.5` as two numbers."""
    try:
        return [float(number) for number in text.split(",")]
    except ValueError:
        reason = f"{text!r} is not a list of numbers separated by commas"
        raise argparse.ArgumentTypeError(reason) from None


def request_from_arguments(
    arguments: argparse.Namespace, inputs: Sequence[Path], **implied: bool
) -> SegmentationRequest:
    """Return the request that the command line describes; `implied` are switches that outputs turn on.

    Raises:
        RequestError: options contradict each other.
    """
    named = {item.name for item in request_options()} - IMPLIED
    options = {name: value for name, value in vars(arguments).items() if name in named}
    return request_from_options(tuple(inputs), options | implied)


def in_channel_order(inputs: Sequence[str], card: ModelCard) -> list[Path]:
    """Return inputs in the order of the model's channels, if they are named as in T1=first.nii.gz.

    Raises:
        RequestError: a channel is missing, given twice or unknown, or only some inputs are named.
    """
    named: dict[str, Path] = {}
    for item in inputs:
        name, separator, path = item.partition("=")
        if not separator or Path(item).exists():
            continue
        named[_channel(name, card, named)] = Path(path)
    if not named:
        return [Path(item) for item in inputs]
    channels = [channel.name for channel in card.channels]
    if named.keys() != set(channels) or len(named) < len(inputs):
        example = " ".join(f"{name}=IMAGE" for name in channels)
        raise RequestError(f"Name every channel of model {card.id!r}, each once: {example}")
    return [named[name] for name in channels]


def _channel(name: str, card: ModelCard, named: Container[str]) -> str:
    """Return the channel that has this name in capitals or small letters, and was not named before."""
    channels = {channel.name.casefold(): channel.name for channel in card.channels}
    if name.casefold() not in channels:
        raise RequestError(
            f"Model {card.id!r} does not have the channel {name!r}. Its channels are "
            f"{', '.join(channels.values())}."
        )
    channel = channels[name.casefold()]
    if channel in named:
        raise RequestError(f"Channel {name!r} is given twice. Name each channel once.")
    return channel


def run(arguments: argparse.Namespace) -> int:
    """Carry out the command and return its exit code."""
    models = getattr(arguments, "models", None) or SegmentationRequest.models
    inputs = in_channel_order(arguments.inputs, find_card(models[0]))
    request = _request(arguments, inputs)
    check_request(request)
    check_inputs(request)
    if arguments.objects or arguments.object_table:
        check_objects(request)

    outputs = _outputs(arguments)
    with outputs.reserved():
        outputs.check(inputs, arguments.overwrite)
        result = segment_to_files(request, outputs, arguments.quiet)
    if not arguments.quiet:
        print_summary(result)
        print_written(outputs.paths().values())
    return 0


def _request(arguments: argparse.Namespace, inputs: Sequence[Path]) -> SegmentationRequest:
    return request_from_arguments(
        arguments,
        inputs,
        uncertainty=bool(arguments.uncertainty or arguments.mutual_information),
        probabilities=arguments.save_probabilities is not None,
        candidates=arguments.places is not None,
    )


def _outputs(arguments: argparse.Namespace) -> Outputs:
    from medsegai.output.result_files import Outputs

    return Outputs(
        segmentation=arguments.output,
        uncertainty=arguments.uncertainty,
        mutual_information=arguments.mutual_information,
        probabilities=arguments.save_probabilities,
        volumes=arguments.volumes,
        places=arguments.places,
        objects=arguments.objects,
        object_table=arguments.object_table,
        preview=arguments.preview,
        report=arguments.report,
    )


def check_request(request: SegmentationRequest) -> None:
    """Find mistakes in the request before the engine, and with it torch, is loaded.

    Raises:
        ModelError: a model is unknown, or a member is not in any of the models.
        RequestError: a refinement, or one of its options, is unknown.
    """
    for text in request.refinements:
        parse(text)
    cards = [find_card(name) for name in request.models]
    members = [member for card in cards for member in card.members]
    for name in request.members:
        if not any(member.answers_to(name) for member in members):
            raise ModelError(
                f"The view or fold {name!r} is not in {', '.join(card.id for card in cards)}. "
                f"Known: {', '.join(member.name for member in members)}."
            )


def check_objects(request: SegmentationRequest) -> None:
    """The same where objects are asked for. Raises RequestError: no model separates objects."""
    if not any(find_card(name).object_labels for name in request.models):
        raise RequestError(
            f"{', '.join(request.models)} does not separate objects. Leave out --objects and --object-table, or "
            "use `medsegai objects` on the labels."
        )


def check_inputs(request: SegmentationRequest) -> None:
    """Check that the inputs exist. Raises InputError: an input does not exist."""
    for path in request.inputs:
        if isinstance(path, Path) and not path.exists():
            raise InputError(f"{path} does not exist. Check the path.")


def segment_to_files(
    request: SegmentationRequest, outputs: Outputs, quiet: bool = False
) -> SegmentationResult:
    """Run the job with a progress bar, and write all of its files or, after any error, none."""
    with shown_progress(quiet) as progress:
        from medsegai.engine import segment

        progress.step("load", 1, 1)
        result = segment(request, progress)
        outputs.write(result, request.inputs[0], progress)
    for warning in result.warnings:
        print(f"medsegai: warning: {one_line(warning)}", file=sys.stderr)
    return result


def print_summary(result: SegmentationResult) -> None:
    """Print the table of structures, and the time that it took."""
    measured = [name for name in MEASURES if any(_known(m, name) for m in result.structures)]
    remarked = ["remarks"] * any(measures.remarks for measures in result.structures)
    qualities = [quality_of(vars(m), bool(m.remarks)) for m in result.structures]
    judged = ["quality"] * any(qualities)
    size, sizes = _sizes(result)
    rows = [
        [measures.label.name, sizes[number]]
        + [quality or "-" for _ in judged]
        + [_cell(getattr(measures, name)) for name in measured]
        + ["; ".join(measures.remarks) for _ in remarked]
        for number, (measures, quality) in enumerate(zip(result.structures, qualities, strict=True))
    ]
    header = ["structure", size, *judged, *[MEASURES[name] for name in measured], *remarked]
    print(table(header, rows, words_last=bool(remarked)))
    if result.objects is not None:
        print(f"\n{counted(len(result.object_rows), 'object', 'objects')}.")
    took = f"{duration(sum(result.seconds.values()))}."
    print("\n" + " ".join(filter(None, [took, result.refined(), NOT_FOR_DIAGNOSIS])))


def _sizes(result: SegmentationResult) -> tuple[str, list[str]]:
    """Return the sizes of structures, with unit: volumes, areas in a single slice, or pixels of unknown size."""
    scan, found = result.labelmap, result.structures
    if not scan.size_known:
        return "pixels", [str(measures.voxels) for measures in found]
    if len(scan.voxels) > 1:
        return "ml", [f"{measures.volume_ml:.2f}" for measures in found]
    across, along, _ = scan.geometry.spacing_mm
    areas_mm2 = [measures.voxels * across * along for measures in found]
    if across * along < MICROSCOPIC_MM2:
        return "mm2", [f"{area:.4f}" for area in areas_mm2]
    return "cm2", [f"{area / 100:.2f}" for area in areas_mm2]


def _known(measures: Any, name: str) -> bool:
    return getattr(measures, name) is not None


def _cell(value: float | None) -> str:
    return "-" if value is None or value != value else f"{value:.3f}"

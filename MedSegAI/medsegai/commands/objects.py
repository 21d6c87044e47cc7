"""`medsegai objects`: separate the objects of a label map into a map of numbers and a table."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from medsegai.commands.console import print_written
from medsegai.commands.parsing import add_output, add_overwrite
from medsegai.errors import InputError, OutputExistsError, RequestError, counted, listed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from medsegai.commands.console import Subparsers
    from medsegai.volume import Volume

MANY = 10
"""The largest number of labels that a message lists."""


def add_parser(subparsers: Subparsers) -> None:
    """Add `medsegai objects` to the command line."""
    parser = subparsers.add_parser(
        "objects",
        help="separate the objects of a picture, such as nuclei, and measure each",
        description="Give each object in LABELS a number. Objects are the connected parts of the inside "
        "label, divided at waists and grown into the border label, if the model has one.",
    )
    parser.add_argument("labels", metavar="LABELS", type=Path, help="label map of one slice")
    parser.add_argument(
        "--image", type=Path, help="the picture, for the mean colour of each object"
    )
    add_output(parser, "map of numbers: .png, .nrrd, .nii.gz, .mha")
    parser.add_argument("--table", type=Path, help="table of objects, .csv")
    _add_separation(parser)
    add_overwrite(parser, "replace existing files")
    parser.set_defaults(run=run_objects)


def _add_separation(parser: argparse.ArgumentParser) -> None:
    """Add the options for what an object is, and where objects that touch are divided."""
    parser.add_argument("--inside", type=int, default=1, help="label of the inside (default: 1)")
    parser.add_argument("--border", type=int, default=2, help="label of the border (default: 2)")
    parser.add_argument(
        "--smallest",
        type=int,
        default=10,
        metavar="PIXELS",
        help="smallest number of pixels of an object; smaller ones are left out (default: 10)",
    )
    parser.add_argument(
        "--waist",
        type=float,
        metavar="PIXELS",
        help="merged objects are divided where they are narrower by this many pixels on each side "
        "(default: 1; 1000 never divides)",
    )


def run_objects(arguments: argparse.Namespace) -> int:
    """Separate objects, write them, and print their number."""
    from medsegai.measurements.instances import WAIST, separated
    from medsegai.measurements.object_rows import object_rows

    written = [path for path in (arguments.output, arguments.table) if path is not None]
    _check_options(arguments, written)
    labels = _one_slice(arguments.labels)
    channels = _channels(arguments, labels)
    _check_labels(arguments, labels)
    plane = labels.voxels[0]
    waist = WAIST if arguments.waist is None else arguments.waist
    found = separated(
        plane == arguments.inside, plane == arguments.border, arguments.smallest, waist
    )
    rows = object_rows(found, channels, channels[0] if channels else labels)
    _write(arguments, labels.with_voxels(found[None]), rows)
    print(f"{counted(len(rows), 'object', 'objects')}.")
    print_written(written)
    return 0


def _one_slice(path: Path) -> Volume:
    from medsegai.io import read_labelmap

    labels, _ = read_labelmap(path)
    if len(labels.voxels) != 1:
        raise InputError(
            f"{path} has {len(labels.voxels)} slices, but objects can only be "
            "separated in a single slice. Name a label map of one slice."
        )
    return labels


def _check_labels(arguments: argparse.Namespace, labels: Volume) -> None:
    """Raise RequestError if a label map has labels, but neither that of the inside nor that of the border."""
    import numpy as np

    there = [int(value) for value in np.unique(labels.voxels) if value]
    if there and not {arguments.inside, arguments.border} & set(there):
        raise RequestError(
            f"{arguments.labels} has neither the label {arguments.inside} (--inside) nor {arguments.border} "
            f"(--border). Its labels are {listed(there, MANY)}."
        )


def _channels(arguments: argparse.Namespace, labels: Volume) -> tuple[Volume, ...]:
    from medsegai.io import read_channels

    channels = () if arguments.image is None else read_channels(arguments.image)
    if channels and channels[0].voxels.shape != labels.voxels.shape:
        raise InputError(
            f"{arguments.image} and {arguments.labels} have different sizes. Name the picture that was segmented."
        )
    return channels


def _write(
    arguments: argparse.Namespace, objects: Volume, rows: Sequence[Mapping[str, object]]
) -> None:
    from medsegai.io import files_together
    from medsegai.output.object_files import write_object_map, write_object_table

    with files_together() as files:
        with files.path(arguments.output) as partial:
            write_object_map(partial, objects)
        if arguments.table is not None:
            with files.path(arguments.table) as partial:
                write_object_table(partial, rows)


def _check_options(arguments: argparse.Namespace, written: Sequence[Path]) -> None:
    for path in written:
        if path.exists() and not arguments.overwrite:
            raise OutputExistsError(
                f"{path} exists already. Name another file, or add --overwrite."
            )
    if arguments.inside == arguments.border:
        raise RequestError("--inside and --border must be different labels.")
    if arguments.smallest < 0:
        raise RequestError(f"--smallest must be at least 0 pixels, not {arguments.smallest}.")
    if arguments.waist is not None and not 0 <= arguments.waist < float("inf"):
        raise RequestError(f"--waist must be at least 0 pixels, not {arguments.waist}.")

"""`medsegai objects`: objects of a label map told apart, as a map of numbers and a table."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from medsegai.commands.console import print_written
from medsegai.errors import InputError, OutputExistsError, RequestError

if TYPE_CHECKING:
    from medsegai.commands.console import Subparsers


def add_parser(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "objects",
        help="tell objects of a picture apart, such as nuclei, and measure each",
        description="Give each object in LABELS a number: connected parts of the label of their inside, grown "
        "into the label of their border. Where a model has no border label, objects are connected parts.",
    )
    parser.add_argument("labels", metavar="LABELS", type=Path, help="label map of one slice")
    parser.add_argument(
        "--image", type=Path, help="the picture, for the mean colour of each object"
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        help="map of numbers: .png, .nrrd, .nii.gz, .mha",
    )
    parser.add_argument("--table", type=Path, help="table of objects, .csv")
    parser.add_argument("--inside", type=int, default=1, help="label of the inside (default: 1)")
    parser.add_argument("--border", type=int, default=2, help="label of the border (default: 2)")
    parser.add_argument(
        "--smallest",
        type=int,
        default=10,
        metavar="PIXELS",
        help="smaller ones are left out (default: 10)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there")
    parser.set_defaults(run=run_objects)


def run_objects(arguments: argparse.Namespace) -> int:
    """Tell objects apart, write them, and say how many there are."""
    from medsegai.io import (
        files_together,
        read_channels,
        read_labelmap,
        write_segmentation,
        write_table,
    )
    from medsegai.labels import Label, made_color
    from medsegai.measurements.instances import object_rows, separated

    written = [path for path in (arguments.output, arguments.table) if path is not None]
    for path in written:
        if path.exists() and not arguments.overwrite:
            raise OutputExistsError(
                f"{path} is there already. Name another file, or add --overwrite."
            )
    labels, _ = read_labelmap(arguments.labels)
    if len(labels.voxels) != 1:
        raise InputError(
            f"{arguments.labels} has {len(labels.voxels)} slices; objects are told apart in one."
        )
    if arguments.inside == arguments.border:
        raise RequestError("--inside and --border must be two labels.")
    channels = (labels,) if arguments.image is None else read_channels(arguments.image)
    if channels[0].voxels.shape != labels.voxels.shape:
        raise InputError(f"{arguments.image} and {arguments.labels} have different sizes.")
    plane = labels.voxels[0]
    found = separated(plane == arguments.inside, plane == arguments.border, arguments.smallest)
    image = (
        labels if arguments.image is None else channels[0]
    )  # which knows how large its pixels are
    rows = object_rows(found, () if arguments.image is None else channels, image)
    count = len(rows)
    if count > 65535:
        raise InputError(f"{arguments.labels} has {count} objects; 65535 can be numbered.")
    named = [Label(n, f"Object {n}", made_color(n)) for n in range(1, count + 1)]
    with files_together() as files:
        with files.path(arguments.output) as partial:
            write_segmentation(partial, labels.with_voxels(found[None].astype("uint16")), named)
        if arguments.table is not None:
            with files.path(arguments.table) as partial:
                write_table(partial, list(rows[0]) if rows else ["number"], rows)
    print(f"{count} object{'' if count == 1 else 's'}.")
    print_written(written)
    return 0

"""Who is right where a brain model and the raters of MALC 2012 disagree: what the image says.

    python Testing/bench/disputed.py --cases 4

Between white matter and a grey structure, a voxel is disputed if one of the two calls it white matter and the
other the structure. The image agrees with the model if the voxel is on the model's side of the intensity half-way
between white matter and the structure, both taken where the two agree. The scans are for evaluation only: nothing
may be trained on them or tuned to them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from malc import LABELS, MAPPING, SCAN, chosen_scans, shared_scans
from numpy.typing import NDArray

from medsegai.commands.console import shown_progress
from medsegai.engine import segment
from medsegai.errors import MedSegAIError
from medsegai.evaluation import read_mapping
from medsegai.io import read_labelmap, read_volume
from medsegai.request import SegmentationRequest

WHITE_MATTER = (2, 41)
GREY = {
    "putamen": (12, 51),
    "caudate": (11, 50),
    "accumbens": (26, 58),
    "amygdala": (18, 54),
    "hippocampus": (17, 53),
    "thalamus": (10, 49),
    "cortex": (3, 42),
}
"""Structures that are darker than white matter in T1, both sides."""

HEADINGS = (
    "structure",
    "volume, model / raters",
    "taken from white matter",
    "of these grey",
    "left to white matter",
    "of these white",
    "the image agrees with the model",
)


@dataclass
class Disputed:
    """Voxels of a structure over all scans: `taken` from the raters' white matter by the model, `left` to it.

    Attributes:
        predicted, drawn: voxels of the model and of the raters.
        taken, left: disputed voxels.
        taken_dark, left_bright: those in which the image agrees with the model.
    """

    predicted: int = 0
    drawn: int = 0
    taken: int = 0
    left: int = 0
    taken_dark: int = 0
    left_bright: int = 0

    def add(
        self,
        image: NDArray[np.float64],
        model: NDArray[np.integer],
        raters: NDArray[np.integer],
        values: tuple[int, int],
    ) -> None:
        """Count the voxels of one scan: its image and both label maps, (k, j, i); `values` are both sides."""
        found, drawn = np.isin(model, values), np.isin(raters, values)
        white_found, white_drawn = np.isin(model, WHITE_MATTER), np.isin(raters, WHITE_MATTER)
        means = [np.median(image[found & drawn]), np.median(image[white_found & white_drawn])]
        dark = image < sum(means) / 2
        taken, left = found & white_drawn, drawn & white_found
        counted = (found, drawn, taken, left, taken & dark, left & ~dark)
        for item, mask in zip(fields(self), counted, strict=True):
            setattr(self, item.name, getattr(self, item.name) + int(mask.sum()))

    def row(self, name: str) -> str:
        """Return the row of a Markdown table."""
        agreed = (self.taken_dark + self.left_bright) / max(self.taken + self.left, 1)
        cells = (
            name,
            f"{self.predicted / self.drawn:.2f}",
            self.taken,
            f"{self.taken_dark / max(self.taken, 1):.0%}",
            self.left,
            f"{self.left_bright / max(self.left, 1):.0%}",
            f"{agreed:.0%}",
        )
        return f"| {' | '.join(map(str, cells))} |"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="brain", metavar="ID", help="id or folder of the model")
    parser.add_argument(
        "--members", nargs="+", default=(), metavar="NAME", help="only these members"
    )
    parser.add_argument("--cases", type=int, metavar="N", help="the first N scans only")
    parser.add_argument("--data", type=Path, default=shared_scans(), metavar="FOLDER")
    arguments = parser.parse_args(argv)
    try:
        counted = count(arguments)
    except MedSegAIError as error:
        print(f"disputed: {error}", file=sys.stderr)
        return error.exit_code
    print(f"| {' | '.join(HEADINGS)} |\n| --- |{' ---: |' * (len(HEADINGS) - 1)}")
    for name, disputed in counted.items():
        print(disputed.row(name))
    return 0


def count(arguments: argparse.Namespace) -> dict[str, Disputed]:
    """Segment the scans and count.

    Raises:
        InputError: the scans are not there.
        MedSegAIError: whatever `segment` raises.
    """
    mapping = read_mapping(MAPPING)
    counted = {name: Disputed() for name in GREY}
    for path in chosen_scans(arguments):
        labels = path.with_name(path.name.replace(SCAN, LABELS))
        drawn = mapping.apply(read_labelmap(labels)[0]).voxels
        image = read_volume(path).voxels.astype(np.float64)
        request = SegmentationRequest(
            (path,), models=(arguments.model,), members=tuple(arguments.members), refine=False
        )
        with shown_progress() as progress:
            found = segment(request, progress).labelmap.voxels
        for name, values in GREY.items():
            counted[name].add(image, found, drawn, values)
    return counted


if __name__ == "__main__":
    sys.exit(main())

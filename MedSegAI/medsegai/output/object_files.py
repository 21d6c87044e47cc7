"""Files of separate objects, such as nuclei: a map of their numbers, and a table with a row for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medsegai.errors import OutputError
from medsegai.io import write_segmentation, write_table
from medsegai.labels import Label, made_color
from medsegai.measurements.instances import MOST_OBJECTS
from medsegai.volume import Volume


def write_object_map(path: Path, objects: Volume) -> None:
    """Write the numbers of objects, each of which is a label of its own.

    Args:
        path: a file as `write_segmentation` writes it.
        objects: numbers from 1, with 0 for the background.

    Raises:
        OutputError: the file cannot be written, or there are more objects than its 16 bits can number.
    """
    count = int(objects.voxels.max(initial=0))
    if count > MOST_OBJECTS:
        raise OutputError(
            f"There are {count} objects, and {path} can number {MOST_OBJECTS}. Segment a part of the picture."
        )
    named = [Label(n, f"Object {n}", made_color(n)) for n in range(1, count + 1)]
    write_segmentation(path, objects.with_voxels(objects.voxels.astype(np.uint16)), named)


def write_object_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a row for each object: see `measurements.instances.object_rows`. Raises OutputError."""
    write_table(path, list(rows[0]) if rows else ["number"], rows)

"""Files of separate objects, such as nuclei: a map of their numbers, and a table with a row for each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from medsegai.errors import InputError
from medsegai.io import read_table, write_segmentation, write_table
from medsegai.labels import Label, made_color
from medsegai.measurements.instances import MOST_OBJECTS
from medsegai.volume import Volume


def write_object_map(path: Path, objects: Volume) -> None:
    """Write the numbers of objects, each of which is a label.

    Args:
        path: a file as `write_segmentation` writes it.
        objects: numbers from 1, with 0 for the background.

    Raises:
        InputError: there are more objects than the 16 bits of the file can number.
        OutputError: the file cannot be written.
    """
    count = int(objects.voxels.max(initial=0))
    if count > MOST_OBJECTS:
        raise InputError(
            f"There are {count} objects, and {path} can number {MOST_OBJECTS}. Segment a part of the picture."
        )
    named = [Label(n, f"Object {n}", made_color(n)) for n in range(1, count + 1)]
    write_segmentation(path, objects.with_voxels(objects.voxels.astype(np.uint16)), named)


def write_object_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a row for each object: see `measurements.object_rows`. Raises OutputError."""
    write_table(path, list(rows[0]) if rows else ["number"], rows)


def write_tables_together(path: Path, tables: Mapping[str, Path]) -> None:
    """Write the objects of several cases into one table, with the name of the case in its first column.

    Args:
        path: the table to write.
        tables: the table of each case, from `write_object_table`. One that is missing, or that somebody made
            unreadable, is left out. They are read one after another, so that memory does not grow with them.

    Raises:
        OutputError: the table cannot be written.
    """
    rows = ({"case": case, **row} for case, table in tables.items() for row in _rows_in(table))
    first = next(rows, None)
    if first is None:
        write_table(path, ["case", "number"], [])
        return
    columns = list(first)  # the same in all cases, because they have the channels of the model
    alike = ({name: row.get(name) for name in columns} for row in chain([first], rows))
    write_table(path, columns, alike)


def _rows_in(table: Path) -> Iterator[dict[str, Any]]:
    try:
        rows = read_table(table).rows.values()
    except InputError:
        return
    for row in rows:
        yield {name: _value(cell) for name, cell in row.items()}


def _value(cell: str) -> int | float | str | None:
    """Return the number in a cell, because a minus in text is written with an apostrophe; None for "" and n/a."""
    if cell in ("", "n/a"):
        return None
    for kind in (int, float):
        try:
            return kind(cell)
        except ValueError:
            continue
    return cell

"""Tables for spreadsheets and scripts."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from medsegai.io.atomic import atomic_path
from medsegai.system.outside_text import table_cell

EXACT_DIGITS = 12
"""Digits of a double that arithmetic leaves exact; it has 15 to 17."""


def write_table(
    path: Path | str, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]
) -> None:
    """Write rows below their headings, as CSV in UTF-8, or, where the name ends in .tsv, separated by tabs.

    What is None or left out is an empty cell, or n/a in the latter, as BIDS has it; of a list, the items stand in
    one cell, joined by "; ". Numbers have as many digits as are exact, so that a sum of floats is 1.404 and not
    1.4040000000000001.

    Raises:
        OutputError: the file cannot be written; an existing file stays.
    """
    with atomic_path(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        if Path(path).suffix.lower() == ".tsv":
            for cells in (columns, *([row.get(name) for name in columns] for row in rows)):
                file.write("\t".join(map(_tsv_cell, cells)) + "\n")
            return
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)


def _tsv_cell(value: object) -> str:
    """A cell in one line without tabs. Quotes have no meaning there, so other characters are not changed."""
    return "n/a" if value is None else str(_cell(value)).replace("\t", " ")


def _cell(value: object) -> Any:
    if isinstance(value, float):  # NumPy's float64 is one
        return float(f"{value:.{EXACT_DIGITS}g}")
    return table_cell("; ".join(map(str, value)) if isinstance(value, (list, tuple)) else value)

"""Tables for spreadsheets and scripts."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medsegai.errors import InputError
from medsegai.io.atomic import atomic_path
from medsegai.system.outside_text import table_cell
from medsegai.system.regular_files import read_regular

DELIMITERS = ",;\t"
"""Spreadsheets write the second where the comma stands in numbers."""

MOST_BYTES = 64 << 20
"""A table of a million lines is smaller."""

EXACT_DIGITS = 12
"""The digits of a double that stay exact in arithmetic; a double has 15 to 17."""


def write_table(
    path: Path | str, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]
) -> None:
    """Write rows below their headings, as CSV in UTF-8, or separated by tabs if the name ends in .tsv.

    A value that is None or missing is an empty cell, or n/a in .tsv, as in BIDS; the items of a list are in one
    cell, joined by "; ". Numbers have as many digits as are exact, so that a sum of floats is 1.404 and not
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


@dataclass(frozen=True)
class Table:
    """What a CSV holds.

    Attributes:
        source: what it is called in messages.
        headings: of its columns, in lower case.
        rows: by line number in the file; cells by their headings, "" where there is nothing. Empty lines are left
            out.
    """

    source: str
    headings: tuple[str, ...]
    rows: Mapping[int, Mapping[str, str]]

    def check(self, *columns: str) -> None:
        """Raises InputError: there is no row, or one of these columns is missing."""
        missing = [name for name in columns if name.casefold() not in self.headings]
        if missing or not self.rows:
            raise InputError(
                f"The table {self.source} needs rows, and the columns {' and '.join(columns)}. Its columns are "
                f"{', '.join(filter(None, self.headings)) or 'without names'}."
            )


def read_table(path: Path) -> Table:
    """Read a CSV as people and spreadsheets write them.

    Raises:
        InputError: see `parse_table`; or the file cannot be opened.
    """
    try:
        return parse_table(read_regular(path, MOST_BYTES), str(path))
    except OSError as error:
        raise InputError(f"The table {path} cannot be read: {error.strerror or error}.") from error


def parse_table(data: bytes, source: str) -> Table:
    """The rows of a CSV in UTF-8, separated by commas, semicolons or tabs, below a line of headings.

    Args:
        data: the content of the file.
        source: what it is called in messages.

    Raises:
        InputError: it is not text in UTF-8, or not a table.
    """
    lines = _lines(data, source)
    lines = [(number, line) for number, line in lines if any(line)]
    headings = tuple(name.casefold() for name in lines[0][1]) if lines else ()
    empty = dict.fromkeys(headings, "")
    rows = {number: empty | dict(zip(headings, line, strict=False)) for number, line in lines[1:]}
    return Table(source, headings, rows)


def _lines(data: bytes, source: str) -> list[tuple[int, list[str]]]:
    """Return the number and cells of each line."""
    try:
        text = data.decode("utf-8-sig")
        head = text.lstrip().partition("\n")[0]
        delimiter = max(DELIMITERS, key=head.count)
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        return [(reader.line_num, [cell.strip() for cell in line]) for line in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(
            f"{source} cannot be read as a table ({error}). Save it as CSV in UTF-8."
        ) from error


def explained(columns: Mapping[str, tuple[str, str | None]]) -> dict[str, dict[str, str]]:
    """What columns mean and their units, as BIDS writes it beside a .tsv."""
    return {
        name: {"Description": words, **({} if unit is None else {"Units": unit})}
        for name, (words, unit) in columns.items()
    }


def _tsv_cell(value: object) -> str:
    """Return a cell in one line without tabs. Quotes are ordinary in .tsv, so other characters are unchanged."""
    return "n/a" if value is None else str(_cell(value)).replace("\t", " ")


def _cell(value: object) -> Any:
    if isinstance(value, float):  # NumPy's float64 is one
        return float(f"{value:.{EXACT_DIGITS}g}")
    return table_cell("; ".join(map(str, value)) if isinstance(value, (list, tuple)) else value)

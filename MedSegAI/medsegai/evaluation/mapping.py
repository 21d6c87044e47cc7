"""Tables that translate the label values of a reference into the evaluated values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from medsegai.errors import InputError
from medsegai.io.tables import read_table
from medsegai.volume import Volume

COLUMNS = ("reference", "evaluated")
"""The columns that a table must have; others, such as names and comments, are ignored."""

LARGEST_VALUE = 65535


@dataclass(frozen=True)
class LabelMapping:
    """The evaluated values that each reference value may become: one, or several of which the nearest is taken.

    Attributes:
        rules: the evaluated values of each reference value. 0 is the background, which stays 0 unless the table
            says otherwise.
        source: the file of the table, for messages.
    """

    rules: Mapping[int, tuple[int, ...]]
    source: str = ""

    def apply(self, labelmap: Volume) -> Volume:
        """Translate a label map.

        A voxel with several possible values takes the one of the nearest voxel, in mm, whose value the table maps
        to a single one; of equally near voxels, the value that the table names first is taken.

        Args:
            labelmap: reference values, integers (k, j, i).

        Returns:
            The evaluated values on the same grid, uint16 (k, j, i).

        Raises:
            InputError: a value is not in the table, or no possible value of a voxel occurs.
        """
        table = self._table()
        mapped = table[np.minimum(labelmap.voxels.astype(np.int64), len(table) - 1)]
        self._check_mapped(labelmap, mapped)
        self._place_nearest(labelmap, mapped)
        return labelmap.with_voxels(mapped.astype(np.uint16))

    def _table(self) -> NDArray[np.int32]:
        """The value of each reference value: -1 if it is not mapped, 0 if the nearest voxel decides."""
        rules = {0: (0,), **self.rules}
        table = np.full(max(rules) + 2, -1, np.int32)  # the last entry stands for all beyond
        for value, candidates in rules.items():
            table[value] = candidates[0] if len(candidates) == 1 else 0
        return table

    def _check_mapped(self, labelmap: Volume, mapped: NDArray[np.int32]) -> None:
        if mapped.min() < 0:
            values = np.unique(labelmap.voxels[mapped < 0])[:10].tolist()
            raise InputError(
                f"{labelmap.source or 'A label map'} has the values {values}, which {self.source} "
                "does not map. Add a row for each."
            )

    def _place_nearest(self, labelmap: Volume, mapped: NDArray[np.int32]) -> None:
        spacing_kji = np.array(labelmap.geometry.spacing_mm[::-1])
        placed = []
        for candidates, values in self._choices().items():
            undecided = np.argwhere(np.isin(labelmap.voxels, values))
            if len(undecided):
                points = undecided * spacing_kji
                near = [_nearest_mm(mapped == value, points, spacing_kji) for value in candidates]
                if np.isinf(near).all():
                    raise InputError(
                        f"{labelmap.source or 'A label map'} has the values {values}, which "
                        f"{self.source} joins to the nearest of {list(candidates)}, but none of "
                        "these occurs. Map them to one value instead."
                    )
                placed.append((undecided, np.array(candidates)[np.argmin(near, axis=0)]))
        for undecided, chosen in placed:
            mapped[tuple(undecided.T)] = chosen

    def _choices(self) -> dict[tuple[int, ...], list[int]]:
        """The reference values that are joined to the nearest of the same evaluated values."""
        choices: dict[tuple[int, ...], list[int]] = {}
        for value, candidates in self.rules.items():
            if len(candidates) > 1:
                choices.setdefault(candidates, []).append(value)
        return choices


def read_mapping(path: str | Path) -> LabelMapping:
    """Read a table: CSV with the columns `reference` and `evaluated`, and any others.

    `evaluated` is one label value (0 for background), or several joined by | such as ``8|47``:
    each voxel then goes to whichever of them lies nearest.

    Raises:
        InputError: the file is missing or not such a table, a cell is not a label value, or a reference value
            occurs twice.
    """
    source = Path(path)
    table = read_table(source)
    table.check(*COLUMNS)
    rules: dict[int, tuple[int, ...]] = {}
    for line, row in table.rows.items():
        value, candidates = _rule(row, f"{source}, line {line}")
        if value in rules:
            raise InputError(f"{source}, line {line}: the reference value {value} stands twice.")
        rules[value] = candidates
    return LabelMapping(rules, str(source))


def _rule(row: Mapping[str, str], place: str) -> tuple[int, tuple[int, ...]]:
    cells = [row[name] for name in COLUMNS]
    try:
        value = int(cells[0])
        candidates = tuple(int(part) for part in cells[1].split("|"))
    except ValueError:
        candidates, value = (), -1
    if not candidates or not all(0 <= part <= LARGEST_VALUE for part in (value, *candidates)):
        raise InputError(
            f"{place}: {cells[0]!r} -> {cells[1]!r} is not a rule. Write label values from 0 to "
            f"{LARGEST_VALUE}, and several evaluated ones as 8|47."
        )
    return value, candidates


def _nearest_mm(
    seeds: NDArray[np.bool_], points: NDArray[np.float64], spacing_kji: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Distance from each point to the nearest seed voxel; infinite where there is no seed."""
    if not seeds.any():
        return np.full(len(points), np.inf)
    distances, _ = cKDTree(np.argwhere(seeds) * spacing_kji).query(points)
    return np.asarray(distances)

"""The two most probable structures of each voxel, from a file of probabilities, one volume after another."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsegai.errors import InputError
from medsegai.io.nifti import Volumes
from medsegai.labels import Label
from medsegai.request import Candidates
from medsegai.volume import Volume, check_same_grid

ROUNDING = 0.01
"""The largest excess of probabilities over 0 to 1, and of their sum over 1, because they are stored rounded."""


def read_candidates(path: Path | str, labelmap: Volume, labels: Sequence[Label]) -> Candidates:
    """Read the candidates for refinements from probabilities that `write_probabilities` wrote.

    If the volumes add up to more than one, they are overlapping regions, of which later ones take precedence, and
    the candidates are those of `Candidates` for regions.

    The file has 16 bits per value, made from half precision, and lacks the background. So probabilities may differ
    by one of 255 steps from those of the job itself, and if structures are equally probable within a step, another
    one may be the second.

    Args:
        path: the 4D NIfTI file.
        labelmap: the segmentation to refine.
        labels: its labels. Structures are matched by name, or by value if a name is not found.

    Raises:
        InputError: the file cannot be read, or does not hold probabilities of named structures.
        GeometryError: the file has another grid than the segmentation.
    """
    volumes = Volumes(Path(path))
    values = _values_of(volumes, labels)
    check_same_grid(
        volumes.geometry,
        labelmap.geometry,
        str(path),
        labelmap.source or "the segmentation",
        "Name the probabilities of this segmentation.",
    )
    kind = np.min_scalar_type(max(values))
    found = _of_classes(volumes, values, kind)
    return _of_regions(volumes, values, kind) if found is None else found


def _values_of(volumes: Volumes, labels: Sequence[Label]) -> list[int]:
    """Return the label value of each volume in the segmentation."""
    by_name = {label.name: label.value for label in labels}
    by_value = {label.value: label.name for label in labels}
    values = []
    for value, name in _named_structures(volumes):
        other = by_value.get(value, f"Label {value}")
        if name not in by_name and other != f"Label {value}":
            raise InputError(
                f"{volumes.path}: label {value} is {name!r}, but {other!r} in the segmentation. Name the "
                "probabilities of this segmentation."
            )
        values.append(by_name.get(name, value))
    return values


def _named_structures(volumes: Volumes) -> list[tuple[int, str]]:
    """Return the value and name of the structure of each volume, which the header lists."""
    named = next((entries for entries in map(_entries, volumes.comments) if entries), [])
    if not named:
        raise InputError(
            f"{volumes.path} does not name its structures. Name a file that `medsegai segment "
            "--save-probabilities` wrote."
        )
    if len(named) != volumes.count:
        raise InputError(
            f"{volumes.path} names {len(named)} structures, but holds {volumes.count} "
            "volumes. Name a file that `medsegai segment --save-probabilities` wrote."
        )
    return named


def _entries(comment: str) -> list[tuple[int, str]]:
    """Return value and name of each volume, in order; empty if the comment is a different one."""
    try:
        found = sorted(json.loads(comment), key=lambda entry: int(entry["index"]))
        entries = [(int(entry["value"]), str(entry["name"])) for entry in found]
    except (AttributeError, KeyError, TypeError, ValueError):
        return []
    return entries if all(value > 0 for value, _ in entries) else []


def _of_classes(volumes: Volumes, values: Sequence[int], kind: Any) -> Candidates | None:
    """Return candidates for structures that do not overlap; None if they overlap."""
    ranking = _TwoBest(volumes.geometry.shape, kind)
    total = np.zeros(volumes.geometry.shape, np.float32)
    for value, probability in zip(values, volumes, strict=True):
        _check_range(volumes.path, probability)
        total += probability
        if total.max() > 1 + ROUNDING:
            return None
        ranking.compete(value, probability)
    ranking.compete(0, 1 - total, wins_ties=True)
    return _in_steps(ranking.first, ranking.second, ranking.best, ranking.next_best)


class _TwoBest:
    """The two most probable values of each voxel, and their probabilities."""

    def __init__(self, shape: tuple[int, int, int], kind: Any) -> None:
        self.first, self.second = np.zeros(shape, kind), np.zeros(shape, kind)
        self.best, self.next_best = np.zeros(shape, np.float32), np.zeros(shape, np.float32)

    def compete(
        self, value: int, probability: NDArray[np.float32], wins_ties: bool = False
    ) -> None:
        """Rank one more value."""
        compared = np.greater_equal if wins_ties else np.greater
        wins = compared(probability, self.best)
        follows = compared(probability, self.next_best) & ~wins
        values = (self.second, self.first, value)
        for ranked, earlier, new in (values, (self.next_best, self.best, probability)):
            np.copyto(ranked, earlier, where=wins)
            np.copyto(ranked, new, where=follows)
            np.copyto(earlier, new, where=wins)


def _of_regions(volumes: Volumes, values: Sequence[int], kind: Any) -> Candidates:
    """Return candidates for overlapping regions: the change that the decision nearest to one half would make.

    The method is that of `Activation.two_best`, region by region. A voxel is in the last region above one half. If
    it leaves that region, it falls back to the previous one, and it may enter later ones.
    """
    shape = volumes.geometry.shape
    inside, before, entered = (np.zeros(shape, kind) for _ in range(3))
    leaves, enters = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    for value, probability in zip(values, volumes, strict=True):
        _check_range(volumes.path, probability)
        there = probability > 0.5
        np.copyto(before, inside, where=there)
        np.copyto(inside, value, where=there)
        np.copyto(leaves, 1 - probability, where=there)
        np.copyto(enters, 0, where=there)
        nearer = ~there & (probability > enters)
        np.copyto(entered, value, where=nearer)
        np.copyto(enters, probability, where=nearer)
    flipped = np.maximum(enters, leaves)
    second = np.where(enters >= leaves, entered, before)
    return _in_steps(inside, second, 1 - flipped, flipped)


def _check_range(path: Path, probability: NDArray[np.float32]) -> None:
    low, high = float(probability.min()), float(probability.max())
    if not (low >= -ROUNDING and high <= 1 + ROUNDING):
        raise InputError(
            f"{path} has values from {low:g} to {high:g}, which are not probabilities. Name a "
            "file that `medsegai segment --save-probabilities` wrote."
        )


def _in_steps(
    first: NDArray[np.integer],
    second: NDArray[np.integer],
    p_first: NDArray[np.float32],
    p_second: NDArray[np.float32],
) -> Candidates:
    high, low = (
        np.rint(255 * np.clip(values, least, 1)).astype(np.uint8)
        for values, least in ((p_first, 1 / 255), (p_second, 0.0))
    )
    second[low == 0] = 0
    return Candidates(first, second, high, low)

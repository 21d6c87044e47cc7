"""Checks whether labels are anatomically plausible, with remarks on the structures that a person should review.

The checks do not depend on how the labels were made; `medsegai.models.quality` says how certain a model is.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medsegai.boxes import label_boxes
from medsegai.labels import Label, counterparts
from medsegai.models.quality import PLAUSIBLE, Reference
from medsegai.refinements._components import components
from medsegai.volume import Box, Geometry, Volume, joined_box

USUAL_LARGEST_PART = 0.8
"""Without a reference, at least this share of a structure's volume must be in one part."""

WAYS = (("left", "right"), ("posterior", "anterior"), ("inferior", "superior"))
"""The names of the low and the high end of R, A and S."""

MOST_RUNS = 1_000_000
"""The largest number of runs of equal voxels for which the components of all labels are found at once, which takes
about 600 bytes per run; heads have half as many runs. Beyond it, labels are examined one by one, which takes 6
bytes
per voxel of a label's box, and longer if stray voxels make the boxes large."""


def remarks(
    labelmap: Volume, labels: Sequence[Label], reference: Reference | None = None
) -> dict[int, tuple[str, ...]]:
    """Find what is implausible about each structure, as sentences by label value; plausible structures have none.

    - It touches the border of the field of view. Its volume and asymmetry are not judged then.
    - Its volume lies outside of the reference's range.
    - It differs more from its counterpart on the other side than the reference says.
    - It is missing, although the reference gives its volume.
    - Its largest part (voxels that touch by faces, edges or corners) holds less than the reference's share of it.

    With a reference, only the structures that it contains are checked, because it leaves out those whose extent
    depends on the scan. Without one, the borders and parts of all structures are checked, the parts by
    `USUAL_LARGEST_PART`.

    Args:
        labelmap: label values on the field of view, integer (k, j, i); any spacing and orientation.
        labels: the structures.
        reference: the plausible ranges of the model.
    """
    judged = [
        label for label in labels if reference is None or label.value in reference.label_values
    ]
    found = _Found.of(labelmap, [label.value for label in judged])
    sides = {value: border_sides(box, labelmap.geometry) for value, box in found.boxes.items()}
    whole = {value: found.volumes_ml[value] for value, names in sides.items() if not names}
    said: dict[int, list[str]] = {label.value: [] for label in judged}
    _judge_borders(said, sides)
    if reference is not None:
        _judge_volumes(said, whole, found, reference)
        _judge_asymmetry(said, judged, whole, reference)
    _judge_parts(said, found, reference)
    return {value: tuple(words) for value, words in said.items() if words}


def _judge_borders(said: dict[int, list[str]], sides: Mapping[int, Sequence[str]]) -> None:
    for value, names in sides.items():
        if names:
            said[value].append(
                f"touches the {_joined_names(names)} border of the field of view, so a part of it may be missing; "
                "its volume is not judged"
            )


def _judge_parts(said: dict[int, list[str]], found: _Found, reference: Reference | None) -> None:
    for value, share in found.largest_part.items():
        least = reference.largest_part.get(value, 0.0) if reference else USUAL_LARGEST_PART
        if share < least:
            said[value].append(
                f"in {found.parts[value]} parts, of which the largest holds {100 * share:.0f} %; at least "
                f"{100 * least:.0f} % is {PLAUSIBLE if reference else 'usual'}"
            )


def cut_sides(labelmap: Volume, values: Sequence[int]) -> str:
    """The borders of the field of view that the labels touch, such as "superior and left"; "" if none."""
    boxes = label_boxes(labelmap.voxels, list(values))
    sides = (side for box in boxes.values() for side in border_sides(box, labelmap.geometry))
    return _joined_names(list(dict.fromkeys(sides)))


@dataclass(frozen=True)
class _Found:
    """Properties of the labels, by label value.

    Attributes:
        boxes: the box around each structure.
        volumes_ml: the volume of each structure.
        parts: the number of its connected parts.
        largest_part: the share of its volume in the largest part.
    """

    boxes: dict[int, Box]
    volumes_ml: dict[int, float]
    parts: dict[int, int]
    largest_part: dict[int, float]

    @classmethod
    def of(cls, labelmap: Volume, values: Sequence[int]) -> _Found:
        boxes = label_boxes(labelmap.voxels, values)
        sizes = parts_of(labelmap.voxels, boxes)
        voxels = {value: int(parts.sum()) for value, parts in sizes.items()}
        return cls(
            boxes,
            {value: count * labelmap.geometry.voxel_volume_ml for value, count in voxels.items()},
            {value: len(parts) for value, parts in sizes.items()},
            {value: int(parts.max()) / voxels[value] for value, parts in sizes.items()},
        )


def parts_of(voxels: NDArray[np.integer], boxes: Mapping[int, Box]) -> dict[int, NDArray[np.int64]]:
    """The number of voxels of each connected part of each label."""
    if not boxes:
        return {}
    inside = np.ascontiguousarray(voxels[joined_box(boxes.values())])
    if _runs(inside) > MOST_RUNS:
        return {value: _sizes_in_box(voxels[box] == value) for value, box in boxes.items()}
    values = np.array(sorted(boxes), np.int64)
    found = components(inside, values, "26", lambda: None)
    order = np.argsort(found.value, kind="stable")
    ends = np.searchsorted(found.value[order], values, side="right")[:-1]
    return dict(zip(values.tolist(), np.split(found.size[order], ends), strict=True))


def _runs(voxels: NDArray[np.integer]) -> int:
    """The number of runs of equal voxels along the last axis, counted without a second volume in memory."""
    count = voxels.shape[0] * voxels.shape[1]
    return count + sum(int(np.count_nonzero(plane[:, 1:] != plane[:, :-1])) for plane in voxels)


def _sizes_in_box(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    from scipy import ndimage

    parts, count = ndimage.label(mask, np.ones((3, 3, 3), bool))
    sizes = np.zeros(count + 1, np.int64)
    for plane in parts:  # bincount makes 64 bits of each voxel
        sizes += np.bincount(plane.ravel(), minlength=count + 1)
    return sizes[1:]


def border_sides(box: Box, geometry: Geometry) -> list[str]:
    """The borders of the grid that a structure touches, in anatomical terms; the nearest terms on oblique grids.

    A single slice has no border in front of it or behind.

    Args:
        box: the box around the structure, (k, j, i).
        geometry: the grid.
    """
    touched = []
    for part, size, (low, high) in zip(box, geometry.shape, _ends(geometry), strict=True):
        if size > 1:
            touched += [low] if part.start == 0 else []
            touched += [high] if part.stop == size else []
    return sorted(touched)


def _ends(geometry: Geometry) -> list[tuple[str, str]]:
    """The names of the low and the high end of each voxel axis (k, j, i); each of R, A and S occurs once."""
    axes = geometry.ijk_to_ras[:3, 2::-1] / np.array(geometry.spacing_mm)[::-1]  # columns k, j, i
    nearest = max(
        itertools.permutations(range(3)),
        key=lambda rows: sum(abs(axes[row, axis]) for axis, row in enumerate(rows)),
    )
    ends = []
    for axis, row in enumerate(nearest):
        low, high = WAYS[row]
        ends.append((low, high) if axes[row, axis] > 0 else (high, low))
    return ends


def _judge_volumes(
    said: dict[int, list[str]], whole: Mapping[int, float], found: _Found, reference: Reference
) -> None:
    for value in said:
        low, high = reference.volumes_ml.get(value, (0.0, np.inf))
        if value not in found.boxes and low > 0:
            said[value].append("not found, although it is to be expected")
        elif not low <= whole.get(value, low) <= high:
            said[value].append(
                f"volume {_number(whole[value])} ml, where {_number(low)} to {_number(high)} ml is "
                f"{PLAUSIBLE}"
            )


def _judge_asymmetry(
    said: dict[int, list[str]],
    labels: Sequence[Label],
    whole: Mapping[int, float],
    reference: Reference,
) -> None:
    for left, right in _pairs(labels):
        low, high = reference.asymmetry_percent.get(left, (-200.0, 200.0))
        if left not in whole or right not in whole:
            continue
        percent = 200 * (whole[left] - whole[right]) / (whole[left] + whole[right])
        if not low <= percent <= high:
            words = (
                f"left minus right volume is {percent:+.0f} % of the mean of both, where {low:+.0f} to "
                f"{high:+.0f} % is {PLAUSIBLE}"
            )
            said[left].append(words)
            said[right].append(words)


def _pairs(labels: Sequence[Label]) -> Iterator[tuple[int, int]]:
    """Yield the label values of the left and the right structure of each pair."""
    for left, right in counterparts(labels):
        yield labels[left].value, labels[right].value


def _number(value: float) -> str:
    """Format a number with three digits, without an exponent for large ones."""
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def _joined_names(names: Sequence[str]) -> str:
    return "".join(names) if len(names) < 2 else f"{', '.join(names[:-1])} and {names[-1]}"

"""Keep only the largest connected component of each label, or of several labels together, as nnU-Net does.

This is nnU-Net's postprocessing (`remove_all_but_largest_component_from_segmentation`): voxels that share a face,
an edge or a corner are connected, and removed voxels become background.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsegai.boxes import label_boxes
from medsegai.refinements import Draft, Refined, Step
from medsegai.refinements._settings import setting
from medsegai.volume import joined_box

TITLE = "Keep the largest part"

USES_CANDIDATES = False
"""Removed voxels become background, as in nnU-Net, so that candidates are not needed."""


@dataclass(frozen=True)
class Options:
    """Each entry of `labels` is one structure: a label value or, in a model's card, a group of label values."""

    labels: tuple[Any, ...] = setting(
        (),
        "values of the labels to reduce to their largest component, such as 17+53; each of all "
        "labels, if none is named",
        title="Structures",
    )


def apply(draft: Draft, options: Options, step: Step) -> Refined:
    """Remove all but the largest component of each group; if nothing is removed, the draft's array is kept."""
    voxels = draft.labelmap.voxels
    named = options.labels or tuple(label_boxes(voxels))
    groups = [item if isinstance(item, tuple) else (item,) for item in named]
    for number, group in enumerate(groups):
        step(number / len(groups))
        voxels, _ = keep_largest(voxels, [group])
    return Refined.of(draft, voxels)


def keep_largest(
    voxels: NDArray[np.integer], groups: Sequence[Sequence[int]]
) -> tuple[NDArray[np.integer], int]:
    """The labels (k, j, i) with only the largest component of each group, and the number of removed voxels."""
    result, removed = voxels, 0
    boxes = label_boxes(voxels)
    for group in groups:
        there = [boxes[value] for value in group if value in boxes]
        if not there:
            continue
        box = joined_box(there)
        mask = np.isin(result[box], group)
        rest = _besides_largest(mask)
        if rest.any():
            result = voxels.copy() if result is voxels else result
            result[box][rest] = 0
            removed += int(rest.sum())
    return result, removed


def _besides_largest(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    from scipy import ndimage

    components, _ = ndimage.label(mask, np.ones((3, 3, 3)))
    sizes = np.bincount(components.ravel())
    rest: NDArray[np.bool_] = mask & (components != 1 + sizes[1:].argmax())
    return rest

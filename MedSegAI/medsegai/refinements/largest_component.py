"""Keep only the largest connected component of each label, or of several labels together, as nnU-Net does.

What nnU-Net's post-processing does (`remove_all_but_largest_component_from_segmentation`): voxels that touch by a
face, an edge or a corner belong together, and what is removed becomes background.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsegai.refinements import Draft, Refined, Step
from medsegai.refinements._settings import setting

USES_CANDIDATES = False
"""nnU-Net makes background of what it removes, and so does this."""


@dataclass(frozen=True)
class Options:
    """`labels`: each entry is one structure: a label value, or a group of them (in a model's card)."""

    labels: tuple[Any, ...] = setting(
        (),
        "values of the labels to reduce to their largest component, such as 17+53; name at least one",
    )


def apply(draft: Draft, options: Options, step: Step) -> Refined:
    """Remove all but the largest component of each group. The draft is kept where nothing is removed."""
    groups = [item if isinstance(item, tuple) else (item,) for item in options.labels]
    voxels = draft.labelmap.voxels
    for number, group in enumerate(groups):
        step(number / len(groups))
        voxels, _ = keep_largest(voxels, [group])
    return Refined.of(draft, voxels)


def keep_largest(voxels: NDArray[Any], groups: Sequence[Sequence[int]]) -> tuple[NDArray[Any], int]:
    """Labels (k, j, i) with the largest component of each group alone, and how many voxels were removed."""
    from scipy import ndimage

    removed = 0
    for group in groups:
        mask = np.isin(voxels, group)
        components, count = ndimage.label(mask, np.ones((3, 3, 3)))
        if count > 1:
            sizes = np.bincount(components.ravel())
            rest = mask & (components != 1 + sizes[1:].argmax())
            voxels = np.where(rest, 0, voxels).astype(voxels.dtype)
            removed += int(rest.sum())
    return voxels, removed

"""Keep only the largest connected component of each label, or of several labels together.

What nnU-Net's post-processing does (`remove_all_but_largest_component_from_segmentation`): voxels that touch by a
face, an edge or a corner belong together, and what is removed becomes background.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray

from medsegai.volume import Volume


@dataclass(frozen=True)
class Options:
    """`labels`: groups of label values; each group is one structure, whatever labels it is made of."""

    labels: Sequence[Sequence[int]]


def apply(labelmap: Volume, options: Options) -> tuple[NDArray[Any], list[str]]:
    """Remove all but the largest component of each group.

    Returns:
        The labels, (k, j, i), a copy where something was removed; and what was removed, in words.
    """
    voxels, removed = labelmap.voxels, 0
    for group in options.labels:
        mask = np.isin(voxels, group)
        components, count = scipy.ndimage.label(mask, np.ones((3, 3, 3)))
        if count > 1:
            sizes = np.bincount(components.ravel())
            rest = mask & (components != 1 + sizes[1:].argmax())
            voxels = np.where(rest, 0, voxels).astype(voxels.dtype)
            removed += int(rest.sum())
    if not removed:
        return voxels, []
    volume = removed * labelmap.geometry.voxel_volume_ml
    return voxels, [
        f"Parts apart from the largest were removed: {removed} voxels, {volume:.2f} ml."
    ]

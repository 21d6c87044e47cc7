"""Quality of instance segmentation: aggregated Jaccard index, panoptic quality, and F1 at an IoU of one half.

Sources: Kumar et al., "A Dataset and a Technique for Generalized Nuclear Segmentation for Computational
Pathology", IEEE TMI 2017 (AJI); Kirillov et al., "Panoptic Segmentation", CVPR 2019 (PQ).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

HALF = 0.5
"""Two objects match if their IoU exceeds this, so that each object has at most one match."""


@dataclass(frozen=True)
class InstanceScores:
    """The scores of one image, or of several together; NaN if neither map has an object.

    Attributes:
        aji: aggregated Jaccard index.
        pq: panoptic quality, `f1` times the mean overlap of matches.
        f1: number of matches, divided by the mean of `found` and `expected`.
        found, expected: numbers of objects in the prediction and in the reference.
    """

    aji: float
    pq: float
    f1: float
    found: int
    expected: int


def instance_scores(found: NDArray[np.int32], expected: NDArray[np.int32]) -> InstanceScores:
    """Compare two instance maps.

    Args:
        found: the prediction, int32 (j, i): a number for each object, and 0 for the background.
        expected: the reference, in the same format.
    """
    common, true_sizes, own_sizes = _overlaps(found, expected)
    if not len(true_sizes) and not len(own_sizes):
        return InstanceScores(np.nan, np.nan, np.nan, 0, 0)
    union = true_sizes[:, None] + own_sizes[None] - common
    overlap = common / union
    matched = overlap > HALF
    f1 = 2 * int(matched.sum()) / (len(true_sizes) + len(own_sizes))
    quality = float(overlap[matched].mean()) if matched.any() else 0.0
    aggregated = _aggregated(common, union, true_sizes, own_sizes)
    return InstanceScores(aggregated, f1 * quality, f1, len(own_sizes), len(true_sizes))


def _overlaps(
    found: NDArray[np.int32], expected: NDArray[np.int32]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return the common pixels of each true and each found object, and the pixels of both."""
    answers, found_map = np.unique(found, return_inverse=True)
    truths, expected_map = np.unique(expected, return_inverse=True)
    table = np.zeros((len(truths), len(answers)), np.int64)
    np.add.at(table, (expected_map.ravel(), found_map.ravel()), 1)
    rows, columns = truths > 0, answers > 0
    common = table[rows][:, columns]
    return common, table.sum(1)[rows], table.sum(0)[columns]


def _aggregated(
    common: NDArray[np.int64],
    union: NDArray[np.int64],
    true_sizes: NDArray[np.int64],
    own_sizes: NDArray[np.int64],
) -> float:
    """The aggregated Jaccard index.

    Each true object is compared with the found object of the highest IoU, and found objects without a partner
    count as wrong.
    """
    if not len(true_sizes) or not len(own_sizes):
        return 0.0
    best = (common / union).argmax(1)
    places = np.arange(len(true_sizes))
    touched = common[places, best] > 0
    inner = int(common[places, best].sum())
    outer = int(np.where(touched, union[places, best], true_sizes).sum())
    left = np.setdiff1d(np.arange(len(own_sizes)), best[touched])
    return inner / (outer + int(own_sizes[left].sum()))

"""Measures of how well members agree on a structure. (For the entropy of a voxel, see `probabilities.entropy`.)

Members are the networks, folds, views or Monte-Carlo dropout passes that were fused. The structure
measures are those of Bayesian QuickNAT (A. G. Roy et al., NeuroImage 195, 2019, 11-22), gathered
slab by slab, so that the whole label map of a member need not be kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

_COLUMNS = 1 << 18
"""The number of voxels per matrix product: 45 members take less than 50 MB; float32 counts are exact (< 2**24)."""


class Agreement:
    """How well members agree on each structure, collected slab by slab.

    Voxels on which all members agree are counted once for all of them. Only the others, a few per
    cent, are compared pair by pair, as the matrix product of each label's members x voxels mask
    with itself.

    Args:
        members: number of members.
        labels: the label values to measure, each 1 or more.
    """

    def __init__(self, members: int, labels: Sequence[int]) -> None:
        if members < 1 or not labels or min(labels) < 1:
            raise ValueError("Agreement needs members, and labels of 1 or more.")
        self.members = members
        self._row = {int(value): row for row, value in enumerate(labels)}
        self._top = max(self._row) + 1
        self._common = np.zeros(self._top, np.int64)
        self._union = np.zeros(len(self._row), np.int64)
        self._shared = np.zeros((len(self._row), members, members), np.int64)
        self._fused = np.zeros(self._top, np.int64)
        self._entropy = np.zeros(self._top, np.float64)
        self._information = np.zeros(self._top, np.float64)

    def add(
        self,
        member_labels: Sequence[NDArray[np.integer]] | NDArray[np.integer],
        fused_labels: NDArray[np.integer],
        entropy: NDArray[np.floating] | None = None,
        information: NDArray[np.floating] | None = None,
    ) -> None:
        """Count one slab; slabs must not overlap.

        Args:
            member_labels: label value of each member, M integer arrays (k, j, i) or one (M, k, j, i).
            fused_labels: label values of the result, (k, j, i).
            entropy: entropy of the fused probabilities in nats, (k, j, i).
            information: mutual information of the members in nats, (k, j, i).

        Raises:
            ValueError: the shapes differ, or do not fit the number of members.
        """
        shapes = [labels.shape for labels in member_labels]
        if shapes != [fused_labels.shape] * self.members:
            raise ValueError(f"{self.members} members on {fused_labels.shape}, but got {shapes}.")
        differs = np.zeros(fused_labels.shape, bool)
        for labels in member_labels[1:]:
            differs |= labels != member_labels[0]
        self._common += self._histogram(member_labels[0][~differs])
        self._compare(np.stack([labels[differs] for labels in member_labels]))
        inside = fused_labels != 0
        self._fused += self._histogram(fused_labels[inside])
        for values, total in ((entropy, self._entropy), (information, self._information)):
            if values is None:
                total[:] = np.nan
            elif values.shape != fused_labels.shape:
                raise ValueError(f"Entropy {values.shape} is not on {fused_labels.shape}.")
            else:
                total += self._sums(fused_labels[inside], values[inside])

    def measures(self, value: int) -> dict[str, float]:
        """The measures of one structure; NaN if no member, or not the result, has a voxel of it.

        With a single member there is nothing to compare, so all measures except the entropy are NaN. A mean of
        values that were not given is NaN as well. The keys are:

        - ``volume_cv``: CV_s, standard deviation over mean of the members' volumes; the deviation
          divides by M, not M - 1, as in the authors' code.
        - ``pairwise_dice``: d_s, mean Dice over all pairs of members; a pair of which neither
          has the structure is left out.
        - ``iou``: IoU_s, voxels in all members over voxels in any.
        - ``mean_entropy``: mean entropy inside the structure of the result, in nats.
        - ``mutual_information``: mean of that inside the structure of the result, in nats.
        """
        row = self._row[value]
        common = int(self._common[value])
        shared = self._shared[row] + common
        volumes = np.diagonal(shared).astype(np.float64)
        first, second = np.triu_indices(self.members, 1)
        sizes = volumes[first] + volumes[second]
        found = sizes > 0
        compared = self.members > 1 and bool(found.any())
        voxels = int(self._fused[value])
        return {
            "volume_cv": float(volumes.std() / volumes.mean()) if compared else np.nan,
            "pairwise_dice": float(np.mean(2 * shared[first, second][found] / sizes[found]))
            if compared
            else np.nan,
            "iou": common / (common + int(self._union[row])) if compared else np.nan,
            "mean_entropy": float(self._entropy[value]) / voxels if voxels else np.nan,
            "mutual_information": float(self._information[value]) / voxels if voxels else np.nan,
        }

    def _compare(self, labels: NDArray[np.integer]) -> None:
        """Count the voxels on which members differ; `labels` is (member, voxel)."""
        for part in _chunks(labels):
            present = np.flatnonzero(self._histogram(part.ravel()))
            for value in present:
                row = self._row.get(int(value))
                if row is None:
                    continue
                mask = part == value
                counts = mask.take(np.flatnonzero(mask.any(axis=0)), axis=1).astype(np.float32)
                self._union[row] += counts.shape[1]
                self._shared[row] += (counts @ counts.T).astype(np.int64)

    def _histogram(self, labels: NDArray[np.integer]) -> NDArray[np.intp]:
        return np.bincount(labels, minlength=self._top)[: self._top]

    def _sums(
        self, labels: NDArray[np.integer], values: NDArray[np.floating]
    ) -> NDArray[np.float64]:
        sums = np.bincount(labels, values, minlength=self._top)
        return np.asarray(sums[: self._top], np.float64)


def _chunks(labels: NDArray[np.integer]) -> Iterator[NDArray[np.integer]]:
    return (labels[:, at : at + _COLUMNS] for at in range(0, labels.shape[1], _COLUMNS))

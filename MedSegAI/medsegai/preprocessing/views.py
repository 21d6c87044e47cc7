"""The three views of QuickNAT: how a volume becomes a stack of slices, and the inverse.

Volumes are (k, j, i) on a conformed grid whose file axes x, y, z run to Left, Inferior, Anterior
(LIA, as ``mri_convert --conform`` writes it), so i runs left, j down and k forward. Transposes of
the released code on its (x, y, z) arrays: coronal (2, 0, 1), axial (1, 2, 0), sagittal identity
(ai-med/quickNAT_pytorch, utils/preprocessor.py). Here the same slices come from (k, j, i).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medsegai.volume import Scalar


@dataclass(frozen=True)
class View:
    """One way to cut a volume. ``axes`` are the (k, j, i) axes that become (slice, row, column)."""

    name: str
    axes: tuple[int, int, int]

    def stack(self, volume: NDArray[Scalar]) -> NDArray[Scalar]:
        """Return (..., k, j, i) as (..., slice, row, column), without a copy."""
        leading = volume.ndim - 3
        return volume.transpose(*range(leading), *(leading + axis for axis in self.axes))

    @property
    def back(self) -> tuple[int, ...]:
        """The axes of (slice, row, column) that become (k, j, i)."""
        return tuple(self.axes.index(axis) for axis in range(3))


VIEWS: dict[str, View] = {
    "axial": View("axial", (1, 0, 2)),
    "coronal": View("coronal", (0, 2, 1)),
    "sagittal": View("sagittal", (2, 1, 0)),
}


def thick_slices(stack: NDArray[Scalar], indices: ArrayLike, count: int) -> NDArray[Scalar]:
    """Return slices with their neighbours as channels.

    ``stack`` (S, H, W) and ``indices`` (N,) give (N, count, H, W): channel ``count // 2`` is the
    slice itself; beyond the first and the last slice the edge is repeated.
    """
    if count < 1 or count % 2 == 0:
        raise ValueError(f"A thick slice has an odd number of slices, not {count}")
    offsets = np.arange(count) - count // 2
    wanted = np.asarray(indices, dtype=np.int64)[:, None] + offsets
    return stack[np.clip(wanted, 0, stack.shape[0] - 1)]

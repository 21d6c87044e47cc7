"""A check that a scan fits into memory on the grid that a card asks for."""

from __future__ import annotations

import math
from collections.abc import Sequence

from medsegai.errors import ModelError
from medsegai.system.machine import available_memory


def check_memory(shape: Sequence[int], bytes_a_voxel: int) -> None:
    """Check that a resampled scan fits into the free memory before the memory is allocated.

    Args:
        shape: shape of the grid, in voxels.
        bytes_a_voxel: bytes per voxel of all copies that exist at the same time.

    Raises:
        ModelError: the scan does not fit.
    """
    needed, free = bytes_a_voxel * math.prod(map(int, shape)), available_memory()
    if free is not None and needed > free:
        raise ModelError(
            f"On the grid of this model the scan has {' x '.join(map(str, shape))} voxels, which take "
            f"{needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB of memory are free. Crop the scan, or take another "
            "model."
        )

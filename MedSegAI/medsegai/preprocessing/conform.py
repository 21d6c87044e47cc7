"""Resampling of any scan to the grid that a brain network was trained on, as FreeSurfer's `mri_convert --conform`.

The conformed grid has one spacing, a cube of voxels and the axes LIA: i to the left, j to the feet, k to the
front. Its middle is that of the scan, in whatever order voxels are stored. FreeSurfer places voxel N/2 of the new
grid on voxel N/2 of the old one, which is half a voxel beyond the middle, on a side that depends on the order of
storage; where spacings are equal, both rules place new voxels on old ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy
from numpy.typing import NDArray

from medsegai.volume import Geometry, Volume

LIA = np.array([[-1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, -1.0, 0.0]])
"""Directions of i, j, k as columns, in RAS."""

STRIDE = 16
"""The number of voxels by which grids grow, so that four poolings fit."""


def conformed_geometry(
    source: Geometry, grid: Sequence[int], spacing_mm: Sequence[float]
) -> Geometry:
    """Return the LIA grid of at least `grid` (i, j, k) voxels around the middle of `source`.

    If the field of view is larger than the grid, the grid grows, so that no voxel of the input is left out.
    """
    center = source.center_ras
    reach = np.abs(_corners_ras(source) - center).max(axis=0) @ np.abs(LIA)
    needed = np.ceil(2 * (reach / spacing_mm) / STRIDE - 1e-6).astype(int) * STRIDE
    size = np.maximum(needed, grid) if (needed > np.asarray(grid)).any() else np.asarray(grid)
    axes = LIA * np.asarray(spacing_mm)
    origin = center - axes @ ((size - 1) / 2)
    return Geometry.from_spacing(tuple(size[::-1]), spacing_mm, origin, LIA)


def conform(volume: Volume, geometry: Geometry, antialias: bool) -> NDArray[np.float32]:
    """Resample `volume` onto `geometry` by trilinear interpolation; voxels outside it get its minimum.

    `antialias` blurs first along axes that become coarser, to the width of the new voxels. `mri_convert`
    does not.
    """
    voxels = np.asarray(volume.voxels, dtype=np.float32)
    target_to_source = volume.geometry.ras_to_ijk @ geometry.ijk_to_ras
    if antialias:
        voxels = _blurred(voxels, volume.geometry, geometry)
    matrix = target_to_source[:3, :3][::-1, ::-1]
    offset = target_to_source[:3, 3][::-1]
    return scipy.ndimage.affine_transform(  # type: ignore[no-any-return]
        voxels,
        matrix,
        offset,
        output_shape=geometry.shape,
        order=1,
        cval=float(voxels.min()),
    )


def head_box(
    scaled: NDArray[np.float32], margin: int, threshold: float = 0.1
) -> tuple[slice, slice, slice]:
    """Return the box (k, j, i) around everything but air, in steps of `STRIDE` so that poolings stay aligned.

    `scaled` holds intensities from 0 to 1. Single bright voxels do not count: a plane belongs to the head
    where more than 0.2 % of it is brighter than `threshold`.
    """
    bright = scaled > threshold
    bounds = []
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        planes = np.flatnonzero(bright.mean(axis=others) > 0.002)
        first, last = (
            (int(planes[0]), int(planes[-1]) + 1) if planes.size else (0, scaled.shape[axis])
        )
        start = max(0, first - margin) // STRIDE * STRIDE
        stop = min(-(-(last + margin) // STRIDE) * STRIDE, scaled.shape[axis])
        bounds.append(slice(start, stop))
    return bounds[0], bounds[1], bounds[2]


def _corners_ras(geometry: Geometry) -> NDArray[np.float64]:
    last = [size - 1 for size in reversed(geometry.shape)]
    corners = np.array(
        [[i, j, k, 1.0] for i in (0, last[0]) for j in (0, last[1]) for k in (0, last[2])]
    )
    return np.asarray((corners @ geometry.ijk_to_ras.T)[:, :3])


def _blurred(
    voxels: NDArray[np.float32], source: Geometry, target: Geometry
) -> NDArray[np.float32]:
    coarsening = min(target.spacing_mm) / np.asarray(source.spacing_mm[::-1])
    sigma = 0.42 * np.sqrt(np.maximum(coarsening**2 - 1.0, 0.0))
    return (
        scipy.ndimage.gaussian_filter(voxels, sigma, truncate=3.0) if sigma.max() > 0.1 else voxels
    )

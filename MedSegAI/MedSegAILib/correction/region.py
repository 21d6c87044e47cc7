"""The part of a scan on which the AI runs again: the slices around the shown one."""

from __future__ import annotations

import numpy as np

from medsegai.errors import InputError
from medsegai.volume import Geometry
from MedSegAILib.scene.inputs import grid_of
from MedSegAILib.scene.layers import array_of
from MedSegAILib.slicer_types import Node, VolumeNode
from MedSegAILib.translation import tr as _

EDGE = 0.499
"""The distance from the middle of a voxel to the border of a box around it, in voxels."""

SLAB_MM = 20.0
"""The default thickness of a slab in mm."""


def region_of_slab(
    slice_node: Node, volume: VolumeNode, thickness_mm: float = SLAB_MM
) -> tuple[float, ...]:
    """Return the box around the slices of a volume near the shown one.

    The slab follows the slices of the volume: it has the thickness along the axis of the volume that is nearest to
    the direction of the view, and is as wide as the volume. An oblique view gives the slab of its middle.

    Args:
        slice_node: the vtkMRMLSliceNode of the view.
        volume: the volume node that is segmented.
        thickness_mm: the whole thickness of the slab.

    Returns:
        Lowest and highest R, A and S in mm: a box in the world around the slab. In an oblique volume it encloses
        more than the slab.

    Raises:
        InputError: the thickness is not above 0, or the view does not show a slice of the volume.
        GeometryError: the volume has a parent transform that is not linear.
    """
    if not thickness_mm > 0:
        text = _("A slab must be thicker than 0 mm, not {thickness:g}.")
        raise InputError(text.format(thickness=thickness_mm))
    grid = grid_of(volume)
    to_ras = array_of(slice_node.GetSliceToRAS())
    directions = grid.ijk_to_ras[:3, :3] / grid.spacing_mm
    axis = int(np.argmax(np.abs(directions.T @ to_ras[:3, 2])))  # of (i, j, k)
    middle = float((grid.ras_to_ijk @ [*to_ras[:3, 3], 1.0])[axis])
    half = max(thickness_mm / grid.spacing_mm[axis] / 2, 0.5)
    size = grid.shape[2 - axis]
    if not -0.5 <= middle <= size - 0.5:
        raise InputError(
            _(
                "The view does not show a slice of the volume. Scroll to where the AI should run again."
            )
        )
    first = max(round(middle - half + 1e-6), 0)
    last = min(round(middle + half - 1e-6), size - 1)
    return bounds_of(grid, axis, first, max(first, last))


def bounds_of(grid: Geometry, axis: int, first: int, last: int) -> tuple[float, ...]:
    """Return the world box around planes `first` to `last` of `grid` along an axis of (i, j, k).

    It ends slightly inside their edges, so that it does not touch the next planes.
    """
    low, high = np.zeros(3), np.array(grid.shape[::-1]) - 1.0
    low[axis], high[axis] = first, last
    low, high = low - EDGE, high + EDGE
    corners = np.array([[x, y, z, 1.0] for x in (0, 1) for y in (0, 1) for z in (0, 1)])
    corners[:, :3] = low + corners[:, :3] * (high - low)
    world = (grid.ijk_to_ras @ corners.T)[:3]
    return tuple(
        float(value) for pair in zip(world.min(1), world.max(1), strict=True) for value in pair
    )

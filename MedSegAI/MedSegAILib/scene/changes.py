"""What a refinement would change, marked in the slice views, and the place where it would change most."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsegai.volume import Geometry
from MedSegAILib.scene.layers import Box, box_mean, boxes, oriented_image
from MedSegAILib.scene.marks import CHANGES, MOVED, Mark, Marks
from MedSegAILib.translation import tr as _

KINDS = {**CHANGES, "moved": Mark("from one segment to another", MOVED)}

NEAR_MM = 4.0
"""The largest change is where most of what lies so far around a voxel changes."""


class ShownChange:
    """Marks where label values change, until it is removed.

    Args:
        scene: the vtkMRMLScene.
        segmentation: the node that would change.
        before, after: its label values, (k, j, i); they differ somewhere.
        grid: their voxels, in the coordinates of the segmentation.
    """

    def __init__(
        self,
        scene: Any,
        segmentation: Any,
        before: NDArray[Any],
        after: NDArray[Any],
        grid: Geometry,
    ) -> None:
        box = boxes((before != after).view(np.uint8))[1]
        old, new = before[box], after[box]
        part = grid.cropped([axis.start for axis in box], old.shape)
        masks = {
            "added": (old == 0) & (new != 0),
            "removed": (old != 0) & (new == 0),
            "moved": (old != 0) & (new != 0) & (old != new),
        }
        images = {name: oriented_image(mask.view(np.uint8), part) for name, mask in masks.items()}
        self._marks = Marks(scene, _("Refinement preview"), KINDS)
        self._marks.show(images, segmentation.GetTransformNodeID())

    def remove(self) -> None:
        """Leave the scene as it was."""
        self._marks.remove()


def largest_change(
    before: NDArray[Any], after: NDArray[Any], geometry: Geometry
) -> tuple[float, float, float] | None:
    """A voxel that changes where most around it does; None where nothing changes.

    Returns:
        R, A, S in mm, in the coordinates of the geometry.
    """
    changed = before != after
    box: Box | None = boxes(changed.view(np.uint8)).get(1)
    if box is None:
        return None
    inside = changed[box]
    radii = [round(NEAR_MM / length) for length in geometry.spacing_mm[::-1]]
    density = np.where(inside, box_mean(inside, radii), np.float32(0))
    k, j, i = np.unravel_index(int(density.argmax()), density.shape)
    start = [axis.start for axis in box]
    world = geometry.ijk_to_ras @ [i + start[2], j + start[1], k + start[0], 1.0]
    return float(world[0]), float(world[1]), float(world[2])

"""Changes of a segmentation, marked in the slice views, and the place of the largest change."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsegai.volume import Geometry
from MedSegAILib.scene.inputs import transform_to_world
from MedSegAILib.scene.layers import (
    Layer,
    box_mean,
    boxes,
    grid_around,
    layers_of,
    on_grid,
    oriented_image,
)
from MedSegAILib.scene.marks import CHANGES, MOVED, Mark, Marks
from MedSegAILib.scene.merging import Masks, lattice, union
from MedSegAILib.translation import tr as _

KINDS = {**CHANGES, "moved": Mark("from one segment to another", MOVED)}

NEAR_MM = 4.0
"""The radius in mm around a voxel in which changes are counted to find the largest one."""


@dataclass(frozen=True, eq=False)
class Changed:
    """The differences of two segmentations.

    Attributes:
        gained, lost: the voxels (k, j, i) that a segment gains, and that a segment loses.
        grid: their grid, in the coordinates of the segmentations.
    """

    gained: NDArray[np.bool_]
    lost: NDArray[np.bool_]
    grid: Geometry


def changed(before: Any, after: Any) -> Changed | None:
    """Return where the segments of two segmentation nodes differ; None if they do not."""
    old_layers, new_layers = layers_of(before), layers_of(after)
    layers = (*old_layers, *new_layers)
    if not layers:
        return None
    whole = lattice(before, old_layers, layers[0].geometry)
    grid = grid_around(whole, (layer.geometry for layer in layers))
    old, new = Masks(_laid(old_layers, grid)), Masks(_laid(new_layers, grid))
    gained, lost = np.zeros(grid.shape, bool), np.zeros(grid.shape, bool)
    for name in old.names | new.names:
        box = union(old.box(name), new.box(name))
        was, will_be = old.mask(name, box), new.mask(name, box)
        gained[box] |= will_be & ~was
        lost[box] |= was & ~will_be
    box_of_all = boxes((gained | lost).view(np.uint8)).get(1)
    if box_of_all is None:
        return None
    return Changed(gained[box_of_all], lost[box_of_all], grid.part(box_of_all))


def largest_change(where: NDArray[np.bool_], grid: Geometry) -> tuple[float, float, float]:
    """Return the changing voxel with most changes around it, as R, A, S in mm in the coordinates of the grid."""
    radii = [round(NEAR_MM / length) for length in grid.spacing_mm[::-1]]
    density = np.where(where, box_mean(where, radii), np.float32(0))
    k, j, i = np.unravel_index(int(density.argmax()), density.shape)
    place = grid.ijk_to_ras @ [i, j, k, 1.0]
    return float(place[0]), float(place[1]), float(place[2])


class ShownChange:
    """Marks what one segmentation would become, until it is removed.

    Args:
        before: the present segmentation node.
        after: the changed segmentation node, under the same transform.

    Attributes:
        place: the place of the largest change, R, A, S in mm of the world; None if nothing would change.
    """

    def __init__(self, before: Any, after: Any) -> None:
        self._marks = Marks(before.GetScene(), _("Preview of changes"), KINDS)
        self.place: tuple[float, float, float] | None = None
        found = changed(before, after)
        if found is None:
            return
        masks = {
            "added": found.gained & ~found.lost,
            "removed": found.lost & ~found.gained,
            "moved": found.gained & found.lost,
        }
        images = {
            name: oriented_image(mask.view(np.uint8), found.grid) for name, mask in masks.items()
        }
        self._marks.show(images, before.GetTransformNodeID())
        local = largest_change(found.gained | found.lost, found.grid)
        r, a, s = (float(value) for value in (transform_to_world(before) @ [*local, 1.0])[:3])
        self.place = (r, a, s)

    def remove(self) -> None:
        """Remove the marks from the scene."""
        self._marks.remove()


def _laid(layers: Iterable[Layer], grid: Geometry) -> Iterator[Layer]:
    for layer in layers:
        yield Layer(on_grid(layer.voxels, layer.geometry, grid), grid, layer.values)

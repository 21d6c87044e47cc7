"""Where the networks doubted: shown over the slices, and walked from place to place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import slicer
import slicer.util
from numpy.typing import NDArray

from medsegai.errors import InputError
from medsegai.volume import Geometry
from MedSegAILib.scene.attachments import ENTROPY_REFERENCE, ENTROPY_SHOWN
from MedSegAILib.scene.inputs import ijk_to_local, transform_to_world
from MedSegAILib.scene.layers import Layer, boxes, layers_of
from MedSegAILib.scene.nodes import nodes_of
from MedSegAILib.translation import tr as _

SMOOTHED_MM = 2.0
"""A place is as doubtful as the mean of what lies so far around it: single voxels at every border are not."""

APART_MM = 10.0
"""Two doubtful places are at least so far apart, so that each step shows something else."""

NEAR_VOXELS = 3
"""So far from a place its segment is looked for, where no segment covers it."""


@dataclass(frozen=True)
class DoubtfulPlace:
    """A place to look at.

    Attributes:
        segment_id: the segment that is there, or next to it; "" where there is none.
        name: of that segment.
        ras: where, in the world, in mm.
        score: mean entropy around it, in nats.
    """

    segment_id: str
    name: str
    ras: tuple[float, float, float]
    score: float


def places(segmentation: Any, count: int = 30) -> list[DoubtfulPlace]:
    """The most uncertain places, the worst first; none where uncertainty was not measured.

    They are the tops of the smoothed entropy that lie `APART_MM` from any higher one.
    """
    node = segmentation.GetNodeReference(ENTROPY_REFERENCE)
    if node is None or node.GetImageData() is None:
        return []
    entropy = slicer.util.arrayFromVolume(node)
    to_world = transform_to_world(node) @ ijk_to_local(node)
    spacing = Geometry(entropy.shape, ijk_to_local(node)).spacing_mm[::-1]
    left = _tops(_box_mean(entropy, [round(SMOOTHED_MM / length) for length in spacing]))
    to_segmentation = np.linalg.inv(transform_to_world(segmentation))
    layers, found = layers_of(segmentation), []
    for _number in range(count):
        k, j, i = (int(at) for at in np.unravel_index(int(left.argmax()), left.shape))
        score = float(left[k, j, i])
        if score <= ENTROPY_SHOWN:
            break
        world = to_world @ [i, j, k, 1.0]
        segment = _segment_at(layers, to_segmentation @ world)
        name = segmentation.GetSegmentation().GetSegment(segment).GetName() if segment else ""
        r, a, s = (float(value) for value in world[:3])
        found.append(DoubtfulPlace(segment, name, (r, a, s), score))
        _clear_around(left, (k, j, i), spacing)
    return found


def center_of(segmentation: Any, segment_id: str) -> tuple[float, float, float] | None:
    """The voxel of a segment that lies next to its centre of mass, in the world; None without a voxel."""
    for layer in layers_of(segmentation):
        box = boxes(layer.voxels).get(layer.values.get(segment_id, 0))
        if box is not None:
            inside = np.argwhere(layer.voxels[box] == layer.values[segment_id])
            nearest = inside[((inside - inside.mean(axis=0)) ** 2).sum(axis=1).argmin()]
            k, j, i = nearest + [part.start for part in box]
            world = transform_to_world(segmentation) @ layer.geometry.ijk_to_ras @ [i, j, k, 1.0]
            return float(world[0]), float(world[1]), float(world[2])
    return None


def jump(scene: Any, ras: Sequence[float]) -> None:
    """Centre all slice views on a place in the world."""
    views = slicer.vtkMRMLSliceNode
    views.JumpAllSlices(scene, *(float(value) for value in ras), views.CenteredJumpSlice)


@dataclass
class Overlay:
    """Lays an entropy volume over the slices, and puts back what was there."""

    scene: Any
    _before: dict[str, tuple[str, float]] = field(default_factory=dict)
    _own: set[str] = field(default_factory=set)

    def show(self, segmentation: Any, shown: bool, opacity: float) -> None:
        """Show the uncertainty of a segmentation, with a legend, or take it away.

        Raises:
            InputError: its uncertainty was not measured.
        """
        entropy = segmentation.GetNodeReference(ENTROPY_REFERENCE)
        if entropy is None:
            if not shown:
                return
            raise InputError(
                f"The uncertainty of {segmentation.GetName()} was not measured. Run the model again "
                "with uncertainty switched on."
            )
        for view in nodes_of(self.scene, "vtkMRMLSliceCompositeNode"):
            if shown:
                self._lay_over(view, entropy.GetID(), opacity)
            elif view.GetForegroundVolumeID() == entropy.GetID():
                self._put_back(view)
        _legend(entropy, shown)

    def _lay_over(self, view: Any, volume: str, opacity: float) -> None:
        present = view.GetForegroundVolumeID() or ""
        if present not in self._own:  # one overlay may follow another
            self._before[view.GetID()] = (present, view.GetForegroundOpacity())
        self._own.add(volume)
        view.SetForegroundVolumeID(volume)
        view.SetForegroundOpacity(opacity)

    def _put_back(self, view: Any) -> None:
        volume, opacity = self._before.pop(view.GetID(), ("", 0.0))
        is_there = bool(volume) and self.scene.GetNodeByID(volume) is not None
        view.SetForegroundVolumeID(volume if is_there else None)
        view.SetForegroundOpacity(opacity if is_there else 0.0)


def _legend(entropy: Any, shown: bool) -> None:
    """Slicer's own colour legend; nothing where the volume has no display yet."""
    legend = slicer.vtkSlicerColorLogic.GetColorLegendDisplayNode(entropy)
    if legend is None and shown and entropy.GetDisplayNode() is not None:
        legend = slicer.vtkSlicerColorLogic.AddDefaultColorLegendDisplayNode(entropy)
    if legend is not None:
        legend.SetTitleText(_("Uncertainty (nats)"))
        legend.SetLabelFormat("%.2f")
        legend.SetVisibility(shown)


def _box_mean(values: NDArray[Any], radii: Sequence[int]) -> NDArray[np.float32]:
    """Mean over boxes of so many voxels to each side along (k, j, i); what lies outside counts as 0."""
    out: NDArray[np.float32] = values.astype(np.float32)
    for axis, radius in enumerate(radii):
        if radius > 0:
            size = out.shape[axis]
            total = np.zeros_like(out)
            for shift in range(-min(radius, size - 1), min(radius, size - 1) + 1):
                to = [slice(None)] * 3
                of = [slice(None)] * 3
                to[axis] = slice(max(-shift, 0), size - max(shift, 0))
                of[axis] = slice(max(shift, 0), size - max(-shift, 0))
                total[tuple(to)] += out[tuple(of)]
            out = total / np.float32(2 * radius + 1)
    return out


def _tops(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """The values that none of their six neighbours exceeds; 0 elsewhere."""
    is_top = np.ones(values.shape, bool)
    for axis in range(3):
        along, top = np.moveaxis(values, axis, 0), np.moveaxis(is_top, axis, 0)
        top[:-1] &= along[:-1] >= along[1:]
        top[1:] &= along[1:] >= along[:-1]
    return np.where(is_top, values, np.float32(0))


def _clear_around(
    values: NDArray[Any], center: tuple[int, int, int], spacing: Sequence[float]
) -> None:
    """Set to 0 what lies nearer than `APART_MM` to a voxel."""
    box, squares = [], []
    for axis, (at, length) in enumerate(zip(center, spacing, strict=True)):
        reach = int(APART_MM / length)
        part = slice(max(at - reach, 0), min(at + reach + 1, values.shape[axis]))
        shape = [1, 1, 1]
        shape[axis] = -1
        squares.append((((np.arange(part.start, part.stop) - at) * length) ** 2).reshape(shape))
        box.append(part)
    values[tuple(box)][squares[0] + squares[1] + squares[2] < APART_MM**2] = 0


def _segment_at(layers: Sequence[Layer], local: NDArray[np.float64]) -> str:
    """The segment at a place, else the one with most voxels next to it, else ""."""
    near: dict[str, int] = {}
    for layer in layers:
        i, j, k = np.rint(layer.geometry.ras_to_ijk @ local)[:3].astype(int)
        names = {value: name for name, value in layer.values.items()}
        part = tuple(
            slice(max(at - NEAR_VOXELS, 0), max(at + NEAR_VOXELS + 1, 0)) for at in (k, j, i)
        )
        values, counts = np.unique(layer.voxels[part], return_counts=True)
        for value, number in zip(values, counts, strict=True):
            if int(value) in names:
                near[names[int(value)]] = int(number)
        inside = all(0 <= at < size for at, size in zip((k, j, i), layer.voxels.shape, strict=True))
        if inside and int(layer.voxels[k, j, i]) in names:
            return names[int(layer.voxels[k, j, i])]
    return max(near, key=lambda name: near[name], default="")

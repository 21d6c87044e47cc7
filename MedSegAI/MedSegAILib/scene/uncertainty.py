"""The uncertain regions of a segmentation, and the walk from one to the next.

The position of a walk is stored with the segmentation, so the page, the Segment Editor and a saved scene continue
from the same region.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import slicer.util
from numpy.typing import NDArray

from medsegai.volume import Geometry
from MedSegAILib.scene.attachments import maps_of
from MedSegAILib.scene.inputs import ijk_to_local, transform_to_world
from MedSegAILib.scene.layers import Layer, box_mean, boxes, layers_of
from MedSegAILib.scene.segments import is_walked
from MedSegAILib.slicer_types import Node, SegmentationNode, VTKObject
from MedSegAILib.uncertain_regions import HEAT, Step, UncertainRegion

SMOOTHED_MM = 2.0
"""The radius in mm over which uncertainty is averaged, so that single voxels at borders do not count."""

APART_MM = 10.0
"""The smallest distance in mm of two uncertain regions, so that each step shows something else."""

PLACES_ALONG = 20
"""The largest number of regions along the longer side of a single slice."""

LEAST = 0.05
"""The smallest mean entropy in nats of an uncertain region."""

NEAR_VOXELS = 3
"""The distance in voxels within which the segment of a region is searched, if none covers it."""

COUNT = 30
"""The largest number of regions that are walked."""

CURRENT_ATTRIBUTE = "MedSegAI.current_segment"
"""Attribute of the segmentation node: id of the segment that the user is at."""

PLACE_ATTRIBUTE = "MedSegAI.place"
"""Attribute of the segmentation node: voxel i, j, k of the uncertain region that the user is at."""

WITHIN_ATTRIBUTE = "MedSegAI.places_within"
"""Attribute of the segmentation node: id of the segment whose uncertain regions are walked; all by default."""


def within(segmentation: SegmentationNode) -> str:
    """Return the segment whose uncertain regions are walked; "" for all segments."""
    name = segmentation.GetAttribute(WITHIN_ATTRIBUTE) or ""
    return name if segmentation.GetSegmentation().GetSegment(name) is not None else ""


def walk_within(segmentation: SegmentationNode, segment_id: str) -> None:
    """Only walk the uncertain regions of one segment from now on; "" for all segments."""
    note(segmentation, WITHIN_ATTRIBUTE, segment_id)


def current_segment(segmentation: SegmentationNode) -> str:
    """Return the segment that the user is at; "" if there is none."""
    name = segmentation.GetAttribute(CURRENT_ATTRIBUTE) or ""
    return name if segmentation.GetSegmentation().GetSegment(name) is not None else ""


def set_current_segment(segmentation: SegmentationNode, segment_id: str) -> None:
    """Remember the segment that the user is at, for the other pages of Slicer."""
    note(segmentation, CURRENT_ATTRIBUTE, segment_id)


def note(segmentation: SegmentationNode, attribute: str, text: str) -> None:
    """Store a text with a segmentation without notifying its views, which would draw its surfaces again."""
    was_disabled = segmentation.GetDisableModifiedEvent()
    segmentation.DisableModifiedEventOn()
    segmentation.SetAttribute(attribute, text or None)
    segmentation.SetDisableModifiedEvent(was_disabled)


class Walk:
    """Walks the uncertain regions of segmentations."""

    def __init__(self) -> None:
        self._known: tuple[VTKObject, _Tops | None] = (None, None)

    def places(self, segmentation: SegmentationNode) -> list[UncertainRegion]:
        """Return the most uncertain regions, the worst first; empty if uncertainty was not measured.

        They are the maxima of the smoothed entropy that are `APART_MM` from any higher one, in a single slice
        often less. With a heat map, they are its maxima: the most probable places. Structures that are not
        corrected, according to the model's card, are left out, unless their segment is walked.
        """
        kind, node = next(iter(maps_of(segmentation).items()), ("", None))
        if node is None or node.GetImageData() is None:
            return []
        tops = self._tops(node)
        homogeneous = np.column_stack([tops.voxels, np.ones(len(tops.voxels))])
        world = homogeneous @ (transform_to_world(node) @ ijk_to_local(node)).T
        local = world @ np.linalg.inv(transform_to_world(segmentation)).T
        layers, only = layers_of(segmentation), within(segmentation)
        left = _near(layers, only, local) if only else np.ones(len(local), bool)
        found: list[UncertainRegion] = []
        while len(found) < COUNT and left.any():
            number = int(left.argmax())
            left[number] = False
            name = _wanted(segmentation, layers, local[number], only)
            if name is not None:
                found.append(_place(segmentation, name, world[number], tops, number))
                left &= np.linalg.norm((world - world[number])[:, :3], axis=1) >= tops.apart_mm
        return [replace(place, suspicious=kind == HEAT) for place in found]

    def step(self, segmentation: SegmentationNode, by: int = 1) -> Step | None:
        """Go forward or back by a number of regions, in a circle; return None if there are none."""
        places = self.places(segmentation)
        if not places:
            return None
        stood = segmentation.GetAttribute(PLACE_ATTRIBUTE)
        voxels = [" ".join(map(str, place.voxel)) for place in places]
        at = voxels.index(stood) if stood in voxels else (-1 if by > 0 else 0)
        number = (at + by) % len(places)
        place = places[number]
        note(segmentation, PLACE_ATTRIBUTE, voxels[number])
        if place.segment_id:
            set_current_segment(segmentation, place.segment_id)
        return Step(place, number + 1, len(places))

    def _tops(self, node: Node) -> _Tops:
        """Return all maxima of an entropy volume, which are cached for the same voxels."""
        key = (node.GetID(), node.GetImageData().GetMTime(), node.GetSpacing())
        known, tops = self._known
        if tops is None or known != key:
            tops = _tops_of(node)
            self._known = (key, tops)
        return tops


@dataclass(frozen=True, eq=False)
class _Tops:
    """Voxels that are more uncertain than those around them, the most uncertain first.

    Attributes:
        voxels: the voxels (number, 3), each (i, j, k).
        scores: their smoothed entropy in nats, or their probability.
        apart_mm: the smallest distance of two voxels.
    """

    voxels: NDArray[np.int64]
    scores: NDArray[np.float32]
    apart_mm: float


def center_of(segmentation: SegmentationNode, segment_id: str) -> tuple[float, float, float] | None:
    """Return the voxel of a segment nearest to its centre of mass, in the world; None if it is empty."""
    for layer in layers_of(segmentation):
        box = boxes(layer.voxels).get(layer.values.get(segment_id, 0))
        if box is not None:
            inside = np.argwhere(layer.voxels[box] == layer.values[segment_id])
            nearest = inside[((inside - inside.mean(axis=0)) ** 2).sum(axis=1).argmin()]
            k, j, i = nearest + [part.start for part in box]
            world = transform_to_world(segmentation) @ layer.geometry.ijk_to_ras @ [i, j, k, 1.0]
            return float(world[0]), float(world[1]), float(world[2])
    return None


def _wanted(
    segmentation: SegmentationNode, layers: Sequence[Layer], local: NDArray[np.float64], only: str
) -> str | None:
    """Return the segment of a place, "" for none; None if it is not walked."""
    here = _segments_at(layers, local)
    if only:
        return only if only in here or only in _segments_near(layers, local) else None
    name = next(iter(here or _segments_near(layers, local)), "")
    return name if not name or is_walked(segmentation, name) else None


def _place(
    segmentation: SegmentationNode, name: str, world: NDArray[np.float64], tops: _Tops, number: int
) -> UncertainRegion:
    title = segmentation.GetSegmentation().GetSegment(name).GetName() if name else ""
    r, a, s = (float(value) for value in world[:3])
    i, j, k = (int(value) for value in tops.voxels[number])
    return UncertainRegion(name, title, (r, a, s), float(tops.scores[number]), (i, j, k))


def _tops_of(node: Node) -> _Tops:
    entropy = slicer.util.arrayFromVolume(node)
    spacing = Geometry(entropy.shape, ijk_to_local(node)).spacing_mm[::-1]
    apart = APART_MM
    if len(entropy) == 1:  # slides are millimetres large
        apart = min(APART_MM, max(entropy.shape) * min(spacing[1:]) / PLACES_ALONG)
    smoothed = SMOOTHED_MM * apart / APART_MM
    tops = _tops(box_mean(entropy, [round(smoothed / length) for length in spacing]))
    flat = np.flatnonzero(tops > LEAST)
    flat = flat[np.argsort(-tops.ravel()[flat], kind="stable")]
    k, j, i = np.unravel_index(flat, tops.shape)
    return _Tops(np.column_stack([i, j, k]), tops.ravel()[flat], apart)


def _near(
    layers: Sequence[Layer], segment_id: str, local: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Return which places, (number, 4), are in the box around a segment, so that they may belong to it."""
    found = np.zeros(len(local), bool)
    for layer in layers:
        box = boxes(layer.voxels).get(layer.values.get(segment_id, 0))
        if box is not None:
            kji = (local @ layer.geometry.ras_to_ijk.T)[:, 2::-1]
            low = np.array([part.start for part in box]) - NEAR_VOXELS - 1
            high = np.array([part.stop for part in box]) + NEAR_VOXELS
            found |= ((kji >= low) & (kji <= high)).all(axis=1)
    return found


def _tops(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the values that none of their six neighbours exceeds; 0 elsewhere."""
    is_top = np.ones(values.shape, bool)
    for axis in range(3):
        along, top = np.moveaxis(values, axis, 0), np.moveaxis(is_top, axis, 0)
        top[:-1] &= along[:-1] >= along[1:]
        top[1:] &= along[1:] >= along[:-1]
    return np.where(is_top, values, np.float32(0))


def _segments_at(layers: Sequence[Layer], local: NDArray[np.float64]) -> list[str]:
    """Return the segments at a place of the segmentation."""
    found = []
    for layer in layers:
        at = np.rint(layer.geometry.ras_to_ijk @ local)[2::-1].astype(int)
        if (at >= 0).all() and (at < layer.voxels.shape).all():
            value = int(layer.voxels[tuple(at)])
            found += [name for name, own in layer.values.items() if value and own == value]
    return found


def _segments_near(layers: Sequence[Layer], local: NDArray[np.float64]) -> list[str]:
    """Return the segments within `NEAR_VOXELS` of a place, the one with most voxels there first."""
    near: dict[str, int] = {}
    for layer in layers:
        names = {value: name for name, value in layer.values.items()}
        part = tuple(
            slice(max(at - NEAR_VOXELS, 0), max(at + NEAR_VOXELS + 1, 0))
            for at in np.rint(layer.geometry.ras_to_ijk @ local)[2::-1].astype(int)
        )
        values, counts = np.unique(layer.voxels[part], return_counts=True)
        for value, number in zip(values, counts, strict=True):
            if int(value) in names:
                near[names[int(value)]] = int(number)
    return sorted(near, key=lambda name: (-near[name], name))

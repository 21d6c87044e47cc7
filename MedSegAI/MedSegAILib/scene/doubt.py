"""Where the networks doubted, as places to look at, and the walk from one to the next.

Where a walk stands is kept with the segmentation: the page, the Segment Editor and a scene that is opened again
go on from the same place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import slicer.util
from numpy.typing import NDArray

from medsegai.volume import Geometry
from MedSegAILib.places import DoubtfulPlace, Step
from MedSegAILib.scene.attachments import ENTROPY_REFERENCE
from MedSegAILib.scene.inputs import ijk_to_local, transform_to_world
from MedSegAILib.scene.layers import Layer, box_mean, boxes, layers_of
from MedSegAILib.scene.segments import is_walked

SMOOTHED_MM = 2.0
"""A place is as doubtful as the mean of what lies so far around it: single voxels at every border are not."""

APART_MM = 10.0
"""Two doubtful places are at least so far apart, so that each step shows something else."""

LEAST = 0.05
"""Mean entropy in nats that a doubtful place has at least."""

NEAR_VOXELS = 3
"""So far from a place its segment is looked for, where no segment covers it."""

COUNT = 30
"""So many places are walked at most."""

CURRENT_ATTRIBUTE = "MedSegAI.current_segment"
"""Attribute of the segmentation node: id of the segment that the user is at."""

PLACE_ATTRIBUTE = "MedSegAI.place"
"""Attribute of the segmentation node: voxel i, j, k of the doubtful place that the user is at."""

WITHIN_ATTRIBUTE = "MedSegAI.places_within"
"""Attribute of the segmentation node: id of the segment whose doubtful places are walked; all if it is missing."""


def knows_places(segmentation: Any) -> bool:
    """Whether it was measured where the networks doubt."""
    return segmentation is not None and segmentation.GetNodeReference(ENTROPY_REFERENCE) is not None


def within(segmentation: Any) -> str:
    """The segment whose doubtful places are walked; "" for those of all segments."""
    name = segmentation.GetAttribute(WITHIN_ATTRIBUTE) or ""
    return name if segmentation.GetSegmentation().GetSegment(name) is not None else ""


def walk_within(segmentation: Any, segment_id: str) -> None:
    """Walk the doubtful places of one segment from now on; with "" those of all."""
    _note(segmentation, WITHIN_ATTRIBUTE, segment_id)


def current_segment(segmentation: Any) -> str:
    """The segment that the user is at; "" where that is none."""
    name = segmentation.GetAttribute(CURRENT_ATTRIBUTE) or ""
    return name if segmentation.GetSegmentation().GetSegment(name) is not None else ""


def set_current_segment(segmentation: Any, segment_id: str) -> None:
    """Remember the segment that the user is at, for the other pages of Slicer."""
    _note(segmentation, CURRENT_ATTRIBUTE, segment_id)


def _note(segmentation: Any, attribute: str, text: str) -> None:
    """Keep a text with a segmentation, without a word to its views: they would draw its surfaces again."""
    was_disabled = segmentation.GetDisableModifiedEvent()
    segmentation.DisableModifiedEventOn()
    segmentation.SetAttribute(attribute, text or None)
    segmentation.SetDisableModifiedEvent(was_disabled)


class Walk:
    """Goes from doubtful place to doubtful place of segmentations."""

    def __init__(self) -> None:
        self._known: tuple[Any, list[_Top]] = (None, [])

    def places(self, segmentation: Any) -> list[DoubtfulPlace]:
        """The most uncertain places, the worst first; none where uncertainty was not measured.

        They are the tops of the smoothed entropy that lie `APART_MM` from any higher one. What nobody corrects, as
        the card of its model says, is left out, unless it is what is walked.
        """
        node = segmentation.GetNodeReference(ENTROPY_REFERENCE)
        if node is None or node.GetImageData() is None:
            return []
        to_world = transform_to_world(node) @ ijk_to_local(node)
        to_segmentation = np.linalg.inv(transform_to_world(segmentation)) @ to_world
        layers, only = layers_of(segmentation), within(segmentation)
        found: list[DoubtfulPlace] = []
        taken = np.empty((0, 3))
        for top in self._tops(node):
            here = to_world @ [*top.voxel, 1.0]
            apart = np.linalg.norm(taken - here[:3], axis=1)
            if len(found) == COUNT or (apart < APART_MM).any():
                continue
            names = _segments_at(layers, to_segmentation @ [*top.voxel, 1.0])
            name = _wanted(segmentation, names, only)
            if name is None:
                continue
            taken = np.vstack([taken, here[:3]])
            found.append(_place(segmentation, name, here, top))
        return found

    def step(self, segmentation: Any, by: int = 1) -> Step | None:
        """Go on by so many places, or back; after the last one comes the first. None where there is none."""
        places = self.places(segmentation)
        if not places:
            return None
        stood = segmentation.GetAttribute(PLACE_ATTRIBUTE)
        voxels = [" ".join(map(str, place.voxel)) for place in places]
        at = voxels.index(stood) if stood in voxels else (-1 if by > 0 else 0)
        number = (at + by) % len(places)
        place = places[number]
        _note(segmentation, PLACE_ATTRIBUTE, voxels[number])
        if place.segment_id:
            set_current_segment(segmentation, place.segment_id)
        return Step(place, number + 1, len(places))

    def _tops(self, node: Any) -> list[_Top]:
        """All tops of a volume of entropy, the highest first; worked out once for the same voxels."""
        key = (node.GetID(), node.GetImageData().GetMTime(), node.GetSpacing())
        if self._known[0] != key:
            self._known = (key, _tops_of(node))
        return self._known[1]


@dataclass(frozen=True)
class _Top:
    """A voxel (i, j, k) that is more doubtful than those around it."""

    voxel: tuple[int, int, int]
    score: float


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


def _wanted(segmentation: Any, names: Sequence[str], only: str) -> str | None:
    """The segment that a place with these segments counts for, "" for none; None where it is not walked."""
    if only:
        return only if only in names else None
    name = names[0] if names else ""
    return name if not name or is_walked(segmentation, name) else None


def _place(segmentation: Any, name: str, world: NDArray[np.float64], top: _Top) -> DoubtfulPlace:
    title = segmentation.GetSegmentation().GetSegment(name).GetName() if name else ""
    r, a, s = (float(value) for value in world[:3])
    return DoubtfulPlace(name, title, (r, a, s), top.score, top.voxel)


def _tops_of(node: Any) -> list[_Top]:
    entropy = slicer.util.arrayFromVolume(node)
    spacing = Geometry(entropy.shape, ijk_to_local(node)).spacing_mm[::-1]
    tops = _tops(box_mean(entropy, [round(SMOOTHED_MM / length) for length in spacing]))
    flat = np.flatnonzero(tops > LEAST)
    scores = tops.ravel()[flat]
    order = np.argsort(-scores, kind="stable")
    k, j, i = np.unravel_index(flat[order], tops.shape)
    columns = (i.tolist(), j.tolist(), k.tolist(), scores[order].tolist())
    return [_Top((x, y, z), score) for x, y, z, score in zip(*columns, strict=True)]


def _tops(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """The values that none of their six neighbours exceeds; 0 elsewhere."""
    is_top = np.ones(values.shape, bool)
    for axis in range(3):
        along, top = np.moveaxis(values, axis, 0), np.moveaxis(is_top, axis, 0)
        top[:-1] &= along[:-1] >= along[1:]
        top[1:] &= along[1:] >= along[:-1]
    return np.where(is_top, values, np.float32(0))


def _segments_at(layers: Sequence[Layer], local: NDArray[np.float64]) -> list[str]:
    """The segments at a place, then those next to it, the one with most voxels there first."""
    here: list[str] = []
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
            here.append(names[int(layer.voxels[k, j, i])])
    return here + sorted(near.keys() - set(here), key=lambda name: (-near[name], name))

"""New objects of a picture become part of its older ones, some of which stay.

As with segments, voxels outside of the region of the request do not change, and objects that a person edited or
whose review is completed stay, unless the user chose to change those, too. A new object continues the older one
with which it shares most voxels: it gets its number, name and colour, and the rest of it outside of the region. So
an object that the border of the region cuts stays one object.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
import slicer.util
from numpy.typing import NDArray

from medsegai.labels import Label, made_color
from medsegai.measurements.object_rows import object_rows
from medsegai.request import SegmentationResult, StructureMeasures
from medsegai.volume import Box, Geometry, Volume
from MedSegAILib.output_choice import OutputChoice
from MedSegAILib.scene.inputs import ijk_to_local, read_channels
from MedSegAILib.scene.layers import EMPTY, labelmap_name, layers_of, offset_in, on_grid
from MedSegAILib.scene.merging import Plan, Target, carry_out, fill, place_in, region_box
from MedSegAILib.scene.review import is_locked
from MedSegAILib.scene.segments import label_of, painted, segment_id, values_of
from MedSegAILib.slicer_types import Node, SegmentationNode, VolumeNode

Numbers = NDArray[np.integer[Any]]


def some_stay(node: Node, result: SegmentationResult, output: OutputChoice) -> bool:
    """Whether some of the existing objects must be kept: those outside of a region, or that must not change."""
    if node is None or result.region:
        return node is not None
    return bool(node.IsA("vtkMRMLSegmentationNode") and _fixed(node, painted(node), output))


def can_merge(node: Node, source: VolumeNode, result: SegmentationResult) -> bool:
    """Whether new objects can become part of existing ones: these are label maps on the voxels of the picture."""
    shape = result.labelmap.geometry.shape
    if not node.IsA("vtkMRMLSegmentationNode"):
        is_alike = slicer.util.arrayFromVolume(node).shape == shape
        return is_alike and np.allclose(ijk_to_local(node), ijk_to_local(source), atol=1e-4)
    if node.GetSegmentation().GetSourceRepresentationName() != labelmap_name():
        return False
    place = place_in(node, source, shape)
    return all(offset_in(place, layer.geometry) is not None for layer in layers_of(node))


def merge_segments(
    node: SegmentationNode, source: VolumeNode, result: SegmentationResult, output: OutputChoice
) -> None:
    """Write the objects of a region into a segmentation with a segment for each object."""
    plan = _plan(node, source, result, output)
    carry_out(node, plan, source)
    for name, (_target, content) in plan.written.items():
        if content == EMPTY:
            node.GetSegmentation().RemoveSegment(name)


def merged_map(node: VolumeNode, result: SegmentationResult) -> Numbers:
    """Return the numbers of a label map of objects, with those of a region in it."""
    assert result.objects is not None
    box, before = region_box(result), slicer.util.arrayFromVolume(node)
    new = result.objects.voxels
    found = _renumbered(new, successors(new, [before], box), int(before.max(initial=0)))
    merged = before.astype(np.uint32)
    merged[box] = found[box]
    small = merged.max(initial=0) <= np.iinfo(np.uint16).max
    return merged.astype(np.uint16) if small else merged


def rows_of(node: Node, source: VolumeNode, objects: Volume) -> list[dict[str, Any]]:
    """Return the measures of all objects of a segmentation or label map: see `object_rows`.

    Args:
        objects: an image on the grid of the source, in world coordinates.
    """
    channels = read_channels([source])
    if not node.IsA("vtkMRMLSegmentationNode"):
        return object_rows(slicer.util.arrayFromVolume(node)[0], channels, objects)
    place = place_in(node, source, objects.geometry.shape)
    maps = _number_maps(node, place, _numbers(node))
    rows = [row for numbers in maps for row in object_rows(numbers[0], channels, objects)]
    return sorted(rows, key=lambda row: int(row["number"]))


def successors(new: Numbers, older: Sequence[Numbers], box: Box) -> dict[int, int]:
    """Return the number of the older object that each new object continues.

    These are pairs that share voxels, those that share most first; each object is in one pair at most.

    Args:
        new: the numbers of the new objects, (k, j, i).
        older: label maps with the numbers of the older ones, on the same grid.
        box: the region.
    """
    shared: Counter[tuple[int, int]] = Counter()
    for before in older:
        shared.update(_shared_voxels(new[box], before[box]))
    continued: dict[int, int] = {}
    taken: set[int] = set()
    for (now, then), _size in shared.most_common():
        if now not in continued and then not in taken:
            continued[now] = then
            taken.add(then)
    return continued


def _shared_voxels(new: Numbers, before: Numbers) -> dict[tuple[int, int], int]:
    """Return the number of voxels that each new and each older object share."""
    both = (new > 0) & (before > 0)
    pairs = np.stack([new[both], before[both]]).astype(np.int64)
    found, sizes = np.unique(pairs, axis=1, return_counts=True)
    return dict(zip(map(tuple, found.T.tolist()), sizes.tolist(), strict=True))


def _renumbered(new: Numbers, continued: Mapping[int, int], last: int) -> Numbers:
    """Give objects the numbers of those that they continue, and the others numbers above `last`."""
    fresh = count(last + 1)
    present = np.unique(new)
    to = np.zeros(int(new.max(initial=0)) + 1, np.uint32)
    for number in present[present > 0].tolist():
        to[number] = continued[number] if number in continued else next(fresh)
    return to[new]


@dataclass(frozen=True)
class _Older:
    """The segments of older objects.

    Attributes:
        numbers: the number of each segment, by its id.
        fixed: those that must not change.
        by_hand: those that a person edited or drew.
        maps: label maps of their numbers on the grid of the picture.
    """

    numbers: Mapping[str, int]
    fixed: frozenset[str]
    by_hand: frozenset[str]
    maps: tuple[Numbers, ...]


def _older(node: SegmentationNode, place: Geometry, output: OutputChoice) -> _Older:
    by_hand, numbers = painted(node), _numbers(node)
    maps = tuple(_number_maps(node, place, numbers))
    return _Older(numbers, _fixed(node, by_hand, output), by_hand, maps)


def _fixed(node: SegmentationNode, by_hand: frozenset[str], output: OutputChoice) -> frozenset[str]:
    names = node.GetSegmentation().GetSegmentIDs()
    locked = {name for name in names if is_locked(node, name) and not output.change_locked}
    return frozenset(locked if output.change_painted else locked | by_hand)


def _plan(
    node: SegmentationNode, source: VolumeNode, result: SegmentationResult, output: OutputChoice
) -> Plan:
    assert result.objects is not None
    box = region_box(result)
    older = _older(node, place_in(node, source, result.labelmap.geometry.shape), output)
    new = result.objects.voxels
    continued = successors(new, older.maps, box)
    fixed = {older.numbers[name] for name in older.fixed}
    stays = [now for now, then in continued.items() if then in fixed]  # found again
    new = np.where(np.isin(new, stays), 0, new)
    found = _renumbered(new, continued, max(older.numbers.values(), default=0))
    targets = list(_targets(node, found, older, box))
    written = SegmentationResult(
        labelmap=result.objects.with_voxels(found),
        labels=tuple(target.measures.label for target in targets),
        structures=tuple(target.measures for target in targets),
        region=result.region,
    )
    filled = fill(node, layers_of(node), source, written, targets, apart=True)
    return Plan(*filled, in_region=bool(result.region))


def _targets(node: SegmentationNode, found: Numbers, older: _Older, box: Box) -> Iterator[Target]:
    """The older objects in the region that may change, and the new ones."""
    sizes = np.bincount(found.ravel())
    touched = {number for numbers in older.maps for number in np.unique(numbers[box]).tolist()}
    for name, number in older.numbers.items():
        if name not in older.fixed and number in touched:
            size = int(sizes[number]) if number < len(sizes) else 0
            measures = StructureMeasures(label_of(node, name, number), size, 0.0)
            yield Target(measures, name, is_new=False, painted=name in older.by_hand)
    for number in np.flatnonzero(sizes).tolist():
        if number and number not in older.numbers.values():
            label = Label(number, f"Object {number}", made_color(number))
            name = node.GetSegmentation().GenerateUniqueSegmentID(segment_id(label))
            yield Target(StructureMeasures(label, int(sizes[number]), 0.0), name, is_new=True)


def _numbers(node: SegmentationNode) -> dict[str, int]:
    return values_of(node, node.GetSegmentation().GetSegmentIDs())


def _number_maps(
    node: SegmentationNode, place: Geometry, numbers: Mapping[str, int]
) -> Iterator[Numbers]:
    """Return label maps with the numbers of segments, on the grid of the picture."""
    for layer in layers_of(node):
        voxels = on_grid(layer.voxels, layer.geometry, place)
        to = np.zeros(int(voxels.max(initial=0)) + 1, np.uint32)
        for name, value in layer.values.items():
            if value < len(to):
                to[value] = numbers[name]
        yield to[voxels]

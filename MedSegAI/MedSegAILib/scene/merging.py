"""Merging of a result into an existing segmentation: planned first, completely, and then carried out at once.

A `Plan` has the label maps that the segmentation will have. The scene does not change before the plan is complete;
then the segments get other label maps.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import slicer
from numpy.typing import NDArray

from medsegai.request import SegmentationResult, StructureMeasures
from medsegai.volume import Box, Geometry
from MedSegAILib.output_choice import OutputChoice
from MedSegAILib.scene.inputs import ijk_to_local, transform_to_world
from MedSegAILib.scene.layers import (
    Layer,
    Packer,
    boxes,
    digest,
    geometry_of,
    grid_around,
    labelmap_name,
    layers_of,
    offset_in,
    on_grid,
    oriented_image,
)
from MedSegAILib.scene.matching import match
from MedSegAILib.scene.nodes import modifying
from MedSegAILib.scene.review import is_locked
from MedSegAILib.scene.segments import (
    new_segment,
    painted,
    result_layers,
    segment_id,
    sign,
    sign_part,
)
from MedSegAILib.scene.surfaces import has_surfaces, keep, remove_surfaces
from MedSegAILib.slicer_types import Segmentation, SegmentationNode, VolumeNode, VTKObject
from MedSegAILib.translation import tr as _


@dataclass(frozen=True)
class Target:
    """A structure and the segment that gets it."""

    measures: StructureMeasures
    segment_id: str
    is_new: bool
    painted: bool = False


@dataclass(frozen=True)
class Plan:
    """The planned content of a segmentation.

    Attributes:
        layers: all label maps that differ from the present ones.
        written: the written structures, and the digest of the content of their segments; "" if a part was drawn by
            a person, None if a region leaves the segment as it is.
        notes: what is not changed, and why, as sentences for the user.
        in_region: whether the result is that of a region, so that it says nothing about whole structures.
    """

    layers: tuple[Layer, ...]
    written: Mapping[str, tuple[Target, str | None]]
    notes: tuple[str, ...] = ()
    in_region: bool = False

    @property
    def new_segments(self) -> tuple[str, ...]:
        """Return the ids of the new segments."""
        return tuple(name for name, (target, _) in self.written.items() if target.is_new)


@dataclass
class _Present:
    """The present segmentation, and the part of it that may change."""

    layers: tuple[Layer, ...]
    changing: frozenset[str]
    grid: Geometry
    inside: NDArray[np.bool_]
    kept: list[NDArray[np.integer]] = field(default_factory=list)


def plan_update(
    segmentation: SegmentationNode,
    source: VolumeNode,
    result: SegmentationResult,
    output: OutputChoice,
    add: bool,
) -> Plan:
    """Plan `OutputMode.UPDATE` of a segmentation; with `add`, missing structures become segments.

    Only voxels on the grid of the source change, and inside the region of the request, if it has one. A voxel of a
    segment that stays is not given to another one, unless the two overlapped before.

    Raises:
        InputError: the segmentation is made of surfaces.
        GeometryError: it has a parent transform that is not linear.
    """
    layers = layers_of(segmentation)
    by_hand = painted(segmentation, layers)
    found = match(segmentation, [measures.label for measures in result.structures])
    locked, edited, targets = [], [], []
    for measures in result.structures:
        name = found.get(measures.label)
        if name is None:
            if add and measures.voxels:
                fresh = segmentation.GetSegmentation().GenerateUniqueSegmentID(
                    segment_id(measures.label)
                )
                targets.append(Target(measures, fresh, is_new=True))
        elif is_locked(segmentation, name) and not output.change_locked:
            locked.append(_name(segmentation, name))
        elif name in by_hand and not output.change_painted:
            edited.append(_name(segmentation, name))
        else:
            targets.append(Target(measures, name, is_new=False, painted=name in by_hand))
    layers, written = fill(segmentation, layers, source, result, targets, apart=True)
    notes = tuple(_notes(locked, edited, result, found, add))
    return Plan(layers, written, notes, in_region=bool(result.region))


def plan_addition(
    segmentation: SegmentationNode, source: VolumeNode, result: SegmentationResult
) -> Plan:
    """Plan `OutputMode.ADD` of a segmentation, whose content stays, even where structures overlap it.

    Raises:
        InputError, GeometryError: see `plan_update`.
    """
    layers, segments = layers_of(segmentation), segmentation.GetSegmentation()
    targets = [
        Target(measures, segments.GenerateUniqueSegmentID(segment_id(measures.label)), is_new=True)
        for measures in result.structures
        if measures.voxels
    ]
    return Plan(*fill(segmentation, layers, source, result, targets, apart=False))


def carry_out(segmentation: SegmentationNode, plan: Plan, source: VolumeNode) -> bool:
    """Carry out a plan.

    Returns:
        Whether the segmentation had surfaces. Only surfaces of unchanged segments are left.
    """
    images = [(oriented_image(layer.voxels, layer.geometry), layer) for layer in plan.layers]
    if not segmentation.GetSegmentation().GetNumberOfSegments():
        _begin(segmentation, source)
    had_surfaces, give_back = has_surfaces(segmentation), keep(segmentation)
    with modifying(segmentation):
        _fill_segments(segmentation.GetSegmentation(), plan, images)
    for image, _layer in images:
        image.Modified()  # this notifies the views
    if had_surfaces:
        remove_surfaces(segmentation)  # the remaining ones belong to older voxels
        give_back()
    return had_surfaces


def _begin(segmentation: SegmentationNode, source: VolumeNode) -> None:
    segmentation.GetSegmentation().SetSourceRepresentationName(labelmap_name())
    segmentation.SetReferenceImageGeometryParameterFromVolumeNode(source)


def _fill_segments(
    segments: VTKObject, plan: Plan, images: Sequence[tuple[VTKObject, Layer]]
) -> None:
    """Add the new segments of a plan, and give all of its segments their images."""
    for target, content in plan.written.values():
        if target.is_new:
            label = target.measures.label
            segment = new_segment(label, _free_name(segments, label.name))
            segments.AddSegment(segment, target.segment_id)
        if content is None:
            continue
        if plan.in_region and not target.is_new:
            sign_part(segments.GetSegment(target.segment_id), target.measures.label, content)
        else:
            sign(segments.GetSegment(target.segment_id), target.measures, content)
    for image, layer in images:
        for name, value in layer.values.items():
            segment = segments.GetSegment(name)
            segment.SetLabelValue(value)
            segment.AddRepresentation(labelmap_name(), image)


def region_box(result: SegmentationResult) -> Box:
    """Return the box (k, j, i) of the source that the request named."""
    whole = (slice(None), slice(None), slice(None))
    if not result.region:
        return whole
    return result.labelmap.geometry.box_around(result.region) or whole


def place_in(
    segmentation: SegmentationNode, source: VolumeNode, shape: tuple[int, int, int]
) -> Geometry:
    """Return the present geometry of a source, in the coordinates of a segmentation.

    Raises:
        GeometryError: one of the two has a parent transform that is not linear.
    """
    if source.GetTransformNodeID() == segmentation.GetTransformNodeID():
        return Geometry(shape, ijk_to_local(source))
    to_world = transform_to_world(source) @ ijk_to_local(source)
    return Geometry(shape, np.linalg.inv(transform_to_world(segmentation)) @ to_world)


def fill(
    segmentation: SegmentationNode,
    layers: tuple[Layer, ...],
    source: VolumeNode,
    result: SegmentationResult,
    targets: Sequence[Target],
    apart: bool,
) -> tuple[tuple[Layer, ...], Mapping[str, tuple[Target, str | None]]]:
    """Return the label maps with the targets, and what is written: see `Plan`.

    Args:
        layers: the present label maps of the segmentation.
        targets: the structures of the result that are written; a present segment whose structure has no voxels
            loses those in the region.
        apart: whether voxels of other segments are protected.
    """
    if not targets:
        return (), {}
    place = place_in(segmentation, source, result.labelmap.geometry.shape)
    parts = [place, *(layer.geometry for layer in layers)]
    grid = grid_around(lattice(segmentation, layers, place), parts)
    inside = np.zeros(place.shape, np.uint8)
    inside[region_box(result)] = 1
    changing = frozenset(target.segment_id for target in targets)
    present = _Present(layers, changing, grid, on_grid(inside, place, grid) != 0)
    if apart:
        present.kept = [_only(layer, grid, present.changing, stay=True) for layer in layers]
    incoming = [
        Layer(on_grid(layer.voxels, place, grid), grid, layer.values)
        for layer in result_layers(result, place)
    ]
    bases, rest = layers_without(present.layers, present.changing, present.grid)
    packer = Packer(grid, bases)
    written: dict[str, tuple[Target, str | None]] = {}
    before, after = Masks(_changing_layers(present)), Masks(incoming)
    for target in targets:
        mask, box, own = _content(target, present, before, after)
        value = target.measures.label.value
        packer.add(target.segment_id, mask, box, value)
        kept = result.region and np.array_equal(mask, before.mask(target.segment_id, box))
        content = "" if own else digest(mask)
        written[target.segment_id] = (target, None if kept and not target.is_new else content)
    return (*packer.layers(), *rest), written


def _content(
    target: Target, present: _Present, before: Masks, after: Masks
) -> tuple[NDArray[np.bool_], Box, bool]:
    """Return what a segment will hold inside a box, and whether a person drew a part of it."""
    new_name = segment_id(target.measures.label)
    box = union(before.box(target.segment_id), after.box(new_name))
    old, new = before.mask(target.segment_id, box), after.mask(new_name, box)
    free = present.inside[box].copy()
    for layer in present.kept:
        others = layer[box]
        overlapped = np.unique(others[old])
        free &= (others == 0) | np.isin(others, overlapped[overlapped != 0])
    stays = old & ~free
    return (new & free) | stays, box, target.painted and bool(stays.any())


class Masks:
    """The segments of label maps on one grid, each cut out in a box.

    Attributes:
        names: ids of the segments that have a voxel.
    """

    def __init__(self, layers: Iterable[Layer]) -> None:
        self._found = {}
        for layer in layers:
            around = boxes(layer.voxels)
            for name, value in layer.values.items():
                if value in around:
                    self._found[name] = (layer.voxels, value, around[value])
        self.names = frozenset(self._found)

    def box(self, name: str) -> Box | None:
        """Return the smallest box around a segment; None if it does not have voxels."""
        return self._found[name][2] if name in self._found else None

    def mask(self, name: str, box: Box) -> NDArray[np.bool_]:
        """Return the voxels of a segment inside a box, (k, j, i)."""
        if name not in self._found:
            return np.zeros([part.stop - part.start for part in box], bool)
        voxels, value, _ = self._found[name]
        mask: NDArray[np.bool_] = voxels[box] == value
        return mask


def union(first: Box | None, second: Box | None) -> Box:
    """Return the smallest box around both; one voxel if there is neither."""
    found = [box for box in (first, second) if box is not None]
    if not found:
        return slice(0, 1), slice(0, 1), slice(0, 1)
    k, j, i = (
        slice(min(part.start for part in axis), max(part.stop for part in axis))
        for axis in zip(*found, strict=True)
    )
    return k, j, i


def _only(
    layer: Layer, grid: Geometry, changing: frozenset[str], stay: bool
) -> NDArray[np.integer]:
    """Return a layer's label values on a grid, only of segments that stay, or only of those that change."""
    wanted = [value for name, value in layer.values.items() if (name not in changing) == stay]
    voxels = on_grid(layer.voxels, layer.geometry, grid)
    voxels[~np.isin(voxels, wanted)] = 0
    return voxels


def _changing_layers(present: _Present) -> Iterator[Layer]:
    for layer in present.layers:
        values = {name: v for name, v in layer.values.items() if name in present.changing}
        if values:
            yield Layer(_only(layer, present.grid, present.changing, False), present.grid, values)


def layers_without(
    layers: Iterable[Layer], changing: frozenset[str], grid: Geometry
) -> tuple[list[Layer], list[Layer]]:
    """Return the label maps that lose one of the changing segments, without these segments.

    Returns:
        The label maps with the voxels of the grid, on it, to be filled again; and those with other voxels.
    """
    bases, rest = [], []
    losing = [layer for layer in layers if changing & set(layer.values)]
    for layer in losing:
        fits = offset_in(grid, layer.geometry) is not None
        own = grid if fits else layer.geometry
        voxels = _only(layer, own, changing, stay=True)
        stay = {name: v for name, v in layer.values.items() if name not in changing}
        if fits:
            bases.append(Layer(voxels, own, stay))
        elif stay:
            rest.append(Layer(voxels, own, stay))
    return bases, rest


def lattice(segmentation: SegmentationNode, layers: Sequence[Layer], place: Geometry) -> Geometry:
    """Return the grid on which a segmentation is edited; `place` if it does not have voxels."""
    return drawn_on(segmentation, layers[0].geometry) if layers else place


def drawn_on(segmentation: SegmentationNode, else_place: Geometry) -> Geometry:
    """Return the grid that Slicer stores with a segmentation, usually that of its scan; otherwise `else_place`."""
    text = segmentation.GetSegmentation().GetConversionParameter(
        slicer.vtkSegmentationConverter.GetReferenceImageGeometryParameterName()
    )
    image = slicer.vtkOrientedImageData()
    if text and slicer.vtkSegmentationConverter.DeserializeImageGeometry(text, image):
        return geometry_of(image)
    return else_place


def _free_name(segments: Segmentation, name: str) -> str:
    taken = {segments.GetSegment(each).GetName() for each in segments.GetSegmentIDs()}
    number, free = 2, name
    while free in taken:
        free, number = f"{name} ({number})", number + 1
    return free


def _name(segmentation: SegmentationNode, segment: str) -> str:
    return str(segmentation.GetSegmentation().GetSegment(segment).GetName())


def _notes(
    locked: list[str],
    edited: list[str],
    result: SegmentationResult,
    found: Mapping[Any, str],
    add: bool,
) -> Iterator[str]:
    if locked:
        yield _("Not changed, because their review is completed: {names}.").format(
            names=", ".join(locked)
        )
    if edited:
        yield _("Not changed, because they were painted by hand: {names}.").format(
            names=", ".join(edited)
        )
    missing = [m.label.name for m in result.structures if m.voxels and m.label not in found]
    if missing and not add:
        yield _("Left out, because the segmentation does not have these segments: {names}.").format(
            names=", ".join(missing)
        )

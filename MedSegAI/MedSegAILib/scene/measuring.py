"""Reading of segments for a measurement: label maps on the whole field of view, and the scan.

Overlapping segments are in different label maps, as in the scene.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medsegai.errors import InputError
from medsegai.volume import Geometry, Volume
from medsegai.worker.requests import MeasurementRequest, Part
from MedSegAILib.scene.inputs import check_image, read, transform_to_world
from MedSegAILib.scene.layers import Layer, grid_around, layers_of, offset_in, on_grid
from MedSegAILib.scene.merging import drawn_on, lattice, place_in
from MedSegAILib.scene.reports import report_of
from MedSegAILib.scene.segments import label_of, label_value, values_of
from MedSegAILib.slicer_types import SegmentationNode, VolumeNode
from MedSegAILib.translation import tr as _

NOWHERE = Geometry((1, 1, 1), np.eye(4))
"""The grid of a segmentation without voxels."""


@dataclass(frozen=True, eq=False)
class Measurable:
    """A segmentation that was read for a measurement.

    Attributes:
        segmentation: the node.
        request: the request to the worker.
        segments: the ids of its segments, in the order of the worker's rows.
        note: a remark on the scan; "" if the segments have its voxels.
    """

    segmentation: SegmentationNode
    request: MeasurementRequest
    segments: tuple[str, ...]
    note: str = ""


def measurable(segmentation: SegmentationNode) -> Measurable:
    """Read the present segments and their scan.

    Raises:
        GeometryError: the segmentation or the scan has a parent transform that is not linear.
    """
    layers = layers_of(segmentation)
    scan = scan_of(segmentation)
    names = list(segmentation.GetSegmentation().GetSegmentIDs())
    values = values_of(segmentation, names)
    grid = field_of_view(segmentation, layers, scan)
    place = None if scan is None else scan_place(segmentation, scan)
    if place is not None and (not layers or place.matches(grid)):
        place = None  # the scan has no voxels besides those of the segments
    world = transform_to_world(segmentation)
    parts, rows = [], []
    for layer, held in _held(layers, names):
        labels = tuple(label_of(segmentation, name, values[name]) for name in held)
        voxels = renumbered(layer, values)
        whole, *seen = (
            Volume(on_grid(voxels, layer.geometry, each), _moved(each, world))
            for each in ((grid,) if place is None else (grid, place))
        )
        parts.append(Part(whole, labels, *seen))
        rows += held
    drawn = tuple(
        value for name, value in values.items() if label_value(segmentation, name) is None
    )
    image = None if scan is None or not layers else read(scan)
    request = MeasurementRequest(tuple(parts), image, models_of(segmentation), drawn)
    note = "" if place is None else _note(segmentation, scan, grid.difference(place))
    return Measurable(segmentation, request, tuple(rows), note)


def _note(segmentation: SegmentationNode, scan: VolumeNode, difference: str) -> str:
    return _(
        "{name} does not lie on the voxels of {scan} ({difference}). Mean and SD are those of {scan} at its "
        "place: check that it is the scan that was segmented."
    ).format(name=segmentation.GetName(), scan=scan.GetName(), difference=difference)


def scan_of(segmentation: SegmentationNode) -> VolumeNode:
    """Return the volume of a segmentation; None if it was deleted, or has several values per voxel."""
    node = segmentation.GetNodeReference(segmentation.GetReferenceImageGeometryReferenceRole())
    try:
        check_image(node)
    except InputError:
        return None
    return node


def scan_place(segmentation: SegmentationNode, scan: VolumeNode) -> Geometry:
    """Return the geometry of the scan in the coordinates of the segmentation."""
    i, j, k = scan.GetImageData().GetDimensions()
    return place_in(segmentation, scan, (k, j, i))


def field_of_view(
    segmentation: SegmentationNode, layers: Sequence[Layer], scan: VolumeNode
) -> Geometry:
    """Return the grid of the scan, if the segments were drawn on it; otherwise the grid on which they are edited.

    Slicer stores the grid on which a segmentation was drawn. A scan that merely contains this grid may be that of
    another patient.
    """
    if not layers:
        return NOWHERE
    place = None if scan is None else scan_place(segmentation, scan)
    if place is not None and not drawn_on(segmentation, place).difference(place):
        parts = [layer.geometry for layer in layers]
        whole = grid_around(place, parts)
        if whole.shape == place.shape and None not in [offset_in(place, part) for part in parts]:
            return place
    return grid_around(
        lattice(segmentation, layers, layers[0].geometry), (layer.geometry for layer in layers)
    )


def renumbered(layer: Layer, values: Mapping[str, int]) -> NDArray[np.integer]:
    """Return the label map of a layer with these values for its segments, (k, j, i)."""
    top = max(int(layer.voxels.max(initial=0)), *layer.values.values())
    lookup = np.zeros(top + 1, np.min_scalar_type(max(values.values())))
    for name, value in layer.values.items():
        lookup[value] = values[name]
    return lookup[layer.voxels]


def models_of(segmentation: SegmentationNode) -> tuple[str, ...]:
    """Return the ids of the models that made a segmentation, from its report."""
    made = report_of(segmentation).get("provenance", {})
    return tuple(str(item["id"]) for item in made.get("models", ()))


def _held(layers: Sequence[Layer], names: Sequence[str]) -> Iterable[tuple[Layer, list[str]]]:
    """Return each label map and its segments; segments without voxels belong to the first."""
    filled = {name for layer in layers for name in layer.values}
    empty = [name for name in names if name not in filled]
    if not layers and names:
        layers = (Layer(np.zeros(NOWHERE.shape, np.uint8), NOWHERE, dict.fromkeys(names, 0)),)
        empty = []
    for number, layer in enumerate(layers):
        held = [name for name in names if name in layer.values]
        yield layer, held + (empty if number == 0 else [])


def _moved(grid: Geometry, to_world: NDArray[np.float64]) -> Geometry:
    return Geometry(grid.shape, to_world @ grid.ijk_to_ras)

"""Label maps of a segmentation as arrays, and arrays as label maps.

Segments that do not overlap share one label map, a layer. Coordinates are those of the segmentation node
itself: the transform above it is not applied.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import slicer
import vtk
from numpy.typing import NDArray
from vtk.util import numpy_support

from medsegai.errors import InputError
from medsegai.volume import Box, Geometry, Scalar
from MedSegAILib.scene.nodes import check_segmentation
from MedSegAILib.slicer_types import SegmentationNode, VTKObject
from MedSegAILib.translation import tr as _

OTHERWISE = _(
    "{name} is made of {kind}. Make the binary labelmap its source representation in the Segmentations module, or "
    "choose another segmentation."
)
KINDS = {
    "Closed surface": _("surfaces"),
    "Planar contour": _("contours"),
    "Fractional labelmap": _("fractional label maps"),
}
"""What segments may be made of, by Slicer's names of representations."""


EMPTY = "empty"
"""The digest of no voxels."""


@dataclass(frozen=True, eq=False)
class Layer:
    """Segments that share one label map.

    Attributes:
        voxels: label values, (k, j, i); for a layer in the scene, this is the node's own memory.
        geometry: the grid, in the segmentation's coordinates.
        values: the label value of each segment, by segment id.
    """

    voxels: NDArray[np.integer]
    geometry: Geometry
    values: Mapping[str, int]


def labelmap_name() -> str:
    """Return Slicer's name of the representation of segments as label maps."""
    return str(slicer.vtkSegmentationConverter.GetSegmentationBinaryLabelmapRepresentationName())


def layers_of(segmentation: SegmentationNode) -> tuple[Layer, ...]:
    """Return the label maps of a segmentation node; segments without voxels may not be in any.

    Raises:
        InputError: the node is not a segmentation; or its segments are not made of label maps, so that their
            voxels are unknown, and label maps could only replace them.
    """
    check_segmentation(segmentation)
    check_labelmaps(segmentation)
    segments, layers = segmentation.GetSegmentation(), []
    for index in range(segments.GetNumberOfLayers(labelmap_name())):
        image = segments.GetLayerDataObject(index, labelmap_name())
        if image.GetPointData().GetScalars() is None or 0 in image.GetDimensions():
            continue
        ids = segments.GetSegmentIDsForLayer(index, labelmap_name())
        values = {name: int(segments.GetSegment(name).GetLabelValue()) for name in ids}
        layers.append(Layer(voxels_of(image), geometry_of(image), values))
    return tuple(layers)


def check_labelmaps(segmentation: SegmentationNode) -> None:
    """Raises:
    InputError: see `layers_of`.
    """
    segments = segmentation.GetSegmentation()
    source = segments.GetSourceRepresentationName()
    if segments.GetNumberOfSegments() and source != labelmap_name():
        kind = KINDS.get(source, source)
        raise InputError(OTHERWISE.format(name=segmentation.GetName(), kind=kind))


def oriented_image(voxels: NDArray[np.generic], geometry: Geometry) -> VTKObject:
    """Return a vtkOrientedImageData with a copy of label values (k, j, i)."""
    image = slicer.vtkOrientedImageData()
    image.SetDimensions(*reversed(voxels.shape))
    scalars = numpy_support.numpy_to_vtk(
        np.ascontiguousarray(voxels).ravel(),
        deep=True,
        array_type=numpy_support.get_vtk_array_type(voxels.dtype),
    )
    scalars.SetName("ImageScalars")
    image.GetPointData().SetScalars(scalars)
    image.SetImageToWorldMatrix(matrix(geometry.ijk_to_ras))
    return image


def matrix(values: NDArray[np.floating]) -> VTKObject:
    """Return a vtkMatrix4x4 of a 4 x 4 array."""
    out = vtk.vtkMatrix4x4()
    out.DeepCopy(np.asarray(values, float).ravel())
    return out


def array_of(vtk_matrix: VTKObject) -> NDArray[np.float64]:
    """Return a 4 x 4 array of a vtkMatrix4x4."""
    return np.array([[vtk_matrix.GetElement(i, j) for j in range(4)] for i in range(4)])


def offset_in(grid: Geometry, part: Geometry) -> tuple[int, int, int] | None:
    """Return the voxel (k, j, i) of `grid` at which `part` begins, even outside; None if they do not coincide."""
    origin = (grid.ras_to_ijk @ part.ijk_to_ras[:, 3])[:3]
    k, j, i = (int(value) for value in np.rint(origin)[::-1])
    return (k, j, i) if part.matches(grid.cropped((k, j, i), part.shape)) else None


def on_grid(voxels: NDArray[Scalar], own: Geometry, grid: Geometry) -> NDArray[Scalar]:
    """Return label values on another grid as a new array, with 0 outside.

    If the voxels of both grids coincide, nothing is interpolated; otherwise each voxel takes the value of the
    nearest one.
    """
    start = offset_in(grid, own)
    if start is None:
        return _resampled(voxels, own, grid)
    out = np.zeros(grid.shape, voxels.dtype)
    there, here = [], []
    for at, size, room in zip(start, own.shape, grid.shape, strict=True):
        there.append(slice(max(at, 0), max(min(at + size, room), 0)))
        here.append(slice(max(-at, 0), max(min(size, room - at), 0)))
    out[tuple(there)] = voxels[tuple(here)]
    return out


def _resampled(voxels: NDArray[Scalar], own: Geometry, grid: Geometry) -> NDArray[Scalar]:
    """Resample by nearest neighbour, plane by plane, so that indices of the whole grid are never in memory."""
    to_own = own.ras_to_ijk @ grid.ijk_to_ras
    sizes = np.array(own.shape[::-1])[:, None, None]
    j, i = np.meshgrid(np.arange(grid.shape[1]), np.arange(grid.shape[2]), indexing="ij")
    out = np.zeros(grid.shape, voxels.dtype)
    for k in range(grid.shape[0]):
        position = np.stack([i, j, np.full_like(i, k), np.ones_like(i)])
        index = np.rint(np.tensordot(to_own[:3], position, 1)).astype(np.intp)
        inside = ((index >= 0) & (index < sizes)).all(axis=0)
        x, y, z = index[:, inside]
        out[k][inside] = voxels[z, y, x]
    return out


def grid_around(lattice: Geometry, parts: Iterable[Geometry]) -> Geometry:
    """Return the lattice, enlarged to contain the parts whose voxels coincide with it."""
    low, high = np.zeros(3, int), np.array(lattice.shape)
    for part in parts:
        start = offset_in(lattice, part)
        if start is not None:
            low = np.minimum(low, start)
            high = np.maximum(high, np.array(start) + part.shape)
    return lattice.cropped(low.tolist(), (high - low).tolist())


def boxes(voxels: NDArray[np.integer]) -> dict[int, Box]:
    """Return the smallest box around each label value of a label map (k, j, i), without background."""
    top = int(voxels.max(initial=0)) + 1
    seen = [np.zeros((top, size), bool) for size in voxels.shape]
    for k, plane in enumerate(voxels):
        j, i = np.nonzero(plane)
        values = plane[j, i]
        seen[0][values, k] = True
        seen[1][values, j] = True
        seen[2][values, i] = True
    found: dict[int, Box] = {}
    for value in np.flatnonzero(seen[0].any(axis=1)):
        spans = [np.flatnonzero(axis[value])[[0, -1]] for axis in seen]
        in_k, in_j, in_i = (slice(int(first), int(last) + 1) for first, last in spans)
        found[int(value)] = (in_k, in_j, in_i)
    return found


def box_mean(values: NDArray[np.number | np.bool_], radii: Sequence[int]) -> NDArray[np.float32]:
    """Return the mean over boxes with radii in voxels along (k, j, i); values outside count as 0."""
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


def digest(mask: NDArray[np.bool_]) -> str:
    """Return the digest of a set of voxels, independent of the box around them; mask is (k, j, i)."""
    box = boxes(mask.view(np.uint8)).get(1)
    if box is None:
        return EMPTY
    trimmed = np.ascontiguousarray(mask[box])
    text = f"{trimmed.shape}".encode() + np.packbits(trimmed).tobytes()
    return hashlib.blake2b(text, digest_size=12).hexdigest()


class Packer:
    """Packs masks, which may overlap, into as few label maps as possible.

    Args:
        grid: the grid of all masks.
        layers: the initial label maps on that grid, which are changed.
    """

    def __init__(self, grid: Geometry, layers: Iterable[Layer] = ()) -> None:
        self._grid = grid
        self._open = [(layer.voxels, dict(layer.values)) for layer in layers]

    def add(self, segment_id: str, mask: NDArray[np.bool_], box: Box, value: int) -> None:
        """Add a segment.

        Args:
            mask: its voxels inside `box`, (k, j, i).
            value: the preferred label value, which it gets if it is free in its layer.
        """
        free = (n for n, (voxels, _) in enumerate(self._open) if not voxels[box][mask].any())
        index = next(free, len(self._open))
        if index == len(self._open):
            self._open.append((np.zeros(self._grid.shape, np.uint8), {}))
        voxels, values = self._open[index]
        taken = set(values.values())
        if value in taken:
            value = max(taken) + 1
        if value > np.iinfo(voxels.dtype).max:
            voxels = voxels.astype(np.uint16)
        voxels[box][mask] = value
        values[segment_id] = value
        self._open[index] = (voxels, values)

    def layers(self) -> tuple[Layer, ...]:
        return tuple(Layer(voxels, self._grid, values) for voxels, values in self._open)


def voxels_of(image: VTKObject) -> NDArray[Any]:
    """Return the values of a vtkOrientedImageData, (k, j, i), which are its own memory."""
    scalars = numpy_support.vtk_to_numpy(image.GetPointData().GetScalars())
    return scalars.reshape(image.GetDimensions()[::-1])


def geometry_of(image: VTKObject) -> Geometry:
    """Return the geometry of a vtkOrientedImageData, including its extent."""
    to_world = vtk.vtkMatrix4x4()
    image.GetImageToWorldMatrix(to_world)
    extent = image.GetExtent()
    start = array_of(to_world)
    start[:3, 3] = (start @ [extent[0], extent[2], extent[4], 1.0])[:3]
    i, j, k = image.GetDimensions()
    return Geometry((k, j, i), start)

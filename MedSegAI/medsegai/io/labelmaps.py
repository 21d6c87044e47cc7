"""Label maps and Slicer segmentations, for evaluation and for work on existing segmentations."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medsegai.errors import GeometryError, InputError
from medsegai.io.dicom_files import is_dicom, read_file
from medsegai.io.dicom_segmentations import read_dicom_segmentation
from medsegai.io.files import check_name, native
from medsegai.io.reading import read_unchecked
from medsegai.io.segmentations import Segment, has_segments, read_segments
from medsegai.labels import Label, made_color
from medsegai.volume import Geometry, Scalar, Volume, check_same_grid

MAX_LABEL = 2**31 - 1
"""The largest value that a label may have; ITK and Slicer keep label values as 32-bit numbers."""


def read_labelmap(path: Path | str) -> tuple[Volume, tuple[Label, ...]]:
    """Read label values and their meaning.

    Args:
        path: an image of integers, which may be stored as floats (see `read_volume` for the formats), a Slicer
            segmentation (.seg.nrrd), or a DICOM SEG. Segments that share a voxel are refused, because one value
            per voxel cannot hold them. Segments in several layers that do not overlap are joined.

    Returns:
        Values from 0 (background) as uint8, uint16 or uint32, (k, j, i), and one label per value:
        names, colours and codes of the segments; or "Label 7" and a made colour for values that
        the file does not name. Values without voxels are listed only if the file names them.

    Raises:
        InputError: the file cannot be read, has fractions or negative values, or segments overlap.
        GeometryError: the voxels cannot be placed.
    """
    path = Path(path)
    check_name(path)
    if path.suffix.lower() == ".nrrd" and path.is_file() and has_segments(path):
        return _read_segmentation(path)
    if path.is_file() and is_dicom(path) and read_file(path).is_segmentation:
        return read_dicom_segmentation(path)
    volume = read_unchecked(path, labels=True)
    volume = volume.with_voxels(_compact(path, volume.voxels))
    values = unique_values(volume.voxels)
    return volume, tuple(_made_label(int(value)) for value in values if value)


def unique_values(voxels: NDArray[Scalar]) -> NDArray[Scalar]:
    """Return the values in an integer array, ascending; by counting if that is faster than sorting."""
    if voxels.dtype.kind == "u" and voxels.dtype.itemsize <= 2:
        counts = np.zeros(1 << 8 * voxels.dtype.itemsize, np.int64)
        for plane in np.ndindex(voxels.shape[:-2]):  # NumPy would use 8 bytes per voxel
            counts += np.bincount(voxels[plane].ravel(), minlength=len(counts))
        return np.flatnonzero(counts).astype(voxels.dtype)
    return np.unique(voxels)


def on_grid(
    labelmap: Volume, grid: Geometry, name: str = "the scan", frame_of_reference: str = ""
) -> Volume:
    """Return the same labels in the voxel order of `grid`, which must be the grid on which they were drawn.

    Readers order axes differently; nothing is resampled, so every label keeps its voxels. A scan that merely
    contains the grid of the labels may be that of another patient.

    Args:
        labelmap: label values, 0 is background.
        grid: the wanted grid.
        name: the name of the object with the grid, for messages.
        frame_of_reference: the frame of reference of the scan. A DICOM SEG of the same frame omits slices without
            labels, and may be a part of the scan.

    Raises:
        GeometryError: the two grids differ in more than the order and direction of their axes.
    """
    if frame_of_reference and labelmap.frame_of_reference == frame_of_reference:
        return _spread(labelmap, grid, name)
    order, backwards = _turn(labelmap.geometry, grid)
    turned = labelmap.geometry.permuted(order).flipped(*np.flatnonzero(backwards))
    check_same_grid(
        turned,
        grid,
        labelmap.source or "The segmentation",
        name,
        "Name the scan that was segmented, or resample the segmentation onto this one with nearest neighbour, "
        "which MedSegAI does not do by itself, because volumes would change.",
    )
    return Volume(_turned(labelmap.voxels, order, backwards), grid, labelmap.source, labelmap.notes)


def _turn(own: Geometry, grid: Geometry) -> tuple[tuple[int, ...], NDArray[np.bool_]]:
    """Return for each axis of `grid` (k, j, i) the parallel one of `own`, and whether it runs backwards."""
    to, of = (place.ijk_to_ras[:3, :3] / place.spacing_mm for place in (grid, own))
    axes = (to.T @ of)[::-1, ::-1]
    order = tuple(int(axis) for axis in np.abs(axes).argmax(axis=1))
    if len(set(order)) < 3:  # rotated by 45 degrees
        order = (0, 1, 2)
    return order, np.array([axes[row, axis] < 0 for row, axis in enumerate(order)])


def _turned(
    voxels: NDArray[Scalar], order: Sequence[int], backwards: NDArray[np.bool_]
) -> NDArray[Scalar]:
    steps = tuple(slice(None, None, -1 if back else 1) for back in backwards)
    return np.ascontiguousarray(voxels.transpose(order)[steps])


def _spread(labelmap: Volume, grid: Geometry, name: str) -> Volume:
    """Return the same labels on a larger grid of the same voxels, because Slicer crops files that it writes.

    Raises:
        GeometryError: the voxels of the two grids do not coincide, or a label is outside `grid`.
    """
    order, backwards = _turn(labelmap.geometry, grid)
    own = labelmap.geometry.permuted(order).flipped(*np.flatnonzero(backwards))
    first = np.rint((grid.ras_to_ijk @ own.ijk_to_ras)[2::-1, 3]).astype(int)
    what = labelmap.source or "The segmentation"
    check_same_grid(grid.cropped(first.tolist(), own.shape), own, name, what, "Compare the two.")
    voxels = _turned(labelmap.voxels, order, backwards)
    return Volume(_pasted(voxels, first, grid, f"{what}: labels", name), grid, labelmap.source)


def _pasted(
    voxels: NDArray[Scalar], first: NDArray[np.intp], grid: Geometry, what: str, name: str
) -> NDArray[Scalar]:
    """Return an array of the grid's shape that holds `voxels` from the position `first` (k, j, i) on."""
    pasted = np.zeros(grid.shape, voxels.dtype)
    there, here = [], []
    for start, length, size in zip(first.tolist(), voxels.shape, grid.shape, strict=True):
        low, high = max(start, 0), max(min(start + length, size), max(start, 0))
        there.append(slice(low, high))
        here.append(slice(low - start, high - start))
    pasted[tuple(there)] = voxels[tuple(here)]
    if np.count_nonzero(pasted) != np.count_nonzero(voxels):
        raise GeometryError(f"{what} lie outside {name}. Name the scan that was segmented.")
    return pasted


def _read_segmentation(path: Path) -> tuple[Volume, tuple[Label, ...]]:
    """Read the segments of a Slicer segmentation as one labelmap, on the grid of the scan if the file has it."""
    found = read_segments(path)
    voxels, labels = _joined_layers(path, _compact(path, found.layers), found.segments)
    labelmap = Volume(native(voxels), found.geometry, str(path))
    if found.reference is not None:
        with contextlib.suppress(GeometryError):  # the segments have their own voxels
            labelmap = _spread(labelmap, found.reference, "its scan")
    return labelmap, labels


def _joined_layers(
    path: Path, layers: NDArray[np.integer], segments: Sequence[Segment]
) -> tuple[NDArray[np.integer], tuple[Label, ...]]:
    """Join layers (layer, k, j, i), each with its own values, to one labelmap."""
    labels = [segment.label for segment in segments]
    if len(layers) == 1:
        return layers[0], _with_unnamed(labels, layers[0])
    labels = [replace(label, value=number) for number, label in enumerate(labels, start=1)]
    joined = np.zeros(layers.shape[1:], np.min_scalar_type(len(labels)))
    for label, segment in zip(labels, segments, strict=True):
        mask = layers[segment.layer] == segment.label.value
        if joined[mask].any():
            raise InputError(
                f"{path}: segment {label.name!r} overlaps another one. Export the segments as a labelmap in "
                "Slicer, which decides for each voxel."
            )
        joined[mask] = label.value
    return joined, tuple(labels)


def _with_unnamed(labels: Sequence[Label], voxels: NDArray[np.integer]) -> tuple[Label, ...]:
    """Return labels, and made ones for further values among the voxels."""
    known = {0, *(label.value for label in labels)}
    others = (int(value) for value in unique_values(voxels) if int(value) not in known)
    return (*labels, *map(_made_label, others))


def _compact(path: Path, voxels: NDArray[np.number]) -> NDArray[np.integer]:
    """Return the same values in the smallest unsigned type.

    Raises:
        InputError: the values are not labels.
    """
    if voxels.dtype.kind == "b":
        return voxels.astype(np.uint8)
    _check_labels(path, voxels)
    return voxels.astype(np.min_scalar_type(int(voxels.max())), copy=False)


def _check_labels(path: Path, voxels: NDArray[np.number]) -> None:
    """Refuse values that are not whole numbers from 0 to `MAX_LABEL`."""
    if voxels.dtype.kind not in "iuf":
        raise InputError(
            f"{path}: voxels of type {voxels.dtype} are not labels. Name a labelmap of integers."
        )
    if voxels.dtype.kind == "f" and not np.array_equal(voxels, np.rint(voxels)):
        raise InputError(
            f"{path} has values that are not whole numbers: it is an image or a probability map, not a "
            "labelmap. Name the labelmap."
        )
    smallest, largest = voxels.min(), voxels.max()
    if smallest < 0 or largest > MAX_LABEL:
        raise InputError(
            f"{path} has values from {smallest:g} to {largest:g}, but labels are between 0 "
            f"and {MAX_LABEL}. Name the labelmap."
        )


def _made_label(value: int) -> Label:
    return Label(value, f"Label {value}", made_color(value))

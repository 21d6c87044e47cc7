"""Label maps and Slicer segmentations, for evaluation and for going on with what exists."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import slicerio
from nrrd import NRRDError
from numpy.typing import NDArray

from medsegai.errors import GeometryError, InputError, ModelError
from medsegai.io.files import PARSER_ERRORS, check_3d, native, placed, unreadable
from medsegai.io.itk import HEADER_BYTES, LPS_TO_RAS, check_itk_header
from medsegai.io.reading import read_unchecked
from medsegai.labels import Label, Terminology, made_color
from medsegai.volume import Geometry, Volume

SAME_PLACE = 0.01
"""How far voxels of one grid may lie from those of another one, in voxels, and count as the same."""

MAX_LABEL = 2**31 - 1
"""The largest value a label may have; ITK and Slicer keep label values as 32-bit numbers."""


def read_labelmap(path: Path | str) -> tuple[Volume, tuple[Label, ...]]:
    """Read label values and what they mean.

    Args:
        path: an image of integers, also stored as floats (see `read_volume` for the formats), or a
            Slicer segmentation (.seg.nrrd). Segments that share a voxel are refused: one value per
            voxel cannot hold them. Segments in several layers that share none are joined.

    Returns:
        Values from 0 (background) as uint8, uint16 or uint32, (k, j, i), and one label per value:
        names, colours and codes of the segments; or "Label 7" and a made colour for values that
        the file does not name. Values without voxels are listed only if the file names them.

    Raises:
        InputError: the file cannot be read, has fractions or negative values, or segments overlap.
        GeometryError: the voxels cannot be placed.
    """
    path = Path(path)
    if path.suffix.lower() == ".nrrd" and path.is_file() and _has_segments(path):
        return _read_segmentation(path)
    volume = read_unchecked(path)
    volume = volume.with_voxels(_compact(path, volume.voxels))
    values = unique_values(volume.voxels)
    return volume, tuple(_made_label(int(value)) for value in values if value)


def unique_values(voxels: NDArray[Any]) -> NDArray[Any]:
    """The values in an integer array, ascending; by counting where that is faster than sorting."""
    if voxels.dtype.kind == "u" and voxels.dtype.itemsize <= 2:
        return np.flatnonzero(np.bincount(voxels.ravel())).astype(voxels.dtype)
    return np.unique(voxels)


def laid_on(labelmap: Volume, grid: Geometry, name: str = "the scan") -> Volume:
    """The same labels on `grid`, whose voxels are those of the labelmap in another order or extent.

    Readers order axes differently and Slicer writes only the box around its segments; nothing is
    resampled, so every label keeps its voxels.

    Args:
        labelmap: label values, 0 is background.
        grid: where they are wanted.
        name: what lies on `grid`, for messages.

    Raises:
        GeometryError: the voxels of the two grids lie elsewhere, or a label lies outside of `grid`.
    """
    if labelmap.geometry.matches(grid):
        return Volume(labelmap.voxels, grid, labelmap.source, labelmap.notes)
    moved = (grid.ras_to_ijk @ labelmap.geometry.ijk_to_ras)[2::-1]  # rows k, j, i
    axes = moved[:, 2::-1]
    turn, start = np.rint(axes), np.rint(moved[:, 3])
    far = np.abs(axes - turn) @ labelmap.geometry.shape + np.abs(moved[:, 3] - start)
    source = labelmap.source or "The segmentation"
    if not np.array_equal(np.abs(turn) @ np.ones(3), np.ones(3)) or far.max() > SAME_PLACE:
        raise GeometryError(
            f"{source} ({labelmap.geometry.describe()}) and {name} ({grid.describe()}) lie on "
            "different grids. Segment that scan itself, or resample the segmentation onto it with "
            "nearest neighbour first; MedSegAI does not do so unasked, for volumes would change."
        )
    order = np.abs(turn).argmax(axis=1)
    backwards = turn.sum(axis=1) < 0
    voxels = labelmap.voxels.transpose(order)
    voxels = voxels[tuple(slice(None, None, -1 if back else 1) for back in backwards)]
    first = start.astype(int) - np.where(backwards, np.array(voxels.shape) - 1, 0)
    return Volume(_pasted(voxels, first, grid, f"{source}: labels", name), grid, source)


def _pasted(
    voxels: NDArray[Any], first: NDArray[Any], grid: Geometry, what: str, name: str
) -> NDArray[Any]:
    """An array of the grid's shape that holds `voxels` from the place `first` (k, j, i) on."""
    pasted = np.zeros(grid.shape, voxels.dtype)
    there, here = [], []
    for start, length, size in zip(first.tolist(), voxels.shape, grid.shape, strict=True):
        low, high = max(start, 0), max(min(start + length, size), max(start, 0))
        there.append(slice(low, high))
        here.append(slice(low - start, high - start))
    pasted[tuple(there)] = voxels[tuple(here)]
    if np.count_nonzero(pasted) != np.count_nonzero(voxels):
        raise GeometryError(f"{what} lie outside of {name}. Name the scan that was segmented.")
    return pasted


def _has_segments(path: Path) -> bool:
    with path.open("rb") as file:
        return b"\nSegment0_" in file.read(HEADER_BYTES)


def _read_segmentation(path: Path) -> tuple[Volume, tuple[Label, ...]]:
    """Read the segments of a Slicer segmentation."""
    try:
        check_itk_header(path, components=None)
        segmentation = slicerio.read_segmentation(str(path))
        if "Fractional" in segmentation.get("masterRepresentation", ""):
            raise InputError(
                f"{path} holds fractional segments. Convert it to a binary labelmap in Slicer's Segmentations "
                "module."
            )
        layers = segmentation["voxels"]
        segments = _with_whole_names(path, segmentation["segments"])
        layers = layers[np.newaxis] if layers.ndim == 3 else layers
        check_3d(path, layers.shape[1:])
        voxels, labels = _joined(path, layers, segments)
    except (*PARSER_ERRORS, NRRDError) as error:
        raise unreadable(path, error, "a Slicer segmentation") from error
    geometry = placed(path, voxels.shape[::-1], LPS_TO_RAS @ segmentation["ijkToLPS"])
    return Volume(native(voxels.T), geometry, str(path)), labels


def _with_whole_names(path: Path, segments: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The segments with the names as they stand in the header: pynrrd drops letters beyond ASCII."""
    with path.open("rb") as file:
        header = file.read(HEADER_BYTES).partition(b"\n\n")[0]
    lines = re.findall(rb"^Segment(\d+)_Name:=(.*?)\r?$", header, re.MULTILINE)
    names = [
        name.decode(errors="replace") for _, name in sorted(lines, key=lambda line: int(line[0]))
    ]
    if len(names) != len(segments):
        return list(segments)
    return [segment | {"name": name} for segment, name in zip(segments, names, strict=True)]


def _joined(
    path: Path, layers: NDArray[Any], segments: Sequence[dict[str, Any]]
) -> tuple[NDArray[Any], tuple[Label, ...]]:
    """One labelmap from layers (layer, i, j, k), each with values of its own."""
    layers = _compact(path, layers)
    labels = [_label(segment, int(segment.get("labelValue", 1))) for segment in segments]
    if len(layers) == 1:
        named = {label.value for label in labels}
        others = (
            int(value) for value in unique_values(layers) if value and int(value) not in named
        )
        return layers[0], (*labels, *(_made_label(value) for value in others))
    labels = [_label(segment, number) for number, segment in enumerate(segments, start=1)]
    joined = np.zeros(layers.shape[1:], np.min_scalar_type(len(labels)))
    for label, segment in zip(labels, segments, strict=True):
        mask = layers[segment.get("layer", 0)] == segment.get("labelValue", 1)
        if joined[mask].any():
            raise InputError(
                f"{path}: segment {label.name!r} overlaps another one. Export the segments as a labelmap in "
                "Slicer, which decides for each voxel."
            )
        joined[mask] = label.value
    return joined, tuple(labels)


def _compact(path: Path, voxels: NDArray[Any]) -> NDArray[Any]:
    """The same values in the smallest unsigned type.

    Raises:
        InputError: values that are no labels.
    """
    if voxels.dtype.kind == "b":
        return voxels.astype(np.uint8)
    if voxels.dtype.kind not in "iuf":
        raise InputError(f"{path}: voxels of type {voxels.dtype} are no labels.")
    if voxels.dtype.kind == "f" and not np.array_equal(voxels, np.rint(voxels)):
        raise InputError(
            f"{path} has values that are no whole numbers: it is an image or a probability map, not a "
            "labelmap. Name the labelmap."
        )
    smallest, largest = voxels.min(), voxels.max()
    if smallest < 0 or largest > MAX_LABEL:
        raise InputError(
            f"{path} has values from {smallest:g} to {largest:g}; labels lie between 0 and {MAX_LABEL}. Name "
            "the labelmap."
        )
    return voxels.astype(np.min_scalar_type(int(largest)), copy=False)


def _label(segment: dict[str, Any], value: int) -> Label:
    if value < 1:
        raise ValueError(f"segment {segment['name']!r} has the value {value} of the background")
    red, green, blue = (round(255 * min(max(part, 0.0), 1.0)) for part in segment["color"])
    name = " ".join(segment["name"].split()) or segment["id"]
    return Label(value, name, (red, green, blue), _codes(segment.get("terminology") or {}))


def _codes(entry: dict[str, Any]) -> Terminology | None:
    """The codes of a segment; None where the entry is not made of proper codes."""
    names = {"category": "category", "type": "type", "typeModifier": "modifier"}
    try:
        return Terminology.from_dict({names[key]: entry[key] for key in names if key in entry})
    except ModelError:
        return None


def _made_label(value: int) -> Label:
    return Label(value, f"Label {value}", made_color(value))

"""DICOM SEG as labels: the frames of every segment, on the slices that they span.

A SEG omits frames without voxels, so its grid is only a part of the grid of its series. Their common frame of
reference says that both are in the same space, so that labels can be placed on the series, see
`labelmaps.on_grid`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray

from medsegai.decoding import PARSER_ERRORS
from medsegai.errors import GeometryError, InputError, ModelError
from medsegai.io.decoder import decoded
from medsegai.io.dicom_files import (
    PixelElement,
    check_pixels,
    functional_groups,
    merged,
    opened_header,
    pixel_element,
)
from medsegai.io.files import check_memory, native, placed, unreadable
from medsegai.io.itk import LPS_TO_RAS
from medsegai.labels import Label, Terminology, made_color
from medsegai.volume import Volume

OFF_GRID = 0.1
"""The largest distance of a frame from the regular grid, as a fraction of the slice distance."""


OVERLAP = (
    "{path}: its segments overlap, but a voxel can have only one label. Export "
    "them as a labelmap in 3D Slicer, which decides for each voxel."
)


def read_dicom_segmentation(path: Path) -> tuple[Volume, tuple[Label, ...]]:
    """Read a DICOM SEG, BINARY or LABELMAP.

    Returns:
        Segment numbers as label values, (k, j, i), on the grid that the frames span, and the segments.

    Raises:
        InputError: the file is damaged, fractional or packed in an unsupported way, or segments share a voxel.
        GeometryError: the frames do not lie on a regular grid.
    """
    try:
        return _read(path)
    except PARSER_ERRORS as error:
        raise unreadable(path, error, "a DICOM segmentation") from error


def _read(path: Path) -> tuple[Volume, tuple[Label, ...]]:
    with path.open("rb") as file:
        head, stream = opened_header(path, file)
        pixels = pixel_element(head, stream)
    voxels, matrix = _voxels(path, head, pixels)
    segments = (item for item in head.SegmentSequence if int(item.SegmentNumber))
    labels = tuple(_label(item) for item in segments)  # number 0 is the background
    grid = placed(path, voxels.shape, LPS_TO_RAS @ matrix)
    reference = str(head.get("FrameOfReferenceUID") or "")
    volume = Volume(native(voxels), grid, str(path), frame_of_reference=reference)
    return volume, _with_others(labels, voxels)


def _voxels(
    path: Path, head: pydicom.Dataset, pixels: PixelElement
) -> tuple[NDArray[np.integer], NDArray[np.float64]]:
    """Return segment numbers (k, j, i), and the matrix from (i, j, k) to LPS."""
    kind = _kind(path, head)
    sources = _sources(head)
    size = int(head.Rows), int(head.Columns)
    count = len(sources) * size[0] * size[1]
    check_pixels(path, head, pixels, count * int(head.BitsAllocated) // 8)
    check_memory(path, count)
    matrix, places = _grid(path, sources)
    shape = (max(places) + 1, *size)
    check_memory(path, 2 * shape[0] * shape[1] * shape[2])
    frames = _frames(path, head, (len(sources), *size))
    numbers = [_number(source) for source in sources] if kind == "BINARY" else []
    voxels = _joined_frames(path, shape, frames, places, numbers)
    return voxels, matrix


def _frames(path: Path, head: pydicom.Dataset, shape: tuple[int, int, int]) -> NDArray[np.integer]:
    """Return the pixels of the frames, with padding as 0."""
    frames = decoded("itk.frames", path, math.prod(shape)).reshape(-1, *shape[1:])
    if len(frames) != shape[0]:
        raise ValueError("the number of its frames differs from that in its header")
    padding = head.get("PixelPaddingValue")
    return frames if padding is None else np.where(frames == int(padding), 0, frames)


def _kind(path: Path, head: pydicom.Dataset) -> str:
    kind = str(head.get("SegmentationType", ""))
    if kind not in ("BINARY", "LABELMAP"):
        raise InputError(
            f"{path} holds segments of type {kind or 'unknown'}; only BINARY and LABELMAP are supported. "
            "Convert it to .seg.nrrd with 3D Slicer."
        )
    return kind


def _sources(head: pydicom.Dataset) -> list[Any]:
    """Return the attributes of the position and segment of each frame."""
    shared, per_frame = functional_groups(head)
    return [merged(frame, shared) for frame in per_frame]


def _number(source: pydicom.Dataset) -> int:
    return int(source.ReferencedSegmentNumber)


def _check_parallel(path: Path, sources: Sequence[pydicom.Dataset]) -> None:
    first = sources[0]
    for source in sources:
        same = np.allclose(
            [*source.ImageOrientationPatient, *source.PixelSpacing],
            [*first.ImageOrientationPatient, *first.PixelSpacing],
            atol=1e-4,
        )
        if not same:
            raise GeometryError(
                f"{path}: its frames have different orientations or pixel sizes. Convert it with 3D Slicer."
            )


def _grid(path: Path, sources: Sequence[Any]) -> tuple[NDArray[np.float64], list[int]]:
    """Return the matrix from (i, j, k) to LPS, with k along the cross product of i and j, and each frame's k."""
    first = sources[0]
    axes = np.array(first.ImageOrientationPatient, np.float64).reshape(2, 3).T
    rows, columns = (float(value) for value in first.PixelSpacing)
    _check_parallel(path, sources)
    normal = np.cross(axes[:, 0], axes[:, 1])
    positions = np.array([source.ImagePositionPatient for source in sources], np.float64)
    heights = positions @ normal
    step = _step(first, heights)
    start = positions[heights.argmin()]
    numbers = (heights - heights.min()) / step
    places = np.rint(numbers).astype(int)
    aside = positions - (start + np.outer(numbers * step, normal))
    _check_regular(path, numbers - places, aside)
    matrix = np.eye(4)
    matrix[:3, :3] = np.column_stack([axes[:, 0] * columns, axes[:, 1] * rows, normal * step])
    matrix[:3, 3] = start
    return matrix, places.tolist()


def _check_regular(path: Path, between: NDArray[np.float64], aside: NDArray[np.float64]) -> None:
    if np.abs(between).max() > OFF_GRID or np.linalg.norm(aside, axis=1).max() > OFF_GRID:
        raise GeometryError(
            f"{path}: its frames do not lie on a regular grid. Convert it with 3D Slicer, on the grid of its scan."
        )


def _step(source: pydicom.Dataset, heights: NDArray[np.float64]) -> float:
    """Return the distance of slices: from the file, or the smallest between frames, or their thickness."""
    said = source.get("SpacingBetweenSlices")
    if said:
        return abs(float(said))
    distances = np.diff(np.unique(np.round(heights, 4)))
    return float(distances.min()) if len(distances) else float(source.SliceThickness)


def _joined_frames(
    path: Path,
    shape: tuple[int, int, int],
    frames: NDArray[np.integer],
    places: Sequence[int],
    numbers: Sequence[int],
) -> NDArray[np.integer]:
    """Join frames to one label map; `numbers` are their segments, or empty if the pixels are segment numbers."""
    top = max(numbers) if numbers else int(frames.max(initial=0))
    voxels = np.zeros(shape, np.min_scalar_type(top))
    for index, (frame, k) in enumerate(zip(frames, places, strict=True)):
        inside = frame != 0
        values = numbers[index] if numbers else frame[inside]
        present = voxels[k][inside]
        if np.any((present != 0) & (present != values)):
            raise InputError(OVERLAP.format(path=path))
        voxels[k][inside] = values
    return voxels


def _label(item: pydicom.Dataset) -> Label:
    number = int(item.SegmentNumber)
    words = "".join(
        part if part.isprintable() else " " for part in str(item.get("SegmentLabel", ""))
    )
    name = " ".join(words.split()) or f"Segment {number}"
    return Label(number, name, made_color(number), _codes(item))


def _codes(item: pydicom.Dataset) -> Terminology | None:
    """Return the codes of a segment; None if it has none, or invalid ones."""
    kinds = item.get("SegmentedPropertyTypeCodeSequence") or [pydicom.Dataset()]
    category = _code(item.get("SegmentedPropertyCategoryCodeSequence"))
    kind = _code(kinds)
    modifier = _code(kinds[0].get("SegmentedPropertyTypeModifierCodeSequence"))
    if category is None or kind is None:
        return None
    try:
        return Terminology(category, kind, modifier)
    except ModelError:
        return None


def _code(codes: Sequence[pydicom.Dataset] | None) -> tuple[str, str, str] | None:
    """Return scheme, value and meaning of the first code, if there is one."""
    one = codes[0] if codes else pydicom.Dataset()
    scheme, value, meaning = (
        str(one.get(name) or "") for name in ("CodingSchemeDesignator", "CodeValue", "CodeMeaning")
    )
    return (scheme, value, meaning) if value else None


def _with_others(labels: tuple[Label, ...], voxels: NDArray[np.number]) -> tuple[Label, ...]:
    """Return the labels, with generated ones for values that do not belong to a segment."""
    named = {label.value for label in labels}
    values = (int(value) for value in np.unique(voxels) if value and int(value) not in named)
    return (*labels, *(Label(value, f"Label {value}", made_color(value)) for value in values))

"""Whether a volume can be segmented at all, wherever it was read from."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from medsegai.errors import InputError, counted
from medsegai.volume import Geometry, Volume, check_same_grid

MAX_VALUE = 1e15
"""Grey values beyond this are refused, because sums of their squares, from which deviations are computed, may not
be finite in float32."""

MOST_NATS = math.log(65536)
"""The largest entropy in nats, that of an even choice among as many labels as a label map can have."""

MAX_SPACING_MM = 8.0
"""The slice distance in mm above which scans are refused: structures of a centimetre fall between slices."""

WARN_SPACING_MM = 3.5
"""The slice distance in mm above which scans are segmented with a warning."""

EXTENT_MM = (20.0, 3000.0)
"""If the longest side of an image is outside this range in mm, its spacing probably has another unit."""


def check_voxels(volume: Volume, dimensions: int = 3) -> None:
    """Refuse voxels that a network cannot interpret.

    Args:
        volume: the image.
        dimensions: the dimensions of the networks; for two, a single slice is enough.

    Raises:
        InputError: voxels form a single slice, are not numbers, are not finite, exceed `MAX_VALUE`, or are all
            equal.
    """
    name = volume.source or "The image"
    voxels = volume.voxels
    _check_thickness(name, volume.geometry, dimensions)
    _check_numbers(name, voxels)
    _check_values(name, voxels)


def _check_numbers(name: str, voxels: NDArray[np.generic]) -> None:
    if voxels.dtype.kind not in "iufb":
        raise InputError(
            f"{name} has voxels of type {voxels.dtype}, but real numbers are needed. Export it again."
        )


def _check_thickness(name: str, geometry: Geometry, dimensions: int) -> None:
    if min(geometry.shape[3 - dimensions :]) < 2:
        thin, wanted = (
            ("voxel thick", "3D volume") if dimensions == 3 else ("pixel wide or high", "picture")
        )
        raise InputError(
            f"{name} is one {thin} ({geometry.describe()}), but a {wanted} is needed. Choose another image."
        )


def _check_values(name: str, voxels: NDArray[np.number]) -> None:
    """Refuse values that are not finite, all equal, or beyond those of any scan."""
    _check_finite(name, voxels)
    lowest, highest = voxels.min(), voxels.max()
    if lowest == highest:
        raise InputError(
            f"{name} is empty: every voxel is {voxels.flat[0]}. Choose another image, or export it again."
        )
    if max(-float(lowest), float(highest)) > MAX_VALUE:
        beyond = int(np.count_nonzero((voxels > MAX_VALUE) | (voxels < -MAX_VALUE)))
        raise InputError(
            f"{name} has values from {lowest:g} to {highest:g}, and {beyond} of its voxels lie beyond "
            f"{MAX_VALUE:g}, which no scan has. Replace them first, for example with numpy.clip."
        )


def check_entropy(volume: Volume) -> None:
    """Refuse a map whose values cannot be uncertainties. Unlike the values of a scan, they may be equal.

    Raises:
        InputError: values are not finite, negative, or above `MOST_NATS`.
    """
    name = volume.source or "The map"
    _check_numbers(name, volume.voxels)
    _check_finite(name, volume.voxels)
    lowest, highest = volume.voxels.min(), volume.voxels.max()
    if lowest < 0 or highest > MOST_NATS:
        raise InputError(
            f"{name} has values from {lowest:g} to {highest:g}, which are not uncertainties in nats. Name the map "
            "of `medsegai segment --uncertainty`."
        )


def check_picture(volume: Volume) -> tuple[str, ...]:
    """Refuse an image that cannot be segmented slice by slice, and report what is questionable about it.

    Returns:
        Warnings as sentences, the reader's notes first.

    Raises:
        InputError: see `check_voxels`.
    """
    check_voxels(volume, dimensions=2)
    if volume.size_known:
        return volume.notes
    name = volume.source or "The image"
    unknown = f"{name} does not state the size of its pixels, so sizes are in pixels."
    return (*volume.notes, unknown)


def _check_finite(name: str, voxels: NDArray[np.number]) -> None:
    if voxels.dtype.kind == "f":
        bad = voxels.size - int(np.count_nonzero(np.isfinite(voxels)))
        if bad:
            raise InputError(
                f"{name} has {counted(bad, 'voxel that is', 'voxels that are')} NaN or infinite. Replace them "
                "first, for example by zero with numpy.nan_to_num."
            )


def check_scan(volume: Volume, spacing_limit_mm: float = MAX_SPACING_MM) -> tuple[str, ...]:
    """Refuse a scan that cannot be segmented, and report what makes its segmentation questionable.

    Args:
        volume: the scan.
        spacing_limit_mm: the slice distance above which the scan is refused.

    Returns:
        Warnings as sentences, the reader's notes first; empty if there are none.

    Raises:
        InputError: see `check_voxels`; or a spacing exceeds the limit.
    """
    check_voxels(volume)
    name = volume.source or "The image"
    geometry = volume.geometry
    _check_spacing(name, geometry, spacing_limit_mm)
    return (*volume.notes, *_doubts(name, geometry))


def _check_spacing(name: str, geometry: Geometry, limit_mm: float) -> None:
    spacing = max(geometry.spacing_mm)
    if spacing > limit_mm:
        raise InputError(
            f"{name} has {geometry.describe()}: slices {spacing:.3g} mm apart are too far for 3D structures, "
            f"because the limit is {limit_mm:g} mm. Use a scan with thinner slices."
        )


def _doubts(name: str, geometry: Geometry) -> Iterator[str]:
    """What makes the segmentation of a scan questionable, as sentences."""
    spacing = max(geometry.spacing_mm)
    if spacing > WARN_SPACING_MM:
        yield (
            f"{name} has slices {spacing:.3g} mm apart, so small structures are inaccurate. A "
            "scan with 1 to 2 mm gives better results."
        )
    extent = max(
        size * step for size, step in zip(geometry.shape[::-1], geometry.spacing_mm, strict=True)
    )
    if not EXTENT_MM[0] <= extent <= EXTENT_MM[1]:
        yield (
            f"{name} is {extent:.3g} mm long ({geometry.describe()}). Check that its spacing is in millimetres."
        )


def check_one_grid(inputs: Sequence[Volume]) -> None:
    """Refuse images that do not lie on the grid of the first one.

    Raises:
        GeometryError: an image has another grid.
    """
    for volume in inputs:
        check_same_grid(
            volume.geometry,
            inputs[0].geometry,
            volume.source,
            inputs[0].source,
            "Resample one onto the other first.",
        )

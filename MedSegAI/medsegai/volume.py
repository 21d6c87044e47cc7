"""Voxels and where they lie: `Geometry` and `Volume`.

One convention inside the whole product: voxel arrays are indexed (k, j, i) as in Slicer and ITK, world
coordinates are RAS in millimetres. Readers and writers convert at the border and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medsegai.errors import GeometryError

Scalar = TypeVar("Scalar", bound=np.generic)
"""The type of an array's values, for functions that keep it."""

SHEAR_TOLERANCE = 1e-3
"""Largest cosine between two voxel axes that still counts as a right angle (0.06 degrees)."""


def _frozen(values: ArrayLike) -> NDArray[np.float64]:
    array = np.array(values, dtype=np.float64)
    array.setflags(write=False)
    return array


Box = tuple[slice, slice, slice]
"""A part of a grid along (k, j, i)."""


def joined_box(boxes: Iterable[Box]) -> Box:
    """Return the smallest box that holds all of these boxes, of which there is at least one."""
    k, j, i = (
        slice(min(part.start for part in parts), max(part.stop for part in parts))
        for parts in zip(*boxes, strict=True)
    )
    return k, j, i


@dataclass(frozen=True, eq=False)
class Geometry:
    """A regular voxel grid in space.

    Attributes:
        shape: number of voxels along (k, j, i).
        ijk_to_ras: 4x4 matrix from (i, j, k, 1), voxel centres, to (R, A, S, 1) in mm.

    Raises:
        GeometryError: the matrix is not finite, singular or sheared, or the shape is not positive.
    """

    shape: tuple[int, int, int]
    ijk_to_ras: NDArray[np.float64]

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(int(size) for size in self.shape))
        object.__setattr__(self, "ijk_to_ras", _frozen(self.ijk_to_ras))
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise GeometryError(f"A grid needs three positive sizes, not {self.shape}.")
        _check_matrix(self.ijk_to_ras)

    @classmethod
    def from_spacing(
        cls,
        shape: Sequence[int],
        spacing_mm: Sequence[float],
        origin_ras: Sequence[float] = (0.0, 0.0, 0.0),
        directions: ArrayLike | None = None,
    ) -> Geometry:
        """Grid with `shape` (k, j, i), `spacing_mm` (i, j, k), and unit `directions` as columns i, j, k."""
        matrix = np.eye(4)
        matrix[:3, :3] = (np.eye(3) if directions is None else np.asarray(directions)) * np.asarray(
            spacing_mm
        )
        matrix[:3, 3] = origin_ras
        return cls(_three(shape), matrix)

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance between voxel centres along (i, j, k)."""
        lengths = np.linalg.norm(self.ijk_to_ras[:3, :3], axis=0)
        return float(lengths[0]), float(lengths[1]), float(lengths[2])

    @property
    def voxel_volume_ml(self) -> float:
        """Volume of one voxel in ml."""
        return abs(float(np.linalg.det(self.ijk_to_ras[:3, :3]))) / 1000.0

    @property
    def ras_to_ijk(self) -> NDArray[np.float64]:
        """From world positions (R, A, S in mm) to voxel indices (i, j, k): a 4 x 4 matrix."""
        return np.linalg.inv(self.ijk_to_ras).astype(np.float64)

    @property
    def center_ras(self) -> NDArray[np.float64]:
        """World position of the middle of the grid, in mm."""
        middle = [(size - 1) / 2 for size in reversed(self.shape)]
        return np.asarray((self.ijk_to_ras @ [*middle, 1.0])[:3])

    def cropped(self, start: Sequence[int], shape: Sequence[int]) -> Geometry:
        """The part of this grid that begins at voxel `start` (k, j, i); may reach outside."""
        matrix = self.ijk_to_ras.copy()
        matrix[:3, 3] = (self.ijk_to_ras @ [start[2], start[1], start[0], 1.0])[:3]
        return Geometry(_three(shape), matrix)

    def part(self, box: Box) -> Geometry:
        """The part of this grid in a box of slices (k, j, i)."""
        return self.cropped([side.start for side in box], [side.stop - side.start for side in box])

    def thinned(self, steps: Sequence[int]) -> Geometry:
        """The grid of every n-th voxel along each axis (k, j, i), from the first one."""
        matrix = self.ijk_to_ras.copy()
        matrix[:3, :3] *= steps[::-1]
        return Geometry(
            _three([-(-n // step) for n, step in zip(self.shape, steps, strict=True)]), matrix
        )

    def permuted(self, order: Sequence[int]) -> Geometry:
        """The same voxels with their axes in another order: new axis n is axis `order[n]` of (k, j, i)."""
        matrix = self.ijk_to_ras.copy()
        matrix[:, :3] = self.ijk_to_ras[:, [2 - axis for axis in reversed(order)]]
        return Geometry(_three([self.shape[axis] for axis in order]), matrix)

    def flipped(self, *axes: int) -> Geometry:
        """The same voxels, counted from the other end along some of the axes (k, j, i)."""
        matrix = self.ijk_to_ras.copy()
        for axis in axes:
            matrix[:3, 3] += matrix[:3, 2 - axis] * (self.shape[axis] - 1)
            matrix[:3, 2 - axis] *= -1
        return Geometry(self.shape, matrix)

    def resized(self, shape: Sequence[int]) -> Geometry:
        """As many voxels as `shape` (k, j, i) in the same box: its outer faces stay where they are."""
        matrix = self.ijk_to_ras.copy()
        scale = np.array(self.shape[::-1]) / np.array(shape[::-1])
        matrix[:3, :3] = self.ijk_to_ras[:3, :3] * scale
        matrix[:3, 3] = (self.ijk_to_ras @ [*(scale / 2 - 0.5), 1.0])[:3]
        return Geometry(_three(shape), matrix)

    def box_around(self, bounds_ras: Sequence[float]) -> Box | None:
        """The voxels (k, j, i) that a box in space touches; None if it lies outside of the grid.

        Args:
            bounds_ras: lowest and highest R, A and S of the box in mm, as Slicer's ROI gives them.
        """
        r, a, s = bounds_ras[:2], bounds_ras[2:4], bounds_ras[4:]
        corners = [[x, y, z, 1.0] for x in r for y in a for z in s]
        return self._box(self.ras_to_ijk @ np.array(corners).T, 0.5)

    def box_around_grid(self, other: Geometry) -> Box | None:
        """The voxels (k, j, i) from which those of `other` can be interpolated; None if there are none."""
        return self._box(self.ras_to_ijk @ other.ijk_to_ras @ other._corners(), 0.0)

    def _corners(self) -> NDArray[np.float64]:
        """(i, j, k, 1) of the outermost voxels, as columns."""
        k, j, i = ((0, size - 1) for size in self.shape)
        return np.array([[x, y, z, 1.0] for x in i for y in j for z in k]).T

    def _box(self, corners: NDArray[np.float64], reach: float) -> Box | None:
        """The voxels around corners (i, j, k, ...) that reach so far from their centres."""
        box = []
        for axis, size in enumerate(self.shape):
            position = corners[2 - axis]
            first = int(np.floor(position.min() + reach))
            last = max(int(np.ceil(position.max() - reach)), first) + 1
            if last <= 0 or first >= size:
                return None
            box.append(slice(max(first, 0), min(last, size)))
        return box[0], box[1], box[2]

    def matches(self, other: Geometry, tolerance_voxels: float = 1e-2) -> bool:
        """Whether both grids put every voxel at the same place, within a fraction of a voxel."""
        if self.shape != other.shape:
            return False
        corners = np.array(
            [
                [i, j, k, 1.0]
                for k in (0, self.shape[0])
                for j in (0, self.shape[1])
                for i in (0, self.shape[2])
            ]
        ).T
        apart = np.linalg.norm(((self.ijk_to_ras - other.ijk_to_ras) @ corners)[:3], axis=0)
        return bool(apart.max() <= tolerance_voxels * min(self.spacing_mm))

    def difference(self, other: Geometry) -> str:
        """How the voxels of `other` lie elsewhere, in words; "" if they do not.

        Sizes, spacing, angle, and the largest distance of corners, whichever differs first.
        """
        if self.matches(other):
            return ""
        if self.shape != other.shape:
            return f"they have {_times(self.shape)} and {_times(other.shape)} voxels"
        spacing = np.array([self.spacing_mm, other.spacing_mm])
        if np.abs(spacing[0] / spacing[1] - 1).max() * max(self.shape) > 1e-2:
            return f"their voxels are of {_times_mm(spacing[0])} and of {_times_mm(spacing[1])}"
        corners = self._corners()
        apart = np.linalg.norm(((self.ijk_to_ras - other.ijk_to_ras) @ corners)[:3], axis=0)
        axes = (self.ijk_to_ras[:3, :3] / spacing[0]).T @ (other.ijk_to_ras[:3, :3] / spacing[1])
        angle = np.degrees(np.arccos(np.clip((np.trace(axes) - 1) / 2, -1, 1)))
        turned = f", turned by {angle:.3g} degrees" if angle > 0.05 else ""
        return f"their voxels lie up to {apart.max():.3g} mm apart{turned}"

    def describe(self) -> str:
        """Return shape and spacing in words."""
        spacing = " x ".join(f"{length:.4g}" for length in self.spacing_mm)
        size = " x ".join(str(length) for length in reversed(self.shape))
        return f"{size} voxels of {spacing} mm"


@dataclass(frozen=True, eq=False)
class Volume:
    """Voxels and where they lie.

    Attributes:
        voxels: (k, j, i), any scalar type.
        geometry: their grid.
        source: where they came from, for messages only.
        notes: what the reader found doubtful, in words for the user.
        modality: what kind of scanner they came from, where the file says so: "CT", "MR", as DICOM's Modality.
        frame_of_reference: DICOM's UID of the space that they lie in, where the file says it.
        size_known: whether voxels measure what the grid says; a photograph only has pixels, which stand on a grid
            of 1 mm.
    """

    voxels: NDArray[Any]
    geometry: Geometry
    source: str = ""
    notes: tuple[str, ...] = ()
    modality: str = ""
    frame_of_reference: str = ""
    size_known: bool = True

    def __post_init__(self) -> None:
        if self.voxels.shape != self.geometry.shape:
            raise GeometryError(
                f"Voxels of shape {self.voxels.shape} do not fill a grid of {self.geometry.shape}."
            )

    def with_voxels(self, voxels: NDArray[np.generic]) -> Volume:
        """The same place with other voxels."""
        return replace(self, voxels=voxels)


def check_same_grid(
    one: Geometry, other: Geometry, name: str, other_name: str, what_to_do: str
) -> None:
    """The one place where it is decided whether two images belong together: they have the same voxels in space.

    Args:
        one: grid of an image, or of labels.
        other: grid of what should lie on it.
        name: what `one` is called in the message.
        other_name: the same of `other`.
        what_to_do: the end of the message.

    Raises:
        GeometryError: they differ by more than a hundredth of a voxel; it says in what, and by how much.
    """
    difference = one.difference(other)
    if difference:
        raise GeometryError(
            f"{name} ({one.describe()}) does not lie on the grid of {other_name} ({other.describe()}): "
            f"{difference}. {what_to_do}"
        )


def _times(shape: Sequence[int]) -> str:
    return " x ".join(str(size) for size in reversed(shape))


def _times_mm(spacing: Iterable[float]) -> str:
    return " x ".join(f"{length:.5g}" for length in spacing) + " mm"


def _three(values: Sequence[int]) -> tuple[int, int, int]:
    k, j, i = (int(value) for value in values)
    return k, j, i


def _check_matrix(matrix: NDArray[np.float64]) -> None:
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all():
        raise GeometryError(
            "The voxel-to-world matrix must be 4 x 4 and finite. Repair the image header."
        )
    if not np.allclose(matrix[3], [0, 0, 0, 1]):
        raise GeometryError(
            "The last row of the voxel-to-world matrix must be 0 0 0 1. Repair the image header."
        )
    lengths = np.linalg.norm(matrix[:3, :3], axis=0)
    if lengths.min() < 1e-6:
        raise GeometryError(
            "The voxel-to-world matrix has an axis of no length. Repair the image header."
        )
    _check_axes(matrix[:3, :3] / lengths)


def _check_axes(axes: NDArray[np.float64]) -> None:
    cosines = np.abs(axes.T @ axes - np.eye(3))
    if abs(float(np.linalg.det(axes))) < 1e-3:
        raise GeometryError(
            "The voxel-to-world matrix is singular: two voxel axes coincide. Repair the image header."
        )
    if cosines.max() > SHEAR_TOLERANCE:
        raise GeometryError(
            "The voxel axes are not at right angles (sheared matrix or gantry tilt). "
            "Resample the image onto a straight grid first, for example with Slicer's Resample Scalar Volume."
        )

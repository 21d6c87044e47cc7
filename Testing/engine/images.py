"""Made images whose every voxel is known, and two witnesses that place voxels without our code.

A cube of equal spacing hides swapped axes and mirrored sides; every grid here is non-cubic,
anisotropic and placed off the origin, and most are turned or mirrored.
"""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from medsegai.volume import Geometry, Volume

SHAPE = (7, 6, 5)
SPACING_MM = (0.9, 1.3, 2.1)
ORIGIN_RAS = (-31.0, 17.5, 42.25)


def turned(axis: int, degrees: float) -> NDArray[np.float64]:
    """Rotation matrix around one world axis."""
    angle = np.radians(degrees)
    matrix = np.eye(3)
    first, second = [other for other in range(3) if other != axis]
    matrix[first, first] = matrix[second, second] = np.cos(angle)
    matrix[first, second], matrix[second, first] = -np.sin(angle), np.sin(angle)
    return matrix


OBLIQUE = turned(0, 20) @ turned(1, -35) @ turned(2, 50)

DIRECTIONS: dict[str, NDArray[np.float64]] = {
    "straight": np.eye(3),
    "slightly turned": turned(2, 3.0),
    "oblique": OBLIQUE,
    "mirrored": np.diag([-1.0, 1.0, 1.0]),
    "oblique and mirrored": OBLIQUE @ np.diag([1.0, 1.0, -1.0]),
    "LPS": np.diag([-1.0, -1.0, 1.0]),
    "LIA": np.array([[-1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, -1.0, 0.0]]),
    "sagittal slices": np.array([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]),
}


def geometry(name: str) -> Geometry:
    """The grid of one of `DIRECTIONS`."""
    return Geometry.from_spacing(SHAPE, SPACING_MM, ORIGIN_RAS, DIRECTIONS[name])


def numbered(grid: Geometry, dtype: str = "int16") -> Volume:
    """Voxels that all differ: 1, 2, 3... in the order of memory, so that each tells where it lies."""
    count = int(np.prod(grid.shape))
    return Volume(np.arange(1, count + 1).astype(dtype).reshape(grid.shape), grid)


def blobs(grid: Geometry, values: tuple[int, ...] = (1, 2, 3)) -> Volume:
    """A labelmap with one box per value, no two boxes alike, and background around them."""
    voxels = np.zeros(grid.shape, dtype=np.uint8)
    for number, value in enumerate(values):
        voxels[1 + number : 3 + number, 1 : 4 - number % 2, number % 3 : 2 + number] = value
    return Volume(voxels, grid)


def matrix_ras(name: str) -> NDArray[np.float64]:
    """The matrix of `geometry(name)`, put together here so that `Geometry` is not its own witness."""
    matrix = np.eye(4)
    for axis in range(3):
        matrix[:3, axis] = DIRECTIONS[name][:, axis] * SPACING_MM[axis]
    matrix[:3, 3] = ORIGIN_RAS
    return matrix


def positions(volume: Volume) -> dict[int, tuple[float, ...]]:
    """RAS position of every voxel value, by the volume's own matrix."""
    return {
        int(value): _rounded(volume.geometry.ijk_to_ras @ [i, j, k, 1.0])
        for (k, j, i), value in np.ndenumerate(volume.voxels)
    }


def positions_by_nibabel(path: Path) -> dict[int, tuple[float, ...]]:
    """RAS position of every voxel value of a file, by nibabel."""
    image = nibabel.load(path)
    values = np.asanyarray(image.dataobj)
    return {
        int(value): _rounded(nibabel.affines.apply_affine(image.affine, index))
        for index, value in np.ndenumerate(values)
    }


def positions_by_itk(path: Path) -> dict[int, tuple[float, ...]]:
    """RAS position of every voxel value of a file, by ITK."""
    return itk_positions(sitk.ReadImage(str(path)))


def itk_positions(image: sitk.Image) -> dict[int, tuple[float, ...]]:
    """RAS position of every voxel value of an ITK image, by ITK."""
    placed = {}
    for k in range(image.GetSize()[2]):
        for j in range(image.GetSize()[1]):
            for i in range(image.GetSize()[0]):
                left, back, up = image.TransformIndexToPhysicalPoint((i, j, k))
                placed[int(image[i, j, k])] = _rounded((-left, -back, up))
    return placed


def apart(one: dict[int, tuple[float, ...]], other: dict[int, tuple[float, ...]]) -> float:
    """The largest distance in mm between equal voxels of two images; infinite if values differ."""
    if one.keys() != other.keys():
        return np.inf
    return max(float(np.linalg.norm(np.subtract(one[value], other[value]))) for value in one)


def _rounded(position: object) -> tuple[float, ...]:
    return tuple(float(part) for part in np.asarray(position)[:3])

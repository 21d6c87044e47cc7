"""The formats that nibabel reads: NIfTI, Analyze and FreeSurfer's MGH.

nibabel keeps the matrix of the file as it is, where ITK snaps or refuses matrices that are slightly
off a rotation. Which of NIfTI's two matrices counts follows ITK, so that a result lies on its scan
in 3D Slicer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.freesurfer.mghformat import MGHError
from nibabel.orientations import io_orientation
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError
from numpy.typing import NDArray

from medsegai.errors import GeometryError, InputError
from medsegai.io.files import (
    PARSER_ERRORS,
    check_3d,
    check_stored_size,
    native,
    placed,
    unreadable,
)
from medsegai.volume import Geometry, Volume

NIBABEL_ENDINGS = (".nii", ".nii.gz", ".img", ".hdr", ".mgz", ".mgh")

_DAMAGE = (*PARSER_ERRORS, ImageFileError, HeaderDataError, WrapStructError, MGHError)

_UNITS_MM = {1: 1000.0, 3: 0.001}
"""Metres and micrometres, by NIfTI's code of the spatial unit; all other codes are read as mm."""

ORIENTATION_UNKNOWN = (
    "{path} does not say how its voxels lie in the patient. It is placed as 3D Slicer places it; "
    "left and right may be swapped. Compare with the original scan."
)
MATRICES_DIFFER = (
    "{path} holds two different placements (sform and qform). The {used} is used, as in 3D Slicer; "
    "other programs may show the image elsewhere."
)


def read_with_nibabel(path: Path) -> Volume:
    """Read NIfTI-1, NIfTI-2, Analyze 7.5 or MGH, compressed or not; scaling is applied as float32.

    Raises:
        InputError: damaged, truncated, or not a 3D scalar image.
        GeometryError: the voxels cannot be placed.
    """
    _check_pair(path)
    try:
        image: Any = nibabel.load(path, mmap=False)
        shape = check_3d(path, image.shape)[::-1]
        _check_type(path, image, math.prod(shape))
        geometry, notes = _geometry(path, image, shape)
        voxels = _voxels(image).reshape(shape[::-1]).T
    except _DAMAGE as error:
        raise unreadable(path, error, "a NIfTI, Analyze or MGH image") from error
    return Volume(native(voxels), geometry, str(path), notes)


class Volumes:
    """The volumes of a 4D NIfTI image, of which one at a time stands in memory.

    Attributes:
        path: the file.
        count: how many there are; a 3D image is one.
        geometry: grid of each.
        comments: the comments in its header.

    Raises:
        InputError: not a NIfTI image of 3 or 4 dimensions, or damaged.
        GeometryError: the voxels cannot be placed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._image: Any = nibabel.load(path, mmap=False, keep_file_open=True)
            if not isinstance(self._image, nibabel.Nifti1Pair):
                raise unreadable(path, "it is of another kind", "a NIfTI image")
            *sizes, self.count = (*self._image.shape, 1)[:4]
            shape = check_3d(path, (*sizes, *self._image.shape[4:]))
            _check_type(path, self._image, math.prod(shape))
            self.geometry, _ = _geometry(path, self._image, shape[::-1])
            found = (item for item in self._image.header.extensions if item.get_code() == 6)
            self.comments = [item.get_content() for item in found]
        except _DAMAGE as error:
            raise unreadable(path, error, "a NIfTI image") from error

    def __iter__(self) -> Iterator[NDArray[np.float32]]:
        """Each volume in turn, (k, j, i), scaled as the header says."""
        try:
            values = self._image.dataobj
            for number in range(self.count):
                volume = values[..., number] if len(self._image.shape) > 3 else values[...]
                yield volume.T.astype(np.float32)
        except _DAMAGE as error:
            raise unreadable(self.path, error, "a NIfTI image") from error


def _check_pair(path: Path) -> None:
    """Raise InputError if one file of a header and voxel pair is missing."""
    other = {".img": ".hdr", ".hdr": ".img"}.get(path.suffix.lower())
    if other is None:
        return
    partners = (path.with_suffix(other), path.with_suffix(other.upper()))
    if not any(partner.is_file() for partner in partners):
        raise InputError(
            f"{path}: its other half {partners[0].name} is missing. An Analyze image is a pair of .hdr "
            "and .img; copy both."
        )


def _check_type(path: Path, image: Any, voxels: int) -> None:
    """Refuse voxels that are no plain numbers, and more voxels than file and memory can hold."""
    voxel_type = image.get_data_dtype()
    if voxel_type.kind == "c":
        raise InputError(f"{path} holds complex numbers. Export the magnitude image.")
    if voxel_type.kind not in "iufb":
        raise InputError(
            f"{path} has several values per voxel (a colour image). Convert it to one grey value per voxel."
        )
    data = Path(image.file_map["image"].filename)
    needed = voxels * voxel_type.itemsize
    compressed = data.suffix.lower() in (".gz", ".mgz")
    header = 0 if compressed else int(image.dataobj.offset)
    check_stored_size(path, needed, data.stat().st_size - header, compressed)


def _voxels(image: Any) -> NDArray[Any]:
    """Voxels in the order of the file, in their own type, or float32 if the header scales them."""
    proxy = image.dataobj
    raw = proxy.get_unscaled()
    if raw.dtype.itemsize > 8:  # long double: no other library knows it
        raw = raw.astype(np.float64)
    if (proxy.slope, proxy.inter) == (1.0, 0.0):
        return np.asarray(raw)
    scaled = np.multiply(raw, np.float32(proxy.slope), dtype=np.float32)
    scaled += np.float32(proxy.inter)
    return scaled


def _geometry(
    path: Path, image: Any, shape: tuple[int, int, int]
) -> tuple[Geometry, tuple[str, ...]]:
    if isinstance(image, nibabel.MGHImage):
        return placed(path, shape, image.affine), ()
    if isinstance(image, nibabel.Nifti1Pair):  # also NIfTI-2 and single files
        matrix, notes = _nifti_matrix(path, image.header, shape)
        unit = _UNITS_MM.get(int(image.header["xyzt_units"]) & 7, 1.0)
        return placed(path, shape, matrix * [[unit], [unit], [unit], [1.0]]), notes
    note = ORIENTATION_UNKNOWN.format(path=path)
    return placed(path, shape, _slicer_default(image.header)), (note,)


def _nifti_matrix(
    path: Path, header: Any, shape: tuple[int, int, int]
) -> tuple[NDArray[np.float64], tuple[str, ...]]:
    """The matrix that ITK takes, and what to tell the user.

    ITK: the sform if there is no qform or if the sform is of the scanner (code 1), else the qform;
    with neither, voxel axes along left, posterior and superior.

    Raises:
        GeometryError: the two matrices are mirror images: left and right are not known.
    """
    sform, sform_code = header.get_sform(coded=True)
    qform, qform_code = header.get_qform(coded=True)
    if not sform_code and not qform_code:
        return _slicer_default(header), (ORIENTATION_UNKNOWN.format(path=path),)
    if not (sform_code and qform_code):
        return (sform if sform_code else qform), ()
    if np.linalg.det(sform[:3, :3]) * np.linalg.det(qform[:3, :3]) < 0:
        raise GeometryError(
            f"{path}: its two placements (sform and qform) are mirror images of each other, so left and "
            "right are not known. Find out which is right and remove the other from the header."
        )
    if _agree(sform, qform, shape):
        return sform, ()
    use_sform = sform_code == 1
    note = MATRICES_DIFFER.format(path=path, used="sform" if use_sform else "qform")
    return (sform if use_sform else qform), (note,)


def _agree(
    one: NDArray[np.float64], other: NDArray[np.float64], shape: tuple[int, int, int]
) -> bool:
    """Whether no corner moves by more than a tenth of a voxel."""
    k, j, i = shape
    corners = np.array([[x, y, z, 1.0] for x in (0, i) for y in (0, j) for z in (0, k)])
    apart = np.linalg.norm(((one - other) @ corners.T)[:3], axis=0)
    return bool(apart.max() <= 0.1 * np.linalg.norm(one[:3, :3], axis=0).min())


def _slicer_default(header: Any) -> NDArray[np.float64]:
    """Voxel axes along left, posterior and superior from the origin: ITK's choice without a matrix."""
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ np.diag([*np.abs(header.get_zooms()[:3]), 1.0])


def axes_to_ras(geometry: Geometry) -> tuple[tuple[int, int, int], tuple[bool, bool, bool]]:
    """How to turn a grid so that k, j, i run as close as can be to S, A and R (nibabel's `as_closest_canonical`).

    Returns:
        For each new axis the old one, (k, j, i), and whether it must be reversed.
    """
    axes = io_orientation(geometry.ijk_to_ras)  # for i, j, k: which of R, A, S, and its sign
    place = {int(world): axis for axis, (world, _) in enumerate(axes)}
    k, j, i = (place[world] for world in (2, 1, 0))
    return (2 - k, 2 - j, 2 - i), (bool(axes[k, 1] < 0), bool(axes[j, 1] < 0), bool(axes[i, 1] < 0))

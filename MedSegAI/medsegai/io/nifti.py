"""The formats that nibabel reads: NIfTI, Analyze and FreeSurfer's MGH.

nibabel keeps the matrix of the file as it is, where ITK snaps or refuses matrices that are slightly off a
rotation. The choice between NIfTI's two matrices follows ITK, so that a result is aligned with its scan in 3D
Slicer.
"""

from __future__ import annotations

import gzip
import io
import math
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.freesurfer.mghformat import MGHError, MGHHeader
from nibabel.orientations import io_orientation
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError
from numpy.typing import NDArray

from medsegai.decoding import PARSER_ERRORS
from medsegai.errors import GeometryError, InputError
from medsegai.io.files import (
    check_3d,
    check_regular,
    check_stored_size,
    native,
    placed,
    unreadable,
)
from medsegai.io.stored import GZIP_MAGIC, Stored, check_end, damaged, fill, opened
from medsegai.volume import Geometry, Volume

NIBABEL_ENDINGS = (".nii", ".nii.gz", ".img", ".hdr", ".mgz", ".mgh")

_DAMAGE = (*PARSER_ERRORS, ImageFileError, HeaderDataError, WrapStructError, MGHError)

_UNITS_MM = {1: 1000.0, 3: 0.001}
"""Metres and micrometres, by NIfTI's code of the spatial unit; all other codes are read as mm."""

QUATERNION_ROUNDING = 1e-3
"""The largest squared length of a quaternion minus one, because programs store its parts rounded."""

HEADER_BYTES = 32 << 20
"""More bytes than any header has with its extensions; some programs keep all fields of a DICOM series there."""

_HEADERS = (nibabel.Nifti1Header, nibabel.Nifti2Header)
_PAIR_HEADERS = (
    nibabel.nifti1.Nifti1PairHeader,
    nibabel.nifti2.Nifti2PairHeader,
    nibabel.spm2analyze.Spm2AnalyzeHeader,
    nibabel.spm99analyze.Spm99AnalyzeHeader,
    nibabel.AnalyzeImage.header_class,
)

ORIENTATION_UNKNOWN = (
    "{path} does not state how its voxels are placed in the patient, so it is placed as in "
    "3D Slicer. Left and right may be swapped: compare it with the original scan."
)
MATRICES_DIFFER = (
    "{path} holds two different placements (sform and qform). The {used} is used, as in 3D "
    "Slicer, but other programs may show the image elsewhere."
)


def read_with_nibabel(path: Path) -> Volume:
    """Read NIfTI-1, NIfTI-2, Analyze 7.5 or MGH, compressed or not; scaling is applied as float32.

    Raises:
        InputError: the file is damaged, truncated, or not a 3D scalar image.
        GeometryError: the voxels cannot be placed.
    """
    _check_pair(path)
    try:
        header = _header(path)
        shape = check_3d(path, _sizes(header))[::-1]
        where = _checked(path, header, math.prod(shape))
        geometry, notes = _geometry(path, header, shape)
        voxels = _scaled(_read_voxels(where, shape, header.get_data_dtype()), *_scaling(header))
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise damaged(path, error) from error
    except _DAMAGE as error:
        raise unreadable(path, error, "a NIfTI, Analyze or MGH image") from error
    return Volume(native(voxels), geometry, str(path), notes)


def _read_voxels(where: Stored, shape: Sequence[int], kind: Any) -> NDArray[Any]:
    """Read voxels, and the checksum behind them if they are compressed."""
    raw = np.empty(shape, kind)
    with opened(where.files[0]) as stream:
        stream.seek(where.within)
        fill(stream, raw)
        if where.is_packed:
            check_end(stream)
    return raw


class Volumes:
    """The volumes of a 4D NIfTI image, of which only one at a time is in memory.

    Attributes:
        path: the file.
        count: the number of volumes; a 3D image has one.
        geometry: the grid of each volume.
        comments: the comments in its header.

    Raises:
        InputError: the file is damaged, or not a NIfTI image of 3 or 4 dimensions.
        GeometryError: the voxels cannot be placed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            check_regular(path)
            self._header = _header(path)
            if not isinstance(self._header, nibabel.Nifti1Header):
                raise unreadable(path, "it is another kind of image", "a NIfTI image")
            sizes = _sizes(self._header)
            self.count = (*sizes, 1)[3]
            shape = check_3d(path, (*sizes[:3], *sizes[4:]))
            self._where = _checked(path, self._header, math.prod(shape), self.count)
            self.geometry, _ = _geometry(path, self._header, shape[::-1])
            found = (item for item in self._header.extensions if item.get_code() == 6)
            self.comments = [item.get_content() for item in found]
        except _DAMAGE as error:
            raise unreadable(path, error, "a NIfTI image") from error

    def __iter__(self) -> Iterator[NDArray[np.float32]]:
        """Yield each volume, (k, j, i), scaled by the header; the last one after the checksum was compared."""
        try:
            with opened(self._where.files[0]) as stream:
                stream.seek(self._where.within)
                for number in range(1, self.count + 1):
                    raw = np.empty(self.geometry.shape, self._header.get_data_dtype())
                    fill(stream, raw)
                    if number == self.count and self._where.is_packed:
                        check_end(stream)
                    yield _scaled(raw, *_scaling(self._header)).astype(np.float32, copy=False)
        except _DAMAGE as error:
            raise unreadable(self.path, error, "a NIfTI image") from error


def _header(path: Path) -> Any:
    """Return the header as nibabel reads it, by the beginning of the file."""
    pair = path.suffix.lower() in (".img", ".hdr")
    with opened(_partner(path, ".hdr") if pair else path) as stream:
        if path.suffix.lower() in (".mgh", ".mgz"):
            return MGHHeader.from_fileobj(stream)
        start = stream.read(nibabel.Nifti2Header.sizeof_hdr)
        for kind in _PAIR_HEADERS if pair else _HEADERS:
            if kind.may_contain_header(start):
                length = HEADER_BYTES if pair else _header_length(path, kind, start)
                return kind.from_fileobj(io.BytesIO(start + stream.read(length)))
    raise ImageFileError("it does not begin like such an image")


def _header_length(path: Path, kind: Any, start: bytes) -> int:
    """Return the bytes before the voxels, including extensions, for whose claimed length nibabel takes memory.

    Raises:
        InputError: the header claims more bytes than any header has.
    """
    offset = int(kind(start[: kind.sizeof_hdr], check=False).get_data_offset())
    if offset > HEADER_BYTES:
        raise InputError(
            f"{path}: its header claims {offset / 1e6:.0f} MB before the voxels, which is more than any header "
            f"has. It is damaged; export it again."
        )
    return max(offset, 0)


def _sizes(header: Any) -> tuple[int, ...]:
    """Return the sizes of the image (i, j, k...); later axes of size 0 count as one element, as in ITK."""
    sizes = tuple(int(size) for size in header.get_data_shape())
    return (*sizes[:3], *(size or 1 for size in sizes[3:]))


def _partner(path: Path, ending: str) -> Path:
    """Return the file of a pair with a lower-case ending; the endings of files may be upper case."""
    if path.suffix.lower() == ending:
        return path
    partners = (path.with_suffix(ending), path.with_suffix(ending.upper()))
    return next((partner for partner in partners if partner.is_file()), partners[0])


def _check_pair(path: Path) -> None:
    """Raise InputError if one file of a header and voxel pair is missing."""
    other = {".img": ".hdr", ".hdr": ".img"}.get(path.suffix.lower())
    if other is not None and not _partner(path, other).is_file():
        raise InputError(
            f"{path}: its other half {path.with_suffix(other).name} is missing. An Analyze image is a pair of "
            ".hdr and .img; copy both."
        )


def _checked(path: Path, header: Any, voxels: int, volumes: int = 1) -> Stored:
    """Return where the voxels are, which must be plain numbers and fit into file and memory.

    Only one volume must fit into memory.
    """
    voxel_type = header.get_data_dtype()
    _check_kind(path, voxel_type)
    pair = path.suffix.lower() in (".img", ".hdr")
    file = _partner(path, ".img") if pair else path
    with file.open("rb") as stream:
        packing = "gzip" if stream.read(2) == GZIP_MAGIC else "raw"
    within = int(header.get_data_offset())
    if not pair and isinstance(header, nibabel.Nifti1Header) and within < header.sizeof_hdr:
        raise InputError(
            f"{path}: its header does not say where its voxels begin (vox_offset is {within}). Export it again."
        )
    where = Stored((file,), packing, within=within)
    check_stored_size(path, volumes * voxels * voxel_type.itemsize, where, volumes)
    return where


def _check_kind(path: Path, voxel_type: np.dtype[np.generic]) -> None:
    if voxel_type.kind == "c":
        raise InputError(f"{path} holds complex numbers. Export the magnitude image.")
    if voxel_type.kind not in "iufb":
        raise InputError(
            f"{path} has several values per voxel (a colour image). Convert it to one grey value per voxel."
        )


def _scaling(header: Any) -> tuple[float, float]:
    """Return slope and intercept. As in ITK, a slope that is not finite is ignored, and such an intercept is 0."""
    if isinstance(header, nibabel.Nifti1Header):
        slope, inter = float(header["scl_slope"]), float(header["scl_inter"])
    else:
        slope, inter = (0.0 if part is None else part for part in header.get_slope_inter())
    if slope == 0 or not math.isfinite(slope):
        return 1.0, 0.0
    return slope, inter if math.isfinite(inter) else 0.0


def _scaled(raw: NDArray[np.number], slope: float, inter: float) -> NDArray[np.number]:
    """Return voxels in their own type, or float32 if the header scales them."""
    if raw.dtype.itemsize > 8:  # long double: no other library knows it
        raw = raw.astype(np.float64)
    if (slope, inter) == (1.0, 0.0):
        return raw
    with np.errstate(over="ignore", invalid="ignore"):  # infinite values are refused later
        scaled = np.multiply(raw, np.float32(slope), dtype=np.float32)
        scaled += np.float32(inter)
    return scaled


def _geometry(
    path: Path, header: Any, shape: tuple[int, int, int]
) -> tuple[Geometry, tuple[str, ...]]:
    if isinstance(header, MGHHeader):
        return placed(path, shape, header.get_affine()), ()
    if isinstance(header, nibabel.Nifti1Header):  # also NIfTI-2 and pairs
        matrix, notes = _nifti_matrix(path, header, shape)
        unit = _UNITS_MM.get(int(header["xyzt_units"]) & 7, 1.0)
        return placed(path, shape, matrix * [[unit], [unit], [unit], [1.0]]), notes
    note = ORIENTATION_UNKNOWN.format(path=path)
    return placed(path, shape, _slicer_default(header)), (note,)


def _nifti_matrix(
    path: Path, header: Any, shape: tuple[int, int, int]
) -> tuple[NDArray[np.float64], tuple[str, ...]]:
    """Return the matrix that ITK uses, and notes for the user.

    ITK uses the sform if there is no qform or if the sform is that of the scanner (code 1), otherwise the qform;
    with neither, the voxel axes run along left, posterior and superior.

    Raises:
        GeometryError: the two matrices are mirror images, so left and right are unknown.
    """
    sform, sform_code = header.get_sform(coded=True)
    qform, qform_code = _qform(header, bool(sform_code))
    if qform_code and not _can_be_meant(sform):
        sform_code = 0
    if not sform_code and not qform_code:
        return _slicer_default(header), (ORIENTATION_UNKNOWN.format(path=path),)
    if not (sform_code and qform_code):
        return (sform if sform_code else qform), ()
    return _of_both(path, sform, qform, shape, sform_code == 1)


def _of_both(
    path: Path,
    sform: NDArray[np.float64],
    qform: NDArray[np.float64],
    shape: tuple[int, int, int],
    prefer_sform: bool,
) -> tuple[NDArray[np.float64], tuple[str, ...]]:
    """Return one of two placements, and a note if they differ."""
    if np.linalg.det(sform[:3, :3]) * np.linalg.det(qform[:3, :3]) < 0:
        raise GeometryError(
            f"{path}: its two placements (sform and qform) are mirror images of each other, so left and right are "
            "unknown. Find out which is correct, and remove the other from the header."
        )
    if _agree(sform, qform, shape):
        return sform, ()
    note = MATRICES_DIFFER.format(path=path, used="sform" if prefer_sform else "qform")
    return (sform if prefer_sform else qform), (note,)


def _qform(header: Any, has_other: bool) -> tuple[Any, int]:
    """Return the matrix of the quaternion and its code; (None, 0) if there is none.

    A quaternion that is slightly longer than one by rounding is accepted. An impossible one is ignored if there is
    another matrix; the same holds for the other matrix.

    Raises:
        HeaderDataError, ValueError: the quaternion is impossible, and there is no other matrix.
    """
    header.quaternion_threshold = -QUATERNION_ROUNDING
    try:
        matrix, code = header.get_qform(coded=True)
    except (HeaderDataError, ValueError):
        if has_other:
            return None, 0
        raise
    return (None, 0) if has_other and not _can_be_meant(matrix) else (matrix, code)


def _can_be_meant(matrix: Any) -> bool:
    """Whether a matrix is finite and has three axes; some programs write zeros."""
    return matrix is not None and bool(np.isfinite(matrix).all() and np.linalg.det(matrix[:3, :3]))


def _agree(
    one: NDArray[np.float64], other: NDArray[np.float64], shape: tuple[int, int, int]
) -> bool:
    """Whether two matrices place every corner within a tenth of a voxel of each other."""
    k, j, i = shape
    corners = np.array([[x, y, z, 1.0] for x in (0, i) for y in (0, j) for z in (0, k)])
    apart = np.linalg.norm(((one - other) @ corners.T)[:3], axis=0)
    return bool(apart.max() <= 0.1 * np.linalg.norm(one[:3, :3], axis=0).min())


def _slicer_default(header: Any) -> NDArray[np.float64]:
    """Return voxel axes along left, posterior and superior from the origin: ITK's choice without a matrix."""
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ np.diag([*np.abs(header.get_zooms()[:3]), 1.0])


def axes_to_ras(geometry: Geometry) -> tuple[tuple[int, int, int], tuple[bool, bool, bool]]:
    """Return how to reorient a grid so that k, j, i run close to S, A and R (nibabel's `as_closest_canonical`).

    Returns:
        For each new axis the old one, (k, j, i), and whether it must be reversed.
    """
    axes = io_orientation(geometry.ijk_to_ras)  # for i, j, k: which of R, A, S, and its sign
    place = {int(world): axis for axis, (world, _) in enumerate(axes)}
    k, j, i = (place[world] for world in (2, 1, 0))
    return (2 - k, 2 - j, 2 - i), (bool(axes[k, 1] < 0), bool(axes[j, 1] < 0), bool(axes[i, 1] < 0))

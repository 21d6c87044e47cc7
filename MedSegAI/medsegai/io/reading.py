"""From a file or a DICOM folder to a `Volume`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from medsegai.errors import InputError
from medsegai.io.checks import check_voxels
from medsegai.io.dicom import read_dicom
from medsegai.io.dicom_files import is_dicom
from medsegai.io.files import check_name, check_regular
from medsegai.io.itk import ITK_ENDINGS, read_with_itk
from medsegai.io.nifti import NIBABEL_ENDINGS, read_with_nibabel
from medsegai.volume import Volume

_READERS: tuple[tuple[tuple[str, ...], Callable[[Path], Volume]], ...] = (
    (NIBABEL_ENDINGS, read_with_nibabel),
    (ITK_ENDINGS, read_with_itk),
)
READABLE = (*NIBABEL_ENDINGS, *ITK_ENDINGS, ".dcm")
"""Endings of files that can be read, lower case. DICOM files need no ending."""


def read_volume(path: Path | str, series: str | None = None) -> Volume:
    """Read a 3D scalar image and place it in RAS.

    Args:
        path: NIfTI, NRRD, MetaImage, Analyze, MGH, one multi-frame DICOM file, or a folder that
            holds the slices of a DICOM series.
        series: which series of a DICOM folder: its number, or the end of its SeriesInstanceUID.

    Returns:
        Voxels (k, j, i) in the type of the file, or float32 where the file scales them. `source`
        is the path; `notes` say what is doubtful about the file.

    Raises:
        InputError: missing, damaged or truncated file; not 3D; several values per voxel; NaN or
            infinities; the same value everywhere; one voxel thick.
        GeometryError: the voxels cannot be placed: singular or sheared matrix, missing slices,
            gantry tilt.
    """
    volume = read_unchecked(Path(path), series)
    check_voxels(volume)
    return volume


def read_unchecked(path: Path, series: str | None = None) -> Volume:
    """As `read_volume`, for any values of the voxels."""
    try:
        return _read(path, series)
    except OSError as error:
        raise InputError(
            f"{path} cannot be opened: {error.strerror or error}. Check its name, and that you may read it."
        ) from error


def _read(path: Path, series: str | None) -> Volume:
    if not path.exists():
        raise InputError(f"{path} does not exist. Check the name.")
    check_regular(path)
    check_name(path)
    if path.is_dir():
        return read_dicom(path, series)
    with path.open("rb") as file:
        if not file.read(1):
            raise InputError(f"{path} is empty (0 bytes). Copy or export it again.")
    name = path.name.lower()
    for endings, reader in _READERS:
        if name.endswith(endings):
            return reader(path)
    if is_dicom(path):
        return read_dicom(path, series)
    raise InputError(
        f"{path} is not an image that can be read. Known are {', '.join(READABLE)}, and a folder with "
        "a DICOM series."
    )

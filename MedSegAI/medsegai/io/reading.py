"""Reading of a file or a DICOM folder into a `Volume`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from medsegai.errors import InputError
from medsegai.io.checks import check_entropy, check_voxels
from medsegai.io.dicom import read_dicom
from medsegai.io.dicom_files import is_dicom
from medsegai.io.files import check_name, check_regular
from medsegai.io.itk import ITK_ENDINGS, read_with_itk
from medsegai.io.nifti import NIBABEL_ENDINGS, read_with_nibabel
from medsegai.io.pictures import (
    PICTURE_ENDINGS,
    grey,
    is_picture,
    read_label_picture,
    read_picture,
)
from medsegai.io.radiographs import RADIOGRAPHS, is_radiograph, read_radiograph
from medsegai.io.slides import SlideChannel, is_slide, read_slide
from medsegai.volume import Volume

Read = TypeVar("Read")

_READERS: tuple[tuple[tuple[str, ...], Callable[[Path], Volume]], ...] = (
    (NIBABEL_ENDINGS, read_with_nibabel),
    (ITK_ENDINGS, read_with_itk),
    (PICTURE_ENDINGS, lambda path: grey(read_picture(path))),
)
READABLE = (*NIBABEL_ENDINGS, *ITK_ENDINGS, ".dcm")
"""Endings of volumes that can be read, lower case. DICOM files do not need an ending. Pictures are listed
separately, because pictures in a folder of volumes may be previews."""


def read_volume(path: Path | str, series: str | None = None) -> Volume:
    """Read a 3D scalar image, or a picture, and place it in RAS.

    Args:
        path: NIfTI, NRRD, MetaImage, Analyze, MGH, one multi-frame DICOM file, or a folder that
            holds the slices of a DICOM series. Also a picture or radiograph, which has one slice; colours are read
            as luminance.
        series: the series of a DICOM folder: its number, or the end of its SeriesInstanceUID.

    Returns:
        Voxels (k, j, i) in the type of the file, or float32 if the file scales them. `source` is the path; `notes`
        say what is questionable about the file.

    Raises:
        InputError: the file is missing, damaged, truncated or not 3D; or voxels have several values, are not
            finite, are all equal, or form a single slice.
        GeometryError: the voxels cannot be placed because of a singular or sheared matrix, missing slices, or
            gantry tilt.
    """
    volume = read_unchecked(Path(path), series)
    flat = isinstance(volume, SlideChannel) or is_picture(Path(path))
    flat = flat or volume.modality in RADIOGRAPHS
    check_voxels(volume, dimensions=2 if flat else 3)
    return volume


def read_entropy(path: Path | str) -> Volume:
    """Read a map of uncertainty in nats, whose values may all be equal.

    Raises:
        InputError, GeometryError: see `read_volume`; or the values are not uncertainties.
    """
    volume = read_unchecked(Path(path))
    check_entropy(volume)
    return volume


def read_channels(path: Path | str, series: str | None = None) -> tuple[Volume, ...]:
    """Read the channels of an image: red, green and blue of a colour picture, or otherwise that of `read_volume`.

    Images of one slice are read in every format.

    Raises:
        InputError, GeometryError: see `read_volume`.
    """
    path = Path(path)
    if path.is_file() and is_slide(path):
        return read_slide(path)
    if path.is_file() and is_picture(path):
        channels = _reported(path, lambda: _picture(path))
    else:
        channels = (read_unchecked(path, series),)
    for volume in channels[:1] if len(channels) == 1 else ():
        check_voxels(volume, dimensions=2)
    return channels


def read_unchecked(path: Path, series: str | None = None, labels: bool = False) -> Volume:
    """Read like `read_volume`, with any values of voxels; with `labels`, those of a picture are label values."""
    return _reported(path, lambda: _read(path, series, labels))


def _reported(path: Path, read: Callable[[], Read]) -> Read:
    """Return the result of `read`; a file that cannot be opened becomes an error that names it."""
    try:
        return read()
    except OSError as error:
        raise InputError(
            f"{path} cannot be opened: {error.strerror or error}. Check its name, and that you may read it."
        ) from error


def _picture(path: Path) -> tuple[Volume, ...]:
    _check_file(path)
    return read_picture(path)


def _check_file(path: Path) -> None:
    """Raise InputError if the file is missing or empty."""
    if not path.exists():
        raise InputError(f"{path} does not exist. Check the name.")
    check_regular(path)
    check_name(path)
    if path.is_file():
        with path.open("rb") as file:
            if not file.read(1):
                raise InputError(f"{path} is empty (0 bytes). Copy or export it again.")


def _read(path: Path, series: str | None, labels: bool) -> Volume:
    _check_file(path)
    if path.is_dir():
        return read_dicom(path, series)
    if labels and is_picture(path):
        return read_label_picture(path)
    if is_slide(path):
        return grey(read_slide(path))
    name = path.name.lower()
    for endings, reader in _READERS:
        if name.endswith(endings):
            return reader(path)
    if is_dicom(path):
        return read_radiograph(path) if is_radiograph(path) else read_dicom(path, series)
    raise InputError(
        f"{path} is not an image that can be read. Known types are "
        f"{', '.join((*READABLE, *PICTURE_ENDINGS))}, and a folder with a DICOM series."
    )

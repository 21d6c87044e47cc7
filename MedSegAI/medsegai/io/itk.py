"""ITK images: conversion to and from volumes, and the formats that ITK reads (NRRD, MetaImage)."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from medsegai.errors import InputError
from medsegai.io.files import PARSER_ERRORS, check_3d, check_stored_size, native, placed, unreadable
from medsegai.volume import Volume

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""Its own inverse."""

_READERS = {
    ".nrrd": "NrrdImageIO",
    ".nhdr": "NrrdImageIO",
    ".mha": "MetaImageIO",
    ".mhd": "MetaImageIO",
}
ITK_ENDINGS = tuple(_READERS)

HEADER_BYTES = 1 << 20
"""More than any header: Slicer writes less than a kilobyte for each of its segments."""

_DIMENSIONS = re.compile(rb"^NDims *= *[1-9][ \t\r]*$", re.MULTILINE)
_DATA_FILE = re.compile(
    rb"^(?:data ?file:|ElementDataFile *=)[ \t]*(.+?)[ \t\r]*$", re.MULTILINE | re.IGNORECASE
)
_COMPRESSED = re.compile(
    rb"^(?:encoding: *(?:gz|gzip|bz2|bzip2)|CompressedData *= *(?:True|1))[ \t\r]*$",
    re.MULTILINE | re.IGNORECASE,
)


def to_sitk(volume: Volume) -> sitk.Image:
    """The ITK image of a volume: same voxels, LPS world. bool becomes uint8 and float16 float32."""
    matrix = LPS_TO_RAS @ volume.geometry.ijk_to_ras
    spacing = np.asarray(volume.geometry.spacing_mm)
    image = sitk.GetImageFromArray(_itk_voxels(volume.voxels))
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(matrix[:3, 3].tolist())
    image.SetDirection((matrix[:3, :3] / spacing).ravel().tolist())
    return image


def from_sitk(image: sitk.Image, source: str = "") -> Volume:
    """The volume of a 3D scalar ITK image: same voxels, RAS world.

    Raises:
        InputError: the image is not 3D (axes of one element after the third are dropped) or has
            several components per voxel.
        GeometryError: its directions are singular or not at right angles.
    """
    path = Path(source or "the ITK image")
    _check_scalar(path, image.GetNumberOfComponentsPerPixel(), image.GetPixelIDTypeAsString())
    shape = check_3d(path, image.GetSize())[::-1]
    dimension = image.GetDimension()
    directions = np.reshape(image.GetDirection(), (dimension, dimension))[:3, :3]
    matrix = np.eye(4)
    matrix[:3, :3] = directions * image.GetSpacing()[:3]
    matrix[:3, 3] = image.GetOrigin()[:3]
    voxels = sitk.GetArrayFromImage(image).reshape(shape)
    return Volume(native(voxels), placed(path, shape, LPS_TO_RAS @ matrix), source)


def read_with_itk(path: Path) -> Volume:
    """Read NRRD or MetaImage, with attached or detached voxels.

    Raises:
        InputError: damaged, truncated, or not a 3D scalar image.
        GeometryError: the voxels cannot be placed.
    """
    kind = "a NRRD image" if path.suffix.lower() in (".nrrd", ".nhdr") else "a MetaImage"
    try:
        check_itk_header(path)
        return from_sitk(
            sitk.ReadImage(str(path), imageIO=_READERS[path.suffix.lower()]), str(path)
        )
    except PARSER_ERRORS as error:
        raise unreadable(path, error, kind) from error


def check_itk_header(path: Path, components: int | None = 1) -> None:
    """Refuse NRRD and MetaImage headers that promise what cannot be used or is not there.

    Args:
        path: the header, which may also hold the voxels.
        components: how many values a voxel may have; None for any number.

    Raises:
        InputError: see `check_3d`, `check_stored_size`.
        RuntimeError, ValueError: the header cannot be understood.
    """
    header = _header_text(path)
    stored = _stored_bytes(path, header)
    reader = sitk.ImageFileReader()
    reader.SetImageIO(_READERS[path.suffix.lower()])
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    if components is not None:
        type_name = sitk.GetPixelIDValueAsString(reader.GetPixelID())
        _check_scalar(path, reader.GetNumberOfComponents(), type_name)
    i, j, k = check_3d(path, reader.GetSize())
    voxel_bytes = reader.GetNumberOfComponents() * _scalar_bytes(reader.GetPixelID())
    compressed = _COMPRESSED.search(header) is not None
    check_stored_size(path, i * j * k * voxel_bytes, stored, compressed)


def _check_scalar(path: Path, components: int, type_name: str) -> None:
    if "complex" in type_name:
        raise InputError(f"{path} holds complex numbers. Export the magnitude image.")
    if components != 1:
        raise InputError(
            f"{path} has {components} values per voxel (colours, vectors or overlapping segments). "
            "Convert it to one grey value per voxel first."
        )


def _scalar_bytes(pixel_id: int) -> int:
    """Bytes of one component, from ITK's name of the type ("vector of 16-bit signed integer")."""
    bits = re.search(r"(\d+)-bit", sitk.GetPixelIDValueAsString(pixel_id))
    return int(bits.group(1)) // 8 if bits else 1


def _header_text(path: Path) -> bytes:
    """The text before the voxels.

    Raises:
        ValueError: a MetaImage whose number of dimensions is not one digit. ITK would write beyond
            its arrays (seen in 5.4: NDims = 83 ends the process).
    """
    with path.open("rb") as file:
        start = file.read(HEADER_BYTES)
    if _READERS[path.suffix.lower()] == "NrrdImageIO":
        return start.replace(b"\r\n", b"\n").partition(b"\n\n")[0]
    if start.count(b"NDims") != 1 or not _DIMENSIONS.search(start):
        raise ValueError("NDims is missing or no number from 1 to 9")
    last = _DATA_FILE.search(start)
    return start[: last.end()] if last else start


def _stored_bytes(path: Path, header: bytes) -> int:
    """Bytes of the file or files that hold the voxels, without the header.

    Raises:
        InputError: the header names a file that is not there.
    """
    match = _DATA_FILE.search(header)
    name = match.group(1).decode(errors="replace") if match else "LOCAL"
    if name.upper() == "LOCAL":
        return path.stat().st_size - len(header)
    if name.upper().startswith("LIST") or "%" in name:  # a file per slice: an upper bound will do
        return sum(file.stat().st_size for file in path.parent.iterdir() if file.is_file())
    data = path.parent / name
    if not data.is_file():
        raise InputError(
            f"{path}: its voxels should lie in {data}, which does not exist. Copy both files."
        )
    return data.stat().st_size


def _itk_voxels(voxels: NDArray[np.generic]) -> NDArray[np.generic]:
    widened = {"bool": np.uint8, "float16": np.float32}.get(voxels.dtype.name)
    return native(voxels if widened is None else voxels.astype(widened))

"""ITK images: conversion to and from volumes, and the formats that ITK reads (NRRD, MetaImage)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from medsegai.decoding import PARSER_ERRORS
from medsegai.errors import InputError
from medsegai.io.decoder import asked
from medsegai.io.files import check_3d, check_stored_size, native, placed, unreadable
from medsegai.io.headers import header_text, stored
from medsegai.volume import Volume

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""The change of signs between LPS and RAS, which is its own inverse."""

_READERS = {
    ".nrrd": "NrrdImageIO",
    ".nhdr": "NrrdImageIO",
    ".mha": "MetaImageIO",
    ".mhd": "MetaImageIO",
}
ITK_ENDINGS = tuple(_READERS)

KINDS = dict.fromkeys((".nrrd", ".nhdr"), "a NRRD image") | dict.fromkeys(
    (".mha", ".mhd"), "a MetaImage"
)


def to_sitk(volume: Volume) -> sitk.Image:
    """Return the ITK image of a volume: same voxels, LPS world. bool becomes uint8, and float16 float32."""
    matrix = LPS_TO_RAS @ volume.geometry.ijk_to_ras
    spacing = np.asarray(volume.geometry.spacing_mm)
    image = sitk.GetImageFromArray(_itk_voxels(volume.voxels))
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(matrix[:3, 3].tolist())
    image.SetDirection((matrix[:3, :3] / spacing).ravel().tolist())
    return image


def from_sitk(image: sitk.Image, source: str = "") -> Volume:
    """Return the volume of a 3D scalar ITK image: same voxels, RAS world.

    Raises:
        InputError: the image is not 3D (axes of one element after the third are dropped) or has
            several components per voxel.
        GeometryError: its directions are singular or not at right angles.
    """
    path = Path(source or "the ITK image")
    _check_scalar(path, image.GetNumberOfComponentsPerPixel(), image.GetPixelIDTypeAsString())
    shape = check_3d(path, image.GetSize())[::-1]
    matrix = _matrix(image.GetSpacing(), image.GetOrigin(), image.GetDirection())
    voxels = sitk.GetArrayFromImage(image).reshape(shape)
    return Volume(native(voxels), placed(path, shape, LPS_TO_RAS @ matrix), source)


def read_with_itk(path: Path) -> Volume:
    """Read NRRD or MetaImage, with attached or detached voxels.

    ITK reads the header, and the voxels are read here, because ITK does not notice if compressed voxels are
    damaged or their size is not given.

    Raises:
        InputError: the file is damaged, truncated, or not a 3D scalar image.
        GeometryError: the voxels cannot be placed.
    """
    suffix = path.suffix.lower()
    try:
        where = stored(path, header_text(path))
        found = asked("itk.header", path, reader=_READERS[suffix])
        _check_scalar(path, found["components"], found["type_name"])
        shape = check_3d(path, found["size"])[::-1]
        kind = np.dtype(found["kind"])
        check_stored_size(path, math.prod(shape) * kind.itemsize, where)
        voxels = where.read(path, math.prod(shape), kind).reshape(shape)
    except PARSER_ERRORS as error:
        raise unreadable(path, error, KINDS[suffix]) from error
    matrix = _matrix(found["spacing"], found["origin"], found["direction"])
    return Volume(native(voxels), placed(path, shape, LPS_TO_RAS @ matrix), str(path))


def _matrix(
    spacing: Sequence[float], origin: Sequence[float], direction: Sequence[float]
) -> NDArray[np.float64]:
    """Return the matrix from (i, j, k, 1) to LPS. Axes after the third are left out."""
    dimension = len(spacing)
    matrix = np.eye(4)
    matrix[:3, :3] = np.reshape(direction, (dimension, dimension))[:3, :3] * spacing[:3]
    matrix[:3, 3] = origin[:3]
    return matrix


def _check_scalar(path: Path, components: int, type_name: str) -> None:
    if "complex" in type_name:
        raise InputError(f"{path} holds complex numbers. Export the magnitude image.")
    if components != 1:
        raise InputError(
            f"{path} has {components} values per voxel (colours, vectors or overlapping segments). "
            "Convert it to one grey value per voxel first."
        )


def _itk_voxels(voxels: NDArray[np.generic]) -> NDArray[np.generic]:
    widened = {"bool": np.uint8, "float16": np.float32}.get(voxels.dtype.name)
    return native(voxels if widened is None else voxels.astype(widened))

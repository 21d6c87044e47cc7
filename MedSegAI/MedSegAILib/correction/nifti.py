"""NIfTI-1 files with only voxels and their geometry, without Qt and MRML.

Slicer's own writers put more into a header than a case for training should contain. Source: the header nifti1.h of
the NIfTI Data Format Working Group.
"""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from medsegai.errors import InputError
from medsegai.volume import Volume
from MedSegAILib.translation import tr as _

HEADER = np.dtype(
    [
        ("sizeof_hdr", "<i4"),
        ("unused", "S36"),
        ("dim", "<i2", 8),
        ("intent", "S14"),
        ("datatype", "<i2"),
        ("bitpix", "<i2"),
        ("slice_start", "<i2"),
        ("pixdim", "<f4", 8),
        ("vox_offset", "<f4"),
        ("scl_slope", "<f4"),
        ("scl_inter", "<f4"),
        ("slice_end", "<i2"),
        ("slice_code", "u1"),
        ("xyzt_units", "u1"),
        ("display", "S24"),
        ("descrip", "S80"),
        ("aux_file", "S24"),
        ("qform_code", "<i2"),
        ("sform_code", "<i2"),
        ("quatern", "<f4", 6),
        ("srow", "<f4", (3, 4)),
        ("intent_name", "S16"),
        ("magic", "S4"),
    ]
)
HEADER_BYTES, OFFSET = 348, 352
MILLIMETRES = 2
SCANNER = 1
"""The NIfTI code of scanner coordinates."""

DATATYPES = {
    "uint8": 2,
    "int16": 4,
    "int32": 8,
    "float32": 16,
    "float64": 64,
    "int8": 256,
    "uint16": 512,
    "uint32": 768,
    "int64": 1024,
    "uint64": 1280,
}


def write_nifti(path: Path, volume: Volume) -> None:
    """Write a compressed file with the geometry in its sform.

    Raises:
        InputError: the format cannot hold the type or number of the voxels.
        OSError: the file cannot be written.
    """
    voxels = volume.voxels
    header = _header(volume)
    little = voxels.dtype.newbyteorder("<")
    with path.open("wb") as file, _nameless_gzip(file) as stream:
        stream.write(header.tobytes() + bytes(OFFSET - HEADER_BYTES))
        for plane in voxels:
            stream.write(np.ascontiguousarray(plane, little).data)


def _check_fits(volume: Volume) -> None:
    voxels = volume.voxels
    if voxels.dtype.name not in DATATYPES or max(voxels.shape) > np.iinfo(np.int16).max:
        raise InputError(
            _(
                "{image} ({type}, {grid}) does not fit into a NIfTI file. "
                "Convert it to 16-bit integers first."
            ).format(
                image=volume.source or _("The image"),
                type=voxels.dtype,
                grid=volume.geometry.describe(),
            )
        )


def _header(volume: Volume) -> NDArray[np.void]:
    _check_fits(volume)
    voxels = volume.voxels
    header = np.zeros((), HEADER)
    header["sizeof_hdr"], header["vox_offset"], header["magic"] = HEADER_BYTES, OFFSET, b"n+1"
    header["dim"] = [3, *reversed(voxels.shape), 1, 1, 1, 1]
    header["datatype"] = DATATYPES[voxels.dtype.name]
    header["bitpix"] = 8 * voxels.dtype.itemsize
    header["pixdim"] = [1, *volume.geometry.spacing_mm, 0, 0, 0, 0]
    header["scl_slope"], header["xyzt_units"] = 1, MILLIMETRES
    header["sform_code"], header["srow"] = SCANNER, volume.geometry.ijk_to_ras[:3]
    return header


def _nameless_gzip(file: BinaryIO) -> gzip.GzipFile:
    """Open a gzip stream without the file's name and time."""
    return gzip.GzipFile(filename="", mode="wb", compresslevel=6, fileobj=file, mtime=0)

"""The images that ITK reads.

Run lengths (RLE) in DICOM are unpacked by pydicom, because GDCM divides by the number of their segments, even by
0, and refuses valid images of few voxels.
"""

import struct
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

KINDS = {
    getattr(sitk, f"sitk{form}{name}"): kind
    for form in ("", "Vector")
    for name, kind in {
        **{
            "UInt8": "u1",
            "Int8": "i1",
            "UInt16": "u2",
            "Int16": "i2",
            "UInt32": "u4",
            "Int32": "i4",
        },
        **{"UInt64": "u8", "Int64": "i8", "Float32": "f4", "Float64": "f8"},
    }.items()
}
"""NumPy's names of the types of components; complex numbers are left out."""


def header(path: str, reader: str) -> dict[str, Any]:
    """Return what ITK reads from a header: sizes and spacing (i, j, k...), origin and directions (LPS), type."""
    opened = sitk.ImageFileReader()
    opened.SetImageIO(reader)
    opened.SetFileName(path)
    opened.ReadImageInformation()
    pixel_id = opened.GetPixelID()
    return {
        "size": opened.GetSize(),
        "spacing": opened.GetSpacing(),
        "origin": opened.GetOrigin(),
        "direction": opened.GetDirection(),
        "components": opened.GetNumberOfComponents(),
        "kind": KINDS.get(pixel_id, ""),
        "type_name": sitk.GetPixelIDValueAsString(pixel_id),
    }


RUN_LENGTHS = b"1.2.840.10008.1.2.5\0"
"""The transfer syntax UIDs of run lengths, as they appear near the beginning of a file."""


def image(path: str, reader: str) -> NDArray[np.number]:
    """Return the voxels of a file."""
    if reader == "GDCMImageIO" and has_run_lengths(path):
        return unpacked_run_lengths(path)
    return np.asarray(sitk.GetArrayFromImage(sitk.ReadImage(path, imageIO=reader)))


def frames(path: str) -> NDArray[np.number]:
    """Return the frames of a DICOM file as they are stored, read by pydicom and its plugins."""
    import pydicom

    return pydicom.dcmread(path).pixel_array


def has_run_lengths(path: str) -> bool:
    """Return whether the pixels are compressed by run lengths."""
    with open(path, "rb") as file:
        return RUN_LENGTHS in file.read(2048)


def unpacked_run_lengths(path: str) -> NDArray[np.number]:
    """Return the voxels of a DICOM file with run lengths, with slope and intercept applied as GDCM does."""
    import pydicom

    head = pydicom.dcmread(path)
    voxels = _unpacked(head)
    if head.get("PhotometricInterpretation") == "MONOCHROME1":  # inverted, as by ITK
        voxels = (-1 if head.PixelRepresentation else 2**head.BitsStored - 1) - voxels
    slope, intercept = scale(head)
    if (slope, intercept) == (1, 0):
        return voxels
    whole = slope.is_integer() and intercept.is_integer()
    return (voxels * slope + intercept).astype(np.int32 if whole else np.float64)


def _unpacked(head: Any) -> NDArray[np.number]:
    try:
        with warnings.catch_warnings():
            # The decoded segment is longer than the image.
            warnings.filterwarnings("error", message="The decoded RLE segment")
            voxels = np.ascontiguousarray(head.pixel_array)
        for frame in encapsulated(head):
            check_rows(frame, int(head.Columns))
    except (RuntimeError, ValueError) as error:  # whose message names plugins
        raise ValueError("its run lengths do not fit its header") from error
    return voxels


FEW_ROWS = 2
"""The rows of a segment that one damaged run shifts. Programs that continue runs across rows do so in most."""


def encapsulated(head: Any) -> Iterator[bytes]:
    """Yield the bytes of each frame of packed pixels, by pydicom 2 or 3."""
    from pydicom import encaps

    count = int(head.get("NumberOfFrames") or 1)
    if hasattr(encaps, "generate_frames"):
        return encaps.generate_frames(head.PixelData, number_of_frames=count)
    return encaps.generate_pixel_data_frame(head.PixelData, count)


def check_rows(frame: bytes, columns: int) -> None:
    """Refuse run lengths of which all but a few end with a row.

    In DICOM, a run must not continue into the next row (PS3.5, G.3.1). There is no checksum, so a changed value
    cannot be detected, and a changed length only by the lengths of rows and segments.

    Raises:
        ValueError: one or two rows of a segment end within a run.
    """
    count, *offsets = struct.unpack("<16L", frame[:64])
    ends = [*offsets[1:count], len(frame)]
    for place, end in zip(offsets, ends, strict=False):
        filled = shifted = 0
        while place < end:
            code = frame[place]
            if code != 128:  # which is a no-op
                filled += code + 1 if code < 128 else 257 - code
                shifted += filled > columns
                filled %= columns
            place += code + 2 if code < 128 else 2 if code > 128 else 1
        if 0 < shifted <= FEW_ROWS:
            raise ValueError("a row ends within a run")


def scale(head: Any) -> tuple[float, float]:
    """Return slope and intercept of a file, from its first frame, because all frames have the same."""
    places = [head]
    for name in ("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence"):
        for group in (head.get(name) or ())[:1]:
            places = [*(group.get("PixelValueTransformationSequence") or ()), *places]
    found = next((place for place in places if "RescaleSlope" in place), head)
    return float(found.get("RescaleSlope") or 1), float(found.get("RescaleIntercept") or 0)

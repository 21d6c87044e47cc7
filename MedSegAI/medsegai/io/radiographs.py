"""Radiographs: one DICOM file of computed or digital radiography, or of mammography.

They do not have a position in the patient, so their volume of one slice is placed like a picture; a pixel has the
calibrated size, or otherwise the size at the detector. They look as on a screen: white is dense, and values are
clipped to the window in the file.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray

from medsegai.decoding import PARSER_ERRORS
from medsegai.errors import InputError
from medsegai.io.decoder import itk_voxels
from medsegai.io.dicom_files import DAMAGE, check_pixels, opened_header, pixel_element
from medsegai.io.files import native, placed, unreadable
from medsegai.io.pictures import PIXELS_TO_RAS
from medsegai.volume import Volume

try:
    from pydicom.pixels.processing import apply_voi_lut
except ImportError:  # pydicom 2
    from pydicom.pixel_data_handlers.util import apply_voi_lut  # type: ignore[no-redef]

RADIOGRAPHS = ("CR", "DX", "MG", "IO", "PX")
"""DICOM's modalities of radiographs: computed, digital, mammography, intra-oral, and panoramic."""

_CLASSES = tuple(
    f"1.2.840.10008.5.1.4.1.1.{number}"
    for number in ("1", "1.1", "1.1.1", "1.2", "1.2.1", "1.3", "1.3.1")
)
"""The SOP classes of their images."""

SIDE_MM = (1e-3, 10.0)
"""The plausible sizes of a pixel of a radiograph; others count as unknown."""

_SIZES = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing")
"""The attributes with the size of a pixel, the most accurate first."""


def is_radiograph(path: Path) -> bool:
    """Whether a DICOM file is a radiograph, by its SOP class; False if the header is damaged."""
    try:
        with path.open("rb") as file, pydicom.config.disable_value_validation():
            head, _ = opened_header(path, file, ["SOPClassUID"])
        return str(head.get("SOPClassUID", "")) in _CLASSES
    except DAMAGE:
        return False


def read_radiograph(path: Path) -> Volume:
    """Read a radiograph as a volume of one slice, float32 if a window was applied.

    Raises:
        InputError: the file is damaged, in colour, or has several frames.
    """
    try:
        head, voxels, window_notes = _pixels(path)
        spacing, notes = _pixel_size(path, head)
    except InputError:
        raise
    except DAMAGE as error:
        raise unreadable(path, _cause(error), "a radiograph") from None
    matrix = PIXELS_TO_RAS.copy()
    matrix[:2, :2] *= 1.0 if spacing is None else np.array(spacing[::-1])
    return Volume(
        voxels,
        placed(path, voxels.shape, matrix),
        str(path),
        (*notes, *window_notes),
        modality=str(head.get("Modality") or "DX"),
        size_known=spacing is not None,
    )


def _pixels(path: Path) -> tuple[pydicom.Dataset, NDArray[np.number], tuple[str, ...]]:
    """Return the header, the pixels (1, row, column) as a viewer shows them, and notes about the window."""
    with path.open("rb") as file, pydicom.config.disable_value_validation():
        head, stream = opened_header(path, file, _TAGS)
        pixels = pixel_element(head, stream)
    size = _checked_size(path, head, pixels)
    voxels = itk_voxels(path, "GDCMImageIO", size).reshape(1, int(head.Rows), int(head.Columns))
    seen = _as_seen(voxels, head)
    if seen is None:
        return (
            head,
            native(voxels),
            (f"{path} has a window that cannot be applied to its grey values.",),
        )
    return head, native(seen), ()


_TAGS = [
    "SOPClassUID",
    "Modality",
    "Rows",
    "Columns",
    "NumberOfFrames",
    "SamplesPerPixel",
    "BitsAllocated",
    "BitsStored",
    "PixelRepresentation",
    "PhotometricInterpretation",
    "WindowCenter",
    "WindowWidth",
    "VOILUTFunction",
    "VOILUTSequence",
    "RescaleSlope",
    "RescaleIntercept",
    *_SIZES,
]


def _checked_size(path: Path, head: pydicom.Dataset, pixels: Any) -> int:
    """Return the bytes of the pixels. Raises InputError if they are not those of one grey image."""
    if int(head.get("NumberOfFrames") or 1) != 1:
        raise InputError(
            f"{path} has {head.NumberOfFrames} frames, but a radiograph must have one. Save "
            "the wanted one as a separate file."
        )
    kind = str(head.get("PhotometricInterpretation") or "MONOCHROME2").strip()
    if int(head.get("SamplesPerPixel") or 1) != 1 or kind not in ("MONOCHROME1", "MONOCHROME2"):
        raise InputError(f"{path} is in colour, but a radiograph is grey. Export the original.")
    if kind == "MONOCHROME1" and head.get("PixelRepresentation"):
        raise InputError(
            f"{path} has signed grey values of which the lowest is white (MONOCHROME1), which cannot be read. "
            "Export it with unsigned values or as MONOCHROME2."
        )
    size = int(head.Rows) * int(head.Columns) * int(head.get("BitsAllocated") or 8) // 8
    check_pixels(path, head, pixels, size)
    return size


def _as_seen(voxels: NDArray[np.number], head: pydicom.Dataset) -> NDArray[np.number] | None:
    """Return grey values within the window; None if it has no width, or leaves one grey of many."""
    if "WindowWidth" not in head and "VOILUTSequence" not in head:
        return voxels
    try:
        seen = _windowed(voxels, head)
    except DAMAGE:
        return None
    return None if seen.min() == seen.max() and voxels.min() < voxels.max() else seen


def _windowed(voxels: NDArray[np.number], head: pydicom.Dataset) -> NDArray[np.number]:
    """Apply the window. ITK has inverted MONOCHROME1, so that larger values are whiter."""
    if str(head.get("PhotometricInterpretation", "")).strip() != "MONOCHROME1":
        return np.asarray(apply_voi_lut(voxels, head), dtype=np.float32)
    # The window refers to the values before the inversion.
    slope, intercept = (float(head.get(f"Rescale{name}") or 0) for name in ("Slope", "Intercept"))
    ends = (slope or 1.0) * (2 ** int(head.BitsStored) - 1) + 2 * intercept
    seen = np.asarray(apply_voi_lut((ends - voxels).astype(voxels.dtype), head), dtype=np.float32)
    return seen.max() + seen.min() - seen


def _pixel_size(
    path: Path, head: pydicom.Dataset
) -> tuple[tuple[float, float] | None, tuple[str, ...]]:
    """Return the distance of rows and of columns in mm, or None if unknown, and notes on its accuracy."""
    for name in _SIZES:
        value = head.get(name)
        sides = [float(part) for part in value] if isinstance(value, Sequence) else []
        if len(sides) != 2 or not all(SIDE_MM[0] <= side <= SIDE_MM[1] for side in sides):
            continue
        rows, columns = sides
        where = "the detector, where the body is magnified by a few per cent"
        note = f"{path} states the size of its pixels at {where}."
        return (rows, columns), (note,) if name == "ImagerPixelSpacing" else ()
    return None, ()


def _cause(error: BaseException) -> str:
    """Return the reason that a message may quote: ITK's, but not pydicom's, which may contain header values."""
    return (
        str(error) if isinstance(error, PARSER_ERRORS) and "ITK" in str(error) else "it is damaged"
    )

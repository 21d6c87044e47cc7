"""Radiographs: one DICOM file of computed or digital radiography, or of mammography.

They have no place in the patient, so their volume of one slice lies as a picture does; a pixel has the size that
was measured, or else the size at the detector. They look as on a screen: white is dense, and values beyond the
window that the file names are cut off.
"""

from __future__ import annotations

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
"""DICOM's modalities of radiographs: computed, digital, of breasts, of teeth, and panoramic."""

_CLASSES = tuple(
    f"1.2.840.10008.5.1.4.1.1.{number}"
    for number in ("1", "1.1", "1.1.1", "1.2", "1.2.1", "1.3", "1.3.1")
)
"""The SOP classes of their images."""

_SIZES = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing")
"""Where the size of a pixel stands, the truest first."""


def is_radiograph(path: Path) -> bool:
    """Whether a DICOM file is a radiograph, by its SOP class; False where the header is damaged."""
    try:
        with path.open("rb") as file, pydicom.config.disable_value_validation():
            head, _ = opened_header(path, file, ["SOPClassUID"])
        return str(head.get("SOPClassUID", "")) in _CLASSES
    except DAMAGE:
        return False


def read_radiograph(path: Path) -> Volume:
    """A radiograph as a volume of one slice, float32 where a window was applied.

    Raises:
        InputError: it is damaged, in colour, or has several frames.
    """
    try:
        with path.open("rb") as file, pydicom.config.disable_value_validation():
            head, stream = opened_header(path, file, _TAGS)
            pixels = pixel_element(head, stream)
        size = _checked_size(path, head, pixels)
        voxels = itk_voxels(path, "GDCMImageIO", size).reshape(1, int(head.Rows), int(head.Columns))
        voxels = native(_as_seen(voxels, head))
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
        notes,
        modality=str(head.get("Modality") or "DX"),
        size_known=spacing is not None,
    )


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
    """Bytes of the pixels. Raises InputError if they are not those of one grey image."""
    if int(head.get("NumberOfFrames") or 1) != 1:
        raise InputError(
            f"{path} has {head.NumberOfFrames} frames. Save the wanted one as a radiograph of its own."
        )
    if int(head.get("SamplesPerPixel") or 1) != 1:
        raise InputError(f"{path} is in colours. A radiograph is grey: export the original.")
    size = int(head.Rows) * int(head.Columns) * int(head.get("BitsAllocated") or 8) // 8
    check_pixels(path, head, pixels, size)
    return size


def _as_seen(voxels: NDArray[np.number], head: pydicom.Dataset) -> NDArray[np.number]:
    """Grey values within the window. ITK has turned MONOCHROME1 round, so that the larger are the whiter."""
    if "WindowWidth" not in head and "VOILUTSequence" not in head:
        return voxels
    if str(head.get("PhotometricInterpretation", "")).strip() != "MONOCHROME1":
        return np.asarray(apply_voi_lut(voxels, head), dtype=np.float32)
    # The window is one of the values before they were turned round.
    slope, intercept = (float(head.get(f"Rescale{name}") or 0) for name in ("Slope", "Intercept"))
    ends = (slope or 1.0) * (2 ** int(head.BitsStored) - 1) + 2 * intercept
    seen = np.asarray(apply_voi_lut((ends - voxels).astype(voxels.dtype), head), dtype=np.float32)
    return seen.max() + seen.min() - seen


def _pixel_size(
    path: Path, head: pydicom.Dataset
) -> tuple[tuple[float, float] | None, tuple[str, ...]]:
    """Distance of rows and of columns in mm, None where no field says it, and what is doubtful about it."""
    for name in _SIZES:
        value = head.get(name)
        if value is None or len(value) != 2 or not min(float(part) for part in value) > 0:
            continue
        rows, columns = (float(part) for part in value)
        where = "the detector, where the body is magnified by some percent"
        note = f"{path} gives the size of its pixels at {where}."
        return (rows, columns), (note,) if name == "ImagerPixelSpacing" else ()
    return None, ()


def _cause(error: BaseException) -> str:
    """What a message may quote: ITK's words; those of pydicom may hold what stands in the header."""
    return (
        str(error) if isinstance(error, PARSER_ERRORS) and "ITK" in str(error) else "it is damaged"
    )

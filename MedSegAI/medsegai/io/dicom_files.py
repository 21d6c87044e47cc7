"""The content of one DICOM file: slices with a position, or the reason why it does not have any.

A file that cannot be used is not an error yet, because it may belong to another series than the wanted one.
Messages name the fields that are missing, never their values: no patient data is read.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.errors import BytesLengthException, InvalidDicomError

from medsegai.decoding import PARSER_ERRORS
from medsegai.errors import InputError, counted
from medsegai.io.files import check_memory, check_promise, unreadable
from medsegai.io.stored import CHUNK

_TAGS = [
    "SOPClassUID",
    "SOPInstanceUID",
    "SeriesInstanceUID",
    "SeriesNumber",
    "SeriesDescription",
    "Modality",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "Rows",
    "Columns",
    "NumberOfFrames",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "BitsAllocated",
    "FrameOfReferenceUID",
    "ModalityLUTSequence",
    "RescaleSlope",
    "RescaleIntercept",
    "PixelPaddingValue",
    "SegmentationType",
    "SegmentSequence",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
]
DAMAGE = (*PARSER_ERRORS, InvalidDicomError, BytesLengthException)
"""The exceptions of pydicom for damaged headers, when they are opened or a value is first read."""

_PLAIN = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2")
"""Transfer syntaxes in which voxels take the same number of bytes in the file and in memory."""

_DEFLATED = "1.2.840.10008.1.2.1.99"
_DIRECTORY = "1.2.840.10008.1.3.10"
_SEGMENTATIONS = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")

_STANDARD = "1.2.840.10008."
"""The prefix of all UIDs of the standard."""

_PIXEL_DATA = 0x7FE00010
_UNDEFINED = 0xFFFFFFFF
"""The length of an element that ends with a delimiter."""

HEADER_BYTES = 64 << 20
"""More bytes than any header has: the header of an enhanced image has about a kilobyte for each frame."""


@dataclass(frozen=True, eq=False)
class Lookup:
    """A Modality LUT: the grey value of each stored value from `first` on; values beyond its ends are clamped."""

    first: int
    values: NDArray[np.uint16]

    def __call__(self, stored: NDArray[np.number]) -> NDArray[np.uint16]:
        places = np.clip(stored.astype(np.int64) - self.first, 0, len(self.values) - 1)
        return self.values[places]


@dataclass(frozen=True, eq=False)
class Slice:
    """One frame of one file. World coordinates are LPS, as in DICOM."""

    path: Path
    uid: str
    frame: int
    size: tuple[int, int]  # rows, columns
    position: NDArray[np.float64]  # (3,) centre of the first voxel in mm
    axes: NDArray[np.float64]  # (3, 2) unit vectors along i and j
    spacing: tuple[float, float]  # along i and j, mm
    voxel_bytes: int
    lut: Lookup | None  # lookup table of grey values
    is_scaled: bool  # whether it has rescale parameters

    @property
    def identity(self) -> tuple[str, int, tuple[float, ...]]:
        """The identity of a slice, equal for copies of a file. Anonymisers may give all slices the same UID."""
        return self.uid or str(self.path), self.frame, tuple(self.position)


@dataclass(frozen=True)
class DicomFile:
    """One file.

    Attributes:
        uid, number, description, modality, frame_of_reference: the attributes of its series; "" if unknown.
        slices: its frames, if all have a position.
        problem: the reason why an image, or a possible image, does not have slices; None for reports, presentation
            states, directories and similar objects.
        is_segmentation: whether it is a DICOM SEG.
    """

    path: Path
    uid: str = ""
    number: str = ""
    description: str = ""
    modality: str = ""
    frame_of_reference: str = ""
    slices: tuple[Slice, ...] = ()
    problem: InputError | None = None
    is_segmentation: bool = False


def is_dicom(path: Path) -> bool:
    """Whether a file begins like DICOM; old files lack the preamble and are known by first element or ending."""
    with path.open("rb") as file:
        start = file.read(132)
    if start[128:] == b"DICM" or path.suffix.lower() in (".dcm", ".ima"):
        return True
    return _begins_as_dataset(start)


def _begins_as_dataset(start: bytes) -> bool:
    """Whether the first element is in group 2 or 8, in any transfer syntax, and not too long."""
    if len(start) < 16:
        return False
    little = struct.unpack("<HHI", start[:8])
    group, element, length = little if little[0] in (2, 8) else struct.unpack(">HHI", start[:8])
    explicit = start[4:6].isalpha() and start[4:6].isupper()
    return group in (2, 8) and element <= 0x60 and (explicit or length <= 64)


def read_file(path: Path) -> DicomFile:
    """Read the series attributes of a file, and the slices that it holds."""
    try:
        with pydicom.config.disable_value_validation():  # whose warnings quote the header
            return _file(path)
    except OSError:
        raise
    except InputError as error:
        return DicomFile(path, problem=error)
    except DAMAGE:  # pydicom's message, which may quote the header, is dropped
        return DicomFile(path, problem=unreadable(path, "its header is damaged", "a DICOM file"))


_OF_SERIES = (
    *("SeriesInstanceUID", "SeriesNumber", "SeriesDescription", "Modality"),
    "FrameOfReferenceUID",
)
"""The elements that say to which series a file belongs."""


def _file(path: Path) -> DicomFile:
    with path.open("rb") as file:
        head, stream = opened_header(path, file)
        pixels = pixel_element(head, stream)
    sop_class = str(head.get("SOPClassUID") or head.file_meta.get("MediaStorageSOPClassUID") or "")
    uid, number, description, modality, frame = (str(head.get(name) or "") for name in _OF_SERIES)
    found = DicomFile(path, uid, number, description, modality, frame)
    if sop_class in _SEGMENTATIONS:
        return replace(found, is_segmentation=True)
    if "Rows" not in head and _is_cut_uid(sop_class):
        return replace(found, problem=unreadable(path, "its header is damaged", "a DICOM file"))
    if sop_class == _DIRECTORY or not _is_image(head, sop_class):
        return found
    try:
        return replace(found, slices=tuple(_slices(path, head, pixels)))
    except InputError as error:
        return replace(found, problem=error)
    except DAMAGE:  # its series is known
        return replace(found, problem=unreadable(path, "its header is damaged", "a DICOM file"))


def _is_image(head: pydicom.Dataset, sop_class: str) -> bool:
    """Whether the file should have pixels: the header describes them, or ended too early."""
    name = pydicom.uid.UID(sop_class).name if sop_class else ""
    return "Rows" in head or "Image Storage" in name or "Parametric Map" in name


def _is_cut_uid(sop_class: str) -> bool:
    """Whether a class is missing, or has the standard's prefix but is unknown. Others are private."""
    of_standard = sop_class.startswith(_STANDARD) or _STANDARD.startswith(sop_class)
    return of_standard and pydicom.uid.UID(sop_class).name == sop_class


def opened_header(path: Path, file: BinaryIO, tags: Sequence[str] = _TAGS) -> tuple[Any, BinaryIO]:
    """Return the header and the stream after it: the file, or the beginning of its inflated content.

    Only `tags` of the header are kept.
    """
    without_preamble = file.read(132)[128:] != b"DICM"
    meta: Any = {} if without_preamble else pydicom.filereader.read_file_meta_info(path)
    stream = file
    if str(meta.get("TransferSyntaxUID", "")) == _DEFLATED:
        file.seek(_data_begins(meta))
        inflated = zlib.decompressobj(-zlib.MAX_WBITS).decompress(file.read(), HEADER_BYTES)
        stream, without_preamble = io.BytesIO(inflated), True
    stream.seek(0)
    head = pydicom.dcmread(
        stream, stop_before_pixels=True, specific_tags=list(tags), force=without_preamble
    )
    if stream is not file:
        head.file_meta = meta
    return head, stream


def _data_begins(meta: pydicom.Dataset) -> int:
    """Return where the dataset begins, after the preamble and the file meta information."""
    return 128 + 4 + 12 + int(meta.FileMetaInformationGroupLength)


@dataclass(frozen=True)
class PixelElement:
    """The pixel element, at which the header ends.

    Attributes:
        tag: the tag of the element; 0 if the file ends there.
        there: the number of its bytes in the stream.
        cut: whether its fragments extend beyond the end of the file.
    """

    tag: int = 0
    there: int = 0
    cut: bool = False


def pixel_element(head: pydicom.Dataset, stream: BinaryIO) -> PixelElement:
    implicit, little = head.original_encoding
    order = ">" if little is False else "<"
    start = stream.read(8)
    if len(start) < 8:
        return PixelElement()
    group, element, length = struct.unpack(f"{order}HHI", start)
    if not implicit:
        last = stream.read(4)
        length = struct.unpack(f"{order}I", last)[0] if len(last) == 4 else 0
    here = stream.tell()
    end = stream.seek(0, io.SEEK_END)
    stream.seek(here)
    cut = length == _UNDEFINED and not _fragments_are_whole(stream, end)
    return PixelElement(group << 16 | element, min(length, end - here), cut)


def _fragments_are_whole(stream: BinaryIO, end: int) -> bool:
    """Whether the items of encapsulated pixels lie within the file. Some programs omit the final delimiter."""
    while item := stream.read(8):
        if len(item) < 8:
            return False
        group, element, length = struct.unpack("<HHI", item)
        if (group, element) != (0xFFFE, 0xE000):
            return (group, element) == (0xFFFE, 0xE0DD)
        if stream.seek(length, io.SEEK_CUR) > end:
            return False
    return True


def _frame_headers(path: Path, head: pydicom.Dataset) -> list[pydicom.Dataset]:
    """What the header says of each frame."""
    shared, per_frame = functional_groups(head)
    frames = int(head.get("NumberOfFrames") or 1)
    if not per_frame:
        if frames == 1:
            return [head]
        raise InputError(
            f"{path} has several frames without a position in the patient, such as a cine "
            "loop. Choose a CT or MR series."
        )
    sources = [merged(frame, shared) for frame in per_frame]
    if len(sources) != frames:
        raise InputError(
            f"{path} has {counted(frames, 'frame', 'frames')}, but positions of "
            f"{len(sources)}. Copy or export it again."
        )
    return sources


def _slices(path: Path, head: pydicom.Dataset, pixels: PixelElement) -> list[Slice]:
    """Return the frames of an image.

    Raises:
        InputError: frames do not have a position in the patient, are in colour, truncated or of floating point, or
            differ in the scale of grey values.
    """
    sources = _frame_headers(path, head)
    _check_has_pixels(path, pixels)
    _check_place(path, sources)
    _check_pixels(path, head, sources, pixels)
    uid = str(head.get("SOPInstanceUID", ""))
    size = int(head.Rows), int(head.Columns)
    luts = head.get("ModalityLUTSequence")
    lut = _lookup(luts[0]) if luts else None
    voxel_bytes = int(head.get("BitsAllocated") or 8) // 8
    return [
        _slice(path, uid, frame, size, source, (voxel_bytes, lut, _is_scaled(source, lut)))
        for frame, source in enumerate(sources)
    ]


def _check_has_pixels(path: Path, pixels: PixelElement) -> None:
    if not pixels.tag:
        raise InputError(
            f"{path} is truncated: it ends within its header. Copy or export it again."
        )


def _is_scaled(source: pydicom.Dataset, lut: Lookup | None) -> bool:
    return lut is not None or "RescaleSlope" in source or "RescaleIntercept" in source


def _lookup(item: pydicom.Dataset) -> Lookup:
    """Read a Modality LUT, whose data are 16-bit numbers, or one byte for each value."""
    count, first, _bits = (int(part) for part in item.LUTDescriptor)
    count = count or 1 << 16
    data = item.LUTData
    if isinstance(data, bytes):
        data = np.frombuffer(data, np.uint8 if len(data) < 2 * count else "<u2")
    values = np.asarray(data, np.uint16)[:count]
    if len(values) < count:
        raise ValueError("its lookup table is truncated")
    return Lookup(first, values)


def _pixel_axes(
    path: Path, source: pydicom.Dataset
) -> tuple[NDArray[np.float64], tuple[float, float]]:
    """Return unit vectors along rows and columns, as columns of a matrix, and the distances of pixels in mm."""
    orientation = np.asarray([float(value) for value in source.ImageOrientationPatient])
    axes = orientation.reshape(2, 3).T
    between_rows, between_columns = (float(value) for value in source.PixelSpacing)
    if not (
        between_rows > 0 and between_columns > 0 and np.abs(axes.T @ axes - np.eye(2)).max() < 0.1
    ):
        raise InputError(
            f"{path} has a PixelSpacing that is not positive, or an ImageOrientationPatient that is not two unit "
            "vectors at right angles. Export the original series."
        )
    unit = axes / np.maximum(np.linalg.norm(axes, axis=0), 1e-12)
    return unit, (between_columns, between_rows)


def _slice(
    path: Path,
    uid: str,
    frame: int,
    size: tuple[int, int],
    source: pydicom.Dataset,
    values: tuple[int, Lookup | None, bool],
) -> Slice:
    axes, pixel_size = _pixel_axes(path, source)
    return Slice(
        path,
        uid,
        frame,
        size,
        np.asarray([float(value) for value in source.ImagePositionPatient]).reshape(3),
        axes,
        pixel_size,
        *values,
    )


def functional_groups(head: pydicom.Dataset) -> tuple[pydicom.Dataset, Sequence[pydicom.Dataset]]:
    shared = head.get("SharedFunctionalGroupsSequence") or [pydicom.Dataset()]
    return shared[0], head.get("PerFrameFunctionalGroupsSequence") or ()


def merged(frame: pydicom.Dataset, shared: pydicom.Dataset) -> pydicom.Dataset:
    """Merge the macros of one frame into a flat dataset; values of the frame take precedence over shared ones."""
    flat = pydicom.Dataset()
    for name in (
        "PlanePositionSequence",
        "PlaneOrientationSequence",
        "PixelMeasuresSequence",
        "PixelValueTransformationSequence",
        "SegmentIdentificationSequence",
    ):
        macro = frame.get(name) or shared.get(name)
        if macro:
            flat.update(macro[0])
    return flat


def _check_place(path: Path, sources: Sequence[pydicom.Dataset]) -> None:
    names = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
    missing = [name for name in names if any(source.get(name) is None for source in sources)]
    if missing:
        raise InputError(
            f"{path} lacks {' and '.join(missing)}, so its position in the patient is "
            "unknown; it may be a screenshot or a photo. Export the original series."
        )


def _check_grey(path: Path, head: pydicom.Dataset) -> None:
    colours = str(head.get("PhotometricInterpretation") or "MONOCHROME2")
    if colours == "MONOCHROME1":  # ITK inverts stored values before they are scaled
        raise InputError(
            f"{path} stores low values as white (MONOCHROME1), which is not supported. "
            "Convert it to NIfTI with dcm2niix."
        )
    if colours != "MONOCHROME2" or int(head.get("SamplesPerPixel") or 1) != 1:
        raise InputError(
            f"{path} is a colour image, but a grey scan is needed. Choose another series."
        )


def _check_pixels(
    path: Path, head: pydicom.Dataset, sources: Sequence[pydicom.Dataset], pixels: PixelElement
) -> None:
    if pixels.tag != _PIXEL_DATA:
        raise InputError(
            f"{path} has pixels of floating point, which are not supported. Convert it to NIfTI or NRRD."
        )
    _check_grey(path, head)
    scales = {
        (str(item.get("RescaleSlope")), str(item.get("RescaleIntercept"))) for item in sources
    }
    if len(scales) > 1:
        raise InputError(
            f"{path}: its frames have different scales of grey values, which is not "
            "supported. Convert it to NIfTI with dcm2niix."
        )
    voxels = int(head.Rows) * int(head.Columns) * len(sources)
    check_pixels(path, head, pixels, voxels * int(head.get("BitsAllocated") or 8) // 8)


def check_pixels(path: Path, head: pydicom.Dataset, pixels: PixelElement, needed: int) -> None:
    """Compare the pixels that a header promises with those that exist, before memory is allocated.

    Args:
        path: the file.
        head: its header.
        pixels: the element of its pixels.
        needed: the number of bytes of pixels according to the header.

    Raises:
        InputError: the file is truncated, its header is wrong, or this machine does not have enough memory.
    """
    if pixels.cut:
        raise InputError(f"{path} is truncated within its last fragment. Copy or export it again.")
    syntax = str(head.file_meta.get("TransferSyntaxUID", _PLAIN[0]))
    if syntax == _DEFLATED:
        check_promise(path, needed, _inflated_size(path, _data_begins(head.file_meta), needed))
    elif syntax in _PLAIN:
        check_promise(path, needed, pixels.there)
    check_memory(path, needed)


def _inflated_size(path: Path, start: int, promised: int) -> int:
    """Return how many bytes a file holds when inflated from `start` on; far more than promised are an error."""
    limit = promised + HEADER_BYTES
    inflate, count = zlib.decompressobj(-zlib.MAX_WBITS), 0
    with path.open("rb") as file:
        file.seek(start)
        while not inflate.eof and count <= limit:
            packed = inflate.unconsumed_tail or file.read(CHUNK)
            block = inflate.decompress(packed, CHUNK)
            if not packed and not block:
                break
            count += len(block)
    if count > limit:
        raise InputError(
            f"{path} is damaged: it unpacks to far more bytes than its header promises. Export it again."
        )
    return count

"""A segmentation as DICOM SEG: in the patient, study and frame of reference of the series it was made from.

It is written by highdicom, either with a bit per voxel and segment (BINARY, which every viewer reads) or as labels
(LABELMAP, Supplement 243 of DICOM). Messages do not name the patient: messages of libraries, which may quote a
header, are dropped.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pydicom

from medsegai import __version__
from medsegai.boxes import numbered
from medsegai.errors import InputError, MedSegAIError
from medsegai.export.case import Case
from medsegai.io import series_frames
from medsegai.labels import Code, Label

MANUFACTURER = "MedSegAI"
SERIAL = "0"
"""The serial number that DICOM requires, although software does not have one."""

ENCODINGS = ("binary", "labelmap")

UNCODED: tuple[Code, Code] = (
    ("SCT", "123037004", "Anatomical Structure"),
    ("SCT", "85756007", "Tissue"),
)
"""The category and type of structures without codes; the segment labels still have their names."""

UTF_8 = "ISO_IR 192"
"""The character set for the names of structures and of any series."""

REQUIRED = (
    "SOPClassUID",
    "SOPInstanceUID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "FrameOfReferenceUID",
)

MAY_BE_EMPTY = (
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "PositionReferenceIndicator",
)
"""The attributes that every DICOM header must have, at least empty (type 2), but that anonymisers remove."""

_FAILURES = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
"""The exceptions of pydicom and highdicom for headers that violate the standard."""

SERIES_NUMBERS = {"segmentation": 9100, "report": 9101}


@dataclass(frozen=True)
class Maker:
    """The maker of a segmentation.

    Attributes:
        name, version: the name and version of the model, or of MedSegAI if the model is unknown.
        corrected: whether a person has changed it since; then it counts as semi-automatic as a whole.
        touched: the values of labels that a person changed or reviewed, if this is known for each.
        drawn: the values of labels that were not made by a model.
    """

    name: str = MANUFACTURER
    version: str = __version__
    corrected: bool = False
    touched: frozenset[int] = frozenset()
    drawn: frozenset[int] = frozenset()

    def algorithm_type(self, label: Label) -> str:
        """Return DICOM's algorithm type: MANUAL, SEMIAUTOMATIC or AUTOMATIC."""
        if label.value in self.drawn:
            return "MANUAL"
        touched = self.corrected or label.value in self.touched
        return "SEMIAUTOMATIC" if touched else "AUTOMATIC"


@dataclass(frozen=True)
class Source:
    """The DICOM series of a scan: one dataset per slice, or a single dataset of many frames.

    Attributes:
        images: the whole headers without pixels; classic slices are in the order of k.
        frames: the k of each frame of `images`, in their order.
    """

    images: tuple[Any, ...]
    frames: tuple[int, ...]


def read_source(path: Path, series: str | None = None) -> Source:
    """Read the headers of the slices that make up a scan.

    Raises:
        InputError: the files are not DICOM, or a header lacks attributes that a segmentation needs.
        GeometryError: see `read_volume`.
    """
    _check_dicom(path)
    slices = series_frames(path, series)
    files = list(dict.fromkeys(file for file, _ in slices))
    with quiet(f"{path}: its headers cannot be used for a DICOM SEG"):
        images = tuple(pydicom.dcmread(file, stop_before_pixels=True) for file in files)
        missing = [name for name in REQUIRED if any(not item.get(name) for item in images)]
        for item, name in product(images, MAY_BE_EMPTY):
            if name not in item:
                setattr(item, name, "")
    _check_complete(path, missing)
    if len(files) == 1:
        return Source(images, _order(path, images[0], [frame for _, frame in slices]))
    return Source(images, tuple(range(len(slices))))


def _check_dicom(path: Path) -> None:
    if path.is_file() and not _is_dicom(path):
        raise InputError(
            f"{path} is not DICOM, so it lacks the patient, study and frame of reference for "
            "a DICOM SEG. Name the folder of the DICOM series that was segmented."
        )


def _check_complete(path: Path, missing: Sequence[str]) -> None:
    if missing:
        raise InputError(
            f"{path}: the headers lack {', '.join(missing)}, so a segmentation cannot refer "
            "to them. Use the original series from the archive."
        )


def _order(path: Path, image: pydicom.Dataset, frames: Sequence[int]) -> tuple[int, ...]:
    """Return the slice of the scan at each frame of a file; `frames` has the frame of each slice."""
    order = {frame: k for k, frame in enumerate(frames)}
    count = int(image.get("NumberOfFrames") or 1)
    if len(order) != count:
        raise InputError(
            f"{path}: some of its {count} frames are not slices of the scan. Export the series again."
        )
    return tuple(order[frame] for frame in range(count))


def present(case: Case) -> tuple[Label, ...]:
    """Return the labels that have voxels, in order: segment n is the n-th of them.

    Their names are as DICOM can hold them, and no two are equal, because planning systems merge equal names.

    Raises:
        InputError: there are no such labels.
    """
    found = set(np.unique(case.labelmap.voxels).tolist())
    labels = tuple(label for label in case.labels if label.value in found)
    if not labels:
        raise InputError(
            f"{case.labelmap.source}: the structures do not have voxels, so there is "
            "nothing to write. Export a segmentation that has structures."
        )
    return tuple(_distinct(labels))


def _distinct(labels: Sequence[Label]) -> Iterator[Label]:
    taken: set[str] = set()
    for label in labels:
        number = f"label {label.value}"
        name = plain(label.name) or number
        name = f"{name[:48]} ({number})" if name in taken else name
        taken.add(name)
        yield replace(label, name=name)


def segmentation(case: Case, source: Source, maker: Maker, encoding: str = "binary") -> Any:
    """Return the DICOM SEG of a case.

    Args:
        case: the labels on the grid of the scan of `source`. Structures without voxels do not get a segment; the
            others are numbered from 1.
        source: the series from `read_source`.
        maker: the maker of the labels.
        encoding: one of `ENCODINGS`.

    Returns:
        A highdicom Segmentation.

    Raises:
        InputError: the structures do not have voxels, or the headers of the series violate the standard.
        MedSegAIError: highdicom is not installed.
    """
    hd = highdicom()
    labels = present(case)
    numbers = numbered(case.labelmap.voxels, [label.value for label in labels])
    frames = numbers[list(source.frames)]
    with quiet(f"{case.labelmap.source}: the headers of its series violate the DICOM standard"):
        made = hd.seg.Segmentation(
            source_images=source.images,
            pixel_array=frames,
            segmentation_type=encoding.upper(),
            segment_descriptions=[
                _description(number, label, maker) for number, label in enumerate(labels, start=1)
            ],
            series_instance_uid=hd.UID(),
            series_number=SERIES_NUMBERS["segmentation"],
            sop_instance_uid=hd.UID(),
            instance_number=1,
            manufacturer=MANUFACTURER,
            manufacturer_model_name=plain(maker.name),
            software_versions=__version__,
            device_serial_number=SERIAL,
            content_label="SEGMENTATION",
            content_description=plain(f"{maker.name} {maker.version}, not for diagnostic use"),
            series_description=plain(f"Segmentation by {maker.name}"),
            specific_character_set=UTF_8,
        )
        made.ContentCreatorName = ""  # required, but empty: a program made this
        return made


def _description(number: int, label: Label, maker: Maker) -> Any:
    """Return the description of a segment: codes, a colour and an identity to which a report can refer."""
    hd = highdicom()
    category, kind, modifier = _codes(label)
    description = hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=label.name,
        segmented_property_category=coded(category),
        segmented_property_type=coded(kind),
        algorithm_type=maker.algorithm_type(label),
        algorithm_identification=None if label.value in maker.drawn else identification(maker),
        tracking_uid=hd.UID(),
        tracking_id=label.name,
        display_color=hd.color.CIELabColor.from_rgb(*label.color),
    )
    if modifier is not None:
        types = description.SegmentedPropertyTypeCodeSequence
        types[0].SegmentedPropertyTypeModifierCodeSequence = [coded(modifier)]
    return description


def _codes(label: Label) -> tuple[Code, Code, Code | None]:
    codes = label.terminology
    return (*UNCODED, None) if codes is None else (codes.category, codes.type, codes.modifier)


def identification(maker: Maker) -> Any:
    """Return the algorithm: name and version of the model, of the family artificial intelligence (CID 7162)."""
    return highdicom().AlgorithmIdentificationSequence(
        name=plain(maker.name),
        family=coded(("DCM", "123110", "Artificial Intelligence")),
        version=plain(maker.version),
        source=MANUFACTURER,
    )


def coded(code: Code) -> Any:
    scheme, value, meaning = code
    return highdicom().sr.CodedConcept(value=value, meaning=meaning[:64], scheme_designator=scheme)


def highdicom() -> Any:
    """Return the library, which is imported when needed, because it takes a second to load and is optional.

    Raises:
        MedSegAIError: highdicom is not installed.
    """
    try:
        import highdicom as library
        import highdicom.sr
    except ImportError as error:
        raise MedSegAIError(
            "DICOM SEG and SR need highdicom, which is not installed. Run pip install 'medsegai[export]'."
        ) from error
    return library


@contextmanager
def quiet(problem: str) -> Iterator[None]:
    """Silence libraries that quote headers, and raise their errors as `problem` without their messages.

    Raises:
        InputError: replaces an exception of the block.
    """
    with warnings.catch_warnings(), pydicom.config.disable_value_validation():
        warnings.simplefilter("ignore")
        try:
            yield
        except _FAILURES as error:
            raise InputError(f"{problem} ({type(error).__name__}).") from None


def plain(text: str) -> str:
    """Return text for a DICOM long string: one line of 64 characters without backslash."""
    return " ".join(text.replace("\\", " ").split())[:64]


def _is_dicom(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(128)
        return file.read(4) == b"DICM" or path.suffix.lower() in (".dcm", ".ima")


def stored(dataset: Any, path: Path) -> None:
    """Write a dataset; `path` is a temporary path that the caller moves into place."""
    with quiet(f"{path} cannot be written: the headers of the series violate the DICOM standard"):
        dataset.save_as(path, enforce_file_format=True)

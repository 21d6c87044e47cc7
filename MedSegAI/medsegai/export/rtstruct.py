"""A segmentation as DICOM RT Structure Set: closed contours in the slices of the series, for radiotherapy.

Contours come from `outlines`: there are several in a slice if a structure has several parts there, and holes are
joined to the outline around them. A program that fills them obtains the voxels of the segmentation again.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid

from medsegai import __version__
from medsegai.boxes import label_boxes
from medsegai.export.case import Case
from medsegai.export.dicom_seg import (
    MANUFACTURER,
    MAY_BE_EMPTY,
    UTF_8,
    Maker,
    Source,
    plain,
    present,
    quiet,
)
from medsegai.export.outlines import outlines
from medsegai.export.surfaces import SPACES
from medsegai.labels import Label
from medsegai.progress import Check, unstoppable
from medsegai.volume import Box

RT_STRUCTURE_SET = UID("1.2.840.10008.5.1.4.1.1.481.3")

SERIES_NUMBER = 9102

DECIMALS = 4
"""The decimals of coordinates in mm, because DICOM's decimal strings have at most 16 characters."""


def structure_set(
    case: Case, source: Source, maker: Maker, check: Check = unstoppable
) -> FileDataset:
    """Return the RT Structure Set of a case.

    Args:
        case: the labels on the grid of the scan of `source`; structures without voxels are left out.
        source: the series from `dicom_seg.read_source`.
        maker: the maker of the labels.
        check: called before each slice of each structure.

    Raises:
        InputError: the structures do not have voxels, or the headers of the series violate the standard.
    """
    labels = present(case)
    with quiet(f"{case.labelmap.source}: the headers of its series violate the DICOM standard"):
        made = _head(source, maker)
        made.ReferencedFrameOfReferenceSequence = [_references(source)]
        frame = source.images[0].FrameOfReferenceUID
        made.StructureSetROISequence = [
            _region(number, label, frame, maker) for number, label in enumerate(labels, start=1)
        ]
        boxes = label_boxes(case.labelmap.voxels, [label.value for label in labels])
        made.ROIContourSequence = [
            _contours(number, label, boxes[label.value], case, source, check)
            for number, label in enumerate(labels, start=1)
        ]
        made.RTROIObservationsSequence = [
            _observation(number) for number, _ in enumerate(labels, start=1)
        ]
        return made


def _observation(number: int) -> Dataset:
    return _dataset(
        ObservationNumber=number,
        ReferencedROINumber=number,
        RTROIInterpretedType="",
        ROIInterpreter="",
    )


def _head(source: Source, maker: Maker) -> FileDataset:
    """Return a dataset with patient and study of the series, and its own identity."""
    uid = generate_uid()
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = RT_STRUCTURE_SET
    meta.MediaStorageSOPInstanceUID = uid
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    first, now = source.images[0], datetime.now(UTC)
    for name in (
        *MAY_BE_EMPTY,
        "StudyInstanceUID",
        "ReferringPhysicianName",
        "FrameOfReferenceUID",
    ):
        setattr(made, name, first.get(name, ""))
    made.SpecificCharacterSet = UTF_8
    made.SOPClassUID, made.SOPInstanceUID = RT_STRUCTURE_SET, uid
    made.Modality, made.SeriesNumber = "RTSTRUCT", SERIES_NUMBER
    made.SeriesInstanceUID, made.InstanceNumber = generate_uid(), 1
    made.SeriesDescription = plain(f"Contours by {maker.name}")
    made.OperatorsName = ""
    made.Manufacturer, made.SoftwareVersions = MANUFACTURER, __version__
    made.ManufacturerModelName = plain(maker.name)
    made.StructureSetLabel = plain(maker.name)[:16]
    made.StructureSetDescription = f"{maker.name} {maker.version}, not for diagnostic use"
    made.StructureSetDate = made.InstanceCreationDate = now.strftime("%Y%m%d")
    made.StructureSetTime = made.InstanceCreationTime = now.strftime("%H%M%S")
    made.ApprovalStatus = "UNAPPROVED"
    return made


def _references(source: Source) -> Dataset:
    """Return references to the images of the contours."""
    first = source.images[0]
    images = [
        _dataset(
            ReferencedSOPClassUID=image.SOPClassUID, ReferencedSOPInstanceUID=image.SOPInstanceUID
        )
        for image in source.images
    ]
    series = _dataset(SeriesInstanceUID=first.SeriesInstanceUID, ContourImageSequence=images)
    study = _dataset(
        ReferencedSOPClassUID="1.2.840.10008.3.1.2.3.1",  # further required attributes
        ReferencedSOPInstanceUID=first.StudyInstanceUID,
        RTReferencedSeriesSequence=[series],
    )
    return _dataset(
        FrameOfReferenceUID=first.FrameOfReferenceUID, RTReferencedStudySequence=[study]
    )


def _region(number: int, label: Label, frame: str, maker: Maker) -> Dataset:
    return _dataset(
        ROINumber=number,
        ReferencedFrameOfReferenceUID=frame,
        ROIName=label.name,
        ROIGenerationAlgorithm=maker.algorithm_type(label),
    )


def _contours(
    number: int, label: Label, box: Box, case: Case, source: Source, check: Check
) -> Dataset:
    """Return all contours of a structure, slice by slice."""
    mask = case.labelmap.voxels[box] == label.value
    matrix = case.labelmap.geometry.ijk_to_ras
    starts = [side.start for side in box]
    found = []
    for k, plane in enumerate(mask, start=starts[0]):
        check()
        for polygon in outlines(plane):
            points = np.array([(i + starts[2], j + starts[1], k) for j, i in polygon])
            found.append(_contour(points @ matrix[:3, :3].T + matrix[:3, 3], k, source))
    return _dataset(
        ROIDisplayColor=list(label.color), ReferencedROINumber=number, ContourSequence=found
    )


def _contour(points: NDArray[np.float64], k: int, source: Source) -> Dataset:
    """Return a polygon, in RAS, on a slice."""
    return _dataset(
        ContourImageSequence=[_image_of(k, source)],
        ContourGeometricType="CLOSED_PLANAR",
        NumberOfContourPoints=len(points),
        ContourData=list(_decimals(points * SPACES["LPS"])),
    )


def _image_of(k: int, source: Source) -> Dataset:
    """Return a reference to the image, or the frame of an image, of slice k."""
    if len(source.images) > 1:
        image = source.images[k]
        return _dataset(
            ReferencedSOPClassUID=image.SOPClassUID, ReferencedSOPInstanceUID=image.SOPInstanceUID
        )
    image = source.images[0]
    reference = _dataset(
        ReferencedSOPClassUID=image.SOPClassUID, ReferencedSOPInstanceUID=image.SOPInstanceUID
    )
    if len(source.frames) > 1:
        reference.ReferencedFrameNumber = source.frames.index(k) + 1
    return reference


def _decimals(places: NDArray[np.float64]) -> Iterator[str]:
    for number in places.ravel():
        yield f"{number:.{DECIMALS}f}"


def _dataset(**values: object) -> Dataset:
    made = pydicom.Dataset()
    for name, value in values.items():
        setattr(made, name, value)
    return made

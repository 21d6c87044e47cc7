"""DICOM files made with pydicom: classic series and enhanced multi-frame images of known voxels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from medsegai.io import decoder
from medsegai.volume import Volume

MR_IMAGE = "1.2.840.10008.5.1.4.1.1.4"
ENHANCED_MR = "1.2.840.10008.5.1.4.1.1.4.1"
SECRETS = ("Doe", "Jane", "12-34-56", "19700101")
"""Parts of what the files say of the patient; none may reach a message or a log."""

Change = Callable[[Dataset, int], None]


def write_series(
    folder: Path,
    volume: Volume,
    change: Change | None = None,
    series: int = 1,
    skip: Sequence[int] = (),
) -> None:
    """Write a slice per file, under names that say nothing about the order.

    Args:
        folder: where to; made if missing.
        volume: 16-bit voxels; k runs over the slices.
        change: called with each dataset and its k before it is written.
        series: number, and last part of the SeriesInstanceUID.
        skip: slices (k) to leave out.
    """
    folder.mkdir(exist_ok=True)
    for k, plane in enumerate(volume.voxels):
        if k not in skip:
            head = _head(MR_IMAGE, series)
            head.InstanceNumber = k + 1
            _set_plane(head, volume, k)
            _set_pixels(head, plane)
            if change is not None:
                change(head, k)
            name = f"{(k * 5 + 3) % 11:02d}-{k // 11}-{series}.dcm"
            head.save_as(folder / name, enforce_file_format=True)


def write_multiframe(
    path: Path,
    volume: Volume,
    order: Sequence[int],
    change: Callable[[Dataset], None] | None = None,
) -> None:
    """Write one enhanced MR whose frames are the slices (k) of `volume` in `order`."""
    head = _head(ENHANCED_MR, 1)
    head.NumberOfFrames = len(order)
    head.DimensionOrganizationType = "3D"
    shared, plane = Dataset(), Dataset()
    _set_plane(plane, volume, 0)
    shared.PlaneOrientationSequence = [_only(plane, "ImageOrientationPatient")]
    shared.PixelMeasuresSequence = [_only(plane, "PixelSpacing", "SliceThickness")]
    head.SharedFunctionalGroupsSequence = [shared]
    frames = []
    for k in order:
        frame, plane = Dataset(), Dataset()
        _set_plane(plane, volume, k)
        frame.PlanePositionSequence = [_only(plane, "ImagePositionPatient")]
        frames.append(frame)
    head.PerFrameFunctionalGroupsSequence = frames
    _set_pixels(head, volume.voxels[list(order)])
    if change is not None:
        change(head)
    head.save_as(path, enforce_file_format=True)


def transformation(slope: float, intercept: float) -> Dataset:
    """The macro that says how stored values become grey values."""
    values = Dataset()
    values.RescaleSlope, values.RescaleIntercept, values.RescaleType = slope, intercept, "US"
    return values


CRASHING = "ends the decoder"
"""What a file says that ends the process which decodes it, after `let_decoder_crash`."""


FAULT = """
import os, medsegai.decoding.itk as room
read = room.image
def image(path, reader):
    os.abort() if {words!r} in open(path, "rb").read() else None
    return read(path, reader)
room.image = image
"""


def let_decoder_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the process that decodes end by a signal at some files, as ITK and GDCM do by faults of theirs."""
    fault = FAULT.format(words=CRASHING.encode())
    monkeypatch.setattr(decoder, "PROGRAM", f"exec({fault!r}); {decoder.PROGRAM}")
    decoder._DECODER.stop()


def _head(sop_class: str, series: int) -> FileDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = sop_class
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    head = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    head.SOPClassUID = sop_class
    head.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    head.PatientName, head.PatientID, head.PatientBirthDate = "Doe^Jane", "12-34-56", "19700101"
    head.Modality = "MR"
    head.StudyInstanceUID = "1.2.826.0.1.3680043.8.498.1"
    head.SeriesInstanceUID = f"1.2.826.0.1.3680043.8.498.2.{1000 + series}"
    head.SeriesNumber = series
    head.SeriesDescription = f"T1 number {series}"
    head.FrameOfReferenceUID = "1.2.826.0.1.3680043.8.498.3"
    return head


def _set_plane(head: Dataset, volume: Volume, k: int) -> None:
    """The place of slice k, in DICOM's LPS; between rows comes first in PixelSpacing."""
    flip = np.array([-1.0, -1.0, 1.0])
    matrix = volume.geometry.ijk_to_ras
    columns, rows, between = volume.geometry.spacing_mm
    along_i, along_j = matrix[:3, 0] / columns * flip, matrix[:3, 1] / rows * flip
    head.ImageOrientationPatient = [f"{part:.10f}" for part in (*along_i, *along_j)]
    head.ImagePositionPatient = [f"{part:.9f}" for part in (matrix @ [0, 0, k, 1])[:3] * flip]
    head.PixelSpacing = [rows, columns]
    head.SliceThickness = between


def _set_pixels(head: Dataset, voxels: np.ndarray) -> None:
    head.Rows, head.Columns = voxels.shape[-2:]
    head.SamplesPerPixel, head.PhotometricInterpretation = 1, "MONOCHROME2"
    head.BitsAllocated, head.BitsStored, head.HighBit = 16, 16, 15
    head.PixelRepresentation = int(voxels.dtype.kind == "i")
    head.PixelData = voxels.astype(voxels.dtype.newbyteorder("<")).tobytes()


def _only(source: Dataset, *names: str) -> Dataset:
    part = Dataset()
    for name in names:
        part[name] = source[name]
    return part

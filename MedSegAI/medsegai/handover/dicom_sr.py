"""The volumes of a DICOM SEG as a DICOM SR: a measurement report by template TID 1500.

Each structure is a group of measurements (TID 1411) that refers to its segment, so that a viewer can
show the number and the outline together. Written by highdicom.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from medsegai import __version__
from medsegai.handover.dicom_seg import (
    MANUFACTURER,
    SERIES_NUMBERS,
    UTF_8,
    Maker,
    Source,
    coded,
    highdicom,
    plain,
    quiet,
)
from medsegai.labels import Code
from medsegai.measurements import Measurement

VOLUME: Code = ("SCT", "118565006", "Volume")
MILLILITRE: Code = ("UCUM", "mL", "milliliter")
IMAGING: Code = ("SCT", "363679005", "Imaging")
"""The procedure reported: which one it was, the scan does not say in codes."""


def measurement_report(
    segmentation: Any, source: Source, rows: Sequence[Measurement], maker: Maker
) -> Any:
    """The report of the volumes of a DICOM SEG.

    Args:
        segmentation: from `dicom_seg.segmentation`.
        source: the series it was made from.
        rows: measurements of the same case; those without voxels have no segment and are left out.
        maker: what made the segmentation.

    Returns:
        A highdicom Comprehensive3DSR, neither verified nor final: no person has signed it.

    Raises:
        InputError: the headers of the series break the standard.
        MedSegAIError: highdicom is not installed.
    """
    hd = highdicom()
    found = [row for row in rows if row.voxels]
    with quiet("The headers of the series break the DICOM standard, so that no report can be made"):
        device = hd.sr.ObserverContext(
            observer_type=coded(("DCM", "121007", "Device")),
            observer_identifying_attributes=hd.sr.DeviceObserverIdentifyingAttributes(
                uid=hd.UID(), name=plain(maker.name), manufacturer_name=MANUFACTURER
            ),
        )
        content = hd.sr.MeasurementReport(
            observation_context=hd.sr.ObservationContext(observer_device_context=device),
            procedure_reported=coded(IMAGING),
            imaging_measurements=[
                _group(number, row, segmentation, maker)
                for number, row in enumerate(found, start=1)
            ],
            title=coded(("DCM", "126000", "Imaging Measurement Report")),
        )
        report = hd.sr.Comprehensive3DSR(
            evidence=[segmentation, *source.images],
            content=content[0],
            series_instance_uid=hd.UID(),
            series_number=SERIES_NUMBERS["report"],
            sop_instance_uid=hd.UID(),
            instance_number=1,
            manufacturer=MANUFACTURER,
            is_complete=True,
            series_description=plain(f"Volumes by {maker.name}"),
            specific_character_set=UTF_8,
        )
        report.ManufacturerModelName = plain(maker.name)
        report.SoftwareVersions = __version__
        return report


def _group(number: int, row: Measurement, segmentation: Any, maker: Maker) -> Any:
    """One structure: what it is, its segment, and its volume."""
    hd = highdicom()
    segment = segmentation.get_segment_description(number)
    algorithm = hd.sr.AlgorithmIdentification(name=plain(maker.name), version=plain(maker.version))
    return hd.sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=hd.sr.TrackingIdentifier(
            uid=segment.tracking_uid, identifier=segment.tracking_id
        ),
        referenced_segment=hd.sr.ReferencedSegment(
            sop_class_uid=segmentation.SOPClassUID,
            sop_instance_uid=segmentation.SOPInstanceUID,
            segment_number=number,
            source_series=hd.sr.SourceSeriesForSegmentation(
                segmentation.ReferencedSeriesSequence[0].SeriesInstanceUID
            ),
        ),
        finding_category=segment.segmented_property_category,
        finding_type=segment.segmented_property_type,
        measurements=[
            hd.sr.Measurement(
                name=coded(VOLUME),
                value=round(row.volume_ml, 6),
                unit=coded(MILLILITRE),
                algorithm_id=algorithm,
            )
        ],
    )

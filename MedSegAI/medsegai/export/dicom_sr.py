"""The measurements of a DICOM SEG as a DICOM SR: a measurement report by template TID 1500.

Each structure is a group of measurements (TID 1411) that refers to its segment, so that a viewer can show the
numbers and the outline together: volume, surface area, mean and SD of the scan's values inside. Codes are those of
DICOM's own lists (CID 7469, 7464 and 244). Written by highdicom.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from medsegai import __version__
from medsegai.export.dicom_seg import (
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
from medsegai.labels import SIDES, Code, Label
from medsegai.measurements.structures import Measurement

VOLUME: Code = ("SCT", "118565006", "Volume")
MILLILITRE: Code = ("UCUM", "mL", "milliliter")
AREA: Code = ("SCT", "42798000", "Area")
SQUARE_MILLIMETRE: Code = ("UCUM", "mm2", "square millimeter")
CROFTON: Code = ("99MEDSEGAI", "CROFTON", "Surface by Cauchy-Crofton formula")
"""The method for the area. The list also has the area of a mesh, but ours comes from voxels (`surface_area`)."""

MEAN: Code = ("SCT", "373098007", "Mean")
STANDARD_DEVIATION: Code = ("SCT", "386136009", "Standard Deviation")
INTENSITIES: dict[str, tuple[Code, Code]] = {
    "CT": (("DCM", "112031", "Attenuation Coefficient"), ("UCUM", "[hnsf'U]", "Hounsfield unit")),
    "MR": (("DCM", "110852", "MR signal intensity"), ("UCUM", "1", "no units")),
    "PT": (
        ("DCM", "110821", "Nuclear Medicine Tomographic Activity"),
        ("UCUM", "Bq/ml", "Becquerels/milliliter"),
    ),
}
"""The quantity of a scan's values, by its modality; there is no correct code for others."""

NO_SIGNAL = frozenset(
    {
        "ADC",
        "FA",
        "P",
        "PHASE",
        "PHASE MAP",
        "QUANTITY",
        "T1 MAP",
        "T2 MAP",
        "T2* MAP",
        "VELOCITY MAP",
    }
)
"""The values of ImageType of MR images that hold something other than signal."""

ANATOMY: Code = ("SCT", "123037004", "Anatomical Structure")
"""The category of structures that are body parts, and so can have a side."""

IMAGING: Code = ("SCT", "363679005", "Imaging")
"""The reported procedure, unspecified, because the scan does not have a code for it."""


def measurement_report(
    segmentation: Any, source: Source, rows: Sequence[Measurement], maker: Maker
) -> Any:
    """Return the report of the measurements of a DICOM SEG.

    Args:
        segmentation: the segmentation from `dicom_seg.segmentation`.
        source: the series from which it was made.
        rows: the measurements of the same case; structures without voxels do not have a segment and are left out.
        maker: the maker of the segmentation.

    Returns:
        A highdicom Comprehensive3DSR, neither verified nor final, because a person has not signed it.

    Raises:
        InputError: the headers of the series violate the standard.
        MedSegAIError: highdicom is not installed.
    """
    hd = highdicom()
    found = [row for row in rows if row.voxels]
    intensity = intensity_of(source)
    with quiet("The headers of the series violate the DICOM standard, so a report cannot be made"):
        content = hd.sr.MeasurementReport(
            observation_context=hd.sr.ObservationContext(observer_device_context=_device(maker)),
            procedure_reported=coded(IMAGING),
            imaging_measurements=[
                _group(segmentation, number, _numbers(row, intensity, maker), row.label)
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
            series_description=plain(f"Measurements by {maker.name}"),
            specific_character_set=UTF_8,
        )
        report.ManufacturerModelName = plain(maker.name)
        report.SoftwareVersions = __version__
        return report


def _device(maker: Maker) -> Any:
    """Return a highdicom ObserverContext which says that a program observed, and which."""
    hd = highdicom()
    return hd.sr.ObserverContext(
        observer_type=coded(("DCM", "121007", "Device")),
        observer_identifying_attributes=hd.sr.DeviceObserverIdentifyingAttributes(
            uid=hd.UID(), name=plain(maker.name), manufacturer_name=MANUFACTURER
        ),
    )


def intensity_of(source: Source) -> tuple[Code, Code] | None:
    """Return the quantity of the grey values of a series and their unit; None if its headers are not clear."""
    head = source.images[0]
    modality = str(head.get("Modality", ""))
    certain = {
        "CT": _rescaled_to(head) == "HU",
        "PT": str(head.get("Units", "")) == "BQML",
        "MR": NO_SIGNAL.isdisjoint(str(item).upper() for item in head.get("ImageType") or ()),
    }
    return INTENSITIES[modality] if certain.get(modality) else None


def _rescaled_to(head: Any) -> str:
    """Return the quantity of the values of a CT; HU by default, as DICOM defines it for original images."""
    for shared in head.get("SharedFunctionalGroupsSequence", ()):
        for item in shared.get("PixelValueTransformationSequence", ()):
            return str(item.get("RescaleType") or "HU").strip().upper()
    return str(head.get("RescaleType") or "HU").strip().upper()


def _group(segmentation: Any, number: int, numbers: Sequence[Any], label: Label) -> Any:
    """Return one structure: its type and site, its segment, and its measurements."""
    hd = highdicom()
    segment = segmentation.get_segment_description(number)
    return hd.sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=hd.sr.TrackingIdentifier(
            uid=segment.tracking_uid, identifier=segment.tracking_id
        ),
        referenced_segment=_reference(segmentation, number),
        finding_category=segment.segmented_property_category,
        finding_type=segment.segmented_property_type,
        finding_sites=_sites(label),
        measurements=numbers,
    )


def _reference(segmentation: Any, number: int) -> Any:
    sr, series = highdicom().sr, segmentation.ReferencedSeriesSequence[0]
    return sr.ReferencedSegment(
        sop_class_uid=segmentation.SOPClassUID,
        sop_instance_uid=segmentation.SOPInstanceUID,
        segment_number=number,
        source_series=sr.SourceSeriesForSegmentation(series.SeriesInstanceUID),
    )


def _sites(label: Label) -> list[Any] | None:
    """Return the site and side of a structure (CID 244); None if its codes do not state them."""
    codes = label.terminology
    if codes is None or codes.modifier is None or codes.category[:2] != ANATOMY[:2]:
        return None
    if codes.modifier[1] not in SIDES:
        return None
    return [highdicom().sr.FindingSite(coded(codes.type), laterality=coded(codes.modifier))]


def _numbers(row: Measurement, intensity: tuple[Code, Code] | None, maker: Maker) -> list[Any]:
    """Return the measurements of a structure, without missing ones."""
    hd = highdicom()
    algorithm = hd.sr.AlgorithmIdentification(name=plain(maker.name), version=plain(maker.version))
    return [
        hd.sr.Measurement(
            name=coded(name),
            value=round(value, 6),
            unit=coded(unit),
            algorithm_id=algorithm,
            **{kind: coded(code) for kind, code in more.items()},
        )
        for name, value, unit, more in _values(row, intensity)
        if not math.isnan(value)
    ]


def _values(
    row: Measurement, intensity: tuple[Code, Code] | None
) -> Iterator[tuple[Code, float, Code, dict[str, Code]]]:
    """Yield name, value and unit, with qualifiers."""
    yield VOLUME, row.volume_ml, MILLILITRE, {}
    yield AREA, row.surface_mm2, SQUARE_MILLIMETRE, {"method": CROFTON}
    if intensity is not None:
        name, unit = intensity
        yield name, row.mean, unit, {"derivation": MEAN}
        yield name, row.sd, unit, {"derivation": STANDARD_DEVIATION}

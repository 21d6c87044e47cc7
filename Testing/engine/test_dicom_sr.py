"""The DICOM SR: valid by dciodvfy, and the same numbers in dcmqi, in the bare attributes and in the table."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pydicom
import pytest

from dicom_files import write_series
from export_cases import LABELS, complaints, described, drawn, exported, scan
from medsegai.cli import main
from medsegai.export.dicom_seg import Source
from medsegai.export.dicom_sr import intensity_of
from medsegai.io import write_segmentation
from medsegai.measurements.structures import measure

pytest.importorskip("highdicom")

CODES = {
    "118565006": "volume",
    "42798000": "surface",
    "110852": "signal",
    "112031": "attenuation",
    "110821": "activity",
    "373098007": "mean",
    "386136009": "SD",
}


def reported(folder: Path, name: str = "oblique") -> pydicom.Dataset:
    exported(folder, name, "--sr", str(folder / "sr.dcm"))
    return pydicom.dcmread(folder / "sr.dcm")


def children(item: pydicom.Dataset, code: str) -> list[pydicom.Dataset]:
    """The content items right below `item` that are named by `code`."""
    return [
        part
        for part in item.get("ContentSequence", [])
        if part.ConceptNameCodeSequence[0].CodeValue == code
    ]


def groups(report: pydicom.Dataset) -> list[pydicom.Dataset]:
    (measurements,) = children(report, "126010")
    return children(measurements, "125007")


def numbers(group: pydicom.Dataset) -> Iterator[tuple[str, float, str]]:
    """What, how much, and in which unit."""
    for part in group.ContentSequence:
        if part.ValueType == "NUM":
            value = part.MeasuredValueSequence[0]
            what = [part.ConceptNameCodeSequence[0].CodeValue]
            what += [item.ConceptCodeSequence[0].CodeValue for item in children(part, "121401")]
            unit = value.MeasurementUnitsCodeSequence[0]
            assert unit.CodingSchemeDesignator == "UCUM"
            words = " ".join(CODES[code] for code in what)
            yield words, float(value.NumericValue), unit.CodeValue


@pytest.mark.parametrize("name", ["straight", "oblique"])
def test_the_numbers_are_those_of_the_table(name: str, tmp_path: Path) -> None:
    report = reported(tmp_path, name)
    assert complaints(tmp_path / "sr.dcm") == []
    rows = [row for row in measure(drawn(name), LABELS, scan(name)) if row.voxels]
    for row, group in zip(rows, groups(report), strict=True):
        expected = [
            ("volume", row.volume_ml, "mL"),
            ("surface", row.surface_mm2, "mm2"),
            ("signal mean", row.mean, "1"),
            ("signal SD", row.sd, "1"),
        ]
        if row.voxels == 1:  # the lesion: one value has no spread
            expected.pop()
        found = list(numbers(group))
        assert [item[::2] for item in found] == [item[::2] for item in expected]
        values = [item[1] for item in expected]
        assert [item[1] for item in found] == pytest.approx(values, abs=1e-6)
    assert {row.voxels == 1 for row in rows} == {True, False}


def test_structures_have_their_codes_and_sides(tmp_path: Path) -> None:
    kidney, lesion, liver = groups(reported(tmp_path))
    (site,) = children(kidney, "363698007")
    assert site.ConceptCodeSequence[0].CodeValue == "64033007"
    (side,) = children(site, "272741003")
    code = side.ConceptCodeSequence[0]
    assert (code.CodingSchemeDesignator, code.CodeValue, code.CodeMeaning) == (
        "SCT", "7771000", "Left",
    )  # fmt: skip
    assert not children(lesion, "363698007")
    assert not children(liver, "363698007")
    assert [children(group, "121071")[0].ConceptCodeSequence[0].CodeMeaning
            for group in (kidney, liver)] == ["Kidney", "Liver"]  # fmt: skip


def test_the_report_refers_to_the_segmentation_and_is_not_signed(tmp_path: Path) -> None:
    report = reported(tmp_path)
    segmentation = pydicom.dcmread(tmp_path / "seg.dcm")
    evidence = str(report.CurrentRequestedProcedureEvidenceSequence)
    assert segmentation.SOPInstanceUID in evidence
    assert (report.VerificationFlag, report.PreliminaryFlag) == ("UNVERIFIED", "PRELIMINARY")
    assert report.ContentTemplateSequence[0].TemplateIdentifier == "1500"
    segments = [children(group, "121191")[0].ReferencedSOPSequence[0] for group in groups(report)]
    assert {item.ReferencedSOPInstanceUID for item in segments} == {segmentation.SOPInstanceUID}
    assert [item.ReferencedSegmentNumber for item in segments] == [1, 2, 3]


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"Modality": "CT", "RescaleType": "HU"}, ("attenuation mean", "[hnsf'U]")),
        ({"Modality": "CT"}, ("attenuation mean", "[hnsf'U]")),
        ({"Modality": "CT", "RescaleType": "US"}, None),
        ({"Modality": "PT", "Units": "BQML"}, ("activity mean", "Bq/ml")),
        ({"Modality": "PT", "Units": "CNTS"}, None),
        ({"Modality": "US"}, None),
        ({"Modality": "MR", "ImageType": ["ORIGINAL", "PRIMARY", "M"]}, ("signal mean", "1")),
        ({"Modality": "MR", "ImageType": ["DERIVED", "PRIMARY", "DIFFUSION", "ADC"]}, None),
    ],
)
def test_grey_values_are_named_by_what_they_are(
    headers: dict[str, Any], expected: tuple[str, str] | None, tmp_path: Path
) -> None:
    def changed(head: pydicom.Dataset, k: int) -> None:
        described(head, k)
        for name, value in headers.items():
            setattr(head, name, value)

    write_series(tmp_path / "series", scan("straight"), changed)
    write_segmentation(tmp_path / "case.seg.nrrd", drawn("straight"), LABELS)
    command = ["export", str(tmp_path / "case.seg.nrrd"), "--dicom", str(tmp_path / "series"), "-q"]
    outputs = ["--seg", str(tmp_path / "seg.dcm"), "--sr", str(tmp_path / "sr.dcm")]
    assert main([*command, *outputs]) == 0
    assert complaints(tmp_path / "sr.dcm") == []
    found = [item[::2] for item in numbers(groups(pydicom.dcmread(tmp_path / "sr.dcm"))[0])]
    assert found[:2] == [("volume", "mL"), ("surface", "mm2")]
    assert found[2:3] == ([] if expected is None else [expected])


@pytest.mark.parametrize(("rescaled_to", "known"), [("HU", True), ("US", False)])
def test_frames_of_an_enhanced_ct(rescaled_to: str, known: bool) -> None:
    transformation, shared, head = pydicom.Dataset(), pydicom.Dataset(), pydicom.Dataset()
    transformation.RescaleType, head.Modality = rescaled_to, "CT"
    shared.PixelValueTransformationSequence = [transformation]
    head.SharedFunctionalGroupsSequence = [shared]
    assert (intensity_of(Source((head,), (0,))) is not None) == known


def test_dcmqi_reads_the_same(tmp_path: Path) -> None:
    command = Path(sys.executable).with_name("tid1500reader")
    if not command.exists():
        pytest.skip("no dcmqi: install the extra `test`")
    reported(tmp_path)
    out = tmp_path / "read.json"
    how = ["--inputDICOM", tmp_path / "sr.dcm", "--outputMetadata", out]
    done = subprocess.run([command, *how], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(out.read_text())["Measurements"]
    rows = [row for row in measure(drawn("oblique"), LABELS, scan("oblique")) if row.voxels]
    assert [item["TrackingIdentifier"] for item in found] == [row.label.name for row in rows]
    for item, row in zip(found, rows, strict=True):
        values = [float(part["value"]) for part in item["measurementItems"]]
        expected = [row.volume_ml, row.surface_mm2, row.mean, row.sd]
        assert values == pytest.approx(expected[: 3 if row.voxels == 1 else 4], abs=1e-6)
        assert [part["units"]["CodeValue"] for part in item["measurementItems"]][:2] == [
            "mL",
            "mm2",
        ]
    assert found[0]["Laterality"]["CodeMeaning"] == "Left"

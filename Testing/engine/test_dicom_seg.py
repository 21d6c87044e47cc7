"""DICOM SEG and SR: valid by dciodvfy, and the same voxels at the same places in dcmqi and pydicom."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from numpy.typing import NDArray

from dicom_files import SECRETS, write_multiframe, write_series
from export_cases import (
    ANATOMY,
    LABELS,
    SHAPE,
    complaints,
    described,
    drawn,
    exported,
    scan,
)
from medsegai.cli import main
from medsegai.errors import InputError, RequestError
from medsegai.export import load_case
from medsegai.export.dicom_seg import ENCODINGS, Maker, read_source, segmentation, stored
from medsegai.io import write_segmentation, write_volume
from medsegai.labels import Label
from medsegai.volume import Volume

pytest.importorskip("highdicom")


def by_dcmqi(path: Path, folder: Path) -> sitk.Image:
    """The label map that dcmqi reads; its values are segment numbers."""
    command = Path(sys.executable).with_name("segimage2itkimage")
    if not command.exists():
        pytest.skip("no dcmqi: install the extra `test`")
    folder.mkdir()
    how = ["--outputDirectory", folder, "--outputType", "nrrd", "--mergeSegments"]
    done = subprocess.run([command, "--inputDICOM", path, *how], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (image,) = folder.glob("*.nrrd")
    return sitk.ReadImage(str(image))


def values_at(image: sitk.Image, volume: Volume) -> NDArray[np.int64]:
    """What a sparse ITK image holds at every voxel of `volume`; 0 outside."""
    found = np.zeros(volume.voxels.shape, np.int64)
    for k, j, i in np.ndindex(*found.shape):
        r, a, s = (volume.geometry.ijk_to_ras @ [i, j, k, 1])[:3]
        index = image.TransformPhysicalPointToContinuousIndex((-r, -a, s))
        nearest = np.rint(index).astype(int)
        assert np.abs(index - nearest).max() < 0.02  # the same grid
        if all(0 <= part < size for part, size in zip(nearest, image.GetSize(), strict=True)):
            found[k, j, i] = image[tuple(nearest.tolist())]
    return found


def by_pydicom(path: Path, volume: Volume) -> NDArray[np.int64]:
    """Segment numbers on the grid of `volume`, frame by frame, from the attributes alone."""
    dataset = pydicom.dcmread(path)
    frames = dataset.pixel_array.reshape(-1, dataset.Rows, dataset.Columns)
    shared = dataset.SharedFunctionalGroupsSequence[0]
    found = np.zeros(volume.voxels.shape, np.int64)
    for frame, group in zip(frames, dataset.PerFrameFunctionalGroupsSequence, strict=True):
        x, y, z = group.PlanePositionSequence[0].ImagePositionPatient
        orientation = shared.PlaneOrientationSequence[0].ImageOrientationPatient
        rows, columns = shared.PixelMeasuresSequence[0].PixelSpacing
        i, j, k, _ = volume.geometry.ras_to_ijk @ [-x, -y, z, 1]
        np.testing.assert_allclose([i, j, k - round(k)], 0, atol=0.02)
        flip = np.array([-1, -1, 1])
        along = [flip * orientation[:3] * columns, flip * orientation[3:] * rows]
        np.testing.assert_allclose(along, volume.geometry.ijk_to_ras[:3, :2].T, atol=1e-4)
        if dataset.SegmentationType == "BINARY":
            number = group.SegmentIdentificationSequence[0].ReferencedSegmentNumber
            found[round(k)][frame > 0] = number
        else:
            found[round(k)] = frame
    return found


def numbered(labelmap: Volume) -> NDArray[np.int64]:
    """Segment numbers that are expected: 1, 2, 3 for the labels that have voxels."""
    return np.searchsorted([0, 3, 9, 400], labelmap.voxels)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("name", ["straight", "oblique", "mirrored", "LIA", "sagittal slices"])
def test_other_readers_find_the_same_voxels(name: str, encoding: str, tmp_path: Path) -> None:
    path = exported(tmp_path, name, "--encoding", encoding)
    expected = numbered(drawn(name))
    np.testing.assert_array_equal(by_pydicom(path, scan(name)), expected)
    if encoding == "binary" or name == "oblique":
        image = by_dcmqi(path, tmp_path / "dcmqi")
        np.testing.assert_array_equal(values_at(image, scan(name)), expected)


@pytest.mark.parametrize("name", ["straight", "oblique"])
def test_valid(name: str, tmp_path: Path) -> None:
    report = tmp_path / "sr.dcm"
    path = exported(tmp_path, name, "--sr", str(report))
    assert complaints(path) == []
    assert complaints(report) == []
    broken = pydicom.dcmread(path)
    del broken.SegmentSequence[0].SegmentLabel
    broken.save_as(tmp_path / "broken.dcm")
    assert complaints(tmp_path / "broken.dcm")  # it does look


def test_patient_codes_and_algorithm(tmp_path: Path) -> None:
    path = exported(tmp_path, "oblique", "--corrected")
    dataset, source = pydicom.dcmread(path), pydicom.dcmread(next((tmp_path / "series").iterdir()))
    for name in ("PatientName", "PatientID", "PatientBirthDate", "StudyInstanceUID", "StudyDate"):
        assert dataset[name].value == source[name].value
    assert dataset.FrameOfReferenceUID == source.FrameOfReferenceUID
    assert dataset.ContentCreatorName == ""
    assert dataset.SeriesInstanceUID != source.SeriesInstanceUID
    kidney, lesion, liver = dataset.SegmentSequence
    assert [item.SegmentNumber for item in dataset.SegmentSequence] == [1, 2, 3]
    assert kidney.SegmentedPropertyTypeCodeSequence[0].CodeValue == "64033007"
    side = kidney.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence[0]
    assert (side.CodeValue, side.CodingSchemeDesignator) == ("7771000", "SCT")
    assert liver.SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Liver"
    assert lesion.SegmentLabel == "Läsion № 2"
    assert lesion.SegmentedPropertyCategoryCodeSequence[0].CodeValue == ANATOMY[1]
    assert kidney.SegmentAlgorithmType == "SEMIAUTOMATIC"
    algorithm = kidney.SegmentationAlgorithmIdentificationSequence[0]
    assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == (Maker.name, Maker.version)
    references = dataset.ReferencedSeriesSequence[0].ReferencedInstanceSequence
    uids = {pydicom.dcmread(file).SOPInstanceUID for file in (tmp_path / "series").iterdir()}
    assert {item.ReferencedSOPInstanceUID for item in references} == uids


@pytest.mark.parametrize(
    ("character_set", "name"),
    [
        ("", "Doe^Jane"),
        ("ISO_IR 100", "Müller^Jörg"),
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎"),
    ],
)
def test_names_in_any_character_set(
    character_set: str | list[str], name: str, tmp_path: Path
) -> None:
    def spelt(head: pydicom.Dataset, k: int) -> None:
        described(head, k)
        head.SpecificCharacterSet, head.PatientName = character_set, name

    write_series(tmp_path / "series", scan("straight"), spelt)
    write_segmentation(tmp_path / "case.seg.nrrd", drawn("straight"), LABELS)
    outputs = [tmp_path / "seg.dcm", tmp_path / "sr.dcm"]
    command = ["export", str(tmp_path / "case.seg.nrrd"), "--dicom", str(tmp_path / "series"), "-q"]
    assert main([*command, "--seg", str(outputs[0]), "--sr", str(outputs[1])]) == 0
    for path in outputs:
        assert str(pydicom.dcmread(path).PatientName) == name
        assert complaints(path) == []


def test_the_report_of_a_run_names_the_model(tmp_path: Path) -> None:
    run = tmp_path / "run.json"
    made = {"models": [{"id": "brain", "version": "0.2.0"}], "medsegai": "0.1.0"}
    report = {
        "provenance": made,
        "warnings": ["Odd."],
        "outputs": {"segmentation": {"sha256": "0"}},
    }
    run.write_text(json.dumps(report))
    dataset = pydicom.dcmread(exported(tmp_path, "straight", "--run", str(run)))
    segment = dataset.SegmentSequence[0]
    algorithm = segment.SegmentationAlgorithmIdentificationSequence[0]
    assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("brain", "0.2.0")
    assert segment.SegmentAlgorithmType == "SEMIAUTOMATIC"  # the file is not what the run wrote


def test_frames_of_one_file(tmp_path: Path) -> None:
    order = [3, 0, 5, 1, 4, 2]

    def complete(head: pydicom.Dataset) -> None:
        described(head, 0)
        for group in head.PerFrameFunctionalGroupsSequence:
            group.FrameContentSequence = [pydicom.Dataset()]

    write_multiframe(tmp_path / "scan.dcm", scan("oblique"), order, complete)
    write_segmentation(tmp_path / "case.seg.nrrd", drawn("oblique"), LABELS)
    case = load_case(tmp_path / "case.seg.nrrd", tmp_path / "scan.dcm")
    dataset = segmentation(case, read_source(tmp_path / "scan.dcm"), Maker())
    stored(dataset, tmp_path / "seg.dcm")
    found = by_pydicom(tmp_path / "seg.dcm", scan("oblique"))
    np.testing.assert_array_equal(found, numbered(drawn("oblique")))


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_three_hundred_segments(encoding: str, tmp_path: Path) -> None:
    voxels = np.zeros(SHAPE, np.uint16)
    voxels.ravel()[100:700] = np.repeat(np.arange(300) * 7 + 11, 2)
    labels = [Label(number * 7 + 11, f"Part {number}", (9, 99, 200)) for number in range(300)]
    write_series(tmp_path / "series", scan("oblique"), described)
    write_segmentation(tmp_path / "case.seg.nrrd", drawn("oblique").with_voxels(voxels), labels)
    case = load_case(tmp_path / "case.seg.nrrd", tmp_path / "series")
    dataset = segmentation(case, read_source(tmp_path / "series"), Maker(), encoding)
    stored(dataset, tmp_path / "seg.dcm")
    found = by_pydicom(tmp_path / "seg.dcm", scan("oblique"))
    np.testing.assert_array_equal(found, np.where(voxels, (voxels.astype(int) - 11) // 7 + 1, 0))


@pytest.mark.filterwarnings("ignore:Invalid value for VR DA")
def test_no_patient_in_words(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    def awkward(head: pydicom.Dataset, k: int) -> None:
        described(head, k)
        head.PatientName = SECRETS[0]  # one word: highdicom warns of it, and quotes it
        head.StudyDate = "Doe"

    write_series(tmp_path / "series", scan("straight"), awkward)
    write_segmentation(tmp_path / "case.seg.nrrd", drawn("straight"), LABELS)
    names = ["--dicom", "series", "--seg", "seg.dcm", "--sr", "sr.dcm", "--report", "r.html"]
    names = [name if name.startswith("-") else str(tmp_path / name) for name in names]
    caplog.clear()  # pydicom spoke of the date while the files were made
    with caplog.at_level(logging.DEBUG), warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        main(["export", str(tmp_path / "case.seg.nrrd"), *names])
    said = caplog.text + "".join(capfd.readouterr()) + "".join(str(item.message) for item in warned)
    if (tmp_path / "r.html").exists():
        said += (tmp_path / "r.html").read_text()
    assert not [secret for secret in SECRETS if secret in said]


def test_what_is_not_dicom_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_volume(tmp_path / "scan.nii.gz", scan("straight"))
    write_segmentation(tmp_path / "case.seg.nrrd", drawn("straight"), LABELS)
    command = ["export", str(tmp_path / "case.seg.nrrd"), "--seg", str(tmp_path / "seg.dcm")]
    assert main(command) == RequestError.exit_code
    assert "--dicom" in capsys.readouterr().err
    assert main([*command, "--dicom", str(tmp_path / "scan.nii.gz")]) == InputError.exit_code
    assert "is not DICOM" in capsys.readouterr().err
    assert main([*command, "--image", str(tmp_path / "scan.nii.gz")]) == RequestError.exit_code
    assert not (tmp_path / "seg.dcm").exists()


def test_headers_that_a_program_emptied(tmp_path: Path) -> None:
    def hidden(head: pydicom.Dataset, _: int) -> None:
        for name in ("PatientName", "PatientID", "PatientBirthDate"):
            delattr(head, name)

    write_series(tmp_path / "series", scan("oblique"), hidden)
    write_segmentation(tmp_path / "case.seg.nrrd", drawn("oblique"), LABELS)
    outputs = [tmp_path / "seg.dcm", tmp_path / "sr.dcm"]
    command = ["export", str(tmp_path / "case.seg.nrrd"), "--dicom", str(tmp_path / "series"), "-q"]
    assert main([*command, "--seg", str(outputs[0]), "--sr", str(outputs[1])]) == 0
    for path in outputs:
        assert pydicom.dcmread(path).PatientName == ""
        assert [line for line in complaints(path) if "Missing" in line] == []


def test_headers_without_identity_are_refused(tmp_path: Path) -> None:
    def anonymous(head: pydicom.Dataset, _: int) -> None:
        head.StudyInstanceUID = ""
        del head.FrameOfReferenceUID

    write_series(tmp_path / "series", scan("straight"), anonymous)
    with pytest.raises(InputError, match="lack StudyInstanceUID, FrameOfReferenceUID"):
        read_source(tmp_path / "series")


@pytest.mark.parametrize("problem", ["empty", "another grid", "report without segmentation"])
def test_nothing_is_written_where_something_is_wrong(problem: str, tmp_path: Path) -> None:
    write_series(tmp_path / "series", scan("straight"), described)
    labelmap = drawn("oblique" if problem == "another grid" else "straight")
    if problem == "empty":
        labelmap = labelmap.with_voxels(np.zeros(SHAPE, np.uint8))
    write_segmentation(tmp_path / "case.seg.nrrd", labelmap, LABELS)
    out = tmp_path / "out"
    out.mkdir()
    parts = ["--sr", "sr.dcm", "--csv", "t.csv", "--report", "r.html", "--surfaces", "s"]
    if problem != "report without segmentation":
        parts += ["--seg", "seg.dcm"]
    parts = [part if part.startswith("-") else str(out / part) for part in parts]
    series = str(tmp_path / "series")
    assert main(["export", str(tmp_path / "case.seg.nrrd"), "--dicom", series, *parts]) in (2, 3)
    assert list(out.iterdir()) == []


@pytest.mark.parametrize("series", ["ct-3slice", "24x38x3/image", "24x38x3/multiframe/mf.dcm"])
def test_real_series_with_their_headers(series: str, shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "dicom-seg-examples"
    drawn = folder / ("liver_seg.nrrd" if series == "ct-3slice" else "24x38x3/nrrd/label.nrrd")
    out, report = tmp_path / "seg.dcm", tmp_path / "sr.dcm"
    command = ["export", str(drawn), "--dicom", str(folder / series), "-q"]
    assert main([*command, "--seg", str(out), "--sr", str(report)]) == 0
    assert complaints(out) == []
    assert complaints(report) == []
    found, labels = by_dcmqi(out, tmp_path / "dcmqi"), sitk.ReadImage(str(drawn))
    onto = sitk.Resample(
        found, labels, sitk.Transform(), sitk.sitkNearestNeighbor, 0, sitk.sitkUInt8
    )
    expected = sitk.GetArrayFromImage(labels)
    assert expected.any()
    np.testing.assert_array_equal(sitk.GetArrayFromImage(onto) > 0, expected > 0)


def test_a_real_series(shared_data: Path, tmp_path: Path) -> None:
    # The example was stripped of its identity, which is given back here; its labels are a NIfTI file of
    # dcm2niix, whose axes run otherwise than the series'.
    folder = shared_data / "totalsegmentator-examples"
    series = tmp_path / "series"
    series.mkdir()
    for file in (folder / "example_ct_dicom").iterdir():
        head = pydicom.dcmread(file)
        head.SOPClassUID = head.file_meta.MediaStorageSOPClassUID
        head.SOPInstanceUID = head.file_meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
        head.StudyInstanceUID, head.SeriesInstanceUID = "1.2.826.0.1.1", "1.2.826.0.1.2"
        head.save_as(series / f"{file.name[-8:]}.dcm")
    labels = sitk.ReadImage(str(folder / "example_seg_dicom.nii.gz"))
    few = sitk.ChangeLabel(labels, {v: 0 for v in range(1, 120) if v not in (5, 52, 79)})
    sitk.WriteImage(few, str(tmp_path / "few.nii.gz"))
    command = ["export", str(tmp_path / "few.nii.gz"), "--dicom", str(series), "-q"]
    assert main([*command, "--seg", str(tmp_path / "seg.dcm")]) == 0
    assert complaints(tmp_path / "seg.dcm") == []
    found = by_dcmqi(tmp_path / "seg.dcm", tmp_path / "dcmqi")
    onto = sitk.Resample(found, few, sitk.Transform(), sitk.sitkNearestNeighbor, 0, sitk.sitkUInt8)
    numbers = np.searchsorted([0, 5, 52, 79], sitk.GetArrayFromImage(few))
    assert len(np.unique(numbers)) == 4
    np.testing.assert_array_equal(sitk.GetArrayFromImage(onto), numbers)

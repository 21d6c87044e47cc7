"""Contours for radiotherapy: what fills them gets the voxels back, holes and separate parts included."""

from __future__ import annotations

import shutil
import subprocess
from collections import Counter
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as made
from numpy.typing import NDArray

from dicom_files import write_series
from export_cases import LABELS, complaints, described, drawn, scan
from images import DIRECTIONS
from medsegai.cli import main
from medsegai.errors import Cancelled
from medsegai.export.files import Exports, Inputs, export
from medsegai.export.outlines import outlines
from medsegai.io import write_segmentation
from medsegai.labels import Label
from medsegai.volume import Geometry, Volume
from stop_points import StopAt

Points = NDArray[np.float64]


def filled(polygons: list[Points], shape: tuple[int, ...]) -> NDArray[np.int64]:
    """In how many polygons the centre of each pixel is, by the even-odd rule. Points are (j, i)."""
    j, i = np.indices(shape)
    inside = np.zeros(shape, np.int64)
    for points in polygons:
        crossed = np.zeros(shape, np.int64)
        for (aj, ai), (bj, bi) in zip(points, np.roll(points, -1, axis=0), strict=True):
            if aj != bj:
                across = (aj > j) != (bj > j)
                crossed += across & (ai + (j - aj) * (bi - ai) / (bj - aj) > i)
        inside += crossed % 2
    return inside


@settings(max_examples=150, deadline=None)
@given(made.arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_outlines_fill_to_the_mask(mask: NDArray[np.bool_]) -> None:
    """Each pixel of the mask lies in one polygon, and every other in none, whatever the shape."""
    polygons = [np.array(polygon) for polygon in outlines(mask)]
    np.testing.assert_array_equal(filled(polygons, mask.shape), mask)


def rings() -> Volume:
    """A plate with two holes, one of which holds an island that has a hole; and a second structure."""
    voxels = np.zeros((7, 17, 15), np.uint16)
    voxels[2:5, 1:12, 1:14] = 3
    voxels[2:5, 2:11, 2:9] = 0
    voxels[3, 3:8, 3:8] = 3
    voxels[3, 5, 5] = 0
    voxels[2:4, 5:7, 11:13] = 0
    voxels[3:, 13:16, 2:5] = 400
    spacing, origin = (0.9, 1.1, 2.5), (-20.0, 30.0, 5.0)
    return Volume(voxels, Geometry.from_spacing(voxels.shape, spacing, origin))


def read_back(path: Path, series: Path, shape: tuple[int, ...]) -> dict[str, NDArray[np.int64]]:
    """How often each voxel is inside of a contour, by the name of the structure; placed by headers of slices."""
    heads = sorted(
        (pydicom.dcmread(file) for file in series.iterdir()), key=lambda it: it.InstanceNumber
    )
    number = {head.SOPInstanceUID: k for k, head in enumerate(heads)}
    found = pydicom.dcmread(path)
    names = {item.ROINumber: item.ROIName for item in found.StructureSetROISequence}
    masks: dict[str, NDArray[np.int64]] = {}
    for item in found.ROIContourSequence:
        mask = np.zeros(shape, np.int64)
        for contour in item.ContourSequence:
            k = number[contour.ContourImageSequence[0].ReferencedSOPInstanceUID]
            head = heads[k]
            points = np.array(contour.ContourData, float).reshape(-1, 3)
            assert len(points) == contour.NumberOfContourPoints
            along, down = np.array(head.ImageOrientationPatient, float).reshape(2, 3)
            offset = points - np.array(head.ImagePositionPatient, float)
            np.testing.assert_allclose(offset @ np.cross(along, down), 0, atol=1e-3)
            rows, columns = head.PixelSpacing
            pixels = np.stack([offset @ down / rows, offset @ along / columns], axis=1)
            mask[k] += filled([pixels], shape[1:])
        masks[names[item.ReferencedROINumber]] = mask
    return masks


def exported(tmp_path: Path, image: Volume, labelmap: Volume, labels: tuple[Label, ...]) -> Path:
    """The RT Structure Set, by the command."""
    write_series(tmp_path / "series", image, described)
    write_segmentation(tmp_path / "case.seg.nrrd", labelmap, labels)
    out = tmp_path / "rt.dcm"
    words = ["export", f"{tmp_path}/case.seg.nrrd", "--dicom", f"{tmp_path}/series"]
    assert main([*words, "--rtstruct", str(out), "-q"]) == 0
    return out


@pytest.mark.parametrize("name", DIRECTIONS)
def test_contours_lie_where_the_voxels_are(name: str, tmp_path: Path) -> None:
    labelmap = drawn(name)
    path = exported(tmp_path, scan(name), labelmap, LABELS)
    found = read_back(path, tmp_path / "series", labelmap.voxels.shape)
    there = [label for label in LABELS if (labelmap.voxels == label.value).any()]
    assert list(found) == [label.name for label in there]
    for label in there:
        np.testing.assert_array_equal(found[label.name], labelmap.voxels == label.value)


def plate(tmp_path: Path) -> tuple[Volume, Path]:
    """`rings` and its RT Structure Set."""
    labelmap = rings()
    image = labelmap.with_voxels(
        np.arange(labelmap.voxels.size, dtype=np.int16).reshape(labelmap.voxels.shape)
    )
    return labelmap, exported(tmp_path, image, labelmap, LABELS)


def test_holes_and_several_contours_in_a_slice(tmp_path: Path) -> None:
    labelmap, path = plate(tmp_path)
    found = read_back(path, tmp_path / "series", labelmap.voxels.shape)
    np.testing.assert_array_equal(found["Left kidney"], labelmap.voxels == 3)
    np.testing.assert_array_equal(found["Liver"], labelmap.voxels == 400)
    head = pydicom.dcmread(path)
    slices = Counter(
        contour.ContourImageSequence[0].ReferencedSOPInstanceUID
        for contour in head.ROIContourSequence[0].ContourSequence
    )
    assert sorted(slices.values()) == [1, 1, 2]  # the plate, and in one slice the island too


def test_the_headers_are_sound_and_of_the_patient(tmp_path: Path) -> None:
    _, path = plate(tmp_path)
    assert complaints(path) == []
    head = pydicom.dcmread(path)
    source = pydicom.dcmread(next((tmp_path / "series").iterdir()))
    for name in ("PatientID", "PatientName", "StudyInstanceUID", "FrameOfReferenceUID"):
        assert head[name].value == source[name].value
    assert head.SeriesInstanceUID != source.SeriesInstanceUID
    assert [item.ROIGenerationAlgorithm for item in head.StructureSetROISequence] == [
        "AUTOMATIC"
    ] * 2


def test_names_are_distinct_and_fit_into_dicom(tmp_path: Path) -> None:
    """Planning systems merge structures of equal names, and 64 characters are all that there is room for."""
    names = ["Liver", "Liver", "\\", "z" * 70 + "a", "z" * 70 + "b"]
    voxels = np.zeros((3, 5, 7), np.uint16)
    voxels[1, 1:4, 1:6] = np.arange(1, 6)
    labels = tuple(Label(value, name, (value, 0, 0)) for value, name in enumerate(names, start=1))
    labelmap = Volume(voxels, Geometry.from_spacing(voxels.shape, (1.0, 1.0, 1.0)))
    image = labelmap.with_voxels(np.arange(voxels.size, dtype=np.int16).reshape(voxels.shape))
    path = exported(tmp_path, image, labelmap, labels)
    found = [item.ROIName for item in pydicom.dcmread(path).StructureSetROISequence]
    last = f"{'z' * 48} (label 5)"
    assert found == ["Liver", "Liver (label 2)", "label 3", "z" * 64, last]
    assert complaints(path) == []


def test_without_a_series_there_is_no_structure_set(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_segmentation(tmp_path / "case.seg.nrrd", rings(), LABELS)
    assert main(["export", f"{tmp_path}/case.seg.nrrd", "--rtstruct", f"{tmp_path}/rt.dcm"]) == 2
    assert "--dicom" in capsys.readouterr().err
    assert not (tmp_path / "rt.dcm").exists()


def test_an_export_is_stopped_between_any_two_slices_and_leaves_nothing(tmp_path: Path) -> None:
    labelmap, path = plate(tmp_path)
    path.unlink()
    before = {item.name for item in tmp_path.iterdir()}
    inputs = Inputs(tmp_path / "case.seg.nrrd", tmp_path / "series")
    whole = StopAt()
    export(inputs, Exports(rtstruct=path), whole)
    planes = sum(int(np.ptp(np.nonzero(labelmap.voxels == value)[0])) + 1 for value in (3, 400))
    assert whole.checks >= planes
    path.unlink()
    for point in range(whole.checks):
        with pytest.raises(Cancelled):
            export(inputs, Exports(rtstruct=path), StopAt(point))
        assert {item.name for item in tmp_path.iterdir()} == before


@pytest.mark.slow
def test_plastimatch_fills_the_same_voxels(tmp_path: Path) -> None:
    """A program for radiotherapy that shares no code with ours."""
    program = shutil.which("plastimatch")
    if program is None:
        pytest.skip("no plastimatch: apt-get install plastimatch")
    labelmap, path = plate(tmp_path)
    words = ["convert", "--input", path, "--referenced-ct", tmp_path / "series"]
    out = ["--output-prefix", tmp_path / "masks", "--prefix-format", "nrrd"]
    subprocess.run([program, *words, *out], check=True, capture_output=True)
    by_name = {file.stem: file for file in (tmp_path / "masks").iterdir()}
    for name, value in (("Left kidney", 3), ("Liver", 400)):
        mask = sitk.GetArrayFromImage(sitk.ReadImage(str(by_name[name])))
        np.testing.assert_array_equal(mask, labelmap.voxels == value)

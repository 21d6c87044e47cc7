"""DICOM SEG as labels: those of others as dcmqi reads them, our own as they were, laid onto their series."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

import images
from dicom_files import write_series
from medsegai.cli import main
from medsegai.errors import GeometryError, InputError
from medsegai.io import on_grid, read_labelmap, read_volume, write_segmentation
from medsegai.labels import Label, Terminology

GRID = images.geometry("oblique")
LABELMAP = images.blobs(GRID)
CODES = Terminology(
    ("SCT", "123037004", "Anatomical Structure"), ("SCT", "10200004", "Liver"), None
)
LABELS = tuple(Label(value, f"Part {value}", (9, 99, 199), CODES) for value in (1, 2, 3))


@pytest.fixture
def seg(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A SEG of `LABELMAP` beside its series, by highdicom; only slices with labels have frames."""
    pytest.importorskip("highdicom")
    write_series(tmp_path / "series", images.numbered(GRID))
    write_segmentation(tmp_path / "a.seg.nrrd", LABELMAP, LABELS)
    encoding = getattr(request, "param", "binary")
    words = ["export", "a.seg.nrrd", "--dicom", "series", "--seg", "a.dcm", "--encoding", encoding]
    words = [str(tmp_path / word) if "." in word or word == "series" else word for word in words]
    assert main([*words, "-q"]) == 0
    return tmp_path / "a.dcm"


@pytest.mark.parametrize("seg", ["binary", "labelmap"], indirect=True)
def test_our_own_are_read_as_they_were(seg: Path) -> None:
    found, labels = read_labelmap(seg)
    assert [(label.value, label.name, label.terminology) for label in labels] == [
        (label.value, label.name, label.terminology) for label in LABELS
    ]
    series = read_volume(seg.parent / "series")
    assert series.frame_of_reference == found.frame_of_reference != ""
    placed = on_grid(found, series.geometry, frame_of_reference=series.frame_of_reference)
    np.testing.assert_array_equal(placed.voxels, LABELMAP.voxels)
    assert placed.geometry.matches(GRID, 1e-3)


def test_another_frame_of_reference_does_not_count(seg: Path) -> None:
    """A SEG of a part of the slices lies on a smaller grid; another patient's series may contain it."""
    found, _ = read_labelmap(seg)
    assert found.geometry.shape[0] < GRID.shape[0]
    with pytest.raises(GeometryError, match="does not lie on the grid"):
        on_grid(found, GRID, frame_of_reference="1.2.3")


def test_commands_take_it(seg: Path, capsys: pytest.CaptureFixture[str]) -> None:
    series = str(seg.parent / "series")
    assert main(["measure", str(seg), "--image", series]) == 0
    table = capsys.readouterr().out
    assert all(label.name in table for label in LABELS)
    out = seg.parent / "refined.seg.nrrd"
    assert main(["refine", str(seg), "--refinement", "islands", "-o", str(out), "-q"]) == 0
    assert [label.name for label in read_labelmap(out)[1]] == [label.name for label in LABELS]
    assert (
        main(["export", str(seg), "--dicom", series, "--csv", str(seg.parent / "t.csv"), "-q"]) == 0
    )


WITNESSES = {
    "liver.dcm": "liver_seg.nrrd",
    "sparse-labelmap-noppv.dcm": "sparse_labelmap_noppv_seg.nrrd",
    "sparse-labelmap-ppv5.dcm": "sparse_labelmap_ppv5_seg.nrrd",
}


@pytest.mark.parametrize("name", WITNESSES)
def test_those_of_others_are_read_as_dcmqi_reads_them(shared_data: Path, name: str) -> None:
    folder = shared_data / "dicom-seg-examples"
    found, labels = read_labelmap(folder / name)
    witness, _ = read_labelmap(folder / WITNESSES[name])
    frame = found.frame_of_reference
    placed = on_grid(found, witness.geometry, frame_of_reference=frame)
    np.testing.assert_array_equal(placed.voxels == 1, witness.voxels == 1)
    assert [label.name for label in labels] == ["Liver"]


def test_segments_that_overlap_are_refused(shared_data: Path) -> None:
    with pytest.raises(InputError, match="its segments overlap"):
        read_labelmap(shared_data / "dicom-seg-examples" / "partial_overlaps.dcm")


def test_fractional_segments_and_a_cut_file_are_refused(seg: Path) -> None:
    head = pydicom.dcmread(seg)
    head.SegmentationType = "FRACTIONAL"
    head.save_as(seg.parent / "f.dcm")
    with pytest.raises(InputError, match="type FRACTIONAL; only BINARY and LABELMAP"):
        read_labelmap(seg.parent / "f.dcm")
    seg.write_bytes(seg.read_bytes()[:-9])
    with pytest.raises(InputError, match=r"a\.dcm: the header promises"):
        read_labelmap(seg)


def of_first_frame(name: str) -> Callable[[Dataset], None]:
    """Takes a macro away from what the first frame says."""
    return lambda head: delattr(head.PerFrameFunctionalGroupsSequence[0], name)


DAMAGE: dict[str, tuple[Callable[[Dataset], object], str]] = {
    "no segments": (lambda head: delattr(head, "SegmentSequence"), "it lacks SegmentSequence"),
    "no segment of a frame": (
        of_first_frame("SegmentIdentificationSequence"),
        "it lacks ReferencedSegmentNumber",
    ),
    "no place of a frame": (
        of_first_frame("PlanePositionSequence"),
        "it lacks ImagePositionPatient",
    ),
    "a frame too few": (lambda head: head.PerFrameFunctionalGroupsSequence.pop(), "frames"),
    "larger frames": (lambda head: setattr(head, "Rows", head.Rows + 50), "header promises"),
    "fewer pixels": (lambda head: setattr(head, "PixelData", head.PixelData[:-8]), "promises"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_segmentation_that_is_not_whole_says_what_it_lacks(seg: Path, name: str) -> None:
    spoil, reason = DAMAGE[name]
    head = pydicom.dcmread(seg)
    spoil(head)
    head.save_as(seg)
    with pytest.raises(InputError, match=reason) as caught:
        read_labelmap(seg)
    assert str(seg) in str(caught.value)


def test_a_segmentation_is_no_scan(seg: Path) -> None:
    with pytest.raises(InputError, match=r"is a DICOM segmentation .*name the series"):
        read_volume(seg)


def test_frames_beside_the_grid_are_refused(seg: Path) -> None:
    head = pydicom.dcmread(seg)
    place = head.PerFrameFunctionalGroupsSequence[-1].PlanePositionSequence[0]
    place.ImagePositionPatient = [part + 0.9 for part in place.ImagePositionPatient]
    head.save_as(seg)
    with pytest.raises(GeometryError, match="not lie on a regular grid"):
        read_labelmap(seg)

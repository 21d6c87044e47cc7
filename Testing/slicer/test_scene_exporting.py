"""A segmentation of the scene as the worker hands it over: voxels, codes, who made what, and what cannot be."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from slicer.util import arrayFromVolume, updateVolumeFromArray, vtkMatrixFromArray

from dicom_files import write_series
from medsegai.errors import InputError
from medsegai.io import read_volume
from medsegai.labels import Terminology
from medsegai.progress import Progress
from medsegai.volume import Geometry, Volume
from medsegai.worker.measure_and_export_jobs import export_segments, measure_segments
from MedSegAILib.scene import ReviewState, Scene
from MedSegAILib.scene.segments import label_of
from scene_images import (
    LEFT,
    LEFT_ID,
    MOVED,
    PLACES,
    SHAPE,
    STEM,
    STEM_ID,
    add_volume,
    paint,
    result_for,
    two_blocks,
)

RUN = {"models": [{"id": "brain", "version": "0.2.0"}]}


def segmented(mrml: Any, place: str = "oblique", moved: str = "turned") -> tuple[Scene, Any, Any]:
    volume = add_volume(mrml, PLACES[place], MOVED[moved])
    scene = Scene(mrml)
    result = result_for(scene.read(volume), two_blocks())
    result = dataclasses.replace(result, provenance=RUN, warnings=("Thick slices.",))
    return scene, volume, scene.write(volume, result)


@pytest.mark.parametrize("place", ["mirrored", "oblique", "oblique and swapped"])
def test_the_labels_lie_on_the_voxels_of_the_scan(mrml: Any, place: str) -> None:
    scene, volume, node = segmented(mrml, place)
    request = scene.exported(node, {"report": "r.html"}).request
    np.testing.assert_array_equal(request.labelmap.voxels, two_blocks())
    np.testing.assert_allclose(request.labelmap.geometry.ijk_to_ras, PLACES[place])
    assert request.image is not None
    np.testing.assert_array_equal(request.image.voxels, arrayFromVolume(volume))
    assert request.image.geometry.matches(request.labelmap.geometry)
    assert [(label.value, label.name, label.color) for label in request.labels] == [
        (label.value, label.name, label.color) for label in (LEFT, STEM)
    ]
    assert request.labels[0].terminology == LEFT.terminology
    assert request.outputs == {"report": str(Path("r.html").absolute())}
    assert request.run["provenance"]["models"] == RUN["models"]
    assert (request.touched, request.drawn, request.warnings) == ((), (), ())


def test_who_made_what(mrml: Any) -> None:
    scene, volume, node = segmented(mrml)
    mine = two_blocks() == LEFT.value
    mine[0, :2, :5] = True
    paint(node, LEFT_ID, mine, volume)
    scene.set_review_state(node, STEM_ID, ReviewState.COMPLETED)
    node.GetSegmentation().AddEmptySegment("mine", "Lesion")
    lesion = np.zeros(SHAPE, bool)
    lesion[6, 8, 11] = True
    lesion &= two_blocks() == 0
    if not lesion.any():
        lesion[0, -1, -1] = True
    paint(node, "mine", lesion, volume)
    request = scene.exported(node, {"csv": "t.csv"}).request
    assert request.touched == (LEFT.value, STEM.value)
    (drawn,) = request.drawn
    assert drawn not in (LEFT.value, STEM.value)
    assert np.count_nonzero(request.labelmap.voxels == drawn) == lesion.sum()


def test_segments_that_overlap_are_refused_by_name(mrml: Any) -> None:
    scene, volume, node = segmented(mrml)
    node.GetSegmentation().AddEmptySegment("mine", "Lesion")
    paint(node, "mine", two_blocks() == STEM.value, volume)
    with pytest.raises(InputError, match="Brain-Stem and Lesion overlap"):
        scene.exported(node, {"csv": "t.csv"})
    measured = scene.measurable(node)  # but they can be measured
    rows = measure_segments(measured.request, Progress()).rows
    assert rows[-1]["voxels"] == (two_blocks() == STEM.value).sum()


def test_what_has_no_voxels_is_refused(mrml: Any) -> None:
    empty = mrml.AddNewNodeByClass("vtkMRMLSegmentationNode", "Empty")
    with pytest.raises(InputError, match="Empty does not have voxels"):
        Scene(mrml).exported(empty, {"csv": "t.csv"})
    with pytest.raises(InputError, match="no segmentation"):
        Scene(mrml).exported(None, {"csv": "t.csv"})


def test_a_scan_that_is_gone_or_on_other_voxels(mrml: Any) -> None:
    scene, volume, node = segmented(mrml, "plain", "no transform")
    fine = mrml.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "Fine")
    updateVolumeFromArray(fine, np.kron(arrayFromVolume(volume), np.ones((2, 2, 2), np.int16)))
    place = np.diag([0.5, 0.5, 0.5, 1.0])
    place[:3, 3] = -0.25
    fine.SetIJKToRASMatrix(vtkMatrixFromArray(place))
    node.SetNodeReferenceID(node.GetReferenceImageGeometryReferenceRole(), fine.GetID())
    request = scene.exported(node, {"csv": "t.csv"}).request
    assert request.image is None
    assert "does not have the voxels of Fine" in request.warnings[0]
    np.testing.assert_array_equal(request.labelmap.voxels, two_blocks())
    with pytest.raises(InputError, match="cannot become its DICOM SEG"):
        scene.exported(node, {"seg": "s.dcm"}, ("folder", "1.2.3"))
    mrml.RemoveNode(fine)
    assert "not in the scene" in scene.exported(node, {"csv": "t.csv"}).request.warnings[0]


@pytest.mark.parametrize("place", ["plain", "mirrored", "oblique", "oblique and swapped"])
def test_a_dicom_seg_of_a_volume_under_a_transform(mrml: Any, tmp_path: Path, place: str) -> None:
    """The series knows of no transform in the scene, and so the SEG must lie where the series does."""
    pytest.importorskip("highdicom")
    scene, volume, node = segmented(mrml, place, "turned")
    image = Volume(arrayFromVolume(volume), Geometry(SHAPE, PLACES[place]))
    write_series(tmp_path / "series", image)
    stored = read_volume(tmp_path / "series").geometry
    if place == "mirrored":
        assert not stored.matches(image.geometry), "the series is read in another order of slices"
    outputs = {"seg": str(tmp_path / "s.dcm"), "sr": str(tmp_path / "r.dcm")}
    uid = pydicom.dcmread(next((tmp_path / "series").iterdir())).SeriesInstanceUID
    request = scene.exported(node, outputs, (str(tmp_path / "series"), uid)).request
    export_segments(request, Progress())
    dataset = pydicom.dcmread(tmp_path / "s.dcm")
    left, _stem = dataset.SegmentSequence
    assert (left.SegmentLabel, left.SegmentAlgorithmType) == (LEFT.name, "AUTOMATIC")
    assert left.SegmentationAlgorithmIdentificationSequence[0].AlgorithmName == "brain"
    frames = dataset.pixel_array.reshape(-1, *SHAPE[1:])
    assert frames.sum() == np.count_nonzero(two_blocks())
    for frame, group in zip(frames, dataset.PerFrameFunctionalGroupsSequence, strict=True):
        x, y, z = group.PlanePositionSequence[0].ImagePositionPatient
        k = round((image.geometry.ras_to_ijk @ [-x, -y, z, 1])[2])
        number = group.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        value = (LEFT.value, STEM.value)[number - 1]
        np.testing.assert_array_equal(frame > 0, two_blocks()[k] == value)


def test_codes_come_back_from_slicers_words(mrml: Any) -> None:
    codes = Terminology(
        ("SCT", "123037004", "Anatomical Structure"), ("SCT", "64033007", "Kidney"),
        ("SCT", "7771000", "Left"),
    )  # fmt: skip
    assert Terminology.from_slicer(codes.to_slicer()) == codes
    plain = dataclasses.replace(codes, modifier=None)
    assert Terminology.from_slicer(plain.to_slicer()) == plain
    for text in ("", "nonsense", "a~b~c~d", "a~^^~SCT^1^One~^^"):
        assert Terminology.from_slicer(text) is None
    _, _, node = segmented(mrml)
    node.GetSegmentation().AddEmptySegment("mine", "Lesion")
    assert label_of(node, "mine", 7).terminology is None


def test_a_scan_that_merely_contains_the_grid_of_the_labels_is_not_theirs(mrml: Any) -> None:
    """It may be that of a neighbour: no DICOM SEG of it, and its grey values are reported as such."""
    scene, volume, node = segmented(mrml, "plain", "no transform")
    larger = mrml.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "Neighbour")
    updateVolumeFromArray(larger, np.pad(arrayFromVolume(volume), 2, mode="edge"))
    place = np.array(PLACES["plain"], dtype=float)
    place[:3, 3] = (place @ [-2, -2, -2, 1])[:3]
    larger.SetIJKToRASMatrix(vtkMatrixFromArray(place))
    assert scene.measurable(node).note == ""
    node.SetNodeReferenceID(node.GetReferenceImageGeometryReferenceRole(), larger.GetID())
    with pytest.raises(InputError, match="cannot become its DICOM SEG"):
        scene.exported(node, {"seg": "s.dcm"}, ("folder", "1.2.3"))
    request = scene.exported(node, {"csv": "t.csv"}).request
    assert request.image is None
    assert request.labelmap.voxels.shape == SHAPE
    assert "does not have the voxels of Neighbour" in request.warnings[0]
    assert "check that it is the scan that was segmented" in scene.measurable(node).note

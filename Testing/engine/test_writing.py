"""Results lie on their scan, voxel for voxel, for every program that opens them."""

from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path
from typing import Any

import nibabel
import nrrd
import numpy as np
import pytest
import SimpleITK as sitk
import slicerio

import images
from medsegai.errors import OutputError
from medsegai.io import (
    WRITABLE,
    read_labelmap,
    read_volume,
    write_probabilities,
    write_segmentation,
    write_volume,
)
from medsegai.labels import Label, Terminology
from medsegai.volume import Geometry, Volume

MICROMETRE = 1e-3
PLAIN = [ending for ending in WRITABLE if ending != ".seg.nrrd"]
ITKS = [ending for ending in PLAIN if ending != ".mgz"]
"""What ITK reads; nibabel is the witness of the other."""
ANATOMY = ("SCT", "123037004", "Anatomical Structure")
LABELS = (
    Label(
        1,
        "Left hippocampus",
        (220, 216, 20),
        Terminology(ANATOMY, ("SCT", "5366008", "Hippocampus"), ("SCT", "7771000", "Left")),
    ),
    Label(2, "Brain stem", (119, 159, 176), Terminology(ANATOMY, ("SCT", "15926001", "Brainstem"))),
    Label(9, "Not found", (1, 2, 3)),
    Label(3, "Läsion, größte", (255, 0, 128)),
)


@pytest.mark.parametrize("ending", PLAIN)
@pytest.mark.parametrize("name", images.DIRECTIONS)
def test_a_volume_lies_where_the_witnesses_say(tmp_path: Path, name: str, ending: str) -> None:
    path = tmp_path / f"map{ending}"
    volume = images.numbered(images.geometry(name), "float32")
    write_volume(path, volume)
    expected = images.positions(volume)
    assert images.apart(images.positions(read_volume(path)), expected) < MICROMETRE
    if ending in ITKS:
        assert images.apart(images.positions_by_itk(path), expected) < MICROMETRE
    if ".nii" in ending or ending == ".mgz":
        assert images.apart(images.positions_by_nibabel(path), expected) < MICROMETRE


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("name", images.DIRECTIONS)
def test_both_nifti_matrices_hold_the_place(tmp_path: Path, name: str, ending: str) -> None:
    """FSL and FreeSurfer read one, ITK perhaps the other."""
    path = tmp_path / f"map{ending}"
    write_volume(path, images.numbered(images.geometry(name)))
    header = nibabel.load(path).header
    for matrix, code in (header.get_sform(coded=True), header.get_qform(coded=True)):
        assert code == 1
        np.testing.assert_allclose(matrix, images.matrix_ras(name), atol=1e-5)
    assert header.get_xyzt_units()[0] == "mm"
    assert nibabel.load(path).get_data_dtype() == np.int16


DTYPES = ["uint8", "int8", "uint16", "int16", "uint32", "int32", "int64", "float32", "float64"]


@pytest.mark.parametrize("dtype", [*DTYPES, "bool", "float16", ">i2", ">f4"])
@pytest.mark.parametrize("ending", ITKS)
def test_values_survive_in_every_type(tmp_path: Path, dtype: str, ending: str) -> None:
    path = tmp_path / f"map{ending}"
    voxels = (np.arange(60).reshape(3, 4, 5) % 100).astype(dtype)
    write_volume(path, Volume(voxels, Geometry((3, 4, 5), np.eye(4))))
    back = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    kept = {"bool": "uint8", "float16": "float32"}.get(dtype, np.dtype(dtype).newbyteorder("="))
    assert back.dtype == kept
    np.testing.assert_array_equal(back, voxels)


@pytest.mark.parametrize("dtype", [*DTYPES, "bool", "float16", ">i2", ">f4"])
def test_values_survive_in_the_types_that_mgz_has(tmp_path: Path, dtype: str) -> None:
    """FreeSurfer knows four; whole numbers below 2^24 are exact in all of them, and others are no labels."""
    path = tmp_path / "map.mgz"
    highest = {"uint8": 255, "int8": 127, "bool": 1, "float16": 2048}.get(dtype, 30_000)
    voxels = np.linspace(0, highest, 60).astype(dtype).reshape(3, 4, 5)
    write_volume(path, Volume(voxels, Geometry((3, 4, 5), np.eye(4))))
    back = nibabel.load(path)
    assert back.get_data_dtype().newbyteorder("=") in ("uint8", "int16", "int32", "float32")
    np.testing.assert_array_equal(np.asarray(back.dataobj).T, voxels.astype(np.float32))


def test_maps_may_hold_nan(tmp_path: Path) -> None:
    """The entropy outside the scan, for example."""
    for ending in PLAIN:
        voxels = np.full((3, 4, 5), np.nan, dtype=np.float32)
        voxels[1, 1, 1] = 0.5
        path = tmp_path / f"map{ending}"
        write_volume(path, Volume(voxels, Geometry((3, 4, 5), np.eye(4))))
        if ending not in ITKS or ".nii" in ending:  # where ITK reads NaN as zero
            back = np.asarray(nibabel.load(path).dataobj).T
        else:
            back = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
        np.testing.assert_array_equal(back, voxels)


@pytest.mark.parametrize("ending", WRITABLE)
@pytest.mark.parametrize("name", images.DIRECTIONS)
def test_a_labelmap_comes_back(tmp_path: Path, name: str, ending: str) -> None:
    path = tmp_path / f"labels{ending}"
    labelmap = images.blobs(images.geometry(name))
    write_segmentation(path, labelmap, LABELS)
    back, labels = read_labelmap(path)
    np.testing.assert_array_equal(back.voxels, labelmap.voxels)
    assert back.geometry.matches(labelmap.geometry, 1e-4)
    if ending == ".seg.nrrd":
        assert labels == LABELS
    else:
        assert [label.value for label in labels] == [1, 2, 3]


@pytest.mark.parametrize("name", images.DIRECTIONS)
def test_segments_lie_where_itk_says(tmp_path: Path, name: str) -> None:
    path = tmp_path / "labels.seg.nrrd"
    volume = images.numbered(images.geometry(name))
    labels = [
        Label(value, f"Voxel {value}", (9, 9, 9)) for value in range(1, volume.voxels.size + 1)
    ]
    write_segmentation(path, volume, labels)
    assert images.apart(images.positions_by_itk(path), images.positions(volume)) < 1e-6


def test_pynrrd_reads_the_header_that_slicer_needs(tmp_path: Path) -> None:
    path = tmp_path / "labels.seg.nrrd"
    write_segmentation(path, images.blobs(images.geometry("oblique")), LABELS)
    voxels, header = nrrd.read(str(path))
    assert header["kinds"] == ["domain"] * 3
    assert header["space"] == "left-posterior-superior"
    assert header["encoding"] == "gzip"
    assert voxels.dtype == np.uint8
    assert header["Segment0_ID"] == "Segment_1"
    assert header["Segment2_Name"] == "Not found"
    assert header["Segment2_LabelValue"] == "9"
    assert header["Segment0_Extent"] == "0 4 0 5 0 6"
    assert header["Segmentation_MasterRepresentation"] == "Binary labelmap"
    assert all(header[f"Segment{number}_Layer"] == "0" for number in range(4))


def test_slicerio_reads_names_colours_and_codes(tmp_path: Path) -> None:
    path = tmp_path / "labels.seg.nrrd"
    write_segmentation(path, images.blobs(images.geometry("oblique")), LABELS)
    segments = slicerio.read_segmentation(str(path))["segments"]
    assert [segment["labelValue"] for segment in segments] == [1, 2, 9, 3]
    assert segments[1]["name"] == "Brain stem"
    np.testing.assert_allclose(segments[1]["color"], np.array([119, 159, 176]) / 255)
    assert tuple(segments[0]["terminology"]["type"]) == ("SCT", "5366008", "Hippocampus")
    assert tuple(segments[0]["terminology"]["typeModifier"]) == ("SCT", "7771000", "Left")
    assert "terminology" not in segments[2]


def test_labels_beyond_255_are_kept(tmp_path: Path) -> None:
    labelmap = images.blobs(images.geometry("oblique"))
    labelmap = labelmap.with_voxels(labelmap.voxels.astype(np.int32) * 1000)
    labels = [Label(1000 * value, f"Region {value}", (9, 9, 9)) for value in (1, 2, 3)]
    for ending in WRITABLE:
        path = tmp_path / f"labels{ending}"
        write_segmentation(path, labelmap, labels)
        if ending == ".mgz":
            written = np.asarray(nibabel.load(path).dataobj).T
            assert written.dtype.newbyteorder("=") == np.int32, "FreeSurfer has no uint16"
        else:
            written = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
            assert written.dtype == np.uint16
        np.testing.assert_array_equal(written, labelmap.voxels)


@pytest.mark.parametrize(
    ("voxels", "labels", "reason"),
    [
        (np.full((2, 3, 4), 7, np.uint8), LABELS, "values without a label: 7"),
        (np.full((2, 3, 4), -1, np.int16), LABELS, "values without a label: -1"),
        (np.full((2, 3, 4), 1.0, np.float32), LABELS, "labelmap of type float32"),
        (np.ones((2, 3, 4), np.uint8), (LABELS[0], LABELS[0]), "two labels have the same value"),
    ],
)
def test_a_labelmap_must_be_explained(
    tmp_path: Path, voxels: np.ndarray, labels: tuple[Label, ...], reason: str
) -> None:
    volume = Volume(voxels, Geometry((2, 3, 4), np.eye(4)))
    for ending in WRITABLE:
        path = tmp_path / f"labels{ending}"
        with pytest.raises(OutputError, match=reason):
            write_segmentation(path, volume, labels)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def slicer_core() -> Any:
    """The real MRML of Slicer, with the converters whose parameters a segmentation file holds."""
    slicer = pytest.importorskip("slicer", reason="slicer-core is not installed")
    factory = slicer.vtkSegmentationConverterFactory.GetInstance()
    factory.RegisterConverterRule(slicer.vtkBinaryLabelmapToClosedSurfaceConversionRule())
    factory.RegisterConverterRule(slicer.vtkClosedSurfaceToBinaryLabelmapConversionRule())
    return slicer


def load_in_slicer(slicer: Any, path: Path) -> tuple[Any, Any]:
    scene = slicer.vtkMRMLScene()
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode")
    storage = slicer.vtkMRMLSegmentationStorageNode()
    storage.SetFileName(str(path))
    scene.AddNode(storage)
    assert storage.ReadData(node) == 1
    return scene, node


@pytest.mark.parametrize("name", images.DIRECTIONS)
def test_slicer_opens_segments_in_their_place(tmp_path: Path, slicer_core: Any, name: str) -> None:
    from vtk.util.numpy_support import vtk_to_numpy

    path = tmp_path / "labels.seg.nrrd"
    labelmap = images.blobs(images.geometry(name))
    write_segmentation(path, labelmap, LABELS)
    scene, node = load_in_slicer(slicer_core, path)
    segmentation = node.GetSegmentation()
    assert segmentation.GetNumberOfSegments() == len(LABELS)
    for number, label in enumerate(LABELS):
        image = slicer_core.vtkOrientedImageData()
        identifier = segmentation.GetNthSegmentID(number)
        assert node.GetBinaryLabelmapRepresentation(identifier, image)
        first_i, last_i, first_j, last_j, first_k, last_k = image.GetExtent()
        shape = last_k - first_k + 1, last_j - first_j + 1, last_i - first_i + 1
        mask = vtk_to_numpy(image.GetPointData().GetScalars()).reshape(shape) > 0
        found = _world(image, np.argwhere(mask)[:, ::-1] + [first_i, first_j, first_k])
        expected = {
            tuple(np.round((images.matrix_ras(name) @ [i, j, k, 1])[:3], 3) + 0.0)
            for k, j, i in np.argwhere(labelmap.voxels == label.value)
        }
        assert found == expected
        assert bool(expected) == (label.name != "Not found")
    scene.Clear(True)


def _world(image: Any, indices: np.ndarray) -> set[tuple[float, ...]]:
    import vtk

    matrix = vtk.vtkMatrix4x4()
    image.GetImageToWorldMatrix(matrix)
    points = (np.array(matrix.MultiplyPoint([*map(float, index), 1.0])) for index in indices)
    return {tuple(np.round(point[:3], 3) + 0.0) for point in points}


def test_slicer_knows_names_colours_codes_and_grid(tmp_path: Path, slicer_core: Any) -> None:
    path = tmp_path / "labels.seg.nrrd"
    labelmap = images.blobs(images.geometry("oblique"))
    write_segmentation(path, labelmap, LABELS)
    scene, node = load_in_slicer(slicer_core, path)
    segmentation = node.GetSegmentation()
    for number, label in enumerate(LABELS):
        segment = segmentation.GetNthSegment(number)
        assert segment.GetName() == label.name
        np.testing.assert_allclose(segment.GetColor(), np.array(label.color) / 255)
        assert segment.GetLabelValue() == label.value
        if label.terminology is None:
            assert "SCT^85756007^Tissue" in _tag(segment)  # what Slicer gives to the nameless
        else:
            assert _tag(segment) == label.terminology.to_slicer()
    parts = segmentation.GetConversionParameter("Reference image geometry").split(";")
    matrix = np.array(parts[:16], dtype=float).reshape(4, 4)
    np.testing.assert_allclose(matrix, images.matrix_ras("oblique"))
    assert parts[16:22] == ["0", "4", "0", "5", "0", "6"]
    scene.Clear(True)


def _tag(segment: Any) -> str:
    import vtk

    text = vtk.reference("")
    segment.GetTag(segment.GetTerminologyEntryTagName(), text)
    return str(text)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_probabilities_are_one_volume_per_label(tmp_path: Path, dtype: str, ending: str) -> None:
    path = tmp_path / f"probabilities{ending}"
    grid = images.geometry("oblique and mirrored")
    values = np.random.default_rng(0).random((4, *grid.shape)).astype(dtype)
    values[:, 0, 0, 0] = [0, 1, 0.5, 0]
    write_probabilities(path, values, grid, LABELS)
    image = nibabel.load(path)
    assert image.shape == (5, 6, 7, 4)
    np.testing.assert_allclose(image.affine, images.matrix_ras("oblique and mirrored"), atol=1e-5)
    itk = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    for number in range(4):
        read = np.asarray(image.dataobj[..., number]).T
        np.testing.assert_allclose(read, values[number], atol=8e-6)
        np.testing.assert_allclose(itk[number], values[number], atol=8e-6)
    assert np.asarray(image.dataobj)[0, 0, 0].tolist() == pytest.approx([0, 1, 0.5, 0], abs=8e-6)
    (comment,) = image.header.extensions
    named = json.loads(comment.get_content())
    assert [item["value"] for item in named] == [1, 2, 9, 3]
    assert named[3] == {"index": 3, "value": 3, "name": "Läsion, größte"}


def test_one_label_is_still_one_volume(tmp_path: Path) -> None:
    grid = images.geometry("straight")
    values = np.full((1, *grid.shape), 0.25, dtype=np.float32)
    values[0, 0] = 0.75
    write_probabilities(tmp_path / "one.nii.gz", values, grid, LABELS[:1])
    assert read_volume(tmp_path / "one.nii.gz").voxels[0, 0, 0] == pytest.approx(0.75, abs=8e-6)


def test_probabilities_must_fit(tmp_path: Path) -> None:
    grid = images.geometry("straight")
    with pytest.raises(OutputError, match="do not fit 4 labels on a grid"):
        write_probabilities(tmp_path / "p.nii", np.zeros((3, *grid.shape)), grid, LABELS)
    with pytest.raises(OutputError, match=r"p\.nrrd: cannot write this type.*\.nii\.gz, \.nii"):
        write_probabilities(tmp_path / "p.nrrd", np.zeros((4, *grid.shape)), grid, LABELS)
    assert list(tmp_path.iterdir()) == []


def test_equal_results_are_equal_files(tmp_path: Path) -> None:
    """So that reports of two runs can be compared by their hashes."""
    hashes = set()
    for name in ("a.nii.gz", "b.nii.gz"):
        write_segmentation(tmp_path / name, images.blobs(images.geometry("oblique")), LABELS)
        hashes.add(hashlib.sha256((tmp_path / name).read_bytes()).hexdigest())
    assert len(hashes) == 1


@pytest.mark.parametrize("ending", WRITABLE)
def test_endings_may_be_capitals(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"LABELS{ending.upper()}"
    write_segmentation(path, images.blobs(images.geometry("oblique")), LABELS)
    assert list(tmp_path.iterdir()) == [path]
    labelmap, labels = read_labelmap(path)
    np.testing.assert_array_equal(labelmap.voxels, images.blobs(images.geometry("oblique")).voxels)
    assert (labels == LABELS) == (ending == ".seg.nrrd")


def test_a_real_labelmap_keeps_its_grid(shared_data: Path, tmp_path: Path) -> None:
    original = shared_data / "totalsegmentator-examples" / "example_seg.nii.gz"
    labelmap, labels = read_labelmap(original)
    for ending in (".seg.nrrd", ".nii.gz"):
        write_segmentation(tmp_path / f"copy{ending}", labelmap, labels)
        back = sitk.ReadImage(str(tmp_path / f"copy{ending}"))
        witness = sitk.ReadImage(str(original))
        assert np.array_equal(
            sitk.GetArrayFromImage(back), sitk.GetArrayFromImage(witness).astype(np.uint8)
        )
        np.testing.assert_allclose(back.GetOrigin(), witness.GetOrigin(), atol=1e-3)
        np.testing.assert_allclose(back.GetDirection(), witness.GetDirection(), atol=1e-5)


def test_the_gzip_header_names_no_file_and_no_time(tmp_path: Path) -> None:
    path = tmp_path / "patient-name.nii.gz"
    write_volume(path, images.numbered(images.geometry("straight")))
    data = path.read_bytes()
    assert data[3] == 0  # no name, no comment
    assert data[4:8] == b"\0\0\0\0"  # no time
    assert len(gzip.decompress(data)) == 352 + 2 * 7 * 6 * 5

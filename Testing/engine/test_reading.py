"""Every format puts every voxel where nibabel and ITK, independent of each other, put it."""

from __future__ import annotations

import gzip
import itertools
import logging
import struct
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

import images
from medsegai.errors import GeometryError, InputError
from medsegai.io import from_sitk, read_volume, to_sitk
from medsegai.volume import Volume

MICROMETRE = 1e-3


def save_nifti(path: Path, name: str, kind: type = nibabel.Nifti1Image) -> None:
    voxels = images.numbered(images.geometry(name)).voxels
    image = kind(voxels.T, images.matrix_ras(name))
    if kind is not nibabel.MGHImage:  # which is always in mm
        image.header.set_xyzt_units("mm")
    image.to_filename(path)


def itk_image(name: str, dtype: str = "int16") -> sitk.Image:
    """The numbered image of a grid, put together with ITK alone."""
    image = sitk.GetImageFromArray(images.numbered(images.geometry(name), dtype).voxels)
    flip = np.diag([-1.0, -1.0, 1.0])
    image.SetSpacing(images.SPACING_MM)
    image.SetOrigin((flip @ images.ORIGIN_RAS).tolist())
    image.SetDirection((flip @ images.DIRECTIONS[name]).ravel().tolist())
    return image


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("name", images.DIRECTIONS)
def test_nifti_lies_where_both_witnesses_say(tmp_path: Path, name: str, ending: str) -> None:
    path = tmp_path / f"scan{ending}"
    save_nifti(path, name)
    ours = images.positions(read_volume(path))
    assert images.apart(ours, images.positions_by_nibabel(path)) < 1e-6
    assert images.apart(ours, images.positions_by_itk(path)) < MICROMETRE


@pytest.mark.parametrize("name", images.DIRECTIONS)
def test_nifti_written_by_itk(tmp_path: Path, name: str) -> None:
    path = tmp_path / "scan.nii.gz"
    sitk.WriteImage(itk_image(name), str(path))
    ours = images.positions(read_volume(path))
    assert images.apart(ours, images.itk_positions(itk_image(name))) < MICROMETRE
    assert images.apart(ours, images.positions_by_nibabel(path)) < MICROMETRE


@pytest.mark.parametrize("ending", [".nrrd", ".nhdr", ".mha", ".mhd"])
@pytest.mark.parametrize("name", images.DIRECTIONS)
def test_itk_formats_lie_where_itk_says(tmp_path: Path, name: str, ending: str) -> None:
    path = tmp_path / f"scan{ending}"
    sitk.WriteImage(itk_image(name), str(path), useCompression=ending != ".mhd")
    volume = read_volume(path)
    assert images.apart(images.positions(volume), images.positions_by_itk(path)) < 1e-6
    np.testing.assert_allclose(volume.geometry.ijk_to_ras, images.matrix_ras(name), atol=1e-6)


def test_nrrd_in_ras_space_lies_where_its_text_says(tmp_path: Path) -> None:
    """A header written by hand, so that no library's convention stands between text and test."""
    path = tmp_path / "scan.nrrd"
    header = (
        "NRRD0004\ntype: short\ndimension: 3\nspace: right-anterior-superior\nsizes: 4 3 2\n"
        "space directions: (0,2,0) (0,0,-3) (1.5,0,0)\nspace origin: (10,20,30)\n"
        "kinds: domain domain domain\nendian: little\nencoding: raw\n\n"
    )
    path.write_bytes(header.encode() + np.arange(1, 25, dtype="<i2").tobytes())
    placed = images.positions(read_volume(path))
    assert placed[1] == (10.0, 20.0, 30.0)
    assert placed[2] == (10.0, 22.0, 30.0)  # one step along i
    assert placed[5] == (10.0, 20.0, 27.0)  # along j
    assert placed[13] == (11.5, 20.0, 30.0)  # along k


@pytest.mark.parametrize("ending", [".mgh", ".mgz"])
@pytest.mark.parametrize("name", images.DIRECTIONS)
def test_mgh_lies_where_freesurfer_says(tmp_path: Path, name: str, ending: str) -> None:
    path = tmp_path / f"scan{ending}"
    save_nifti(path, name, nibabel.MGHImage)
    volume = read_volume(path)
    assert images.apart(images.positions(volume), images.positions_by_nibabel(path)) < 1e-6
    np.testing.assert_allclose(volume.geometry.ijk_to_ras, _freesurfer_matrix(path), atol=1e-4)


def _freesurfer_matrix(path: Path) -> np.ndarray:
    """vox2ras from the bytes of an MGH header, as FreeSurfer's file format page defines it."""
    data = path.read_bytes()
    header = gzip.decompress(data) if path.suffix == ".mgz" else data
    width, height, depth = struct.unpack(">3i", header[4:16])
    numbers = np.array(struct.unpack(">15f", header[30:90]), dtype=float)
    spacing, directions, center = numbers[:3], numbers[3:12].reshape(3, 3).T, numbers[12:]
    matrix = np.eye(4)
    matrix[:3, :3] = directions * spacing
    matrix[:3, 3] = center - matrix[:3, :3] @ (np.array([width, height, depth]) / 2)
    return matrix


@pytest.mark.parametrize(("sform_code", "qform_code"), list(itertools.product(range(5), range(5))))
def test_the_same_nifti_matrix_counts_as_in_slicer(
    tmp_path: Path, sform_code: int, qform_code: int
) -> None:
    """Slicer reads with ITK. A segmentation on another matrix would lie beside its scan there."""
    path = tmp_path / "scan.nii"
    image = nibabel.Nifti1Image(images.numbered(images.geometry("straight")).voxels.T, None)
    image.header.set_xyzt_units("mm")
    image.header.set_qform(images.matrix_ras("oblique"), qform_code)
    image.header.set_sform(images.matrix_ras("slightly turned"), sform_code)
    image.to_filename(path)
    volume = read_volume(path)
    assert images.apart(images.positions(volume), images.positions_by_itk(path)) < MICROMETRE
    note = " ".join(volume.notes)
    assert ("two different placements" in note) == bool(sform_code and qform_code)
    assert ("Left and right may be swapped" in note) == (sform_code + qform_code == 0)


def test_nifti_matrices_that_mirror_each_other_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "scan.nii"
    image = nibabel.Nifti1Image(images.numbered(images.geometry("straight")).voxels.T, None)
    image.header.set_qform(images.matrix_ras("straight"), 1)
    image.header.set_sform(images.matrix_ras("mirrored"), 1)
    image.to_filename(path)
    with pytest.raises(GeometryError, match=r"scan\.nii.*left and right are unknown"):
        read_volume(path)


@pytest.mark.parametrize(("unit", "code"), [("meter", 1), ("mm", 2), ("micron", 3), ("unknown", 0)])
def test_nifti_units_become_millimetres(tmp_path: Path, unit: str, code: int) -> None:
    path = tmp_path / "scan.nii"
    factor = {"meter": 1e-3, "micron": 1e3}.get(unit, 1.0)
    matrix = np.diag([factor, factor, factor, 1.0]) @ images.matrix_ras("oblique")
    image = nibabel.Nifti1Image(images.numbered(images.geometry("oblique")).voxels.T, matrix)
    image.header["xyzt_units"] = code
    image.to_filename(path)
    ours = images.positions(read_volume(path))
    assert images.apart(ours, images.positions(images.numbered(images.geometry("oblique")))) < 1e-3
    assert images.apart(ours, images.positions_by_itk(path)) < MICROMETRE


def test_a_nifti_matrix_slightly_off_a_rotation_is_kept_as_it_is(tmp_path: Path) -> None:
    """Scanners round; ITK refuses such a matrix, and a snapped one would move the far corner."""
    path = tmp_path / "scan.nii"
    matrix = images.matrix_ras("oblique")
    matrix[0, 1] += 4e-4
    image = nibabel.Nifti1Image(images.numbered(images.geometry("oblique")).voxels.T, None)
    image.header.set_sform(matrix, 1)
    image.to_filename(path)
    np.testing.assert_allclose(read_volume(path).geometry.ijk_to_ras, matrix, atol=1e-5)


@pytest.mark.parametrize("half", ["scan.img", "scan.hdr"])
def test_analyze_is_placed_as_in_slicer_with_a_warning(tmp_path: Path, half: str) -> None:
    image = nibabel.AnalyzeImage(images.numbered(images.geometry("straight")).voxels.T, None)
    image.header.set_zooms(images.SPACING_MM)
    image.to_filename(tmp_path / "scan.img")
    volume = read_volume(tmp_path / half)
    itk = images.positions_by_itk(tmp_path / "scan.hdr")
    assert images.apart(images.positions(volume), itk) < MICROMETRE
    assert "Left and right may be swapped" in volume.notes[0]


def test_a_nifti_pair_is_one_image(tmp_path: Path) -> None:
    save_nifti(tmp_path / "scan.img", "oblique", nibabel.Nifti1Pair)
    volume = read_volume(tmp_path / "scan.hdr")
    expected = images.positions(images.numbered(images.geometry("oblique")))
    assert images.apart(images.positions(volume), expected) < MICROMETRE
    assert volume.notes == ()


def test_nifti_2_is_read(tmp_path: Path) -> None:
    save_nifti(tmp_path / "scan.nii.gz", "oblique", nibabel.Nifti2Image)
    ours = images.positions(read_volume(tmp_path / "scan.nii.gz"))
    assert images.apart(ours, images.positions(images.numbered(images.geometry("oblique")))) < 1e-6


DTYPES = ["uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"]


@pytest.mark.parametrize("dtype", [*DTYPES, "float32", "float64"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_nifti_keeps_the_type_of_its_voxels(tmp_path: Path, dtype: str, order: str) -> None:
    path = tmp_path / "scan.nii"
    voxels = np.arange(60).reshape(3, 4, 5).astype(dtype)
    header = nibabel.Nifti1Header(endianness=order)
    header.set_data_dtype(np.dtype(dtype).newbyteorder(order))
    nibabel.Nifti1Image(voxels.T, np.eye(4), header, dtype=header.get_data_dtype()).to_filename(
        path
    )
    volume = read_volume(path)
    assert volume.voxels.dtype == np.dtype(dtype)
    assert volume.voxels.flags.c_contiguous
    np.testing.assert_array_equal(volume.voxels, voxels)


@pytest.mark.parametrize("dtype", [*DTYPES, "float32", "float64"])
@pytest.mark.parametrize("ending", [".nrrd", ".mha"])
def test_itk_formats_keep_the_type_of_their_voxels(tmp_path: Path, dtype: str, ending: str) -> None:
    path = tmp_path / f"scan{ending}"
    voxels = np.arange(60).reshape(3, 4, 5).astype(dtype)
    sitk.WriteImage(sitk.GetImageFromArray(voxels), str(path))
    volume = read_volume(path)
    assert volume.voxels.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(volume.voxels, voxels)


@pytest.mark.parametrize(("slope", "intercept"), [(1.0, -1024.0), (0.5, 3.0), (-2.0, 0.0)])
def test_scaled_nifti_becomes_float32(tmp_path: Path, slope: float, intercept: float) -> None:
    path = tmp_path / "scan.nii.gz"
    stored = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    image = nibabel.Nifti1Image(stored.T, np.eye(4))
    image.header.set_slope_inter(slope, intercept)
    image.to_filename(path)
    raw = bytearray(gzip.decompress(path.read_bytes()))
    raw[112:120] = struct.pack("<2f", slope, intercept)  # nibabel resets them on writing
    raw[352:] = stored.tobytes()
    path.write_bytes(gzip.compress(bytes(raw)))
    volume = read_volume(path)
    assert volume.voxels.dtype == np.float32
    np.testing.assert_array_equal(volume.voxels, stored * slope + intercept)
    np.testing.assert_array_equal(
        volume.voxels, sitk.GetArrayFromImage(sitk.ReadImage(str(path))).astype(np.float32)
    )


def test_trailing_axes_of_one_element_are_dropped(tmp_path: Path) -> None:
    voxels = images.numbered(images.geometry("oblique")).voxels
    matrix = images.matrix_ras("oblique")
    nibabel.Nifti1Image(voxels.T[..., None, None], matrix).to_filename(tmp_path / "scan.nii")
    sitk.WriteImage(sitk.JoinSeries([itk_image("oblique")]), str(tmp_path / "scan.mha"))
    sitk.WriteImage(sitk.JoinSeries([itk_image("oblique")]), str(tmp_path / "scan.nrrd"))
    expected = images.positions(images.numbered(images.geometry("oblique")))
    for name in ("scan.nii", "scan.mha", "scan.nrrd"):
        assert images.apart(images.positions(read_volume(tmp_path / name)), expected) < MICROMETRE


@pytest.mark.parametrize("name", images.DIRECTIONS)
def test_itk_images_and_volumes_are_one_thing(name: str) -> None:
    volume = images.numbered(images.geometry(name))
    image = to_sitk(volume)
    assert images.apart(images.positions(volume), images.itk_positions(image)) < 1e-9
    back = from_sitk(image)
    np.testing.assert_array_equal(back.voxels, volume.voxels)
    np.testing.assert_allclose(back.geometry.ijk_to_ras, volume.geometry.ijk_to_ras, atol=1e-9)


@pytest.mark.parametrize(("dtype", "becomes"), [("bool", "uint8"), ("float16", "float32")])
def test_types_that_itk_lacks_are_widened(dtype: str, becomes: str) -> None:
    volume = images.numbered(images.geometry("straight"))
    volume = volume.with_voxels((volume.voxels % 2).astype(dtype))
    image = to_sitk(volume)
    assert sitk.GetArrayFromImage(image).dtype == becomes
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), volume.voxels)


def test_a_vector_image_is_no_volume() -> None:
    with pytest.raises(InputError, match="3 values per voxel"):
        from_sitk(sitk.Image([4, 4, 4], sitk.sitkVectorFloat32, 3))
    with pytest.raises(InputError, match="2D"):
        from_sitk(sitk.Image([4, 4], sitk.sitkFloat32))


@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".mgz", ".nrrd", ".mha"])
def test_endings_may_be_capitals(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"scan{ending}"
    if ending in (".nrrd", ".mha"):
        sitk.WriteImage(itk_image("oblique"), str(path))
    else:
        save_nifti(path, "oblique", nibabel.MGHImage if ending == ".mgz" else nibabel.Nifti1Image)
    expected = read_volume(path)
    volume = read_volume(path.rename(tmp_path / f"SCAN{ending.upper()}"))
    np.testing.assert_array_equal(volume.voxels, expected.voxels)
    assert volume.geometry.matches(expected.geometry, 1e-9)


def test_voxels_are_read_once_and_the_file_let_go(tmp_path: Path) -> None:
    """A memory-mapped scan would change under the engine when its file is written anew."""
    path = tmp_path / "scan.nii"
    save_nifti(path, "straight")
    volume = read_volume(path)
    before = volume.voxels.copy()
    path.write_bytes(b"\0" * path.stat().st_size)
    np.testing.assert_array_equal(volume.voxels, before)


def witness(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Voxels (k, j, i) and RAS matrix of a real scan, by ITK."""
    image = sitk.ReadImage(str(path))
    matrix = np.eye(4)
    matrix[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    matrix[:3, 3] = image.GetOrigin()
    return sitk.GetArrayFromImage(image), np.diag([-1.0, -1.0, 1.0, 1.0]) @ matrix


@pytest.mark.parametrize(
    "name",
    [
        "t1-head/t1_crop.nii.gz",
        "totalsegmentator-examples/example_ct_sm.nii.gz",
        "totalsegmentator-examples/example_mr_sm.nii.gz",
        "malc2012-train/1000_SS.nii.gz",
        "Dataset004_Hippocampus/imagesTr/hippocampus_001_0000.nii.gz",
        "dicom-seg-examples/24x38x3/nrrd/label.nrrd",
    ],
)
def test_real_scans_lie_where_itk_says(shared_data: Path, name: str) -> None:
    volume = read_volume(shared_data / name)
    voxels, matrix = witness(shared_data / name)
    assert np.array_equal(volume.voxels.astype(np.float32), voxels.astype(np.float32))
    np.testing.assert_allclose(volume.geometry.ijk_to_ras, matrix, atol=1e-3)


def test_reading_says_nothing_in_logs(tmp_path: Path, caplog: Any, capfd: Any) -> None:
    save_nifti(tmp_path / "scan.nii", "oblique")
    with caplog.at_level(logging.DEBUG):
        volume = read_volume(str(tmp_path / "scan.nii"))
    assert isinstance(volume, Volume)
    assert volume.source.endswith("scan.nii")
    assert caplog.text == ""
    assert capfd.readouterr() == ("", "")

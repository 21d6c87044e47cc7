"""A DICOM series becomes a regular grid, or is refused with the reason."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from pydicom.dataset import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, RLELossless

import images
from dicom_files import SECRETS, transformation, write_multiframe, write_series
from medsegai.errors import GeometryError, InputError
from medsegai.io import check_scan, read_labelmap, read_volume
from medsegai.volume import Geometry, Volume

MICROMETRE = 1e-3


def scan(name: str = "oblique") -> Volume:
    return images.numbered(images.geometry(name))


def set_position(head: Dataset, moved: np.ndarray | list[float]) -> None:
    head.ImagePositionPatient = [
        f"{float(old) + new:.9f}" for old, new in zip(head.ImagePositionPatient, moved, strict=True)
    ]


def normal_lps(volume: Volume) -> np.ndarray:
    return images.DIRECTIONS["oblique"][:, 2] * [-1, -1, 1]


@pytest.mark.parametrize("name", images.DIRECTIONS)
def test_slices_lie_where_they_say_and_where_itk_says(tmp_path: Path, name: str) -> None:
    write_series(tmp_path / "series", scan(name))
    ours = images.positions(read_volume(tmp_path / "series"))
    assert images.apart(ours, images.positions(scan(name))) < 1e-6
    names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(tmp_path / "series"))
    assert images.apart(ours, images.itk_positions(sitk.ReadImage(names))) < MICROMETRE


@pytest.mark.parametrize("name", images.DIRECTIONS)
@pytest.mark.parametrize(
    "order", [(0, 1, 2, 3, 4, 5, 6), (6, 5, 4, 3, 2, 1, 0), (3, 0, 6, 1, 4, 2, 5)]
)
def test_frames_lie_where_they_say(tmp_path: Path, name: str, order: tuple[int, ...]) -> None:
    """Frames may stand in any order in the file; ITK stacks them as they come."""
    write_multiframe(tmp_path / "scan.dcm", scan(name), order)
    ours = images.positions(read_volume(tmp_path / "scan.dcm"))
    assert images.apart(ours, images.positions(scan(name))) < 1e-6


def test_what_a_frame_says_goes_before_what_all_share(tmp_path: Path) -> None:
    def misplace(head: Dataset) -> None:
        elsewhere = Dataset()
        elsewhere.ImagePositionPatient = [1, 2, 3]
        head.SharedFunctionalGroupsSequence[0].PlanePositionSequence = [elsewhere]

    write_multiframe(tmp_path / "scan.dcm", scan(), range(7), misplace)
    ours = images.positions(read_volume(tmp_path / "scan.dcm"))
    assert images.apart(ours, images.positions(scan())) < 1e-6


def test_a_series_in_several_multiframe_files_is_one_volume(tmp_path: Path) -> None:
    write_multiframe(tmp_path / "b.dcm", scan(), (0, 2, 4, 6))
    write_multiframe(tmp_path / "a.dcm", scan(), (1, 3, 5))
    ours = images.positions(read_volume(tmp_path))
    assert images.apart(ours, images.positions(scan())) < 1e-6


@pytest.mark.parametrize("size", ["23x38x3", "24x38x3"])
def test_a_real_multiframe_file_equals_its_single_slices(shared_data: Path, size: str) -> None:
    folder = shared_data / "dicom-seg-examples" / size
    frames = read_volume(folder / "multiframe" / "mf.dcm")
    slices = read_volume(folder / "image")
    assert frames.geometry.matches(slices.geometry, 1e-6)
    np.testing.assert_array_equal(frames.voxels, slices.voxels)


def test_a_real_jpeg_2000_series_is_decoded_and_placed(shared_data: Path) -> None:
    """Its anonymiser gave all slices one UID, or none."""
    folder = shared_data / "totalsegmentator-examples"
    volume = read_volume(folder / "example_ct_dicom")
    names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder / "example_ct_dicom"))
    witness = sitk.ReadImage(names)
    np.testing.assert_array_equal(volume.voxels, sitk.GetArrayFromImage(witness))
    assert volume.voxels.dtype == np.int16
    assert volume.voxels.min() == -1024
    reference, _ = read_labelmap(folder / "example_seg_dicom.nii.gz")
    assert sorted(volume.geometry.shape) == sorted(reference.geometry.shape)
    np.testing.assert_allclose(volume.geometry.center_ras, reference.geometry.center_ras, atol=1e-2)
    assert check_scan(volume) == ()


def deflate(head: Dataset, k: int) -> None:
    head.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian


def run_length_encode(head: Dataset, k: int) -> None:
    head.compress(RLELossless)


@pytest.mark.parametrize("encode", [deflate, run_length_encode])
def test_other_encodings_hold_the_same_voxels(
    tmp_path: Path, encode: Callable[[Dataset, int], None]
) -> None:
    grid = Geometry((3, 32, 40), images.matrix_ras("oblique"))
    write_series(tmp_path, images.numbered(grid), encode)
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.voxels, images.numbered(grid).voxels)
    assert volume.geometry.matches(grid, 1e-6)


@pytest.mark.parametrize(
    ("slope", "intercept", "dtype"),
    [(1, -1024, "int16"), (2, 0, "int16"), (0.5, 0, "float32"), (1.25, -3.5, "float32")],
)
def test_grey_values_are_rescaled(
    tmp_path: Path, slope: float, intercept: float, dtype: str
) -> None:
    def rescale(head: Dataset, k: int) -> None:
        head.RescaleSlope, head.RescaleIntercept = slope, intercept

    write_series(tmp_path / "series", scan("straight"), rescale)
    voxels = read_volume(tmp_path / "series").voxels
    assert voxels.dtype.kind == np.dtype(dtype).kind
    assert voxels.dtype.itemsize <= 4
    np.testing.assert_allclose(voxels, scan("straight").voxels * slope + intercept)


def test_each_slice_has_its_own_scale(tmp_path: Path) -> None:
    """As in PET, where the first slice may be scaled by 1 and a later one by a fraction."""

    def rescale(head: Dataset, k: int) -> None:
        head.RescaleSlope, head.RescaleIntercept = 1 + k / 4, -k

    write_series(tmp_path / "series", scan("straight"), rescale)
    volume = read_volume(tmp_path / "series")
    factors = 1 + np.arange(7).reshape(-1, 1, 1) / 4
    expected = scan("straight").voxels * factors - np.arange(7).reshape(-1, 1, 1)
    assert volume.voxels.dtype == np.float32
    np.testing.assert_allclose(volume.voxels, expected)


def test_frames_with_one_scale_are_rescaled(tmp_path: Path) -> None:
    def shared(head: Dataset) -> None:
        groups = head.SharedFunctionalGroupsSequence[0]
        groups.PixelValueTransformationSequence = [transformation(2, -7)]

    def repeated(head: Dataset) -> None:
        for groups in head.PerFrameFunctionalGroupsSequence:
            groups.PixelValueTransformationSequence = [transformation(2, -7)]

    for change in (shared, repeated):
        write_multiframe(tmp_path / "scan.dcm", scan("straight"), range(7), change)
        expected = scan("straight").voxels * 2 - 7
        np.testing.assert_array_equal(read_volume(tmp_path / "scan.dcm").voxels, expected)


def test_frames_with_scales_of_their_own_are_refused(tmp_path: Path) -> None:
    def change(head: Dataset) -> None:
        for k, groups in enumerate(head.PerFrameFunctionalGroupsSequence):
            groups.PixelValueTransformationSequence = [transformation(1 + k, 0)]

    write_multiframe(tmp_path / "scan.dcm", scan(), range(7), change)
    with pytest.raises(InputError, match=r"scan\.dcm.*different scales.*dcm2niix"):
        read_volume(tmp_path / "scan.dcm")


@pytest.mark.parametrize("missing", [(3,), (2, 3), (1, 4)])
def test_missing_slices_are_counted(tmp_path: Path, missing: tuple[int, ...]) -> None:
    write_series(tmp_path / "series", scan(), skip=missing)
    with pytest.raises(GeometryError, match=r"(about 2 slices are|a slice is) missing") as caught:
        read_volume(tmp_path / "series")
    assert "Export the whole series again" in str(caught.value)


def test_uneven_distances_are_refused(tmp_path: Path) -> None:
    def move(head: Dataset, k: int) -> None:
        set_position(head, normal_lps(scan()) * 0.1 * k * k)

    write_series(tmp_path / "series", scan(), move)
    with pytest.raises(GeometryError, match=r"unevenly spaced, 2\.2 to 3\.2 mm apart"):
        read_volume(tmp_path / "series")


def test_positions_rounded_by_the_scanner_are_accepted(tmp_path: Path) -> None:
    def round_off(head: Dataset, k: int) -> None:
        head.ImagePositionPatient = [f"{float(part):.1f}" for part in head.ImagePositionPatient]
        head.ImageOrientationPatient = [f"{float(p):.5f}" for p in head.ImageOrientationPatient]

    write_series(tmp_path / "series", scan(), round_off)
    ours = images.positions(read_volume(tmp_path / "series"))
    assert images.apart(ours, images.positions(scan())) < 0.15


@pytest.mark.parametrize("degrees", [1.0, 12.0, -20.0])
def test_gantry_tilt_is_refused_with_its_angle(tmp_path: Path, degrees: float) -> None:
    def tilt(head: Dataset, k: int) -> None:
        aside = np.asarray(head.ImageOrientationPatient[3:], dtype=float)
        set_position(head, aside * k * 2.1 * np.tan(np.radians(degrees)))

    write_series(tmp_path / "series", scan(), tilt)
    with pytest.raises(GeometryError, match=f"{abs(degrees):.1f} degrees.*gantry tilt"):
        read_volume(tmp_path / "series")


def test_a_slice_out_of_line_is_refused(tmp_path: Path) -> None:
    def move(head: Dataset, k: int) -> None:
        if k == 3:
            set_position(head, [1.0, 0.0, 0.0])

    write_series(tmp_path / "series", scan(), move)
    with pytest.raises(GeometryError, match="series 1"):
        read_volume(tmp_path / "series")


def test_two_images_at_one_place_are_refused(tmp_path: Path) -> None:
    """Two echoes or time points with one SeriesInstanceUID."""
    write_series(tmp_path / "series", scan())
    write_series(tmp_path / "again", scan())
    for path in (tmp_path / "again").iterdir():
        path.rename(tmp_path / "series" / f"again-{path.name}")
    with pytest.raises(GeometryError, match="7 of 14 slices have the same position as another one"):
        read_volume(tmp_path / "series")


def test_copies_of_a_file_are_left_out_and_told(tmp_path: Path) -> None:
    write_series(tmp_path, scan())
    first = sorted(tmp_path.iterdir())[0]
    shutil.copy(first, tmp_path / "copy.dcm")
    volume = read_volume(tmp_path)
    assert images.apart(images.positions(volume), images.positions(scan())) < 1e-6
    assert "1 copy of a slice was" in volume.notes[0]
    assert check_scan(volume)[0] == volume.notes[0]


def two_series(folder: Path) -> None:
    write_series(folder, scan(), series=3)
    second = images.numbered(images.geometry("straight"))
    write_series(folder, second.with_voxels(second.voxels + 1000), series=14)


def test_several_series_are_listed(tmp_path: Path) -> None:
    two_series(tmp_path)
    with pytest.raises(InputError, match="holds 2 series") as caught:
        read_volume(tmp_path)
    message = str(caught.value)
    assert 'series 3 "T1 number 3" (MR, 7 slices of 5 x 6, UID ...8.498.2.1003); ' in message
    assert 'series 14 "T1 number 14"' in message
    assert "Move the wanted one to a separate folder" in message


@pytest.mark.parametrize("wanted", ["14", "1.2.826.0.1.3680043.8.498.2.1014", "2.1014"])
def test_one_of_several_series_can_be_chosen(tmp_path: Path, wanted: str) -> None:
    two_series(tmp_path)
    volume = read_volume(tmp_path, series=wanted)
    assert volume.voxels.min() == 1001
    assert volume.geometry.matches(images.geometry("straight"), 1e-6)


@pytest.mark.parametrize(("wanted", "problem"), [("5", "no series is named"), ("", "several")])
def test_a_choice_that_fits_none_or_several_is_refused(
    tmp_path: Path, wanted: str, problem: str
) -> None:
    two_series(tmp_path)
    with pytest.raises(InputError, match=f"{problem}.*series 3.*series 14"):
        read_volume(tmp_path, series=wanted)


def test_a_scout_beside_a_series_does_not_matter(tmp_path: Path) -> None:
    write_series(tmp_path, scan(), series=1)
    write_series(tmp_path, scan("straight"), series=2, skip=range(1, 7))
    assert read_volume(tmp_path).geometry.matches(scan().geometry, 1e-6)


def test_a_localizer_is_refused(tmp_path: Path) -> None:
    turned = {0: "straight", 3: "LIA", 6: "sagittal slices"}
    for k, name in turned.items():
        write_series(tmp_path, scan(name), skip=[other for other in range(7) if other != k])
    with pytest.raises(GeometryError, match=r"different orientations \(a localizer\?\)"):
        read_volume(tmp_path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda head: setattr(head, "PixelSpacing", [1, 1]), "different pixel sizes"),
        (lambda head: setattr(head, "Rows", 3), "different sizes"),
    ],
)
def test_slices_that_differ_are_refused(
    tmp_path: Path, change: Callable[[Dataset], None], reason: str
) -> None:
    def change_one(head: Dataset, k: int) -> None:
        if k == 4:
            change(head)

    write_series(tmp_path, scan(), change_one)
    with pytest.raises(InputError, match=reason):
        read_volume(tmp_path)


def test_a_single_slice_is_refused(tmp_path: Path) -> None:
    write_series(tmp_path, scan(), skip=range(1, 7))
    (only,) = tmp_path.iterdir()
    for path in (tmp_path, only):
        with pytest.raises(InputError, match=r"single slice.*Name the folder"):
            read_volume(path)


def test_a_folder_without_dicom_names_its_subfolders(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "T1").mkdir()
    with pytest.raises(
        InputError, match=r"does not hold DICOM images.*Its subfolders are not searched: T1"
    ):
        read_volume(tmp_path)


def test_other_files_in_the_folder_do_not_matter(tmp_path: Path) -> None:
    write_series(tmp_path, scan())
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / ".DS_Store").write_bytes(b"\0" * 4096)
    (tmp_path / "deeper").mkdir()

    def report(head: Dataset, k: int) -> None:
        for name in ("Rows", "Columns", "PixelData", "ImagePositionPatient"):
            delattr(head, name)
        head.Modality = "SR"

    write_series(tmp_path, scan(), report, series=9)
    assert read_volume(tmp_path).geometry.matches(scan().geometry, 1e-6)


def test_old_files_without_preamble_are_read(tmp_path: Path) -> None:
    write_series(tmp_path, scan())
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[132:])
    assert read_volume(tmp_path).geometry.matches(scan().geometry, 1e-6)


@pytest.mark.parametrize("keep", [100, 300, 600, -20])
def test_a_truncated_slice_is_named(tmp_path: Path, keep: int) -> None:
    write_series(tmp_path, scan())
    path = sorted(tmp_path.iterdir())[2]
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError) as caught:
        read_volume(tmp_path)
    assert path.name in str(caught.value) or " missing" in str(caught.value)


def test_colour_is_refused(tmp_path: Path) -> None:
    def paint(head: Dataset, k: int) -> None:
        head.SamplesPerPixel, head.PhotometricInterpretation = 3, "RGB"

    write_series(tmp_path, scan(), paint)
    with pytest.raises(InputError, match="colour image"):
        read_volume(tmp_path)


def test_dicom_segmentations_and_cine_loops_are_no_scans(shared_data: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"liver\.dcm is a DICOM segmentation \(SEG\), not a scan"):
        read_volume(shared_data / "dicom-seg-examples" / "liver.dcm")

    def without_places(head: Dataset) -> None:
        del head.PerFrameFunctionalGroupsSequence

    write_multiframe(tmp_path / "loop.dcm", scan(), range(7), without_places)
    with pytest.raises(InputError, match="cine loop"):
        read_volume(tmp_path / "loop.dcm")


def test_no_patient_data_in_messages_or_logs(
    tmp_path: Path, caplog: Any, capfd: Any, recwarn: Any
) -> None:
    """Nor where a header is damaged, whose values libraries like to quote."""
    syntax = b"1.2.840.10008.1.2.1\0"
    write_series(tmp_path / "gap", scan(), skip=(3,))
    write_series(tmp_path / "damaged", scan())
    for path in (tmp_path / "damaged").iterdir():
        data = path.read_bytes()
        assert data.count(syntax) == 1
        path.write_bytes(data.replace(syntax, b"1.2.840.10008^Doe^1\0"))
    two_series(tmp_path / "two")
    recwarn.clear()
    with caplog.at_level(0):
        messages = [outcome(tmp_path / name) for name in ("gap", "damaged", "two")]
    texts = [*messages, caplog.text, *capfd.readouterr(), *(str(item.message) for item in recwarn)]
    assert not [secret for secret in SECRETS for text in texts if secret in text]
    assert "missing" in messages[0]
    assert "holds 2 series" in messages[2]


def outcome(folder: Path) -> str:
    """The message of the error, or nothing where the folder can be read."""
    try:
        read_volume(folder)
    except InputError as error:
        return str(error)
    return ""


def test_a_grid_that_itk_cannot_express_is_still_exact(tmp_path: Path) -> None:
    """Two slices 1 mm apart whose positions are rounded: the step is taken along the normal."""
    grid = Geometry.from_spacing((2, 6, 5), (0.9, 1.3, 1.0), images.ORIGIN_RAS, images.OBLIQUE)

    def round_off(head: Dataset, k: int) -> None:
        head.ImagePositionPatient = [f"{float(part):.2f}" for part in head.ImagePositionPatient]

    write_series(tmp_path, images.numbered(grid), round_off)
    volume = read_volume(tmp_path)
    assert images.apart(images.positions(volume), images.positions(images.numbered(grid))) < 0.02

"""Whatever is wrong with a file, one error says what, where, and what to do."""

from __future__ import annotations

import gzip
import os
import random
import resource
import shutil
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

import images
from dicom_files import write_multiframe, write_series
from medsegai.errors import GeometryError, InputError, MedSegAIError
from medsegai.io import (
    READABLE,
    check_scan,
    read_labelmap,
    read_volume,
    to_sitk,
    write_segmentation,
)
from medsegai.labels import Label
from medsegai.volume import Geometry, Volume

STRAIGHT = images.geometry("straight")
ENDINGS = [
    ".nii",
    ".nii.gz",
    ".img",
    ".hdr",
    ".mgz",
    ".mgh",
    ".nrrd",
    ".nhdr",
    ".mha",
    ".mhd",
    ".dcm",
]
ITK_ENDINGS = (".nrrd", ".nhdr", ".mha", ".mhd")


def save(folder: Path, ending: str, voxels: np.ndarray | None = None) -> Path:
    """A good image of each format; the path is the one that users name."""
    path = folder / f"scan{ending}"
    voxels = images.numbered(STRAIGHT).voxels if voxels is None else voxels
    if ending in ITK_ENDINGS:
        sitk.WriteImage(sitk.GetImageFromArray(voxels), str(path), useCompression=False)
    elif ending == ".dcm":
        write_multiframe(path, images.numbered(STRAIGHT), range(7))
    else:
        kinds = {".mgz": nibabel.MGHImage, ".mgh": nibabel.MGHImage}
        kinds |= {".img": nibabel.Nifti1Pair, ".hdr": nibabel.Nifti1Pair}
        kinds.get(ending, nibabel.Nifti1Image)(voxels.T, np.eye(4)).to_filename(path)
    return path


def refused(path: Path, error: type[MedSegAIError] = InputError) -> str:
    """What a user reads. It names the file and does not quote Python or C++."""
    with pytest.raises(error) as caught:
        read_volume(path)
    message = str(caught.value)
    assert path.name in message
    assert message.endswith(".")
    assert "Traceback" not in message
    assert "ITK ERROR" not in message
    assert len(message) < 1000
    return message


def test_every_readable_format_is_tried_here(tmp_path: Path) -> None:
    assert sorted(READABLE) == sorted(ENDINGS)
    for ending in ENDINGS:
        assert read_volume(save(tmp_path, ending)).voxels.shape == (7, 6, 5)


@pytest.mark.parametrize("ending", [*ENDINGS, ".txt", ".xyz", ""])
def test_a_missing_file(tmp_path: Path, ending: str) -> None:
    assert "does not exist" in refused(tmp_path / f"scan{ending}")


def test_a_name_that_no_file_can_have(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be opened: File name too long"):
        read_volume(tmp_path / ("x" * 300 + ".nii.gz"))


@contextmanager
def another_user() -> Iterator[None]:
    """Without the rights of root, who may read everything."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_file_that_may_not_be_read(tmp_path: Path, ending: str) -> None:
    path = save(tmp_path, ending)
    path.chmod(0)
    with another_user():
        assert "cannot be opened: Permission denied. Check its name, and that" in refused(path)


def test_a_slice_that_may_not_be_read(tmp_path: Path) -> None:
    write_series(tmp_path / "series", images.numbered(STRAIGHT))
    sorted((tmp_path / "series").iterdir())[2].chmod(0)
    with another_user():
        assert "cannot be opened: Permission denied" in refused(tmp_path / "series")


@pytest.mark.parametrize("ending", ENDINGS)
def test_an_empty_file(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"scan{ending}"
    path.touch()
    assert "is empty (0 bytes)" in refused(path)


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize(
    "content",
    [
        b"Dear colleague, please find the scan attached.\n" * 40,
        b"\0" * 4096,
        random.Random(0).randbytes(4096),
        gzip.compress(random.Random(1).randbytes(4096), mtime=0),
        b"\x1f\x8b" + random.Random(2).randbytes(500),
        b"NRRD0004\n",
        b"x",
    ],
    ids=["text", "zeros", "random", "gzip", "broken gzip", "only a magic word", "one byte"],
)
def test_a_file_that_is_no_image(tmp_path: Path, ending: str, content: bytes) -> None:
    path = tmp_path / f"scan{ending}"
    path.write_bytes(content)
    for other in {".img": [".hdr"], ".hdr": [".img"]}.get(ending, []):
        path.with_suffix(other).write_bytes(content)
    refused(path)


@pytest.mark.parametrize("name", ["photo.gif", "letter.txt", "scan", "scan.nii.bz2", "weights.pth"])
def test_a_file_of_another_kind_is_told_what_can_be_read(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"something else " * 20)
    message = refused(tmp_path / name)
    assert "is not an image that can be read" in message
    assert ".nii.gz" in message


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
def test_a_truncated_file(tmp_path: Path, ending: str, share: float) -> None:
    voxels = np.random.default_rng(0).integers(0, 1000, (7, 6, 50)).astype(np.int16)
    path = save(tmp_path, ending, voxels)
    partners = {".img": ".img", ".hdr": ".img", ".nhdr": ".raw", ".mhd": ".raw"}
    cut = path.with_suffix(partners.get(ending, path.suffix))
    cut.write_bytes(cut.read_bytes()[: int(cut.stat().st_size * share)])
    message = refused(path)
    if share > 0.9 and ending not in (".nii.gz", ".mgz"):  # known without reading the voxels
        assert "the header promises" in message


@pytest.mark.parametrize("dimensions", [b"83", b"0", b"-3", b"3\nNDims = 83", b"three"])
@pytest.mark.parametrize("ending", [".mha", ".mhd"])
def test_a_metaimage_of_many_dimensions_ends_no_process(
    tmp_path: Path, ending: str, dimensions: bytes
) -> None:
    """ITK keeps sizes in arrays of ten, and writes beyond them."""
    path = save(tmp_path, ending)
    path.write_bytes(path.read_bytes().replace(b"NDims = 3", b"NDims = " + dimensions))
    assert "NDims is missing, or is not a number from 1 to 9" in refused(path)


@contextmanager
def memory_limit(extra: int) -> Iterator[None]:
    """No more than `extra` bytes of address space beyond what is in use."""
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (in_use + extra, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def lie_nifti(path: Path) -> None:
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    data = data[:42] + struct.pack("<3h", 30000, 30000, 30000) + data[48:]
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def lie_mgh(path: Path) -> None:
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".mgz" else path.read_bytes()
    data = data[:4] + struct.pack(">3i", 30000, 30000, 30000) + data[16:]
    path.write_bytes(gzip.compress(data) if path.suffix == ".mgz" else data)


def lie_text(path: Path) -> None:
    data = path.read_bytes()
    assert b"5 6 7" in data
    path.write_bytes(data.replace(b"5 6 7", b"30000 30000 30000", 1))


def lie_dicom(path: Path) -> None:
    data = path.read_bytes()
    rows, columns = (b"\x28\x00" + tag + b"\x00US\x02\x00" for tag in (b"\x10", b"\x11"))
    for tag in (rows, columns):
        place = data.index(tag) + len(tag)
        data = data[:place] + struct.pack("<H", 65000) + data[place + 2 :]
    path.write_bytes(data)


LIARS: dict[str, Callable[[Path], None]] = {
    ".nii": lie_nifti,
    ".nii.gz": lie_nifti,
    ".hdr": lie_nifti,
    ".mgz": lie_mgh,
    ".mgh": lie_mgh,
    ".dcm": lie_dicom,
} | dict.fromkeys(ITK_ENDINGS, lie_text)


@pytest.mark.parametrize("ending", LIARS)
def test_a_header_that_lies_about_its_size_takes_no_memory(tmp_path: Path, ending: str) -> None:
    """54 TB promised by a few bytes: refused before anything is allocated."""
    path = save(tmp_path, ending)
    LIARS[ending](path)
    with memory_limit(500_000_000):
        message = refused(path)
    if ending != ".mgh":  # nibabel looks for the end of the file, which no disk can hold
        assert "the header promises" in message
    assert "damaged" in message


def test_a_compressed_segmentation_that_lies_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "labels.seg.nrrd"
    write_segmentation(
        path, images.blobs(STRAIGHT), [Label(v, f"L{v}", (1, 2, 3)) for v in (1, 2, 3)]
    )
    lie_text(path)
    with memory_limit(500_000_000), pytest.raises(InputError, match="the header promises"):
        read_labelmap(path)


def test_an_image_larger_than_the_memory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path, ".nii")
    monkeypatch.setattr("medsegai.io.files._memory_bytes", lambda: 100)
    message = refused(path)
    assert "its 420 bytes of voxels takes 1.68 kB of memory" in message
    assert "this computer has 100 bytes free" in message


def test_half_of_a_pair(tmp_path: Path) -> None:
    for ending, other in ((".img", ".hdr"), (".hdr", ".img")):
        path = save(tmp_path, ending)
        path.with_suffix(other).unlink()
        assert f"its other half scan{other} is missing" in refused(path)


@pytest.mark.parametrize("ending", [".nhdr", ".mhd"])
def test_a_header_without_its_voxels(tmp_path: Path, ending: str) -> None:
    path = save(tmp_path, ending)
    path.with_suffix(".raw").unlink()
    assert "scan.raw, which does not exist. Copy both files" in refused(path)


def nifti(path: Path, voxels: np.ndarray, matrix: np.ndarray | None = None) -> Path:
    """A NIfTI of any array (i, j, k...) whose matrix is written as it is."""
    image = nibabel.Nifti1Image(voxels, None)
    image.header.set_sform(np.eye(4) if matrix is None else matrix, 1)
    image.to_filename(path)
    return path


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        ((20,), "1D image"),
        ((20, 30), "2D image, but a 3D volume is needed"),
        ((20, 30, 1), "one voxel thick"),
        ((20, 30, 1, 1), "one voxel thick"),
        ((1, 20, 30), "one voxel thick"),
        ((6, 7, 8, 2), "4D image of 6 x 7 x 8 x 2: a time series or several channels"),
        ((6, 7, 8, 1, 3), "5D image"),
    ],
)
def test_an_image_that_is_not_3d(tmp_path: Path, shape: tuple[int, ...], reason: str) -> None:
    voxels = np.arange(np.prod(shape), dtype=np.int16).reshape(shape)
    assert reason in refused(nifti(tmp_path / "scan.nii.gz", voxels))


@pytest.mark.parametrize("ending", [".nrrd", ".mha"])
@pytest.mark.parametrize(
    ("shape", "vector", "reason"),
    [
        ((30, 20), False, "2D image"),
        ((1, 30, 20), False, "one voxel thick"),
        ((2, 6, 7, 8), False, "4D image of 8 x 7 x 6 x 2"),
        ((6, 7, 8, 3), True, "3 values per voxel"),
    ],
)
def test_an_itk_image_that_is_not_3d(
    tmp_path: Path, ending: str, shape: tuple[int, ...], vector: bool, reason: str
) -> None:
    voxels = np.arange(np.prod(shape)).reshape(shape).astype(np.int16)
    sitk.WriteImage(
        sitk.GetImageFromArray(voxels, isVector=vector), str(tmp_path / f"scan{ending}")
    )
    assert reason in refused(tmp_path / f"scan{ending}")


def test_colours_and_complex_numbers(tmp_path: Path) -> None:
    colours = np.zeros((4, 5, 6), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    assert "colour" in refused(nifti(tmp_path / "rgb.nii", colours))
    waves = np.ones((4, 5, 6), dtype=np.complex64)
    assert "complex numbers. Export the magnitude" in refused(nifti(tmp_path / "k.nii", waves))
    sitk.WriteImage(sitk.Image([4, 5, 6], sitk.sitkComplexFloat32), str(tmp_path / "k.mha"))
    refused(tmp_path / "k.mha")


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinities_are_counted(tmp_path: Path, ending: str, bad: float) -> None:
    voxels = images.numbered(STRAIGHT, "float32").voxels
    voxels[1, 2, 3:5] = bad
    path = save(tmp_path, ending, voxels)
    assert "has 2 voxels that are NaN or infinite" in refused(path)


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mgz"])
@pytest.mark.parametrize("value", [0, 7])
def test_the_same_value_everywhere(tmp_path: Path, ending: str, value: int) -> None:
    path = save(tmp_path, ending, np.full((7, 6, 5), value, dtype=np.int16))
    assert f"is empty: every voxel is {value}" in refused(path)


def sheared() -> np.ndarray:
    matrix = images.matrix_ras("oblique")
    matrix[:3, 1] += 0.1 * matrix[:3, 0]
    return matrix


def singular() -> np.ndarray:
    matrix = images.matrix_ras("oblique")
    matrix[:3, 1] = 2 * matrix[:3, 0]
    return matrix


def flat() -> np.ndarray:
    matrix = images.matrix_ras("oblique")
    matrix[:3, 2] = 0
    return matrix


def unplaced() -> np.ndarray:
    matrix = images.matrix_ras("oblique")
    matrix[0, 3] = np.nan
    return matrix


@pytest.mark.parametrize(
    ("matrix", "reason"),
    [
        (sheared(), "right angles (sheared matrix or gantry tilt). Resample"),
        (singular(), "singular"),
        (flat(), "no length"),
        (unplaced(), "finite"),
    ],
)
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_a_nifti_that_lies_nowhere(
    tmp_path: Path, matrix: np.ndarray, reason: str, ending: str
) -> None:
    path = nifti(tmp_path / f"scan{ending}", images.numbered(STRAIGHT).voxels.T, matrix)
    assert reason in refused(path, GeometryError)


@pytest.mark.parametrize("matrix", [sheared(), singular(), flat()])
def test_a_nrrd_that_lies_nowhere(tmp_path: Path, matrix: np.ndarray) -> None:
    columns = " ".join("({:.9f},{:.9f},{:.9f})".format(*matrix[:3, axis]) for axis in range(3))
    header = (
        "NRRD0004\ntype: short\ndimension: 3\nspace: left-posterior-superior\nsizes: 5 6 7\n"
        f"space directions: {columns}\nspace origin: (0,0,0)\nkinds: domain domain domain\n"
        "endian: little\nencoding: raw\n\n"
    )
    path = tmp_path / "scan.nrrd"
    path.write_bytes(header.encode() + images.numbered(STRAIGHT).voxels.tobytes())
    refused(path)


@pytest.mark.parametrize("matrix", [sheared(), singular()])
def test_a_metaimage_that_lies_nowhere(tmp_path: Path, matrix: np.ndarray) -> None:
    path = save(tmp_path, ".mha")
    numbers = " ".join(f"{number:.9f}" for number in matrix[:3, :3].T.ravel())
    data = path.read_bytes()
    straight = b"TransformMatrix = 1 0 0 0 1 0 0 0 1"
    assert straight in data
    path.write_bytes(data.replace(straight, f"TransformMatrix = {numbers}".encode()))
    refused(path)


def spaced(spacing: float) -> Volume:
    return images.numbered(Geometry.from_spacing((20, 256, 256), (1.0, 1.0, spacing)), "int32")


def test_slices_of_ten_millimetres_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "scan.nrrd"
    sitk.WriteImage(to_sitk(spaced(10.0)), str(path))
    volume = read_volume(path)
    with pytest.raises(InputError, match=r"scan\.nrrd.*slices 10 mm apart.*the limit is 8 mm"):
        check_scan(volume)


@pytest.mark.parametrize(("spacing", "warnings"), [(8.0, 1), (5.0, 1), (3.0, 0), (1.0, 0)])
def test_thick_slices_are_warned_of(spacing: float, warnings: int) -> None:
    found = check_scan(spaced(spacing))
    assert len(found) == warnings
    assert all(f"slices {spacing:g} mm apart" in text for text in found)


@pytest.mark.parametrize("factor", [0.001, 1000.0])
def test_another_unit_than_millimetres_is_noticed(factor: float) -> None:
    grid = Geometry.from_spacing((20, 30, 40), (factor, factor, factor))
    if factor > 1:
        with pytest.raises(InputError, match=r"1e\+03 mm apart"):
            check_scan(images.numbered(grid))
    else:
        (warning,) = check_scan(images.numbered(grid))
        assert "is 0.04 mm long" in warning
        assert "millimetres" in warning


def test_notes_of_the_reader_come_first() -> None:
    volume = spaced(5.0)
    doubtful = Volume(volume.voxels, volume.geometry, "scan.img", ("left or right?",))
    assert check_scan(doubtful)[0] == "left or right?"
    assert len(check_scan(doubtful)) == 2


def test_volumes_that_come_from_no_file_are_checked_too() -> None:
    """Slicer's worker hands over arrays."""
    grid = Geometry((4, 4, 4), np.eye(4))
    for voxels in (
        np.zeros((4, 4, 4)),
        np.full((4, 4, 4), np.nan),
        np.full((4, 4, 4), "a"),
        np.full((4, 4, 4), 1j),
    ):
        with pytest.raises(InputError, match="The image"):
            check_scan(Volume(voxels, grid))
    check_scan(Volume(np.arange(64).reshape(4, 4, 4) > 5, grid))


def outcome(read: Callable[[Path], object], path: Path) -> str:
    """The message of the error; or the path, if the damage did not matter."""
    try:
        read(path)
    except MedSegAIError as error:
        return str(error)
    return str(path)


FUZZED = [".nii", ".nii.gz", ".hdr", ".mgh", ".mgz", ".nrrd", ".mha", ".dcm", ".seg.nrrd"]


@pytest.mark.parametrize("ending", FUZZED)
def test_damaged_headers_never_escape_as_other_errors(tmp_path: Path, ending: str) -> None:
    """Bytes of the header changed at random; what is read must then be a volume or one clear error."""
    if ending == ".seg.nrrd":
        good = tmp_path / "scan.seg.nrrd"
        labels = [Label(value, f"L{value}", (1, 2, 3)) for value in (1, 2, 3)]
        write_segmentation(good, images.blobs(STRAIGHT), labels)
    else:
        good = save(tmp_path, ending)
    packed = ending in (".nii.gz", ".mgz")
    data = gzip.decompress(good.read_bytes()) if packed else good.read_bytes()
    header = min(len(data), {".nrrd": 300, ".mha": 300, ".seg.nrrd": 900}.get(ending, 352))
    chance = random.Random(ending)
    for _ in range(60):
        changed = bytearray(data)
        for _ in range(chance.randint(1, 4)):
            changed[chance.randrange(header)] = chance.randrange(256)
        good.write_bytes(gzip.compress(bytes(changed), 1) if packed else bytes(changed))
        for read in (read_volume, read_labelmap):
            assert good.name in outcome(read, good)


def test_damaged_slices_of_a_series_never_escape_as_other_errors(tmp_path: Path) -> None:
    write_series(tmp_path / "good", images.numbered(STRAIGHT))
    chance = random.Random(0)
    for _ in range(25):
        shutil.copytree(tmp_path / "good", tmp_path / "bad", dirs_exist_ok=True)
        victim = chance.choice(sorted((tmp_path / "bad").iterdir()))
        data = bytearray(victim.read_bytes())
        for _ in range(chance.randint(1, 6)):
            data[chance.randrange(128, len(data))] = chance.randrange(256)
        victim.write_bytes(data)
        assert "bad" in outcome(read_volume, tmp_path / "bad")

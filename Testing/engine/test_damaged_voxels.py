"""Damage anywhere in compressed voxels is noticed, and sound files are read however their voxels are stored."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import os
import random
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

import images
from medsegai.errors import InputError, MedSegAIError
from medsegai.io import (
    read_candidates,
    read_labelmap,
    read_volume,
    to_sitk,
    write_probabilities,
    write_segmentation,
    write_volume,
)
from medsegai.labels import Label
from medsegai.volume import Geometry, Volume

GRID = Geometry.from_spacing((11, 13, 17), images.SPACING_MM, images.ORIGIN_RAS, images.OBLIQUE)
NOISE = np.random.default_rng(0).integers(-900, 900, GRID.shape).astype(np.int16)
SCAN = Volume(NOISE, GRID)
LABELS = tuple(Label(value, f"Part {value}", (9 * value, 1, 2)) for value in (1, 2, 3))
LABELMAP = images.blobs(GRID)

META = (
    "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\n"
    "TransformMatrix = 0 1 0 1 0 0 0 0 1\nOffset = 3 -4 5\nElementSpacing = 0.9 1.3 2.1\n"
    "DimSize = 17 13 11\n"
)
NRRD = (
    "NRRD0004\ntype: short\ndimension: 3\nspace: left-posterior-superior\nsizes: 17 13 11\n"
    "space directions: (0,0.9,0) (1.3,0,0) (0,0,2.1)\nspace origin: (3,-4,5)\nendian: little\n"
)
TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0]) @ np.array(
    [[0, 1.3, 0, 3], [0.9, 0, 0, -4], [0, 0, 2.1, 5], [0, 0, 0, 1.0]]
)
"""What both headers say."""


def meta(path: Path, data: bytes, fields: str, name: str = "LOCAL") -> Path:
    text = f"{META}{fields}ElementType = MET_SHORT\nElementDataFile = {name}\n"
    return with_voxels(path, text, data, None if name == "LOCAL" else name)


def nrrd(path: Path, data: bytes, fields: str, name: str | None = None) -> Path:
    where = f"data file: {name}\n" if name else ""
    return with_voxels(path, f"{NRRD}{fields}{where}\n", data, name)


def with_voxels(path: Path, text: str, data: bytes, name: str | None) -> Path:
    path.write_bytes(text.encode() + (b"" if name else data))
    if name:
        (path.parent / name).write_bytes(data)
    return path


RAW = NOISE.astype("<i2").tobytes()
ZLIB = "CompressedData = True\n"

Write = Callable[[Path], Path]
PACKED: dict[str, Write] = {
    "nii.gz": lambda folder: written(folder / "a.nii.gz"),
    "ours.nrrd": lambda folder: written(folder / "a.nrrd"),
    "ours.mha": lambda folder: written(folder / "a.mha"),
    "mgz": lambda folder: mgz(folder / "a.mgz"),
    "gzip.nrrd": lambda folder: nrrd(folder / "a.nrrd", gzip.compress(RAW), "encoding: gzip\n"),
    "bzip2.nrrd": lambda folder: nrrd(folder / "a.nrrd", bz2.compress(RAW), "encoding: bz2\n"),
    "detached.nhdr": lambda folder: nrrd(
        folder / "a.nhdr", gzip.compress(RAW), "encoding: gzip\n", "a.raw.gz"
    ),
    "zlib.mha": lambda folder: meta(folder / "a.mha", zlib.compress(RAW), ZLIB),
    "detached.mhd": lambda folder: meta(folder / "a.mhd", zlib.compress(RAW), ZLIB, "a.zraw"),
}
"""Every format whose voxels can be compressed."""

STORED: dict[str, Write] = {
    "raw.nrrd": lambda folder: nrrd(folder / "a.nrrd", RAW, "encoding: raw\n"),
    "raw.nhdr": lambda folder: nrrd(folder / "a.nhdr", RAW, "encoding: raw\n", "a.raw"),
    "raw.mha": lambda folder: meta(folder / "a.mha", RAW, ""),
    "raw.mhd": lambda folder: meta(folder / "a.mhd", RAW, "", "a.raw"),
    "nii": lambda folder: written(folder / "a.nii"),
}


def written(path: Path) -> Path:
    """By our own writer."""
    write_volume(path, SCAN)
    return path


def mgz(path: Path) -> Path:
    nibabel.MGHImage(NOISE.T, GRID.ijk_to_ras).to_filename(path)
    return path


def voxels_file(path: Path) -> tuple[Path, int]:
    """The file that holds the voxels of such an image, and where they begin, or the stream that they lie in."""
    others = [other for other in path.parent.iterdir() if other != path]
    if others:
        return others[0], 0
    data = path.read_bytes()
    if path.suffix in (".gz", ".mgz", ".nii"):
        return path, 0 if path.suffix != ".nii" else 352
    end = b"\n\n" if path.suffix == ".nrrd" else b"= LOCAL\n"
    return path, data.index(end) + len(end)


def noticed(path: Path, sound: Volume, read: Callable[[Path], Volume] = read_volume) -> bool:
    """Whether a file is refused, with its name; else it must still say what it said when it was sound."""
    try:
        found = read(path)
    except InputError as error:
        return path.name in str(error)
    assert np.array_equal(found.voxels, sound.voxels)
    assert found.geometry.matches(sound.geometry)
    return False


@pytest.mark.parametrize("name", PACKED)
def test_no_flipped_bit_of_compressed_voxels_is_read(tmp_path: Path, name: str) -> None:
    path = PACKED[name](tmp_path)
    sound = read_volume(path)
    assert np.array_equal(sound.voxels, NOISE)
    file, first = voxels_file(path)
    data = file.read_bytes()
    chance = random.Random(name)
    for _ in range(40):
        flipped = bytearray(data)
        flipped[chance.randrange(first, len(data))] ^= 1 << chance.randrange(8)
        file.write_bytes(flipped)
        noticed(path, sound)
    file.write_bytes(
        data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 4]) + data[len(data) // 2 + 1 :]
    )
    assert noticed(path, sound)


@pytest.mark.parametrize("name", [*PACKED, *STORED])
def test_no_file_that_is_cut_short_is_read(tmp_path: Path, name: str) -> None:
    path = (PACKED | STORED)[name](tmp_path)
    sound = read_volume(path)
    file, first = voxels_file(path)
    data = file.read_bytes()
    for missing in (1, 2, 7, 9, len(data) // 3, len(data) - first):
        file.write_bytes(data[:-missing])
        assert noticed(path, sound), missing


def test_no_flipped_bit_of_a_segmentation_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.seg.nrrd"
    write_segmentation(path, LABELMAP, LABELS)
    data = path.read_bytes()
    first = data.index(b"\n\n") + 2
    chance = random.Random(0)
    for _ in range(40):
        flipped = bytearray(data)
        flipped[chance.randrange(first, len(data))] ^= 1 << chance.randrange(8)
        path.write_bytes(flipped)
        noticed(path, LABELMAP, lambda path: read_labelmap(path)[0])


def test_no_flipped_bit_of_probabilities_is_read(tmp_path: Path) -> None:
    """They are read volume by volume; the checksum comes after the last."""
    path = tmp_path / "a.nii.gz"
    shares = np.random.default_rng(1).dirichlet(np.ones(4), GRID.shape)[..., 1:]
    write_probabilities(path, np.moveaxis(shares, -1, 0), GRID, LABELS)
    sound = read_candidates(path, LABELMAP, LABELS)
    data = path.read_bytes()
    chance = random.Random(0)
    refused = 0
    for _ in range(25):
        flipped = bytearray(data)
        flipped[chance.randrange(10, len(data))] ^= 1 << chance.randrange(8)
        path.write_bytes(flipped)
        try:
            found = read_candidates(path, LABELMAP, LABELS)
        except InputError:
            refused += 1
        else:
            assert np.array_equal(found.first, sound.first)
    assert refused > 20


def as_text(voxels: np.ndarray) -> bytes:
    return " ".join(map(str, voxels.ravel().tolist())).encode()


SOUND: dict[str, Write] = {
    "no CompressedDataSize": PACKED["zlib.mha"],
    "gzip in a MetaImage": lambda folder: meta(folder / "a.mha", gzip.compress(RAW), ZLIB),
    "HeaderSize": lambda folder: meta(folder / "a.mhd", b"head" + RAW, "HeaderSize = 4\n", "a.raw"),
    "HeaderSize -1": lambda folder: meta(
        folder / "a.mhd", b"header" + RAW, "HeaderSize = -1\n", "a.raw"
    ),
    "MetaImage as text": lambda folder: meta(
        folder / "a.mha", as_text(NOISE), "BinaryData = False\n"
    ),
    "bzip2": PACKED["bzip2.nrrd"],
    "NRRD as text": lambda folder: nrrd(folder / "a.nrrd", as_text(NOISE), "encoding: ascii\n"),
    "hexadecimal": lambda folder: nrrd(folder / "a.nrrd", RAW.hex().encode(), "encoding: hex\n"),
    "byte skip": lambda folder: nrrd(
        folder / "a.nhdr", b"junk" + RAW, "encoding: raw\nbyte skip: 4\n", "a.raw"
    ),
    "byte skip -1": lambda folder: nrrd(
        folder / "a.nhdr", b"some header" + RAW, "encoding: raw\nbyte skip: -1\n", "a.raw"
    ),
    "line skip": lambda folder: nrrd(
        folder / "a.nhdr",
        b"one\ntwo\n" + gzip.compress(RAW),
        "encoding: gzip\nline skip: 2\n",
        "a.gz",
    ),
}


@pytest.mark.parametrize("name", SOUND)
def test_sound_files_are_read_however_their_voxels_are_stored(tmp_path: Path, name: str) -> None:
    path = SOUND[name](tmp_path)
    if name == "MetaImage as text":
        path.write_bytes(path.read_bytes().replace(b"BinaryData = True\n", b"", 1))
    found = read_volume(path)
    assert np.array_equal(found.voxels, NOISE)
    np.testing.assert_allclose(found.geometry.ijk_to_ras, TO_RAS, atol=1e-9)


def test_an_axis_of_one_value_a_voxel_does_not_make_a_vector(tmp_path: Path) -> None:
    path = nrrd(tmp_path / "a.nrrd", RAW, "encoding: raw\n")
    content = path.read_bytes()
    for old, new in (
        (b"dimension: 3", b"dimension: 4"),
        (b"sizes: ", b"sizes: 1 "),
        (b"space directions: ", b"space directions: none "),
        (b"encoding: ", b"kinds: list domain domain domain\nencoding: "),
    ):
        content = content.replace(old, new, 1)
    path.write_bytes(content)
    assert np.array_equal(read_volume(path).voxels, NOISE)


def test_what_itk_says_of_a_header_is_quoted(tmp_path: Path) -> None:
    path = nrrd(tmp_path / "a.nrrd", RAW, "encoding: raw\n")
    path.write_bytes(path.read_bytes().replace(b"NRRD000", b"NRRD999", 1))
    with pytest.raises(InputError, match=r"a NRRD image: couldn't parse \"NRRD999"):
        read_volume(path)


@pytest.mark.parametrize("ending", [".nhdr", ".mhd"])
@pytest.mark.parametrize("how", ["LIST", "pattern"])
def test_a_file_for_each_slice(tmp_path: Path, ending: str, how: str) -> None:
    """Compared with what ITK reads."""
    (tmp_path / "slices").mkdir()
    names = [f"slices/s{number:02d}.raw" for number in range(1, 12)]
    for name, plane in zip(names, NOISE.astype("<i2"), strict=True):
        (tmp_path / name).write_bytes(plane.tobytes())
    where = "LIST\n" + "\n".join(names) if how == "LIST" else "slices/s%02d.raw 1 11 1"
    path = tmp_path / f"a{ending}"
    if ending == ".nhdr":
        path.write_text(f"{NRRD}encoding: raw\ndata file: {where}\n")
    else:
        path.write_text(f"{META}ElementType = MET_SHORT\nElementDataFile = {where}\n")
    found = read_volume(path)
    assert np.array_equal(found.voxels, NOISE)
    assert np.array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(path))), NOISE)
    (tmp_path / names[4]).write_bytes(b"short")
    assert noticed(path, found)


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64])
@pytest.mark.parametrize("ending", [".nrrd", ".mha"])
@pytest.mark.parametrize("compress", [True, False])
def test_every_type_that_itk_writes(
    tmp_path: Path, kind: type, ending: str, compress: bool
) -> None:
    path = tmp_path / f"a{ending}"
    scan = SCAN.with_voxels(np.abs(NOISE // 8).astype(kind))
    sitk.WriteImage(to_sitk(scan), str(path), useCompression=compress)
    found = read_volume(path)
    assert found.voxels.dtype == kind
    assert np.array_equal(found.voxels, scan.voxels)
    assert found.geometry.matches(GRID)


def test_the_first_byte_may_be_the_largest(tmp_path: Path) -> None:
    path = nrrd(tmp_path / "a.nrrd", NOISE.astype(">i2").tobytes(), "encoding: raw\n")
    path.write_bytes(path.read_bytes().replace(b"endian: little", b"endian: big"))
    assert np.array_equal(read_volume(path).voxels, NOISE)
    path = meta(tmp_path / "a.mha", zlib.compress(NOISE.astype(">i2").tobytes()), ZLIB)
    path.write_bytes(path.read_bytes().replace(b"MSB = False", b"MSB = True"))
    assert np.array_equal(read_volume(path).voxels, NOISE)


@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".mgh", ".mgz"])
def test_whether_a_file_is_compressed_is_told_by_what_it_holds(tmp_path: Path, ending: str) -> None:
    plain = tmp_path / ("a.mgh" if "mg" in ending else "a.nii")
    kind = nibabel.MGHImage if "mg" in ending else nibabel.Nifti1Image
    kind(NOISE.T, GRID.ijk_to_ras).to_filename(plain)
    data = plain.read_bytes()
    path = tmp_path / f"b{ending}"
    for content in (data, gzip.compress(data)):
        path.write_bytes(content)
        assert np.array_equal(read_volume(path).voxels, NOISE)


@pytest.mark.parametrize(
    ("slope", "inter", "expected"),
    [
        (1, np.nan, NOISE),
        (np.nan, 0, NOISE),
        (np.nan, np.nan, NOISE),
        (0, 0, NOISE),
        (np.inf, np.inf, NOISE),
        (2, np.nan, 2 * NOISE),
        (1, 0, NOISE),
        (2, -7, 2 * NOISE - 7),
    ],
)
@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_scales_that_are_no_numbers_are_read_as_itk_reads_them(
    tmp_path: Path, slope: float, inter: float, expected: np.ndarray, kind: type
) -> None:
    path = tmp_path / "a.nii"
    kind(NOISE.T, GRID.ijk_to_ras).to_filename(path)
    place = 112 if kind is nibabel.Nifti1Image else 176
    code = "<f4" if kind is nibabel.Nifti1Image else "<f8"
    data = path.read_bytes()
    scale = np.array([slope, inter], code).tobytes()
    path.write_bytes(data[:place] + scale + data[place + len(scale) :])
    np.testing.assert_array_equal(read_volume(path).voxels, expected)
    if kind is nibabel.Nifti1Image:
        np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(path))), expected)


@pytest.mark.parametrize("has_sform", [True, False])
@pytest.mark.parametrize("length", [1.0000005, 1.00001, 1.0003])
def test_a_quaternion_too_long_by_rounding_is_read(
    tmp_path: Path, length: float, has_sform: bool
) -> None:
    """A half turn around an oblique axis: its real part is 0, so nothing makes up for the rounding."""
    path = tmp_path / "a.nii.gz"
    axis = np.array([0.48, 0.6, 0.64])
    turn = np.eye(4)
    turn[:3, :3] = (2 * np.outer(axis, axis) - np.eye(3)) * images.SPACING_MM
    image = nibabel.Nifti1Image(NOISE.T, None)
    image.header.set_qform(turn, 1)
    image.header.set_sform(turn if has_sform else None, 1 if has_sform else 0)
    for name, part in zip("bcd", axis * length, strict=True):
        image.header[f"quatern_{name}"] = part
    image.to_filename(path)
    found = read_volume(path)
    assert np.array_equal(found.voxels, NOISE)
    np.testing.assert_allclose(found.geometry.ijk_to_ras, turn, atol=1e-3)
    assert found.notes == ()


@pytest.mark.parametrize("spoiled", ["quaternion", "matrix"])
@pytest.mark.parametrize("value", [7.0, np.nan, np.inf])
def test_a_placement_that_cannot_be_meant_counts_only_where_nothing_else_does(
    tmp_path: Path, spoiled: str, value: float
) -> None:
    image = nibabel.Nifti1Image(NOISE.T, None)
    image.header.set_qform(GRID.ijk_to_ras, 1)
    image.header.set_sform(GRID.ijk_to_ras, 1)
    if spoiled == "quaternion":
        image.header["quatern_b"] = value
    else:
        for row in "xyz":
            image.header[f"srow_{row}"] = 0 if value == 7 else value
    image.to_filename(tmp_path / "a.nii")
    found = read_volume(tmp_path / "a.nii")
    assert found.geometry.matches(GRID)
    assert found.notes == ()
    image.header["sform_code" if spoiled == "quaternion" else "qform_code"] = 0
    image.to_filename(tmp_path / "b.nii")
    with pytest.raises(MedSegAIError, match=r"b\.nii"):
        read_volume(tmp_path / "b.nii")


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_a_header_that_does_not_say_where_the_voxels_begin(tmp_path: Path, kind: type) -> None:
    """nibabel would take the bytes of the header for voxels."""
    kind(NOISE.T, GRID.ijk_to_ras).to_filename(tmp_path / "a.nii")
    data = bytearray((tmp_path / "a.nii").read_bytes())
    place = slice(108, 112) if kind is nibabel.Nifti1Image else slice(168, 176)
    data[place] = bytes(place.stop - place.start)
    (tmp_path / "a.nii").write_bytes(data)
    with pytest.raises(InputError, match=r"a\.nii: its header does not say where its voxels begin"):
        read_volume(tmp_path / "a.nii")


def test_axes_after_the_third_may_have_no_size(tmp_path: Path) -> None:
    """Some programs write a fourth axis of 0 elements; ITK takes it for one of one."""
    nibabel.Nifti1Image(NOISE.T, GRID.ijk_to_ras).to_filename(tmp_path / "a.nii")
    data = bytearray((tmp_path / "a.nii").read_bytes())
    data[40:42] = (4).to_bytes(2, "little")
    data[48:50] = bytes(2)
    (tmp_path / "a.nii").write_bytes(data)
    assert np.array_equal(read_volume(tmp_path / "a.nii").voxels, NOISE)


@pytest.mark.parametrize(
    ("value", "kind"),
    [(1e200, np.float64), (-1e200, np.float64), (3.4028235e38, np.float32), (-1e16, np.float32)],
)
@pytest.mark.filterwarnings("error")
def test_values_that_no_scan_has_are_named(tmp_path: Path, value: float, kind: type) -> None:
    voxels = NOISE.astype(kind)
    voxels[3, 4, 5] = value
    nibabel.Nifti1Image(voxels.T, GRID.ijk_to_ras).to_filename(tmp_path / "a.nii.gz")
    with pytest.raises(InputError, match=r"values from .* and 1 of its voxels lie beyond 1e\+15"):
        read_volume(tmp_path / "a.nii.gz")


@pytest.mark.filterwarnings("error")
def test_scaling_to_infinity_is_refused(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(NOISE.T, GRID.ijk_to_ras)
    image.header.set_slope_inter(3e37, 0)
    image.to_filename(tmp_path / "a.nii")
    with pytest.raises(InputError, match="NaN or infinite"):
        read_volume(tmp_path / "a.nii")


OUTSIDE = ["{secret}", "../secret.raw", "sub/../../secret.raw", "link.raw", "fifo", "sub"]


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("ending", [".nhdr", ".nrrd", ".mhd", ".mha"])
@pytest.mark.parametrize("how", ["one", "LIST", "pattern"])
def test_a_header_cannot_name_a_file_outside_of_its_folder(
    tmp_path: Path, name: str, ending: str, how: str
) -> None:
    """Nor a link that leads there, nor a pipe, which would never end."""
    secret, folder = tmp_path / "secret.raw", tmp_path / "images"
    secret.write_bytes(RAW)
    (tmp_path / "secret1.raw").write_bytes(RAW)
    (folder / "sub").mkdir(parents=True)
    (folder / "link.raw").symlink_to(secret)
    os.mkfifo(folder / "fifo")
    name = name.format(secret=secret)
    numbered = f"{name.replace('.raw', '')}%d.raw 1 1 1"
    where = {"one": name, "LIST": f"LIST\n{name}", "pattern": numbered}[how]
    path = folder / f"a{ending}"
    if ending in (".nhdr", ".nrrd"):
        path.write_text(f"{NRRD}encoding: raw\ndata file: {where}\n")
    else:
        path.write_text(f"{META}ElementType = MET_SHORT\nElementDataFile = {where}\n")
    with pytest.raises(InputError, match=rf"a\{ending}"):
        read_volume(path)


@pytest.mark.parametrize(
    "ending",
    [".nii", ".nii.gz", ".img", ".hdr", ".mgz", ".nrrd", ".nhdr", ".mha", ".seg.nrrd", ".dcm", ""],
)
@pytest.mark.parametrize("device", [None, "/dev/zero"])
def test_pipes_and_devices_are_refused(tmp_path: Path, ending: str, device: str | None) -> None:
    """Reading them would never end."""
    path = tmp_path / f"a{ending}"
    if device is None:
        os.mkfifo(path)
    else:
        path.symlink_to(device)
    for read in (read_volume, read_labelmap):
        with pytest.raises(InputError, match="is a device or a pipe, not a file"):
            read(path)


def test_half_of_a_pair_that_is_a_pipe(tmp_path: Path) -> None:
    nibabel.Nifti1Pair(NOISE.T, GRID.ijk_to_ras).to_filename(tmp_path / "a.img")
    (tmp_path / "a.img").unlink()
    os.mkfifo(tmp_path / "a.img")
    with pytest.raises(InputError, match=r"a\.hdr: its other half a\.img is missing"):
        read_volume(tmp_path / "a.hdr")


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha", ".seg.nrrd", ".dcm"])
def test_a_name_that_is_not_unicode_is_one_error(tmp_path: Path, ending: str) -> None:
    """SimpleITK would end the process."""
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/b_\xfc" + ending.encode()))
    path.write_bytes(b"x" * 400)
    for read in (read_volume, read_labelmap):
        with pytest.raises(InputError, match=r"b_\\xfc.*not UTF-8. Rename it"):
            read(path)


@pytest.mark.parametrize("kind", ["one file", "one file of NIfTI-2", "a pair"])
def test_extensions_of_a_header_take_no_more_memory_than_headers_have(
    kind: str, tmp_path: Path
) -> None:
    """A megabyte that unpacks to a thousand: nibabel takes whatever length an extension claims."""
    claimed, image = 300 << 20, nibabel.Nifti1Image
    if kind == "one file of NIfTI-2":
        image = nibabel.Nifti2Image
    header = image(NOISE, np.eye(4)).header
    if kind != "a pair":
        header["vox_offset"] = header.sizeof_hdr + claimed
    else:
        header["magic"] = b"ni1"
    start = header.binaryblock + struct.pack("<4B2i", 1, 0, 0, 0, claimed - 16, 6)
    path = tmp_path / ("a.hdr" if kind == "a pair" else "a.nii.gz")
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(start)
        for _ in range(claimed >> 20):
            file.write(bytes(1 << 20))
    path.with_suffix(".img").write_bytes(RAW)
    tracemalloc.start()
    try:
        with contextlib.suppress(InputError):  # of a pair, the image is there
            read_volume(path)
        assert tracemalloc.get_traced_memory()[1] < 150 << 20
    finally:
        tracemalloc.stop()

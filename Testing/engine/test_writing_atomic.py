"""A file appears whole or not at all, and what cannot be written is known before the work."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

import images
from medsegai.errors import OutputError
from medsegai.io import (
    WRITABLE,
    atomic_path,
    check_output,
    write_probabilities,
    write_segmentation,
    write_volume,
)
from medsegai.labels import Label
from medsegai.volume import Geometry, Volume

LABELS = [Label(value, f"Label {value}", (9, 9, 9)) for value in (1, 2, 3)]
RANDOM = Volume(
    np.random.default_rng(0).integers(0, 4, (60, 70, 80)).astype(np.uint8),
    Geometry((60, 70, 80), np.eye(4)),
)
SMALL = images.blobs(images.geometry("oblique"))


def probabilities(volume: Volume) -> np.ndarray:
    return np.stack([volume.voxels == label.value for label in LABELS]).astype(np.float16)


Writer = Callable[[Path, Volume], None]
WRITERS: dict[str, Writer] = {
    f"segmentation{ending}": lambda path, volume: write_segmentation(path, volume, LABELS)
    for ending in WRITABLE
} | {
    "volume.nii.gz": write_volume,
    "volume.nii": write_volume,
    "volume.nrrd": write_volume,
    "volume.mha": write_volume,
    "volume.mgz": write_volume,
    "probabilities.nii": lambda path, volume: write_probabilities(
        path, probabilities(volume), volume.geometry, LABELS
    ),
    "probabilities.nii.gz": lambda path, volume: write_probabilities(
        path, probabilities(volume), volume.geometry, LABELS
    ),
}


def test_the_file_appears_at_the_end(tmp_path: Path) -> None:
    final = tmp_path / "result.v2.seg.nrrd"
    with atomic_path(final) as partial:
        assert partial.parent == tmp_path
        assert partial.name.startswith(".")
        assert partial.name.endswith(".seg.nrrd")
        partial.write_text("whole")
        assert not final.exists()
    assert final.read_text() == "whole"
    assert list(tmp_path.iterdir()) == [final]


def test_the_disk_has_what_is_in_a_file_before_the_file_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut leaves the old file or the new one."""
    path, flushed = tmp_path / "out.txt", []
    monkeypatch.setattr(
        os, "fsync", lambda file: flushed.append((os.fstat(file).st_size, path.exists()))
    )
    with atomic_path(path) as partial:
        partial.write_text("new")
    assert flushed == [(3, False)]
    assert path.read_text() == "new"


@pytest.mark.parametrize("exception", [KeyboardInterrupt, SystemExit, ValueError, MemoryError])
def test_after_an_exception_all_is_as_before(
    tmp_path: Path, exception: type[BaseException]
) -> None:
    final = tmp_path / "result.json"
    final.write_text("corrected by hand")

    def write() -> None:
        with atomic_path(final) as partial:
            partial.write_text("half")
            raise exception

    with pytest.raises(exception):
        write()
    assert final.read_text() == "corrected by hand"
    assert list(tmp_path.iterdir()) == [final]


@pytest.mark.parametrize("name", WRITERS)
def test_ctrl_c_within_any_writer_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        WRITERS[name](tmp_path / name, SMALL)
    assert list(tmp_path.iterdir()) == []


@contextlib.contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    """The kernel refuses to write beyond `size`, for Python and for C++ writers alike."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [0, 1000, 20000])
@pytest.mark.parametrize("name", WRITERS)
def test_a_write_that_fails_half_way_is_an_error_and_leaves_nothing(
    tmp_path: Path, name: str, size: int
) -> None:
    path = tmp_path / name
    WRITERS[name](path, SMALL)
    before = path.read_bytes()
    with files_no_larger_than(size), pytest.raises(OutputError) as caught:
        WRITERS[name](path, RANDOM)
    assert str(caught.value).startswith(str(path))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no permission to mount a disk; the test with a file size limit stands for it")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("volume", [SMALL, RANDOM], ids=["small", "large"])
@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_is_named(tiny_disk: Path, name: str, volume: Volume) -> None:
    """Small files are the trap: ITK notices nothing when the disk fills up as it closes the file."""
    with contextlib.suppress(OSError):
        (tiny_disk / "fill").write_bytes(b"\0" * (1 << 16))
    with pytest.raises(OutputError, match=f"{name}.*disk.*ree some space"):
        WRITERS[name](tiny_disk / name, volume)
    assert [path.name for path in tiny_disk.iterdir()] == ["fill"]


@pytest.mark.parametrize("ending", [".nrrd", ".mha"])
def test_what_itk_wrote_is_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    def lose_the_end(image: sitk.Image, *arguments: object, **options: object) -> None:
        image = sitk.Image(image)
        image[4, 5, 6] = 99
        write(image, *arguments, **options)

    write = sitk.WriteImage
    monkeypatch.setattr(sitk, "WriteImage", lose_the_end)
    with pytest.raises(OutputError, match="could not be written completely"):
        write_volume(tmp_path / f"map{ending}", SMALL)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.ENOSPC, "the disk is full. Free some space"),
        (errno.EDQUOT, "quota"),
        (errno.EACCES, "not allowed"),
        (errno.EPERM, "not allowed"),
        (errno.EROFS, "read-only"),
        (errno.EIO, "Input/output error. Choose another place"),
    ],
)
def test_what_the_system_says_is_put_into_words(tmp_path: Path, number: int, reason: str) -> None:
    def write() -> None:
        with atomic_path(tmp_path / "result.csv") as partial:
            partial.touch()
            raise OSError(number, os.strerror(number))

    with pytest.raises(OutputError, match=reason) as caught:
        write()
    assert str(tmp_path / "result.csv") in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_block_that_writes_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"result\.csv"), atomic_path(tmp_path / "result.csv"):
        pass


def test_errors_inside_name_the_file_that_was_asked_for(tmp_path: Path) -> None:
    """Several results are written beside their places first, then moved together."""

    def write() -> None:
        with atomic_path(tmp_path / "labels.seg.nrrd") as partial:
            write_segmentation(partial, SMALL, LABELS[:1])

    with pytest.raises(OutputError, match=r"labels\.seg\.nrrd: the labelmap has values") as caught:
        write()
    assert "/." not in str(caught.value)


def test_the_file_has_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    write_volume(tmp_path / "map.nii.gz", SMALL)
    (tmp_path / "other").touch()
    modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert len(modes) == 1


@pytest.mark.parametrize("umask", [0o002, 0o022, 0o077])
@pytest.mark.parametrize("name", WRITERS)
def test_outputs_follow_the_umask(tmp_path: Path, name: str, umask: int) -> None:
    before = os.umask(umask)
    try:
        WRITERS[name](tmp_path / name, SMALL)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o666 & ~umask


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "archive").mkdir()
    link = tmp_path / "map.nii.gz"
    link.symlink_to(tmp_path / "archive" / "map.nii.gz")
    write_volume(link, SMALL)
    assert link.is_symlink()
    assert (tmp_path / "archive" / "map.nii.gz").is_file()


def test_a_good_place_passes_and_stays_as_it_is(tmp_path: Path) -> None:
    there = tmp_path / "map.nii.gz"
    there.write_text("before")
    check_output(there, WRITABLE)
    check_output(tmp_path / "new.SEG.NRRD", WRITABLE)
    check_output(str(tmp_path / "report.json"))
    assert there.read_text() == "before"
    assert list(tmp_path.iterdir()) == [there]


@pytest.mark.parametrize(
    "name", ["map.png", "map", "map.nii.bz2", "map.hdr", "map.mhd", "map.nhdr"]
)
def test_an_unknown_ending_is_refused_with_the_known_ones(tmp_path: Path, name: str) -> None:
    with pytest.raises(OutputError, match=r"cannot write this type.*\.seg\.nrrd, \.nii\.gz"):
        check_output(tmp_path / name, WRITABLE)
    with pytest.raises(OutputError, match="cannot write this type"):
        write_volume(tmp_path / name, SMALL)
    with pytest.raises(
        OutputError, match=r"cannot write this type|7 slices, but a picture has only one"
    ):
        write_segmentation(tmp_path / name, SMALL, LABELS)
    assert list(tmp_path.iterdir()) == []


def refused(path: Path) -> str:
    with pytest.raises(OutputError) as caught:
        check_output(path)
    with pytest.raises(OutputError) as again:
        write_volume(path, SMALL)
    assert str(again.value) == str(caught.value)
    return str(caught.value)


def test_a_place_that_cannot_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "folder.nii.gz").mkdir()
    (tmp_path / "file").touch()
    assert "does not exist. Create it" in refused(tmp_path / "missing" / "map.nii.gz")
    assert "does not exist" in refused(tmp_path / "file" / "map.nii.gz")
    assert "is a folder" in refused(tmp_path / "folder.nii.gz")
    assert "name is too long" in refused(tmp_path / ("x" * 300 + ".nii.gz"))
    os.mkfifo(tmp_path / "pipe.nii.gz")
    assert "is a device" in refused(tmp_path / "pipe.nii.gz")
    assert "not allowed" in refused(Path("/sys/map.nii.gz"))


def test_a_folder_without_permission_is_refused() -> None:
    root = os.geteuid() == 0
    with tempfile.TemporaryDirectory() as folder:  # not pytest's: its parents are private
        Path(folder).chmod(0o555)
        if root:
            os.seteuid(65534)  # root may write everywhere
        try:
            assert "not allowed" in refused(Path(folder) / "map.nii.gz")
        finally:
            if root:
                os.seteuid(0)
            Path(folder).chmod(0o755)


def test_a_folder_whose_name_is_not_unicode_is_refused(tmp_path: Path) -> None:
    """SimpleITK would end the process."""
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/b_\xfc"))
    folder.mkdir()
    with pytest.raises(OutputError, match=r"b_\\xfc.* cannot be written: its name has bytes"):
        check_output(folder / "a.nrrd")

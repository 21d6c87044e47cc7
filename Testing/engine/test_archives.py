"""Zip archives: what is unpacked, what is refused, and that nothing stays behind."""

from __future__ import annotations

import stat
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import pytest

from medsegai.errors import ModelError, UnsafeModelError
from medsegai.io.archives import Kind, Limits, unpacked


def kind_of(path: PurePosixPath) -> Kind:
    kinds = {".json": Kind.WANTED, ".png": Kind.KNOWN}
    return kinds.get(path.suffix, Kind.FOREIGN)


def archive_of(folder: Path, files: dict[str, bytes], **options: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(folder / "model.zip", "w", **options) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return folder / "model.zip"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "place").mkdir()
    return tmp_path / "place"


def refused(archive: Path, place: Path, limits: Limits | None = None) -> str:
    """The message; the block is not entered, and nothing is left."""
    before = sorted(place.parent.rglob("*"))
    with pytest.raises(ModelError) as caught, unpacked(archive, kind_of, place, limits):
        pytest.fail("it was unpacked")
    assert not list(place.iterdir())
    assert sorted(place.parent.rglob("*")) == before
    assert str(archive) in str(caught.value)
    safe = not isinstance(caught.value, UnsafeModelError)
    return f"{'safe' if safe else 'unsafe'}: {caught.value}"


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_what_is_wanted_is_unpacked_and_goes_away(
    compression: int, tmp_path: Path, place: Path
) -> None:
    files = {"a/b/x.json": b"{}" * 5000, "y.json": b"", "a/z.png": b"picture"}
    archive = archive_of(tmp_path, files, compression=compression)
    with unpacked(archive, kind_of, place) as folder:
        found = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
        assert found == {"a/b/x.json", "y.json"}
        assert (folder / "a/b/x.json").read_bytes() == files["a/b/x.json"]
        assert folder.is_relative_to(place)
        assert folder.name == "model"
    assert not list(place.iterdir())


@pytest.mark.parametrize("exception", [ValueError, KeyboardInterrupt, SystemExit])
def test_the_folder_goes_away_after_a_crash(
    exception: type[BaseException], tmp_path: Path, place: Path
) -> None:
    archive = archive_of(tmp_path, {"x.json": b"{}"})
    with pytest.raises(exception), unpacked(archive, kind_of, place):
        raise exception
    assert not list(place.iterdir())


@pytest.mark.parametrize(
    "name",
    [
        "../x.json",
        "a/../../x.json",
        "a/../x.json",
        "/etc/x.json",
        "//server/x.json",
        "C:/x.json",
        "..\\x.json",
        "a\\x.json",
        "C:\\x.json",
        "a/x.json\x00.png",
        "a/\nx.json",
        "a /x.json",
        "a./x.json",
        "x.json:stream.json",
    ],
)
def test_names_that_could_leave_the_folder_are_refused(
    name: str, tmp_path: Path, place: Path
) -> None:
    entry = zipfile.ZipInfo("placeholder")
    entry.filename = name.replace("\x00", "@")  # zipfile would cut the name there
    with zipfile.ZipFile(tmp_path / "model.zip", "w") as archive:
        archive.writestr("good.json", b"{}")
        archive.writestr(entry, b"evil")
    if "\x00" in name:
        raw = (tmp_path / "model.zip").read_bytes()
        (tmp_path / "model.zip").write_bytes(raw.replace(b"x.json@", b"x.json\x00"))
    words = refused(tmp_path / "model.zip", place)
    assert words.startswith("unsafe")
    assert "outside its folder" in words


@pytest.mark.parametrize("mode", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR])
@pytest.mark.parametrize("name", ["x.json", "x.png"])
def test_links_and_devices_are_refused(name: str, mode: int, tmp_path: Path, place: Path) -> None:
    entry = zipfile.ZipInfo(name)
    entry.create_system = 3
    entry.external_attr = (mode | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "model.zip", "w") as archive:
        archive.writestr(entry, "/etc/passwd")
    assert "link" in refused(tmp_path / "model.zip", place)


def test_a_file_that_does_not_belong_there_is_refused(tmp_path: Path, place: Path) -> None:
    archive = archive_of(tmp_path, {"x.json": b"{}", "a/run.py": b"print()"})
    words = refused(archive, place)
    assert words.startswith("unsafe")
    assert "a/run.py" in words


def test_the_same_name_twice_is_refused(tmp_path: Path, place: Path) -> None:
    archive = archive_of(tmp_path, {"a/x.json": b"{}", "A/X.json": b"[]"})
    assert "twice" in refused(archive, place)


def test_a_name_for_a_file_and_a_folder_is_refused(tmp_path: Path, place: Path) -> None:
    for files in ({"a.json": b"", "a.json/x.json": b""}, {"a.json/x.json": b"", "a.json": b""}):
        assert "damaged" in refused(archive_of(tmp_path, files), place)


def test_a_folder_without_wanted_files_is_there(tmp_path: Path, place: Path) -> None:
    archive = archive_of(tmp_path, {"a/empty/": b"", "a/x.json": b"{}"})
    with unpacked(archive, kind_of, place) as folder:
        assert (folder / "a" / "empty").is_dir()


def test_a_bomb_is_refused_before_it_goes_off(tmp_path: Path, place: Path) -> None:
    files = {"x.json": bytes(64 << 20)}
    archive = archive_of(tmp_path, files, compression=zipfile.ZIP_DEFLATED)
    assert archive.stat().st_size < 100_000
    assert "fill disks" in refused(archive, place)


def test_more_than_can_be_meant_is_refused(tmp_path: Path, place: Path) -> None:
    archive = archive_of(tmp_path, {f"{number}.json": b"12345" for number in range(10)})
    assert "10 files" in refused(archive, place, Limits(files=9))
    assert "50 bytes" in refused(archive, place, Limits(bytes=49))
    with unpacked(archive, kind_of, place, Limits(files=10, bytes=50)):
        pass


def test_files_that_share_their_bytes_are_refused(tmp_path: Path, place: Path) -> None:
    """David Fifield's bomb: many names for one kernel of compressed zeros."""
    content = bytes(range(256)) * 40
    archive = archive_of(tmp_path, {"0.json": content})
    with zipfile.ZipFile(archive, "a") as opened:
        first = opened.infolist()[0]
        for number in range(1, 30):
            twin = zipfile.ZipInfo(f"{number}.json")
            for name in ("header_offset", "CRC", "compress_size", "file_size"):
                setattr(twin, name, getattr(first, name))
            opened.filelist.append(twin)
            opened._didModify = True
    assert "share their bytes" in refused(archive, place)


def patched(archive: Path, change: Callable[[bytearray], None]) -> Path:
    raw = bytearray(archive.read_bytes())
    change(raw)
    archive.write_bytes(raw)
    return archive


def directory(raw: bytearray) -> int:
    return raw.rindex(b"PK\x01\x02")


def lie_about_size(size: int) -> Callable[[bytearray], None]:
    """Change the declared size in both headers of the only file."""

    def change(raw: bytearray) -> None:
        struct.pack_into("<L", raw, 22, size)
        struct.pack_into("<L", raw, directory(raw) + 24, size)

    return change


DAMAGES: list[tuple[Callable[[bytearray], None], str]] = [
    (lambda raw: raw.__delitem__(slice(-30, None)), "not a zip archive"),
    (lambda raw: raw.__delitem__(slice(0, 5)), "damaged"),
    (lambda raw: raw.__setitem__(60, raw[60] ^ 255), "damaged"),
    (lambda raw: raw.__setitem__(slice(0, 4), b"XXXX"), "damaged"),
    (lie_about_size(100), "damaged"),
    (lie_about_size(100_000), "damaged"),
    (lambda raw: struct.pack_into("<L", raw, directory(raw) + 42, 10**9), "damaged"),
    (lambda raw: struct.pack_into("<H", raw, directory(raw) + 8, 1), "encrypted"),
    (lambda raw: struct.pack_into("<H", raw, directory(raw) + 10, 93), "packed in a way"),
    (lambda raw: raw.clear(), "not a zip archive"),
    (lambda raw: raw.__setitem__(slice(None), b"hello" * 99), "not a zip archive"),
]


@pytest.mark.parametrize(("damage", "word"), DAMAGES)
def test_a_damaged_archive_is_refused(
    damage: Callable[[bytearray], None], word: str, tmp_path: Path, place: Path
) -> None:
    content = bytes(value * 7 % 251 for value in range(3000))
    archive = archive_of(tmp_path, {"x.json": content}, compression=zipfile.ZIP_DEFLATED)
    words = refused(patched(archive, damage), place)
    assert word in words
    assert words.startswith("safe")


@pytest.mark.parametrize("comment", [b"", b"a comment, PK and all"])
def test_an_archive_that_is_cut_off_is_not_taken_for_one_inside(
    comment: bytes, tmp_path: Path, place: Path
) -> None:
    """Wherever it is cut; files of torch are archives, too."""
    inner = archive_of(tmp_path / "inner", {"model/data.pkl": b"x" * 50}).read_bytes()
    archive = archive_of(tmp_path, {"x.json": b"{}", "y.json": inner, "z.json": b"{}"})
    with zipfile.ZipFile(archive, "a") as opened:
        opened.comment = comment
    whole = archive.read_bytes()
    for end in range(len(whole)):
        archive.write_bytes(whole[:end])
        assert "is not a zip archive, or is damaged" in refused(archive, place)
    archive.write_bytes(whole)
    with unpacked(archive, kind_of, place) as folder:
        assert (folder / "y.json").read_bytes() == inner


def test_a_size_that_lies_fills_no_disk(tmp_path: Path, place: Path) -> None:
    """16 MB declared as 100 bytes: no more than that is written before it is found out."""
    archive = archive_of(tmp_path, {"x.json": bytes(16 << 20)}, compression=zipfile.ZIP_DEFLATED)
    words = refused(patched(archive, lie_about_size(100)), place)
    assert "damaged" in words


def test_encryption_of_what_is_not_wanted_does_no_harm(tmp_path: Path, place: Path) -> None:
    archive = archive_of(tmp_path, {"x.json": b"{}", "z.png": b"secret"})
    patched(archive, lambda raw: struct.pack_into("<H", raw, directory(raw) + 8, 1))
    with unpacked(archive, kind_of, place) as folder:
        assert [path.name for path in folder.iterdir()] == ["x.json"]

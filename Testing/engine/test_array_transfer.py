"""Arrays in messages: what is sent arrives, whatever its size, and what is damaged is refused."""

from __future__ import annotations

import base64
import os
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from medsegai.errors import OutputError, WorkerError
from medsegai.worker import protocol
from medsegai.worker.array_transfer import (
    BLOCK_BYTES,
    Travel,
    blocks,
    file_in,
    take_block,
)

NAME = "0123456789abcdef" * 2 + ".npy"


def send(source: Path, destination: Path) -> list[Travel]:
    lines = [protocol.encode({"type": "array", **block}) for block in blocks(source)]
    return [take_block(protocol.decode(line), destination) for line in lines]


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    source, destination = tmp_path / "here", tmp_path / "there"
    source.mkdir()
    destination.mkdir()
    return source, destination


@pytest.mark.parametrize("size", [1, BLOCK_BYTES - 128, BLOCK_BYTES, 3 * BLOCK_BYTES + 5])
def test_arrays_arrive_bit_for_bit(folders: tuple[Path, Path], size: int) -> None:
    source, destination = folders
    noise = np.random.default_rng(0).integers(0, 256, size).astype(np.uint8)
    names = [protocol.pack_array(array, source) for array in (noise, noise[::-1], noise[:0])]
    travels = send(source, destination)
    np.testing.assert_array_equal(np.load(destination / names[0]), noise)
    np.testing.assert_array_equal(np.load(destination / names[1]), noise[::-1])
    assert np.load(destination / names[2]).size == 0
    parts = [travel.part for travel in travels]
    assert parts == sorted(parts)
    assert parts[-1] == 1.0
    assert travels[-1].total == sum(file.stat().st_size for file in source.iterdir())


def test_an_image_shrinks_on_its_way(folders: tuple[Path, Path]) -> None:
    source, _ = folders
    image = np.zeros((60, 128, 128), np.int16)
    image[20:40, 30:90, 30:90] = np.random.default_rng(0).integers(0, 200, (20, 60, 60))
    protocol.pack_array(image, source)
    sent = sum(len(block["data"]) for block in blocks(source))
    assert sent < 0.3 * image.nbytes


def test_neither_side_holds_more_than_a_few_blocks(folders: tuple[Path, Path]) -> None:
    source, destination = folders
    with (source / NAME).open("wb") as stream:
        for _ in range(24):
            stream.write(os.urandom(BLOCK_BYTES))
    tracemalloc.start()
    for block in blocks(source):
        take_block(block, destination)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * BLOCK_BYTES
    assert (destination / NAME).stat().st_size == 24 * BLOCK_BYTES


def message(data: bytes | str, name: str = NAME) -> dict[str, object]:
    text = data if isinstance(data, str) else base64.b64encode(data).decode()
    return {"type": "array", "name": name, "data": text, "first": 0, "done": 1, "total": 1}


DAMAGED: dict[str, Callable[[], bytes | str]] = {
    "plain": lambda: b"not compressed",
    "cut": lambda: zlib.compress(b"cut short" * 100)[:-3],
    "too long": lambda: zlib.compress(bytes(BLOCK_BYTES + 2)),
    "bomb": lambda: zlib.compress(bytes(500 * BLOCK_BYTES)),
    "no base64": lambda: "no base64!",
    "empty": lambda: b"",
}
"""Made when they are needed: a bomb takes a second."""


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_block_is_refused(tmp_path: Path, damage: str) -> None:
    block = message(DAMAGED[damage]())
    with pytest.raises(WorkerError, match="damaged"):
        take_block(block, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["../x.npy", "/tmp/x.npy", ".", "x.npy", f"a/{NAME}", NAME + "\n"])
def test_a_file_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(WorkerError, match="not the name of an array"):
        take_block(message(zlib.compress(b"x"), name), tmp_path)
    with pytest.raises(WorkerError, match="not the name of an array"):
        file_in(tmp_path, name)


def test_a_full_disk_is_an_output_error(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    (tmp_path / NAME).symlink_to("/dev/full")
    with pytest.raises(OutputError, match="Free space"):
        take_block(message(zlib.compress(b"x")), tmp_path)


def test_a_file_that_is_gone_is_an_output_error(folders: tuple[Path, Path]) -> None:
    source, _ = folders
    protocol.pack_array(np.zeros(2 * BLOCK_BYTES, np.uint8), source)
    protocol.pack_array(np.zeros(2 * BLOCK_BYTES, np.uint8), source)
    sending = blocks(source)
    next(sending)
    for file in source.iterdir():
        file.unlink()
    with pytest.raises(OutputError, match="cannot be read"):
        list(sending)


@pytest.mark.parametrize("number", [-1, 1e300, float("inf"), "1", None, 1 << 60, [1]])
def test_an_array_says_how_long_it_is(tmp_path: Path, number: object) -> None:
    for key in ("done", "total"):
        with pytest.raises(WorkerError, match="its length is missing"):
            take_block({**message(zlib.compress(b"x")), key: number}, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("line", [b'{"type": "x", "done": Infinity}', b'{"type": 1e999}'])
def test_numbers_in_messages_are_finite(line: bytes) -> None:
    with pytest.raises(WorkerError, match="not JSON"):
        protocol.decode(line)


@pytest.mark.parametrize("damage", ["lost", "twice", "swapped"])
def test_a_block_that_is_lost_or_comes_twice_is_noticed(tmp_path: Path, damage: str) -> None:
    """The checksum of each block is right; their order is not."""
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    array = np.random.default_rng(0).integers(0, 255, 3 * BLOCK_BYTES, dtype=np.uint8)
    name = protocol.pack_array(array, here)
    sent = list(blocks(here))
    assert len(sent) == 4
    order = {"lost": [0, 2, 3], "twice": [0, 1, 1, 2, 3], "swapped": [0, 2, 1, 3]}[damage]
    come = iter([sent[number] for number in order])
    for _ in range(2 if damage == "twice" else 1):
        take_block(next(come), there)
    with pytest.raises(WorkerError, match="a block is missing, or arrived twice"):
        take_block(next(come), there)
    (there / name).unlink()
    for message in sent[:-1]:
        take_block(message, there)
    with pytest.raises(WorkerError):
        protocol.unpack_array(name, there)
    take_block(sent[-1], there)
    assert np.array_equal(protocol.unpack_array(name, there), array)

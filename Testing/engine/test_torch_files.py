"""Files of torch from strangers: what torch saves is read, what would harm is refused, at once and by name.

`torch.load` is never asked, so the tests make both kinds of files here: sound ones with `torch.save`, bad ones
instruction by instruction.
"""

from __future__ import annotations

import io
import os
import pickle
import resource
import struct
import time
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medsegai.errors import ModelError, UnsafeModelError
from medsegai.networks.checkpoints import read_checkpoint
from medsegai.networks.quicknat_checkpoints import read_quicknat_checkpoint
from medsegai.networks.torch_files import KINDS, StoredTensor, check_claims, read_torch_file

SECONDS, BYTES = 20.0, 300 << 20
"""More than any refusal takes, on a busy machine too; the attacks below would take far more."""

Reader = Callable[[Path], Any]
READERS: tuple[Reader, ...] = (read_quicknat_checkpoint, read_checkpoint)


def claims(path: Path) -> None:
    """What is looked at before any reader, and before torch is loaded."""
    check_claims(path, 10)


def saved(path: Path, content: Any, zipped: bool = True) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return path


def archive(path: Path, program: bytes, data: bytes = b"", **members: bytes) -> Path:
    """An archive as torch writes it, around a pickle and the bytes of storage 0."""
    with zipfile.ZipFile(path, "w") as made:
        made.writestr("x/data.pkl", program)
        made.writestr("x/byteorder", "little")
        made.writestr("x/data/0", data)
        for name, content in members.items():
            made.writestr(f"x/{name}", content)
    return path


def described(
    offset: int, shape: tuple[int, ...], stride: tuple[int, ...], count: int = 6
) -> bytes:
    """The pickle of {"weight": tensor} whose storage is said to have `count` numbers."""

    class Id:
        pass

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: object) -> Any:
            return (
                ("storage", torch.FloatStorage, "0", "cpu", count)
                if isinstance(value, Id)
                else None
            )

    class Described:
        def __reduce__(self) -> Any:
            arguments = (Id(), offset, shape, stride, False, None)
            return torch._utils._rebuild_tensor_v2, arguments

    stream = io.BytesIO()
    Pickler(stream, 2).dump({"weight": Described()})
    return stream.getvalue()


def refused(read: Reader, path: Path) -> ModelError:
    """The error, after a look at how long and how much memory it took."""
    start, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ModelError) as caught:
        read(path)
    assert time.monotonic() - start < SECONDS
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10 < BYTES
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 1000
    return caught.value


# what torch saves


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    """Any type of number, any order of axes, perhaps a part of a larger tensor."""
    kind = draw(st.sampled_from([getattr(torch, kind) for _, kind in KINDS.values()]))
    shape = draw(st.lists(st.integers(0, 4), max_size=4))
    values = torch.randn(shape).mul(40).to(kind)
    if shape and draw(st.booleans()):
        values = values.permute(draw(st.permutations(range(len(shape)))))
    if shape and values.shape[0] > 1 and draw(st.booleans()):
        values = values[1:]
    return values


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(values=st.lists(tensors(), min_size=1, max_size=4), zipped=st.booleans())
def test_tensors_come_back_as_they_were_saved(
    tmp_path: Path, values: list[torch.Tensor], zipped: bool
) -> None:
    state = {f"layer.{number}": tensor for number, tensor in enumerate(values)}
    state["again"] = values[0]
    path = saved(tmp_path / "x.pth", state, zipped)
    file = read_torch_file(path, {}, "file")
    found = file.tensors(file.content)
    assert found.keys() == state.keys()
    for name, tensor in found.items():
        assert tensor.dtype == state[name].dtype
        assert torch.equal(tensor, state[name])
    before = path.read_bytes()
    for tensor in found.values():
        tensor.fill_(1)
    assert path.read_bytes() == before


@pytest.mark.parametrize("zipped", [True, False])
def test_parameters_and_versions_of_a_state_dict_are_read(tmp_path: Path, zipped: bool) -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2))
    network[0].weight.data = network[0].weight.data.to(memory_format=torch.channels_last)
    state = {**network.state_dict(), "extra": torch.nn.Parameter(torch.ones(2))}
    found = read_quicknat_checkpoint(saved(tmp_path / "x.pth", {"state_dict": state}, zipped))
    assert all(torch.equal(found[name], state[name]) for name in state)


# what runs programs


class WritesAFile(torch.nn.Module):
    """What TorchScript runs of a file as soon as it is opened."""

    def __init__(self, target: str) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(2))
        self.target: str = target

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return values

    @torch.jit.export
    def __getstate__(self) -> tuple[torch.Tensor, str, bool]:
        return (self.weight, self.target, self.training)

    @torch.jit.export
    def __setstate__(self, state: tuple[torch.Tensor, str, bool]) -> None:
        torch.save(state[0], state[1])
        self.weight = state[0]
        self.target = state[1]
        self.training = state[2]


@pytest.mark.parametrize("read", READERS)
def test_a_program_of_torchscript_is_refused_and_not_run(read: Reader, tmp_path: Path) -> None:
    mark, path = tmp_path / "written", tmp_path / "x_coronal.pth.tar"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(WritesAFile(str(mark))).save(str(path))
        mark.unlink(missing_ok=True)
        error = refused(read, path)
        assert isinstance(error, UnsafeModelError)
        assert "TorchScript" in str(error)
        assert not mark.exists()
        torch.jit.load(str(path))  # that the file would have written
    assert mark.exists()


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize(
    ("call", "arguments"),
    [
        (os.system, ("true",)),
        (eval, ("1",)),
        (getattr, (1, "real")),
        (torch.load, ("x",)),
        (torch.jit.load, ("x",)),
        (torch.Tensor, ()),
        (open, ("x", "w")),
    ],
)
def test_every_other_name_is_refused_by_name(
    read: Reader, call: Any, arguments: Any, tmp_path: Path
) -> None:
    class Called:
        def __reduce__(self) -> Any:
            return call, arguments

    for zipped in (True, False):
        error = refused(read, saved(tmp_path / "x.pth", {"weight": Called()}, zipped))
        assert isinstance(error, UnsafeModelError)
        assert call.__name__ in str(error)


@pytest.mark.parametrize("read", READERS)
def test_what_is_not_a_regular_file_is_not_waited_for(read: Reader, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pth")
    assert "regular file" in str(refused(read, tmp_path / "pipe.pth"))
    (tmp_path / "zero.pth").symlink_to("/dev/zero")
    assert "regular file" in str(refused(read, tmp_path / "zero.pth"))
    (tmp_path / "folder.pth").mkdir()
    refused(read, tmp_path / "folder.pth")


@pytest.mark.parametrize("read", READERS)
def test_a_tar_of_old_torch_is_refused(read: Reader, tmp_path: Path) -> None:
    import tarfile

    with tarfile.open(tmp_path / "x.pth.tar", "w") as made:
        made.addfile(tarfile.TarInfo("storages"))
    refused(read, tmp_path / "x.pth.tar")


# what claims more than there is


@pytest.mark.parametrize(
    ("offset", "shape", "stride"),
    [
        (0, (1 << 33,), (0,)),
        (0, (100_000, 100_000), (0, 0)),
        (0, (1 << 20, 6), (0, 1)),
        (0, (5, 5), (1, 1)),
        (0, (2, 3), (1, 1)),
        (0, (7,), (1,)),
        (1, (6,), (1,)),
        (0, (2, 2), (1, 5)),
        (-1, (2,), (1,)),
        (0, (-1,), (1,)),
        (0, (2,), (-1,)),
        (0, (1 << 62, 1 << 62), (1, 1)),
        (0, (0, 1 << 39, 1 << 39), (1, 1, 1)),
        (0, (1,) * 100, (1,) * 100),
        (0, (2, 3), (3,)),
        (1 << 70, (1,), (1,)),
    ],
)
@pytest.mark.parametrize("read", [read_quicknat_checkpoint, claims])
def test_a_tensor_that_does_not_fit_its_storage_is_refused(
    read: Reader, offset: int, shape: tuple[int, ...], stride: tuple[int, ...], tmp_path: Path
) -> None:
    path = archive(tmp_path / "x.pth", described(offset, shape, stride), bytes(24))
    assert "damaged" in str(refused(read, path))


@settings(max_examples=200, deadline=None)
@given(
    axes=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 30)), max_size=4),
    offset=st.integers(0, 10),
    count=st.integers(0, 60),
)
def test_what_is_taken_names_each_number_once_and_none_beyond(
    axes: list[tuple[int, int]], offset: int, count: int
) -> None:
    from itertools import product

    from medsegai.networks.torch_files import Storage
    from medsegai.networks.unpickling import PickleDamage

    shape, stride = tuple(size for size, _ in axes), tuple(step for _, step in axes)
    try:
        StoredTensor(Storage("Float", "0", count), offset, shape, stride)
    except PickleDamage:
        return
    places = [
        offset + sum(index * step for index, step in zip(indices, stride, strict=True))
        for indices in product(*(range(size) for size in shape))
    ]
    assert len(set(places)) == len(places)
    assert all(0 <= place < count for place in places)


def test_a_storage_that_is_larger_than_its_bytes_is_refused(tmp_path: Path) -> None:
    for count, words in ((7, "cut off"), (1 << 30, "larger than the file")):
        program = described(0, (count,), (1,), count)
        path = archive(tmp_path / "x.pth", program, bytes(24))
        assert words in str(refused(read_quicknat_checkpoint, path))


@pytest.mark.parametrize("read", [read_quicknat_checkpoint, claims])
@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_that_share_their_bytes_too_often_are_refused(
    read: Reader, zipped: bool, tmp_path: Path
) -> None:
    values = torch.ones(1000)
    path = saved(tmp_path / "x.pth", {f"w{number}": values[:] for number in range(500)}, zipped)
    assert "larger than the file" in str(refused(read, path))


def test_claims_are_left_to_the_reader_where_they_are_possible_or_cannot_be_read(
    tmp_path: Path,
) -> None:
    """A reader knows what a file should be, and says so: no other error comes before its own."""
    saved(tmp_path / "network.pth", torch.nn.Conv2d(1, 2, 3))  # names no reader is told of
    saved(tmp_path / "numbers.pt", {"loss": np.float64(3), "w": torch.ones(3).expand(1, 3)}, False)
    archive(tmp_path / "other.pth", b"no pickle")
    (tmp_path / "empty.pth").touch()
    (tmp_path / "zero.pth").symlink_to("/dev/zero")
    claims(tmp_path)
    archive(tmp_path / "below.pth", described(0, (1 << 33,), (0,)), bytes(24))
    assert "below.pth is damaged" in str(refused(claims, tmp_path))


PROTO = b"\x80\x02"


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


SET = b"c__builtin__\nset\n"
BOMBS = {
    "a slot of the memo": PROTO + b"Nr\xff\xff\xff\x7f.",
    "bytes that are not there": PROTO + b"B\xff\xff\xff\x7f.",
    "text that is not there": PROTO + b"X\xff\xff\xff\x7f.",
    "a number of a gigabyte": PROTO + b"\x8b\xff\xff\xff\x3f.",
    "a bytearray": b"\x80\x05\x96" + struct.pack("<Q", 1 << 33) + b".",
    "tuples within tuples as a key": PROTO + b"}" + b")" + b"q\x00h\x00\x86" * 60 + b"Ns.",
    "tuples within tuples in a set": PROTO + SET + b"])" + b"q\x00h\x00\x86" * 60 + b"a\x85R.",
    "keys that collide": PROTO
    + b"}("
    + b"".join(b"\x8a\x0b" + (k * (2**61 - 1)).to_bytes(11, "little") + b"N" for k in range(40_000))
    + b"u.",
    "a set made again and again": PROTO
    + b"]("
    + b"".join(b"J" + struct.pack("<i", k) for k in range(50_000))
    + b"eq\x000"
    + SET
    + b"q\x010("
    + b"h\x01h\x00\x85R" * 100_000
    + b"l.",
    "text made again and again": PROTO
    + text("x" * 1_000_000)
    + b"q\x00"
    + text("latin1")
    + b"q\x01"
    + b"c_codecs\nencode\nq\x02("
    + b"h\x02h\x00h\x01\x86R" * 100_000
    + b"t.",
    "lists within lists": PROTO + b"]" * 300_000 + b"a" * 299_999 + b".",
    "a dict that is in itself": PROTO + b"}q\x00" + text("state_dict") + b"h\x00s.",
    "no end": PROTO + b"]0" * 100_000,
    "nothing on the stack": PROTO + b"0.",
    "attributes of a list": PROTO + b"]}b.",
}


@pytest.mark.parametrize("program", BOMBS.values(), ids=BOMBS.keys())
@pytest.mark.parametrize("read", READERS)
def test_a_pickle_made_to_fill_memory_or_time_is_refused(
    read: Reader, program: bytes, tmp_path: Path
) -> None:
    refused(read, archive(tmp_path / "x.pth", program))
    legacy = b"".join(pickle.dumps(n, 2) for n in (0x1950A86A20F9469CFC6C, 1001)) + b"\x80\x02}."
    (tmp_path / "y.pth").write_bytes(legacy + program)
    refused(read, tmp_path / "y.pth")


def test_a_network_that_is_within_itself_has_an_end(tmp_path: Path) -> None:
    """Modules that hold each other twice, sixty deep, have 2 to the 60th names."""
    module = b"cquicknat\nQuickNat\n)\x81"
    program = PROTO + module + b"q\x00"
    for _ in range(60):
        children = b"}(" + text("a") + b"h\x00" + text("b") + b"h\x00u"
        program += b"0" + module + b"}" + text("_modules") + children + b"sbq\x00"
    assert "nested too deeply" in str(
        refused(read_quicknat_checkpoint, archive(tmp_path / "x.pth", program + b"."))
    )


def test_plans_that_are_within_themselves_have_an_end(tmp_path: Path) -> None:
    """A checkpoint's plans are compared with those beside it."""
    plans: Any = {}
    for _ in range(60):
        plans = {"a": plans, "b": plans}
    start = {"configuration": "2d", "fold": 0, "plans": plans, "dataset_json": {}}
    content = {"network_weights": {"w": torch.ones(2)}, "init_args": start, "trainer_name": "t"}
    assert "more values" in str(refused(read_checkpoint, saved(tmp_path / "x.pth", content)))


# archives that lie


def test_other_members_are_refused(tmp_path: Path) -> None:
    program = described(0, (6,), (1,))
    for name in ("code/__torch__.py", "constants.pkl", "data/../../x", "extra/x", "data/0x"):
        path = archive(tmp_path / "x.pth", program, bytes(24), **{name: b"1"})
        assert isinstance(refused(read_quicknat_checkpoint, path), UnsafeModelError)


def test_a_damaged_weight_is_found_by_its_checksum(tmp_path: Path) -> None:
    path = archive(tmp_path / "x.pth", described(0, (6,), (1,)), b"\x07" * 24)
    raw = path.read_bytes()
    path.write_bytes(raw.replace(b"\x07" * 24, b"\x07" * 23 + b"\x06"))
    assert "checksum" in str(refused(read_quicknat_checkpoint, path))


def test_a_weight_that_is_packed_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("x/data.pkl", described(0, (1 << 24,), (1,), 1 << 24), zipfile.ZIP_STORED)
        made.writestr("x/data/0", bytes(4 << 24))
    assert path.stat().st_size < 200_000
    assert "packed" in str(refused(read_quicknat_checkpoint, path))


@pytest.mark.parametrize("read", READERS)
def test_a_directory_that_is_too_long_is_not_read(read: Reader, tmp_path: Path) -> None:
    """zipfile makes an object of each of a million entries before anybody can count them."""
    entry = struct.pack("<4s4B4HL2L5H2L", b"PK\x01\x02", *[0] * 8, zlib.crc32(b""), *[0] * 9)
    path = tmp_path / "x.pth"
    with path.open("wb") as file:
        file.write(b"PK\x03\x04" + bytes(26))
        for _ in range(500):
            file.write(entry * 1000)
        size = file.tell() - 30
        file.write(struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, size, 30, 0))
    assert "directory" in str(refused(read, path))

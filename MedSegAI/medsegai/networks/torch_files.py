"""Untrusted files that `torch.save` wrote, read into plain containers and tensors without running any code.

`torch.load` is not used: without `weights_only` it gives some archives to TorchScript, which can write files, and
with it a tensor of 20 kB may claim gigabytes. Here both formats of `torch.save` are taken apart: the zip archive
(since 2020) and the sequence of pickles before it. The pickle is read by `unpickling`, tensors are described first
and made when they are needed, and a description that does not fit the bytes of the file is refused. torch is
loaded when the first tensor is made, so that a file can be refused before that.

Sources: `torch/serialization.py`, `torch/_utils.py` (names, persistent ids, order of legacy files).
"""

from __future__ import annotations

import itertools
import math
import mmap
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from medsegai.errors import ModelError, UnsafeModelError
from medsegai.io.archives import DAMAGED, open_zip
from medsegai.networks.unpickling import (
    MOST_BYTES,
    Name,
    NameRefused,
    PickleDamage,
    Typed,
    inert,
    table,
    unpickle,
)
from medsegai.system.regular_files import open_regular

if TYPE_CHECKING:
    from torch import Tensor

KINDS: dict[str, tuple[str, str]] = {
    "Double": ("f8", "float64"),
    "Float": ("f4", "float32"),
    "Half": ("f2", "float16"),
    "BFloat16": ("i2", "bfloat16"),  # NumPy has no bfloat16, so the bits are viewed as another type
    "Long": ("i8", "int64"),
    "Int": ("i4", "int32"),
    "Short": ("i2", "int16"),
    "Char": ("i1", "int8"),
    "Byte": ("u1", "uint8"),
    "Bool": ("?", "bool"),
}
"""The types of the numbers in a storage, in NumPy and in torch."""

MOST_RECORDS = 20_000
"""The largest number of storages in an archive; nnU-Net's have some hundreds, for weights and momentum."""

MEMBER = re.compile(
    r"data\.pkl|data/\d{1,9}|byteorder|version|\.data/serialization_id|\.format_version|\.storage_alignment"
)
"""The names that `torch.save` puts into its archive, in a folder that is named after the file."""

LEGACY_MAGIC, LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001

MOST_AXES = 8

LARGEST = 1 << 40
"""The number of values in a tensor, and its strides, must be smaller."""

SHARED = 8
"""How often tensors may refer to the bytes of a file. nnU-Net names each weight up to four times."""

FILES_OF_TORCH = (".pth", ".pt", ".ckpt", ".tar")
"""Suffixes of files that are usually written by `torch.save`."""

LOOKED_AT = 1 << 18
"""The largest pickle that `check_claims` reads, in bytes; a larger one would take seconds."""


class ImpossibleTensor(PickleDamage):
    """The file describes a tensor that its storage cannot hold."""


@dataclass(frozen=True)
class Storage:
    """Numbers of one type in the file.

    Attributes:
        kind: a key of `KINDS`.
        key: the name of its bytes in the file.
        count: the number of values.
    """

    kind: str
    key: str
    count: int


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that the file describes, checked against its storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def __post_init__(self) -> None:
        numbers = (self.offset, *self.shape, *self.stride)
        if (
            not isinstance(self.storage, Storage)
            or len(self.shape) != len(self.stride)
            or len(self.shape) > MOST_AXES
            or any(type(number) is not int or not 0 <= number < LARGEST for number in numbers)
            or math.prod(size or 1 for size in self.shape) >= LARGEST
        ):
            raise ImpossibleTensor("a tensor is described in an impossible way")
        if 0 not in self.shape:
            self._check_reach()

    def _check_reach(self) -> None:
        """Refuse a tensor that repeats numbers, or reaches beyond its storage.

        Axes from the innermost: each must step over everything that the axes before it cover, so that no number
        of the storage appears twice in the tensor. A stride of zero would make gigabytes out of one number.
        """
        covered = 1
        for stride, size in sorted(zip(self.stride, self.shape, strict=True)):
            if size > 1 and stride < covered:
                raise ImpossibleTensor("a tensor repeats numbers of its storage")
            covered += stride * (size - 1)
        if self.offset + covered > self.storage.count:
            raise ImpossibleTensor("a tensor reaches beyond its storage")

    @property
    def nbytes(self) -> int:
        """Size of the tensor in bytes."""
        return math.prod(self.shape) * np.dtype(KINDS[self.storage.kind][0]).itemsize


@dataclass(frozen=True)
class TorchFile:
    """An open file of torch.

    Attributes:
        path: the file.
        content: the saved object, made of plain containers, `Inert` objects and `StoredTensor`s.
        size: the size of the file in bytes.
    """

    path: Path
    content: object
    size: int
    _records: Callable[[str], memoryview] = field(repr=False)
    _order: str = "<"

    def tensors(self, stored: Mapping[str, StoredTensor]) -> dict[str, Tensor]:
        """Return tensors whose numbers are read from the file on first use. Changing them does not change the
        file.

        Raises:
            ModelError: tensors are not in the file, are damaged, or together are larger than the file.
        """
        made: dict[Storage, Tensor] = {}
        try:
            _check_sum(stored.values(), self.size)
            for item in stored.values():
                if item.storage not in made:
                    made[item.storage] = self._numbers(item.storage)
        except PickleDamage as error:
            raise ModelError(f"{self.path} is damaged: {error}. Copy it again.") from None
        return {
            name: made[item.storage].as_strided(item.shape, item.stride, item.offset)
            for name, item in stored.items()
        }

    def _numbers(self, storage: Storage) -> Tensor:
        import torch

        name, kind = KINDS[storage.kind][0], getattr(torch, KINDS[storage.kind][1])
        dtype = np.dtype(self._order + name)
        record = self._records(storage.key)
        if len(record) < storage.count * dtype.itemsize:
            raise PickleDamage(f"the numbers of storage {storage.key[:20]!r} are cut off")
        if not storage.count:
            return torch.empty(0, dtype=kind)
        numbers = np.frombuffer(record, dtype, storage.count)
        if not numbers.flags.aligned or not dtype.isnative:
            numbers = numbers.astype(dtype.newbyteorder("="))
        values = torch.from_numpy(numbers)
        return values if values.dtype == kind else values.view(kind)


def read_torch_file(path: Path, names: Mapping[str, Name], kind: str) -> TorchFile:
    """Read the structure of a file of `torch.save`; the numbers of its tensors are not read yet.

    Args:
        path: the file.
        names: the objects that the file may ask for besides tensors, by full name (`unpickling.table`).
        kind: what the file should be, for messages, such as "checkpoint of nnU-Net".

    Raises:
        UnsafeModelError: the file asks for another name, or is a TorchScript program.
        ModelError: the file is not a regular file, is damaged, or was not written by torch.
    """
    try:
        return _taken_apart(path, {**_TENSOR_NAMES, **names}, MOST_BYTES)
    except NameRefused as error:
        raise UnsafeModelError(
            f"{path} was refused and no code in it was run, because it asks to load "
            f"{str(error)!r}, which a {kind} does not need. Such a file can run any program; "
            "get the weights from their authors."
        ) from None
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}.") from None
    except DAMAGED as error:
        raise ModelError(
            f"{path} is not a {kind}, or is damaged: {error}. Copy it again from where it was trained."
        ) from None


def check_claims(path: Path, most_files: int) -> None:
    """Refuse files of torch whose tensors claim more than the file has, before torch is loaded for them.

    Other faults of a file are found by its reader, which knows what the file should hold.

    Args:
        path: a file, or a folder whose files are all checked.
        most_files: the largest number of files that are checked.

    Raises:
        ModelError: a tensor reaches beyond its storage or repeats numbers, or all tensors together are larger than
            the file.
    """
    files = itertools.islice(path.rglob("*"), most_files) if path.is_dir() else [path]
    for file in files:
        if file.suffix.lower() in FILES_OF_TORCH:
            _check_claims_of(file)


def _check_claims_of(file: Path) -> None:
    try:
        names = _AnyNames()
        size = _taken_apart(file, names, LOOKED_AT).size
        _check_sum(names.tensors, size)
    except ImpossibleTensor as error:
        raise ModelError(
            f"{file} is damaged or malicious: {error}. Copy it again from where it was trained."
        ) from None
    except (OSError, ModelError, *DAMAGED):
        return


def _check_sum(tensors: Iterable[StoredTensor], size: int) -> None:
    if sum(tensor.nbytes for tensor in tensors) > SHARED * size:
        raise ImpossibleTensor("its weights are larger than the file")


def _taken_apart(path: Path, names: Mapping[str, Name], most: int) -> TorchFile:
    """The content of a file, whose pickles have at most `most` bytes."""
    with open_regular(path) as file:
        start = file.read(4)
        if not start:
            raise PickleDamage("it is empty")
        read = _read_zip if start[:2] == b"PK" else _read_legacy
        return read(path, file, names, most)


def _mapped(file: BinaryIO) -> memoryview:
    # Copied on write, because torch does not have read-only tensors and the file must stay as it is.
    return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))


def _check_names(path: Path, entries: Iterable[str], folder: str) -> None:
    for name in entries:
        if not name.startswith(folder) or not MEMBER.fullmatch(name.removeprefix(folder)):
            raise UnsafeModelError(
                f"{path} was refused and no code in it was run, because it holds "
                f"{name[:100]!r}, which does not belong in a file of weights; it may be a "
                "TorchScript program. Ask its authors for a file with only the weights."
            )


def _read_zip(path: Path, file: BinaryIO, names: Mapping[str, Name], most: int) -> TorchFile:
    entries = {entry.filename: entry for entry in open_zip(file, MOST_RECORDS).infolist()}
    (program,) = [name for name in entries if name.endswith("/data.pkl")] or [""]
    if not program:
        raise PickleDamage("it does not hold data.pkl, so torch did not write it")
    folder = program.removesuffix("data.pkl")
    _check_names(path, entries, folder)
    whole = _mapped(file)

    def record(name: str) -> memoryview:
        try:
            return _stored(whole, entries[folder + name])
        except KeyError:
            raise PickleDamage(f"it has no {name[:100]!r}") from None

    order = bytes(record("byteorder")) if f"{folder}byteorder" in entries else b"little"
    endian = _endian(order)
    content, _ = unpickle(bytes(record("data.pkl")[:most]), names, _storage)
    return TorchFile(path, content, len(whole), lambda key: record(f"data/{key}"), endian)


def _endian(order: bytes) -> str:
    if order not in (b"little", b"big"):
        raise PickleDamage("its byte order is unknown")
    return "<" if order == b"little" else ">"


def _stored(whole: memoryview, entry: zipfile.ZipInfo) -> memoryview:
    """Return the bytes of a member of an archive; torch never compresses them."""
    start = entry.header_offset
    if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
        raise PickleDamage(f"{entry.filename!r} is compressed, which torch never does")
    if not 0 <= start <= len(whole) - 30 or bytes(whole[start : start + 4]) != b"PK\x03\x04":
        raise PickleDamage(f"{entry.filename!r} is not where the archive says")
    start += 30 + sum(struct.unpack_from("<HH", whole, start + 26))
    content = whole[start : start + entry.file_size]
    if len(content) != entry.file_size:
        raise PickleDamage(f"{entry.filename!r} is cut off")
    if zlib.crc32(content) != entry.CRC:
        raise PickleDamage(f"the checksum of {entry.filename!r} is wrong")
    return content


def _records(
    whole: memoryview, keys: Sequence[str], storages: Mapping[str, Storage], order: str
) -> dict[str, memoryview]:
    """Return the numbers of each storage; each stands behind their count."""
    records: dict[str, memoryview] = {}
    position = 0
    for key in keys:
        (count,) = struct.unpack_from(f"{order}q", whole, position)
        if key not in storages or storages[key].count != count:
            raise PickleDamage(
                f"its storage {key[:20]!r} does not have the size that its tensors state"
            )
        end = position + 8 + count * np.dtype(KINDS[storages[key].kind][0]).itemsize
        records[key] = whole[position + 8 : end]
        position = end
    return records


def _read_legacy(path: Path, file: BinaryIO, names: Mapping[str, Name], most: int) -> TorchFile:
    """Read pickles of magic number, protocol, system facts, object and storage keys, then the numbers."""
    whole = _mapped(file)
    storages: dict[str, Storage] = {}
    position = 0

    def next_pickle() -> Any:
        nonlocal position
        program = bytes(whole[position : position + most])
        value, length = unpickle(program, names, lambda id: _storage(id, storages))
        position += length
        return value

    if next_pickle() != LEGACY_MAGIC or next_pickle() != LEGACY_PROTOCOL:
        raise PickleDamage("torch did not write it")
    facts = next_pickle()
    order = ">" if isinstance(facts, dict) and facts.get("little_endian") is False else "<"
    content, keys = next_pickle(), next_pickle()
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise PickleDamage("it has no list of storages")
    records = _records(whole[position:], keys, storages, order)
    return TorchFile(
        path, content, len(whole), lambda key: records.get(key, memoryview(b"")), order
    )


def _storage(id: object, seen: dict[str, Storage] | None = None) -> Any:
    """Return what a persistent id means: a storage, or, in files from before 2020, a class with its source."""
    if not isinstance(id, tuple) or len(id) < 4 or id[0] not in ("storage", "module"):
        raise PickleDamage("it has a reference that files of torch do not have")
    if id[0] == "module":
        return id[1]
    _, kind, key, _, count, *view = id
    match = _STORAGE.fullmatch(kind.full_name) if isinstance(kind, Name) else None
    if not match or type(key) is not str or type(count) is not int or not 0 <= count < LARGEST:
        raise PickleDamage("a storage is described in an impossible way")
    if any(part is not None for part in view):
        raise PickleDamage(
            "its storages are parts of other storages, which only torch before 0.4 wrote"
        )
    storage = Storage(match[1], key, count)
    return storage if seen is None else seen.setdefault(key, storage)


def _tensor(storage: Storage, offset: int, shape: Any, stride: Any, *_: object) -> StoredTensor:
    return StoredTensor(storage, offset, tuple(shape), tuple(stride))


def _as_it_is(data: object, *_: object) -> Any:
    return data


def _shape(sizes: Any = ()) -> tuple[Any, ...]:
    return tuple(sizes)


_STORAGE = re.compile(rf"torch\.(?:cuda\.)?({'|'.join(KINDS)})Storage")

_TENSOR_NAMES = table(
    Name("torch._utils._rebuild_tensor", _tensor),
    Name("torch._utils._rebuild_tensor_v2", _tensor),
    Name("torch._utils._rebuild_parameter", _as_it_is),
    Name("torch.nn.parameter.Parameter", _as_it_is),
    Name("torch.Size", _shape),
    inert("torch.device"),
    *(inert(f"torch.{kind}") for _, kind in KINDS.values()),
    *(inert(f"torch.{place}{kind}Storage") for kind in KINDS for place in ("", "cuda.")),
)
"""The names that pickled weights ask for."""


class _Anything(Typed):
    """Stands for any object that a pickle makes."""

    def refine(self, state: object) -> None:
        """Accept any state and discard it."""


class _AnyNames(dict[str, Name]):
    """A table that has every name, for reading only the descriptions of tensors."""

    def __init__(self) -> None:
        super().__init__(_TENSOR_NAMES)
        self.tensors: list[StoredTensor] = []
        for name, known in _TENSOR_NAMES.items():
            if known.make is _tensor:
                self[name] = Name(name, self._kept)

    def __contains__(self, name: object) -> bool:
        return True

    def __missing__(self, name: str) -> Name:
        return Name(name, lambda *_: _Anything())

    def _kept(self, *arguments: Any) -> StoredTensor:
        self.tensors.append(_tensor(*arguments))
        return self.tensors[-1]

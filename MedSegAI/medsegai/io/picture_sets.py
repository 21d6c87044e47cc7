"""Sets of pictures with one class each, for training and evaluation, in their usual layouts.

The layouts are a folder for each class, also below train and valid (as in fastai); a table of files and classes;
and the six HDF5 files of PatchCamelyon (B. Veeling et al., "Rotation Equivariant CNNs for Digital Pathology",
2018).
"""

from __future__ import annotations

import contextlib
import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from medsegai.decoding import PARSER_ERRORS
from medsegai.decoding.slides import Pixels
from medsegai.errors import InputError, counted
from medsegai.io.files import check_regular
from medsegai.io.pictures import PICTURE_ENDINGS
from medsegai.io.reading import read_channels
from medsegai.io.tables import read_table
from medsegai.models.card import file_sha256
from medsegai.volume import Volume

FILE_ENDINGS = (*PICTURE_ENDINGS, ".dcm")
"""The file endings of pictures and of radiographs."""

PARTS = {
    "train": "train",
    "training": "train",
    "valid": "valid",
    "val": "valid",
    "validation": "valid",
    "test": "test",
}
"""The usual names of the parts of a set."""

COLUMNS = {
    "picture": ("image", "name", "file", "filename", "fname", "path", "picture", "case", "id"),
    "label": ("label", "labels", "class", "tumor", "target", "y"),
    "group": ("group", "patient", "wsi", "slide", "patient_id"),
    "part": ("part", "split", "is_valid", "set"),
}
"""The usual names of the columns of a table."""

PATCH_CAMELYON = "camelyonpatch_level_2_split_{part}_{kind}"

LISTED = 5
"""The largest number of names that a message lists."""


@dataclass(frozen=True)
class Picture:
    """One picture, its class, and its group.

    Attributes:
        name: the name of the file relative to the folder, or the number of a patch in its file.
        label: the number of its class.
        group: the patient or slide, whose pictures stay together.
        part: "train", "valid" or "test"; "" if the set does not have parts.
        read: the function that returns RGB (row, column, 3).
    """

    name: str
    label: int
    group: str
    part: str
    read: Callable[[], Pixels] = field(compare=False)


@dataclass(frozen=True)
class PictureSet:
    """Pictures of at least two classes.

    Attributes:
        source: the folder or table.
        classes: the names of the classes, in the order of their numbers.
        notes: possible problems, as sentences for the user.
    """

    source: Path
    classes: tuple[str, ...]
    pictures: tuple[Picture, ...]
    notes: tuple[str, ...] = ()

    def part(self, *names: str) -> PictureSet:
        """Return the pictures of some parts."""
        return replace(self, pictures=tuple(item for item in self.pictures if item.part in names))

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts of the set in the usual order; empty if it does not have parts."""
        there = {item.part for item in self.pictures}
        return tuple(name for name in ("train", "valid", "test") if name in there)

    @property
    def labels(self) -> NDArray[np.int64]:
        """The number of the class of each picture."""
        return np.array([item.label for item in self.pictures], np.int64)

    def content_of(self, picture: Picture) -> str:
        """Return the SHA-256 of the file of a picture, or those of the files of PatchCamelyon that hold it."""
        path = self.folder / picture.name
        return file_sha256(path) if path.is_file() else self._archives

    @cached_property
    def _archives(self) -> str:
        return " ".join(file_sha256(path) for path in sorted(self.folder.glob("*.h5")))

    @property
    def folder(self) -> Path:
        """The folder that the names of pictures are relative to."""
        return self.source if self.source.is_dir() else self.source.parent

    def counts(self) -> dict[str, int]:
        """Return the number of pictures of each class."""
        found = np.bincount(self.labels, minlength=len(self.classes))
        return dict(zip(self.classes, map(int, found), strict=True))


Alike: TypeAlias = Sequence[Sequence[Picture]]
"""Pictures whose files hold the same bytes, together."""


def read_pictures(source: Path, groups: Path | None = None) -> PictureSet:
    """Find the pictures of a folder or a table, and their classes. Pixels are read when they are needed.

    Args:
        source: class folders, perhaps below train and valid; a folder with labels.csv or train_labels.csv; a CSV;
            or a folder with the files of PatchCamelyon.
        groups: CSV with the columns picture and patient; the pictures of a patient then stay together.

    Raises:
        InputError: the source is not a set of pictures; a class does not have a picture, or one to learn from; or
            a picture has two classes.
    """
    if not source.exists():
        raise InputError(f"{source} does not exist. Check the name.")
    check_regular(source)
    found = _found(source)
    if groups is not None:
        found = _grouped(found, groups)
    return _checked(found, list(same_files(found)))


def _checked(found: PictureSet, alike: Alike) -> PictureSet:
    """Return a set with its notes, and with copies of a picture in one group. Raises InputError: see `_check`."""
    _check(found, alike)
    notes = (*found.notes, *_notes(found, alike))
    return replace(found, pictures=_alike_together(found, alike), notes=notes)


def read_rgb(path: Path) -> Pixels:
    """Read a picture or a radiograph as 8-bit RGB, (row, column, 3).

    Raises:
        InputError: the file cannot be read, or has several slices.
    """
    return as_rgb(read_channels(path))


def as_rgb(channels: Sequence[Volume]) -> Pixels:
    """Return one grey channel, or red, green and blue, as 8-bit RGB, (row, column, 3).

    Values of other types are scaled from the lowest to the highest to 8 bits, with all channels alike.

    Raises:
        InputError: channels have several slices, or their number is neither one nor three.
    """
    first = channels[0]
    if first.voxels.shape[0] != 1 or len(channels) not in (1, 3):
        raise InputError(
            f"{first.source or 'The image'} has {counted(first.voxels.shape[0], 'slice', 'slices')} and "
            f"{counted(len(channels), 'channel', 'channels')}, but a picture has one slice, grey or in colour. "
            "Choose another file."
        )
    pixels = np.stack([channel.voxels[0] for channel in channels], -1)
    if pixels.dtype != np.uint8:
        low, high = float(pixels.min()), float(pixels.max())
        pixels = np.rint((pixels.astype(np.float32) - low) * (255 / max(high - low, 1e-9)))
    return np.ascontiguousarray(np.broadcast_to(pixels.astype(np.uint8), (*pixels.shape[:2], 3)))


def _found(source: Path) -> PictureSet:
    if source.is_file():
        if source.suffix.lower() != ".csv":
            raise InputError(
                f"{source} is not a table of pictures. Name a CSV file, or a folder with a "
                "subfolder for each class."
            )
        return _table(source, source.parent)
    if any(source.glob(PATCH_CAMELYON.format(part="*", kind="x.h5"))):
        return _patch_camelyon(source)
    for name in ("labels.csv", "train_labels.csv"):
        if (source / name).is_file():
            return replace(_table(source / name, source), source=source)
    parted = {
        path: PARTS[path.name.lower()] for path in _folders(source) if path.name.lower() in PARTS
    }
    if not any(part == "train" for part in parted.values()):
        parted = {source: ""}
    return _class_folders(source, parted)


def _folders(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _class_pictures(folder: Path) -> list[Path]:
    """Return the picture files of one class."""
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in FILE_ENDINGS and not path.name.startswith(".") and path.is_file()
    )
    if not files:
        raise InputError(
            f"The class folder {folder} does not have pictures "
            f"({', '.join(FILE_ENDINGS)}). Fill it or remove it."
        )
    return files


def _class_folders(source: Path, parted: Mapping[Path, str]) -> PictureSet:
    """Return the pictures in class folders; `parted` has the folders of these, and their parts."""
    folders = [(folder, part) for root, part in parted.items() for folder in _folders(root)]
    classes = tuple(sorted({folder.name for folder, _ in folders}))
    if len(classes) < 2:
        raise InputError(
            f"{source} has {counted(len(classes), 'class folder', 'class folders')}, but at "
            "least two are needed. Make one folder for each class, with its pictures in it."
        )
    pictures = tuple(
        _file_picture(source, path, classes.index(folder.name), part)
        for folder, part in folders
        for path in _class_pictures(folder)
    )
    return PictureSet(source, classes, pictures)


def _file_picture(root: Path, path: Path, label: int, part: str, group: str = "") -> Picture:
    name = path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)
    return Picture(name, label, group or name, part, lambda: read_rgb(path))


def _table(path: Path, root: Path) -> PictureSet:
    rows, columns = _rows(path)
    names = sorted({row[columns["label"]] for row in rows.values()})
    pictures, given = [], dict[str, tuple[str, int]]()
    for line, row in rows.items():
        name, label = row[columns["picture"]], row[columns["label"]]
        if not name or not label:
            raise InputError(
                f"{path}, line {line}: the picture or its class is empty. Fill the cell or "
                "remove the line."
            )
        earlier = given.setdefault(name, (label, line))
        _check_listed_once(path, name, earlier, (label, line))
        part = _part_of(row.get(columns.get("part", ""), ""), path, line)
        group = row.get(columns.get("group", ""), "")
        file = _file_of(name, root, path, line)
        pictures.append(_file_picture(root, file, names.index(label), part, group))
    return PictureSet(path, tuple(names), tuple(pictures))


def _check_listed_once(
    path: Path, name: str, earlier: tuple[str, int], now: tuple[str, int]
) -> None:
    """Compare the label and line where a picture was listed first with those of the present row."""
    if earlier[1] != now[1]:
        what = f"as {earlier[0]!r} and as {now[0]!r}" if earlier[0] != now[0] else "twice"
        raise InputError(
            f"{path}, lines {earlier[1]} and {now[1]}: {name!r} is listed {what}. Keep one of the lines."
        )


def _rows(
    path: Path, needed: tuple[str, str] = ("picture", "label")
) -> tuple[Mapping[int, Mapping[str, str]], dict[str, str]]:
    """Rows of a table by their line numbers, and what its columns are called."""
    table = read_table(path)
    columns = {
        what: name
        for what, names in COLUMNS.items()
        for name in names[::-1]
        if name in table.headings
    }
    missing = [what for what in needed if what not in columns]
    if not table.rows or missing:
        wanted = " and ".join(f"one of {', '.join(COLUMNS[what])}" for what in missing or needed)
        raise InputError(f"The table {path} needs rows and columns with headings: {wanted}.")
    return table.rows, columns


def _part_of(text: str, path: Path, line: int) -> str:
    word = text.strip().lower()
    known = {**PARTS, "": "", "true": "valid", "1": "valid", "false": "train", "0": "train"}
    if word not in known:
        raise InputError(
            f"{path}, line {line}: {text!r} is not a part of a set. Known are train, valid and test, or True and "
            "False."
        )
    return known[word]


def _file_of(name: str, root: Path, path: Path, line: int) -> Path:
    """Return the file that a table names, with or without its ending, beside the table or in the folder train."""
    for folder in (root, root / "train"):
        for ending in ("", *FILE_ENDINGS):
            file = folder / f"{name}{ending}"
            with contextlib.suppress(OSError):  # a name that is too long
                if file.is_file():
                    return file
    raise InputError(
        f"{path}, line {line}: {root / name} does not exist. Correct the name, or remove the line."
    )


def _patch_camelyon(folder: Path) -> PictureSet:
    """Return the patches of PatchCamelyon: x (N, row, column, 3), y (N, 1, 1, 1), and a table of their slides."""
    pictures: list[Picture] = []
    for part in ("train", "valid", "test"):
        paths = {
            kind: folder / f"{PATCH_CAMELYON.format(part=part, kind=kind)}.h5" for kind in "xy"
        }
        there = [kind for kind, path in paths.items() if path.is_file()]
        if len(there) == 1:
            raise InputError(
                f"{paths[there[0]]} does not have a partner, but patches and labels are two "
                "files, x and y. Copy both."
            )
        if there:
            slides = folder / f"{PATCH_CAMELYON.format(part=part, kind='meta')}.csv"
            pictures += _patches(paths["x"], paths["y"], slides, part)
    return PictureSet(folder, ("normal", "tumor"), tuple(pictures))


def _patches(x: Path, y: Path, slides: Path, part: str) -> Iterator[Picture]:
    patches = H5Patches(x)
    labels = H5Patches(y, "y").all().reshape(-1)
    shape = patches.shape
    if (
        len(shape) != 4
        or shape[3] != 3
        or shape[0] != len(labels)
        or not set(np.unique(labels)) <= {0, 1}
    ):
        raise InputError(
            f"{x} has patches of shape {shape} and {y} {len(labels)} labels. Patches must be (N, rows, columns, "
            "3), and labels 0 or 1, one for each."
        )
    groups = _patch_groups(slides, part, len(labels))
    for number, (label, group) in enumerate(zip(labels.tolist(), groups, strict=True)):
        yield Picture(f"{x.name}/{number}", int(label), group, part, patches.reader(number))


def _patch_groups(slides: Path, part: str, count: int) -> list[str]:
    """Return the slide of each patch, or a name for each if no table lists slides."""
    if not slides.is_file():
        return [f"{part}/{number}" for number in range(count)]
    rows, columns = _rows(slides, ("group", "group"))
    if len(rows) != count:
        raise InputError(f"{slides} has {len(rows)} rows for {count} patches. Copy it again.")
    return [row[columns["group"]] for row in rows.values()]


class H5Patches:
    """One array in an HDF5 file, which each process opens once, when it first reads."""

    def __init__(self, path: Path, name: str = "x") -> None:
        self._path, self._name = path, name
        self._array: Any = None
        self.shape: tuple[int, ...] = tuple(self._opened().shape)

    def all(self) -> NDArray[np.integer]:
        """Return the whole array."""
        return np.asarray(self._part(slice(None)))

    def reader(self, number: int) -> Callable[[], Pixels]:
        """Return the function that reads one of its patches."""
        return lambda: np.asarray(self._part(number), np.uint8)

    def _part(self, index: Any) -> Any:
        try:
            return self._opened()[index]
        except PARSER_ERRORS as error:
            raise InputError(f"{self._path} cannot be read: {error}. Copy it again.") from error

    def _opened(self) -> Any:
        if self._array is None:
            try:
                import h5py
            except ImportError:
                raise InputError(
                    f"{self._path} cannot be opened without h5py. Run pip install 'medsegai[train]'."
                ) from None
            try:
                self._array = h5py.File(self._path, "r")[self._name]
            except PARSER_ERRORS as error:
                raise InputError(
                    f"{self._path} is not an HDF5 file with the array {self._name!r}: {error}. Copy it again."
                ) from error
        return self._array


def _grouped(found: PictureSet, path: Path) -> PictureSet:
    rows, columns = _rows(path, ("picture", "group"))
    patients = {row[columns["picture"]]: row[columns["group"]] for row in rows.values()}
    listed = Counter(Path(name).stem for name in patients)
    there = Counter(Path(item.name).stem for item in found.pictures)
    short = {Path(name).stem: patient for name, patient in patients.items()}
    pictures = []
    for item in found.pictures:
        stem = Path(item.name).stem
        alone = listed[stem] == there[stem] == 1  # then it is meant in any folder
        known = patients.get(item.name) or (short.get(stem) if alone else None)
        if not known:
            raise InputError(
                f"{path} does not name the patient of the picture {item.name}. Add a line for it."
            )
        pictures.append(replace(item, group=known))
    return replace(found, pictures=tuple(pictures))


def _check(found: PictureSet, alike: Alike) -> None:
    """Refuse sets that cannot be used for training or evaluation as they are meant."""
    if len(found.classes) < 2:
        raise InputError(
            f"{found.source} has one class, {found.classes[0]!r}, but at least two are "
            "needed. Add pictures of another class."
        )
    for label, name in enumerate(found.classes):
        parts = {item.part for item in found.pictures if item.label == label}
        if not parts:
            raise InputError(
                f"The class {name!r} of {found.source} does not have pictures. Add some, or remove the class."
            )
        if "train" in found.parts and "train" not in parts:
            raise InputError(
                f"The class {name!r} of {found.source} only has pictures in {' and '.join(sorted(parts))}, so it "
                "cannot be learned. Add some to train, or remove the class."
            )
    _check_one_class_each(found, alike)


def _check_one_class_each(found: PictureSet, alike: Alike) -> None:
    """Refuse a file that is in two classes. Only files of equal size are compared, byte by byte."""
    for pictures in alike:
        classes = {item.label for item in pictures}
        if len(classes) > 1:
            first, second = (
                next(i for i in pictures if i.label == label) for label in sorted(classes)[:2]
            )
            raise InputError(
                f"The same picture is {first.name} of class {found.classes[first.label]!r} and {second.name} of "
                f"class {found.classes[second.label]!r}. Remove the wrong one."
            )


def _alike_together(found: PictureSet, alike: Alike) -> tuple[Picture, ...]:
    """Give files of the same bytes one group, so that none is learned from where another is held out."""
    group_of = {
        item.name: pictures[0].group
        for pictures in alike
        for item in pictures
        if item.group == item.name  # otherwise a table says which patient it is of
    }
    return tuple(
        replace(item, group=group_of.get(item.name, item.group)) for item in found.pictures
    )


def same_files(found: PictureSet) -> Iterator[list[Picture]]:
    """Yield groups of pictures whose files hold the same bytes."""
    root = found.folder
    by_size: dict[int, list[Picture]] = defaultdict(list)
    for item in found.pictures:
        path = root / item.name
        if path.is_file():
            by_size[path.stat().st_size].append(item)
    for candidates in by_size.values():
        by_content: dict[bytes, list[Picture]] = defaultdict(list)
        for item in candidates if len(candidates) > 1 else ():
            by_content[hashlib.sha256((root / item.name).read_bytes()).digest()].append(item)
        yield from (alike for alike in by_content.values() if len(alike) > 1)


def _notes(found: PictureSet, alike: Alike) -> Iterator[str]:
    doubled = [item for pictures in alike for item in pictures]
    leaked = {item.part for item in doubled} - {""}
    if len(leaked) > 1:
        names = ", ".join(item.name for item in doubled[:LISTED])
        yield (
            f"The same pictures are in {' and '.join(sorted(leaked))}, so the figures of the "
            f"validation are too good: {names}."
        )
    by_group: dict[str, set[str]] = defaultdict(set)
    for item in found.pictures:
        by_group[item.group].add(item.part)
    parted = sorted(group for group, parts in by_group.items() if len(parts) > 1)
    if parted:
        yield (
            f"{counted(len(parted), 'patient or slide', 'patients or slides')} of {found.source} are in more than "
            f"one part, so the figures of the validation are too good: {', '.join(parted[:LISTED])}."
        )

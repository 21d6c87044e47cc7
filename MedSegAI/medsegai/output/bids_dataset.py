"""The images of a BIDS dataset as the cases of a batch (Brain Imaging Data Structure, bids-specification 1.10).

The names of files and folders decide: sub-LABEL/[ses-LABEL/]anat/sub-LABEL_[ses-LABEL_][KEY-VALUE_…]SUFFIX.nii.gz.
So a tree of images with such names is also found without a dataset_description.json.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pathspec

from medsegai.errors import InputError, RequestError, counted, listed
from medsegai.output.cases import Case, is_dangling

DESCRIPTION, IGNORED = "dataset_description.json", ".bidsignore"
SUFFIX = "T1w"
"""The suffix of the images to search for, unless a filter names another."""

ENTITIES = {
    "subject": "sub",
    "participant": "sub",
    "session": "ses",
    "acquisition": "acq",
    "ceagent": "ce",
    "reconstruction": "rec",
    "description": "desc",
    "resolution": "res",
}
"""The long names of entities, with the keys in file names."""

IMAGE = re.compile(r"((?:[A-Za-z0-9]+-[A-Za-z0-9+]+_)+)([A-Za-z0-9]+)\.(?i:nii(?:\.gz)?)")
"""The pattern of entities with their values, and the suffix."""

MAGNITUDE = "mag"
"""The part of a complex image that networks know; the others (phase, real, imag) are only taken if asked for."""

SUBJECT, SESSION = re.compile(r"sub-[A-Za-z0-9+]+"), re.compile(r"ses-[A-Za-z0-9+]+")
BELOW_SUBJECT = re.compile(rf"{SESSION.pattern}|anat")
LIKE_SUBJECT, LIKE_BELOW = re.compile(r"(?is)sub-.*"), re.compile(r"(?is)ses-.*|anat")
"""Names that resemble those of folders in BIDS, whatever their capitals and labels."""

NAMED_AT_MOST = 6
"""The largest number of files or sessions that a message names."""


@dataclass(frozen=True)
class Scan:
    """An image of a dataset.

    Attributes:
        path: the file.
        entities: the values of entities by their keys in the file name, such as sub, ses and run.
        suffix: the suffix of the file name, such as T1w.
    """

    path: Path
    entities: Mapping[str, str]
    suffix: str

    @property
    def name(self) -> str:
        """The entities as in the file name, without the suffix."""
        return "_".join(f"{key}-{value}" for key, value in self.entities.items())

    @property
    def is_magnitude(self) -> bool:
        """Whether it is not the phase, or the real or imaginary part, of a complex image."""
        return self.entities.get("part", MAGNITUDE).casefold() == MAGNITUDE

    @property
    def session(self) -> str:
        """The session, such as sub-01/ses-02, or sub-01 if the subject does not have sessions."""
        keys = (key for key in ("sub", "ses") if key in self.entities)
        return "/".join(f"{key}-{self.entities[key]}" for key in keys)


@dataclass(frozen=True)
class Filter:
    """A selection of the images for one channel of the model.

    Attributes:
        wanted: the accepted values by key. `suffix` is one of the keys.
    """

    wanted: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: {"suffix": (SUFFIX,)})

    @classmethod
    def parse(cls, words: Sequence[str]) -> Filter:
        """Parse words such as `suffix=T2w session=01,02`. Raises RequestError."""
        wanted: dict[str, tuple[str, ...]] = {"suffix": (SUFFIX,)}
        given: set[str] = set()
        for word in words:
            key, separator, values = word.partition("=")
            if not separator or not key or not all(values.split(",")):
                raise RequestError(
                    f"--bids-filter takes entities and values, such as suffix=T2w session=01, not {word!r}."
                )
            key = ENTITIES.get(key.casefold(), key.casefold())
            if key in given:
                raise RequestError(
                    f"--bids-filter names {key} twice. Separate values by commas, as in session=01,02; for "
                    "another channel of the model, write --bids-filter again."
                )
            given.add(key)
            wanted[key] = tuple(value.removeprefix(f"{key}-") for value in values.split(","))
        return cls(wanted)

    def takes(self, scan: Scan) -> bool:
        return self.matches(scan) and ("part" in self.wanted or scan.is_magnitude)

    def matches(self, scan: Scan) -> bool:
        """Whether the values are accepted, of whatever part of a complex image."""
        has = {**scan.entities, "suffix": scan.suffix}
        return all(
            key in has and _plain(key, has[key]) in {_plain(key, value) for value in values}
            for key, values in self.wanted.items()
        )

    def __str__(self) -> str:
        return " ".join(f"{key}={','.join(values)}" for key, values in self.wanted.items())


def is_dataset(folder: Path) -> bool:
    """Whether a folder is a BIDS dataset, or its images are placed as in one."""
    return (folder / DESCRIPTION).is_file() or next(_images(folder), None) is not None


def find_bids_cases(
    folder: Path,
    filters: Sequence[Filter],
    channels: Sequence[str],
    tell: Callable[[str], None] = lambda words: None,
) -> list[Case]:
    """Find the cases of a dataset: each image that the first filter accepts, with those of other channels.

    Args:
        folder: the folder of dataset_description.json.
        filters: one filter for each channel of the model; empty for T1w images and a model of one channel.
        channels: the names of the model's channels.
        tell: the function that receives messages about omitted or questionable images.

    Returns:
        Cases with the names of their images without the suffix, such as sub-01_ses-02_run-1.

    Raises:
        InputError: the filters do not match any image, or .bidsignore cannot be understood.
        RequestError: the number of filters differs from that of channels.
    """
    filters = filters or [Filter()] * (len(channels) == 1)
    if len(filters) != len(channels):
        raise RequestError(
            f"The model takes {counted(len(channels), 'image', 'images')} for each case ({', '.join(channels)}). "
            f"Write --bids-filter once for each, in this order, not {counted(len(filters), 'time', 'times')}."
        )
    _describe(folder, tell)
    scans = list(_scans(folder, tell))
    found = [[scan for scan in scans if wanted.takes(scan)] for wanted in filters]
    if not found[0]:
        raise InputError(_nothing(folder, filters[0], scans))
    _tell_what_lacks(folder, scans, found[0], filters[0], tell)
    _tell_parts([scan for scan in scans if filters[0].matches(scan)], found[0], tell)
    cases = list(_cases(found, filters, tell))
    if not cases:
        raise InputError(
            f"{folder} does not have a case with an image for every channel of the model. Check --bids-filter."
        )
    return cases


def _cases(
    found: Sequence[Sequence[Scan]], filters: Sequence[Filter], tell: Callable[[str], None]
) -> Iterator[Case]:
    names: dict[str, Scan] = {}
    for first in found[0]:
        if first.name in names:
            raise _same_case(names[first.name], first)
        names[first.name] = first
        others = [_partner(first, scans) for scans in found[1:]]
        if lacking := [str(filters[n + 1]) for n, other in enumerate(others) if other is None]:
            tell(
                f"{first.name} was left out, because there is not exactly one image beside it with {lacking[0]}."
            )
            continue
        yield Case(first.name, (first.path, *(other.path for other in others if other is not None)))


def _same_case(one: Scan, other: Scan) -> InputError:
    remedy = (
        f"Remove one, or name it in {IGNORED}"
        if one.suffix == other.suffix
        else "Name one suffix with --bids-filter"
    )
    return InputError(f"{one.path} and {other.path} would be the same case. {remedy}.")


def _partner(first: Scan, scans: Sequence[Scan]) -> Scan | None:
    """Return the image of the same session; of several, the one that agrees in all entities that both have."""
    beside = [scan for scan in scans if scan.session == first.session]
    if len(beside) > 1:
        beside = [
            scan
            for scan in beside
            if all(
                scan.entities[key] == first.entities[key]
                for key in scan.entities.keys() & first.entities.keys()
            )
        ]
    return beside[0] if len(beside) == 1 else None


def _images(folder: Path) -> Iterator[Path]:
    for parent in _parents(folder):
        yield from filter(_is_image, sorted(parent.glob("anat/*")))


def _is_image(path: Path) -> bool:
    """Whether a file is named as a NIfTI image; hidden files, such as those of macOS, do not count in BIDS."""
    return path.name.lower().endswith((".nii", ".nii.gz")) and not path.name.startswith(".")


def _scans(folder: Path, tell: Callable[[str], None]) -> Iterator[Scan]:
    """Return the images that are not ignored and whose names agree with their folders."""
    ignored = _ignored(folder)
    strange = []
    for path in _images(folder):
        within = path.relative_to(folder)
        if ignored.match_file(within.as_posix()):
            continue
        scan = _scan(path)
        if scan is None or scan.session != "/".join(within.parts[:-2]):
            strange.append(within)
        else:
            yield scan
    odd = [path for path in _odd_folders(folder) if not ignored.match_file(f"{path}/")]
    gone = [path for path in odd if not (folder / path).is_dir()]
    for paths, why in (
        ([path for path in odd if path not in gone], ODD),
        (gone, GONE),
        (strange, STRANGE),
    ):
        if paths:
            tell(_left_out(paths, folder, why))


ODD = "folders are named sub-LABEL, ses-LABEL and anat in BIDS, and labels consist of letters, digits and +"
GONE = "a link leads to a folder that does not exist; if DataLad manages this dataset, get it first (datalad get)"
STRANGE = (
    "a name must begin with the subject and session of its folder and name each entity once, as in "
    "sub-01_ses-02_T1w.nii.gz"
)
"""Why folders and files are left out."""


def _scan(path: Path) -> Scan | None:
    """Return an image with the entities in its name; None if it is not a name of BIDS."""
    named = IMAGE.fullmatch(path.name)
    if named is None:
        return None
    pairs = [word.partition("-")[::2] for word in named[1].rstrip("_").split("_")]
    entities = dict(pairs)
    return Scan(path, entities, named[2]) if len(entities) == len(pairs) else None


def _left_out(names: Sequence[object], folder: Path, why: str) -> str:
    verb = "is" if len(names) == 1 else "are"
    return f"{listed(names, NAMED_AT_MOST)} in {folder} {verb} left out: {why}."


def _odd_folders(folder: Path) -> Iterator[str]:
    """Yield the folders whose names resemble those of BIDS but are not, and links to folders that do not exist."""
    for parent in (folder, *_parents(folder)):
        at_top = parent == folder
        like, right = (LIKE_SUBJECT, SUBJECT) if at_top else (LIKE_BELOW, BELOW_SUBJECT)
        for path in sorted(filter(lambda path: like.fullmatch(path.name), parent.iterdir())):
            if is_dangling(path) or (path.is_dir() and not right.fullmatch(path.name)):
                yield path.relative_to(folder).as_posix()


def _parents(folder: Path) -> Iterator[Path]:
    """Yield the folders of subjects and sessions."""
    for subject in sorted(folder.glob("sub-*")):
        if SUBJECT.fullmatch(subject.name) and subject.is_dir():
            sessions = (path for path in sorted(subject.glob("ses-*")) if path.is_dir())
            yield from (subject, *(path for path in sessions if SESSION.fullmatch(path.name)))


def _ignored(folder: Path) -> pathspec.GitIgnoreSpec:
    path = folder / IGNORED
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines() if path.is_file() else []
        return pathspec.GitIgnoreSpec.from_lines(lines)
    except (OSError, ValueError) as error:  # an impossible pattern, or bytes that are not text
        raise InputError(
            f"{path} cannot be understood ({error}). Write patterns as in a .gitignore."
        ) from error


def _describe(folder: Path, tell: Callable[[str], None]) -> None:
    path = folder / DESCRIPTION
    if not path.is_file():
        return
    try:
        description: Any = json.loads(path.read_text(encoding="utf-8-sig"))
        if isinstance(description, dict):
            return
        problem = "it is not an object"
    except (OSError, ValueError, RecursionError) as error:
        problem = str(error)
    tell(f"{path} is not valid JSON ({problem}). The images are found by their names without it.")


def _tell_what_lacks(
    folder: Path,
    scans: Sequence[Scan],
    taken: Sequence[Scan],
    wanted: Filter,
    tell: Callable[[str], None],
) -> None:
    """Report sessions without an image and with several, so that omissions and repetitions are never silent."""
    by_session: dict[str, list[Scan]] = defaultdict(list)
    for scan in taken:
        by_session[scan.session].append(scan)
    asked = Filter({key: wanted.wanted[key] for key in ("sub", "ses") if key in wanted.wanted})
    there = {scan.session: None for scan in scans if asked.takes(scan)}
    ignored = _ignored(folder)
    there |= {name: None for name in _folders(folder, asked) if not ignored.match_file(f"{name}/")}
    if missing := sorted(there.keys() - by_session.keys()):
        tell(f"Without an image with {wanted}: {listed(missing, NAMED_AT_MOST)}.")
    if absent := sorted(_sessions_that_others_have(by_session)):
        tell(f"Sessions that other subjects have are missing: {listed(absent, NAMED_AT_MOST)}.")
    _tell_repeated(by_session, wanted, tell)


def _tell_repeated(
    by_session: Mapping[str, Sequence[Scan]], wanted: Filter, tell: Callable[[str], None]
) -> None:
    if several := sorted(name for name, group in by_session.items() if len(group) > 1):
        first = by_session[several[0]]
        tell(
            f"{listed(several, NAMED_AT_MOST)}: several images with {wanted}, such as {first[0].path.name} and "
            f"{first[1].path.name}. Each is a case; select one with --bids-filter, as in run=1."
        )


def _tell_parts(
    matching: Sequence[Scan], taken: Sequence[Scan], tell: Callable[[str], None]
) -> None:
    if parts := [scan.path.name for scan in matching if scan not in taken]:
        tell(
            f"{listed(parts, NAMED_AT_MOST)}: left out, because phase, real and imaginary images do not look "
            "like the images that models know. Select them with --bids-filter, as in part=phase."
        )


def _folders(folder: Path, asked: Filter) -> Iterator[str]:
    """Return subjects or, if they have sessions, their sessions, whatever images they hold."""
    for subject in folder.glob("sub-*"):
        if not SUBJECT.fullmatch(subject.name) or not subject.is_dir():
            continue
        sessions = [path for path in subject.glob("ses-*") if SESSION.fullmatch(path.name)]
        for path in sessions or [subject]:
            within = path.relative_to(folder)
            entities = dict(part.split("-", 1) for part in within.parts)
            if asked.takes(Scan(path, entities, "")):
                yield within.as_posix()


def _sessions_that_others_have(by_session: Mapping[str, Any]) -> Iterator[str]:
    """Return the sessions that at least half of the subjects have and others lack completely."""
    has: dict[str, set[str]] = defaultdict(set)
    for name in by_session:
        subject, _, session = name.partition("/")
        has[subject].add(session)
    for session in set().union(*has.values()) - {""}:
        lacking = [subject for subject, sessions in has.items() if session not in sessions]
        if 2 * len(lacking) <= len(has):
            yield from (f"{subject}/{session}" for subject in lacking)


def _nothing(folder: Path, wanted: Filter, scans: Sequence[Scan]) -> str:
    suffixes = sorted({scan.suffix for scan in scans})
    sessions = sorted({scan.entities["ses"] for scan in scans if "ses" in scan.entities})
    there = (
        f"It has images with the suffix {', '.join(suffixes)}"
        if scans
        else "It does not have images"
    )
    there += f" in the sessions {listed(sessions, NAMED_AT_MOST)}" if sessions else ""
    return (
        f"{folder} does not have an image with {wanted} in sub-*/anat or sub-*/ses-*/anat. "
        f"{there}; select with --bids-filter, as in suffix=T2w session=01."
    )


def _plain(key: str, value: str) -> str:
    """Return a value without leading zeros for runs and echoes, which are numbers."""
    return str(int(value)) if key in ("run", "echo") and value.isdecimal() else value

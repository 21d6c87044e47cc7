"""Input and output of an nnU-Net: channels, labels, regions, and their post-processing.

Sources: dataset.json and postprocessing.json as nnU-Net v2 writes them (MIC-DKFZ/nnUNet: `label_handling.py`,
`remove_connected_components.py`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medsegai.errors import ModelError
from medsegai.labels import Label, made_color
from medsegai.models import json_fields
from medsegai.models.card import Channel
from medsegai.models.json_fields import shown

LARGEST_COMPONENT = "remove_all_but_largest_component_from_segmentation"
CROSS_VALIDATION = re.compile(r"crossval_results_folds_(.+)")

MODALITIES = (
    ("CT", r"ct|cbct|hu"),
    ("MR", r"mri?|t[12].*|flair|adc|dwi|swi|pd|dce|gre|b\d+"),
    ("PT", r"pet|suv|fdg|psma"),
    ("US", r"us|ultrasound"),
)
"""DICOM modalities, and words in a channel's name that reveal them; the first match counts."""


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object of nnU-Net's, which writes NaN for the mean of nothing; that is read as null.

    Raises:
        ModelError: the file is missing, damaged, or holds something else.
    """
    try:
        return json_fields.read_json(path, nan_as_null=True)
    except FileNotFoundError:
        raise ModelError(f"{path} is missing: copy it from where the model was trained.") from None


def value_of(data: object, key: str, kind: type | tuple[type, ...], source: Path) -> Any:
    """The value of a key that must be there.

    Raises:
        ModelError: it is not, or is of another kind.
    """
    if not isinstance(data, Mapping) or key not in data:
        raise ModelError(f"{source} has no {key!r}: it is damaged, or not a file of nnU-Net v2.")
    value = data[key]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ModelError(f"{source}: {key} cannot be {value!r}.")
    return value


def numbers_of(data: object, key: str, source: Path, count: int | None = None) -> list[float]:
    """A list of numbers above 0 that must be there.

    Args:
        data, key, source: as `value_of` takes them.
        count: how many; None for any number of them.

    Raises:
        ModelError: it is not, or holds something else.
    """
    values: list[float] = value_of(data, key, list, source)
    if not all(isinstance(value, (int, float)) and 0 < value < math.inf for value in values):
        raise ModelError(f"{source}: {key} must hold numbers above 0, not {shown(values)}.")
    if count is not None and len(values) != count:
        raise ModelError(f"{source}: {key} must hold {count} numbers, not {len(values)}.")
    return values


# input


def channels_of(dataset: Mapping[str, Any], source: Path) -> tuple[Channel, ...]:
    """The channels in the order of their numbers; a name that is there twice gets a number.

    Raises:
        ModelError: there are none.
    """
    key = (
        "modality" if "channel_names" not in dataset and "modality" in dataset else "channel_names"
    )
    named = value_of(dataset, key, dict, source)
    if not named:
        raise ModelError(f"{source}: {key} does not name any channel.")
    # nnU-Net counts channels and does not look at their numbers: "0000" and numbers from 1 are about.
    numbers = sorted(named, key=lambda number: int(number) if number.isdecimal() else 0)
    names = [str(named[number]) for number in numbers]
    return tuple(
        Channel(f"{name} {number + 1}" if names.count(name) > 1 else name, _modality(name))
        for number, name in enumerate(names)
    )


def _modality(name: str) -> str:
    words = re.split(r"[^a-z0-9]+", name.lower())
    fitting = (
        code for code, words_of in MODALITIES for word in words if re.fullmatch(words_of, word)
    )
    return next(fitting, "OT")


# output


@dataclass(frozen=True)
class Classes:
    """What the outputs of the network mean.

    Attributes:
        labels: the structures that a result can contain.
        outputs: for each output channel its target labels; () is the background.
        regions: for each output channel the values of its region; None without regions.
        order: the value that each region writes, later ones over earlier ones; None without regions.
    """

    labels: tuple[Label, ...]
    outputs: tuple[tuple[int, ...], ...]
    regions: tuple[tuple[int, ...], ...] | None = None
    order: tuple[int, ...] | None = None


def classes_of(dataset: Mapping[str, Any], source: Path) -> Classes:
    """Labels, or regions where one of them holds several values, without background and ignore label.

    Raises:
        ModelError: labels are not as nnU-Net v2 demands.
    """
    named = value_of(dataset, "labels", dict, source)
    if named.get("0") == "background":
        raise ModelError(
            f"{source} was made by nnU-Net v1, which is not supported. Train the model again with nnU-Net v2."
        )
    values = {str(name): _values(name, entry, source) for name, entry in named.items()}
    if values.get("background") != (0,):
        raise ModelError(f"{source}: labels must have the background as 0.")
    ignored = values.pop("ignore", None)
    regions = {name: region for name, region in values.items() if set(region) != {0}}
    used = sorted({0}.union(*regions.values()))
    if ignored is not None and ignored != (used[-1] + 1,):
        raise ModelError(
            f"{source}: the ignore label must be {used[-1] + 1}, the highest, not {named['ignore']}."
        )
    if not regions:
        raise ModelError(f"{source}: labels name nothing but the background.")
    if any(len(region) > 1 for region in regions.values()):
        return _regions(regions, dataset, source)
    if used != list(range(len(regions) + 1)):
        raise ModelError(
            f"{source}: labels must be 1, 2, 3, ... without gaps or doubles, as nnU-Net v2 demands, not "
            f"{', '.join(str(value) for (value,) in regions.values())}."
        )
    labels = sorted(
        (_label(value, name) for name, (value,) in regions.items()),
        key=lambda label: label.value,
    )
    return Classes(tuple(labels), ((), *((label.value,) for label in labels)))


def _label(value: int, name: str) -> Label:
    printable = "".join(letter if letter.isprintable() else " " for letter in name)
    return Label(value, " ".join(printable.split()) or f"Label {value}", made_color(value))


def _values(name: str, entry: Any, source: Path) -> tuple[int, ...]:
    values = entry if isinstance(entry, list) else [entry]
    values = [int(v) if isinstance(v, str) and v.isdecimal() else v for v in values]
    if not values or not all(type(value) is int and 0 <= value < 2**16 for value in values):
        raise ModelError(
            f"{source}: label {name!r} must be a number or a list of numbers, not {entry!r}."
        )
    return tuple(values)


def _regions(
    regions: Mapping[str, tuple[int, ...]], dataset: Mapping[str, Any], source: Path
) -> Classes:
    order = value_of(dataset, "regions_class_order", list, source)
    numbers = all(type(value) is int for value in order)
    if not numbers or not len(set(order)) == len(order) == len(regions):
        raise ModelError(
            f"{source}: regions_class_order must have a separate value for each of {', '.join(regions)}, "
            f"not {order!r}."
        )
    labels = [_label(value, name) for value, name in zip(order, regions, strict=True)]
    outputs = [tuple(value for value in region if value in order) for region in regions.values()]
    return Classes(tuple(labels), tuple(outputs), tuple(regions.values()), tuple(order))


# post-processing


@dataclass(frozen=True)
class Postprocessing:
    """Groups of labels of which only the largest component is kept, in order; and what could not be read."""

    groups: tuple[tuple[int, ...], ...] = ()
    notes: tuple[str, ...] = ()


def postprocessing_of(
    folders: Sequence[Path], folds: Sequence[str], named: str | None
) -> Postprocessing:
    """The post-processing that nnU-Net found to help these results, or their ensemble.

    It is read from postprocessing.json. The file postprocessing.pkl says the same, but is a program.

    Args:
        folders: the results folders that are fused.
        folds: those that are used.
        named: the file that inference_information.json names, whose folder may lie on another computer.

    Raises:
        ModelError: the file is damaged.
    """
    for place in _places(folders, folds, named):
        file = place / "postprocessing.json"
        if file.is_file():
            return _read_postprocessing(file)
        if (place / "postprocessing.pkl").is_file():
            note = (
                f"Its post-processing is left out: {place.name} has it only as postprocessing.pkl, which can "
                "run code and is not opened."
            )
            return Postprocessing(notes=(note,))
    return Postprocessing()


def _places(folders: Sequence[Path], folds: Sequence[str], named: str | None) -> Iterator[Path]:
    """Where nnU-Net may have written it, the most relevant first."""
    dataset = folders[0].parent
    if named is not None:
        yield dataset.joinpath(*re.split(r"[/\\]", named)[-3:-1])
    if len(folders) == 1:
        yield folders[0]
        found = [path for path in folders[0].iterdir() if CROSS_VALIDATION.fullmatch(path.name)]
        yield from sorted(found, key=lambda path: _distance(path, folds))
    elif len(folders) == 2:
        first, second = folders
        for names in ((first.name, second.name), (second.name, first.name)):
            found = list((dataset / "ensembles").glob(f"ensemble___{'___'.join(names)}___*"))
            yield from sorted(found, key=lambda path: _distance(path, folds))


def _distance(path: Path, folds: Sequence[str]) -> tuple[int, str]:
    """How far the folds in a folder's name are from these."""
    there = re.split(r"folds_|___", path.name)[-1].split("_")
    return len(set(there) ^ set(folds)), path.name


def _read_postprocessing(source: Path) -> Postprocessing:
    data = read_json(source)
    functions = value_of(data, "postprocessing_fns", list, source)
    arguments = value_of(data, "postprocessing_kwargs", list, source)
    if len(functions) != len(arguments):
        raise ModelError(
            f"{source}: postprocessing_fns and postprocessing_kwargs must have equal lengths."
        )
    groups, notes = [], []
    for function, given in zip(functions, arguments, strict=True):
        if function == LARGEST_COMPONENT and not given.get("background_label", 0):
            groups.append(_flat(value_of(given, "labels_or_regions", (int, list), source), source))
        else:
            notes.append(f"Its post-processing {function!r} is unknown and left out.")
    return Postprocessing(tuple(groups), tuple(notes))


def _flat(labels: Any, source: Path) -> tuple[int, ...]:
    """One label, a region, or a list of both: in any case, its components are those of all together."""
    if type(labels) is int:
        return (labels,)
    if not isinstance(labels, list):
        raise ModelError(f"{source}: labels_or_regions cannot hold {labels!r}.")
    return tuple(sorted({value for item in labels for value in _flat(item, source)}))

"""The names of the output channels of a bundle, which its metadata states in one of several ways."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medsegai.labels import Label, made_color

BACKGROUND = re.compile(
    r"(?i)(?:the )?(?:back[ _-]?ground|bg|nothing|none|other|others|unlabell?ed|everything[ _]else|clear label"
    r"|back)(?: .*)?"
)

LONGEST = 100
"""The largest number of letters in the name of a structure."""

_IN_WORDS = re.compile(
    r"(?<![\w.])(?:channel|label|class)?\s*#?(\d{1,4})\s*(?:is|are|for|as|means|stands for|[:=-])?\s+"
    r"(?:the\s+)?([A-Za-z][\w /()'-]*?)(?=\s*(?:[,;.]|$|\band\b(?=\s+(?:channel|label|class)?\s*\d)))"
)
"""The pattern of the parts of a sentence such as "1 is artery, channel 2 for Whole tumor"."""

_COUNTS = re.compile(r"(?i)channels?\b|class(?:es)?\b|data\b|labels?\b|d\b")
"""The beginning of words that follow a number without being a name, as in "3 channels data"."""

NESTED = (("whole", "complete"), (), ("core",), ("enhanc",))
"""Words for regions of a tumour, from the outermost to the innermost, which is shown."""


@dataclass(frozen=True)
class Named:
    """Labels, and whether they have names.

    Attributes:
        labels: the labels; later ones cover earlier ones.
        classes: the label values that each channel of a member predicts.
        note: a remark about the names for the user, or "".
    """

    labels: tuple[Label, ...]
    classes: tuple[tuple[int, ...], ...]
    note: str = ""


def channel_names(metadata: Mapping[str, Any], classes: int) -> dict[int, str]:
    """Return the names of channels that the metadata defines, or else mentions in sentences."""
    outputs = _mapping(_mapping(metadata.get("network_data_format")).get("outputs"))
    output = _mapping(outputs.get("pred") or next(iter(outputs.values()), None))
    for given in (
        output.get("channel_def"),
        metadata.get("label_classes"),
        metadata.get("pred_classes"),
    ):
        names = {number: _one_line(name) for number, name in _pairs(given) if number < classes}
        if any(number and name for number, name in names.items()) or (classes == 1 and names):
            return {number: name for number, name in names.items() if name}
    return {}


def exclusive(names: Mapping[int, str], classes: int) -> Named:
    """Return the labels of a network whose largest channel wins; channel 0 is the background."""
    values = range(1, classes)
    made, note = _made({value: names.get(value, "") for value in values})
    return Named(made, ((), *((value,) for value in values)), note)


def overlapping(
    names: Mapping[int, str], classes: int, merge: Sequence[tuple[int, int]] | None
) -> tuple[Named, list[int]]:
    """Return the labels of a network with a threshold for each channel, and its channels in their order.

    A voxel gets the last of the regions that contain it.

    Args:
        merge: the (channel, value) pairs in this order, if the configuration has them; otherwise outer regions
            come first if their names are known, and the others have the order of the channels.
    """
    if merge is None:
        ranked = sorted(
            range(classes), key=lambda channel: (_rank(names.get(channel, "")), channel)
        )
        merge = [(channel, channel + 1) for channel in ranked]
    by_channel = dict(merge)
    made, note = _made({value: names.get(channel, "") for channel, value in by_channel.items()})
    named = Named(made, ((), *((value,) for value in by_channel.values())), note)
    return named, list(by_channel)


def _rank(name: str) -> int:
    for rank, words in enumerate(NESTED):
        if any(word in name.lower() for word in words):
            return rank
    return 1


def _made(names: Mapping[int, str]) -> tuple[tuple[Label, ...], str]:
    """Return labels with these values; missing and repeated names get the value."""
    labels, seen, made_up = [], set(), 0
    for value, name in names.items():
        if not name:
            made_up += 1
            name = f"label {value}"
        if name.casefold() in seen:
            name = f"{name} {value}"
        seen.add(name.casefold())
        labels.append(Label(value, name, made_color(value)))
    note = ""
    if made_up == len(labels):
        note = "The bundle does not say what its labels are; they are numbered."
    elif made_up:
        note = (
            f"The bundle does not name {made_up} of its {len(labels)} labels; these are numbered."
        )
    return tuple(labels), note


def _pairs(given: Any) -> list[tuple[int, str]]:
    """Yield (channel, name) from an object in either direction, a list, or a sentence."""
    if isinstance(given, list):
        return [(number, name) for number, name in enumerate(given) if isinstance(name, str)]
    if isinstance(given, str):
        found = [(int(number), name) for number, name in _IN_WORDS.findall(given)]
        return [(number, name) for number, name in found if not _COUNTS.match(name)]
    if isinstance(given, Mapping):
        turned = all(_number(value) is not None for value in given.values())
        pairs = [(value, key) if turned else (key, value) for key, value in given.items()]
        return [
            (number, name)
            for key, name in pairs
            if (number := _number(key)) is not None and isinstance(name, str)
        ]
    return []


def _number(value: Any) -> int | None:
    if isinstance(value, str) and value.strip().isdecimal() and len(value) < 6:
        return int(value)
    return value if type(value) is int and 0 <= value < 1 << 16 else None


def _one_line(name: str) -> str:
    """Return a name without line breaks and other characters that cannot be printed."""
    words = "".join(letter if letter.isprintable() else " " for letter in name).split()
    return " ".join(words).strip(" .,;:")[:LONGEST].strip()


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}

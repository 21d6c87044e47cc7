"""Matching of the segments of a segmentation to the labels of a model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import slicer

from medsegai.labels import Label
from MedSegAILib.scene.segments import UNSPECIFIC, segment_id, tag_of
from MedSegAILib.slicer_types import Segment, SegmentationNode

# The parts of a terminology entry that name the structure: category, type and type modifier.
_CODES = slice(1, 4)


def match(segmentation: SegmentationNode, labels: Sequence[Label]) -> dict[Label, str]:
    """Return the segment id of each label for which the segmentation has a segment.

    A label is matched by segment id, then by name, then by terminology code; each segment matches at most one
    label. A name counts if the codes do not contradict it, and a code counts if only one label and one segment
    have it.
    """
    segments = segmentation.GetSegmentation()
    left = {name: segments.GetSegment(name) for name in segments.GetSegmentIDs()}
    found: dict[Label, str] = {}
    for label in labels:
        if segment_id(label) in left:
            found[label] = segment_id(label)
            del left[segment_id(label)]
    _join(found, left, labels, lambda label: label.name.casefold(), _segment_name)
    _join(found, left, labels, _label_code, _segment_code)
    return found


def _join(
    found: dict[Label, str],
    left: dict[str, Segment],
    labels: Sequence[Label],
    of_label: Callable[[Label], str],
    of_segment: Callable[[Segment], str],
) -> None:
    """Match labels and segments that are the only ones with the same key."""
    open_labels = [label for label in labels if label not in found]
    often = Counter(of_label(label) for label in labels)
    names: dict[str, list[str]] = {}
    for name, segment in left.items():
        names.setdefault(of_segment(segment), []).append(name)
    for label in open_labels:
        key = of_label(label)
        candidates = names.get(key, []) if key and often[key] == 1 else []
        if len(candidates) == 1 and not _contradict(label, left[candidates[0]]):
            found[label] = candidates[0]
            del left[candidates[0]]


def _contradict(label: Label, segment: Segment) -> bool:
    mine, theirs = _label_code(label), _segment_code(segment)
    return bool(mine and theirs and mine != theirs)


def _segment_name(segment: Segment) -> str:
    return str(segment.GetName()).casefold()


def _label_code(label: Label) -> str:
    return "" if label.terminology is None else _code(label.terminology.to_slicer())


def _segment_code(segment: Segment) -> str:
    return _code(tag_of(segment, slicer.vtkSegment.GetTerminologyEntryTagName()))


def _code(entry: str) -> str:
    """Return the coded part of a terminology entry, without the meanings; "" if it is not anatomical."""
    codes = ["^".join(part.split("^")[:2]) for part in entry.split("~")[_CODES]]
    if len(codes) < 3 or codes[1] in ("", "^", "^".join(UNSPECIFIC.type[:2])):
        return ""
    return "~".join(codes)

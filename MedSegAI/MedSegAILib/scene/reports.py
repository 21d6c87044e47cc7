"""The origin of a segmentation, which is stored with its node and saved with the scene.

A scene may come from anyone, so entries that are not what a run reports are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from medsegai.models.json_fields import harmless
from MedSegAILib.slicer_types import SegmentationNode

REPORT_ATTRIBUTE = "MedSegAI.report"
"""Attribute of a segmentation node that the AI made: the report of its last job, as JSON."""

Test: TypeAlias = Callable[[Any], bool]
Shape: TypeAlias = "Test | Mapping[str, Shape]"
"""Whether a value is what a run reports, or the same for entries of an object; other entries may be anything."""


def report_of(segmentation: SegmentationNode) -> dict[str, Any]:
    """Return the origin of a segmentation, see `SegmentationResult.report`; empty if MedSegAI did not make it.

    An entry that other software damaged counts as none.
    """
    text = segmentation.GetAttribute(REPORT_ATTRIBUTE) or "{}"
    try:
        report = harmless(text, nan_as_null=True)
    except (ValueError, RecursionError):
        return {}
    return _undamaged(report, _REPORT) if isinstance(report, dict) else {}


def _undamaged(entries: Mapping[str, Any], shape: Mapping[str, Shape]) -> dict[str, Any]:
    kept = {}
    for name, value in entries.items():
        wanted = shape.get(name)
        if isinstance(wanted, Mapping):
            if isinstance(value, dict):
                kept[name] = _undamaged(value, wanted)
        elif wanted is None or wanted(value):
            kept[name] = value
    return kept


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _all(test: Test) -> Test:
    return lambda value: isinstance(value, list) and all(map(test, value))


def _with(**tests: Test) -> Test:
    """Return the test of an object with these entries, and perhaps others."""
    return lambda value: (
        isinstance(value, dict)
        and all(name in value and test(value[name]) for name, test in tests.items())
    )


def _are_seconds(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_number, value.values()))


_REFINEMENT = _with(settings=_with(name=_is_text), ml=_is_number, voxels=_is_number)

_REPORT: Mapping[str, Shape] = {
    "structures": _all(_with(name=_is_text, voxels=_is_number)),
    "seconds": _are_seconds,
    "warnings": _all(_is_text),
    "provenance": {
        "device": _is_text,
        "models": _all(_with(id=_is_text)),
        "members": _all(_is_text),
        "refinements": _all(_REFINEMENT),
    },
    "refined": _all(_REFINEMENT),
    "updated": _all(_with()),
}

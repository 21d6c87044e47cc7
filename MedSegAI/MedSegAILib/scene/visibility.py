"""Which segments are drawn in the views."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def is_shown(segmentation: Any, segment_id: str) -> bool:
    """Whether a segment is drawn where its segmentation is; all are where nothing says otherwise."""
    display = segmentation.GetDisplayNode()
    return display is None or bool(display.GetSegmentVisibility(segment_id))


def set_shown(segmentation: Any, segment_ids: Iterable[str], shown: bool) -> None:
    """Draw segments, or do not; others stay as they are."""
    display = _display(segmentation)
    was_modifying = display.StartModify()
    for name in segment_ids:
        display.SetSegmentVisibility(name, shown)
    display.EndModify(was_modifying)


def show_only(segmentation: Any, segment_ids: Iterable[str]) -> None:
    """Draw these segments, and no others."""
    wanted = set(segment_ids)
    every = segmentation.GetSegmentation().GetSegmentIDs()
    set_shown(segmentation, [name for name in every if name not in wanted], False)
    set_shown(segmentation, [name for name in every if name in wanted], True)


def _display(segmentation: Any) -> Any:
    segmentation.CreateDefaultDisplayNodes()
    return segmentation.GetDisplayNode()

"""The review state of a segment, which is stored on the segment, where the Segment Editor shows it.

Slicer does not have a lock on single segments. The review state *completed* comes nearest, so a completed segment
counts as locked here, because a reviewed segment must not change by itself. The masking settings of the Segment
Editor (editable area, modify other segments) belong to its brushes and are not used: a result is restricted to its
region, and never takes voxels from other segments.
"""

from __future__ import annotations

from enum import Enum

import slicer

from medsegai.errors import InputError
from MedSegAILib.slicer_types import Segment, SegmentationNode
from MedSegAILib.translation import tr as _


class ReviewState(Enum):
    """The review states of Slicer's segments, by the words that it stores."""

    NOT_STARTED = "notstarted"
    IN_PROGRESS = "inprogress"
    COMPLETED = "completed"
    FLAGGED = "flagged"


def review_state(segmentation: SegmentationNode, segment_id: str) -> ReviewState:
    """Return the review state of a segment.

    Raises:
        InputError: the segmentation does not have the segment.
    """
    return state_of(segment_of(segmentation, segment_id))


def state_of(segment: Segment) -> ReviewState:
    """Return the review state that is stored on a segment."""
    logic = slicer.vtkSlicerSegmentationsModuleLogic
    number = logic.GetSegmentStatus(segment)
    return ReviewState(logic.GetSegmentStatusAsMachineReadableString(number))


def set_review_state(segmentation: SegmentationNode, segment_id: str, state: ReviewState) -> None:
    """Set the review state of a segment.

    Raises:
        InputError: the segmentation does not have the segment.
    """
    set_state(segment_of(segmentation, segment_id), state)


def set_state(segment: Segment, state: ReviewState) -> None:
    """Set the review state on a segment itself."""
    logic = slicer.vtkSlicerSegmentationsModuleLogic
    logic.SetSegmentStatus(segment, logic.GetSegmentStatusFromMachineReadableString(state.value))


def is_locked(segmentation: SegmentationNode, segment_id: str) -> bool:
    """Whether the AI must not change a segment, because its review is completed."""
    return review_state(segmentation, segment_id) is ReviewState.COMPLETED


def segment_of(segmentation: SegmentationNode, segment_id: str) -> Segment:
    segment = segmentation.GetSegmentation().GetSegment(segment_id)
    if segment is None:
        text = _("{name} no longer has the segment {segment}. Choose another one.")
        raise InputError(text.format(name=segmentation.GetName(), segment=segment_id))
    return segment

"""How far a person is with looking at a segment: kept on the segment, where the Segment Editor shows it.

Slicer has no lock on single segments. What comes nearest is the review state *completed*, and so a completed
segment counts as locked here: nobody wants what was looked at and found right to change by itself. The
masking settings of the Segment Editor (editable area, modify other segments) belong to its brushes and are
not read: a result is kept to the region that was given, and never takes voxels from other segments.
"""

from __future__ import annotations

from enum import Enum

import slicer

from medsegai.errors import InputError
from MedSegAILib.slicer_types import Segment, SegmentationNode


class ReviewState(Enum):
    """The states of Slicer's segments, by the words that it stores."""

    NOT_STARTED = "notstarted"
    IN_PROGRESS = "inprogress"
    COMPLETED = "completed"
    FLAGGED = "flagged"


def review_state(segmentation: SegmentationNode, segment_id: str) -> ReviewState:
    """How far the review of a segment is.

    Raises:
        InputError: the segmentation has no such segment.
    """
    segment = segment_of(segmentation, segment_id)
    logic = slicer.vtkSlicerSegmentationsModuleLogic
    number = logic.GetSegmentStatus(segment)
    return ReviewState(logic.GetSegmentStatusAsMachineReadableString(number))


def set_review_state(segmentation: SegmentationNode, segment_id: str, state: ReviewState) -> None:
    """Say how far the review of a segment is.

    Raises:
        InputError: the segmentation has no such segment.
    """
    set_state(segment_of(segmentation, segment_id), state)


def set_state(segment: Segment, state: ReviewState) -> None:
    """The same for a segment at hand."""
    logic = slicer.vtkSlicerSegmentationsModuleLogic
    logic.SetSegmentStatus(segment, logic.GetSegmentStatusFromMachineReadableString(state.value))


def is_locked(segmentation: SegmentationNode, segment_id: str) -> bool:
    """Whether the AI must leave a segment alone: its review is completed."""
    return review_state(segmentation, segment_id) is ReviewState.COMPLETED


def segment_of(segmentation: SegmentationNode, segment_id: str) -> Segment:
    segment = segmentation.GetSegmentation().GetSegment(segment_id)
    if segment is None:
        raise InputError(
            f"{segmentation.GetName()} has no segment {segment_id} any more. Choose one that it has."
        )
    return segment

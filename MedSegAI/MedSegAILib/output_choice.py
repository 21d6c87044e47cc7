"""The chosen output of a result, which panel, controller and scene share."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from MedSegAILib.slicer_types import Node


class OutputMode(Enum):
    """What is done with a result's structures.

    NEW makes a segmentation node. UPDATE changes the existing segments of a node for structures of the result,
    without adding segments. ADD adds all structures as new segments. PREVIEW does the same as UPDATE, with missing
    segments added, or as NEW if a node is not chosen, on a copy that is shown first and then accepted or rejected.
    """

    NEW = "new"
    UPDATE = "update"
    ADD = "add"
    PREVIEW = "preview"


@dataclass(frozen=True)
class OutputChoice:
    """The output of a result.

    Attributes:
        mode: see `OutputMode`.
        node: the vtkMRMLSegmentationNode for UPDATE, ADD and PREVIEW; NEW does not need one.
        change_locked: whether to change locked segments, too (see `MedSegAILib.scene.review`).
        change_painted: whether to change painted segments, too, which the AI did not make, or which were edited
            since.
    """

    mode: OutputMode = OutputMode.NEW
    node: Node = None
    change_locked: bool = False
    change_painted: bool = False

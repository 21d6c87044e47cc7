"""Where a result goes, as the user chose it: what panel, controller and scene share."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from MedSegAILib.slicer_types import Node


class OutputMode(Enum):
    """What becomes of a result's structures.

    NEW makes a segmentation node. UPDATE changes the segments of a node that already has one for a structure
    of the result, and adds none. ADD puts all structures beside those that the node has, as segments of their
    own. PREVIEW does what UPDATE does, adding what is missing, or NEW where no node is chosen, on a copy
    that is shown first and then accepted or rejected.
    """

    NEW = "new"
    UPDATE = "update"
    ADD = "add"
    PREVIEW = "preview"


@dataclass(frozen=True)
class OutputChoice:
    """Where a result goes.

    Attributes:
        mode: see `OutputMode`.
        node: the vtkMRMLSegmentationNode that UPDATE, ADD and PREVIEW work on; NEW needs none.
        change_locked: also change segments that are locked (see `MedSegAILib.scene.review`).
        change_painted: also change what the user painted: segments that the AI did not make, or that were
            edited since.
    """

    mode: OutputMode = OutputMode.NEW
    node: Node = None
    change_locked: bool = False
    change_painted: bool = False

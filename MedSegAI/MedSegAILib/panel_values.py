"""What panel and controller tell each other: plain values, without Qt and without MRML.

Nodes of the scene pass through as they are; nobody here looks into them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from medsegai.models.card import ModelCard
from medsegai.models.quality import CHECK, POOR
from medsegai.models.refinement import Refinement
from medsegai.worker.batch_events import CaseState
from MedSegAILib.output_choice import OutputChoice
from MedSegAILib.slicer_types import Node, SegmentationNode, VolumeNode


@dataclass(frozen=True)
class Choice:
    """What the user chose.

    Attributes:
        nodes: the volume node (or None) of each channel of the model, by the channel's name, in the model's
            order; one entry with the name "" while there is no model.
        cards: the models to use together; the first is the one whose channels are shown. Empty without one.
        options: the other options of a request.
        output: where the result goes.
        region: the ROI node to stay within, or None for the whole volume.
        bounds: the same as numbers, as `SegmentationRequest.region` takes them; empty without.
        every_frame: run on each frame of a sequence, not on the current one alone.
    """

    nodes: Mapping[str, Node] = field(default_factory=dict)
    cards: tuple[ModelCard, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    output: OutputChoice = field(default_factory=OutputChoice)
    region: Node = None
    bounds: tuple[float, ...] = ()
    every_frame: bool = False

    @property
    def card(self) -> ModelCard | None:
        return self.cards[0] if self.cards else None

    @property
    def node(self) -> Node:
        """The first channel's volume node: the result lies on its grid."""
        return next(iter(self.nodes.values()), None)


NOT_STARTED, DONE = "notstarted", "completed"

REVIEW_STATES = {
    NOT_STARTED: "Not started",
    "inprogress": "In progress",
    DONE: "Completed",
    "flagged": "Flagged",
}
"""How far a person is with a segment: the words that Slicer stores, and what the panel calls them."""


@dataclass(frozen=True)
class StructureRow:
    """One structure in the table of results.

    Attributes:
        segment_id: names the row.
        quality: one of `medsegai.models.quality`'s `GOOD`, `CHECK` and `POOR`; "" where nothing is known of it.
        reasons: why, and what was measured, in sentences for the tool tip.
        review: one of `REVIEW_STATES`; "" where there is no segment to review.
        shown: whether it is drawn in the views.
    """

    segment_id: str
    name: str
    color: tuple[int, int, int]
    volume_ml: float
    quality: str = ""
    reasons: str = ""
    review: str = ""
    shown: bool = True

    @property
    def to_check(self) -> bool:
        """Whether a person should look at it, and has not yet."""
        return self.quality in (CHECK, POOR) and self.review != DONE


@dataclass(frozen=True)
class Verdict:
    """What a result comes to: one line, how urgent it is, and the rest, which is folded away.

    Attributes:
        tone: one of `PLAIN`, `DOUBT` and `PROBLEM`.
    """

    line: str = ""
    tone: str = ""
    details: str = ""


PLAIN, DOUBT, PROBLEM = "", "doubt", "problem"


@dataclass(frozen=True)
class SegmentRow:
    """A segment to choose from; one that is `locked` must not change."""

    segment_id: str
    name: str
    color: tuple[int, int, int]
    locked: bool = False


@dataclass(frozen=True)
class RefineChoice:
    """What is to be done to a segmentation that is there.

    Attributes:
        segmentation: the node, or None.
        image: the volume node of the scan, or None.
        every: whether all its segments may change; else those in `segments` alone.
        segments: their ids.
        refinement: what to do; without labels.
    """

    segmentation: SegmentationNode = None
    image: VolumeNode = None
    every: bool = True
    segments: tuple[str, ...] = ()
    refinement: Refinement = field(default_factory=lambda: Refinement(""))


@dataclass(frozen=True)
class DeviceChoice:
    """A device that networks can run on: the value of the option `device`, and what it is."""

    value: str
    description: str


@dataclass(frozen=True)
class PlaceChoice:
    """Where the worker runs, as the fields of the settings show it.

    Attributes:
        kind: "own" (this Slicer's Python), "other" (another Python here) or "ssh" (another computer).
        python: the other Python's path.
        host: what ssh connects to.
        command: what starts the worker there.
    """

    kind: str = "own"
    python: str = ""
    host: str = ""
    command: str = "medsegai worker"


@dataclass(frozen=True)
class SeriesRow:
    """A series of the DICOM database: who, which study, which series, and its SeriesInstanceUID."""

    patient: str
    study: str
    description: str
    uid: str

    @property
    def title(self) -> str:
        """For the screen alone: it names the patient."""
        return ", ".join(name for name in (self.patient, self.study, self.description) if name)


@dataclass(frozen=True)
class BatchChoice:
    """What a batch is asked for.

    Attributes:
        folder: where the scans lie; "" where series are chosen.
        output: the folder that gets the results.
        resume: whether results that are there stay.
        series: those of the DICOM database to take in place of a folder; None for a folder.
    """

    folder: str = ""
    output: str = ""
    resume: bool = True
    series: tuple[SeriesRow, ...] | None = None


@dataclass(frozen=True)
class ExportChoice:
    """What is to be written of a segmentation.

    Attributes:
        folder: where to.
        parts: of report, csv, json, seg, sr and surfaces.
        encoding: of the DICOM SEG: binary or labelmap.
        formats: of the surfaces: .stl, .obj, .glb.
        tolerance_mm: how far surfaces may move where points are left out.
        space: world of the surfaces: LPS or RAS.
    """

    folder: str = ""
    parts: tuple[str, ...] = ("report", "csv")
    encoding: str = "binary"
    formats: tuple[str, ...] = (".stl",)
    tolerance_mm: float = 0.1
    space: str = "LPS"


@dataclass(frozen=True)
class CaseRow:
    """One case of a batch.

    `fraction` is None unless it is being done; `title` says more than its name; `remarks` counts the structures to
    look at.
    """

    case: str
    state: CaseState
    seconds: float | None = None
    remarks: int | None = None
    message: str = ""
    fraction: float | None = None
    title: str = ""

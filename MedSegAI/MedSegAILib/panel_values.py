"""The values between panel and controller: plain values, without Qt and MRML.

Nodes of the scene are passed on unchanged, without access to their content.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from medsegai.models.card import ModelCard
from medsegai.models.quality import CHECK, GOOD, POOR
from medsegai.models.refinement import Refinement
from medsegai.worker.batch_events import CaseState
from MedSegAILib.output_choice import OutputChoice
from MedSegAILib.slicer_types import Node, SegmentationNode, VolumeNode
from MedSegAILib.translation import tr as _


@dataclass(frozen=True)
class Choice:
    """The user's choices.

    Attributes:
        nodes: the volume node (or None) of each channel of the model, by the channel's name, in the model's
            order; one entry with the name "" while there is no model.
        cards: the models to use together; the first is the one whose channels are shown. Empty without one.
        options: the other options of a request.
        output: the output of the result.
        region: the ROI node of the region, or None for the whole volume.
        bounds: the region as numbers, as for `SegmentationRequest.region`; empty without one.
        every_frame: whether to run on each frame of a sequence, not only on the current one.
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
        """Return the first channel's volume node, whose grid the result has."""
        return next(iter(self.nodes.values()), None)


NOT_STARTED, DONE = "notstarted", "completed"

REVIEW_STATES = {
    NOT_STARTED: _("Not started"),
    "inprogress": _("In progress"),
    DONE: _("Completed"),
    "flagged": _("Flagged"),
}
"""The review states of a segment: the words that Slicer stores, and their names in the panel."""


QUALITIES = {GOOD: _("good"), CHECK: _("check"), POOR: _("poor")}
"""The names in the panel of the qualities of a structure."""


@dataclass(frozen=True)
class StructureRow:
    """One structure in the table of results.

    Attributes:
        segment_id: the id of the row.
        quality: one of `medsegai.models.quality`'s `GOOD`, `CHECK` and `POOR`; "" if it is unknown.
        reasons: the reasons and measurements, as sentences for the tool tip.
        review: one of `REVIEW_STATES`; "" if there is no segment to review.
        shown: whether it is visible in the views.
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
        """Whether a person should look at it, and has not done so."""
        return self.quality in (CHECK, POOR) and self.review != DONE


@dataclass(frozen=True)
class Verdict:
    """The summary of a result: one line, its urgency, and folded details.

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
    """The chosen refinement of an existing segmentation.

    Attributes:
        segmentation: the node, or None.
        image: the volume node of the scan, or None.
        every: whether all segments may change; otherwise only those in `segments`.
        segments: the ids of the chosen segments.
        refinement: the refinement, without labels.
    """

    segmentation: SegmentationNode = None
    image: VolumeNode = None
    every: bool = True
    segments: tuple[str, ...] = ()
    refinement: Refinement = field(default_factory=lambda: Refinement(""))


@dataclass(frozen=True)
class DeviceChoice:
    """A device for networks: the value of the option `device`, and its description."""

    value: str
    description: str


@dataclass(frozen=True)
class PlaceChoice:
    """The location of the worker, as the fields of the settings show it.

    Attributes:
        kind: "own" (this Slicer's Python), "other" (another Python here) or "ssh" (another computer).
        python: the other Python's path.
        host: the host of the ssh connection.
        command: the command that starts the worker there.
    """

    kind: str = "own"
    python: str = ""
    host: str = ""
    command: str = "medsegai worker"


@dataclass(frozen=True)
class SeriesRow:
    """A series of the DICOM database: patient, study, series, and its SeriesInstanceUID."""

    patient: str
    study: str
    description: str
    uid: str

    @property
    def title(self) -> str:
        """Return the title, only for the screen, because it names the patient."""
        return ", ".join(name for name in (self.patient, self.study, self.description) if name)


@dataclass(frozen=True)
class BatchChoice:
    """The choices of a batch.

    Attributes:
        folder: the folder of the scans; "" if series are chosen.
        output: the folder that gets the results.
        resume: whether existing results are kept.
        series: the series of the DICOM database to use instead of a folder; None for a folder.
    """

    folder: str = ""
    output: str = ""
    resume: bool = True
    series: tuple[SeriesRow, ...] | None = None


@dataclass(frozen=True)
class ExportChoice:
    """The choices of an export.

    Attributes:
        folder: the folder of the files.
        parts: the outputs, of report, csv, json, seg, sr and surfaces.
        encoding: the encoding of the DICOM SEG: binary or labelmap.
        formats: the formats of the surfaces: .stl, .obj, .glb.
        tolerance_mm: the largest distance by which surfaces move when points are left out.
        space: the coordinate system of the surfaces: LPS or RAS.
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

    `fraction` is None unless it is running; `title` has more than its name; `remarks` is the number of structures
    to look at.
    """

    case: str
    state: CaseState
    seconds: float | None = None
    remarks: int | None = None
    message: str = ""
    fraction: float | None = None
    title: str = ""

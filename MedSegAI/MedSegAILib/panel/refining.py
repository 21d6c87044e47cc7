"""The section that refines an existing segmentation."""

from __future__ import annotations

from collections.abc import Sequence

from medsegai.refinements import parse, refinement_names, summary
from medsegai.refinements import title as title_of_refinement
from MedSegAILib.kept_choices import KeptChoices
from MedSegAILib.panel.inputs import choose_node
from MedSegAILib.panel.refinement_form import RefinementForm
from MedSegAILib.panel.structure_list import Structure, StructureList
from MedSegAILib.panel.style import error_style, quiet_style
from MedSegAILib.panel.wrapping import say
from MedSegAILib.panel_values import RefineChoice, SegmentRow
from MedSegAILib.signals import Signal
from MedSegAILib.slicer_types import Node, Widget
from MedSegAILib.translation import tr as _

ALL, TICKED = 0, 1
WHICH = (_("All segments"), _("The ticked segments"))
SEGMENTS_ROW = 2
"""The position below the choice between all and some."""


class RefineView:
    """The choice of a segmentation, its segments, and one refinement with its options.

    Attributes:
        segmentation_chosen: another segmentation node, or None.
        choice_changed: anything was chosen.
        preview_requested, apply_requested, cancel_requested: a button was pressed.
    """

    def __init__(self, ui: Widget) -> None:
        self._ui = ui
        self.segmentation_chosen, self.choice_changed = Signal(), Signal()
        self.preview_requested, self.apply_requested = Signal(), Signal()
        self.cancel_requested = Signal()
        self._segments = StructureList(self.choice_changed.emit)
        self._segments.widget.objectName = "refineSegments"
        ui.refineArea.layout().insertRow(SEGMENTS_ROW, "", self._segments.widget)
        self._form = RefinementForm(
            ui.refinementArea.layout(), self.choice_changed.emit, "refineOption"
        )
        for title in WHICH:
            ui.refineSegmentsSelector.addItem(title)
        for name in refinement_names():
            ui.refinementSelector.addItem(title_of_refinement(name))
        self._connect()
        self._show_refinement()
        self._show_which()
        self.show_state(running=False, previewing=False)
        self.show_message("")

    def choice(self) -> RefineChoice:
        """Return what is chosen."""
        ui = self._ui
        return RefineChoice(
            ui.refineSelector.currentNode(),
            ui.refineImageSelector.currentNode(),
            ui.refineSegmentsSelector.currentIndex == ALL,
            self._segments.ticked(),
            self._form.refinement(),
        )

    def choose(self, node: Node) -> None:
        """Choose this segmentation, as a user would."""
        self._ui.refineSelector.setCurrentNode(node)

    def restore(self, kept: KeptChoices) -> None:
        """Show the choices for this section that a scene keeps, as far as they are offered."""
        refinement = parse(kept.refinement or refinement_names()[0])
        self._ui.refinementSelector.currentIndex = refinement_names().index(refinement.name)
        self._form.show(refinement.name, refinement.options)
        if kept.refined is not None:
            choose_node(self._ui.refineSelector, kept.refined)
            choose_node(self._ui.refineImageSelector, kept.refined_image)
        self._ui.refineSegmentsSelector.currentIndex = ALL if kept.every_segment else TICKED
        self._segments.tick(kept.segments)

    def choose_image(self, node: Node) -> None:
        """Choose this image, as a user would."""
        self._ui.refineImageSelector.setCurrentNode(node)

    def show_segments(self, rows: Sequence[SegmentRow]) -> None:
        """Offer segments to choose from; ticked segments stay ticked."""
        found = [Structure(row.segment_id, row.name, row.color, row.locked) for row in rows]
        self._segments.show(found, self._segments.ticked())

    def show_state(self, running: bool, previewing: bool) -> None:
        """Show the state: while a refinement runs or waits, no other can start; a preview waits for a decision."""
        ui = self._ui
        ui.refinePreviewButton.enabled = not running
        ui.refineApplyButton.enabled = not running
        ui.refineCancelButton.enabled = running or previewing

    def show_message(self, text: str, problem: bool = False) -> None:
        """Show a sentence; as a problem if it is one."""
        label = self._ui.refineMessage
        say(label, text, error_style(label) if problem else "")

    def _connect(self) -> None:
        ui = self._ui
        ui.refineSelector.connect("currentNodeChanged(vtkMRMLNode*)", self._on_segmentation)
        ui.refineImageSelector.connect("currentNodeChanged(vtkMRMLNode*)", self._on_change)
        ui.refineSegmentsSelector.connect("currentIndexChanged(int)", self._on_which)
        ui.refinementSelector.connect("currentIndexChanged(int)", self._on_refinement)
        ui.refinePreviewButton.connect("clicked()", self.preview_requested.emit)
        ui.refineApplyButton.connect("clicked()", self.apply_requested.emit)
        ui.refineCancelButton.connect("clicked()", self.cancel_requested.emit)

    def _on_segmentation(self, node: Node) -> None:
        self.segmentation_chosen.emit(node)
        self.choice_changed.emit()

    def _on_which(self, _index: int) -> None:
        self._show_which()
        self.choice_changed.emit()

    def _on_refinement(self, _index: int) -> None:
        self._show_refinement()
        self.choice_changed.emit()

    def _on_change(self, _value: object) -> None:
        self.choice_changed.emit()

    def _show_which(self) -> None:
        self._segments.widget.visible = self._ui.refineSegmentsSelector.currentIndex == TICKED

    def _show_refinement(self) -> None:
        name = refinement_names()[max(self._ui.refinementSelector.currentIndex, 0)]
        note = self._ui.refinementNote
        say(note, summary(name), quiet_style(note))
        self._form.show(name)

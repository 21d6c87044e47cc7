"""Writing of results into the scene: as new nodes, or into an existing segmentation."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

import slicer

from medsegai.errors import InputError
from medsegai.request import SegmentationResult
from medsegai.volume import Geometry
from MedSegAILib.output_choice import OutputChoice, OutputMode
from MedSegAILib.scene import channels, drawing, objects, sequences
from MedSegAILib.scene.attachments import (
    HEAT_REFERENCE,
    Attachment,
    attached,
    attachments_of,
    fill_node,
    make_node,
    merged,
    own_attached,
    put_beneath,
    remove_of,
)
from MedSegAILib.scene.copies import ShownCopy
from MedSegAILib.scene.inputs import check_image, ijk_to_local, in_colours
from MedSegAILib.scene.matching import match
from MedSegAILib.scene.merging import (
    Plan,
    carry_out,
    plan_addition,
    plan_update,
    region_box,
)
from MedSegAILib.scene.nodes import remove, unique_name
from MedSegAILib.scene.reports import REPORT_ATTRIBUTE, report_of
from MedSegAILib.scene.segments import add_segments
from MedSegAILib.scene.surfaces import MakeSurfaces, make_at_once
from MedSegAILib.scene.uncertainty_colors import color_heat
from MedSegAILib.scene.undo import SaveUndo
from MedSegAILib.scene.visibility import show_as_the_card_says
from MedSegAILib.slicer_types import MRMLScene, Node, SegmentationNode, VolumeNode, VTKObject
from MedSegAILib.translation import tr as _

UPDATED = "updated"
"""The entry of a segmentation's report with those of regions that were run again, from the first to the last."""


NOT_ADDED = _("Its segmentation could not be added to the scene.")
OF_ITS_OWN = _("The preview became a segmentation of its own, and {name} was not changed.")


@dataclass
class Writer:
    """Writes results into a scene.

    Attributes:
        scene: the vtkMRMLScene.
        save_undo: the function that is called before a segmentation changes.
        make_surfaces: the function that is called if a segmentation had surfaces and got other label maps.
        notes: what the last result did not change, or where it went instead of the chosen output, in words.
        hidden: the segmentations that the last new one replaces in the views.
    """

    scene: MRMLScene
    save_undo: SaveUndo
    make_surfaces: MakeSurfaces = make_at_once
    notes: list[str] = field(default_factory=list)
    hidden: list[Node] = field(default_factory=list)

    def write(
        self,
        source: VolumeNode,
        result: SegmentationResult,
        output: OutputChoice,
        frame: int | None,
    ) -> SegmentationNode:
        """See `Scene.write`."""
        self.notes.clear()
        if frame is not None:
            return self._write_frame(source, result, output, frame)
        self.check_source(source, result)
        if output.mode is OutputMode.NEW or not self._can_change(output, result):
            return self.write_new(source, result)
        self.change(output.node, source, result, output)
        return output.node

    def write_new(self, source: VolumeNode, result: SegmentationResult) -> SegmentationNode:
        """Write a new segmentation node; nodes are finished before they are added to the scene."""
        segmentation = self._new_segmentation(source, result)
        volumes = [(each, make_node(self.scene, each, source)) for each in attachments_of(result)]
        self.add_beside(segmentation, source)
        segmentation.SetReferenceImageGeometryParameterFromVolumeNode(source)
        show_as_the_card_says(segmentation, segmentation.GetSegmentation().GetSegmentIDs())
        for each, node in volumes:
            self._attach(segmentation, source, each, node)
        self._put_objects(segmentation, source, result, OutputChoice())
        self._draw_alone(segmentation)
        return segmentation

    def _put_objects(
        self,
        segmentation: SegmentationNode,
        source: VolumeNode,
        result: SegmentationResult,
        output: OutputChoice,
    ) -> None:
        """Put separate objects beside a segmentation, and note it."""
        note = objects.put_beside(self.scene, segmentation, source, result, output)
        self.notes += [note] if note else []

    def _draw_alone(self, segmentation: SegmentationNode) -> None:
        """Show a new segmentation instead of older ones that show the same, and note which."""
        self.hidden = drawing.draw_alone(self.scene, segmentation)
        if self.hidden:
            self.notes.append(
                _(
                    "No longer displayed, because the new result shows the same structures: {names}."
                ).format(names=", ".join(node.GetName() for node in self.hidden))
            )

    def change(
        self,
        segmentation: SegmentationNode,
        source: VolumeNode,
        result: SegmentationResult,
        output: OutputChoice,
    ) -> bool:
        """Write a result into an existing segmentation, as one undo step.

        Undo restores the segments; the volumes that belong to the segmentation keep their newest content.

        Returns:
            Whether there was anything to change.
        """
        plan = self.plan(segmentation, source, result, output)
        self.notes.extend(plan.notes)
        if plan.written:
            self._carry_out(plan, segmentation, source, result, output)
        return bool(plan.written)

    def _carry_out(
        self,
        plan: Plan,
        segmentation: SegmentationNode,
        source: VolumeNode,
        result: SegmentationResult,
        output: OutputChoice,
    ) -> None:
        ready = self._ready_attachments(segmentation, source, result)
        self.keep_undo(segmentation)
        had_surfaces = carry_out(segmentation, plan, source)
        show_as_the_card_says(segmentation, plan.new_segments)
        if had_surfaces:
            self.make_surfaces(segmentation)
        for each, node in ready:
            fill_node(node, each, source)
            self._attach(segmentation, source, each, node)
        self._put_objects(segmentation, source, result, output)
        note_report(segmentation, result)

    def _ready_attachments(
        self, segmentation: SegmentationNode, source: VolumeNode, result: SegmentationResult
    ) -> list[tuple[Attachment, VolumeNode]]:
        """Return the new content of the volumes that belong to a segmentation, and the nodes that get it."""
        ready, box = [], region_box(result)
        for each in attachments_of(result):
            node = own_attached(segmentation, each.role)
            content = merged(each, segmentation, source, box)
            ready.append((content, node or make_node(self.scene, content, source)))
        return ready

    def keep_undo(self, segmentation: SegmentationNode) -> None:
        """Keep the state of a segmentation for the Segment Editor's undo, or note that it cannot undo."""
        note = self.save_undo(segmentation)
        self.notes += [note] if note else []

    def plan(
        self,
        segmentation: SegmentationNode,
        source: VolumeNode,
        result: SegmentationResult,
        output: OutputChoice,
    ) -> Plan:
        if output.mode is OutputMode.ADD:
            return plan_addition(segmentation, source, result)
        add = output.mode is OutputMode.PREVIEW
        return plan_update(segmentation, source, result, output, add)

    def check_source(self, source: VolumeNode, result: SegmentationResult) -> None:
        """Raises:
        InputError: the source has left the scene or has another size.
        """
        problem = self.source_problem(source, result)
        if problem:
            raise InputError(problem + " " + NOT_ADDED)

    def source_problem(self, source: VolumeNode, result: SegmentationResult) -> str:
        """Return why a result does not belong to its source any longer; "" if it does.

        Raises:
            InputError: the source has lost its image.
        """
        if not self.scene.IsNodePresent(source):
            return _("The volume {name} has left the scene.").format(name=source.GetName())
        if not in_colours(source):
            check_image(source)
        dimensions = tuple(reversed(source.GetImageData().GetDimensions()))
        if dimensions != result.labelmap.geometry.shape:
            text = _("The volume {name} changed its size after it was read for the job.")
            return text.format(name=source.GetName())
        return ""

    def add_beside(self, node: Node, source: VolumeNode) -> None:
        """Add a node to the scene, under the transform of `source` and beside it in the tree."""
        self.scene.AddNode(node)
        node.SetAndObserveTransformNodeID(source.GetTransformNodeID())
        tree = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(self.scene)
        item = 0 if tree is None else tree.GetItemByDataNode(source)
        if item and not node.GetHideFromEditors():
            tree.CreateItem(tree.GetItemParent(item), node)

    def remove(self, node: Node) -> None:
        """Remove a node from the scene, see `nodes.remove`."""
        remove(self.scene, node)

    def _can_change(self, output: OutputChoice, result: SegmentationResult) -> bool:
        """Whether the chosen segmentation can take a result; if not, a note says why a new one is made."""
        node = output.node
        if node is None:
            reason = _("No segmentation was chosen.")
        elif not self.scene.IsNodePresent(node):
            reason = _("{name} has left the scene.").format(name=node.GetName())
        elif output.mode is OutputMode.UPDATE and not match(
            node, [measures.label for measures in result.structures]
        ):
            reason = _("No segment of {name} has the name or the code of a structure.").format(
                name=node.GetName()
            )
        else:
            return True
        self.notes.append(reason + " " + _("The result became a new segmentation."))
        return False

    def _present_proxy(self, output: OutputChoice) -> SegmentationNode:
        """The segmentation node of the frames that were written before; None if there is none any more."""
        proxy = output.node
        if proxy is None or self.scene.IsNodePresent(proxy):
            return proxy
        note = _("{name} has left the scene. The next frames became a new segmentation.")
        self.notes.append(note.format(name=proxy.GetName()))
        return None

    def _write_frame(
        self, source: VolumeNode, result: SegmentationResult, output: OutputChoice, frame: int
    ) -> SegmentationNode:
        if not self.scene.IsNodePresent(source):
            self.check_source(source, result)
        _check_is_new(output)
        proxy = self._present_proxy(output)
        sequences.check_proxy(proxy, source, frame)
        name = unique_name(source, "segmentation", self.scene)
        filled = sequences.empty_segmentation(name)
        image = sequences.frame_image(source, frame)
        self._fill(filled, ijk_to_local(image), result)
        is_new = proxy is None
        proxy = sequences.add_frame(proxy, source, frame, filled)
        if is_new:
            self._show_first(proxy, source)
        for each in attachments_of(result):
            self._attach_frame(proxy, source, frame, each)
        return proxy

    def _show_first(self, proxy: SegmentationNode, source: VolumeNode) -> None:
        proxy.SetAndObserveTransformNodeID(source.GetTransformNodeID())
        proxy.SetReferenceImageGeometryParameterFromVolumeNode(source)
        show_as_the_card_says(proxy, proxy.GetSegmentation().GetSegmentIDs())
        self._draw_alone(proxy)

    def _attach_frame(
        self, segmentation: SegmentationNode, source: VolumeNode, frame: int, each: Attachment
    ) -> None:
        """Attach a volume of one frame to the segmentation of all frames."""
        filled = make_node(self.scene, each, source, sequences.frame_image(source, frame))
        present = attached(segmentation, each.role)
        if present is not None and not sequences.goes_along(present, source):
            present = None
        node = sequences.add_frame(present, source, frame, filled)
        if present is None:
            node.SetAndObserveTransformNodeID(source.GetTransformNodeID())
            self._attach(segmentation, source, each, node)

    def _new_segmentation(self, source: VolumeNode, result: SegmentationResult) -> SegmentationNode:
        node = self.scene.CreateNodeByClass("vtkMRMLSegmentationNode")
        node.UnRegister(None)
        node.SetName(unique_name(source, "segmentation", self.scene))
        self._fill(node, ijk_to_local(source), result)
        return node

    def _fill(self, node: Node, ijk_to_ras: VTKObject, result: SegmentationResult) -> None:
        add_segments(node, result, Geometry(result.labelmap.geometry.shape, ijk_to_ras))
        node.SetAttribute(REPORT_ATTRIBUTE, json.dumps(result.report()))

    def _attach(
        self, segmentation: SegmentationNode, source: VolumeNode, each: Attachment, node: Node
    ) -> None:
        if not self.scene.IsNodePresent(node):
            self.scene.AddNode(node)
            node.SetAndObserveTransformNodeID(source.GetTransformNodeID())
        put_beneath(segmentation, node)
        segmentation.SetNodeReferenceID(each.role, node.GetID())
        if each.role == HEAT_REFERENCE:
            color_heat(self.scene, node)


class Preview:
    """A result that is shown beside the segmentation that it would change, until it is accepted or rejected.

    Attributes:
        node: the segmentation node that shows it; it can be edited, and all edits are accepted with it.
        notes: see `Writer.notes`.
        place: the position of the largest change, R, A, S in mm of the world; None if a segmentation would not
            change.
    """

    def __init__(
        self, writer: Writer, source: VolumeNode, result: SegmentationResult, output: OutputChoice
    ) -> None:
        writer.notes.clear()
        writer.check_source(source, result)
        self._writer, self._source, self._result, self._output = writer, source, result, output
        self._copy: ShownCopy | None = None
        self._frame = sequences.current_frame(output.node)
        if output.node is None or not writer._can_change(output, result):
            self.node = writer.write_new(source, result)
            self._name, self._hidden = self.node.GetName(), writer.hidden
        else:
            self._copy = self._copied(output.node)
            self.node = self._copy.node
        shown_for = self.node if self._copy is None else output.node
        self.node.SetName(unique_name(shown_for, "preview", writer.scene))
        self.notes = tuple(writer.notes)
        self.place = None if self._copy is None else self._copy.place

    def accept(self) -> SegmentationNode:
        """Make the preview the result, as one undo step of its segmentation.

        Returns:
            The segmentation node, or the preview itself if there is none.

        If its source has left the scene or changed its size, the segmentation is not changed, and the preview
        becomes one of its own.

        Raises:
            InputError: the preview has left the scene, or the segmentation shows another frame; nothing is
                changed.
        """
        writer, original = self._writer, self._output.node
        writer.notes.clear()
        if not writer.scene.IsNodePresent(self.node):
            self.reject()
            raise InputError(_("The preview has left the scene, so it was not accepted."))
        if self._copy is None:
            self.node.SetName(self._name)
            return self.node
        if not writer.scene.IsNodePresent(original):
            self._copy.keep()
            return self.node
        problem = writer.source_problem(self._source, self._result)
        if problem:
            writer.notes.append(problem + " " + OF_ITS_OWN.format(name=original.GetName()))
            self._copy.keep()
            return self.node
        sequences.check_shown(original, self._frame)
        edits = self._copy.edits()
        if not writer.change(original, self._source, self._result, self._output) and edits:
            writer.keep_undo(original)
        self._copy.give(edits)
        channels.note(original, channels.noted(self.node))
        self.reject()
        return original

    def reject(self) -> None:
        """Restore the state before the preview."""
        if self._copy is not None:
            self._copy.close()
            return
        remove_of(self._writer.scene, self.node)
        drawing.draw_again(self._writer.scene, self._hidden)
        self._writer.remove(self.node)

    def _copied(self, original: VTKObject) -> ShownCopy:
        """Return the original with the plan carried out."""
        plan = self._writer.plan(original, self._source, self._result, self._output)
        self._writer.notes.extend(plan.notes)
        return ShownCopy(original, plan, self._source, self._writer)


def note_report(segmentation: SegmentationNode, result: SegmentationResult) -> None:
    """Store the origin of a result with its segmentation; that of a region beside the one of the whole scan."""
    report, before = result.report(), report_of(segmentation)
    if result.region and before:
        warnings = dict.fromkeys((*before.get("warnings", ()), *report["warnings"]))
        updated = [*before.get(UPDATED, ()), report]
        report = before | {"warnings": list(warnings), UPDATED: updated}
    segmentation.SetAttribute(REPORT_ATTRIBUTE, json.dumps(report))


def _check_is_new(output: OutputChoice) -> None:
    if output.mode is not OutputMode.NEW:
        raise InputError(
            _("The frames of a sequence become a new segmentation. Choose that as the output.")
        )

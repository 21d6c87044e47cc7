"""A copy of a segmentation that shows what it would become, instead of the original."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import slicer

from MedSegAILib.scene.changes import ShownChange
from MedSegAILib.scene.layers import boxes, layers_of, voxels_of
from MedSegAILib.scene.merging import Plan, carry_out
from MedSegAILib.scene.nodes import remove
from MedSegAILib.scene.segments import digests
from MedSegAILib.scene.surfaces import MakeSurfaces
from MedSegAILib.scene.visibility import show_as_the_card_says
from MedSegAILib.slicer_types import Node, Segment, SegmentationNode, VolumeNode, VTKObject


class CopyWriter(Protocol):
    """See `writing.Writer`."""

    @property
    def make_surfaces(self) -> MakeSurfaces: ...

    def add_beside(self, node: Node, source: VolumeNode) -> None: ...


class ShownCopy:
    """A copy of the original with a plan carried out; the original is hidden meanwhile.

    Differences are marked in the slice views.

    Args:
        original: the segmentation node.
        plan: the plan to show.
        source: the volume of a plan for an empty segmentation; see `carry_out`.
        writer: the writer that adds the copy to the scene, and its surfaces: see `Writer`.

    Attributes:
        node: the copy. It can be edited.
        place: the position of the largest difference, R, A, S in mm of the world; None if there is none.
    """

    def __init__(
        self, original: VTKObject, plan: Plan, source: VolumeNode, writer: CopyWriter
    ) -> None:
        self.node = _copy_of(original)
        had_surfaces = bool(plan.layers) and carry_out(self.node, plan, source)
        writer.add_beside(self.node, original)
        role = original.GetReferenceImageGeometryReferenceRole()
        reference = original.GetNodeReferenceID(role) or (source.GetID() if source else None)
        self.node.SetNodeReferenceID(role, reference)
        show_as_the_card_says(self.node, plan.new_segments)
        if had_surfaces:
            writer.make_surfaces(self.node)
        self._original, self._scene = original, original.GetScene()
        self._change = ShownChange(original, self.node)
        self.place = self._change.place
        self._shown: Mapping[str, str] = digests(layers_of(self.node))
        display = original.GetDisplayNode()
        self._was_visible = display is None or bool(display.GetVisibility())
        if display is not None:
            display.SetVisibility(False)

    def edited(self) -> dict[str, Segment]:
        """Return the user's edits of the copy: images of segments, by id."""
        images = {}
        for name, content in digests(layers_of(self.node)).items():
            if self._shown.get(name, "empty") != content:
                images[name] = slicer.vtkOrientedImageData()
                self.node.GetBinaryLabelmapRepresentation(name, images[name])
        return images

    def give(self, edited: Mapping[str, Segment]) -> None:
        """Write the edits into the original, too."""
        logic = slicer.vtkSlicerSegmentationsModuleLogic
        segments = self._original.GetSegmentation()
        for name, image in edited.items():
            if segments.GetSegment(name) is None:
                title = self.node.GetSegmentation().GetSegment(name).GetName()
                segments.AddEmptySegment(name, title)
            if boxes(voxels_of(image)):
                logic.SetBinaryLabelmapToSegment(image, self._original, name, logic.MODE_REPLACE)
            else:
                logic.ClearSegment(self._original, name)

    def keep(self) -> None:
        """Remove the marks; the copy stays, because the original is gone."""
        self._change.remove()

    def close(self) -> None:
        """Remove copy and marks, and show the original again, if it exists and was shown before."""
        self._change.remove()
        remove(self._scene, self.node)
        display = self._original.GetDisplayNode() if self._is_there() else None
        if display is not None:
            display.SetVisibility(self._was_visible)

    def _is_there(self) -> bool:
        return bool(self._scene.IsNodePresent(self._original))


def _copy_of(original: VTKObject) -> SegmentationNode:
    node = original.GetScene().CreateNodeByClass("vtkMRMLSegmentationNode")
    node.UnRegister(None)
    node.SetName(original.GetName())
    node.GetSegmentation().DeepCopy(original.GetSegmentation())
    return node

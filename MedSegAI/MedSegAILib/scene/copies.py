"""A copy of a segmentation that shows in its place what it would become."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import slicer

from MedSegAILib.scene.layers import boxes, layers_of, voxels_of
from MedSegAILib.scene.placing import Plan, carry_out
from MedSegAILib.scene.segments import digests
from MedSegAILib.scene.visibility import show_as_the_card_says


class ShownCopy:
    """The original with a plan carried out, beside it in the scene; the original is hidden meanwhile.

    Args:
        original: the segmentation node.
        plan: what is to be shown.
        source: the volume that a plan for an empty segmentation is about; see `carry_out`.
        add: puts a new node into the scene, beside another: see `Writer.add_beside`.

    Attributes:
        node: the copy. It can be edited.
    """

    def __init__(
        self, original: Any, plan: Plan, source: Any, add: Callable[[Any, Any], None]
    ) -> None:
        self.node = original.GetScene().CreateNodeByClass("vtkMRMLSegmentationNode")
        self.node.UnRegister(None)
        self.node.SetName(original.GetName())
        self.node.GetSegmentation().DeepCopy(original.GetSegmentation())
        if plan.layers:
            carry_out(self.node, plan, source)
        add(self.node, original)
        role = original.GetReferenceImageGeometryReferenceRole()
        reference = original.GetNodeReferenceID(role) or (source.GetID() if source else None)
        self.node.SetNodeReferenceID(role, reference)
        show_as_the_card_says(self.node, plan.new_segments)
        self._original = original
        self._shown: Mapping[str, str] = digests(layers_of(self.node))
        display = original.GetDisplayNode()
        self._was_visible = display is None or bool(display.GetVisibility())
        if display is not None:
            display.SetVisibility(False)

    def edited(self) -> dict[str, Any]:
        """What the user edited in the copy since: images of segments, by id."""
        images = {}
        for name, content in digests(layers_of(self.node)).items():
            if self._shown.get(name, "empty") != content:
                images[name] = slicer.vtkOrientedImageData()
                self.node.GetBinaryLabelmapRepresentation(name, images[name])
        return images

    def give(self, edited: Mapping[str, Any]) -> None:
        """Put what was edited into the original too."""
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

    def show_original(self) -> None:
        """Show the original again, where it was shown before."""
        display = self._original.GetDisplayNode()
        if display is not None:
            display.SetVisibility(self._was_visible)

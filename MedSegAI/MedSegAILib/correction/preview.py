"""The strokes and what they would change, shown in the views by a segmentation node of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import slicer

from MedSegAILib.correction.session import Correction
from MedSegAILib.scene.layers import labelmap_name
from MedSegAILib.translation import tr as _

INSIDE, OUTSIDE = (0.1, 1.0, 0.4), (1.0, 0.15, 0.1)
SEGMENTS = {
    "added": ("added", (0.2, 0.85, 0.3), 0.45),
    "removed": ("removed", (0.95, 0.25, 0.2), 0.45),
    "inside": ("stroke inside", INSIDE, 0.9),
    "outside": ("stroke outside", OUTSIDE, 0.9),
    "sketch": ("stroke", INSIDE, 0.9),
}
"""Parts of a `Change`, and the stroke that is being painted: name, colour, and how opaque they are."""


class Preview:
    """Shows changes in a scene until it is removed. It is not saved with the scene."""

    def __init__(self, scene: Any) -> None:
        self._scene = scene
        self._node: Any = None

    def show(self, correction: Correction) -> None:
        """Show what a correction would change, or nothing."""
        change = correction.change()
        if change is None:
            self.remove()
            return
        shown = {
            name: correction.image_of(getattr(change, name), change.box)
            for name in ("added", "removed", "inside", "outside")
        }
        self._show(correction, shown | {"sketch": slicer.vtkOrientedImageData()})

    def show_sketch(self, correction: Correction, inside: bool) -> None:
        """Show the stroke that is being painted, beside what is shown already."""
        sketch = correction.sketch
        if sketch is not None:
            self._show(correction, {"sketch": correction.image_of(sketch.mask, sketch.box)})
            segment = self._node.GetSegmentation().GetSegment("sketch")
            segment.SetColor(*(INSIDE if inside else OUTSIDE))

    def _show(self, correction: Correction, images: Mapping[str, Any]) -> None:
        if self._node is None or not self._scene.IsNodePresent(self._node):
            self._node = self._new()
        self._node.SetAndObserveTransformNodeID(correction.segmentation.GetTransformNodeID())
        was_modifying = self._node.StartModify()
        for name, image in images.items():
            segment = self._node.GetSegmentation().GetSegment(name)
            segment.RemoveRepresentation(labelmap_name())
            segment.AddRepresentation(labelmap_name(), image)
            segment.SetLabelValue(1)
        self._node.EndModify(was_modifying)
        self._node.Modified()

    def remove(self) -> None:
        """Leave the scene as it was."""
        if self._node is not None and self._scene.IsNodePresent(self._node):
            for number in reversed(range(self._node.GetNumberOfDisplayNodes())):
                self._scene.RemoveNode(self._node.GetNthDisplayNode(number))
            self._scene.RemoveNode(self._node)
        self._node = None

    def _new(self) -> Any:
        node = self._scene.CreateNodeByClass("vtkMRMLSegmentationNode")
        node.UnRegister(None)
        node.SetName(self._scene.GenerateUniqueName(_("AI correct preview")))
        node.SetHideFromEditors(True)
        node.SetSaveWithScene(False)
        segments = node.GetSegmentation()
        segments.SetSourceRepresentationName(labelmap_name())
        for name, (title, color, _opacity) in SEGMENTS.items():
            segment = slicer.vtkSegment()
            segment.SetName(title)
            segment.SetColor(*color)
            segment.AddRepresentation(labelmap_name(), slicer.vtkOrientedImageData())
            segments.AddSegment(segment, name)
        self._scene.AddNode(node)
        node.CreateDefaultDisplayNodes()
        display = node.GetDisplayNode()
        display.SetSaveWithScene(False)
        for name, (_title, _color, opacity) in SEGMENTS.items():
            display.SetSegmentOpacity2DFill(name, opacity)
            display.SetSegmentOpacity2DOutline(name, 1.0)
            display.SetSegmentVisibility3D(name, False)
        return node

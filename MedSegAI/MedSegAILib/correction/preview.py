"""The strokes of a correction and their changes, shown in the views."""

from __future__ import annotations

import slicer

from MedSegAILib.correction.session import Correction
from MedSegAILib.scene.marks import CHANGES, Mark, Marks
from MedSegAILib.slicer_types import MRMLScene
from MedSegAILib.translation import tr as _

INSIDE, OUTSIDE = (0.1, 1.0, 0.4), (1.0, 0.15, 0.1)
SEGMENTS = {
    **CHANGES,
    "inside": Mark("stroke inside", INSIDE, 0.9),
    "outside": Mark("stroke outside", OUTSIDE, 0.9),
    "sketch": Mark("stroke", INSIDE, 0.9),
}
"""The parts of a `Change`, and the stroke that is being painted."""


class Preview:
    """Shows changes in a scene until it is removed."""

    def __init__(self, scene: MRMLScene) -> None:
        self._marks = Marks(scene, _("AI correct preview"), SEGMENTS)

    def prepare(self) -> None:
        """Prepare the views, so that the first stroke is shown as fast as later ones."""
        self._marks.prepare()

    def show(self, correction: Correction) -> None:
        """Show the changes of a correction, if there are any."""
        change = correction.change()
        if change is None:
            self._marks.clear()
            return
        shown = {
            name: correction.image_of(getattr(change, name), change.box)
            for name in ("added", "removed", "inside", "outside")
        }
        shown["sketch"] = slicer.vtkOrientedImageData()
        self._marks.show(shown, correction.segmentation.GetTransformNodeID())

    def show_sketch(self, correction: Correction, inside: bool) -> None:
        """Show the stroke that is being painted, beside what is shown already."""
        sketch = correction.sketch
        if sketch is not None:
            image = correction.image_of(sketch.mask, sketch.box)
            self._marks.show({"sketch": image}, correction.segmentation.GetTransformNodeID())
            self._marks.set_color("sketch", INSIDE if inside else OUTSIDE)

    def clear(self) -> None:
        """Show nothing."""
        self._marks.clear()

    def remove(self) -> None:
        """Remove the marks from the scene."""
        self._marks.remove()

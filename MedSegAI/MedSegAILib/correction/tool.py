"""The actions of the effect *AI correct*, independent of its widgets: strokes, apply, cancel, and walking.

It uses neither Qt nor views. Errors become messages.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numpy.typing import ArrayLike

from medsegai.correction import REACH_MM
from medsegai.errors import MedSegAIError
from MedSegAILib.correction.painting import Brush
from MedSegAILib.correction.preview import Preview
from MedSegAILib.correction.session import Correction, Editor
from MedSegAILib.scene import overlay
from MedSegAILib.scene.attachments import maps_of
from MedSegAILib.scene.uncertainty import Walk, set_current_segment
from MedSegAILib.scene.views import jump
from MedSegAILib.slicer_types import SegmentationNode
from MedSegAILib.translation import tr as _
from MedSegAILib.uncertain_regions import step_in_words

LEAVING = _("{count} strokes in {name} are not applied yet.")
FORGOTTEN = _("The strokes were discarded, because {why}. Paint them again where they are needed.")
LEAVING_ONE = _("One stroke in {name} is not applied yet.")


class CorrectionTool:
    """The strokes of one user in one editor.

    Args:
        editor: the Segment Editor.
        get_scene: the function that returns the scene, which the editor may not have yet.
        tell: the function that receives a message for the user; "" clears it.
        may_apply: the function that is asked whether to apply pending strokes when the user leaves them.
    """

    def __init__(
        self,
        editor: Editor,
        get_scene: Callable[[], Any],
        tell: Callable[[str], None],
        may_apply: Callable[[str], bool],
    ) -> None:
        self._editor, self._get_scene, self._tell = editor, get_scene, tell
        self._may_apply = may_apply
        self._walk = Walk()
        self._correction: Correction | None = None
        self._preview: Preview | None = None
        self._is_open = False
        self._brush: Brush | None = None
        self._inside = True
        self._last: ArrayLike = (0.0, 0.0, 0.0)
        self._reach_mm = REACH_MM

    @property
    def segmentation(self) -> SegmentationNode:
        """Return the segmentation node in the editor, or None."""
        return self._editor.segmentation()

    @property
    def strokes(self) -> int:
        """The number of strokes that are not yet applied."""
        return 0 if self._correction is None else self._correction.strokes

    @property
    def painting(self) -> bool:
        """Whether a stroke is being painted."""
        return self._brush is not None

    @property
    def reach_mm(self) -> float:
        """The range of a correction in mm."""
        return self._reach_mm

    @reach_mm.setter
    def reach_mm(self, reach_mm: float) -> None:
        if reach_mm == self._reach_mm:
            return
        self._reach_mm = reach_mm
        if self._correction is not None:
            self._correction.reach_mm = reach_mm
            self._correction.recompute()
            self._show()

    def press(self, point: ArrayLike, brush: Brush, inside: bool) -> bool:
        """Begin a stroke at a world point; return whether it began."""
        self.follow_selection()
        try:
            if self._correction is None:
                self._correction = Correction(self._editor, self._reach_mm)
        except MedSegAIError as error:
            self._tell(str(error))
            return False
        self._tell(self._correction.notice)
        set_current_segment(self._correction.segmentation, self._correction.segment_id)
        self._brush, self._inside, self._last = brush, inside, point
        self.move(point)
        return True

    def move(self, point: ArrayLike) -> None:
        """Continue the stroke."""
        if self._brush is None or self._correction is None:
            return
        self._correction.paint(self._brush, self._last, point)
        self._last = point
        self._shown().show_sketch(self._correction, self._inside)

    def release(self) -> None:
        """End the stroke, and show what it changes."""
        if self._brush is None or self._correction is None:
            return
        self._brush = None
        self._correction.end_stroke(self._inside)
        self._show()

    def take_back(self) -> None:
        """Forget the last stroke."""
        if self._correction is not None and not self.painting:
            self._correction.take_back()
            self._show()
            if not self.strokes:
                self.cancel()

    def apply(self) -> bool:
        """Write the change as one undo step; return whether anything was changed."""
        if self._correction is None or self.painting:
            return False
        try:
            changed = self._correction.apply()
        except MedSegAIError as error:
            self._tell(str(error))
            return False
        self.cancel()
        return changed

    def cancel(self) -> None:
        """Discard all strokes and remove their marks."""
        self._brush, self._correction = None, None
        if self._preview is not None:
            if self._is_open:
                self._preview.clear()
            else:
                self._preview.remove()
                self._preview = None
        self._tell("")

    def open(self) -> None:
        """Prepare for the first stroke, because the effect was chosen."""
        self._is_open = True
        if self._get_scene() is not None:
            self._shown().prepare()

    def close(self) -> None:
        """Leave the strokes, see `leave`, and remove the marks, because the effect was left."""
        self._is_open = False
        self.leave()

    def leave(self, may_apply: Callable[[str], bool] | None = None) -> bool:
        """Apply pending strokes, or discard them if the user says so, because the user turns to something else.

        Args:
            may_apply: the function that is asked instead of that of the tool.

        Returns:
            Whether they were applied.
        """
        ask = may_apply or self._may_apply
        correction = self._correction
        self._brush, self._correction = (
            None,
            None,
        )  # events during the question must not ask again
        if correction is None or not correction.strokes:
            self.cancel()
        elif not correction.can_be_applied_in(self._editor):
            self.cancel()
            self._tell(FORGOTTEN.format(why=_("their segment is no longer in the editor")))
        else:
            wanted = ask(_pending(correction))
            self._correction = correction
            applied = wanted and self.apply()
            if wanted:
                self.give_up(_("the segment was changed after the first of them"))
            else:
                self.cancel()
            return applied
        return False

    def give_up(self, why: str) -> None:
        """Discard all strokes, and report why."""
        had_strokes = self.strokes > 0
        self.cancel()
        if had_strokes:
            self._tell(FORGOTTEN.format(why=why))

    def follow_selection(self) -> None:
        """Conclude the strokes when another segment is selected."""
        correction = self._correction
        if correction is not None and not correction.is_selected_in(self._editor):
            self.leave()

    def go_to_place(self, by: int = 1) -> None:
        """Apply pending strokes, and go to another uncertain region: select its segment, and show it."""
        segmentation = self._editor.segmentation()
        if segmentation is None or self.painting:
            return
        self.apply()
        if self.strokes:  # they cannot be applied, which was reported
            return
        try:
            step = self._walk.step(segmentation, by)
        except MedSegAIError as error:
            self._tell(str(error))
            return
        if step is not None:
            if step.place.segment_id:
                self._editor.select(step.place.segment_id)
            jump(self._get_scene(), step.place.ras)
        self._tell(step_in_words(step))

    def show_map(self, shown: bool) -> None:
        """Show the walked map over the image, or remove it."""
        if self.segmentation is not None:
            try:
                overlay.show(self._get_scene(), self.segmentation, self.walked_map if shown else "")
            except MedSegAIError as error:
                self._tell(str(error))

    @property
    def walked_map(self) -> str:
        """Return the kind of the walked map, such as `UNCERTAINTY`; "" without one."""
        return "" if self.segmentation is None else next(iter(maps_of(self.segmentation)), "")

    @property
    def map_is_shown(self) -> bool:
        """Whether a slice view shows a map of the segmentation."""
        segmentation = self.segmentation
        return segmentation is not None and bool(overlay.shown(self._get_scene(), segmentation))

    def _show(self) -> None:
        if self._correction is not None:
            self._shown().show(self._correction)

    def _shown(self) -> Preview:
        if self._preview is None:
            self._preview = Preview(self._get_scene())
        return self._preview


def _pending(correction: Correction) -> str:
    """Return a sentence about the strokes that would be lost."""
    text = LEAVING if correction.strokes > 1 else LEAVING_ONE
    return text.format(count=correction.strokes, name=correction.segment_name)

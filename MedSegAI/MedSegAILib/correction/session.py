"""Correction of a segment by strokes, on MRML and without Qt.

The editor shows the changes; nothing is written before `apply`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import slicer
import slicer.util
import vtk
from numpy.typing import ArrayLike, NDArray

from medsegai.correction import REACH_MM, Region, corrected, within_reach
from medsegai.errors import InputError
from medsegai.request import Candidates
from medsegai.volume import Box, Geometry, joined_box
from MedSegAILib.correction.painting import Brush, Painted, joined
from MedSegAILib.scene.attachments import CANDIDATES_REFERENCE, volume_of
from MedSegAILib.scene.inputs import ijk_to_local, transform_to_world
from MedSegAILib.scene.layers import geometry_of, offset_in, on_grid, voxels_of
from MedSegAILib.scene.segments import label_value
from MedSegAILib.slicer_types import SegmentationNode, VTKObject
from MedSegAILib.translation import tr as _

NO_SOURCE = _(
    "There is no source volume. Choose the image of this segmentation in the Segment Editor."
)


class Editor(Protocol):
    """The required interface of Slicer's Segment Editor; images are vtkOrientedImageData."""

    def segmentation(self) -> SegmentationNode:
        """Return the edited segmentation node, or None."""
        ...

    def segment_id(self) -> str:
        """Return the selected segment; "" if there is none."""
        ...

    def source_image(self) -> VTKObject:
        """Return the source volume on the grid of the segmentation, or None."""
        ...

    def select(self, segment_id: str) -> None:
        """Select another segment."""
        ...

    def mask_image(self) -> VTKObject:
        """Return an image that is not 0 where masking settings forbid editing; None if everything is allowed."""
        ...

    def change(self, segment_id: str, added: VTKObject, removed: VTKObject) -> None:
        """Add and remove voxels of a segment as one undo step, under the masking settings."""
        ...


@dataclass(frozen=True, eq=False)
class Stroke:
    """Voxels that the user painted as inside or outside the segment."""

    painted: Painted
    inside: bool


@dataclass(frozen=True, eq=False)
class Change:
    """The changes of a correction within `box` of the grid; arrays are bool (k, j, i)."""

    box: Box
    added: NDArray[np.bool_]
    removed: NDArray[np.bool_]
    inside: NDArray[np.bool_]
    outside: NDArray[np.bool_]


class Correction:
    """The strokes into one segment, until they are applied or discarded.

    Attributes:
        reach_mm: the range of a stroke.
        notice: the data on which the correction is based, in words.
        segmentation, segment_id: the node and the segment that are corrected.
        grid: its grid in the world.

    Raises:
        InputError: a segment or a source volume is missing.
        GeometryError: the segmentation has a parent transform that is not linear.
    """

    def __init__(self, editor: Editor, reach_mm: float = REACH_MM) -> None:
        self._editor, self.reach_mm = editor, reach_mm
        self.segmentation, self.segment_id = editor.segmentation(), editor.segment_id()
        if self.segmentation is None or not self.segment_id:
            raise InputError(_("No segment is selected. Select the segment to correct."))
        image = editor.source_image()
        if image is None or image.GetPointData().GetScalars() is None or 0 in image.GetDimensions():
            raise InputError(NO_SOURCE)
        self._image: NDArray[np.number] = voxels_of(image)
        self._local = geometry_of(image)
        world = transform_to_world(self.segmentation) @ self._local.ijk_to_ras
        self.grid = Geometry(self._local.shape, world)
        self._start = image.GetExtent()[::2]
        self._origin = image
        self._before = self._segment()
        self._after = self._before.copy()
        self._strokes: list[Stroke] = []
        self._touched: list[Box] = []
        self._pieces: list[Painted] = []
        self._candidates, self.notice = self._what_the_ai_thought()

    @property
    def strokes(self) -> int:
        """The number of strokes."""
        return len(self._strokes)

    @property
    def segment_name(self) -> str:
        """The name of the segment of the strokes."""
        return str(self.segmentation.GetSegmentation().GetSegment(self.segment_id).GetName())

    def is_selected_in(self, editor: Editor) -> bool:
        """Whether the segment of the strokes is still in the editor and selected."""
        return self.can_be_applied_in(editor) and editor.segment_id() == self.segment_id

    def can_be_applied_in(self, editor: Editor) -> bool:
        """Whether the segment of the strokes is still in the editor."""
        return (
            editor.segmentation() is self.segmentation
            and self.segmentation.GetSegmentation().GetSegment(self.segment_id) is not None
        )

    # painting

    def paint(self, brush: Brush, start: ArrayLike, end: ArrayLike) -> None:
        """Continue the present stroke from one world point to the next."""
        piece = brush.line(self.grid, start, end)
        if piece is not None:
            self._pieces.append(piece)

    def end_stroke(self, inside: bool) -> bool:
        """End the present stroke, and correct the segment around it.

        Returns:
            Whether it hit the image.
        """
        if not self._pieces:
            return False
        self._strokes.append(Stroke(joined(self._pieces), inside))
        self._pieces = []
        self._correct(len(self._strokes))
        return True

    def take_back(self) -> None:
        """Forget the last stroke."""
        if not self._strokes:
            return
        self._strokes.pop()
        self.recompute()

    def recompute(self) -> None:
        """Compute the correction again from the first stroke, for example after a change of the range."""
        for box in self._touched:
            self._after[box] = self._before[box]
        self._touched = []
        for count in range(1, len(self._strokes) + 1):
            self._correct(count)

    @property
    def sketch(self) -> Painted | None:
        """Return the stroke that is being painted."""
        return joined(self._pieces) if self._pieces else None

    def change(self) -> Change | None:
        """Return the changes; None if there are no strokes."""
        if not self._strokes:
            return None
        box = joined_box(self._touched)
        inside, outside = self._sides(self._strokes, box)
        before, after = self._before[box], self._after[box]
        return Change(box, after & ~before, before & ~after, inside, outside)

    # the end

    def apply(self) -> bool:
        """Write the change into the segment, as one undo step.

        Returns:
            Whether anything was changed.

        Raises:
            InputError: the segment was removed, or changed since the first stroke.
        """
        change = self.change()
        if change is None:
            return False
        self._check_unchanged()
        self.forget()
        if not change.added.any() and not change.removed.any():
            return False
        self._editor.change(
            self.segment_id,
            self.image_of(change.added, change.box) if change.added.any() else None,
            self.image_of(change.removed, change.box) if change.removed.any() else None,
        )
        self._before = self._segment()
        self._after = self._before.copy()
        return True

    def forget(self) -> None:
        """Discard all strokes."""
        for box in self._touched:
            self._after[box] = self._before[box]
        self._strokes, self._pieces, self._touched = [], [], []

    def image_of(self, mask: NDArray[np.bool_], box: Box) -> VTKObject:
        """Return a vtkOrientedImageData of 0 and 1 on the lattice of the segmentation, as large as the box."""
        image = slicer.vtkOrientedImageData()
        extent: list[int] = []
        for axis, start in zip((2, 1, 0), self._start, strict=True):
            extent += [start + box[axis].start, start + box[axis].stop - 1]
        image.SetExtent(*extent)
        to_world = vtk.vtkMatrix4x4()
        self._origin.GetImageToWorldMatrix(to_world)
        image.SetGeometryFromImageToWorldMatrix(to_world)
        image.AllocateScalars(vtk.VTK_UNSIGNED_CHAR, 1)
        voxels_of(image)[...] = mask
        return image

    # what it is computed from

    def _correct(self, count: int) -> None:
        """Correct around stroke number `count`, with the earlier strokes unchanged."""
        stroke = self._strokes[count - 1]
        spacing = self.grid.spacing_mm
        box = within_reach(stroke.painted.box, self.grid.shape, spacing, self.reach_mm)
        inside, outside = self._sides(self._strokes[:count], box)
        region = Region(self._image[box], self._after[box], spacing, self._probability(box))
        result = corrected(region, inside, outside, self.reach_mm)
        forbidden = self._forbidden(box)
        if forbidden is not None:
            result = np.where(forbidden, self._before[box], result)
        self._after[box] = result
        self._touched.append(box)

    def _sides(
        self, strokes: Sequence[Stroke], box: Box
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Return the voxels that are painted as inside and outside in a box; later strokes cover earlier ones."""
        shape = [part.stop - part.start for part in box]
        sides = {True: np.zeros(shape, bool), False: np.zeros(shape, bool)}
        for stroke in strokes:
            mask = stroke.painted.laid_into(box)
            sides[stroke.inside] |= mask
            sides[not stroke.inside] &= ~mask
        return sides[True], sides[False]

    def _segment(self) -> NDArray[np.bool_]:
        """Return a copy of the segment on the whole grid."""
        image = slicer.vtkOrientedImageData()
        self.segmentation.GetBinaryLabelmapRepresentation(self.segment_id, image)
        if image.GetPointData().GetScalars() is None or 0 in image.GetDimensions():
            return np.zeros(self._local.shape, bool)
        return on_grid(voxels_of(image), geometry_of(image), self._local) != 0

    def _forbidden(self, box: Box) -> NDArray[np.bool_] | None:
        image = self._editor.mask_image()
        if image is None or image.GetPointData().GetScalars() is None or 0 in image.GetDimensions():
            return None
        return on_grid(voxels_of(image), geometry_of(image), self._part(box)) != 0

    def _part(self, box: Box) -> Geometry:
        return self._local.part(box)

    def _what_the_ai_thought(self) -> tuple[tuple[Any, int] | None, str]:
        """Return the volume of candidates and the label of the segment, or why they are missing."""
        node = volume_of(self.segmentation, CANDIDATES_REFERENCE)
        value = label_value(self.segmentation, self.segment_id)
        if node is None or value is None:
            return None, _(
                "Uses the image only, because this segment was not made by an AI of MedSegAI."
            )
        shape = slicer.util.arrayFromVolume(node).shape[:3]
        if offset_in(Geometry(shape, ijk_to_local(node)), self._local) is None:
            return None, _("Uses the image only, because the AI's probabilities have another grid.")
        return (node, value), _("Uses the AI's probabilities and the image.")

    def _probability(self, box: Box) -> NDArray[np.float32] | None:
        """Return the probability of the segment in a box; NaN where the model was not run."""
        if self._candidates is None:
            return None
        node, value = self._candidates
        voxels = slicer.util.arrayFromVolume(node)
        own, part = Geometry(voxels.shape[:3], ijk_to_local(node)), self._part(box)
        first, second, p_first, p_second = (
            on_grid(voxels[..., number], own, part) for number in range(4)
        )
        found = Candidates(first, second, p_first, p_second).probability_of(value)
        found[p_first == 0] = np.nan
        return found

    def _check_unchanged(self) -> None:
        if not self.can_be_applied_in(self._editor) or not np.array_equal(
            self._segment(), self._before
        ):
            raise InputError(
                _(
                    "The segment was changed after the first stroke. Cancel, and paint the strokes again."
                )
            )

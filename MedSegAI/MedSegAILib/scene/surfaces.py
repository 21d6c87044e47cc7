"""Surfaces of segments, made one after another, so that Slicer stays responsive.

Slicer makes the surfaces of all segments in one call, from whole label maps, which takes three quarters of a
minute for 64 segments. Here each segment is cut out first, and only missing surfaces are made. Segments that are
hidden in 3D come last. Until then they have a stand-in without points, because Slicer does not draw any surface if
one is missing. No stand-in stays, because whoever exports surfaces would get it instead of the segment.

The surfaces of a segmentation that is made of surfaces are its content, and are never removed or made here.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, field

import numpy as np
import slicer
import vtk
from numpy.typing import NDArray

from medsegai.errors import InputError
from medsegai.volume import Box, Geometry
from MedSegAILib.scene.layers import (
    boxes,
    geometry_of,
    labelmap_name,
    oriented_image,
    voxels_of,
)
from MedSegAILib.scene.visibility import is_in_3d
from MedSegAILib.slicer_types import Segment, Segmentation, SegmentationNode, VolumeNode, VTKObject
from MedSegAILib.translation import tr as _

MARGIN = 1
"""The voxels of background around a cut-out segment, so that its surface is that of the whole label map."""

STAND_IN = "MedSegAI.stand_in"
"""The field array that marks a stand-in without points for the surface of a segment that is hidden in 3D."""

MADE_OF_SURFACES = _(
    "{name} is made of surfaces, which cannot be smoothed here. Smooth them with the module Surface "
    "Toolbox, or choose another segmentation."
)

_Part = tuple[NDArray[np.uint8], Geometry]
"""A cut-out segment: its mask (k, j, i), and the geometry in the segmentation's coordinates."""


def surface_name() -> str:
    """Return Slicer's name of the representation of segments as closed surfaces."""
    return str(slicer.vtkSegmentationConverter.GetSegmentationClosedSurfaceRepresentationName())


def has_surfaces(segmentation: SegmentationNode) -> bool:
    """Whether any segment has a surface."""
    segments = segmentation.GetSegmentation()
    found = (segments.GetSegment(name) for name in segments.GetSegmentIDs())
    return any(segment.GetRepresentation(surface_name()) is not None for segment in found)


def are_shown(segmentation: SegmentationNode) -> bool:
    """Whether the 3D views show surfaces of a segmentation."""
    display = segmentation.GetDisplayNode()
    shown = display is not None and display.GetVisibility() and display.GetVisibility3D()
    return bool(shown) and has_surfaces(segmentation)


MakeSurfaces = Callable[[SegmentationNode], None]
"""A function that makes the missing surfaces of a segmentation node, now or between the user's events."""


def make_at_once(segmentation: SegmentationNode) -> None:
    """Make all missing surfaces at once."""
    for _done in surfaces(segmentation):
        pass


def are_missing(segmentation: SegmentationNode) -> bool:
    """Whether the 3D views show surfaces of a segmentation, and lack the surface of a shown segment."""
    segments = segmentation.GetSegmentation()
    shown = [name for name in segments.GetSegmentIDs() if is_in_3d(segmentation, name)]
    return are_shown(segmentation) and any(_lacks_surface(segments, name) for name in shown)


def surfaces(segmentation: SegmentationNode) -> Generator[tuple[int, int], None, None]:
    """Make the missing surfaces of segments, one segment per step; those that are hidden in 3D last.

    Segments may be edited, added, shown and removed between two steps, and the segmentation may leave its scene.

    Yields:
        The number of segments that have a surface, and the number of all of them.
    """
    segments, cutter = segmentation.GetSegmentation(), _Cutter(segmentation)
    if _is_made_of_surfaces(segments):
        return
    if _smooths_jointly(segments):  # the surfaces of neighbours depend on each other
        segmentation.CreateClosedSurfaceRepresentation()
    scene = segmentation.GetScene()
    try:
        while segmentation.GetScene() is scene:
            names = segments.GetSegmentIDs()
            lacking = [name for name in names if _lacks_surface(segments, name)]
            if not lacking:
                return
            hidden = [name for name in lacking if not is_in_3d(segmentation, name)]
            _stand_in_for(segments.GetSegment(name) for name in hidden)
            first = next((name for name in lacking if name not in hidden), lacking[0])
            segments.GetSegment(first).AddRepresentation(surface_name(), cutter.surface(first))
            yield len(names) - len(lacking) + 1, len(names)
    finally:
        _remove_stand_ins(segments)


def remove_surfaces(segmentation: SegmentationNode) -> None:
    """Remove the surfaces that were made of label maps."""
    if not _is_made_of_surfaces(segmentation.GetSegmentation()):
        segmentation.RemoveClosedSurfaceRepresentation()


def _is_made_of_surfaces(segments: Segmentation) -> bool:
    """Whether surfaces are what the segments consist of, and not only how they are shown."""
    return bool(segments.GetSourceRepresentationName() == surface_name())


def keep(segmentation: SegmentationNode) -> Callable[[], None]:
    """Remember the surfaces before label maps change, because Slicer then deletes them all.

    Returns:
        The function that restores the surfaces of segments with the same voxels as before.
    """
    segments = segmentation.GetSegmentation()
    before = {} if _smooths_jointly(segments) else _present(segmentation)

    def give_back() -> None:
        cutter = _Cutter(segmentation)
        for name, (part, surface) in before.items():
            segment = segments.GetSegment(name)
            if segment is not None and _same(part, cutter.part(name)):
                segment.AddRepresentation(surface_name(), surface)

    return give_back


def _present(segmentation: SegmentationNode) -> dict[str, tuple[_Part | None, VTKObject]]:
    """Return the surface of each segment that has one, and the voxels from which it was made."""
    segments, cutter = segmentation.GetSegmentation(), _Cutter(segmentation)
    found = {}
    for name in segments.GetSegmentIDs():
        surface = segments.GetSegment(name).GetRepresentation(surface_name())
        if surface is not None:
            found[name] = (cutter.part(name), surface)
    return found


def _same(first: _Part | None, second: _Part | None) -> bool:
    if first is None or second is None:
        return first is second
    return np.array_equal(first[0], second[0]) and np.allclose(
        first[1].ijk_to_ras, second[1].ijk_to_ras
    )


def _lacks_surface(segments: Segmentation, name: str) -> bool:
    """Whether a segment does not have a surface of its own."""
    surface = segments.GetSegment(name).GetRepresentation(surface_name())
    return surface is None or _is_stand_in(surface)


def _is_stand_in(surface: VTKObject) -> bool:
    return bool(surface.GetFieldData().HasArray(STAND_IN))


def _stand_in_for(segments: Iterable[Segment]) -> None:
    """Give segments without a surface one without points."""
    for segment in segments:
        if segment.GetRepresentation(surface_name()) is None:
            surface, mark = vtk.vtkPolyData(), vtk.vtkIntArray()
            mark.SetName(STAND_IN)
            surface.GetFieldData().AddArray(mark)
            segment.AddRepresentation(surface_name(), surface)


def _remove_stand_ins(segments: Segmentation) -> None:
    for name in segments.GetSegmentIDs():
        surface = segments.GetSegment(name).GetRepresentation(surface_name())
        if surface is not None and _is_stand_in(surface):
            segments.GetSegment(name).RemoveRepresentation(surface_name())


def _smooths_jointly(segments: Segmentation) -> bool:
    rule = slicer.vtkBinaryLabelmapToClosedSurfaceConversionRule
    value = segments.GetConversionParameter(rule.GetJointSmoothingParameterName())
    return bool(value) and float(value) > 0


@dataclass
class _Cutter:
    """Makes the surface of a single segment, with Slicer's conversion parameters of the segmentation."""

    segmentation: SegmentationNode
    found: dict[tuple[VTKObject, int], dict[int, Box]] = field(default_factory=dict)

    def surface(self, name: str) -> VTKObject:
        """Return the closed surface of a segment, a vtkPolyData in the segmentation's coordinates."""
        segments = self.segmentation.GetSegmentation()
        part = self.part(name)
        if part is None:
            return vtk.vtkPolyData()
        single, segment = slicer.vtkSegmentation(), slicer.vtkSegment()
        single.SetSourceRepresentationName(labelmap_name())
        single.CopyConversionParameters(segments)
        segment.SetLabelValue(1)
        segment.AddRepresentation(labelmap_name(), oriented_image(*part))
        single.AddSegment(segment, name)
        single.CreateRepresentation(surface_name())
        return segment.GetRepresentation(surface_name()) or vtk.vtkPolyData()

    def part(self, name: str) -> _Part | None:
        """Return the segment cut out with a margin; None if it does not have voxels."""
        segment = self.segmentation.GetSegmentation().GetSegment(name)
        image = segment.GetRepresentation(labelmap_name())
        if image is None or image.GetPointData().GetScalars() is None:
            return None
        voxels, value = voxels_of(image), segment.GetLabelValue()
        box = self._boxes(image).get(int(value))
        if box is None:
            return None
        start = [max(part.start - MARGIN, 0) for part in box]
        stop = [min(part.stop + MARGIN, size) for part, size in zip(box, voxels.shape, strict=True)]
        shape = [last - first for first, last in zip(start, stop, strict=True)]
        part = voxels[tuple(slice(*span) for span in zip(start, stop, strict=True))]
        return (part == value).view(np.uint8), geometry_of(image).cropped(start, shape)

    def _boxes(self, image: VolumeNode) -> dict[int, Box]:
        """Return the boxes of the values of a label map, which are cached until it changes."""
        key = (image, image.GetMTime())
        if key not in self.found:
            self.found = {known: at for known, at in self.found.items() if known[0] is not image}
            self.found[key] = boxes(voxels_of(image))
        return self.found[key]


def set_smoothing(segmentation: SegmentationNode, factor: float) -> None:
    """Delete the surfaces, and set Slicer's smoothing factor for the next ones, from 0 (none) to 1.

    Raises:
        InputError: the segmentation is made of surfaces, which would be lost.
    """
    if _is_made_of_surfaces(segmentation.GetSegmentation()):
        raise InputError(MADE_OF_SURFACES.format(name=segmentation.GetName()))
    rule = slicer.vtkBinaryLabelmapToClosedSurfaceConversionRule
    name = rule.GetSmoothingFactorParameterName()
    segmentation.GetSegmentation().SetConversionParameter(name, f"{factor:g}")
    remove_surfaces(segmentation)

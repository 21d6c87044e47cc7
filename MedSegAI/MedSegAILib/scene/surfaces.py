"""Surfaces of segments, made one after another, so that Slicer can go on meanwhile.

Slicer makes those of all segments in one call, from whole label maps, which takes three quarters of a minute for
64 segments. Here each segment is cut out first, and only those surfaces are made that are missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import slicer
import vtk

from MedSegAILib.scene.layers import (
    Box,
    boxes,
    geometry_of,
    labelmap_name,
    oriented_image,
    voxels_of,
)

MARGIN = 1
"""Voxels of background that are kept around a segment, so that its surface is that of the whole label map."""


def surface_name() -> str:
    """What Slicer calls the representation of segments as closed surfaces."""
    return str(slicer.vtkSegmentationConverter.GetSegmentationClosedSurfaceRepresentationName())


def has_surfaces(segmentation: Any) -> bool:
    """Whether any segment has a surface."""
    segments = segmentation.GetSegmentation()
    found = (segments.GetSegment(name) for name in segments.GetSegmentIDs())
    return any(segment.GetRepresentation(surface_name()) is not None for segment in found)


def are_shown(segmentation: Any) -> bool:
    """Whether the 3D views show surfaces of a segmentation."""
    display = segmentation.GetDisplayNode()
    shown = display is not None and display.GetVisibility() and display.GetVisibility3D()
    return bool(shown) and has_surfaces(segmentation)


MakeSurfaces = Callable[[Any], None]
"""Sees that a segmentation node gets the surfaces that it lacks, now or between the user's events."""


def make_at_once(segmentation: Any) -> None:
    """Make all surfaces that are missing before anything else happens."""
    for _done, _total in surfaces(segmentation):
        pass


def surfaces(segmentation: Any) -> Iterator[tuple[int, int]]:
    """Make the surfaces that are missing, one segment with each step.

    Segments may be edited, added and taken away between two steps, and the segmentation may leave its scene.

    Yields:
        how many segments have a surface, and how many will.
    """
    segments, cutter = segmentation.GetSegmentation(), _Cutter(segmentation)
    if _smooths_jointly(segments):  # the surfaces of neighbours depend on each other
        segmentation.CreateClosedSurfaceRepresentation()
    scene = segmentation.GetScene()
    while segmentation.GetScene() is scene:
        names = segments.GetSegmentIDs()
        lacking = [name for name in names if _lacks_surface(segments, name)]
        if not lacking:
            return
        segments.GetSegment(lacking[0]).AddRepresentation(
            surface_name(), cutter.surface(lacking[0])
        )
        yield len(names) - len(lacking) + 1, len(names)


def _lacks_surface(segments: Any, name: str) -> bool:
    return segments.GetSegment(name).GetRepresentation(surface_name()) is None


def _smooths_jointly(segments: Any) -> bool:
    rule = slicer.vtkBinaryLabelmapToClosedSurfaceConversionRule
    value = segments.GetConversionParameter(rule.GetJointSmoothingParameterName())
    return bool(value) and float(value) > 0


@dataclass
class _Cutter:
    """Makes the surface of a single segment, as Slicer's conversion parameters of the segmentation say."""

    segmentation: Any
    found: dict[tuple[Any, int], dict[int, Box]] = field(default_factory=dict)

    def surface(self, name: str) -> Any:
        """The closed surface of a segment, a vtkPolyData in the segmentation's coordinates."""
        segments = self.segmentation.GetSegmentation()
        image = self._cut_out(segments.GetSegment(name))
        if image is None:
            return vtk.vtkPolyData()
        single, segment = slicer.vtkSegmentation(), slicer.vtkSegment()
        single.SetSourceRepresentationName(labelmap_name())
        single.CopyConversionParameters(segments)
        segment.SetLabelValue(1)
        segment.AddRepresentation(labelmap_name(), image)
        single.AddSegment(segment, name)
        single.CreateRepresentation(surface_name())
        return segment.GetRepresentation(surface_name()) or vtk.vtkPolyData()

    def _cut_out(self, segment: Any) -> Any:
        """A label map of 1 where the segment is; None where it is nowhere."""
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
        return oriented_image((part == value).view("u1"), geometry_of(image).cropped(start, shape))

    def _boxes(self, image: Any) -> dict[int, Box]:
        """Where the values of a label map are, looked up once for as long as it stays as it is."""
        key = (image, image.GetMTime())
        if key not in self.found:
            self.found = {known: at for known, at in self.found.items() if known[0] is not image}
            self.found[key] = boxes(voxels_of(image))
        return self.found[key]


def set_smoothing(segmentation: Any, factor: float) -> None:
    """Forget the surfaces, and let the next ones be smoothed by Slicer's factor, from 0 (not at all) to 1."""
    rule = slicer.vtkBinaryLabelmapToClosedSurfaceConversionRule
    name = rule.GetSmoothingFactorParameterName()
    segmentation.GetSegmentation().SetConversionParameter(name, f"{factor:g}")
    segmentation.RemoveClosedSurfaceRepresentation()

"""Separate objects of a picture, such as nuclei: segments or, if they are many, one label map; and a table."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import slicer
import slicer.util
import vtk

from medsegai.labels import Label, made_color
from medsegai.request import SegmentationResult
from medsegai.volume import Geometry
from MedSegAILib.scene.attachments import (
    OBJECT_COLORS_REFERENCE,
    OBJECT_ROLES,
    OBJECT_TABLE_REFERENCE,
    OBJECTS_REFERENCE,
    put_beneath,
)
from MedSegAILib.scene.inputs import ijk_to_local
from MedSegAILib.scene.layers import labelmap_name, matrix, oriented_image
from MedSegAILib.scene.nodes import remove
from MedSegAILib.scene.segments import new_segment, segment_id
from MedSegAILib.slicer_types import MRMLScene, Node, SegmentationNode, TableNode, VolumeNode
from MedSegAILib.translation import tr as _

MOST_SEGMENTS = 200
"""The largest number of objects that become segments, because Slicer becomes slow with more."""

HEADINGS = {
    "number": "Object",
    "pixels": "Pixels",
    "area_mm2": "Area [mm²]",
    "row": "Row",
    "column": "Column",
    "r_mm": "R [mm]",
    "a_mm": "A [mm]",
}
"""The headings of the table of objects; means of channels are added."""


def put_beside(
    scene: MRMLScene, segmentation: SegmentationNode, source: VolumeNode, result: SegmentationResult
) -> str:
    """Put the objects of a result and their table beside its segmentation, and replace existing ones.

    They are hidden at first, because the segmentation is shown: choose them as the result to show.

    Args:
        scene: the scene of the segmentation.
        segmentation: the segmentation, which refers to the new nodes, and is removed together with them.
        source: the picture.
        result: the result of a model that separates objects; for others nothing is done.

    Returns:
        A sentence about them, or "" if there are none.
    """
    if result.objects is None:
        return ""
    for role in OBJECT_ROLES:
        remove(scene, segmentation.GetNodeReference(role))
    count = len(result.object_rows)
    if not count:
        return _("No object was found.")
    name = scene.GenerateUniqueName(f"{source.GetName()} objects")
    objects = result.objects.voxels
    if count <= MOST_SEGMENTS:
        node = _segments(scene, objects, source, count)
    else:
        node, colors = _label_map(scene, objects, source, count)
        segmentation.SetNodeReferenceID(OBJECT_COLORS_REFERENCE, colors.GetID())
    node.SetName(name)
    node.SetAndObserveTransformNodeID(source.GetTransformNodeID())
    table = _table(scene, f"{name} table", result.object_rows)
    for role, each in ((OBJECTS_REFERENCE, node), (OBJECT_TABLE_REFERENCE, table)):
        put_beneath(segmentation, each)
        segmentation.SetNodeReferenceID(role, each.GetID())
    return _("{count} objects were separated: {name}, with a table of their measures.").format(
        count=count, name=name
    )


def _labels(count: int) -> Iterable[Label]:
    return (Label(n, f"Object {n}", made_color(n)) for n in range(1, count + 1))


def _segments(scene: MRMLScene, objects: Any, source: VolumeNode, count: int) -> SegmentationNode:
    """Make a segmentation with a segment for each object, all in one layer."""
    node = scene.CreateNodeByClass("vtkMRMLSegmentationNode")
    node.UnRegister(None)
    segments = node.GetSegmentation()
    segments.SetSourceRepresentationName(labelmap_name())
    image = oriented_image(objects, Geometry(objects.shape, ijk_to_local(source)))
    for label in _labels(count):
        segment = new_segment(label)
        segment.AddRepresentation(labelmap_name(), image)
        segments.AddSegment(segment, segment_id(label))
    node = scene.AddNode(node)
    node.SetReferenceImageGeometryParameterFromVolumeNode(source)
    node.CreateDefaultDisplayNodes()
    node.GetDisplayNode().SetVisibility(False)
    return node


def _label_map(
    scene: MRMLScene, objects: Any, source: VolumeNode, count: int
) -> tuple[VolumeNode, Node]:
    """Make a label map whose values are the numbers of the objects, and the table of its colours."""
    node = scene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode")
    slicer.util.updateVolumeFromArray(node, np.ascontiguousarray(objects))
    node.SetIJKToRASMatrix(matrix(ijk_to_local(source)))
    colors = scene.CreateNodeByClass("vtkMRMLColorTableNode")
    colors.UnRegister(None)
    colors.SetTypeToUser()
    colors.SetName(_("Colors of objects"))
    colors.SetHideFromEditors(True)
    colors.SetNumberOfColors(count + 1)
    colors.SetColor(0, "", 0.0, 0.0, 0.0, 0.0)
    for label in _labels(count):
        colors.SetColor(label.value, label.name, *(part / 255 for part in label.color), 1.0)
    colors = scene.AddNode(colors)
    node.CreateDefaultDisplayNodes()
    node.GetDisplayNode().SetAndObserveColorNodeID(colors.GetID())
    return node, colors


def _table(scene: MRMLScene, name: str, rows: Sequence[Mapping[str, Any]]) -> TableNode:
    """Make a row for each object, without unknown columns."""
    node = scene.AddNewNodeByClass("vtkMRMLTableNode", name)
    for column in rows[0]:
        values = [math.nan if row[column] is None else float(row[column]) for row in rows]
        if all(map(math.isnan, values)):
            continue
        is_whole = column in ("number", "pixels")
        array = vtk.vtkIntArray() if is_whole else vtk.vtkDoubleArray()
        array.SetName(HEADINGS.get(column, column.replace("mean_", "Mean of channel ")))
        for value in values:
            array.InsertNextValue(int(value) if is_whole else value)
        node.AddColumn(array)
    node.SetUseColumnTitleAsColumnHeader(True)
    return node

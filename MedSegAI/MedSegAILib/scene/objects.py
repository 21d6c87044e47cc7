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
from medsegai.request import SegmentationResult, StructureMeasures
from medsegai.volume import Geometry
from MedSegAILib.output_choice import OutputChoice
from MedSegAILib.scene import object_merging
from MedSegAILib.scene.attachments import (
    OBJECT_COLORS_REFERENCE,
    OBJECT_ROLES,
    OBJECT_TABLE_REFERENCE,
    OBJECTS_REFERENCE,
    attached,
    own_attached,
    put_beneath,
)
from MedSegAILib.scene.inputs import ijk_to_local
from MedSegAILib.scene.layers import boxes, digest, labelmap_name, matrix, oriented_image
from MedSegAILib.scene.nodes import remove, unique_name
from MedSegAILib.scene.segments import new_segment, segment_id, sign
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
    scene: MRMLScene,
    segmentation: SegmentationNode,
    source: VolumeNode,
    result: SegmentationResult,
    output: OutputChoice,
) -> str:
    """Put the objects of a result and their table beside its segmentation, and replace existing ones.

    Existing objects outside of a region, and those that a person edited, are kept: see `object_merging`. If they
    lie on other voxels than the picture, their nodes stay in the scene as they are. New nodes are hidden at first,
    because the segmentation is shown: choose them as the result to show. The Segment Editor cannot undo a change
    of objects.

    Args:
        scene: the scene of the segmentation.
        segmentation: the segmentation, which refers to the new nodes, and is removed together with them.
        source: the picture.
        result: the result of a model that separates objects; for others nothing is done.
        output: what may be changed of existing objects.

    Returns:
        A sentence about them, or "" if there are none.
    """
    if result.objects is None:
        return ""
    node = own_attached(segmentation, OBJECTS_REFERENCE)
    some_stay = object_merging.some_stay(node, result, output)
    if some_stay and object_merging.can_merge(node, source, result):
        return _merge(segmentation, source, result, output)
    if not some_stay:
        for role in OBJECT_ROLES:
            remove(scene, own_attached(segmentation, role))
    return _put(scene, segmentation, source, result)


def _put(
    scene: MRMLScene, segmentation: SegmentationNode, source: VolumeNode, result: SegmentationResult
) -> str:
    """Make the nodes of new objects."""
    assert result.objects is not None
    count = len(result.object_rows)
    if not count:
        return _("No object was found.")
    name = unique_name(source, "objects", scene)
    objects = result.objects.voxels
    if count <= MOST_SEGMENTS:
        node = _segments(scene, objects, source, count)
    else:
        node, colors = _label_map(scene, objects, source, count)
        segmentation.SetNodeReferenceID(OBJECT_COLORS_REFERENCE, colors.GetID())
    node.SetName(name)
    node.SetAndObserveTransformNodeID(source.GetTransformNodeID())
    table = scene.AddNewNodeByClass("vtkMRMLTableNode", f"{name} table")
    _fill_table(table, result.object_rows)
    for role, each in ((OBJECTS_REFERENCE, node), (OBJECT_TABLE_REFERENCE, table)):
        put_beneath(segmentation, each)
        segmentation.SetNodeReferenceID(role, each.GetID())
    return _("{count} objects were separated: {name}, with a table of their measures.").format(
        count=count, name=name
    )


def _merge(
    segmentation: SegmentationNode,
    source: VolumeNode,
    result: SegmentationResult,
    output: OutputChoice,
) -> str:
    """Write the objects of a region into the existing nodes."""
    assert result.objects is not None
    node = segmentation.GetNodeReference(OBJECTS_REFERENCE)
    if node.IsA("vtkMRMLSegmentationNode"):
        object_merging.merge_segments(node, source, result, output)
    else:
        numbers = object_merging.merged_map(node, result)
        slicer.util.updateVolumeFromArray(node, numbers)
        colors = attached(segmentation, OBJECT_COLORS_REFERENCE)
        if colors is not None:
            _fill_colors(colors, max(int(numbers.max()), colors.GetNumberOfColors() - 1))
    rows = object_merging.rows_of(node, source, result.objects)
    table = attached(segmentation, OBJECT_TABLE_REFERENCE)
    if table is not None:
        _fill_table(table, rows)
    text = (
        _("Objects were replaced in the region only: {name} has {count} now.")
        if result.region
        else _("Objects that were edited or reviewed were kept: {name} has {count} now.")
    )
    return text.format(name=node.GetName(), count=len(rows))


def _labels(count: int) -> Iterable[Label]:
    return (Label(n, f"Object {n}", made_color(n)) for n in range(1, count + 1))


def _segments(scene: MRMLScene, objects: Any, source: VolumeNode, count: int) -> SegmentationNode:
    """Make a segmentation with a segment for each object, all in one layer."""
    node = scene.CreateNodeByClass("vtkMRMLSegmentationNode")
    node.UnRegister(None)
    segments = node.GetSegmentation()
    segments.SetSourceRepresentationName(labelmap_name())
    image = oriented_image(objects, Geometry(objects.shape, ijk_to_local(source)))
    around = boxes(objects)
    for label in _labels(count):
        segment = new_segment(label)
        mask = objects[around[label.value]] == label.value
        sign(segment, StructureMeasures(label, int(mask.sum()), 0.0), digest(mask))
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
    _fill_colors(colors, count)
    colors = scene.AddNode(colors)
    node.CreateDefaultDisplayNodes()
    node.GetDisplayNode().SetAndObserveColorNodeID(colors.GetID())
    return node, colors


def _fill_colors(colors: Node, count: int) -> None:
    colors.SetNumberOfColors(count + 1)
    colors.SetColor(0, "", 0.0, 0.0, 0.0, 0.0)
    for label in _labels(count):
        colors.SetColor(label.value, label.name, *(part / 255 for part in label.color), 1.0)


def _fill_table(node: TableNode, rows: Sequence[Mapping[str, Any]]) -> None:
    """Make a row for each object, without unknown columns."""
    node.RemoveAllColumns()
    for column in rows[0] if rows else ():
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

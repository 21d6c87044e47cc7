"""Separate objects in the scene: as segments or as one label map, and a table, on real MRML."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import vtk
from slicer.util import arrayFromVolume, updateVolumeFromArray

from medsegai.labels import Label
from medsegai.measurements.instances import objects_of
from medsegai.request import SegmentationResult, StructureMeasures
from medsegai.volume import Volume
from MedSegAILib.output_choice import OutputChoice, OutputMode
from MedSegAILib.scene import Scene
from MedSegAILib.scene.attachments import (
    OBJECT_COLORS_REFERENCE,
    OBJECT_TABLE_REFERENCE,
    OBJECTS_REFERENCE,
)
from MedSegAILib.scene.objects import MOST_SEGMENTS
from MedSegAILib.scene.tidying import follow
from scene_images import MOVED, add_transform, mask_on, world_of

INSIDE, BORDER = Label(1, "Inside", (200, 80, 80)), Label(2, "Border", (80, 80, 200))
ACROSS = {"few": 3, "many": 15}
"""Squares along a side of the picture."""


def picture(mrml: Any) -> Any:
    """A picture of one slice in a turned place."""
    node = mrml.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "Tile")
    pixels = np.random.default_rng(0).integers(0, 255, (1, 100, 98))
    updateVolumeFromArray(node, pixels.astype(np.int16))
    node.SetSpacing(0.5, 0.25, 1)
    node.SetAndObserveTransformNodeID(add_transform(mrml, MOVED["turned"]).GetID())
    return node


def found(image: Volume, across: int) -> SegmentationResult:
    """Squares of 4 x 4 pixels with a border on one side, as a model of nuclei finds them."""
    labelmap = np.zeros(image.voxels.shape, np.uint8)
    for j in range(across):
        for i in range(across):
            labelmap[0, 6 * j + 2 : 6 * j + 6, 6 * i + 2 : 6 * i + 5] = INSIDE.value
            labelmap[0, 6 * j + 2 : 6 * j + 6, 6 * i + 5] = BORDER.value
    labels = image.with_voxels(labelmap)
    objects, rows = objects_of(labels, (INSIDE.value, BORDER.value), (image,))
    measures = [
        StructureMeasures(each, int((labelmap == each.value).sum()), 1.0)
        for each in (INSIDE, BORDER)
    ]
    return SegmentationResult(
        labels, (INSIDE, BORDER), tuple(measures), objects=objects, object_rows=rows
    )


def table_of(node: Any) -> dict[str, list[float]]:
    table = node.GetTable()
    return {
        table.GetColumnName(n): [
            table.GetValue(row, n).ToDouble() for row in range(table.GetNumberOfRows())
        ]
        for n in range(table.GetNumberOfColumns())
    }


@pytest.mark.parametrize("size", ACROSS)
def test_objects_are_segments_or_a_label_map_with_a_table(mrml: Any, size: str) -> None:
    node = picture(mrml)
    scene = Scene(mrml)
    result = found(scene.read(node), ACROSS[size])
    assert result.objects is not None
    written = scene.write(node, result)
    objects, table = (
        written.GetNodeReference(role) for role in (OBJECTS_REFERENCE, OBJECT_TABLE_REFERENCE)
    )
    count = ACROSS[size] ** 2
    assert (count > MOST_SEGMENTS) == (size == "many")
    assert objects.GetName() == "Tile objects"
    assert objects.GetTransformNodeID() == node.GetTransformNodeID()
    if size == "few":
        segments = objects.GetSegmentation()
        assert segments.GetNumberOfSegments() == count
        assert not objects.GetDisplayNode().GetVisibility(), "the segmentation is drawn"
        for number, name in enumerate(segments.GetSegmentIDs(), 1):
            np.testing.assert_array_equal(mask_on(objects, name), result.objects.voxels == number)
    else:
        np.testing.assert_array_equal(arrayFromVolume(objects), result.objects.voxels)
        np.testing.assert_allclose(world_of(objects, 7, 5, 0), world_of(node, 7, 5, 0))
        colors = objects.GetDisplayNode().GetColorNode()
        assert colors is written.GetNodeReference(OBJECT_COLORS_REFERENCE)
        assert colors.GetColorName(count) == f"Object {count}"
    columns = table_of(table)
    assert columns["Object"] == list(range(1, count + 1))
    assert columns["Pixels"] == [16] * count
    assert columns["Area [mm²]"] == pytest.approx([16 * 0.125] * count)
    assert "Mean of channel 1" in columns
    assert any(f"{count} objects were separated: Tile objects" in note for note in scene.notes)


def test_objects_of_an_update_take_the_place_of_older_ones_and_go_with_the_segmentation(
    mrml: Any,
) -> None:
    follow(mrml)
    node = picture(mrml)
    scene = Scene(mrml)
    image = scene.read(node)
    written = scene.write(node, found(image, ACROSS["many"]))
    update = OutputChoice(OutputMode.UPDATE, written)
    scene.write(node, found(image, ACROSS["few"]), update)
    objects = written.GetNodeReference(OBJECTS_REFERENCE)
    assert objects.IsA("vtkMRMLSegmentationNode")
    kinds = ("vtkMRMLLabelMapVolumeNode", "vtkMRMLColorTableNode")
    assert [mrml.GetNumberOfNodesByClass(kind) for kind in kinds] == [0, 0]
    assert mrml.GetNumberOfNodesByClass("vtkMRMLTableNode") == 1
    mrml.RemoveNode(written)
    assert mrml.GetNumberOfNodesByClass("vtkMRMLTableNode") == 0
    assert mrml.GetNumberOfNodesByClass("vtkMRMLSegmentationNode") == 0


def test_where_no_object_is_found_that_is_said(mrml: Any) -> None:
    node = picture(mrml)
    scene = Scene(mrml)
    written = scene.write(node, found(scene.read(node), 0))
    assert written.GetNodeReference(OBJECTS_REFERENCE) is None
    assert "No object was found." in scene.notes


def test_numbers_of_objects_stay_whole(mrml: Any) -> None:
    node = picture(mrml)
    scene = Scene(mrml)
    written = scene.write(node, found(scene.read(node), ACROSS["few"]))
    table = written.GetNodeReference(OBJECT_TABLE_REFERENCE).GetTable()
    assert isinstance(table.GetColumnByName("Object"), vtk.vtkIntArray)

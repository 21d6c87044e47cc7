"""Numbers on every segment as it is now, also after it was edited: a table, a plot, a file."""

from __future__ import annotations

import csv
import math
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import slicer
import slicer.util
import vtk
from numpy.typing import NDArray

from medsegai.errors import OutputError
from MedSegAILib.scene.attachments import ENTROPY_REFERENCE
from MedSegAILib.scene.inputs import transform_to_world
from MedSegAILib.scene.layers import Layer, boxes, laid_on, layers_of
from MedSegAILib.scene.placing import place_in
from MedSegAILib.scene.review import review_state
from MedSegAILib.scene.segments import digests, label_value, measures_of, painted

TABLE_REFERENCE = "MedSegAI.statistics"
"""Reference of the segmentation node to the table of its statistics."""

CHART_REFERENCE = "MedSegAI.chart"
"""Reference of the table node to the plot of its volumes."""

VOLUME_COLUMN = "Volume [mL]"
NUMBERS = (
    "Label",
    "Voxels",
    VOLUME_COLUMN,
    "Mean",
    "SD",
    "R [mm]",
    "A [mm]",
    "S [mm]",
    "IoU",
    "Volume CV",
    "Mean entropy",
)
TEXTS = ("Segment", "Edited", "Review")
COLUMNS = ("Segment", *NUMBERS, "Edited", "Review")

Row = dict[str, float | str]


def rows(segmentation: Any) -> list[Row]:
    """One row per segment, in the segmentation's order; unknown numbers are NaN.

    Mean and standard deviation (over n - 1) are those of the source volume. IoU and CV tell how far the
    members of the model agreed on what they wrote, so they are left out where a person edited that.

    Raises:
        GeometryError: the segmentation or a volume stands under a transform that is not linear.
    """
    layers = layers_of(segmentation)
    by_hand, contents = painted(segmentation, layers), digests(layers)
    shapes = {name: numbers for layer in layers for name, numbers in _shape(segmentation, layer)}
    role = segmentation.GetReferenceImageGeometryReferenceRole()
    image = _values(segmentation, layers, segmentation.GetNodeReference(role))
    entropy = _values(segmentation, layers, segmentation.GetNodeReference(ENTROPY_REFERENCE))
    segments, out = segmentation.GetSegmentation(), []
    for name in segments.GetSegmentIDs():
        segment = segments.GetSegment(name)
        row: Row = {"Segment": segment.GetName()} | dict.fromkeys(NUMBERS, math.nan)
        row |= {"Voxels": 0.0, VOLUME_COLUMN: 0.0} | shapes.get(name, {})
        value = label_value(segmentation, name)
        row["Label"] = math.nan if value is None else float(value)
        inside = image.get(name, np.empty(0))
        row["Mean"] = float(inside.mean()) if inside.size else math.nan
        row["SD"] = float(inside.std(ddof=1)) if inside.size > 1 else math.nan
        if name not in by_hand:
            known = measures_of(segment)
            row["IoU"] = known.get("iou", math.nan)
            row["Volume CV"] = known.get("volume_cv", math.nan)
        doubts = entropy.get(name, np.empty(0))
        row["Mean entropy"] = float(doubts.mean()) if doubts.size else math.nan
        edited = name in by_hand and contents.get(name, "empty") != "empty"
        row["Edited"] = "yes" if edited else "no"
        row["Review"] = review_state(segmentation, name).value
        out.append(row)
    return out


def table(scene: Any, segmentation: Any) -> Any:
    """A vtkMRMLTableNode of the statistics, with a plot of the volumes; a later call fills the same nodes.

    Raises:
        GeometryError: as `rows`.
    """
    found = rows(segmentation)
    node = segmentation.GetNodeReference(TABLE_REFERENCE)
    if node is None:
        name = scene.GenerateUniqueName(f"{segmentation.GetName()} statistics")
        node = scene.AddNewNodeByClass("vtkMRMLTableNode", name)
        segmentation.SetNodeReferenceID(TABLE_REFERENCE, node.GetID())
    was_modifying = node.StartModify()
    node.RemoveAllColumns()
    for column in COLUMNS:
        values: Any = vtk.vtkStringArray() if column in TEXTS else vtk.vtkDoubleArray()
        values.SetName(column)
        for row in found:
            values.InsertNextValue(row[column])
        node.AddColumn(values)
    node.SetUseColumnTitleAsColumnHeader(True)
    node.EndModify(was_modifying)
    if node.GetNodeReference(CHART_REFERENCE) is None:
        _add_chart(scene, node)
    return node


def write_csv(segmentation: Any, path: Path | str) -> None:
    """Write the statistics as a CSV file (UTF-8, with a header), which appears complete or not at all.

    Raises:
        OutputError: the file cannot be written; what was there stays.
        GeometryError: as `rows`.
    """
    path, found = Path(path), rows(segmentation)
    partial = path.with_name(f".{secrets.token_hex(8)}.csv")
    try:
        with partial.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows({name: _text(value) for name, value in row.items()} for row in found)
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise OutputError(
            f"{path} cannot be written: {error.strerror or error}. Choose another place."
        ) from error


def _text(value: float | str) -> str:
    if isinstance(value, str):
        return value
    return "" if math.isnan(value) else f"{value:.10g}"


def _shape(segmentation: Any, layer: Layer) -> Iterator[tuple[str, Row]]:
    """Size and centre of mass of the segments of a layer that have voxels."""
    around = boxes(layer.voxels)
    to_world = transform_to_world(segmentation) @ layer.geometry.ijk_to_ras
    voxel_ml = abs(float(np.linalg.det(to_world[:3, :3]))) / 1000.0
    for name, value in layer.values.items():
        if value in around:
            inside = np.argwhere(layer.voxels[around[value]] == value)
            k, j, i = inside.mean(axis=0) + [part.start for part in around[value]]
            r, a, s = (to_world @ [i, j, k, 1.0])[:3]
            numbers: Row = {"Voxels": float(len(inside)), VOLUME_COLUMN: len(inside) * voxel_ml}
            yield name, numbers | {"R [mm]": float(r), "A [mm]": float(a), "S [mm]": float(s)}


def _values(
    segmentation: Any, layers: tuple[Layer, ...], node: Any
) -> dict[str, NDArray[np.float64]]:
    """What a volume holds inside each segment, by segment id."""
    if node is None or not node.IsA("vtkMRMLScalarVolumeNode") or node.GetImageData() is None:
        return {}
    image = slicer.util.arrayFromVolume(node)
    if image.ndim != 3:
        return {}
    place, found = place_in(segmentation, node, image.shape), {}
    for layer in layers:
        labels = laid_on(layer.voxels, layer.geometry, place)
        around = boxes(labels)
        for name, value in layer.values.items():
            if value in around:
                box = around[value]
                found[name] = image[box][labels[box] == value].astype(np.float64)
    return found


def _add_chart(scene: Any, node: Any) -> None:
    series = scene.AddNewNodeByClass("vtkMRMLPlotSeriesNode", "Volume")
    series.SetAndObserveTableNodeID(node.GetID())
    series.SetPlotType(slicer.vtkMRMLPlotSeriesNode.PlotTypeBar)
    series.SetYColumnName(VOLUME_COLUMN)
    series.SetLabelColumnName("Segment")
    chart = scene.AddNewNodeByClass("vtkMRMLPlotChartNode", node.GetName())
    chart.AddAndObservePlotSeriesNodeID(series.GetID())
    chart.SetTitle(node.GetName())
    chart.SetYAxisTitle(VOLUME_COLUMN)
    node.SetNodeReferenceID(CHART_REFERENCE, chart.GetID())

"""Statistics of every present segment, also after edits: a table, a plot, a file.

The measurements come from the worker, and are those of `medsegai measure`. The scene adds the agreement of
members, edits, and the review state.
"""

from __future__ import annotations

import csv
import math
import os
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import slicer
import slicer.util
import vtk
from numpy.typing import NDArray

from medsegai.errors import OutputError
from medsegai.system.outside_text import table_cell
from medsegai.worker.requests import MeasurementResult
from MedSegAILib.scene.attachments import ENTROPY_REFERENCE, volume_of
from MedSegAILib.scene.layers import EMPTY, Layer, boxes, layers_of, on_grid
from MedSegAILib.scene.measuring import Measurable
from MedSegAILib.scene.merging import place_in
from MedSegAILib.scene.nodes import modifying, own_reference, unique_name
from MedSegAILib.scene.plotting import Bar, show_bars
from MedSegAILib.scene.review import review_state
from MedSegAILib.scene.segments import digests, label_value, measures_of, painted
from MedSegAILib.slicer_types import MRMLScene, Node, SegmentationNode, TableNode
from MedSegAILib.translation import tr as _

TABLE_REFERENCE = "MedSegAI.statistics"
"""The reference of the segmentation node to the table of its statistics."""

GREY = (0.5, 0.5, 0.5)

VOLUME_COLUMN = "Volume [mL]"
HEADINGS = {
    "name": "Segment",
    "value": "Label",
    "voxels": "Voxels",
    "volume_ml": VOLUME_COLUMN,
    "surface_mm2": "Surface [mm²]",
    "mean": "Mean",
    "sd": "SD",
    "r_mm": "R [mm]",
    "a_mm": "A [mm]",
    "s_mm": "S [mm]",
    "asymmetry_percent": "Asymmetry [%]",
    "at_border": "At border",
    "remarks": "Remarks",
    "iou": "IoU",
    "volume_cv": "Volume CV",
    "mean_entropy": "Mean entropy",
    "edited": "Edited",
    "review": "Review",
}
"""The name of each column in files, as in `medsegai measure`, and its heading in the table."""

TEXTS = ("name", "at_border", "remarks", "edited", "review")
AGREEMENT = ("iou", "volume_cv")

Row = dict[str, float | str]


def rows(measured: Measurable, result: MeasurementResult) -> list[Row]:
    """Return one row per segment by the names of `HEADINGS`, in the segmentation's order; unknown numbers are NaN.

    IoU and CV measure the agreement of the model's members on the written segment, so they are left out if a
    person edited it. Segments that were removed meanwhile are left out.

    Raises:
        GeometryError: the segmentation or its entropy map has a parent transform that is not linear.
    """
    node = measured.segmentation
    layers = layers_of(node)
    by_hand, contents = painted(node, layers), digests(layers)
    entropy = _means(node, layers, volume_of(node, ENTROPY_REFERENCE))
    numbers = dict(zip(measured.segments, result.rows, strict=True))
    segments, out = node.GetSegmentation(), []
    for name in segments.GetSegmentIDs():
        if name not in numbers:
            continue
        known = {} if name in by_hand else measures_of(segments.GetSegment(name))
        value = label_value(node, name)
        edited = name in by_hand and contents.get(name, EMPTY) != EMPTY
        row = _plain(numbers[name]) | {
            "name": segments.GetSegment(name).GetName(),
            "value": math.nan if value is None else float(value),
            "mean_entropy": entropy.get(name, math.nan),
            "edited": "yes" if edited else "no",
            "review": review_state(node, name).value,
        }
        row |= {item: known.get(item, math.nan) for item in AGREEMENT}
        out.append({item: row[item] for item in HEADINGS})
    return out


def table(scene: MRMLScene, segmentation: SegmentationNode, found: list[Row]) -> TableNode:
    """Return a vtkMRMLTableNode of the rows, with a plot of the volumes; a later call fills the same nodes."""
    node = own_reference(segmentation, TABLE_REFERENCE, "vtkMRMLTableNode")
    if node is None:
        name = unique_name(segmentation, "statistics", scene)
        node = scene.AddNewNodeByClass("vtkMRMLTableNode", name)
        segmentation.SetNodeReferenceID(TABLE_REFERENCE, node.GetID())
    with modifying(node):
        node.RemoveAllColumns()
        for column, heading in HEADINGS.items():
            values: Any = vtk.vtkStringArray() if column in TEXTS else vtk.vtkDoubleArray()
            values.SetName(heading)
            for row in found:
                values.InsertNextValue(row[column])
            node.AddColumn(values)
        node.SetUseColumnTitleAsColumnHeader(True)
    show_bars(scene, node, _bars(segmentation, found), VOLUME_COLUMN)
    return node


def write_csv(found: list[Row], path: Path | str) -> None:
    """Write the rows as a CSV file (UTF-8, with a header), which appears complete or not at all.

    Raises:
        OutputError: the file cannot be written; an existing file stays.
    """
    path = Path(path)
    partial = path.with_name(f".{secrets.token_hex(8)}.csv")
    try:
        with partial.open("w", newline="", encoding="utf-8") as file:
            _write_rows(file, found)
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        text = _("{path} cannot be written: {reason}. Choose another place.")
        raise OutputError(text.format(path=path, reason=error.strerror or error)) from error


def _write_rows(file: TextIO, found: Iterable[Row]) -> None:
    writer = csv.DictWriter(file, list(HEADINGS))
    writer.writeheader()
    writer.writerows(
        {name: table_cell(_text(value)) for name, value in row.items()} for row in found
    )


def _plain(row: Mapping[str, Any]) -> Row:
    """Return a row of the worker as the cells of a table."""
    cells: Row = {name: math.nan if value is None else value for name, value in row.items()}
    words = {"at_border": "yes" if row["at_border"] else "no", "remarks": "; ".join(row["remarks"])}
    return cells | words


def _text(value: float | str) -> str:
    if isinstance(value, str):
        return value
    return "" if math.isnan(value) else f"{value:.10g}"


def _means(
    segmentation: SegmentationNode, layers: tuple[Layer, ...], node: Node
) -> dict[str, float]:
    """Return the mean of a volume inside each segment, by segment id, without segments outside it."""
    if node is None or node.GetImageData() is None:
        return {}
    image: NDArray[np.number] = slicer.util.arrayFromVolume(node)
    place, found = place_in(segmentation, node, image.shape), {}
    for layer in layers:
        labels = on_grid(layer.voxels, layer.geometry, place)
        around = boxes(labels)
        for name, value in layer.values.items():
            if value in around:
                inside = image[around[value]][labels[around[value]] == value]
                found[name] = float(np.mean(inside, dtype=np.float64))
    return found


def _bars(segmentation: SegmentationNode, found: list[Row]) -> list[Bar]:
    """Return the bars of the plot; bars of segments that were removed meanwhile are grey."""
    segments = segmentation.GetSegmentation()
    colors = {}
    for name in segments.GetSegmentIDs():
        segment = segments.GetSegment(name)
        colors[segment.GetName()] = segment.GetColor()
    return [
        Bar(str(row["name"]), float(row["volume_ml"]), colors.get(str(row["name"]), GREY))
        for row in found
    ]

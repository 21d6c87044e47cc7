"""The plot of the volumes, and the layout of the views that shows it beside a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import slicer
import vtk

from MedSegAILib.scene.nodes import modifying, referred
from MedSegAILib.slicer_types import MRMLScene, Node, TableNode, VTKObject

CHART_REFERENCE = "MedSegAI.chart"
"""Reference of the table node to the plot of its volumes."""

VALUES_REFERENCE = "MedSegAI.chart.values"
"""Reference of the table node to the hidden table that the plot shows."""


@dataclass(frozen=True)
class Bar:
    """One segment in the plot; colour components are from 0 to 1."""

    name: str
    value: float
    color: tuple[float, float, float]


def show_bars(scene: MRMLScene, table: TableNode, bars: Sequence[Bar], title: str) -> Node:
    """Show a bar for each segment in its own colour, with a legend; a later call fills the same chart.

    A plot series of Slicer has one colour, and names its values only in tool tips. So each segment is a series of
    one value, from a hidden table of one row.

    Args:
        table: the vtkMRMLTableNode of the plot.
        title: the title of the vertical axis.

    Returns:
        The vtkMRMLPlotChartNode.
    """
    chart = referred(table, CHART_REFERENCE, "vtkMRMLPlotChartNode")
    if chart is None:
        chart = scene.AddNewNodeByClass("vtkMRMLPlotChartNode", table.GetName())
        table.SetNodeReferenceID(CHART_REFERENCE, chart.GetID())
    with modifying(chart):
        _remove_series(scene, chart)
        values = _values(scene, table, bars)
        for number, bar in enumerate(bars):
            series = scene.AddNewNodeByClass("vtkMRMLPlotSeriesNode", bar.name)
            series.SetAndObserveTableNodeID(values.GetID())
            series.SetPlotType(slicer.vtkMRMLPlotSeriesNode.PlotTypeBar)
            series.SetYColumnName(str(number))
            series.SetColor(*bar.color)
            chart.AddAndObservePlotSeriesNodeID(series.GetID())
        chart.SetTitle(table.GetName())
        chart.SetYAxisTitle(title)
        chart.SetLegendVisibility(True)
    return chart


def _values(scene: MRMLScene, table: TableNode, bars: Sequence[Bar]) -> VTKObject:
    """Return the hidden table: one column for each bar, by its number, because names may be equal."""
    node = referred(table, VALUES_REFERENCE, "vtkMRMLTableNode")
    if node is None:
        node = scene.CreateNodeByClass("vtkMRMLTableNode")
        node.UnRegister(None)
        node.SetName(f"{table.GetName()} plot")
        node.SetHideFromEditors(True)
        scene.AddNode(node)
        table.SetNodeReferenceID(VALUES_REFERENCE, node.GetID())
    node.RemoveAllColumns()
    for number, bar in enumerate(bars):
        column = vtk.vtkDoubleArray()
        column.SetName(str(number))
        column.InsertNextValue(bar.value)
        node.AddColumn(column)
    return node


def _remove_series(scene: MRMLScene, chart: Node) -> None:
    old = [chart.GetNthPlotSeriesNode(n) for n in range(chart.GetNumberOfPlotSeriesNodes())]
    chart.RemoveAllPlotSeriesNodeIDs()
    for series in old:
        if series is not None:
            scene.RemoveNode(series)


class StatisticsLayout:
    """The layout with table and plot beside the views, and the restoration of the previous layout."""

    def __init__(self) -> None:
        self._before: int | None = None

    def show(self, scene: MRMLScene) -> None:
        """Show slices, plot and table."""
        layout = _layout(scene)
        if layout is None or layout.GetViewArrangement() == _WITH_TABLE:
            return
        self._before = layout.GetViewArrangement()
        layout.SetViewArrangement(_WITH_TABLE)

    def hide(self, scene: MRMLScene) -> None:
        """Restore the previous layout, unless another one was chosen meanwhile."""
        layout, before = _layout(scene), self._before
        self._before = None
        if layout is None or before is None or layout.GetViewArrangement() != _WITH_TABLE:
            return
        layout.SetViewArrangement(before)


_WITH_TABLE = slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpPlotTableView


def _layout(scene: MRMLScene) -> Node:
    return scene.GetFirstNodeByClass("vtkMRMLLayoutNode")

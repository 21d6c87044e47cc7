"""A map laid over the slices: where the networks doubted, or where something is probable.

The previous display is stored with the nodes of the views, so it can be restored by the page, the Segment Editor,
and a scene that is opened again.
"""

from __future__ import annotations

import slicer

from medsegai.errors import InputError
from MedSegAILib.scene.attachments import maps_of
from MedSegAILib.scene.nodes import nodes_of, stored_number
from MedSegAILib.scene.uncertainty import note
from MedSegAILib.scene.uncertainty_colors import color, color_heat
from MedSegAILib.slicer_types import MRMLScene, Node, SegmentationNode, VolumeNode
from MedSegAILib.translation import tr as _
from MedSegAILib.uncertain_regions import HEAT, UNCERTAINTY

OPACITY = 0.6
"""The default opacity of a map."""

OPACITY_ATTRIBUTE = "MedSegAI.overlay_opacity"
"""Attribute of the segmentation node: the opacity of its maps, if the user chose it."""

BEFORE_ATTRIBUTE = "MedSegAI.before_uncertainty"
"""Attribute of a slice view: id and opacity of the foreground before. Of the display of a segmentation: whether
its segments were filled. It is there as long as the overlay is."""

LEGEND_FONT = 14
LEGEND_SIZE, LEGEND_POSITION = (0.1, 0.35), (0.97, 0.03)
"""Height and width of the legend, then its position from left and from bottom, as parts of the view's size."""

COLORING = {HEAT: color_heat, UNCERTAINTY: color}
"""The functions that set the colours of each kind of map."""


def show(scene: MRMLScene, segmentation: SegmentationNode, kind: str) -> None:
    """Lay a map of a segmentation over the slices, its segments as outlines.

    Args:
        scene: the scene whose slice views show it.
        segmentation: the segmentation of the map.
        kind: `HEAT` or `UNCERTAINTY`; "" removes the shown map.

    Raises:
        InputError: the segmentation does not have such a map.
    """
    maps = maps_of(segmentation)
    if kind and kind not in maps:
        raise InputError(_missing(segmentation, kind))
    if not kind:
        _take_away(scene, segmentation, maps)
        return
    for other in nodes_of(scene, "vtkMRMLSegmentationNode"):
        if other is not segmentation:
            _display_as_before(other, maps_of(other))
    COLORING[kind](scene, maps[kind])
    for view in nodes_of(scene, "vtkMRMLSliceCompositeNode"):
        if not view.GetAttribute(BEFORE_ATTRIBUTE):  # one overlay may follow another
            before = f"{view.GetForegroundVolumeID() or ''} {view.GetForegroundOpacity()}"
            view.SetAttribute(BEFORE_ATTRIBUTE, before)
        view.SetForegroundVolumeID(maps[kind].GetID())
        view.SetForegroundOpacity(opacity(segmentation))
    display = segmentation.GetDisplayNode()
    if display is not None and not display.GetAttribute(BEFORE_ATTRIBUTE):
        display.SetAttribute(BEFORE_ATTRIBUTE, "filled" if display.GetVisibility2DFill() else "not")
        display.SetVisibility2DFill(False)
    for other, node in maps.items():
        if other != kind:
            _hide_legend(node)
    _show_legend(scene, kind, maps[kind])


def shown(scene: MRMLScene, segmentation: SegmentationNode) -> str:
    """Return the kind of map of a segmentation that a slice view shows, or "" if there is none."""
    views = nodes_of(scene, "vtkMRMLSliceCompositeNode")
    seen = {view.GetForegroundVolumeID() for view in views}
    return next((kind for kind, node in maps_of(segmentation).items() if node.GetID() in seen), "")


def opacity(segmentation: SegmentationNode) -> float:
    """Return the opacity of the maps of a segmentation, from 0 to 1."""
    stored = stored_number(segmentation.GetAttribute(OPACITY_ATTRIBUTE) or "", 0, 1)
    return OPACITY if stored is None else stored


def set_opacity(scene: MRMLScene, segmentation: SegmentationNode, value: float) -> None:
    """Set the opacity of the maps of a segmentation, now and whenever they are shown again."""
    note(segmentation, OPACITY_ATTRIBUTE, f"{value:.2f}")
    own = {node.GetID() for node in maps_of(segmentation).values()}
    for view in nodes_of(scene, "vtkMRMLSliceCompositeNode"):
        if view.GetForegroundVolumeID() in own:
            view.SetForegroundOpacity(value)


def _missing(segmentation: SegmentationNode, kind: str) -> str:
    text = (
        _("{name} does not have a heat map. Run a classifier of patches or pictures.")
        if kind == HEAT
        else _("The uncertainty of {name} was not measured. Run the model again with uncertainty.")
    )
    return text.format(name=segmentation.GetName())


def _take_away(
    scene: MRMLScene, segmentation: SegmentationNode, maps: dict[str, VolumeNode]
) -> None:
    """Restore the previous display, except for the user's changes meanwhile."""
    own = {node.GetID() for node in maps.values()}
    for view in nodes_of(scene, "vtkMRMLSliceCompositeNode"):
        before = view.GetAttribute(BEFORE_ATTRIBUTE)
        view.SetAttribute(BEFORE_ATTRIBUTE, None)
        if view.GetForegroundVolumeID() in own:
            volume, _space, opaque = (before or " 0").partition(" ")
            is_there = bool(volume) and scene.GetNodeByID(volume) is not None
            view.SetForegroundVolumeID(volume if is_there else None)
            view.SetForegroundOpacity((stored_number(opaque, 0, 1) or 0.0) if is_there else 0.0)
    _display_as_before(segmentation, maps)


def _display_as_before(segmentation: SegmentationNode, maps: dict[str, VolumeNode]) -> None:
    """Fill segments again as they were before a map was shown, and hide its legend."""
    display = segmentation.GetDisplayNode()
    if display is not None and display.GetAttribute(BEFORE_ATTRIBUTE):
        display.SetVisibility2DFill(display.GetAttribute(BEFORE_ATTRIBUTE) == "filled")
        display.SetAttribute(BEFORE_ATTRIBUTE, None)
    for node in maps.values():
        _hide_legend(node)


def _hide_legend(volume: VolumeNode) -> None:
    legend = _legend(volume)
    if legend is not None:
        legend.SetVisibility(False)


def _legend(volume: VolumeNode) -> Node:
    return slicer.vtkSlicerColorLogic.GetColorLegendDisplayNode(volume)


def _show_legend(scene: MRMLScene, kind: str, volume: VolumeNode) -> None:
    """Show Slicer's own colour legend, small and in one view.

    Words in its title are above the ends of the bar, because values in nats are hard to interpret, and Slicer
    writes names of colours too small to read.
    """
    color_logic = slicer.vtkSlicerColorLogic
    legend = _legend(volume) or color_logic.AddDefaultColorLegendDisplayNode(volume)
    if legend is None:
        return
    is_heat = kind == HEAT
    title = _("low     probability     high") if is_heat else _("low     uncertainty     high")
    legend.SetTitleText(title)
    _lay_out(legend)
    views = nodes_of(scene, "vtkMRMLSliceNode")
    red = [view for view in views if view.GetLayoutName() == "Red"] or views[:1]
    legend.SetViewNodeIDs([view.GetID() for view in red])
    legend.SetSaveWithScene(False)
    legend.SetVisibility(True)


def _lay_out(legend: Node) -> None:
    """Make a legend small and readable, with names of colours left out."""
    legend.SetUseColorNamesForLabels(False)
    legend.SetNumberOfLabels(0)
    for letters in (legend.GetTitleTextProperty(), legend.GetLabelTextProperty()):
        letters.SetFontSize(LEGEND_FONT)
        letters.SetBold(True)
        letters.SetShadow(True)
    legend.SetOrientation(legend.Horizontal)
    legend.SetSize(*LEGEND_SIZE)
    legend.SetPosition(*LEGEND_POSITION)

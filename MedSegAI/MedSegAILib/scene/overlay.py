"""Where the networks doubted, laid over the slices, and what was shown before.

The latter is kept with the nodes of the views, so whoever takes the overlay away finds it: the page, the Segment
Editor, and a scene that is opened again.
"""

from __future__ import annotations

import slicer

from medsegai.errors import InputError
from MedSegAILib.scene.attachments import ENTROPY_REFERENCE
from MedSegAILib.scene.nodes import nodes_of
from MedSegAILib.scene.uncertainty_colors import color
from MedSegAILib.slicer_types import MRMLScene, Node, SegmentationNode, VolumeNode
from MedSegAILib.translation import tr as _

OPACITY = 0.6

BEFORE_ATTRIBUTE = "MedSegAI.before_uncertainty"
"""Attribute of a slice view: id and opacity of the foreground before. Of the display of a segmentation: whether
its segments were filled. It is there as long as the overlay is."""

LEGEND_FONT = 14
LEGEND_SIZE, LEGEND_POSITION = (0.1, 0.35), (0.97, 0.03)
"""Height and width, then place from left to right and from bottom to top, as parts of the view's."""


def show(scene: MRMLScene, segmentation: SegmentationNode, shown: bool) -> None:
    """Lay the uncertainty of a segmentation over the slices, its segments as outlines, or take it away.

    Raises:
        InputError: its uncertainty was not measured.
    """
    entropy = segmentation.GetNodeReference(ENTROPY_REFERENCE)
    if not shown:
        _take_away(scene, segmentation, entropy)
        return
    if entropy is None:
        raise InputError(
            f"The uncertainty of {segmentation.GetName()} was not measured. Run the model again "
            "with uncertainty switched on."
        )
    color(scene, entropy)
    for view in nodes_of(scene, "vtkMRMLSliceCompositeNode"):
        if not view.GetAttribute(BEFORE_ATTRIBUTE):  # one overlay may follow another
            before = f"{view.GetForegroundVolumeID() or ''} {view.GetForegroundOpacity()}"
            view.SetAttribute(BEFORE_ATTRIBUTE, before)
        view.SetForegroundVolumeID(entropy.GetID())
        view.SetForegroundOpacity(OPACITY)
    display = segmentation.GetDisplayNode()
    if display is not None and not display.GetAttribute(BEFORE_ATTRIBUTE):
        display.SetAttribute(BEFORE_ATTRIBUTE, "filled" if display.GetVisibility2DFill() else "not")
        display.SetVisibility2DFill(False)
    _show_legend(scene, entropy)


def is_shown(scene: MRMLScene, segmentation: SegmentationNode) -> bool:
    """Whether a slice view shows the uncertainty of a segmentation."""
    entropy = segmentation.GetNodeReferenceID(ENTROPY_REFERENCE)
    views = nodes_of(scene, "vtkMRMLSliceCompositeNode")
    return bool(entropy) and any(view.GetForegroundVolumeID() == entropy for view in views)


def _take_away(scene: MRMLScene, segmentation: SegmentationNode, entropy: VolumeNode) -> None:
    """Put back what was there; what the user chose in the meantime stays."""
    for view in nodes_of(scene, "vtkMRMLSliceCompositeNode"):
        before = view.GetAttribute(BEFORE_ATTRIBUTE)
        view.SetAttribute(BEFORE_ATTRIBUTE, None)
        if entropy is not None and view.GetForegroundVolumeID() == entropy.GetID():
            volume, _space, opacity = (before or " 0").partition(" ")
            is_there = bool(volume) and scene.GetNodeByID(volume) is not None
            view.SetForegroundVolumeID(volume if is_there else None)
            view.SetForegroundOpacity(float(opacity) if is_there else 0.0)
    display = segmentation.GetDisplayNode()
    if display is not None and display.GetAttribute(BEFORE_ATTRIBUTE):
        display.SetVisibility2DFill(display.GetAttribute(BEFORE_ATTRIBUTE) == "filled")
        display.SetAttribute(BEFORE_ATTRIBUTE, None)
    legend = None if entropy is None else _legend(entropy)
    if legend is not None:
        legend.SetVisibility(False)


def _legend(entropy: VolumeNode) -> Node:
    return slicer.vtkSlicerColorLogic.GetColorLegendDisplayNode(entropy)


def _show_legend(scene: MRMLScene, entropy: VolumeNode) -> None:
    """Slicer's own colour legend: a small one, in one view.

    Words in its title stand above the ends of the bar, because numbers of nats tell nobody anything, and Slicer
    writes names of colours too small to read.
    """
    legend = _legend(entropy) or slicer.vtkSlicerColorLogic.AddDefaultColorLegendDisplayNode(
        entropy
    )
    if legend is None:
        return
    legend.SetTitleText(_("low     uncertainty     high"))
    legend.SetUseColorNamesForLabels(False)
    legend.SetNumberOfLabels(0)
    for letters in (legend.GetTitleTextProperty(), legend.GetLabelTextProperty()):
        letters.SetFontSize(LEGEND_FONT)
        letters.SetBold(True)
        letters.SetShadow(True)
    legend.SetOrientation(legend.Horizontal)
    legend.SetSize(*LEGEND_SIZE)
    legend.SetPosition(*LEGEND_POSITION)
    views = nodes_of(scene, "vtkMRMLSliceNode")
    red = [view for view in views if view.GetLayoutName() == "Red"] or views[:1]
    legend.SetViewNodeIDs([view.GetID() for view in red])
    legend.SetSaveWithScene(False)
    legend.SetVisibility(True)

"""The slice views: brought to a place without losing what they show, and the place marked in them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import slicer

from MedSegAILib.scene.layers import array_of
from MedSegAILib.scene.nodes import nodes_of
from MedSegAILib.slicer_types import MRMLScene, Widget

MARGIN = 0.1
"""A place nearer than this part of a view's width and height to its edge counts as hardly seen."""


def jump(scene: MRMLScene, ras: Sequence[float]) -> None:
    """Show a place of the world in all slice views, and mark it with the crosshair.

    A view goes to the slice of the place. Within the slice it moves only if the place would lie outside of the
    view or at its edge, and only as far as needed; how much it shows stays as it is.
    """
    for view in nodes_of(scene, "vtkMRMLSliceNode"):
        view.JumpSliceByOffsetting(*ras)
        _bring_into_view(view, ras)
    for crosshair in nodes_of(scene, "vtkMRMLCrosshairNode"):
        crosshair.SetCrosshairRAS(*ras)
        if crosshair.GetCrosshairMode() == slicer.vtkMRMLCrosshairNode.NoCrosshair:
            crosshair.SetCrosshairMode(slicer.vtkMRMLCrosshairNode.ShowBasic)


def _bring_into_view(view: Widget, ras: Sequence[float]) -> None:
    """Move a view within its slice, so far that the place does not lie at its edge."""
    to_ras = array_of(view.GetXYToRAS())
    pixels = (np.linalg.inv(to_ras) @ [*ras, 1.0])[:2]
    size = np.array(view.GetDimensions()[:2], float)
    beyond = pixels - np.clip(pixels, MARGIN * size, (1 - MARGIN) * size)
    if not beyond.any():
        return
    moved = to_ras[:3, :2] @ beyond
    to_world = view.GetSliceToRAS()
    for axis in range(3):
        to_world.SetElement(axis, 3, to_world.GetElement(axis, 3) + moved[axis])
    view.UpdateMatrices()

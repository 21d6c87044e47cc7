"""Moving the slice views to a place, which is marked in them, with as little change as possible."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import slicer

from MedSegAILib.scene.layers import array_of
from MedSegAILib.scene.nodes import nodes_of
from MedSegAILib.slicer_types import MRMLScene, Widget

MARGIN = 0.1
"""The part of a view's width and height near its edge in which a place counts as not visible."""


def jump(scene: MRMLScene, ras: Sequence[float]) -> None:
    """Show a place of the world in all slice views, and mark it with the crosshair.

    A view moves to the slice of the place. Within the slice it moves only if the place is outside the view or at
    its edge, and only as far as needed; its zoom does not change.
    """
    for view in nodes_of(scene, "vtkMRMLSliceNode"):
        view.JumpSliceByOffsetting(*ras)
        _bring_into_view(view, ras)
    for crosshair in nodes_of(scene, "vtkMRMLCrosshairNode"):
        crosshair.SetCrosshairRAS(*ras)
        if crosshair.GetCrosshairMode() == slicer.vtkMRMLCrosshairNode.NoCrosshair:
            crosshair.SetCrosshairMode(slicer.vtkMRMLCrosshairNode.ShowBasic)


def _bring_into_view(view: Widget, ras: Sequence[float]) -> None:
    """Move a view within its slice, so that the place is not at its edge."""
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

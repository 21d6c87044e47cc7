"""The colours of doubt: nothing where the networks were sure, yellow to red where they were not."""

from __future__ import annotations

import numpy as np

from MedSegAILib.slicer_types import MRMLScene, Node, VolumeNode
from MedSegAILib.translation import tr as _

LOWEST = 0.33
"""Entropy in nats below which nothing is drawn: of two structures one has a probability above 0.9 there."""

REDDEST = float(np.log(3))
"""Entropy of three structures that are equally likely: two, as at every border, are orange."""

HIGHEST = 20.0
"""Above any entropy in nats: so many structures has no model."""

COLDEST, HOTTEST = 0.1, 1.0
"""The range of a heat map; probabilities below the first are not drawn."""

COLOR_COUNT = 32
COLORS_TAG = "MedSegAIUncertainty"
"""The table of colours is one of its kind in a scene, as Slicer's own tables are, and is not saved with it."""


def color(scene: MRMLScene, volume: VolumeNode) -> None:
    """Give a volume in nats the colours in which it is laid over an image."""
    _draw(scene, volume, (LOWEST, REDDEST), HIGHEST)


def color_heat(scene: MRMLScene, volume: VolumeNode) -> None:
    """Give a volume of probabilities the same colours."""
    _draw(scene, volume, (COLDEST, HOTTEST), HOTTEST)


def _draw(
    scene: MRMLScene, volume: VolumeNode, window: tuple[float, float], highest: float
) -> None:
    """Yellow to red within a window, and nothing below it."""
    volume.CreateDefaultDisplayNodes()
    display = volume.GetScalarVolumeDisplayNode()
    display.SetAndObserveColorNodeID(_colors(scene).GetID())
    display.AutoWindowLevelOff()
    display.SetWindowLevelMinMax(*window)
    display.SetThreshold(window[0], highest)
    display.ApplyThresholdOn()


def _colors(scene: MRMLScene) -> Node:
    """The table of colours; made where the scene has none."""
    present = scene.GetSingletonNode(COLORS_TAG, "vtkMRMLColorTableNode")
    if present is not None:
        return present
    table = scene.CreateNodeByClass("vtkMRMLColorTableNode")
    table.UnRegister(None)
    table.SetTypeToUser()
    table.SetName(_("MedSegAI uncertainty"))
    table.SetSingletonTag(COLORS_TAG)
    table.SetSaveWithScene(False)
    table.SetHideFromEditors(True)
    table.SetNumberOfColors(COLOR_COUNT)
    for number in range(COLOR_COUNT):
        part = number / (COLOR_COUNT - 1)
        table.SetColor(number, f"{part:.0%}", 1.0, 0.95 * (1 - part), 0.2 * (1 - part), 1.0)
    return scene.AddNode(table)

"""The colours of uncertainty: transparent where the networks are certain, yellow to red where they are not."""

from __future__ import annotations

import numpy as np

from MedSegAILib.slicer_types import MRMLScene, Node, VolumeNode
from MedSegAILib.translation import tr as _

LOWEST = 0.33
"""The entropy in nats below which nothing is drawn: one of two structures then has a probability above 0.9."""

REDDEST = float(np.log(3))
"""The entropy of three equally likely structures; two, as at every border, are orange."""

HIGHEST = 20.0
"""More than any entropy in nats, because models do not have so many structures."""

COLDEST, HOTTEST = 0.1, 1.0
"""The range of a heat map; probabilities below the first are not drawn."""

COLOR_COUNT = 32
COLORS_TAG = "MedSegAIUncertainty"
"""The singleton tag of the colour table, which exists once in a scene and is not saved with it."""


def color(scene: MRMLScene, volume: VolumeNode) -> None:
    """Give a volume in nats the colours for showing it over an image."""
    _draw(scene, volume, (LOWEST, REDDEST), HIGHEST)


def color_heat(scene: MRMLScene, volume: VolumeNode) -> None:
    """Give a volume of probabilities the same colours."""
    _draw(scene, volume, (COLDEST, HOTTEST), HOTTEST)


def _draw(
    scene: MRMLScene, volume: VolumeNode, window: tuple[float, float], highest: float
) -> None:
    """Draw yellow to red within a window, and nothing below it."""
    volume.CreateDefaultDisplayNodes()
    display = volume.GetScalarVolumeDisplayNode()
    display.SetAndObserveColorNodeID(_colors(scene).GetID())
    display.AutoWindowLevelOff()
    display.SetWindowLevelMinMax(*window)
    display.SetThreshold(window[0], highest)
    display.ApplyThresholdOn()


def _colors(scene: MRMLScene) -> Node:
    """Return the table of colours, which is made if the scene does not have it."""
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

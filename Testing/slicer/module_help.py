"""What tests of the module's entry share: a volume for the made-up engine, and a hand on the page."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
import slicer
from slicer.util import (
    addVolumeFromArray,
    arrayFromSegmentBinaryLabelmap,
)

import pythonqt
from MedSegAILib.panel.structure_table import NAME

PATIENCE = 15.0


def head(name: str = "Head") -> Any:
    """A volume with 50 voxels of each label that the made-up engine knows."""
    image = np.zeros((4, 5, 10), np.int16)
    image[1] = 150
    image[2] = 250
    return addVolumeFromArray(image, np.diag([-1.0, -1.0, 2.0, 1.0]), name)


def segment_voxels(segmentation: Any, value: int, volume: Any) -> Any:
    segments = segmentation.GetSegmentation()
    ids = [segments.GetNthSegmentID(index) for index in range(segments.GetNumberOfSegments())]
    (found,) = [name for name in ids if name.startswith(f"{value:03d}_")]
    return arrayFromSegmentBinaryLabelmap(segmentation, found, volume)


def node_count() -> int:
    """How many segmentations there are to choose from; marks of changes are hidden ones."""
    nodes = slicer.util.getNodesByClass("vtkMRMLSegmentationNode")
    return sum(not node.GetHideFromEditors() for node in nodes)


def until(condition: Any) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "nothing happened"
        pythonqt.process_events(10)


def press(page: Any, name: str) -> None:
    pythonqt.real(page.parent).findChild(pythonqt.QtWidgets.QPushButton, name).click()


def message(page: Any) -> str:
    label = pythonqt.real(page.parent).findChild(pythonqt.QtWidgets.QLabel, "messageLabel")
    return str(label.text())


def plan(page: Any) -> str:
    """What will run, on what, or why nothing can."""
    label = pythonqt.real(page.parent).findChild(pythonqt.QtWidgets.QLabel, "planLabel")
    return f"{label.text()} {label.toolTip()}"


def button(page: Any, name: str) -> Any:
    found = pythonqt.real(page.parent).findChild(pythonqt.QtWidgets.QPushButton, name)
    assert found is not None, name
    return found


def model_called(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The made-up engine takes the name of the model for how the job goes."""
    monkeypatch.setattr("MedSegAILib.controller.context.Context._model", lambda self, card: name)


def structures(page: Any) -> list[str]:
    table = pythonqt.real(page.parent).findChild(pythonqt.QtWidgets.QTableWidget, "resultTable")
    return [table.item(row, NAME).text() for row in range(table.rowCount())]


def head_under_way(page: Any, module: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A volume whose job the worker has taken."""
    model_called(monkeypatch, "short")
    volume = head()
    page.panel.choose_input(volume)
    press(page, "segmentButton")
    until(lambda: module.worker()._hello is not None)
    return volume

"""What the tests of the Slicer side share: PythonQt's manners, and a scene."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

# Skipping here would be skipping in silence: the packages are in the extra `test`.
import pythonqt

pythonqt.install()


@pytest.fixture(autouse=True)
def no_slot_fails() -> Iterator[None]:
    """An exception in a slot fails the test, although Qt goes on."""
    pythonqt.slot_errors.clear()
    yield
    assert not pythonqt.slot_errors, pythonqt.slot_errors


@pytest.fixture
def mrml() -> Iterator[Any]:
    """A real scene with the logics that segmentations need."""
    import slicer

    scene = slicer.vtkMRMLScene()
    application = slicer.vtkSlicerApplicationLogic()
    application.SetMRMLScene(scene)
    segmentations = slicer.vtkSlicerSegmentationsModuleLogic()
    segmentations.SetMRMLApplicationLogic(application)
    segmentations.SetMRMLScene(scene)
    yield scene
    scene.Clear(1)

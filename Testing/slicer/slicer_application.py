"""What `slicer-core` lacks of the application, on the real scene: enough to run the module's entry.

`start` gives the module `slicer` its `mrmlScene`, `app` and `modules`, and the Python files that the
wheel leaves out; `slicer.util` then works as it is. Widgets come from `pythonqt`.
"""

from __future__ import annotations

import sys
import types
import unittest
from pathlib import Path
from typing import Any

import pytest
import slicer
import slicer.util

import pythonqt

MODULE_FOLDER = Path(__file__).resolve().parents[2] / "MedSegAI"


class Settings:
    """What of QSettings is used; values come back as they went in."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}

    def value(self, key: str, default: Any = None) -> Any:
        return self.values.get(key, default)

    def setValue(self, key: str, value: Any) -> None:
        self.values[key] = value


class Application:
    """`slicer.app`."""

    applicationName = "Slicer"

    def __init__(self) -> None:
        self.quitting: list[Any] = []
        self.starting: list[Any] = []
        self.testing = False
        self.settings = Settings()

    def connect(self, signature: str, function: Any) -> bool:
        {"aboutToQuit()": self.quitting, "startupCompleted()": self.starting}[signature].append(
            function
        )
        return True

    def start(self) -> None:
        for function in self.starting:
            function()

    def userSettings(self) -> Any:
        return self.settings

    def quit(self) -> None:
        for function in self.quitting:
            function()

    def processEvents(self) -> None:
        pythonqt.process_events()

    def testingEnabled(self) -> bool:
        return self.testing


class _Module:
    def __init__(self, logic: Any) -> None:
        self._logic = logic

    def logic(self) -> Any:
        return self._logic


class ScriptedLoadableModule:
    def __init__(self, parent: Any) -> None:
        self.parent = parent


class ScriptedLoadableModuleWidget:
    """As in Slicer: without a parent it makes its own, and calls `setup` by itself."""

    def __init__(self, parent: Any = None) -> None:
        super().__init__()
        qt: Any = sys.modules["qt"]
        self.parent = qt.QWidget() if parent is None else parent
        if parent is None:
            qt.QVBoxLayout(self.parent)
        self.layout = self.parent.layout()
        self.reloaded = False
        if parent is None:
            self.setup()

    def setup(self) -> None:
        """Slicer adds the developer's section here."""

    def resourcePath(self, name: str) -> str:
        return str(MODULE_FOLDER / "Resources" / name)

    def onReload(self) -> None:
        self.reloaded = True


class ScriptedLoadableModuleLogic:
    def __init__(self, parent: Any = None) -> None:
        super().__init__()


class ScriptedLoadableModuleTest(unittest.TestCase):
    def delayDisplay(self, message: str, requestedDelay: Any = None, msec: Any = None) -> None:
        """Slicer shows the message for a moment."""


def start(scene: Any, patch: pytest.MonkeyPatch) -> Application:
    """Turn `slicer` into an application with this scene, until the patch is undone."""
    application = Application()
    segmentations = slicer.vtkSlicerSegmentationsModuleLogic()
    volumes = slicer.vtkSlicerVolumesLogic()
    volumes.SetMRMLScene(scene)
    modules = types.SimpleNamespace(segmentations=_Module(segmentations), volumes=_Module(volumes))
    patch.setattr(slicer, "mrmlScene", scene, raising=False)
    patch.setattr(slicer, "app", application, raising=False)
    patch.setattr(slicer, "modules", modules, raising=False)
    patch.setattr(slicer.util, "loadUI", pythonqt.load_ui)
    patch.setattr(slicer.util, "childWidgetVariables", pythonqt.child_widget_variables)
    patch.setattr(slicer.util, "mainWindow", lambda: None)
    patch.setattr(slicer, "qMRMLNodeComboBox", pythonqt.new_node_selector, raising=False)
    _add_module(patch, "i18n", tr=lambda text: text, translate=lambda context, text: text)
    bases = (
        ScriptedLoadableModule,
        ScriptedLoadableModuleWidget,
        ScriptedLoadableModuleLogic,
        ScriptedLoadableModuleTest,
    )
    _add_module(patch, "ScriptedLoadableModule", **{base.__name__: base for base in bases})
    return application


def _add_module(patch: pytest.MonkeyPatch, name: str, **content: Any) -> None:
    module = types.ModuleType(f"slicer.{name}")
    vars(module).update(content)
    patch.setitem(sys.modules, f"slicer.{name}", module)
    patch.setattr(slicer, name, module, raising=False)

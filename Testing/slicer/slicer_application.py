"""What `slicer-core` lacks of the application, on the real scene: enough to run the module's entry.

`start` gives the module `slicer` its `mrmlScene`, `app` and `modules`, and the Python files that the
wheel leaves out; `slicer.util` then works as it is. Widgets come from `pythonqt`. Each stand-in shows what Slicer
has, and nothing else: see `stand_ins`.
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
import slicer_facts
from stand_ins import faced, like, put, put_module, put_object

MODULE_FOLDER = Path(__file__).resolve().parents[2] / "MedSegAI"


class Settings:
    """A QSettings; values come back as they went in."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}

    def value(self, key: str, default: Any = None) -> Any:
        return self.values.get(key, default)

    def setValue(self, key: str, value: Any) -> None:
        self.values[key] = value


class Application:
    """`slicer.app`, a qSlicerApplication, and what a test does with it."""

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
        """Tell those who wait that Slicer has started. As in Qt, what one raises keeps none of the others."""
        for function in self.starting:
            function()

    def userSettings(self) -> Any:
        return faced(self.settings, "QSettings")

    def quit(self) -> None:
        for function in self.quitting:
            function()

    def processEvents(self) -> None:
        pythonqt.QtCore.QCoreApplication.processEvents()

    def testingEnabled(self) -> bool:
        return self.testing


class Modules:
    """`slicer.modules`: those that Slicer has, of which these have a logic here."""

    def __init__(self, **logics: Any) -> None:
        self._logics = logics

    def __getattr__(self, name: str) -> Any:
        if name not in slicer_facts.slicer_modules():
            raise slicer_facts.NotInSlicer(f"Slicer has no module {name}")
        module = types.SimpleNamespace(logic=lambda: self._logics[name])
        return faced(module, "qSlicerAbstractCoreModule(segmentations)")


@like("slicer.ScriptedLoadableModule.ScriptedLoadableModule")
class ScriptedLoadableModule:
    def __init__(self, parent: Any) -> None:
        self.parent = parent


@like("slicer.ScriptedLoadableModule.ScriptedLoadableModuleWidget")
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

    def resourcePath(self, filename: str) -> str:
        return str(MODULE_FOLDER / "Resources" / filename)

    def onReload(self) -> None:
        self.reloaded = True


@like("slicer.ScriptedLoadableModule.ScriptedLoadableModuleLogic")
class ScriptedLoadableModuleLogic:
    def __init__(self, parent: Any = None) -> None:
        super().__init__()


@like("slicer.ScriptedLoadableModule.ScriptedLoadableModuleTest")
class ScriptedLoadableModuleTest(unittest.TestCase):
    def delayDisplay(self, message: str, requestedDelay: Any = None, msec: Any = None) -> None:
        """Slicer shows the message for a moment."""


def start(scene: Any, patch: pytest.MonkeyPatch) -> Application:
    """Turn `slicer` into an application with this scene, until the patch is undone."""
    application = Application()
    segmentations = slicer.vtkSlicerSegmentationsModuleLogic()
    volumes = slicer.vtkSlicerVolumesLogic()
    volumes.SetMRMLScene(scene)
    modules = Modules(segmentations=segmentations, volumes=volumes)
    patch.setattr(slicer, "mrmlScene", scene, raising=False)
    patch.setattr(slicer, "modules", modules, raising=False)
    patch.setattr(slicer, "qMRMLNodeComboBox", pythonqt.new_node_selector, raising=False)
    put_object(patch, "app", "qSlicerApplication", application)
    put(patch, "slicer.util.loadUI", pythonqt.load_ui)
    put(patch, "slicer.util.childWidgetVariables", pythonqt.child_widget_variables)
    put(patch, "slicer.util.mainWindow", lambda: None)
    put_module(
        patch,
        "slicer.i18n",
        {"tr": lambda text: text, "translate": lambda context, text: text},
    )
    bases = (
        ScriptedLoadableModule,
        ScriptedLoadableModuleWidget,
        ScriptedLoadableModuleLogic,
        ScriptedLoadableModuleTest,
    )
    module = put_module(patch, "slicer.ScriptedLoadableModule", {})
    vars(module).update({base.__name__: base for base in bases})
    return application

"""Every call that the module makes of Slicer, Qt and VTK is one that they have: see `slicer_calls`."""

from __future__ import annotations

from pathlib import Path

import pytest

from slicer_application import MODULE_FOLDER
from slicer_calls import EFFECT_ROLES, ROLES, Source, own_names, widgets_of

FILES = [MODULE_FOLDER / "MedSegAI.py", *sorted((MODULE_FOLDER / "MedSegAILib").rglob("*.py"))]
KNOWN = own_names(path.read_text() for path in FILES)
WIDGETS = widgets_of((MODULE_FOLDER / "Resources" / "UI" / "MedSegAI.ui").read_text())


def source(text: str, path: Path = MODULE_FOLDER) -> Source:
    roles = ROLES | (EFFECT_ROLES if "MedSegAIEffects" in path.parts else {})
    return Source(text, roles, WIDGETS, KNOWN)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(MODULE_FOLDER).as_posix())
def test_the_module_calls_what_slicer_has(path: Path) -> None:
    assert source(path.read_text(), path).check() == []


def test_the_check_sees_most_of_the_calls() -> None:
    """Else it would pass for want of knowing what an expression is."""
    sources = [source(path.read_text(), path) for path in FILES]
    for each in sources:
        each.check()
    assert sum(len(each.told) for each in sources) > 700


BASES = "from slicer.ScriptedLoadableModule import ScriptedLoadableModuleWidget as Base\n"
EFFECT = "from SegmentEditorEffects import AbstractScriptedSegmentEditorEffect as Base\n"
OFFENCES = {
    "a function": "import slicer.util\nslicer.util.mainWindw()",
    "a keyword": "import slicer.util\nslicer.util.selectModule(name='Data')",
    "too many values": "import slicer.util\nslicer.util.mainWindow(1)",
    "a keyword of a module's": "import SampleData\n"
    "SampleData.SampleDataLogic.registerCustomSampleDataSource(sampleDescription='Head')",
    "a method of a module's": "import SampleData\nSampleData.SampleDataLogic.register()",
    "a name of the application": "import slicer\nslicer.app.setings()",
    "a signal of the application": "import slicer\nslicer.app.connect('startupDone()', f)",
    "a value too many": "import slicer\nslicer.app.applicationLogic(1)",
    "a module": "import slicer\nslicer.modules.plot",
    "a logic": "import slicer\nslicer.modules.plots.logic().ShowChart(chart)",
    "a settings object": "import slicer\nslicer.app.userSettings().get('a')",
    "a property": "import qt\nqt.QTimer().intervall = 3",
    "a property of a variable": "import qt\nlabel = qt.QLabel()\nlabel.wordwrap = True",
    "a property that is called": "import qt\nqt.QPushButton('Go').text()",
    "a class": "import qt\nqt.QPushButtn()",
    "a keyword of Qt's": "import qt\nqt.QLabel(text='Go')",
    "an enumeration": "import qt\nqt.QProcess.NotRuning",
    "a constant": "import slicer\nslicer.vtkMRMLSegmentationNode.EditAllowedNowhere",
    "an event": "import slicer\nslicer.vtkMRMLScene.StartCloseEvents",
    "a VTK class": "import vtk\nvtk.vtkTransfrm()",
    "a method of VTK's": "import vtk\ntransform = vtk.vtkTransform()\ntransform.Rotate(1)",
    "a widget": "def f(ui):\n    ui.segmentButon.enabled = True",
    "a property of a widget": "def f(ui):\n    ui.segmentButton.enable = True",
    "a signal of a widget": "def f(ui):\n    ui.segmentButton.connect('click()', g)",
    "a signal of something": "def f(button):\n    button.connect('click()', g)",
    "a method of something of VTK's": "def f(thing):\n    thing.GetNaem()",
    "a method of something of Qt's": "def f(thing):\n    thing.setTextt('a')",
    "a method of a segmentation": "def f(segmentation):\n    segmentation.GetSegmentation().AddSegmnt()",
    "a method of a base": BASES
    + "class W(Base):\n    def f(self):\n        self.resourcePaths('a')",
    "a call of a base": BASES + "class W(Base):\n    def f(self):\n        Base.setup(self, 1)",
    "a method of an effect": EFFECT
    + "class E(Base):\n    def f(self):\n        self.scriptedEffect.addOptionWidget(1)",
    "a method of the database": "def f(database):\n    database.filesForSerie('1')",
    "a value for the database": "import slicer\ngetattr(slicer, 'dicomDatabase', None).patients(1)",
    "what a function gives": "import qt\ndef made():\n    button = qt.QPushButton('Go')\n"
    "    return button\nclass C:\n    def __init__(self):\n        self._button = made()\n"
    "    def f(self):\n        self._button.enable = True",
}


@pytest.mark.parametrize("text", OFFENCES.values(), ids=OFFENCES)
def test_what_slicer_does_not_have_is_found(text: str) -> None:
    assert source(text).check()


CUSTOMS = [
    "import slicer.util\nslicer.util.infoDisplay('Done', windowTitle='MedSegAI', detailedText='x')",
    "import slicer\nslicer.app.connect('startupCompleted()', f)",
    "import qt\nqt.QProcess().connect('bytesWritten(qint64)', f)",
    "import logging\nlogging.getLogger('a')",
    "import slicer\nslicer.modules.plots.logic().ShowChartInLayout(chart)",
    "import qt\nclass Filter(qt.QWidget):\n    def f(self):\n        self.removeEventFilter(self)",
    BASES + "class W(Base):\n    def f(self):\n        Base.setup(self)",
    "import PyTorchUtils\nPyTorchUtils.PyTorchUtilsLogic().installTorch(askConfirmation=False)",
]


@pytest.mark.parametrize("text", CUSTOMS)
def test_what_slicer_has_passes(text: str) -> None:
    assert source(text).check() == []

"""Each rule that a stand-in keeps is enforced, or the tests of the Slicer side would prove little."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import slicer

import segment_editor
import slicer_application
import slicer_facts
from slicer_facts import NotInSlicer
from stand_ins import faced, function, heard, like, put, put_module, put_object

SOURCES = sorted(Path(__file__).parent.glob("*.py"))
REGISTER = "SampleData.SampleDataLogic.registerCustomSampleDataSource"


def test_a_function_takes_what_slicers_takes() -> None:
    register = heard(REGISTER, lambda given: given)
    assert register("MedSegAI", sampleName="Head") == {"category": "MedSegAI", "sampleName": "Head"}
    with pytest.raises(TypeError, match="sampleDescription"):
        register(category="MedSegAI", sampleDescription="A head")
    ask = function("slicer.util.confirmYesNoDisplay", lambda text, windowTitle: (text, windowTitle))
    assert ask("Go on?", windowTitle="MedSegAI") == ("Go on?", "MedSegAI")
    with pytest.raises(TypeError, match="text"):
        ask(windowTitle="MedSegAI")


def test_what_slicer_does_not_have_cannot_be_put_into_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotInSlicer):
        put(monkeypatch, "slicer.util.mainWindw", lambda: None)
    with pytest.raises(NotInSlicer):
        put_module(monkeypatch, "SampleData", {"SampleDataLogic.register": lambda: None})
    with pytest.raises(NotInSlicer):
        put_object(monkeypatch, "app", "qSlicerNoApplication", SimpleNamespace())


def test_an_object_offers_what_slicers_offers(application: Any) -> None:
    assert slicer.app.applicationName == "Slicer"
    with pytest.raises(NotInSlicer):
        slicer.app.quitting  # noqa: B018  (the test's own)
    with pytest.raises(NotInSlicer):
        slicer.app.connect("startupDone()", print)
    with pytest.raises(NotInSlicer):
        slicer.app.applicatonName = "Slicer"
    with pytest.raises(NotInSlicer):
        slicer.modules.segmentation  # noqa: B018
    with pytest.raises(TypeError, match="takes no keywords"):
        slicer.app.userSettings().value(key="a")
    with pytest.raises(TypeError, match="does not take 2"):
        faced(SimpleNamespace(mrmlScene=print), "qMRMLNodeComboBox").mrmlScene(1, 2)


def test_what_the_stand_in_lacks_is_told_apart_from_what_slicer_lacks() -> None:
    empty = faced(SimpleNamespace(), "qMRMLSegmentEditorWidget")
    with pytest.raises(AttributeError) as lacking:
        empty.setCurrentSegmentID("a")
    assert not isinstance(lacking.value, NotInSlicer)


def test_a_class_has_the_signatures_of_slicers() -> None:
    path = "slicer.ScriptedLoadableModule.ScriptedLoadableModuleWidget"
    with pytest.raises(NotInSlicer, match="resourcePath"):

        @like(path)
        class Widget:
            def resourcePath(self, name: str) -> str:
                return name

    with pytest.raises(NotInSlicer, match="reload"):

        @like(path)
        class Other:
            def reload(self) -> None: ...


@pytest.mark.parametrize(
    ("made", "kind"),
    [
        (segment_editor.ScriptedEffect, segment_editor.KIND),
        (segment_editor.ModificationModes, segment_editor.KIND),
        (segment_editor.EffectFactory, "qSlicerSegmentEditorEffectFactory"),
        (slicer_application.Settings, "QSettings"),
    ],
)
def test_what_a_stand_in_for_a_qt_class_offers_is_there(made: type, kind: str) -> None:
    fact = slicer_facts.qt_class(kind)
    assert fact is not None
    offered = {name for name in vars(made) if not name.startswith("_")}
    assert {name for name in offered if not fact.has(name)} == set()


def test_modes_are_those_of_slicer() -> None:
    modes = slicer_facts.enumeration(segment_editor.KIND, "ModificationMode")
    assert {name: getattr(segment_editor.ModificationModes, name) for name in modes} == modes
    answers = slicer_facts.enumeration(segment_editor.KIND, "ConfirmationResult")
    assert {name: getattr(segment_editor.ScriptedEffect, name) for name in answers} == answers


# --- the tests themselves --------------------------------------------------------------------------

APPLICATION = re.compile(r"slicer(\.(app|util|modules))?$")


def loose(source: str) -> list[str]:
    """Where a test puts something into Slicer that nothing holds to the facts, or lets a fake take everything."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.Lambda) and node.args.kwarg is not None:
            name = node.args.kwarg.arg
            if not _passes_on(node, name):
                found.append(f"{node.lineno}: takes **{name} and does not pass it on")
        elif isinstance(node, ast.Call) and len(node.args) == 3:
            place = ast.unparse(node.args[0])
            if _calls(node, "setattr") and _sets_slicer(place, node.args[2]):
                found.append(f"{node.lineno}: sets an attribute of {place}")
            elif _calls(node, "setitem") and place == "sys.modules" and _makes_module(node):
                found.append(f"{node.lineno}: makes a module of Slicer")
    return found


def _calls(node: ast.Call, method: str) -> bool:
    return isinstance(node.func, ast.Attribute) and node.func.attr == method


def _makes_module(node: ast.Call) -> bool:
    name, made = node.args[1:]
    return (
        isinstance(name, ast.Constant)
        and _is_slicers(str(name.value))
        and ast.unparse(made) != "None"
    )


def _passes_on(node: ast.FunctionDef | ast.Lambda, name: str) -> bool:
    """A function may collect what another function, with another signature, is given."""
    calls = (each for each in ast.walk(node) if isinstance(each, ast.Call | ast.Dict | ast.BinOp))
    return any(re.search(rf"\*\*{name}\b|\| {name}\b", ast.unparse(each)) for each in calls)


def _sets_slicer(place: str, made: ast.expr) -> bool:
    """A face may be set, and what was made with one before."""
    is_face = ast.unparse(made) == "database" or "faced(" in ast.unparse(made)
    return bool(APPLICATION.match(place)) and not is_face


def _is_slicers(name: str) -> bool:
    return slicer_facts.has_python(name) or name == "PyTorchUtils"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_no_test_uses_a_loose_stand_in(path: Path) -> None:
    if path.name in ("stand_ins.py", "slicer_application.py", "segment_editor.py"):
        pytest.skip("here the stand-ins are made")
    assert loose(path.read_text()) == []


@pytest.mark.parametrize(
    "source",
    [
        "def register(**source): registered.append(source)",
        "call = lambda **named: None",
        "monkeypatch.setattr(slicer.util, 'mainWindow', lambda: None)",
        "monkeypatch.setattr(slicer, 'app', Application())",
        "monkeypatch.setitem(sys.modules, 'SampleData', module)",
    ],
)
def test_a_loose_stand_in_is_found(source: str) -> None:
    assert loose(source)


def test_modules_are_put_away_again(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        put_module(patch, "SampleData", {"SampleDataLogic.downloadMRHead": lambda: "head"})
        import SampleData

        assert SampleData.SampleDataLogic.downloadMRHead() == "head"
    assert "SampleData" not in sys.modules

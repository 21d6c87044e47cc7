"""The Segment Editor without its widgets: what an effect is given, on the real vtkSlicerSegmentEditorLogic.

`start` makes the modules that a scripted effect imports, and `load` makes an effect from its file by the rules of
`qSlicerSegmentEditorScriptedEffect::setPythonSource`: the folder names the module, the file names the class.
"""

from __future__ import annotations

import importlib.util
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import slicer
import slicer.util
import vtk

import pythonqt
from stand_ins import Face, behind, faced, like, put


def undo_of(logic: Any) -> Callable[[Any], str]:
    """The undo of a vtkSlicerSegmentEditorLogic, where there is no window."""

    def save(segmentation: Any) -> str:
        node = logic.GetSegmentEditorNode()
        if node is None:
            return "It cannot undo."
        if node.GetSegmentationNode() is not segmentation:
            node.SetAndObserveSegmentationNode(segmentation)
        return "" if logic.SaveStateForUndo() else "It cannot undo."

    return save


class ModificationModes:
    """`slicer.qSlicerSegmentEditorAbstractEffect`; see `ScriptedEffect` for what it has."""

    ModificationModeSet = slicer.vtkSlicerSegmentEditorLogic.ModificationModeSet
    ModificationModeAdd = slicer.vtkSlicerSegmentEditorLogic.ModificationModeAdd
    ModificationModeRemove = slicer.vtkSlicerSegmentEditorLogic.ModificationModeRemove
    ModificationModeRemoveAll = slicer.vtkSlicerSegmentEditorLogic.ModificationModeRemoveAll


KIND = "qSlicerSegmentEditorScriptedEffect"


class ScriptedEffect:
    """A qSlicerSegmentEditorScriptedEffect, of which the script sees a `Face`."""

    NotConfirmed, ConfirmedWithoutDialog, ConfirmedWithDialog = range(3)

    def __init__(self) -> None:
        self.name = self.title = ""
        self.perSegment = True
        self.logic: Any = None
        self.actors: dict[Any, list[Any]] = {}
        self.options: list[Any] = []
        self.confirmation = 1
        self._python: Any = None

    def setPythonSource(self, path: str) -> bool:
        file = Path(path)
        assert "\\" not in path
        assert file.suffix == ".py"
        module = sys.modules.get(file.parent.name)
        if not hasattr(module, file.stem):
            spec = importlib.util.spec_from_file_location(file.parent.name, file)
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            sys.modules[file.parent.name] = module
            spec.loader.exec_module(module)
        assert file.stem.endswith("Effect")
        self._python = getattr(module, file.stem)(faced(self, KIND))
        return True

    def self(self) -> Any:
        return self._python

    def parameterSetNode(self) -> Any:
        return self.logic.GetSegmentEditorNode()

    def scene(self) -> Any:
        return self.parameterSetNode().GetScene()

    def sourceVolumeImageData(self) -> Any:
        assert self.logic.UpdateAlignedSourceVolume()
        return self.logic.GetAlignedSourceVolume()

    def maskLabelmap(self) -> Any:
        assert self.logic.UpdateMaskLabelmap()
        return self.logic.GetMaskLabelmap()

    def saveStateForUndo(self) -> None:
        assert self.logic.SaveStateForUndo()

    def modifySegmentByLabelmap(
        self, segmentation: Any, segment_id: str, labelmap: Any, mode: int
    ) -> None:
        self.logic.ModifySegmentByLabelmap(
            segmentation, segment_id, labelmap, mode, self.perSegment, False
        )

    def confirmCurrentSegmentVisible(self) -> int:
        return self.confirmation

    # parameters

    def _key(self, name: str) -> str:
        return f"{self.name}.{name}"

    def setParameter(self, name: str, value: Any) -> None:
        assert type(value) in (int, float, str), "PythonQt finds no overload"
        self.parameterSetNode().SetAttribute(self._key(name), str(value))

    def setParameterDefault(self, name: str, value: Any) -> None:
        if self.parameterSetNode().GetAttribute(self._key(name)) is None:
            self.setParameter(name, value)

    def integerParameter(self, name: str) -> int:
        return int(self.parameterSetNode().GetAttribute(self._key(name)) or 0)

    def doubleParameter(self, name: str) -> float:
        return float(self.parameterSetNode().GetAttribute(self._key(name)) or 0.0)

    # widgets and views

    def addOptionsWidget(self, widget: Any) -> None:
        self.options.append(widget)

    def addLabeledOptionsWidget(self, label: str, widget: Any) -> Any:
        self.options.append(widget)
        return widget

    def addActor2D(self, view: Any, actor: Any) -> None:
        self.actors.setdefault(behind(view), []).append(actor)

    def removeActor2D(self, view: Any, actor: Any) -> None:
        self.actors[behind(view)].remove(actor)

    def scheduleRender(self, view: Any) -> None:
        """Views are not drawn here."""


@like(
    "SegmentEditorEffects.AbstractScriptedSegmentEditorEffect.AbstractScriptedSegmentEditorEffect"
)
class AbstractScriptedSegmentEditorEffect:
    def __init__(self, scriptedEffect: Any) -> None:
        self.scriptedEffect = scriptedEffect

    def register(self) -> None:
        slicer.qSlicerSegmentEditorEffectFactory.instance().registerEffect(self.scriptedEffect)

    def xyToRas(self, xy: Any, viewWidget: Any) -> list[float]:
        to_ras = viewWidget.mrmlSliceNode().GetXYToRAS()
        return list(to_ras.MultiplyPoint((float(xy[0]), float(xy[1]), 0.0, 1.0))[:3])


class EffectFactory:
    """The one qSlicerSegmentEditorEffectFactory."""

    def __init__(self) -> None:
        self.effects: list[Any] = []

    def instance(self) -> Any:
        return faced(self, "qSlicerSegmentEditorEffectFactory")

    def registerEffect(self, effect: Any) -> bool:
        assert isinstance(effect, Face)
        if effect.name in [known.name for known in self.effects]:
            return False
        self.effects.append(effect)
        return True

    def registeredEffects(self) -> tuple[Any, ...]:
        return tuple(self.effects)


class SliceView:
    """A qMRMLSliceWidget of 200 x 160 pixels, a quarter of a millimetre each."""

    def __init__(self, scene: Any, kind: str = "qMRMLSliceWidget") -> None:
        self._kind = kind
        self._node = slicer.vtkMRMLSliceNode()
        self._node.SetLayoutName("Red")
        self._node.SetName("Red")
        scene.AddNode(self._node)
        self._node.SetDimensions(200, 160, 1)
        self._node.SetFieldOfView(50, 40, 1)

    def className(self) -> str:
        return self._kind

    def mrmlSliceNode(self) -> Any:
        return self._node

    def show_plane(self, center: Any, right: Any, up: Any) -> None:
        """Show the plane through a point of the world that has these directions to the right and up."""
        self._node.SetSliceToRASByNTP(*_cross(right, up), *right, *center, 0)

    def xy(self, ras: Any) -> tuple[int, int]:
        """The pixel that shows a point of the world."""
        inverse = vtk.vtkMatrix4x4()
        vtk.vtkMatrix4x4.Invert(self._node.GetXYToRAS(), inverse)
        x, y, _z, _one = inverse.MultiplyPoint((*ras, 1.0))
        return round(x), round(y)


def _cross(first: Any, second: Any) -> tuple[float, float, float]:
    out = [0.0, 0.0, 0.0]
    vtk.vtkMath.Cross(list(first), list(second), out)
    return out[0], out[1], out[2]


class Mouse:
    """What a user does over a view."""

    def __init__(self, effect: Any, view: SliceView) -> None:
        self.interactor, self._effect, self._view = vtk.vtkRenderWindowInteractor(), effect, view

    def send(self, event: int) -> bool:
        shown = faced(self._view, "qMRMLSliceWidget")
        answer = self._effect.processInteractionEvents(self.interactor, event, shown)
        assert answer in (True, False), "Slicer takes a bool only"
        return bool(answer)

    def at(self, ras: Any) -> None:
        self.interactor.SetEventPosition(*self._view.xy(ras))

    def press(self, ras: Any) -> bool:
        self.at(ras)
        return self.send(vtk.vtkCommand.LeftButtonPressEvent)

    def move(self, ras: Any) -> bool:
        self.at(ras)
        return self.send(vtk.vtkCommand.MouseMoveEvent)

    def release(self) -> bool:
        return self.send(vtk.vtkCommand.LeftButtonReleaseEvent)

    def stroke(self, *points: Any, keys: tuple[str, ...] = ()) -> None:
        self.hold(*keys)
        self.press(points[0])
        for point in points[1:]:
            self.move(point)
        self.release()
        self.hold()

    def hold(self, *keys: str) -> None:
        """Hold these of Control, Shift and Alt, and no other."""
        self.interactor.SetControlKey(int("Control" in keys))
        self.interactor.SetShiftKey(int("Shift" in keys))
        self.interactor.SetAltKey(int("Alt" in keys))

    def type(self, key: str) -> bool:
        self.interactor.SetKeySym(key)
        return self.send(vtk.vtkCommand.KeyPressEvent)


class EditorModule:
    """The page of the module Segment Editor: its `editor` is a qMRMLSegmentEditorWidget."""

    def __init__(self, scene: Any, factory: EffectFactory) -> None:
        self._scene = scene
        self._widget = EditorWidget(scene, factory)
        self.editor = faced(self._widget, "qMRMLSegmentEditorWidget")

    def selectParameterNode(self) -> None:
        self._widget.logic.SetSegmentEditorNode(
            self._scene.AddNewNodeByClass("vtkMRMLSegmentEditorNode")
        )


class EditorWidget:
    """A qMRMLSegmentEditorWidget on the real logic."""

    def __init__(self, scene: Any, factory: EffectFactory) -> None:
        self._scene, self._factory, self._effect = scene, factory, None
        self.logic = slicer.vtkSlicerSegmentEditorLogic()
        self.logic.SetMRMLScene(scene)

    def mrmlSegmentEditorNode(self) -> Any:
        node = self.logic.GetSegmentEditorNode()
        return node if node is not None and self._scene.IsNodePresent(node) else None

    def segmentationNode(self) -> Any:
        return self.mrmlSegmentEditorNode().GetSegmentationNode()

    def setSegmentationNode(self, node: Any) -> None:
        self.mrmlSegmentEditorNode().SetAndObserveSegmentationNode(node)
        self.setCurrentSegmentID(node.GetSegmentation().GetNthSegmentID(0))

    def setSourceVolumeNode(self, node: Any) -> None:
        self.mrmlSegmentEditorNode().SetAndObserveSourceVolumeNode(node)

    def setCurrentSegmentID(self, segment: str) -> None:
        self.mrmlSegmentEditorNode().SetSelectedSegmentID(segment)

    def saveStateForUndo(self) -> None:
        assert self.logic.SaveStateForUndo()

    def undo(self) -> None:
        self.logic.Undo()

    def setActiveEffectByName(self, name: str) -> None:
        if self._effect is not None:
            self._effect.self().deactivate()
        self._effect = None
        for registered in self._factory.effects:
            if registered.name == name:
                self._effect = registered.self().clone()
                behind(self._effect).logic = self.logic
                for call in (
                    "setupOptionsFrame",
                    "setMRMLDefaults",
                    "updateGUIFromMRML",
                    "activate",
                ):
                    getattr(self._effect.self(), call)()

    def activeEffect(self) -> Any:
        return self._effect


def start(patch: pytest.MonkeyPatch) -> EffectFactory:
    """Make the modules and classes that effects use, until the patch is undone."""
    pythonqt.install()
    factory = EffectFactory()
    put(patch, "slicer.util.mainWindow", lambda: None)
    patch.setattr(slicer, "qSlicerSegmentEditorEffectFactory", factory.instance(), raising=False)
    patch.setattr(slicer, "qSlicerSegmentEditorAbstractEffect", ModificationModes, raising=False)
    base = types.ModuleType("SegmentEditorEffects")
    vars(base)["AbstractScriptedSegmentEditorEffect"] = AbstractScriptedSegmentEditorEffect
    effects = types.ModuleType("qSlicerSegmentationsEditorEffectsPythonQt")
    vars(effects)["qSlicerSegmentEditorScriptedEffect"] = new_effect
    patch.setitem(sys.modules, base.__name__, base)
    patch.setitem(sys.modules, effects.__name__, effects)
    patch.delitem(sys.modules, "MedSegAIEffects", raising=False)
    return factory


def new_effect(parent: Any) -> Any:
    """What `qSlicerSegmentEditorScriptedEffect(None)` gives."""
    assert parent is None
    return faced(ScriptedEffect(), KIND)


def open_editor(register: Callable[[], None], factory: EffectFactory, logic: Any) -> ScriptedEffect:
    """Register the effect and activate a clone of it, as the editor widget does."""
    register()
    (registered,) = factory.effects
    effect: ScriptedEffect = behind(registered.self().clone())
    effect.logic = logic
    effect.self().setupOptionsFrame()
    effect.self().setMRMLDefaults()
    effect.self().updateGUIFromMRML()
    return effect

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
from typing import Any, ClassVar

import pytest
import slicer
import slicer.util
import vtk

import pythonqt


class ModificationModes:
    """`slicer.qSlicerSegmentEditorAbstractEffect`."""

    ModificationModeSet = slicer.vtkSlicerSegmentEditorLogic.ModificationModeSet
    ModificationModeAdd = slicer.vtkSlicerSegmentEditorLogic.ModificationModeAdd
    ModificationModeRemove = slicer.vtkSlicerSegmentEditorLogic.ModificationModeRemove
    ModificationModeRemoveAll = slicer.vtkSlicerSegmentEditorLogic.ModificationModeRemoveAll


class ScriptedEffect:
    """`qSlicerSegmentEditorScriptedEffect`: attributes that it does not have cannot be set."""

    NotConfirmed, ConfirmedWithoutDialog, ConfirmedWithDialog = range(3)
    PROPERTIES: ClassVar[set[str]] = {"name", "title", "perSegment", "requireSegments"}

    def __init__(self, parent: Any) -> None:
        assert parent is None
        vars(self).update(
            name="", title="", perSegment=True, logic=None, actors={}, options=[], confirmation=1
        )

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in self.PROPERTIES:
            raise AttributeError(f"qSlicerSegmentEditorScriptedEffect has no property {name!r}")
        vars(self)[name] = value

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
        vars(self)["python"] = getattr(module, file.stem)(self)
        return True

    def self(self) -> Any:
        return vars(self)["python"]

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
        return int(vars(self)["confirmation"])

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
        self.actors.setdefault(view, []).append(actor)

    def removeActor2D(self, view: Any, actor: Any) -> None:
        self.actors[view].remove(actor)

    def scheduleRender(self, view: Any) -> None:
        """Views are not drawn here."""


class AbstractScriptedSegmentEditorEffect:
    def __init__(self, scriptedEffect: ScriptedEffect) -> None:
        self.scriptedEffect = scriptedEffect

    def register(self) -> None:
        slicer.qSlicerSegmentEditorEffectFactory.instance().registerEffect(self.scriptedEffect)

    def xyToRas(self, xy: Any, view: Any) -> list[float]:
        point = (
            view.mrmlSliceNode().GetXYToRAS().MultiplyPoint((float(xy[0]), float(xy[1]), 0.0, 1.0))
        )
        return list(point[:3])


class EffectFactory:
    def __init__(self) -> None:
        self.effects: list[ScriptedEffect] = []

    def instance(self) -> EffectFactory:
        return self

    def registerEffect(self, effect: ScriptedEffect) -> bool:
        if effect.name in [known.name for known in self.effects]:
            return False
        self.effects.append(effect)
        return True


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


class Interactor:
    """The mouse and the keyboard over a view."""

    def __init__(self) -> None:
        self.position = (0, 0)
        self.keys: set[str] = set()
        self.key = ""

    def GetEventPosition(self) -> tuple[int, int]:
        return self.position

    def GetControlKey(self) -> int:
        return int("Control" in self.keys)

    def GetShiftKey(self) -> int:
        return int("Shift" in self.keys)

    def GetAltKey(self) -> int:
        return int("Alt" in self.keys)

    def GetKeySym(self) -> str:
        return self.key


class Mouse:
    """What a user does over a view."""

    def __init__(self, effect: Any, view: SliceView) -> None:
        self.interactor, self._effect, self._view = Interactor(), effect, view

    def send(self, event: int) -> bool:
        answer = self._effect.processInteractionEvents(self.interactor, event, self._view)
        assert answer in (True, False), "Slicer takes a bool only"
        return bool(answer)

    def at(self, ras: Any) -> None:
        self.interactor.position = self._view.xy(ras)

    def press(self, ras: Any) -> bool:
        self.at(ras)
        return self.send(vtk.vtkCommand.LeftButtonPressEvent)

    def move(self, ras: Any) -> bool:
        self.at(ras)
        return self.send(vtk.vtkCommand.MouseMoveEvent)

    def release(self) -> bool:
        return self.send(vtk.vtkCommand.LeftButtonReleaseEvent)

    def stroke(self, *points: Any, keys: tuple[str, ...] = ()) -> None:
        self.interactor.keys = set(keys)
        self.press(points[0])
        for point in points[1:]:
            self.move(point)
        self.release()
        self.interactor.keys = set()

    def type(self, key: str) -> bool:
        self.interactor.key = key
        return self.send(vtk.vtkCommand.KeyPressEvent)


def start(patch: pytest.MonkeyPatch) -> EffectFactory:
    """Make the modules and classes that effects use, until the patch is undone."""
    pythonqt.install()
    factory = EffectFactory()
    patch.setattr(slicer.util, "mainWindow", lambda: None)
    patch.setattr(slicer, "qSlicerSegmentEditorEffectFactory", factory, raising=False)
    patch.setattr(slicer, "qSlicerSegmentEditorAbstractEffect", ModificationModes, raising=False)
    base = types.ModuleType("SegmentEditorEffects")
    vars(base)["AbstractScriptedSegmentEditorEffect"] = AbstractScriptedSegmentEditorEffect
    effects = types.ModuleType("qSlicerSegmentationsEditorEffectsPythonQt")
    vars(effects)["qSlicerSegmentEditorScriptedEffect"] = ScriptedEffect
    patch.setitem(sys.modules, base.__name__, base)
    patch.setitem(sys.modules, effects.__name__, effects)
    patch.delitem(sys.modules, "MedSegAIEffects", raising=False)
    return factory


def open_editor(register: Callable[[], None], factory: EffectFactory, logic: Any) -> ScriptedEffect:
    """Register the effect and activate a clone of it, as the editor widget does."""
    register()
    (registered,) = factory.effects
    effect: ScriptedEffect = registered.self().clone()
    vars(effect)["logic"] = logic
    effect.self().setupOptionsFrame()
    effect.self().setMRMLDefaults()
    effect.self().updateGUIFromMRML()
    return effect

"""Which calls of a source file Slicer would refuse, found without running it, so that a test can trip each rule.

An expression has a kind where it can be told: a module, a class, or an object of Slicer's, Qt's or VTK's. What is
asked of such an expression is held to `slicer_facts`. Where the kind is not known, a name in Slicer's or VTK's
manner has to be that of something at least.
"""

from __future__ import annotations

import ast
import re
import unittest
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any
from xml.etree import ElementTree

import slicer
import vtk

import slicer_facts
from MedSegAILib import slicer_types

OWN = ("MedSegAI", "MedSegAILib", "medsegai")
MODULES = ("slicer", "qt", "ctk", "vtk")
ROLES = {
    "database": "qt:ctkDICOMDatabase",
    "editor": "qt:qMRMLSegmentEditorWidget",
    "effect": "qt:qSlicerSegmentEditorScriptedEffect",
    "scriptedEffect": "qt:qSlicerSegmentEditorScriptedEffect",
    "segmentation": "vtk:vtkMRMLSegmentationNode",
    "ui": "ui:",
}
"""What parameters of these names are, in functions that say no type."""

ANNOTATIONS = {
    "MRMLScene": "vtk:vtkMRMLScene",
    "SegmentationNode": "vtk:vtkMRMLSegmentationNode",
    "VolumeNode": "vtk:vtkMRMLScalarVolumeNode",
    "TableNode": "vtk:vtkMRMLTableNode",
    "SequenceBrowserNode": "vtk:vtkMRMLSequenceBrowserNode",
    "Segment": "vtk:vtkSegment",
    "Segmentation": "vtk:vtkSegmentation",
}
"""What parameters are by the names of `slicer_types` in their annotations."""

EFFECT_ROLES = {
    "view": "qt:qMRMLSliceWidget",
    "interactor": "vtk:vtkRenderWindowInteractor",
}
"""The same for those that the Segment Editor calls."""

EVERYTHING = "*"
"""What a class of a library that is none of Slicer's may inherit."""

TEST_CASE = frozenset(dir(unittest.TestCase))

ATTRIBUTES = {"_ui": "ui:", "_effect": ROLES["effect"], "scriptedEffect": ROLES["effect"]}
"""The same for attributes of `self`."""

CALLS = {
    "GetSegmentation": "vtkSegmentation",
    "GetScene": "vtkMRMLScene",
    "GetSegment": "vtkSegment",
}
"""What methods of VTK give; the facts do not say."""

OBJECTS = {
    "slicer.app": "qt:qSlicerApplication",
    "slicer.mrmlScene": "vtk:vtkMRMLScene",
    "slicer.modules": "modules:",
}


UNTOLD = {"Any", *(name for name, value in vars(slicer_types).items() if value is Any)}
"""Annotations that say nothing of the methods that an object has."""


@dataclass
class Source:
    """One file: what its names and the attributes of its classes are, and what is wrong.

    Attributes:
        text: the source.
        roles: what parameters are by their names.
        widgets: the classes of the widgets that a `ui` has, by their names.
        known: names that are right wherever they stand, such as those of our own functions.
        told: where something was asked of an expression whose kind could be told.
    """

    text: str
    roles: Mapping[str, str] = field(default_factory=lambda: ROLES)
    widgets: Mapping[str, str] = field(default_factory=dict)
    known: frozenset[str] = frozenset()
    problems: list[str] = field(default_factory=list)
    told: set[tuple[int, int]] = field(default_factory=set)
    attributes: dict[str, str] = field(default_factory=dict)
    results: dict[str, str] = field(default_factory=dict)
    inherited: frozenset[str] = frozenset()

    def check(self) -> list[str]:
        """What Slicer would refuse, a line each."""
        tree = ast.parse(self.text)
        names = dict(_imports(tree))
        for _round in range(2):  # what functions give is known after the first
            self.problems.clear()
            self._walk(tree, names)
        return sorted(set(self.problems))

    def _walk(self, tree: ast.Module, names: dict[str, str]) -> None:
        for node in tree.body:
            self._statement(node, names)

    def _statement(self, node: ast.AST, names: dict[str, str]) -> None:
        if isinstance(node, ast.FunctionDef | ast.Lambda):
            self._function(node, names)
            return
        if isinstance(node, ast.Import | ast.ImportFrom):
            names.update(_imports(node))
            return
        if isinstance(node, ast.ClassDef):
            own = frozenset[str]().union(*(self._inherited(base, names) for base in node.bases))
            before, self.inherited = self.inherited, own
            for child in node.body:
                self._statement(child, names)
            self.inherited = before
            return
        for child in ast.iter_child_nodes(node):
            self._statement(child, names)
        if isinstance(node, ast.Assign):
            self._assign(node, names)
        elif isinstance(node, ast.NamedExpr):
            names[node.target.id] = self.kind(node.value, names)
        elif isinstance(node, ast.Call):
            self._call(node, names)
        elif isinstance(node, ast.Attribute):
            self._attribute(node, names)

    def _inherited(self, base: ast.expr, names: Mapping[str, str]) -> frozenset[str]:
        if ast.unparse(base) == "unittest.TestCase":
            return TEST_CASE
        sort, _colon, name = self.kind(base, names).partition(":")
        if sort == "other" or name.startswith("other:"):
            return frozenset({EVERYTHING})
        if sort == "qtclass":
            return slicer_facts.every_name()
        found = slicer_facts.class_names(name) if sort == "pythonclass" else frozenset[str]()
        return found | TEST_CASE if name.endswith("ModuleTest") else found

    def _function(self, node: ast.FunctionDef | ast.Lambda, names: dict[str, str]) -> None:
        inner = dict(names)
        for item in (*node.args.args, *node.args.kwonlyargs):
            untold = item.annotation is None or ast.unparse(item.annotation) in UNTOLD
            told = ANNOTATIONS.get(ast.unparse(item.annotation)) if item.annotation else None
            inner[item.arg] = told or (self.roles.get(item.arg, "") if untold else "")
        body = node.body if isinstance(node.body, list) else [node.body]
        for child in body:
            self._statement(child, inner)
        if isinstance(node, ast.FunctionDef):
            given = {
                self.kind(each.value, inner)
                for each in ast.walk(node)
                if isinstance(each, ast.Return) and each.value is not None
            }
            if len(given) == 1:
                self.results[node.name] = given.pop()

    def _assign(self, node: ast.Assign, names: dict[str, str]) -> None:
        given = self.kind(node.value, names)
        for target in node.targets:
            pairs = [(target, given)]
            if isinstance(target, ast.Tuple):
                values = node.value.elts if isinstance(node.value, ast.Tuple) else []
                kinds = [self.kind(value, names) for value in values]
                pairs = list(zip(target.elts, kinds, strict=False)) if kinds else []
                pairs += [] if kinds else [(each, "") for each in target.elts]
            for place, kind in pairs:
                if isinstance(place, ast.Name):
                    names[place.id] = kind
                elif isinstance(place, ast.Attribute) and ast.unparse(place.value) == "self":
                    before = self.attributes.get(place.attr, kind)
                    none = isinstance(node.value, ast.Constant)
                    self.attributes[place.attr] = kind if before in (kind, "") or none else ""

    # what an expression is

    def kind(self, node: ast.expr | None, names: Mapping[str, str]) -> str:
        """The kind of an expression, such as `qt:QTimer`; "" where it is not known."""
        if isinstance(node, ast.Name):
            return names.get(node.id, "")
        if isinstance(node, ast.Attribute):
            return self._kind_of_attribute(node, names)
        if isinstance(node, ast.Call):
            return self._kind_of_call(node, names)
        return ""

    def _kind_of_attribute(self, node: ast.Attribute, names: Mapping[str, str]) -> str:
        if isinstance(node.value, ast.Name) and node.value.id == "self":
            return self.attributes.get(node.attr, "") or ATTRIBUTES.get(node.attr, "")
        sort, _colon, name = self.kind(node.value, names).partition(":")
        if sort == "module":
            return _member(name, node.attr)
        if sort == "modules":
            return f"slicermodule:{node.attr}"
        if sort == "ui":
            return f"qt:{self.widgets[node.attr]}" if node.attr in self.widgets else ""
        if sort in ("qt", "vtk", "python", "slicermodule"):
            return f"method:{sort}:{name}:{node.attr}"
        if sort in ("qtclass", "vtkclass"):
            return f"method:{sort.removesuffix('class')}:{name}:{node.attr}"
        if sort in ("pythonclass", "other"):
            return f"method:{sort}:{name}:{node.attr}"
        return ""

    def _kind_of_call(self, node: ast.Call, names: Mapping[str, str]) -> str:
        function = node.func
        if isinstance(function, ast.Name) and function.id == "getattr":
            given = node.args[1]
            name = str(given.value) if isinstance(given, ast.Constant) else ""
            return self.kind(ast.Attribute(node.args[0], name, ast.Load()), names)
        sort, _colon, name = self.kind(function, names).partition(":")
        if sort in ("qtclass", "vtkclass", "pythonclass"):
            return f"{sort.removesuffix('class')}:{name}"
        if sort == "function" and name == "slicer.util.childWidgetVariables":
            return "ui:"
        if sort == "other" or name.startswith("other:"):
            return "other:"
        if sort == "method":
            return _result(*name.split(":"))
        if isinstance(function, ast.Name):
            return self.results.get(function.id, "")
        return ""

    # what is wrong

    def _say(self, node: ast.AST, text: str) -> None:
        self.problems.append(f"{getattr(node, 'lineno', 0)}: {text}")

    def _attribute(self, node: ast.Attribute, names: Mapping[str, str]) -> None:
        kind = self.kind(node.value, names)
        sort, _colon, name = kind.partition(":")
        if kind and sort != "other":
            self.told.add((node.lineno, node.col_offset))
        if sort == "module":
            if not _member(name, node.attr):
                self._say(node, f"Slicer has no {name}.{node.attr}")
        elif sort == "modules":
            if node.attr not in slicer_facts.slicer_modules():
                self._say(node, f"Slicer has no module {node.attr}")
        elif sort == "ui":
            if node.attr not in self.widgets:
                self._say(node, f"the .ui file has no widget {node.attr}")
        elif sort in ("qt", "qtclass"):
            self._qt_attribute(node, name)
        elif sort in ("vtk", "vtkclass"):
            if node.attr not in _vtk_names(name):
                self._say(node, f"{name} has no {node.attr}")
        elif sort == "python":
            if not slicer_facts.has_python(f"{name}.{node.attr}"):
                self._say(node, f"{name} has no {node.attr}")
        elif not kind and _in_their_manner(node.attr):
            is_self = ast.unparse(node.value) == "self"
            own = self.known | (self.inherited.union(ATTRIBUTES) if is_self else frozenset())
            if node.attr not in own and EVERYTHING not in own and not _any(node.attr):
                self._say(node, f"nothing in Slicer has a name {node.attr}")

    def _qt_attribute(self, node: ast.Attribute, name: str) -> None:
        fact = slicer_facts.qt_class(name)
        if fact is None or node.attr.startswith("__"):
            return
        if isinstance(node.ctx, ast.Store):
            if not fact.properties.get(node.attr, False) and node.attr not in self.known:
                self._say(node, f"{name} has no property {node.attr} that can be set")
        elif not fact.has(node.attr) and node.attr not in {s.split("(")[0] for s in fact.signals}:
            self._say(node, f"{name} has no {node.attr}")

    def _call(self, node: ast.Call, names: Mapping[str, str]) -> None:
        sort, _colon, name = self.kind(node.func, names).partition(":")
        starred = any(isinstance(item, ast.Starred) for item in node.args)
        if sort in ("function", "pythonclass"):
            self._python_call(node, name, starred)
        elif sort == "method":
            owner, kind, method = name.split(":")
            if owner == "python":
                self._python_call(node, f"{kind}.{method}", starred)
            elif owner == "pythonclass":
                given = node.args and ast.unparse(node.args[0]) == "self"
                bound = ast.Call(node.func, node.args[1:], node.keywords) if given else node
                self._python_call(ast.copy_location(bound, node), f"{kind}.{method}", starred)
            elif owner == "qt":
                self._qt_call(node, kind, method, starred)
            elif owner == "vtk" and node.keywords:
                self._say(node, f"{kind}.{method} takes no keywords")
        elif sort in ("qtclass", "vtkclass") and node.keywords:
            self._say(node, f"{name} takes no keywords")
        elif isinstance(node.func, ast.Attribute) and node.func.attr == "connect":
            self._loose_signal(node)

    def _python_call(self, node: ast.Call, path: str, starred: bool) -> None:
        try:
            real = slicer_facts.signature(path)
        except slicer_facts.NotInSlicer:
            self._say(node, f"Slicer has no {path}")
            return
        named = {item.arg: None for item in node.keywords if item.arg is not None}
        open_ended = starred or len(named) < len(node.keywords)
        try:
            if open_ended:
                real.bind_partial(**named)
            else:
                real.bind(*node.args, **named)
        except TypeError as error:
            self._say(node, f"{path}{real}: {error}")

    def _qt_call(self, node: ast.Call, kind: str, method: str, starred: bool) -> None:
        fact = slicer_facts.qt_class(kind)
        if fact is None:
            return
        if node.keywords:
            self._say(node, f"PythonQt takes no keywords: {kind}.{method}")
        elif method == "connect":
            text = node.args[0]
            if isinstance(text, ast.Constant) and not fact.has_signal(str(text.value)):
                self._say(node, f"{kind} has no signal {text.value}")
        elif method in fact.properties:
            self._say(node, f"{kind}.{method} is a property and cannot be called")
        elif not starred and not fact.takes(method, len(node.args)):
            self._say(node, f"{kind}.{method} does not take {len(node.args)} values")

    def _loose_signal(self, node: ast.Call) -> None:
        """A signal of what nobody knows has to be one of something."""
        text = node.args[0] if node.args else None
        is_signal = isinstance(text, ast.Constant) and "(" in str(text.value)
        if is_signal and str(ast.literal_eval(text)) not in _any_signal():  # type: ignore[arg-type]
            self._say(node, f"nothing in Slicer has a signal {ast.unparse(text)}")  # type: ignore[arg-type]


def _imports(tree: ast.AST) -> Iterator[tuple[str, str]]:
    for node in tree.body if isinstance(tree, ast.Module) else [tree]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.split(".")[0]
                is_theirs = top in MODULES or _is_python(alias.name)
                if top in OWN:
                    continue
                sort = "module" if is_theirs else "other"
                yield alias.asname or top, f"{sort}:{alias.name if alias.asname else top}"
        elif isinstance(node, ast.ImportFrom) and node.module:
            top = node.module.split(".")[0]
            if top in OWN:
                continue
            is_theirs = top in MODULES or _is_python(node.module)
            for alias in node.names:
                kind = _member(node.module, alias.name) if is_theirs else f"other:{alias.name}"
                yield alias.asname or alias.name, kind


def _is_python(module: str) -> bool:
    return module in EFFECT_MODULES or slicer_facts.is_module(module)


EFFECT_MODULES = {"qSlicerSegmentationsEditorEffectsPythonQt": "qSlicerSegmentEditorScriptedEffect"}
"""Modules of PythonQt's own, and the class that each has."""


def _member(module: str, name: str) -> str:
    """The kind of a name in a module; "" where the module has none."""
    path = f"{module}.{name}"
    if path in OBJECTS:
        return OBJECTS[path]
    if slicer_facts.unproven_object(path):
        return f"qt:{slicer_facts.unproven_object(path)}"
    if EFFECT_MODULES.get(module) == name:
        return f"qtclass:{name}"
    if module in ("qt", "ctk", "slicer") and name in slicer_facts.names_of(module):
        return f"qtclass:{name}"
    if module in ("vtk", "slicer") and _vtk_names(name):
        return f"vtkclass:{name}"
    if module == "vtk" and hasattr(vtk, name):
        return f"other:{path}"
    if slicer_facts.is_class(path):
        return f"pythonclass:{path}"
    if slicer_facts.is_module(path):
        return f"module:{path}"
    return f"function:{path}" if slicer_facts.has_python(path) else ""


def _result(owner: str, kind: str, method: str) -> str:
    """The kind of what a method gives."""
    if owner == "slicermodule" and method == "logic":
        return f"vtk:{slicer_facts.slicer_modules()[kind]}"
    if owner == "vtk" and method in CALLS:
        return f"vtk:{CALLS[method]}"
    fact = slicer_facts.qt_class(kind) if owner == "qt" else None
    given = "" if fact is None else fact.returns.get(method, "")
    if kind == "qSlicerApplication" and method == "userSettings":
        return "qt:QSettings"
    if slicer_facts.qt_class(given) is not None:
        return f"qt:{given}"
    return f"vtk:{given}" if _vtk_names(given) else ""


@cache
def _vtk_names(name: str) -> frozenset[str]:
    """What a class of VTK or MRML has: by the facts, and for VTK's own by VTK itself."""
    known = slicer_facts.vtk_names(name)
    if known or not name.startswith("vtk"):
        return known
    found = getattr(slicer, name, None) or getattr(
        vtk, name, None
    )  # the wheel is of the same revision
    return frozenset() if found is None else frozenset(dir(found))


@cache
def _any(name: str) -> bool:
    """Whether anything of Slicer, Qt or VTK has this name."""
    return name in slicer_facts.every_name() or any(hasattr(kind, name) for kind in _vtk_classes())


@cache
def _vtk_classes() -> tuple[type, ...]:
    """VTK's own classes, and those of Slicer as the wheel has them, which is of the facts' revision."""
    return tuple(
        getattr(module, name)
        for module in (vtk, slicer)
        for name in dir(module)
        if name.startswith("vtk")
    )


@cache
def _any_signal() -> frozenset[str]:
    return slicer_facts.every_signal()


def _in_their_manner(name: str) -> bool:
    """VTK writes GetName, Qt setText; ours are snake_case or classes."""
    return bool(re.fullmatch(r"[A-Z][a-z]+[A-Z]\w*|[a-z]+[A-Z]\w*", name))


def widgets_of(ui: str) -> dict[str, str]:
    """The classes of the widgets of a .ui file by their names."""
    tree = ElementTree.fromstring(ui)
    return {item.attrib["name"]: item.attrib["class"] for item in tree.iter("widget")}


def own_names(sources: Iterable[str]) -> frozenset[str]:
    """Functions, classes, and attributes of `self`, that our own files make."""
    found = set()
    for text in sources:
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                found.add(node.name)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                found |= {node.attr} if ast.unparse(node.value) == "self" else set()
    return frozenset(found)

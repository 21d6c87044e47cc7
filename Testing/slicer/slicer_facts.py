"""What the real application offers, read from `slicer_api/`: see the README there.

A name that is not in these facts does not exist in Slicer, unless it belongs to what the build they come from
lacks; of that, `unproven.json` says what the module relies on.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent / "slicer_api"
ANY = -1
"""An arity that is not known."""

ALIASES = {"qint64": "qlonglong", "quint64": "qulonglong", "qreal": "double"}
"""Other names of a type, and the one that the facts have."""

APPLICATION = {
    "slicer.app": "qSlicerApplication",
    "slicer.app.layoutManager()": "qSlicerLayoutManager",
    "slicer.app.ioManager()": "qSlicerIOManager",
    "slicer.app.moduleManager()": "qSlicerModuleManager",
    "slicer.app.userSettings()": "QSettings",
}
"""Objects of the application whose names stand apart, and their classes."""


class NotInSlicer(AttributeError, AssertionError):
    """The application does not have this: what uses it fails for every user."""


@dataclass
class QtClass:
    """A Qt class as PythonQt shows it, with all that it inherits.

    Attributes:
        properties: for each whether it can be set.
        signals: normalized signatures.
        calls: for each method the numbers of arguments that its overloads take; ANY where that is not known.
        returns: for each method the class that it gives, where that is one.
        names: everything else: enumerations, their values, methods without a signature.
    """

    name: str
    properties: dict[str, bool] = field(default_factory=dict)
    signals: set[str] = field(default_factory=set)
    calls: dict[str, set[int]] = field(default_factory=dict)
    returns: dict[str, str] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)

    def has(self, name: str) -> bool:
        return name in self.properties or name in self.calls or name in self.names

    def has_signal(self, signature: str) -> bool:
        """Whether there is a signal of this signature; Qt itself compares types and not their names."""
        wanted = signature.replace(" ", "")
        for alias, name in ALIASES.items():
            wanted = re.sub(rf"\b{alias}\b", name, wanted)
        return wanted in self.signals

    def takes(self, name: str, count: int) -> bool:
        """Whether some overload of a method takes so many arguments."""
        counts = self.calls.get(name, {ANY})
        return ANY in counts or name in self.names or count in counts

    def add(self, entry: dict[str, Any]) -> None:
        self.properties |= {name: fact[1] for name, fact in entry.get("properties", {}).items()}
        self.signals |= set(entry.get("signals", ()))
        for text in (*entry.get("signals", ()), *entry.get("slots", ()), *entry.get("methods", ())):
            given, name, count = _parsed(text)
            self.calls.setdefault(name, set()).add(count)
            if given:
                self.returns[name] = given
        for name, values in entry.get("enums", {}).items():
            self.names |= {name, *values}
        self.names |= set(entry["dir"])


def _parsed(text: str) -> tuple[str, str, int]:
    """What a method gives, its name and its number of arguments, from `vtkMRMLNode* addNode(QString)`."""
    before, _bracket, rest = text.partition("(")
    given, _blank, name = before.rpartition(" ")
    inner = re.sub(r"<[^>]*>", "", rest.rpartition(")")[0])
    return given.rstrip("*& "), name, len(inner.split(",")) if inner else 0


@cache
def _file(name: str) -> dict[str, Any]:
    return dict(json.loads((FOLDER / f"{name}.json").read_text()))


@cache
def qt_class(name: str) -> QtClass | None:
    """A class of Qt, ctk, qMRML or qSlicer; None where nothing is known of it."""
    unproven = _file("unproven")["classes"].get(name)
    if unproven is not None:
        calls = {method: set(counts) for method, counts in unproven["methods"].items()}
        return QtClass(name, properties=dict(unproven["properties"]), calls=calls)
    entries = _file("qt_classes")["classes"]
    if name not in entries:
        return None
    made = QtClass(name)
    chain = [name, *(base for base in entries[name]["bases"] if base in entries)]
    for each in reversed(chain):
        made.add(entries[each])
    for place, kind in APPLICATION.items():
        if kind == name:
            made.names |= set(_file("app_api")["qt"][place]) - made.calls.keys()
    return made


def enumeration(kind: str, name: str) -> dict[str, int]:
    """The values of an enumeration of a Qt class."""
    return dict(_file("qt_classes")["classes"][kind]["enums"][name])


@cache
def vtk_names(name: str) -> frozenset[str]:
    """Everything that a VTK or MRML class offers, inherited or its own; empty where nothing is known of it."""
    facts = _file("app_api")
    if name not in facts["classes"]:
        return frozenset()
    chain = [name, *facts["classes"][name]["bases"]]
    own = (facts["classes"][each]["dir"] for each in chain if each in facts["classes"])
    constants = _file("python_api")["class constants"].get(name, ())
    events = _file("python_api")["vtkMRMLScene events"] if name == "vtkMRMLScene" else ()
    return frozenset().union(facts["vtkObject"], constants, events, *own)


def vtk_classes() -> frozenset[str]:
    """The VTK and MRML classes that the facts describe."""
    return frozenset(_file("app_api")["classes"])


def names_of(module: str) -> frozenset[str]:
    """The classes of the modules `qt` and `ctk`, and the Qt classes of `slicer`."""
    key = {"qt": "qt_names", "ctk": "ctk_names", "slicer": "slicer_q_names"}[module]
    return frozenset(_file("qt_classes")[key])


def slicer_modules() -> dict[str, str]:
    """The modules of the application by their name in `slicer.modules`, and the class of their logic, or ""."""
    modules = _file("python_api")["slicer.modules"]
    return {name: fact["logic"] or "" for name, fact in modules.items()}


@cache
def signature(path: str) -> inspect.Signature:
    """The signature of a Python function or method, such as `slicer.util.mainWindow`, or of a class's `__init__`.

    Raises:
        NotInSlicer: the application has no such function.
    """
    text = _signature_text(path)
    if text is None:
        raise NotInSlicer(f"Slicer has no {path}")
    return parsed_signature(text)


def _signature_text(path: str) -> str | None:
    for name in (path, f"{path}.__init__"):
        if name in _file("unproven")["functions"]:
            return str(_file("unproven")["functions"][name]["signature"])
    path = _canonical(path)
    for module, rest in _splits(path):
        facts = _file("python_api").get(module)
        if not isinstance(facts, dict):
            continue
        if rest in facts.get("functions", {}):
            return str(facts["functions"][rest])
        kind, _dot, method = rest.partition(".")
        if kind in facts.get("classes", {}):
            return _method_text(kind, method or "__init__", facts)
    return None


def _method_text(kind: str, method: str, facts: dict[str, Any]) -> str | None:
    entry = facts["classes"][kind]
    if method in entry["methods"]:
        return str(entry["methods"][method])
    for base in entry["bases"]:
        found = _signature_text(f"{base}.{method}") if base != "object" else None
        if found is not None:
            return found
    return "(self)" if method == "__init__" else None


def _canonical(path: str) -> str:
    """Where a class stands that a package takes from its module of the same name."""
    module, _dot, rest = path.partition(".")
    name, dot, method = rest.partition(".")
    taken = name in _file("python_api").get(module, {}).get("names", ())
    taken = taken and method.partition(".")[0] != name  # else it says so already
    is_class = taken and name in _file("python_api").get(f"{module}.{name}", {}).get("classes", {})
    return f"{module}.{name}.{name}{dot}{method}" if is_class else path


def _splits(path: str) -> Iterator[tuple[str, str]]:
    parts = path.split(".")
    for number in range(len(parts) - 1, 0, -1):
        yield ".".join(parts[:number]), ".".join(parts[number:])


def has_python(path: str) -> bool:
    """Whether the application has this function, class, method, constant or module."""
    if _signature_text(path) is not None or path in _file("python_api"):
        return True
    return any(
        rest in (*facts.get("constants", ()), *facts.get("names", ()))
        for module, rest in _splits(path)
        if isinstance(facts := _file("python_api").get(module), dict)
    )


def is_module(path: str) -> bool:
    """Whether this is a Python module of the application."""
    unproven = {name.partition(".")[0] for name in _file("unproven")["functions"]}
    return path in unproven or (path != "about" and path in _file("python_api"))


def is_class(path: str) -> bool:
    """Whether this is a Python class of the application."""
    if f"{path}.__init__" in _file("unproven")["functions"]:
        return True
    return any(
        rest in facts.get("classes", {})
        for module, rest in _splits(_canonical(path))
        if isinstance(facts := _file("python_api").get(module), dict)
    )


def class_names(path: str) -> frozenset[str]:
    """The methods and attributes of a Python class of the application, inherited or its own."""
    for module, rest in _splits(_canonical(path)):
        facts = _file("python_api").get(module)
        if isinstance(facts, dict) and rest in facts.get("classes", {}):
            entry = facts["classes"][rest]
            bases = (class_names(base) for base in entry["bases"] if "." in base)
            return frozenset().union(entry["methods"], entry.get("attributes", ()), *bases)
    return frozenset()


def unproven_object(path: str) -> str:
    """The class of an object that the build of the facts lacks, such as `slicer.dicomDatabase`; else ""."""
    return str(_file("unproven")["objects"].get(path, {}).get("class", ""))


@cache
def every_name() -> frozenset[str]:
    """Every name that any class of Qt, Slicer or MRML has."""
    kinds = (*_file("qt_classes")["classes"], *_file("unproven")["classes"])
    facts = [fact for fact in map(qt_class, kinds) if fact is not None]
    of_qt = (name for fact in facts for name in (*fact.properties, *fact.calls, *fact.names))
    modules = (item for item in _file("python_api").items() if isinstance(item[1], dict))
    of_python = (
        class_names(f"{module}.{name}")
        for module, entry in modules
        for name in entry.get("classes", ())
    )
    kept = (entry["names"] for entry in _file("unproven")["attributes"].values())
    return frozenset(of_qt).union(*map(vtk_names, vtk_classes()), *of_python, *kept)


@cache
def every_signal() -> frozenset[str]:
    """Every signal that any class has."""
    facts = map(qt_class, _file("qt_classes")["classes"])
    return frozenset().union(*(fact.signals for fact in facts if fact is not None))


def parsed_signature(text: str) -> inspect.Signature:
    """A signature out of its text, without `self`; of defaults only that they are there counts."""
    cleaned = text.removeprefix("static ").partition(" -> ")[0].replace("(...)", "(*arguments)")
    while "<" in cleaned:
        cleaned = re.sub(r"<[^<>]*>", "None", cleaned)
    (function,) = ast.parse(f"def f{cleaned}: pass").body
    assert isinstance(function, ast.FunctionDef)
    given, kinds = function.args, inspect.Parameter
    plain = [
        *((item, kinds.POSITIONAL_ONLY) for item in given.posonlyargs),
        *((item, kinds.POSITIONAL_OR_KEYWORD) for item in given.args),
    ]
    optional = len(plain) - len(given.defaults)
    made = [
        kinds(item.arg, kind, default=kinds.empty if number < optional else None)
        for number, (item, kind) in enumerate(plain)
        if item.arg != "self"
    ]
    if given.vararg:
        made.append(kinds(given.vararg.arg, kinds.VAR_POSITIONAL))
    for item, default in zip(given.kwonlyargs, given.kw_defaults, strict=True):
        made.append(
            kinds(item.arg, kinds.KEYWORD_ONLY, default=kinds.empty if default is None else None)
        )
    if given.kwarg:
        made.append(kinds(given.kwarg.arg, kinds.VAR_KEYWORD))
    return inspect.Signature(made)

"""Stand-ins for what the application has: each takes and offers what the real thing does, and nothing else.

What the real thing is, `slicer_facts` says. A name, keyword, number of arguments, property or signal that it does
not have is an error here as it is there, so that a test cannot pass on what fails for every user.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import sys
import types
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import pytest
import slicer

import slicer_facts
from slicer_facts import NotInSlicer, QtClass

Kind = TypeVar("Kind", bound=type)


def function(path: str, made: Callable[..., Any]) -> Callable[..., Any]:
    """A made-up function behind the signature that the application's function of this path has."""

    @functools.wraps(made)
    def call(*values: Any, **named: Any) -> Any:
        bound = _bound(path, *values, **named)
        return made(*bound.args, **bound.kwargs)

    return call


def heard(path: str, hear: Callable[[dict[str, Any]], Any]) -> Callable[..., Any]:
    """The same for a function that receives its arguments by name."""

    def call(*values: Any, **named: Any) -> Any:
        return hear(dict(_bound(path, *values, **named).arguments))

    return call


def _bound(path: str, *values: Any, **named: Any) -> inspect.BoundArguments:
    real = slicer_facts.signature(path)
    try:
        return real.bind(*values, **named)
    except TypeError as error:
        raise TypeError(f"{path}{real}: {error}") from None


def put(patch: pytest.MonkeyPatch, path: str, made: Callable[..., Any]) -> None:
    """Let a function of the application, such as `slicer.util.mainWindow`, be a made-up one."""
    slicer_facts.signature(path)
    module, _dot, name = path.rpartition(".")
    patch.setattr(importlib.import_module(module), name, function(path, made), raising=False)


def put_module(
    patch: pytest.MonkeyPatch, name: str, content: Mapping[str, Callable[..., Any]]
) -> types.ModuleType:
    """Make a Python module of the application importable, with these of its functions and static methods.

    Args:
        content: functions by their path in the module, such as `SampleDataLogic.registerCustomSampleDataSource`; a
            path that ends with a class, such as `SampleDataLogic`, makes an object of it.

    Raises:
        NotInSlicer: the application has no such function.
    """
    module = types.ModuleType(name)
    for path, made in content.items():
        slicer_facts.signature(f"{name}.{path}")
        checked, (first, _dot, method) = function(f"{name}.{path}", made), path.partition(".")
        if not method:
            vars(module)[first] = checked
            continue
        kind = vars(module).setdefault(first, type(first, (), {}))
        setattr(kind, method, staticmethod(checked))
    patch.setitem(sys.modules, name, module)
    parent, _dot, last = name.rpartition(".")
    if parent == "slicer":
        patch.setattr(slicer, last, module, raising=False)
    return module


def put_object(patch: pytest.MonkeyPatch, name: str, kind: str, made: Any) -> None:
    """Let an object of `slicer`, such as `app`, be a made-up one of this class; None where Slicer has none."""
    patch.setattr(slicer, name, None if made is None else faced(made, kind), raising=False)


def like(path: str) -> Callable[[Kind], Kind]:
    """A class that stands in for a Python class of the application: its public methods have the same signatures.

    Raises:
        NotInSlicer: it has a method that the real class has not, or one with other parameters.
    """

    def check(kind: Kind) -> Kind:
        for name, method in vars(kind).items():
            if not inspect.isfunction(method) or (name.startswith("_") and name != "__init__"):
                continue
            real, own = slicer_facts.signature(f"{path}.{name}"), inspect.signature(method)
            if _shape(real) != _shape(own):
                raise NotInSlicer(f"{path}.{name} is {real}, and the stand-in has {own}")
        return kind

    return check


def _shape(signature: inspect.Signature) -> list[tuple[str, Any, bool]]:
    return [
        (item.name, item.kind, item.default is item.empty)
        for item in signature.parameters.values()
        if item.name != "self"
    ]


def faced(made: Any, kind: str) -> Any:
    """A made-up object as the application would show it: a Qt class through PythonQt."""
    fact = slicer_facts.qt_class(kind)
    if fact is None:
        raise NotInSlicer(f"nothing is known of a class {kind}")
    return Face(made, fact)


class Face:
    """What code under test sees of a stand-in: the names of the real class, called as PythonQt calls them."""

    def __init__(self, made: Any, fact: QtClass) -> None:
        object.__setattr__(self, "_made", made)
        object.__setattr__(self, "_fact", fact)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        fact: QtClass = self._fact
        check_name(fact, name)
        value = getattr(self._made, name)
        if name in fact.properties or not callable(value):
            return value
        return checked_call(fact, name, value)

    def __setattr__(self, name: str, value: Any) -> None:
        check_writable(self._fact, name)
        setattr(self._made, name, value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Face) and other._made is self._made

    def __hash__(self) -> int:
        return hash(id(self._made))


def behind(face: Any) -> Any:
    """The made-up object, for what a test wants to know of it."""
    return face._made


def check_name(fact: QtClass, name: str) -> None:
    """Raises:
    NotInSlicer: the class has nothing of this name.
    """
    if not fact.has(name) and name not in {text.partition("(")[0] for text in fact.signals}:
        raise NotInSlicer(f"{fact.name} has no {name} in Slicer")


def check_writable(fact: QtClass, name: str) -> None:
    """Raises:
    NotInSlicer: the class has no property of this name that can be set.
    """
    if not fact.properties.get(name, False):
        raise NotInSlicer(f"{fact.name} has no property {name!r} that can be set in Slicer")


def check_signal(fact: QtClass, signature: str) -> None:
    """Raises:
    NotInSlicer: the class has no such signal; PythonQt itself would only answer False.
    """
    if not fact.has_signal(signature):
        raise NotInSlicer(f"{fact.name} has no signal {signature} in Slicer")


def checked_call(fact: QtClass, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    """A method that takes what PythonQt takes: no keywords, and as many values as some overload."""

    def call(*values: Any, **named: Any) -> Any:
        if named:
            raise TypeError(f"PythonQt takes no keywords: {fact.name}.{name}({', '.join(named)})")
        if name == "connect" and isinstance(values[0], str):
            check_signal(fact, values[0])
        elif not fact.takes(name, len(values)):
            raise TypeError(f"{fact.name}.{name} does not take {len(values)} values in Slicer")
        return method(*values)

    return call

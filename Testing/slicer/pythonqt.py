"""A module `qt` with PythonQt's manners over PySide6, so that a panel can be tested without Slicer.

Rules of PythonQt, as they show in the application, that hold here too:
- a Qt property is an attribute: `button.text` reads it, `button.text = "a"` writes it, and
  `button.text()` calls a string, a TypeError;
- an attribute that Qt does not have cannot be set: AttributeError;
- `connect("clicked(bool)", function)` and `button.clicked.connect(function)` both connect.
PythonQt answers a misspelt signal with False, which nobody reads; here it is a `NotInSlicer`.
- a name that the class does not have in Slicer's Qt 5 does not exist here, although PySide6's Qt 6 may have it;
  calls take no keywords.
An exception in a slot is printed by both; here it is also kept in `slot_errors`, for a test to check.
"""

from __future__ import annotations

import sys
import types
import weakref
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import shiboken6
from PySide6 import QtCore, QtGui, QtUiTools, QtWidgets

import slicer_facts
from slicer_facts import NotInSlicer, QtClass
from slicer_widgets import STAND_INS, qMRMLNodeComboBox
from stand_ins import check_name, check_signal, check_writable, checked_call

slot_errors: list[BaseException] = []


def _fact(real_class: type) -> QtClass | None:
    """What Slicer has of a class, or of the nearest that it derives from; None for what Qt keeps to itself."""
    known = (slicer_facts.qt_class(base.__name__) for base in real_class.__mro__)
    return next((fact for fact in known if fact is not None), None)


class _Kind(type):
    """Class attributes: enumeration values, nested classes, static methods."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        fact = _fact(cls.real_class)
        if fact is not None:
            check_name(fact, name)
        value = _foreign(getattr(cls.real_class, name))
        return checked_call(fact, name, value) if fact is not None and _is_method(value) else value


class Object(metaclass=_Kind):
    """A Qt object as PythonQt shows it; `_real` is the PySide6 object."""

    real_class: ClassVar[type] = QtCore.QObject
    _real: Any

    def __init__(self, *arguments: Any) -> None:
        object.__setattr__(self, "_real", _real_class(self)(*_native(arguments)))
        if type(self) is not _kinds.get(self.real_class):
            _python_sides[self._real] = self
        if isinstance(self._real, QtCore.QTimer):
            _timers.add(self._real)

    def __getattr__(self, name: str) -> Any:
        fact = _fact(type(self._real))
        assert fact is not None, "every one of them is a QObject"
        check_name(fact, name)
        if name in fact.properties:
            return _foreign(self._real.property(name))
        if name in _signal_names(self._real):
            return _Signal(self._real, name)
        return checked_call(fact, name, _foreign(getattr(self._real, name)))

    def __setattr__(self, name: str, value: Any) -> None:
        fact = _fact(type(self._real))
        assert fact is not None, "every one of them is a QObject"
        if name not in fact.properties and type(self) is not _kinds.get(self.real_class):
            object.__setattr__(self, name, value)  # a Python class of the caller's own
            return
        check_writable(fact, name)
        if not self._real.setProperty(name, _native(value)):
            raise ValueError(f"{fact.name}.{name} does not take {value!r}")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Object) and other._real is self._real

    def __hash__(self) -> int:
        return hash(self._real)

    def className(self) -> str:
        """PythonQt's own: the class in C++."""
        return str(self._real.metaObject().className())

    def connect(self, signature: str, function: Callable[..., Any]) -> bool:
        name = QtCore.QMetaObject.normalizedSignature(signature).data().decode()
        fact = _fact(type(self._real))
        assert fact is not None, "every one of them is a QObject"
        check_signal(fact, name)
        known = getattr(self._real, "cpp_signals", {}).get(name, name)
        if self._real.metaObject().indexOfSignal(known) < 0:
            raise NotInSlicer(f"Qt 6, or the stand-in for {fact.name}, has no signal {signature}")
        arguments = name.partition("(")[2].rstrip(")")
        count = len(arguments.split(",")) if arguments else 0
        slot = _slot(function, count)
        return bool(self._real.connect(self._real, QtCore.SIGNAL(known), slot))


_python_sides: dict[Any, Object] = {}
"""The Python objects of classes that a script derives from Qt's, kept alive as PythonQt keeps them."""

_timers: weakref.WeakSet[QtCore.QTimer] = weakref.WeakSet()
"""Those that scripts made, as long as they are kept."""

VIRTUAL = ("eventFilter",)
"""What a script's class may override, as far as anybody here does."""


def _real_class(wrapped: Object) -> type:
    """The Qt class to make; of a script's own class one that calls what it overrides."""
    kind = type(wrapped)
    overridden = [name for name in VIRTUAL if any(name in vars(base) for base in kind.__mro__)]
    if not overridden:
        return kind.real_class

    def forward(name: str) -> Callable[..., Any]:
        def method(_real: Any, *arguments: Any) -> Any:
            try:
                return getattr(wrapped, name)(*(_foreign(argument) for argument in arguments))
            except BaseException as error:
                slot_errors.append(error)
                raise

        return method

    return type(kind.__name__, (kind.real_class,), {name: forward(name) for name in overridden})


class _Signal:
    def __init__(self, real: Any, name: str) -> None:
        self._signal = getattr(real, name)

    def connect(self, function: Callable[..., Any]) -> None:
        self._signal.connect(_slot(function, None))


def _slot(function: Callable[..., Any], count: int | None) -> Callable[..., None]:
    def slot(*arguments: Any) -> None:
        try:
            function(*(_foreign(argument) for argument in arguments[:count]))
        except BaseException as error:
            slot_errors.append(error)
            raise

    return slot


def _signal_names(real: Any) -> set[str]:
    meta = real.metaObject()
    methods = (meta.method(index) for index in range(meta.methodCount()))
    return {
        method.name().data().decode()
        for method in methods
        if method.methodType() == QtCore.QMetaMethod.MethodType.Signal
    }


_kinds: dict[type, Any] = {}


def _kind(real_class: type) -> Any:
    if real_class not in _kinds:
        is_object = issubclass(real_class, QtCore.QObject)
        meta, base = (_Kind, Object) if is_object else (_ValueKind, Value)
        _kinds[real_class] = meta(real_class.__name__, (base,), {"real_class": real_class})
    return _kinds[real_class]


class Value:
    """A Qt value that is no QObject, such as a colour or the item of a table, with the names that Slicer has."""

    real_class: ClassVar[type]
    _real: Any

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        fact = _fact(type(self._real))
        assert fact is not None, "else it would not be wrapped"
        check_name(fact, name)
        return checked_call(fact, name, _foreign(getattr(self._real, name)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Value) and bool(other._real == self._real)

    def __hash__(self) -> int:
        return hash(self._real)


class _ValueKind(_Kind):
    """Makes values, and gives their enumerations."""

    def __call__(cls, *values: Any) -> Any:
        return _foreign(cls.real_class(*_native(values)))


def _is_value(kind: type) -> bool:
    return (
        kind.__module__.startswith("PySide6") and slicer_facts.qt_class(kind.__name__) is not None
    )


def _is_method(value: Any) -> bool:
    return isinstance(value, types.FunctionType)


def _foreign(value: Any) -> Any:
    """What PySide6 gives, as PythonQt would give it."""
    if isinstance(value, QtCore.QObject):
        wrapped = object.__new__(_kind(type(value)))
        object.__setattr__(wrapped, "_real", value)
        return wrapped
    if isinstance(value, type):
        return _kind(value) if issubclass(value, QtCore.QObject) or _is_value(value) else value
    if _is_value(type(value)):
        wrapped = object.__new__(_kind(type(value)))
        object.__setattr__(wrapped, "_real", value)
        return wrapped
    if isinstance(value, list):
        return tuple(_foreign(item) for item in value)
    if callable(value) and not isinstance(value, types.FunctionType | type):
        return _method(value)
    return value


def _method(function: Callable[..., Any]) -> Callable[..., Any]:
    def method(*arguments: Any) -> Any:
        return _foreign(function(*_native(arguments)))

    return method


def _native(value: Any) -> Any:
    """What a script gives, as PySide6 wants it."""
    if isinstance(value, Object | Value):
        return value._real
    if isinstance(value, tuple | list):
        return type(value)(_native(item) for item in value)
    if isinstance(value, types.FunctionType | types.MethodType):
        return _slot(value, None)
    return value


class Module(types.ModuleType):
    """The module `qt`: all of QtCore, QtGui and QtWidgets in one."""

    def __getattr__(self, name: str) -> Any:
        if name not in slicer_facts.names_of("qt"):
            raise AttributeError(f"module 'qt' has no attribute {name!r} in Slicer")
        for source in (QtCore, QtGui, QtWidgets):
            if hasattr(source, name):
                return _foreign(getattr(source, name))
        raise AttributeError(f"module 'qt' has no attribute {name!r}")


def install() -> None:
    """Make `import qt` work in this process, with an application that needs no screen."""
    if "qt" not in sys.modules:
        sys.modules["qt"] = Module("qt")
    if QtWidgets.QApplication.instance() is None:
        sys.modules["qt"].application = QtWidgets.QApplication(["test", "-platform", "offscreen"])


def load_ui(path: str | Path) -> Object:
    """What `slicer.util.loadUI` does, with stand-ins for the widgets of Slicer and CTK.

    Raises:
        AssertionError: the file sets a property that the widget does not have in Slicer, uses a class that
            neither Qt nor `slicer_widgets` has, or connects what cannot be connected.
    """
    tree = ElementTree.parse(path)
    connections = [
        {part.tag: part.text or "" for part in connection} for connection in tree.iter("connection")
    ]
    for element in tree.getroot().findall("connections"):
        tree.getroot().remove(element)
    loader = QtUiTools.QUiLoader()
    for stand_in in STAND_INS:
        loader.registerCustomWidget(stand_in)
    content = QtCore.QBuffer()
    content.setData(ElementTree.tostring(tree.getroot()))
    widget = loader.load(content)
    assert widget is not None, loader.errorString()
    for element in tree.iter("widget"):
        _check_widget(_child(widget, element.attrib["name"]), element)
    for item in connections:
        slot = item["slot"].partition("(")[0]
        receiver = getattr(_foreign(_child(widget, item["receiver"])), slot)
        _foreign(_child(widget, item["sender"])).connect(item["signal"], receiver)
    return _foreign(widget)


def _child(widget: Any, name: str) -> Any:
    found = widget if widget.objectName() == name else widget.findChild(QtCore.QObject, name)
    assert found is not None, f"no widget {name}"
    return found


def _check_widget(widget: Any, element: ElementTree.Element) -> None:
    kind = element.attrib["class"]
    assert widget.metaObject().className() == kind, f"unknown class {kind}"
    fact = slicer_facts.qt_class(kind)
    assert fact is not None, f"Slicer has no class {kind}"
    for item in element.findall("property"):
        check_writable(fact, item.attrib["name"])
        assert widget.metaObject().indexOfProperty(item.attrib["name"]) >= 0, item.attrib["name"]


def new_node_selector() -> Object:
    """What `slicer.qMRMLNodeComboBox()` gives."""
    return _kind(qMRMLNodeComboBox)()


def child_widget_variables(widget: Object) -> types.SimpleNamespace:
    """What `slicer.util.childWidgetVariables` does: the named children as attributes."""
    children = widget._real.findChildren(QtWidgets.QWidget)
    named = {child.objectName(): _foreign(child) for child in (widget._real, *children)}
    return types.SimpleNamespace(**{name: child for name, child in named.items() if name})


def process_events(milliseconds: int = 0) -> None:
    """Let Qt work, at least this long."""
    loop = QtCore.QEventLoop()
    QtCore.QTimer.singleShot(milliseconds, loop.quit)
    loop.exec()


def alive() -> set[QtCore.QObject]:
    """Every window, shown or not, and every timer of a script."""
    return {*QtWidgets.QApplication.topLevelWidgets(), *_timers}


def end(gone: set[QtCore.QObject]) -> None:
    """Stop timers, and destroy windows with all that is in them, as Slicer does when it closes."""
    for item in gone:
        if isinstance(item, QtCore.QTimer):
            item.stop()
        elif shiboken6.isValid(item):
            shiboken6.delete(item)
    for item in [item for item in _python_sides if not shiboken6.isValid(item)]:
        del _python_sides[item]


def real(value: Object) -> Any:
    """The PySide6 object, for what a user would do: click, type, grab a picture."""
    return value._real

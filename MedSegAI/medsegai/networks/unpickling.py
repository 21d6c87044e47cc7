"""Untrusted pickles, read into plain containers by an interpreter that cannot do anything else.

A pickle is a program for a small machine. Python's own `pickle` runs it on real objects. Even a program that may
not call anything can make it allocate gigabytes (the number of a memo slot is trusted) or compare for years
(tuples within tuples as keys). `pickletools` decodes the instructions, and `unpickle` knows the few of them that
`torch.save` writes; every name that a pickle may ask for is in a table that the caller gives.

Source of the meaning of instructions: `pickletools` of the standard library.
"""

from __future__ import annotations

import io
import pickletools
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

MOST_BYTES = 64 << 20
"""The largest size of a pickle in bytes. nnU-Net's pickles with a log of 1000 epochs of 105 classes have 4 MB."""

MOST_INSTRUCTIONS = 4_000_000
"""The largest number of instructions in a pickle; nnU-Net's largest pickles have 1.5 million."""

LARGEST_KEY = 1 << 31
"""Whole numbers used as keys must be smaller, because larger ones can be chosen so that all keys collide."""

NAME_SHOWN = 120
"""The number of letters of a refused name that a message quotes."""


class PickleDamage(ValueError):
    """The pickle ends early, contradicts itself, or holds what `torch.save` never writes."""


class NameRefused(ValueError):
    """The pickle asks for a name that is not in the table; `str` of the error is that name."""


@dataclass
class Inert:
    """Stands for an object of any class: it keeps the attributes and has no behaviour.

    Attributes:
        kind: the full name of the class.
    """

    kind: str
    attributes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Name:
    """An object that a pickle can ask for by name.

    Attributes:
        full_name: module and name.
        make: the function that is called in its place.
    """

    full_name: str
    make: Callable[..., Any]


def inert(full_name: str) -> Name:
    """The name of a class for which an `Inert` is made, whatever its arguments are."""
    return Name(full_name, lambda *_: Inert(full_name))


def table(*names: Name) -> dict[str, Name]:
    """Return `names` by their full names, together with the containers of the standard library."""
    return {name.full_name: name for name in (*CONTAINERS, *names)}


def unpickle(
    program: bytes,
    names: Mapping[str, Name],
    persistent: Callable[[Any], Any],
) -> tuple[Any, int]:
    """Return the object in a pickle, and the number of bytes of `program` that the pickle takes.

    Args:
        program: starts with the pickle.
        names: the objects that the pickle may ask for, by full name.
        persistent: returns the object of a persistent id.

    Raises:
        NameRefused: the pickle asks for another name.
        PickleDamage: the pickle is damaged, or torch did not write it.
    """
    machine = _Machine(names, persistent)
    stream = io.BytesIO(program[:MOST_BYTES])
    try:
        for count, (instruction, argument, _) in enumerate(pickletools.genops(stream)):
            if count == MOST_INSTRUCTIONS:
                raise PickleDamage("it has more instructions than any checkpoint")
            if instruction.name == "STOP":
                break
            step = _STEPS.get(instruction.name)
            if step is None:
                raise PickleDamage(f"torch does not write the instruction {instruction.name}")
            step(machine, argument)
        return machine.result(), stream.tell()
    except (NameRefused, PickleDamage):
        raise
    except (LookupError, TypeError, ValueError, OverflowError, AttributeError, EOFError) as error:
        raise PickleDamage(f"{type(error).__name__}: {error}") from None


_SIZED = (str, bytes, tuple, list, dict, set)


class _Machine:
    """The stack, marks and memo of a pickle that is being read."""

    def __init__(self, names: Mapping[str, Name], persistent: Callable[[Any], Any]) -> None:
        self.stack: list[Any] = []
        self._below: list[list[Any]] = []
        self._memo: dict[int, Any] = {}
        self._names, self._persistent = names, persistent
        self._exported = 0

    def mark(self) -> None:
        self._below.append(self.stack)
        self.stack = []

    def from_mark(self) -> list[Any]:
        values = self.stack
        self.stack = self._below.pop()
        return values

    def result(self) -> Any:
        if self._below or len(self.stack) != 1:
            raise PickleDamage("it does not end with one object")
        return self.stack[0]

    def remember(self, slot: int) -> None:
        self._memo[slot] = self.stack[-1]

    def recall(self, slot: int) -> None:
        self.stack.append(self._memo[slot])

    def name(self, spaced: str) -> None:
        full_name = ".".join(spaced.split(" ", 1))
        if full_name not in self._names:
            raise NameRefused(full_name[:NAME_SHOWN])
        self.stack.append(self._names[full_name])

    def call(self) -> None:
        arguments, called = self.stack.pop(), self.stack.pop()
        if not isinstance(called, Name) or type(arguments) is not tuple:
            raise PickleDamage("it calls an object that cannot be called")
        self._count(arguments, *arguments)
        self.stack.append(called.make(*arguments))

    def build(self) -> None:
        """Give an object its attributes; only stand-ins for objects have attributes."""
        state, target = self.stack.pop(), self.stack[-1]
        self._count(state)
        if isinstance(target, Inert) and isinstance(state, dict):
            target.attributes.update(state)
        elif isinstance(target, Typed):
            target.refine(state)
        elif not isinstance(
            target, OrderedDict
        ):  # its attribute `_metadata` has the versions of layers
            raise PickleDamage(f"it sets attributes of a {type(target).__name__}")

    def _count(self, *values: object) -> None:
        """Keep a pickle from copying one long object again and again."""
        self._exported += sum(
            len(value) // (64 if isinstance(value, str | bytes) else 1)
            for value in values
            if isinstance(value, _SIZED)
        )
        if self._exported > MOST_INSTRUCTIONS:
            raise PickleDamage("it copies its objects too often")

    def persistent(self) -> None:
        self.stack.append(self._persistent(self.stack.pop()))

    def group(self, count: int) -> None:
        if len(self.stack) < count:
            raise PickleDamage("its stack is empty")
        values = tuple(self.stack[len(self.stack) - count :])
        del self.stack[len(self.stack) - count :]
        self.stack.append(values)

    def extend(self, values: Iterable[Any]) -> None:
        if type(self.stack[-1]) is not list:
            raise PickleDamage("it appends to an object that is not a list")
        self.stack[-1].extend(values)

    def update(self, values: list[Any]) -> None:
        if not isinstance(self.stack[-1], dict) or len(values) % 2:
            raise PickleDamage("it sets items of an object that is not a dict")
        pairs = zip(values[::2], values[1::2], strict=True)
        self.stack[-1].update((checked_key(key), value) for key, value in pairs)


class Typed:
    """An object that takes a state of a special kind."""

    def refine(self, state: object) -> None:
        """Take `state`, or raise `PickleDamage`."""
        raise NotImplementedError


def checked_key(key: object) -> str | int:
    """Return a key that can be hashed and compared quickly.

    Raises:
        PickleDamage: the key is neither text nor a whole number of usual size.
    """
    if type(key) is str or (type(key) is int and abs(key) < LARGEST_KEY):
        return key
    raise PickleDamage(f"a {type(key).__name__} is the key of a dict or an element of a set")


def _ordered(pairs: Any = ()) -> OrderedDict[Any, Any]:
    return OrderedDict((checked_key(key), value) for key, value in pairs)


def _encoded(text: str, encoding: str) -> bytes:
    """Return bytes that protocol 2 wrote as text."""
    if encoding != "latin1":
        raise PickleDamage(f"it encodes in {str(encoding)[:20]!r}")
    return text.encode("latin1")


def _set(values: Any = ()) -> set[Any]:
    return {checked_key(value) for value in values}


CONTAINERS = (
    Name("collections.OrderedDict", _ordered),
    Name("builtins.set", _set),
    Name("__builtin__.set", _set),
    Name("_codecs.encode", _encoded),
)


def _push(machine: _Machine, value: object) -> None:
    machine.stack.append(value)


def _constant(make: Callable[[], Any]) -> Callable[[_Machine, Any], object]:
    return lambda machine, _: machine.stack.append(make())


_STEPS: dict[str, Callable[[_Machine, Any], object]] = {
    "PROTO": lambda machine, _: None,
    **dict.fromkeys(
        (
            *(
                "BININT",
                "BININT1",
                "BININT2",
                "LONG1",
                "BINFLOAT",
                "BINUNICODE",
                "SHORT_BINUNICODE",
            ),
            *("BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES"),
        ),
        _push,
    ),
    "NONE": _constant(lambda: None),
    "NEWTRUE": _constant(lambda: True),
    "NEWFALSE": _constant(lambda: False),
    "EMPTY_LIST": _constant(list),
    "EMPTY_DICT": _constant(dict),
    "EMPTY_TUPLE": _constant(tuple),
    "MARK": lambda machine, _: machine.mark(),
    "POP": lambda machine, _: machine.stack.pop(),
    "TUPLE": lambda machine, _: _push(machine, tuple(machine.from_mark())),
    "TUPLE1": lambda machine, _: machine.group(1),
    "TUPLE2": lambda machine, _: machine.group(2),
    "TUPLE3": lambda machine, _: machine.group(3),
    "APPEND": lambda machine, _: machine.extend([machine.stack.pop()]),
    "APPENDS": lambda machine, _: machine.extend(machine.from_mark()),
    "SETITEM": lambda machine, _: machine.update([machine.stack.pop(-2), machine.stack.pop()]),
    "SETITEMS": lambda machine, _: machine.update(machine.from_mark()),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT"), _Machine.remember),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), _Machine.recall),
    "GLOBAL": _Machine.name,
    "REDUCE": lambda machine, _: machine.call(),
    "NEWOBJ": lambda machine, _: machine.call(),
    "BUILD": lambda machine, _: machine.build(),
    "BINPERSID": lambda machine, _: machine.persistent(),
}
"""The instructions of protocol 2 that torch writes, and simple short forms of protocols 3 and 4."""

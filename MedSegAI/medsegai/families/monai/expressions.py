"""Expressions in configurations of MONAI bundles, computed without names, attributes, or calls except a few.

MONAI passes the text after a `$` to Python's `eval`. Here the text is parsed, and a small interpreter computes
constants, references to other entries, arithmetic, comparisons, conditionals, lists, and a few functions such as
`len` and `list`, which are not looked up in Python. Anything else is refused before any part of it is computed.
"""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable
from typing import Any

LONGEST = 2000
"""The largest number of letters in an expression. In the MONAI Model Zoo, segmentation needs at most a hundred."""

LARGEST = 1 << 53
"""The limit of numbers. Floating-point numbers cannot represent all whole numbers above it."""

DEEPEST = 40
"""The largest depth of an expression."""

MOST_ITEMS = 10_000
"""The largest number of items in a list, or letters in a text, that an expression may make."""

REFERENCE = re.compile(r"@(?:[A-Za-z_]\w*)(?:(?:#|::)\w+)*")

CONSTANTS: dict[str, Any] = {
    "monai.utils.CommonKeys.IMAGE": "image",
    "monai.utils.CommonKeys.PRED": "pred",
    "monai.utils.CommonKeys.LABEL": "label",
    **{f"{module}.float32": "float32" for module in ("torch", "np", "numpy")},
    **{f"{module}.float64": "float64" for module in ("torch", "np", "numpy")},
    "torch.float": "float32",
}
"""Expressions that are names of constants. The whole text is compared, and never evaluated as a name."""

_PLACEHOLDER = "reference_"

_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}

_COMPARED: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Is: lambda left, right: left is right,
    ast.IsNot: lambda left, right: left is not right,
}


def _range(*bounds: int) -> list[int]:
    found = range(*bounds)
    if len(found) > MOST_ITEMS:
        raise Refused("it makes too large a value")
    return list(found)


_CALLED: dict[str, Callable[..., Any]] = {
    "len": len,
    "list": list,
    "tuple": list,
    "range": _range,
    "int": lambda value: math.trunc(value),
}
"""The functions that may be called, with constants and references as arguments."""


class Refused(ValueError):
    """Only Python could compute the expression; `str` of the error names the part."""


def evaluate(text: str, refer: Callable[[str], Any]) -> Any:
    """Return the value of an expression.

    Args:
        text: the text after the `$`.
        refer: the function that returns the value of a reference such as `@network_def#in_channels`.

    Raises:
        Refused: it contains a name, a call, an attribute, or anything else that is not arithmetic on constants
            and references; or it is too long, or its value is too large.
    """
    text = text.strip()
    if text in CONSTANTS:
        return CONSTANTS[text]
    tree, references = parse(text)
    try:
        _check(tree, references)
        return _Interpreter(references, refer).value(tree)
    except RecursionError:
        raise Refused("its parts lie too deep within each other") from None


def parse(text: str) -> tuple[ast.expr, dict[str, str]]:
    """Return the syntax tree of an expression, and the reference that each name in it stands for.

    Raises:
        Refused: the text is not an expression of Python, or is too long.
    """
    if len(text) > LONGEST or _PLACEHOLDER in text or not text.isascii():
        raise Refused("it is too long, or has letters that no expression needs")
    references: dict[str, str] = {}

    def name(match: re.Match[str]) -> str:
        references[f"{_PLACEHOLDER}{len(references)}"] = match[0]
        return f" {_PLACEHOLDER}{len(references) - 1} "

    try:
        return ast.parse(REFERENCE.sub(name, text).strip(), mode="eval").body, references
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise Refused("it is not an expression that can be read") from None


def _check(tree: ast.expr, references: dict[str, str], depth: int = 0) -> None:
    """Refuse a tree with an unknown node, even if this node would not be computed."""
    if isinstance(tree, ast.Call):
        known = isinstance(tree.func, ast.Name) and tree.func.id in _CALLED
        if not known or tree.keywords:
            raise Refused("it has a call")
        for argument in tree.args:
            _check(argument, references, depth + 1)
        return
    if not hasattr(_Interpreter, f"_{type(tree).__name__}"):
        raise Refused(f"it has {_KINDS.get(type(tree), 'a ' + type(tree).__name__.lower())}")
    if depth > DEEPEST:
        raise Refused("its parts lie too deep within each other")
    if isinstance(tree, ast.Name) and tree.id not in references:
        raise Refused(f"it has the name {tree.id[:40]!r}")
    for part in ast.iter_child_nodes(tree):
        if isinstance(part, ast.expr):
            _check(part, references, depth + 1)


class _Interpreter:
    """Computes the known nodes of a syntax tree."""

    def __init__(self, references: dict[str, str], refer: Callable[[str], Any]) -> None:
        self._references, self._refer = references, refer

    def value(self, node: ast.expr) -> Any:
        compute: Callable[[Any], Any] = getattr(self, f"_{type(node).__name__}")
        return _checked(compute(node))

    def _Constant(self, node: ast.Constant) -> Any:
        if not isinstance(node.value, str | int | float | None):
            raise Refused(f"it has {type(node.value).__name__}")
        return node.value

    def _Name(self, node: ast.Name) -> Any:
        return self._refer(self._references[node.id])

    def _Call(self, node: ast.Call) -> Any:
        assert isinstance(node.func, ast.Name)
        values = [self.value(part) for part in node.args]
        try:
            return _CALLED[node.func.id](*values)
        except (TypeError, ValueError, OverflowError) as error:
            raise Refused(f"{node.func.id} cannot be called so: {error}") from None

    def _List(self, node: ast.List | ast.Tuple) -> list[Any]:
        return [self.value(item) for item in node.elts]

    _Tuple = _List

    def _IfExp(self, node: ast.IfExp) -> Any:
        return self.value(node.body if self.value(node.test) else node.orelse)

    def _UnaryOp(self, node: ast.UnaryOp) -> Any:
        value = self.value(node.operand)
        if isinstance(node.op, ast.Not):
            return not value
        if isinstance(value, int | float) and isinstance(node.op, ast.USub | ast.UAdd):
            return -value if isinstance(node.op, ast.USub) else +value
        raise Refused("it changes the sign of what is not a number")

    def _BoolOp(self, node: ast.BoolOp) -> Any:
        stops = isinstance(node.op, ast.Or)
        found: Any = None
        for part in node.values:
            found = self.value(part)
            if bool(found) is stops:
                break
        return found

    def _Compare(self, node: ast.Compare) -> bool:
        left = self.value(node.left)
        for kind, part in zip(node.ops, node.comparators, strict=True):
            right = self.value(part)
            if type(kind) not in _COMPARED or isinstance(left, dict) or isinstance(right, dict):
                raise Refused("it compares in an unusual way")
            try:
                if not _COMPARED[type(kind)](left, right):
                    return False
            except TypeError:
                raise Refused("it compares what cannot be compared") from None
            left = right
        return True

    def _BinOp(self, node: ast.BinOp) -> Any:
        left, right = self.value(node.left), self.value(node.right)
        kind = type(node.op)
        numbers = isinstance(left, int | float) and isinstance(right, int | float)
        joined = kind is ast.Add and isinstance(left, str | list) and type(left) is type(right)
        repeated = kind is ast.Mult and isinstance(left, str | list) and type(right) is int
        if kind not in _BINARY or not (numbers or joined or repeated):
            raise Refused("it computes with what are not numbers")
        if repeated and len(left) * right > MOST_ITEMS:
            raise Refused("it makes too large a value")
        try:
            return _BINARY[kind](left, right)
        except (ArithmeticError, ValueError):
            raise Refused("it divides by zero") from None

    def _Subscript(self, node: ast.Subscript) -> Any:
        whole, place = self.value(node.value), self.value(node.slice)
        try:
            if isinstance(whole, list) and type(place) is int:
                return whole[place]
            if isinstance(whole, dict) and isinstance(place, str):
                return whole[place]
        except LookupError:
            raise Refused(f"there is no item {place!r}") from None
        raise Refused("it takes an item of what has none")


_KINDS: dict[type[ast.expr], str] = {
    ast.Call: "a call",
    ast.Attribute: "an attribute",
    ast.Lambda: "a lambda",
    ast.ListComp: "a comprehension",
    ast.GeneratorExp: "a comprehension",
    ast.DictComp: "a comprehension",
    ast.SetComp: "a comprehension",
    ast.JoinedStr: "a formatted text",
    ast.NamedExpr: "an assignment",
}
"""Kinds of refused nodes, in words."""


def _checked(value: Any) -> Any:
    """Return a value after a check of its size."""
    if isinstance(value, int | float) and not (math.isfinite(value) and abs(value) < LARGEST):
        raise Refused("it makes too large a number")
    if isinstance(value, str | list) and len(value) > MOST_ITEMS:
        raise Refused("it makes too large a value")
    return value

"""Figures of the code as a whole: how long functions are, what is documented, how precisely types are named."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import parsed

Function = ast.FunctionDef | ast.AsyncFunctionDef

BROAD = ("Exception", "BaseException")


@dataclass(frozen=True)
class Figures:
    """What `figures_of` counts.

    Attributes:
        median, p95, longest: lines of a function, its signature and docstring included.
        documented: share of public functions, methods and classes with a docstring, 0 to 1. Methods
            of protocols whose body is `...` do not count, because their implementations are documented.
        any_per_1000: how often `Any` stands in 1000 lines.
        broad: handlers of `Exception`, `BaseException` or of everything, alone or among others, and calls of
            `contextlib.suppress` with them.
    """

    median: int
    p95: int
    longest: int
    documented: float
    any_per_1000: float
    broad: int


def figures_of(sources: Iterable[str]) -> Figures:
    """Count over the text of files."""
    lengths: list[int] = []
    documented: list[bool] = []
    lines = uses = broad = 0
    for text in sources:
        lines += len(text.splitlines())
        documented += [ast.get_docstring(node) is not None for node in _public(parsed.tree(text))]
        for node in parsed.nodes(text):
            if isinstance(node, Function):
                lengths.append((node.end_lineno or node.lineno) - node.lineno + 1)
            elif isinstance(node, ast.ExceptHandler):
                broad += node.type is None or _catches_anything(node.type)
            elif isinstance(node, ast.Call) and _last_name(node.func) == "suppress":
                broad += any(map(_catches_anything, node.args))
            elif isinstance(node, ast.Name):
                uses += node.id == "Any"
    lengths.sort()
    return Figures(
        lengths[len(lengths) // 2],
        lengths[int(len(lengths) * 0.95)],
        lengths[-1],
        sum(documented) / len(documented),
        1000 * uses / lines,
        broad,
    )


def _catches_anything(caught: ast.expr) -> bool:
    kinds = caught.elts if isinstance(caught, ast.Tuple) else [caught]
    return any(_last_name(kind) in BROAD for kind in kinds)


def _last_name(node: ast.expr) -> str:
    """The name itself, without the module that it may be written with."""
    return ast.unparse(node).rpartition(".")[2]


def _public(node: ast.AST) -> Iterator[Function | ast.ClassDef]:
    """Functions and classes of a module, and methods of its classes, whose names do not begin with `_`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Function | ast.ClassDef):
            if not child.name.startswith("_") and ast.unparse(child.body[0]) != "...":
                yield child
                if isinstance(child, ast.ClassDef):
                    yield from _public(child)
        else:
            yield from _public(child)

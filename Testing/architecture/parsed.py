"""Source text as a syntax tree, parsed once in a process: many rules look at the same files."""

from __future__ import annotations

import ast
from functools import cache


@cache
def tree(source: str) -> ast.Module:
    """The syntax tree of a file, which no rule may change."""
    return ast.parse(source)


@cache
def nodes(source: str) -> tuple[ast.AST, ...]:
    """All nodes of the tree, as `ast.walk` gives them."""
    return tuple(ast.walk(tree(source)))

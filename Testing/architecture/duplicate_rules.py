"""Places of code that share many lines, as functions over source text.

Two places are the same where their statements are, whatever their indents and comments. Docstrings, imports and
fields that are declared without a value do not count.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import parsed

SHARED_LINES = 5
"""Lines of statements in a row that two places may not share."""

IMPORTS = (ast.Import, ast.ImportFrom)


@dataclass(frozen=True)
class Place:
    """Lines of a file, the first and the last included."""

    path: str
    first: int
    last: int

    def __str__(self) -> str:
        return f"{self.path}:{self.first}-{self.last}"


@dataclass(frozen=True)
class Duplicate:
    """Two places that do the same, and how many lines each of them has at least."""

    one: Place
    other: Place

    @property
    def lines(self) -> int:
        return min(place.last - place.first + 1 for place in (self.one, self.other))

    @property
    def files(self) -> tuple[str, str]:
        """Both files in order, which names a pair however its lines move."""
        first, second = sorted((self.one.path, self.other.path))
        return first, second


@dataclass(frozen=True)
class _Statement:
    """One statement of a block: its lines, and its text without indents and comments."""

    first: int
    last: int
    text: str


def duplicates(sources: Mapping[str, str], shared: int = SHARED_LINES) -> list[Duplicate]:
    """Find runs of statements in one block that stand again elsewhere, the longest first.

    Args:
        sources: text of each file, by its path.
        shared: lines that a run must have.
    """
    blocks = [(path, block) for path, text in sources.items() for block in _blocks(text)]
    places: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for number, (_path, block) in enumerate(blocks):
        for index, statement in enumerate(block):
            places[statement.text].append((number, index))
    found: set[Duplicate] = set()
    for same in places.values():
        for position, one in enumerate(same):
            for other in same[position + 1 :]:
                run = _run(blocks[one[0]][1], one[1], blocks[other[0]][1], other[1])
                if run and one[0] == other[0]:
                    run = min(run, other[1] - one[1])  # a block may not overlap itself
                if run:
                    pair = Duplicate(*(_place(blocks, at, run) for at in (one, other)))
                    if pair.lines >= shared:
                        found.add(pair)
    return sorted(_largest(found), key=lambda pair: (-pair.lines, str(pair.one)))


def _blocks(text: str) -> Iterator[list[_Statement]]:
    """Every list of statements: bodies of functions, classes, loops and conditions, at any depth."""
    lines = text.splitlines()
    for node in parsed.nodes(text):
        for field in ("body", "orelse", "finalbody"):
            statements = getattr(node, field, None)
            if isinstance(statements, list) and not isinstance(node, ast.Module):
                yield [_statement(item, lines) for item in statements if not _is_aside(item)]


def _is_aside(node: ast.stmt) -> bool:
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant)
    return isinstance(node, IMPORTS) or (isinstance(node, ast.AnnAssign) and node.value is None)


def _statement(node: ast.stmt, lines: list[str]) -> _Statement:
    first, last = node.lineno, node.end_lineno or node.lineno
    stripped = (line.strip() for line in lines[first - 1 : last])
    return _Statement(first, last, "\n".join(line for line in stripped if line[:1] not in "#"))


def _run(one: list[_Statement], at: int, other: list[_Statement], then: int) -> int:
    """How many statements from here on are the same; 0 where those before are, too, and counted."""
    if at and then and one[at - 1].text == other[then - 1].text:
        return 0
    count = 0
    while (
        at + count < len(one)
        and then + count < len(other)
        and one[at + count].text == other[then + count].text
    ):
        count += 1
    return count


def _place(blocks: list[tuple[str, list[_Statement]]], at: tuple[int, int], run: int) -> Place:
    path, block = blocks[at[0]]
    return Place(path, block[at[1]].first, block[at[1] + run - 1].last)


def _largest(found: Iterable[Duplicate]) -> list[Duplicate]:
    """Those that are not a part of another one, such as the body of a loop that is a copy as a whole."""
    pairs = sorted(found, key=lambda pair: -pair.lines)
    kept: list[Duplicate] = []
    for pair in pairs:
        if not any(_within(pair.one, big.one) and _within(pair.other, big.other) for big in kept):
            kept.append(pair)
    return kept


def _within(small: Place, big: Place) -> bool:
    return small.path == big.path and big.first <= small.first and small.last <= big.last

"""Batches with the made-up engine that end at a chosen moment, for processes of `warm`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import fake_engine
from medsegai import cli

KILLED = 137
"""The exit code of a process that ends at its moment."""

ACCESSES = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"}


def batch(words: Sequence[str]) -> int:
    """Run the command line with the made-up engine."""
    sys.modules["medsegai.engine"] = fake_engine.as_module()
    return cli.main(words)


def ended_at_move(at: int, words: Sequence[str]) -> int:
    """End before the so many-th file of the case `a` is moved to its place."""
    replace, moves = os.replace, []

    def counting(source: Path, target: Path) -> None:
        if Path(target).name.startswith("a"):
            if len(moves) == at:
                os._exit(KILLED)
            moves.append(target)
        replace(source, target)

    os.replace = counting  # type: ignore[assignment]
    return batch(words)


def ended_at_access(folder: str, at: int, words: Sequence[str]) -> int:
    """End before the so many-th time that anything in a folder is opened, moved, made or removed.

    A run that does not come so far says how often that was.
    """
    touched: list[str] = []

    def count(event: str, arguments: tuple[object, ...]) -> None:
        places = (place for place in arguments if isinstance(place, (str, os.PathLike)))
        if event in ACCESSES and any(folder in str(place) for place in places):
            if len(touched) == at:
                os._exit(KILLED)
            touched.append(event)

    sys.addaudithook(count)
    try:
        return batch(words)
    finally:
        sys.stdout.write(f"{len(touched)}\n")

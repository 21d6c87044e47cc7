"""What commands show at a terminal: progress and tables; and how they react to Ctrl-C."""

from __future__ import annotations

import argparse
import io
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn, TextIO

from medsegai.progress import Progress, ProgressEvent, duration
from medsegai.system.outside_text import one_line, visible

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

BAR_WIDTH = 24
REDRAW_SECONDS = 0.1


def sound_streams() -> None:
    """Make printing never fail, wherever this process was started.

    Letters that the encoding of a stream lacks are replaced: consoles in cp932, gbk or ASCII lack "²" and letters
    of many names, and file names need not be Unicode. Output to streams that were closed (`>&-`) is discarded;
    their file descriptors are occupied, because otherwise a file that is written later would get them, and with
    them the output of libraries.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free descriptor, which is this one
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


class ProgressBar:
    """A line on a terminal that is redrawn in place: stage, bar, percent, time left.

    Nothing is written if `stream` is not a terminal, so logs stay clean.
    """

    def __init__(self, stream: TextIO | None = None, quiet: bool = False) -> None:
        stream = sys.stderr if stream is None else stream
        self._stream = getattr(stream, "drawn_on", stream)
        self._silent = quiet or not self._stream.isatty()
        self._drawn_at = 0.0
        self._stage = ""
        self._width = 0

    def __call__(self, event: ProgressEvent) -> None:
        now = time.monotonic()
        due = now - self._drawn_at >= REDRAW_SECONDS or event.stage != self._stage
        if self._silent or not due:
            return
        self._drawn_at, self._stage = now, event.stage
        self._draw(progress_line(event))

    def clear(self) -> None:
        """Remove the line, so that later output starts on an empty one."""
        if not self._silent:
            self._draw("")
            self._stream.write("\r")
            self._stream.flush()

    def _draw(self, line: str) -> None:
        line = visible(line)[: shutil.get_terminal_size().columns - 1]
        self._stream.write("\r" + line.ljust(self._width))
        self._stream.flush()
        self._width = len(line)


def progress_line(event: ProgressEvent) -> str:
    """Return a line such as `predict axial     [#####-----]  52%  about 40 s left`."""
    filled = round(event.fraction * BAR_WIDTH)
    bar = "#" * filled + "-" * (BAR_WIDTH - filled)
    left = "" if event.seconds_left is None else f"  {duration(event.seconds_left)} left"
    return f"{event.stage:<24} [{bar}] {event.fraction:4.0%}{left}"


def table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    left: int = 1,
    words_last: bool = False,
) -> str:
    """Return text columns under a header; the first `left` columns, and a last column of words, are flush left."""
    flush_left = {*range(left), len(header) - 1 if words_last else 0}
    lines = [list(header), *[list(row) for row in rows]]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column in flush_left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def print_written(paths: Iterable[Path | None]) -> None:
    """Print which files were written; None stands for a file that was not requested."""
    print(one_line(f"Written: {', '.join(str(path) for path in paths if path is not None)}"))


SIGNALS = (signal.SIGINT, signal.SIGTERM)
"""Ctrl-C, and the signal that a shutdown or a job queue sends."""


@contextmanager
def stoppable(progress: Progress) -> Iterator[None]:
    """Within the block, the first Ctrl-C or SIGTERM stops the job at its next step; the second ends it at once.

    Both raise exceptions, so that incomplete files are removed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread can handle signals
        return
    asked = False

    def stop(number: int, _frame: FrameType | None) -> None:
        nonlocal asked
        asked = True
        progress.cancel.set()
        signal.signal(number, _interrupt)
        print(
            "\nThe job stops at its next step. Press Ctrl-C again to stop at once.", file=sys.stderr
        )

    before = {number: signal.signal(number, stop) for number in SIGNALS}
    try:
        yield
        if asked:
            print(
                "The job finished before it could be stopped, and its results were written.",
                file=sys.stderr,
            )
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def shown_progress(
    quiet: bool = False, weights: Mapping[str, float] | None = None
) -> Iterator[Progress]:
    """Draw the progress of a job as a bar until the job ends; it can be stopped, see `stoppable`.

    Args:
        quiet: whether nothing is drawn.
        weights: the expected share of time of each stage, as in `Progress`.
    """
    bar = ProgressBar(quiet=quiet)
    progress = Progress(bar, weights=weights or {})
    try:
        with stoppable(progress):
            yield progress
    finally:
        bar.clear()


@contextmanager
def terminable() -> Iterator[None]:
    """Within the block, SIGTERM raises KeyboardInterrupt, as Ctrl-C does, so that incomplete files are removed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    owner = os.getpid()

    def terminate(number: int, frame: FrameType | None) -> None:
        if os.getpid() != owner:  # a fork by a library
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        _interrupt(number, frame)

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt

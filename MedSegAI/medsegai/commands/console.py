"""What commands say to a person at a terminal: progress, tables, and Ctrl-C."""

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
    """Let printing never fail, wherever this process was started.

    Letters that the encoding of a stream lacks are replaced: consoles in cp932, gbk or ASCII lack "²" and letters
    of many names, and file names need not be Unicode. What is printed to streams that were closed (`>&-`) goes
    nowhere; their numbers are taken, or a file that is written later would get them, and what libraries print.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free, which is this one
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


class ProgressBar:
    """One line on a terminal, drawn over itself: stage, bar, percent, time left.

    Writes nothing where `stream` is not a terminal, so logs stay clean.
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
        """Take the line away, so that what follows starts on an empty one."""
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
    """For example `predict axial     [#####-----]  52%  about 40 s left`."""
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
    """Text columns under a header; the first `left` ones, and a last one of words, are flush left."""
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
    """Say which files there are now; None stands for one that was not asked for."""
    print(one_line(f"Written: {', '.join(str(path) for path in paths if path is not None)}"))


SIGNALS = (signal.SIGINT, signal.SIGTERM)
"""Ctrl-C, and what a computer that shuts down or a queue of jobs sends."""


@contextmanager
def stoppable(progress: Progress) -> Iterator[None]:
    """Within, the first Ctrl-C or SIGTERM asks the job to stop at its next step, the second ends it at once.

    Both leave through exceptions, so that files being written are taken away.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # signals can be handled in the main thread only; others stop through `progress.cancel`
        return
    asked = False

    def stop(number: int, _frame: FrameType | None) -> None:
        nonlocal asked
        asked = True
        progress.cancel.set()
        signal.signal(number, _interrupt)
        print("\nStopping at the next step. Ctrl-C again stops at once.", file=sys.stderr)

    before = {number: signal.signal(number, stop) for number in SIGNALS}
    try:
        yield
        if asked:
            print(
                "The work was finished before it could be stopped, and its results were written.",
                file=sys.stderr,
            )
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def shown_progress(
    quiet: bool = False, weights: Mapping[str, float] | None = None
) -> Iterator[Progress]:
    """The progress of a job that is drawn as a bar until the job ends, and that can be stopped: see `stoppable`.

    Args:
        quiet: whether nothing is drawn.
        weights: what each stage is expected to take, as in `Progress`.
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
    """Within, SIGTERM leaves as Ctrl-C does, through KeyboardInterrupt, so that nothing half-written stays."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    owner = os.getpid()

    def terminate(number: int, frame: FrameType | None) -> None:
        if os.getpid() != owner:  # in a process that a library made of this one, it means the end
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

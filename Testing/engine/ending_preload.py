"""Ends processes at the so many-th access to the folder of results, also from a worker of Dask that preloads it.

In a worker, the accesses of the first case count, and the signal goes to the driver, its parent, or to the group.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import fake_engine
from medsegai.progress import Progress
from medsegai.request import SegmentationRequest, SegmentationResult
from medsegai.volume import Volume

ACCESSES = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"}
FIRST = "sub-1"
ORDER = "MEDSEGAI_TEST_END"
"""The variable of the environment with what a worker shall do, as JSON."""


class Countdown:
    """An audit hook that ends a process before an access to a folder.

    Args:
        folder: the folder.
        at: the number of accesses before.
        number: the signal.
        end: the function that sends it; to this process if None.
    """

    def __init__(
        self, folder: Path | str, at: int, number: int, end: Callable[[int], None] | None = None
    ) -> None:
        self._folder, self._at, self._number = str(folder), at, number
        self._end = end or (lambda number: os.kill(os.getpid(), number))
        self.seen = 0

    def __call__(self, event: str, arguments: tuple[object, ...]) -> None:
        if event not in ACCESSES:
            return
        if any(isinstance(it, (str, os.PathLike)) and self._folder in str(it) for it in arguments):
            self.seen += 1
            if self.seen == self._at + 1:
                self._end(self._number)


def order(folder: Path, at: int, number: int, where: str, count: Path) -> None:
    """Say what the workers that are started next shall do.

    Args:
        folder: the folder of results.
        at: the number of accesses before the end.
        number: the signal.
        where: `all` to end all processes, else the driver alone.
        count: the file that gets one byte for each access.
    """
    count.write_bytes(b"")
    words = {"folder": str(folder), "at": at, "number": int(number), "all": where == "all"}
    os.environ[ORDER] = json.dumps(words | {"count": str(count)})


class _Worker:
    """The engine of a worker: it counts while the first case is done."""

    def __init__(self, folder: str, at: int, number: int, **more: object) -> None:
        self._counts = False
        self._file = os.open(str(more["count"]), os.O_WRONLY | os.O_APPEND)
        self._ended = more["all"]
        self._countdown = Countdown(folder, at, number, self._end)

    def _end(self, number: int) -> None:
        if self._ended:
            os.killpg(0, number)
        os.kill(os.getppid(), number)

    def segment(
        self, request: SegmentationRequest, progress: Progress | None = None
    ) -> SegmentationResult:
        scan = request.inputs[0]
        assert not isinstance(scan, Volume)
        self._counts = FIRST in scan.name
        return fake_engine.segment(request, progress)

    def see(self, event: str, arguments: tuple[object, ...]) -> None:
        if not self._counts:
            return
        before = self._countdown.seen
        self._countdown(event, arguments)
        if self._countdown.seen > before:
            os.write(self._file, b"x")


def dask_setup(_worker: object) -> None:
    """Called by Dask in the worker alone."""
    worker, module = _Worker(**json.loads(os.environ[ORDER])), fake_engine.as_module()
    module.segment = worker.segment  # type: ignore[attr-defined]
    sys.modules["medsegai.engine"] = module
    sys.addaudithook(worker.see)

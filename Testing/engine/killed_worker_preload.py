"""Ends a worker of Dask that preloads this file at the so many-th access to the folder of results, by SIGKILL.

The number is the end of the name of the scan, such as `scan-12.nii.gz`.
The second worker that has it is left alone.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import fake_engine
from medsegai.progress import Progress
from medsegai.request import SegmentationRequest, SegmentationResult
from medsegai.volume import Volume

ACCESSES = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"}
OUT = "out"
"""The name of the folder of results."""

_left: list[int] = []
"""How many accesses are left to this worker; empty while it is left alone."""


def segment(request: SegmentationRequest, progress: Progress | None = None) -> SegmentationResult:
    """Segment as `fake_engine` does, and begin to count."""
    scan = request.inputs[0]
    assert not isinstance(scan, Volume)
    _left.clear()
    mark = scan.with_name(f".{scan.name}.seen")
    if not mark.exists():
        mark.touch()
        _left.append(int(scan.name.split(".")[0].split("-")[1]))
    return fake_engine.segment(request, progress)


def see(event: str, arguments: tuple[object, ...]) -> None:
    """Count an access, as an audit hook."""
    if not _left or event not in ACCESSES:
        return
    paths = [Path(item) for item in arguments if isinstance(item, (str, os.PathLike))]
    if any(OUT in path.parts for path in paths):
        if not _left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        _left[0] -= 1


def dask_setup(_worker: object) -> None:
    """Called by Dask in the worker alone."""
    module = fake_engine.as_module()
    module.segment = segment  # type: ignore[attr-defined]
    sys.modules["medsegai.engine"] = module
    sys.addaudithook(see)

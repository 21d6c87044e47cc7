"""Puts a made-up engine into a worker of Dask that preloads this file (`distributed.worker.preload`).

The name of the scan decides: `killer` ends the worker each time, `once` the first time, `written` the first time
after its files are there, and `slow` goes on until it is stopped. Any other is segmented as `fake_engine` does.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from distributed import get_worker

import fake_engine
from medsegai.output.batch import CaseJob
from medsegai.output.cluster.worker import CaseWorker, Unseen, do_case
from medsegai.output.result_files import Outputs
from medsegai.progress import Progress
from medsegai.request import SegmentationRequest, SegmentationResult
from medsegai.volume import Volume
from medsegai.worker.batch_events import CaseState, Entry

PATIENCE_SECONDS = 60.0


def segment(request: SegmentationRequest, progress: Progress | None = None) -> SegmentationResult:
    """See above."""
    progress = progress or Progress()
    scan = request.inputs[0]
    assert not isinstance(scan, Volume)
    name = scan.name.split("-")[0]
    if name == "killer" or (name == "once" and not _seen(scan)):
        os.kill(os.getpid(), signal.SIGKILL)
    end = time.monotonic() + PATIENCE_SECONDS
    while name == "slow" and time.monotonic() < end:
        progress.step("predict", 0, 1)
        time.sleep(0.02)
    result = fake_engine.segment(request, progress)
    if name == "written" and not _seen(scan):
        out = scan.parent.parent / "out"
        case = scan.name.removesuffix(".nii.gz")
        outputs = Outputs(out / f"{case}.seg.nrrd", report=out / f"{case}.json")
        outputs.write(result, scan, progress)
        os.kill(os.getpid(), signal.SIGKILL)
    return result


def _seen(scan: Path) -> bool:
    """Whether this scan was met before, by any worker."""
    mark = scan.with_name(f".{scan.name}.seen")
    seen = mark.exists()
    mark.touch()
    return seen


def blind(plugin: CaseWorker, job: CaseJob) -> Entry | Unseen:
    """In place of a case: the first worker that gets one does not see any scan."""
    mark = job.files.folder / "blind.txt"
    if not mark.exists():
        mark.write_text(get_worker().address)
    if mark.read_text() == get_worker().address:
        failed = Entry(job.case.name, CaseState.FAILED, message="does not exist")
        return Unseen(job.case.inputs[0], failed)
    return do_case(plugin, job)


def removed(plugin: CaseWorker, job: CaseJob) -> Entry | Unseen:
    """In place of a case: somebody removes its scan before."""
    job.case.inputs[0].unlink()
    return do_case(plugin, job)


def end_at_once(plugin: object) -> str:
    """In place of a look at the worker: it ends."""
    os.kill(os.getpid(), signal.SIGKILL)
    return ""


def dask_setup(_worker: object) -> None:
    """Called by Dask in the worker alone: a test that imports this file keeps the real engine."""
    module = fake_engine.as_module()
    module.segment = segment  # type: ignore[attr-defined]
    sys.modules["medsegai.engine"] = module

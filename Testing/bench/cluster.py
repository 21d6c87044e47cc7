"""A batch on several workers beside one process: `python Testing/bench/cluster.py`.

1. Throughput with a bundled model: `medsegai segment` case by case, `medsegai batch` in one process, and with
   workers. Each is a separate command, so loading the model counts, and the seconds that workers take to start.
2. What a case costs beside its work: made cases on two workers, whose engine labels a few voxels.
3. How that grows: cases that cost nothing, handed out and entered into the table.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from threading import Event
from typing import Any

import dask.config
import nibabel
import numpy as np
import psutil

from medsegai.output.batch import Batch, CaseJob
from medsegai.output.cases import Case
from medsegai.output.cluster import jobs
from medsegai.output.cluster.connection import local_workers
from medsegai.output.cluster.worker import CaseWorker
from medsegai.output.layouts import BatchFiles
from medsegai.request import SegmentationRequest
from medsegai.worker.batch_events import CaseState, Entry

HERE = Path(__file__).parent
PRELOAD = HERE.parent / "engine" / "fake_engine_preload.py"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=8, help="real ones, for the throughput")
    parser.add_argument("--made", type=int, default=1000, help="cases of a few voxels")
    parser.add_argument("--simulated", type=int, default=10000, help="cases that cost nothing")
    parser.add_argument("--model", default="hippocampus")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    options = parser.parse_args()
    figures: dict[str, Any] = {"load": os.getloadavg()[0]}
    for name, measure in (
        ("simulated, a tenth", lambda: simulated(options.simulated // 10)),
        ("simulated", lambda: simulated(options.simulated)),
        ("made", lambda: made_cases(options.made)),
        ("seconds per case", lambda: throughput(options.cases, options.model)),
    ):
        figures[name] = measure()
        print(name, json.dumps(figures[name], indent=2), flush=True)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


def save(path: Path, seed: int, shape: tuple[int, int, int]) -> None:
    voxels = np.random.default_rng(seed).integers(0, 200, shape, dtype=np.int16)
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([1.0, 1.1, 1.2, 1.0])), path)


def throughput(count: int, model: str) -> dict[str, float]:
    """Seconds per case of each way, all cases of the size of a crop around the hippocampus."""
    with tempfile.TemporaryDirectory() as folder:
        scans = Path(folder) / "scans"
        scans.mkdir()
        for number in range(count):
            save(scans / f"c{number}.nii.gz", number, (36, 52, 38))
        batch = ["batch", str(scans), "--model", model, "-q", "-o"]
        ways: dict[str, Sequence[Sequence[str]]] = {
            "segment, case by case": [
                ["segment", str(scan), "--model", model, "-q", "-o", f"{folder}/{scan.stem}.nrrd"]
                for scan in sorted(scans.iterdir())
            ],
            "batch": [[*batch, f"{folder}/one"]],
            "batch --workers 1": [[*batch, f"{folder}/w1", "--workers", "1"]],
            "batch --workers 2": [[*batch, f"{folder}/w2", "--workers", "2"]],
        }
        return {name: seconds_of(commands) / count for name, commands in ways.items()}


def seconds_of(commands: Sequence[Sequence[str]]) -> float:
    begun = time.perf_counter()
    for words in commands:
        subprocess.run(
            [sys.executable, "-m", "medsegai", *words], check=True, stderr=subprocess.DEVNULL
        )
    return time.perf_counter() - begun


def made_cases(count: int) -> dict[str, Any]:
    """Cases of a few voxels on two workers: seconds, and what the scheduler's process grew by."""
    with tempfile.TemporaryDirectory() as folder:
        scans, models = Path(folder) / "scans", Path(folder) / "models"
        scans.mkdir()
        write_model(models)
        for number in range(count):
            save(scans / f"c{number}.nii.gz", number, (4, 5, 6))
        cases = [Case(path.name.split(".")[0], (path,)) for path in sorted(scans.iterdir())]
        request = SegmentationRequest(cases[0].inputs, models=("toy",))
        return timed(cases, request, BatchFiles(Path(folder) / "out", ".nii.gz"))


def simulated(count: int) -> dict[str, Any]:
    """The same of cases that cost nothing: handing out, answers, table."""
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder) / "models")
        cases = [Case(f"c{number}", (Path(f"c{number}.nii.gz"),)) for number in range(count)]
        request = SegmentationRequest(cases[0].inputs, models=("toy",))
        before, jobs.do_case = jobs.do_case, nothing
        try:
            return timed(cases, request, BatchFiles(Path(folder) / "out"))
        finally:
            jobs.do_case = before


def nothing(plugin: CaseWorker, job: CaseJob) -> Entry:
    """In place of `do_case`. The case counts as failed, because it has no report."""
    return Entry(job.case.name, CaseState.FAILED)


def timed(cases: list[Case], request: SegmentationRequest, files: BatchFiles) -> dict[str, Any]:
    process = psutil.Process()
    times: list[float] = []
    busy: list[float] = []

    def listen(entry: Entry) -> None:
        if entry.state in ("done", CaseState.FAILED):
            times.append(time.perf_counter())
            busy.append(time.process_time())

    batch = Batch(cases, request, files, listen)
    preload = {"distributed.worker.preload": [str(PRELOAD), str(HERE / "cluster.py")]}
    with dask.config.set(preload), local_workers(2, "cpu") as client:
        before = process.memory_info().rss
        batch.run(jobs.on_workers(client, Event(), ignore))
        grown = process.memory_info().rss - before
    part = len(times) // 10
    return {
        "cases": len(cases),
        "ms per case": 1000 * (times[-1] - times[0]) / (len(times) - 1),
        "processor ms of the scheduler's process per case": {
            "first tenth": 1000 * (busy[part] - busy[0]) / part,
            "last tenth": 1000 * (busy[-1] - busy[-1 - part]) / part,
        },
        "MB by which the scheduler's process grew": grown / 1e6,
    }


def ignore(words: Any) -> None:
    pass


def write_model(models: Path) -> None:
    sys.path.insert(0, str(PRELOAD.parent))
    import fake_engine

    fake_engine.write_model(models)
    os.environ["MEDSEGAI_MODELS"] = str(models)


if __name__ == "__main__":
    main()

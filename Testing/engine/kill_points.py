"""Batches that end at the so many-th access to the folder of results; run as a script, because it forks.

`python kill_points.py FOLDER LAYOUT SIGNAL WHERE FIRST [STEP]` makes two scans in FOLDER and segments them alone
in one process, and then again for each STEP-th access from FIRST on (without STEP only there), at which SIGNAL is
sent. It prints, as JSON, how many runs were ended, and what was wrong with any of them. WHERE is one of

- `alone`: one process segments the cases, and its accesses count;
- `driver`: two workers segment them, and the accesses of the driver count;
- `worker`: the accesses of the worker that has the first case count, and the driver gets the signal;
- `all`: likewise, and driver and workers get the signal, as on a computer that fails.
"""

from __future__ import annotations

import csv
import importlib
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import psutil

import ending_preload
import fake_engine
from medsegai import cli
from medsegai.commands import batch as _batch  # so that it is loaded before the forks
from medsegai.output import batch, bids_dataset, cohort_page, layouts

__all__ = ["_batch", "batch", "bids_dataset", "cohort_page", "layouts"]

NEVER = 10**9
SOON = 30.0
"""The seconds after which no worker may be left of a driver that was killed."""

TABLES = {"batch.csv", "volumes.csv", "cohort.csv", "cohort.tsv", "cohort.json", "cohort.html"}
"""The files that change with each case; all others are whole from the beginning."""

OPTIONS = ("--uncertainty", "--preview", "--save-probabilities", "--pages", "--resume", "-q")
TIMES = re.compile(
    r'"(?:created|seconds|peak_memory_mb)": (?:"[^"]*"|\{[^}]*\}|[0-9.]+|null)'
    r'|"page": \{[^}]*\}|\d{4}-\d\d-\d\dT[\d:+]+|<td>[\d.]+</td></tr>'
)


def normal(path: Path) -> Any:
    """The content of a file without times."""
    if path.name == "batch.csv":
        with path.open(newline="", encoding="utf-8") as file:
            return [{**row, "seconds": ""} for row in csv.DictReader(file)]
    content = path.read_bytes()
    return TIMES.sub("", content.decode()) if path.suffix in (".json", ".html") else content


def tree(folder: Path) -> dict[str, Any]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): normal(path) for path in files}


class Place:
    """Two scans and the folder of their results."""

    def __init__(self, folder: Path, layout: str) -> None:
        self._where, self._count = "alone", folder / "count"
        self.out, self.temporary, self.log = folder / "out", folder / "temporary", folder / "log"
        fake_engine.write_model(folder / "models")
        os.environ["MEDSEGAI_MODELS"] = str(folder / "models")
        for seed, name in enumerate(("sub-1", "sub-2")):
            path = folder / "scans" / name / "anat" / f"{name}_T1w.nii.gz"
            path.parent.mkdir(parents=True)
            voxels = np.random.default_rng(seed).integers(0, 200, (9, 7, 8), dtype=np.int16)
            nibabel.save(nibabel.Nifti1Image(voxels, np.diag([1.0, 2.0, 3.0, 1.0])), path)
        self.words = ["batch", f"{folder}/scans", "-o", str(self.out), "--model", "toy"]
        self.words += ["--layout", layout, *OPTIONS]

    def use(self, where: str) -> None:
        """Choose which accesses count in the next runs."""
        self._where = where
        if where != "alone":
            os.environ["DASK_DISTRIBUTED__WORKER__PRELOAD"] = ending_preload.__file__
            importlib.import_module("medsegai.output.cluster.jobs")  # before the forks
            self.words += ["--workers", "2"]

    def undisturbed(self) -> dict[str, Any]:
        """Return the files of a run that is not ended."""
        self.clear()
        code = self.run()
        assert code == 0, self.log.read_text()
        return tree(self.out)

    def clear(self) -> None:
        for folder in (self.out, self.temporary):
            shutil.rmtree(folder, ignore_errors=True)
        self.temporary.mkdir()

    def run(self, at: int = NEVER, number: int = signal.SIGKILL) -> int:
        """Run the batch in a fork, which signals itself at an access; return the exit code."""
        child = os.fork()
        if child:
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            self.left = processes_left(child)
            return code
        code = 99
        try:
            log = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(log, 1)
            os.dup2(log, 2)
            os.setsid()
            os.environ["TMPDIR"], tempfile.tempdir = str(self.temporary), None
            signal.signal(signal.SIGINT, signal.default_int_handler)
            in_driver = self._where in ("alone", "driver")
            count = ending_preload.Countdown(self.out, at if in_driver else NEVER, number)
            sys.addaudithook(count)
            ending_preload.order(
                self.out, NEVER if in_driver else at, number, self._where, self._count
            )
            code = cli.main(self.words)
            seen = count.seen if in_driver else len(self._count.read_bytes())
            sys.stdout.write(f"accesses: {seen}")
            sys.stdout.flush()
        finally:
            if sys.exc_info()[0] is not None:
                traceback.print_exc()
            os._exit(code)


def processes_left(group: int) -> list[str]:
    """Return the processes of a group that do not end soon."""
    end = time.monotonic() + SOON
    while True:
        left = [process for process in psutil.process_iter() if is_alive(process, group)]
        if not left or time.monotonic() > end:
            return [str(process) for process in left]
        time.sleep(0.02)


def is_alive(process: psutil.Process, group: int) -> bool:
    """Whether this is a process of the group; nobody may wait for those whose parent was killed."""
    try:
        return os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.Error, ProcessLookupError):
        return False


def faults(place: Place, whole: dict[str, Any], at: int, number: int) -> Iterator[str]:
    """What is wrong after a batch that was ended, and after it was resumed."""
    place.clear()
    code = place.run(at, number)
    said = place.log.read_text()
    if place.left:
        yield f"processes are left: {place.left}"
    left = [path.name for path in place.out.rglob(".*") if path.name != ".bidsignore"]
    if number != signal.SIGKILL:
        if code not in (0, 130) or "Traceback" in said:
            yield f"exit code {code}: {said}"
        if left or list(place.temporary.iterdir()):
            yield f"left behind: {left} {list(place.temporary.iterdir())}"
    for name, content in tree(place.out).items() if place.out.is_dir() else ():
        if Path(name).name not in {*left, *TABLES} and content != whole.get(name):
            yield f"not whole: {name}"
    if code := place.run():
        yield f"resumed with exit code {code}: {place.log.read_text()}"
    if kept := list(place.temporary.iterdir()):
        yield f"temporary files are left after --resume: {kept}"
    now = tree(place.out)
    if now != whole:
        names = [name for name in now.keys() | whole.keys() if now.get(name) != whole.get(name)]
        yield f"differ after --resume: {sorted(names)}"


def main(folder: str, layout: str, name: str, where: str, first: str, step: str = "") -> None:
    sys.modules["medsegai.engine"] = fake_engine.as_module()
    place, number = Place(Path(folder), layout), getattr(signal, name)
    whole = place.undisturbed()
    place.use(where)
    points = [int(first)]
    if step:
        assert place.undisturbed() == whole
        accesses = int(place.log.read_text().rpartition(" ")[2])
        points = [*range(int(first), accesses, int(step))]
    found = {at: list(faults(place, whole, at, number)) for at in points}
    wrong = {at: why for at, why in found.items() if why}
    sys.stdout.write(json.dumps({"runs": len(points), "wrong": wrong}))


if __name__ == "__main__":
    main(*sys.argv[1:])

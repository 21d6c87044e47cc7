"""Batches that end at the so many-th access to the folder of results; run as a script, because it forks.

`python kill_points.py FOLDER LAYOUT SIGNAL STEP FIRST` makes two scans in FOLDER, segments them undisturbed and
then again for each STEP-th access, at which the process sends itself SIGNAL. It prints, as JSON, the number of
accesses, how many runs were ended, and what was wrong with any of them.
"""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

import fake_engine
from medsegai import cli
from medsegai.commands import batch as _batch  # so that it is loaded before the forks
from medsegai.output import batch, bids_dataset, cohort_page, layouts

__all__ = ["_batch", "batch", "bids_dataset", "cohort_page", "layouts"]

ACCESSES = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"}
NEVER = 10**9
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

    def clear(self) -> None:
        for folder in (self.out, self.temporary):
            shutil.rmtree(folder, ignore_errors=True)
        self.temporary.mkdir()

    def run(self, at: int = NEVER, number: int = signal.SIGKILL) -> int:
        """Run the batch in a fork, which signals itself at an access; return the exit code."""
        child = os.fork()
        if child:
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        code = 99
        try:
            log = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(log, 1)
            os.dup2(log, 2)
            os.setsid()
            os.environ["TMPDIR"], tempfile.tempdir = str(self.temporary), None
            signal.signal(signal.SIGINT, signal.default_int_handler)
            count = signal_at(self.out, at, number)
            code = cli.main(self.words)
            sys.stdout.write(f"accesses: {len(count)}")
            sys.stdout.flush()
        finally:
            if sys.exc_info()[0] is not None:
                traceback.print_exc()
            os._exit(code)


def signal_at(folder: Path, at: int, number: int) -> list[None]:
    """Send this process a signal at an access to a folder; return the accesses so far."""
    count: list[None] = []

    def see(event: str, arguments: tuple[object, ...]) -> None:
        paths = (str(item) for item in arguments if isinstance(item, (str, os.PathLike)))
        if event in ACCESSES and any(str(folder) in path for path in paths):
            count.append(None)
            if len(count) == at + 1:
                os.kill(os.getpid(), number)

    sys.addaudithook(see)
    return count


def faults(place: Place, whole: dict[str, Any], at: int, number: int) -> Iterator[str]:
    """What is wrong after a batch that was ended, and after it was resumed."""
    place.clear()
    code = place.run(at, number)
    said = place.log.read_text()
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
    now = tree(place.out)
    if now != whole:
        names = [name for name in now.keys() | whole.keys() if now.get(name) != whole.get(name)]
        yield f"differ after --resume: {sorted(names)}"


def main(folder: str, layout: str, name: str, step: str, first: str) -> None:
    sys.modules["medsegai.engine"] = fake_engine.as_module()
    place, number = Place(Path(folder), layout), getattr(signal, name)
    place.clear()
    code, said = place.run(), place.log.read_text()
    assert code == 0, said
    whole, accesses = tree(place.out), int(said.rpartition(" ")[2])
    points = range(int(first), accesses, int(step))
    found = {at: list(faults(place, whole, at, number)) for at in points}
    wrong = {at: why for at, why in found.items() if why}
    sys.stdout.write(json.dumps({"accesses": accesses, "runs": len(points), "wrong": wrong}))


if __name__ == "__main__":
    main(*sys.argv[1:])

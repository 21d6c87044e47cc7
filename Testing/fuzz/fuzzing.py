"""Fuzzes every way in from outside: `make fuzz`, or `python Testing/fuzz/fuzzing.py --seconds 3600 [TARGET...]`.

A child with limits reads made files (`fuzz_child`); this process starts one child after another, for all targets
in turn, until the time is over. A file that did harm is kept in `findings/TARGET/`, and goes into `corpus/TARGET/`
when what it found is mended: there every later run, and `make test`, read it first.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = map(str, (HERE, HERE.parent / "engine", HERE.parents[1] / "MedSegAI"))
import warm  # noqa: E402

AT_ONCE = 400
"""Files that one child reads."""

PATIENCE = 600.0
"""Seconds until a child is ended that does not come to its next file. On a busy machine, some seconds of computing
may take minutes."""


def child(
    target: str, number: int, count: int, *files: Path, main: Callable[..., int] | None = None
) -> tuple[int, str, bytes]:
    """Read files in a child, with `fuzz_child.main` or another.

    Returns:
        How many files were read, what was found ("" if nothing), and the file that did it.
    """
    import fuzz_child

    with tempfile.TemporaryDirectory(prefix="medsegai-fuzz-") as name:
        folder, output = Path(name) / "work", Path(name) / "output.txt"
        folder.mkdir()
        environment = {
            **os.environ,
            "TMPDIR": name,
            "HYPOTHESIS_STORAGE_DIRECTORY": name,
            "MEDSEGAI_MODELS": f"{name}/models",
        }
        asked = (target, str(folder), str(number), str(count), *map(str, files))
        process = warm.start(
            main or fuzz_child.main, *asked, output=output, environment=environment
        )
        if not _ended(process, folder):
            return 0, f"did not come to its next file in {PATIENCE:.0f} s", _current(folder)
        printed = output.read_text(errors="replace") if output.exists() else ""
        said = printed.strip().rpartition("\n")[2]
        if process.exitcode == 0:
            return int(said), "", b""
        if process.exitcode is not None and process.exitcode < 0:
            said = f"ended by signal {-process.exitcode}"
        return 0, f"{said}\n{printed[-3000:]}", _current(folder)


def _ended(process: BaseProcess, folder: Path) -> bool:
    """Wait for a child, and end it if it stays at one file for too long."""
    while True:
        process.join(PATIENCE / 60)
        if process.exitcode is not None:
            return True
        file = folder / "current"
        at_work = file.exists()  # else it is loading libraries
        since = (file if at_work else folder).stat().st_mtime
        if time.time() - since > (PATIENCE if at_work else 10 * PATIENCE):
            process.kill()
            process.join()
            return False


def _current(folder: Path) -> bytes:
    path = folder / "current"
    return path.read_bytes() if path.is_file() else b""


def keep(target: str, content: bytes, said: str) -> Path:
    folder = HERE / "findings" / target
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / hashlib.sha256(content).hexdigest()[:12]
    path.write_bytes(content)
    path.with_suffix(".txt").write_text(said)
    return path


def main() -> int:
    from fuzz_targets import TARGETS

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("targets", nargs="*", default=list(TARGETS), help="(default: all)")
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    arguments = parser.parse_args()
    end = time.monotonic() + arguments.seconds
    counts = dict.fromkeys(arguments.targets, 0)
    found: list[Path] = []
    number = arguments.seed
    print(f"seed {number}", flush=True)
    while time.monotonic() < end:
        for target in arguments.targets:
            read, said, content = child(target, number, AT_ONCE)
            counts[target] += read
            if said:
                found.append(keep(target, content, said))
                print(f"{target}: {found[-1]}: {said.splitlines()[0]}", flush=True)
            if time.monotonic() >= end:
                break
        number += 1
    for target, count in counts.items():
        print(f"{target:12} {count:9}")
    print(f"{sum(counts.values())} files, {len(found)} findings")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

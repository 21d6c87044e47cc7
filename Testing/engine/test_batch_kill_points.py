"""A batch that ends between any two accesses to its folder and is resumed is one that never ended."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

import kill_points
from medsegai.io import atomic_path

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")

SIGNALS = ("SIGTERM", "SIGINT", "SIGKILL")


def run(folder: Path, layout: str, name: str, step: int, first: int) -> None:
    command = [
        sys.executable,
        kill_points.__file__,
        str(folder),
        layout,
        name,
        str(step),
        str(first),
    ]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["accesses"] > 100
    assert found["runs"] > 0
    assert found["wrong"] == {}


@pytest.mark.parametrize(("layout", "name"), [("plain", "SIGTERM"), ("bids", "SIGKILL")])
def test_a_batch_that_ends_at_some_accesses_is_resumed(
    layout: str, name: str, tmp_path: Path
) -> None:
    """At other ones in each run; all of them in the slow test."""
    first = random.Random(os.environ.get("MEDSEGAI_SEED")).randrange(80)
    run(tmp_path, layout, name, 80, first)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["plain", "bids"])
@pytest.mark.parametrize("name", SIGNALS)
def test_a_batch_that_ends_at_any_access_is_resumed(layout: str, name: str, tmp_path: Path) -> None:
    run(tmp_path, layout, name, 1, 0)


def test_a_second_ctrl_c_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It arrives while the files of the first are removed, before or after one of them is."""
    unlink, calls = Path.unlink, iter(range(100))

    def interrupted(path: Path, missing_ok: bool = False) -> None:
        number = next(calls)
        if number == 0:
            raise KeyboardInterrupt
        unlink(path, missing_ok)
        if number == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(Path, "unlink", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_and_stop(tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def write_and_stop(path: Path) -> None:
    with atomic_path(path) as partial:
        partial.write_text("half")
        raise KeyboardInterrupt

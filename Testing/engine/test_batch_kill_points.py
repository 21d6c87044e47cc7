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


def run(folder: Path, *words: str) -> None:
    command = [sys.executable, kill_points.__file__, str(folder), *words]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["runs"] > 0
    assert found["wrong"] == {}


@pytest.mark.parametrize(("layout", "name"), [("plain", "SIGTERM"), ("bids", "SIGKILL")])
def test_a_batch_that_ends_at_some_accesses_is_resumed(
    layout: str, name: str, tmp_path: Path
) -> None:
    """At other ones in each run; all of them in the slow test."""
    run(tmp_path, layout, name, "alone", some_access(80), "80")


def some_access(before: int) -> str:
    return str(random.Random(os.environ.get("MEDSEGAI_SEED")).randrange(before))


def test_a_batch_on_workers_whose_driver_is_killed_is_resumed(tmp_path: Path) -> None:
    """While a worker writes a case of a BIDS dataset; at all of its accesses in the slow test."""
    run(tmp_path, "bids", "SIGKILL", "worker", some_access(20))


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["plain", "bids"])
@pytest.mark.parametrize("name", SIGNALS)
def test_a_batch_that_ends_at_any_access_is_resumed(layout: str, name: str, tmp_path: Path) -> None:
    run(tmp_path, layout, name, "alone", "0", "1")


@pytest.mark.slow
@pytest.mark.parametrize("where", ["driver", "worker", "all"])
def test_a_batch_on_workers_that_ends_at_any_access_is_resumed(where: str, tmp_path: Path) -> None:
    run(tmp_path, "bids", "SIGKILL", where, "0", "2")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_batch_on_workers_that_is_stopped_is_resumed(name: str, tmp_path: Path) -> None:
    run(tmp_path, "plain", name, "driver", "0", "4")


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

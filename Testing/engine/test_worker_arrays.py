"""Arrays that come and go through the pipe of the worker, and the folders that they leave."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from medsegai.request import SegmentationResult
from medsegai.worker import protocol
from medsegai.worker.array_transfer import take_block
from worker_talk import (
    FAKE_WORKER,
    PATIENCE,
    Talk,
    talking,
)


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Talk]:
    yield from talking(tmp_path)


def leftovers(folder: Path) -> list[Path]:
    return list(folder.glob("medsegai-exchange-*"))


def test_arrays_come_and_go_through_the_pipe(worker: Talk, tmp_path: Path) -> None:
    worker.carry("a", "quick")
    received = tmp_path / "received"
    received.mkdir()
    while (answer := worker.hear("array", "result", "error"))["type"] == "array":
        assert answer["job"] == "a"
        take_block(answer, received)
    result = protocol.unpacked(SegmentationResult, answer["result"], received)
    assert result.labelmap.voxels[:, 0, 0].tolist() == [0, 1, 1]
    assert leftovers(tmp_path) == []


def test_a_job_that_is_cancelled_while_its_arrays_come_is_answered(
    worker: Talk, tmp_path: Path
) -> None:
    worker.carry("a", "quick", arrays_only=True)
    worker.say(type="cancel", job="a")
    answer = worker.hear("result", "error")
    assert (answer["job"], answer["kind"]) == ("a", "Cancelled")
    assert leftovers(tmp_path) == []
    worker.carry("b", "quick")
    assert worker.hear("result", "error")["job"] == "b"


@pytest.mark.parametrize(
    "block",
    [
        {"name": "../evil.npy", "data": "", "done": 1, "total": 1},
        {"name": "0" * 32 + ".npy", "data": "no base64", "done": 1, "total": 1},
        {"name": "0" * 32 + ".npy"},
    ],
)
def test_a_damaged_array_is_answered_once_under_the_name_of_its_job(
    worker: Talk, tmp_path: Path, block: dict[str, Any]
) -> None:
    worker.say(type="array", job="a", **block)
    worker.carry("a", "quick")  # what was under way already is dropped in silence
    answer = worker.hear("result", "error")
    assert (answer["job"], answer["kind"]) == ("a", "WorkerError")
    worker.carry("b", "quick")
    answer = worker.hear("result", "error")
    assert (answer["type"], answer["job"]) == ("result", "b")
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("behaviour", ["arrive", "deaf", "slow"])
def test_the_end_of_the_client_leaves_no_folder(
    worker: Talk, tmp_path: Path, behaviour: str
) -> None:
    worker.hear("ready")
    worker.carry("a", behaviour, arrays_only=behaviour == "arrive")
    if behaviour != "arrive":
        worker.hear("progress")
    worker.end()
    assert leftovers(tmp_path) == []


def test_a_killed_worker_leaves_its_folder_to_the_next(tmp_path: Path) -> None:
    for behaviour, left in (("out of memory", 2), ("quick", 0)):
        talk = Talk([sys.executable, str(FAKE_WORKER)], tmp_path)
        talk.hear("ready")
        talk.carry("a", behaviour)
        talk.process.wait(PATIENCE) if left else talk.hear("result", "error")
        assert len(leftovers(tmp_path)) == left
        talk.end()

"""The worker process: real processes, real pipes, a made-up engine."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from medsegai.request import SegmentationResult
from medsegai.worker import protocol
from medsegai.worker import server as worker_module
from worker_talk import (
    ALIVE,
    FAKE_WORKER,
    PATIENCE,
    REPOSITORY,
    Talk,
    gone,
    gone_now,
    talking,
)


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Talk]:
    yield from talking(tmp_path)


def test_a_job_gives_progress_then_one_result(worker: Talk) -> None:
    ready = worker.hear("ready")
    assert (ready["version"], ready["pid"]) == (protocol.PROTOCOL_VERSION, worker.process.pid)
    worker.segment("a", "quick", uncertainty=True)
    first = worker.hear("progress", "result")
    assert (first["type"], first["job"]) == ("progress", "a")
    assert first["event"]["stage"] == "read"
    assert first["event"]["fraction"] == pytest.approx(0.1)
    answer = worker.hear("result", "error")
    result = protocol.unpacked(SegmentationResult, answer["result"], worker.exchange)
    assert result.labelmap.voxels[:, 0, 0].tolist() == [0, 1, 1]
    assert result.labelmap.geometry.spacing_mm == (1, 2, 3)
    assert result.entropy is not None
    assert [item.label.name for item in result.structures] == [
        "Left hippocampus",
        "Brain-Stem",
        "Absent",
    ]
    assert result.structures[0].volume_ml == pytest.approx(2 * 20 * 6 / 1000)
    assert worker.end() == 0


def test_the_process_stays_for_the_next_job(worker: Talk) -> None:
    pids = set()
    for job in ("a", "b", "c"):
        worker.segment(job, "quick")
        result = worker.hear("result", "error")
        assert result["job"] == job
        pids.add(result["result"]["provenance"]["pid"])
    assert pids == {worker.process.pid}


def test_what_libraries_print_does_not_reach_the_pipe(worker: Talk) -> None:
    worker.segment("a", "noisy")
    assert worker.hear("result", "error")["type"] == "result"
    assert worker.end() == 0
    assert "chatter of a library" in worker.log()
    assert "chatter of a C library" in worker.log()
    assert "EOFError" in worker.log(), "the child read the worker's own pipe"


def test_cancel_is_heard_while_the_job_runs(worker: Talk) -> None:
    worker.segment("a", "slow")
    worker.hear("progress")
    started = time.monotonic()
    worker.say(type="cancel", job="a")
    answer = worker.hear("result", "error")
    assert (answer["type"], answer["job"], answer["kind"]) == ("error", "a", "Cancelled")
    assert time.monotonic() - started < 2
    worker.segment("b", "quick")
    assert worker.hear("result", "error")["job"] == "b"


def test_a_job_that_waits_can_be_cancelled_and_the_others_go_on(worker: Talk) -> None:
    worker.segment("a", "slow")
    worker.segment("b", "quick")
    worker.segment("c", "quick")
    worker.say(type="cancel", job="b")
    worker.say(type="cancel", job="a")
    answers = [worker.hear("result", "error") for _ in range(3)]
    assert [(answer["job"], answer.get("kind")) for answer in answers] == [
        ("a", "Cancelled"),
        ("b", "Cancelled"),
        ("c", None),
    ]


def test_cancelling_a_job_that_is_over_does_nothing(worker: Talk) -> None:
    worker.segment("a", "quick")
    worker.hear("result")
    worker.say(type="cancel", job="a")
    worker.segment("b", "quick")
    assert worker.hear("result", "error")["job"] == "b"


def test_an_error_of_the_engine_keeps_its_kind(worker: Talk) -> None:
    worker.segment("a", "refuse")
    answer = worker.hear("result", "error")
    assert (answer["kind"], answer["message"]) == ("DeviceError", "The device cuda:7 is unknown.")


def test_a_defect_is_told_logged_and_survived(worker: Talk) -> None:
    worker.segment("a", "defect")
    answer = worker.hear("result", "error")
    assert answer["kind"] == "WorkerError"
    assert "ZeroDivisionError: made up" in answer["message"]
    worker.segment("b", "quick")
    assert worker.hear("result", "error")["job"] == "b"
    worker.end()
    assert "Traceback" in worker.log()


@pytest.mark.parametrize(
    "line",
    [
        b"not json\n",
        b"[1, 2]\n",
        b"\xff\xfe\n",
        b'{"type": "dance", "job": "a"}\n',
        b'{"type": "segment"}\n',
        b'{"type": "cancel", "job": 5}\n',
        b"[" * 200_000 + b"\n",
        b'{"type": "segment", "job": "a", "x": ' + b"[" * 900 + b"]" * 900 + b"}\n",
        b'{"type": "array", "job": "a", "done": Infinity}\n',
        b'{"type": "array", "job": "a", "done": 1e999}\n',
        b'{"type": ' + b"9" * 5000 + b"}\n",
        b'{"type": ["segment"], "job": {}}\n',
        b'{"type": "segment", "job": "' + b"x" * 100_000 + b'"\n',
    ],
)
def test_a_line_that_makes_no_sense_is_answered_and_survived(worker: Talk, line: bytes) -> None:
    worker.raw(line)
    answer = worker.hear("error")
    assert (answer["job"], answer["kind"]) in ((None, "WorkerError"), ("a", "WorkerError"))
    worker.segment("b", "quick")
    assert worker.hear("result", "error")["type"] == "result"


@pytest.mark.parametrize(
    "message",
    [
        {"exchange": "/nowhere"},
        {"exchange": "/nowhere", "request": {"inputs": []}},
        {"exchange": "/nowhere", "request": {"inputs": ["a.nii"], "no": 1}},
        {"request": {"inputs": [{"array": "/nowhere/a.npy", "ijk_to_ras": [], "source": ""}]}},
    ],
)
def test_a_job_that_makes_no_sense_is_answered_under_its_name(
    worker: Talk, message: dict[str, Any]
) -> None:
    worker.say(type="segment", job="a", **message)
    answer = worker.hear("error")
    assert answer["job"] == "a"


def test_an_exchange_folder_that_vanished_is_an_error_of_the_job(
    worker: Talk, tmp_path: Path
) -> None:
    worker.exchange = tmp_path / "folder"
    worker.exchange.mkdir()
    worker.segment("a", "short")
    worker.hear("progress")
    for path in worker.exchange.iterdir():
        path.unlink()
    worker.exchange.rmdir()
    answer = worker.hear("result", "error")
    assert (answer["job"], answer["kind"]) == ("a", "OutputError")
    assert str(worker.exchange) in answer["message"]


@pytest.mark.parametrize("farewell", ["quit", "close"])
@pytest.mark.parametrize("behaviour", ["slow", "deaf"])
def test_the_process_ends_with_its_client_even_while_a_job_runs(
    worker: Talk, behaviour: str, farewell: str
) -> None:
    worker.segment("a", behaviour)
    worker.hear("progress")
    started = time.monotonic()
    if farewell == "quit":
        worker.say(type="quit")
        worker.process.wait(PATIENCE)
    else:
        worker.end()
    assert time.monotonic() - started < 4


def test_the_children_of_a_job_end_with_the_process(worker: Talk) -> None:
    worker.segment("a", "mother")
    stage = ""
    while not stage.startswith("child"):
        stage = worker.hear("progress")["event"]["stage"]
    child = int(stage.split()[1])
    assert Path(f"/proc/{child}").exists()
    worker.end()
    assert gone(child)


def test_the_process_ends_when_nobody_reads_its_events(worker: Talk) -> None:
    worker.hear("ready")
    assert worker.process.stdout is not None
    reader = os.open(os.devnull, os.O_RDONLY)
    os.dup2(reader, worker.process.stdout.fileno())
    worker.segment("a", "slow")
    worker.process.wait(PATIENCE)


def test_a_line_without_an_end_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "MOST_LINE", 1000)
    incoming = io.BytesIO(b"x" * 5000 + b"\n" + b'{"type": "dance", "job": "a"}\n' + b"y" * 3000)
    outgoing = io.BytesIO()
    worker = worker_module.Worker({}, incoming, outgoing)
    worker._read()
    answers = [json.loads(line)["message"] for line in outgoing.getvalue().splitlines()]
    assert ["more than 1000" in answer for answer in answers] == [True, False, True]


PARENT = """
import os, subprocess, sys, time
worker = subprocess.Popen(sys.argv[1:])
os.write(2, str(worker.pid).encode())
time.sleep(60)
"""


@pytest.mark.skipif(
    os.name != "posix", reason="where a process gets another parent when its own ends"
)
def test_the_process_ends_with_its_parent_although_its_pipes_stay_open_and_full(
    tmp_path: Path,
) -> None:
    command = [sys.executable, "-c", PARENT, sys.executable, str(FAKE_WORKER)]
    environment = os.environ | {
        "TMPDIR": str(tmp_path),
        "PYTHONPATH": str(REPOSITORY / "MedSegAI"),
        "MEDSEGAI_FAKE_ALIVE": str(ALIVE),
    }
    incoming, to_worker = os.pipe()
    from_worker, outgoing = os.pipe()
    parent = subprocess.Popen(
        command, stdin=incoming, stdout=outgoing, stderr=subprocess.PIPE, env=environment
    )
    assert parent.stderr is not None
    worker = int(os.read(parent.stderr.fileno(), 20))
    assert b"ready" in os.read(from_worker, 1000)
    os.set_blocking(to_worker, False)
    deadline = time.monotonic() + 10 * ALIVE
    while time.monotonic() < deadline:  # until neither pipe takes any more
        try:
            os.write(to_worker, b"[]\n" * 1000)
        except BlockingIOError:
            time.sleep(0.1)
    assert not gone_now(worker)
    parent.kill()
    parent.wait()
    assert gone(worker)
    for descriptor in (incoming, to_worker, from_worker, outgoing):
        os.close(descriptor)
    parent.stderr.close()


@pytest.mark.parametrize("job", ["slow", "deaf"])
@pytest.mark.parametrize("said", [True, False])
def test_the_scan_of_a_client_that_is_gone_does_not_stay_behind(
    tmp_path: Path, said: bool, job: str
) -> None:
    """A client that says goodbye removes its folder itself; a killed one cannot."""
    folder = tmp_path / "medsegai-exchange-1-scan"
    folder.mkdir()
    talk = Talk([sys.executable, str(FAKE_WORKER)], folder)
    talk.segment("a", job)
    talk.hear("progress")
    assert list(folder.iterdir())
    if said:
        talk.say(type="quit")
    talk.end()
    assert folder.exists() == said


def test_a_folder_that_is_no_exchange_is_left_alone(tmp_path: Path) -> None:
    talk = Talk([sys.executable, str(FAKE_WORKER)], tmp_path)
    talk.segment("a", "slow")
    talk.hear("progress")
    talk.end()
    assert tmp_path.exists()


def test_the_real_worker_starts_without_loading_the_engine(tmp_path: Path) -> None:
    started = time.monotonic()
    talk = Talk([sys.executable, "-X", "importtime", "-m", "medsegai.worker"], tmp_path)
    talk.hear("ready")
    assert time.monotonic() - started < 10
    assert talk.end() == 0
    assert "torch" not in talk.log()


def test_a_missing_package_is_named_with_the_way_out(tmp_path: Path) -> None:
    """A Python in which torch and its like cannot be imported."""
    code = (
        "import sys\n"
        "for name in ('torch', 'SimpleITK', 'nibabel', 'scipy', 'safetensors'):\n"
        "    sys.modules[name] = None\n"
        "from medsegai.worker.server import main\n"
        "main()\n"
    )
    talk = Talk([sys.executable, "-c", code], tmp_path)
    talk.segment("a", "brain")
    answer = talk.hear("result", "error")
    assert answer["kind"] == "WorkerError"
    assert "PyTorch extension" in answer["message"]
    assert talk.end() == 0


def test_signs_of_life_come_while_a_job_hears_nothing(worker: Talk) -> None:
    worker.segment("a", "deaf")
    worker.hear("progress")
    started = time.monotonic()
    worker.hear("alive")
    worker.hear("alive")
    assert time.monotonic() - started < PATIENCE / 4


def test_no_sign_of_life_comes_while_a_library_holds_the_interpreter(worker: Talk) -> None:
    worker.segment("a", "stuck")
    worker.hear("progress")
    time.sleep(4 * ALIVE)
    assert not any(b'"alive"' in line for line in list(worker.lines.queue)[1:])


def test_a_result_that_json_cannot_carry_is_a_defect_and_survived(worker: Talk) -> None:
    worker.segment("a", "not finite")
    answer = worker.hear("result", "error")
    assert (answer["job"], answer["kind"]) == ("a", "WorkerError")
    worker.segment("b", "quick")
    assert worker.hear("result", "error")["job"] == "b"


def test_warming_up_loads_the_engine_before_there_is_a_job(tmp_path: Path) -> None:
    talk = Talk([sys.executable, "-X", "importtime", "-m", "medsegai.worker"], tmp_path)
    talk.say(type="warm")
    deadline = time.monotonic() + 15 * PATIENCE
    while "medsegai.engine\n" not in talk.log():
        assert time.monotonic() < deadline, talk.log()[-500:]
        time.sleep(0.1)
    talk.hear("ready")
    assert talk.end() == 0


def test_a_fake_engine_needs_no_warming(worker: Talk) -> None:
    worker.say(type="warm")
    worker.segment("a", "quick")
    assert worker.hear("result", "error")["type"] == "result"

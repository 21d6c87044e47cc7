"""The worker process: real processes, real pipes, a made-up engine."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from medsegai import engine
from medsegai.errors import Cancelled
from medsegai.request import SegmentationRequest, SegmentationResult
from medsegai.volume import Geometry, Volume
from medsegai.worker import protocol
from medsegai.worker import server as worker_module
from medsegai.worker.array_transfer import ExchangeFolder, blocks, take_block
from tiny_quicknat import write_model

REPOSITORY = Path(__file__).resolve().parents[2]
FAKE_WORKER = REPOSITORY / "Testing" / "engine" / "fake_worker.py"
PATIENCE = 20.0
ALIVE = 0.5


def request(*models: str, **options: Any) -> SegmentationRequest:
    image = np.zeros((3, 4, 5), np.float32)
    image[1:] = 150
    volume = Volume(image, Geometry.from_spacing((3, 4, 5), (1, 2, 3)))
    return SegmentationRequest((volume,), models=models, **options)


def segment_message(job: str, exchange: Path) -> bytes:
    """The line that asks for a job of a made-up engine."""
    packed = protocol.packed(request("a"), exchange)
    return protocol.encode(
        {"type": "segment", "job": job, "exchange": str(exchange), "request": packed}
    )


class Talk:
    """The other end of a worker's pipes."""

    def __init__(self, command: list[str], exchange: Path) -> None:
        self.exchange = exchange
        environment = os.environ | {
            "TMPDIR": str(exchange),
            "PYTHONPATH": str(REPOSITORY / "MedSegAI"),
            "OMP_NUM_THREADS": "1",
            "MEDSEGAI_FAKE_ALIVE": str(ALIVE),
        }
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
        )
        self.lines: Queue[bytes] = Queue()
        self.errors: list[bytes] = []
        Thread(target=self._read, daemon=True).start()
        Thread(target=self._read_errors, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.put(line)
        self.lines.put(b"")

    def _read_errors(self) -> None:
        assert self.process.stderr is not None
        self.errors.extend(self.process.stderr)

    def say(self, **message: Any) -> None:
        self.raw(json.dumps(message).encode() + b"\n")

    def raw(self, line: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line)
        self.process.stdin.flush()

    def segment(self, job: str, *models: str, **options: Any) -> None:
        message = protocol.packed(request(*models, **options), self.exchange)
        self.say(type="segment", job=job, exchange=str(self.exchange), request=message)

    def carry(self, job: str, *models: str, arrays_only: bool = False) -> None:
        """The same job for a worker that does not see our files."""
        folder = ExchangeFolder(self.exchange)
        message = protocol.packed(request(*models), folder.path)
        for block in blocks(folder.path):
            self.say(type="array", job=job, **block)
        folder.remove()
        if not arrays_only:
            self.say(type="segment", job=job, exchange=None, request=message)

    def hear(self, *kinds: str) -> dict[str, Any]:
        """The next message of one of these kinds."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            try:
                line = self.lines.get(timeout=deadline - time.monotonic())
            except Empty:
                break
            assert line, f"the worker ended: {b''.join(self.errors).decode()}"
            message = protocol.decode(line)
            if message["type"] in kinds:
                return message
        raise AssertionError(f"no {kinds} came: {b''.join(self.errors).decode()}")

    def end(self) -> int:
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self.process.wait(PATIENCE)

    def log(self) -> str:
        return b"".join(self.errors).decode()


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Talk]:
    talk = Talk([sys.executable, str(FAKE_WORKER)], tmp_path)
    yield talk
    talk.process.kill()
    talk.process.wait()


def gone_now(pid: int) -> bool:
    """Whether the process has ended; one that waits to be collected by its parent has."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return True
    return state in "ZX"


def gone(pid: int) -> bool:
    """Whether the process ends soon."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if gone_now(pid):
            return True
        time.sleep(0.05)
    return False


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
    assert (answer["kind"], answer["message"]) == ("DeviceError", "There is no device cuda:7.")


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


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker within this process must not end it, however slow the computer is."""
    monkeypatch.setattr(worker_module, "GRACE_SECONDS", 600.0)


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("on_card", [True, False])
def test_what_stopped_gives_the_graphics_card_back(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, on_card: bool
) -> None:
    """A torch that uses a card, as far as the worker looks; on a processor models stay loaded."""
    done: list[str] = []
    cuda = SimpleNamespace(is_initialized=lambda: on_card, empty_cache=lambda: done.append("empty"))
    forgetful = SimpleNamespace(forget_models=lambda: done.append("forget"))
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    monkeypatch.setitem(sys.modules, "medsegai.engine", forgetful)

    def stop(*_: object) -> Any:
        raise Cancelled("stop")

    line = segment_message("a", tmp_path)
    outgoing = io.BytesIO()
    worker_module.Worker({"segment": stop}, io.BytesIO(line), outgoing).run()
    answers = [protocol.decode(line)["type"] for line in outgoing.getvalue().splitlines()]
    assert "error" in answers
    assert done == (["forget", "empty"] if on_card else [])


@pytest.mark.usefixtures("patient")
def test_a_stopped_job_is_not_kept_in_memory(tmp_path: Path) -> None:
    """Not even by the error that it ended with."""
    arrays: list[weakref.ref[Any]] = []

    def stop(*_: object) -> Any:
        tensor = np.zeros(1000)
        arrays.append(weakref.ref(tensor))
        raise Cancelled("stop")

    line = segment_message("a", tmp_path)
    held: list[Any] = []

    class Outgoing(io.BytesIO):
        def write(self, data: Any) -> int:
            held.extend(array() for array in arrays)
            return super().write(data)

    worker_module.Worker({"segment": stop}, io.BytesIO(line), Outgoing()).run()
    assert held
    assert all(item is None for item in held)


def test_models_that_are_forgotten_are_loaded_again(tmp_path: Path) -> None:
    card = write_model(tmp_path / "tiny")
    first = engine._model(*engine._key(card))
    assert engine._model(*engine._key(card)) is first
    engine.forget_models()
    assert engine._model(*engine._key(card)) is not first

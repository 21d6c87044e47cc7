"""The client against real worker processes that behave, and that do not."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from medsegai.errors import (
    Cancelled,
    DeviceError,
    OutputError,
    WorkerError,
)
from medsegai.request import SegmentationResult
from medsegai.worker import protocol
from MedSegAILib.worker import client as worker_client
from MedSegAILib.worker.client import WorkerClient, worker_command, worker_environment
from MedSegAILib.worker.queue import JobQueue
from worker_help import (
    ENVIRONMENT,
    FAKE_WORKER,
    LAST,
    REPOSITORY,
    Ear,
    gone,
    leftovers,
    make_client,
    only_error,
    request,
    run,
    until,
)

pytestmark = pytest.mark.usefixtures("temporary")


def test_a_job_is_heard_from_start_to_end(client: WorkerClient, temporary: Path) -> None:
    ear = Ear()
    client.start(request("quick", uncertainty=True), ear)
    assert client.busy
    assert leftovers(temporary)
    until(lambda: ear.told)
    assert not client.busy
    assert ear.events[0].stage == "read"
    fractions = [event.fraction for event in ear.events]
    assert fractions == sorted(fractions)
    (result,) = ear.results
    assert result.labelmap.voxels[:, 0, 0].tolist() == [0, 1, 1]
    assert result.structures[0].label.name == "Left hippocampus"
    assert leftovers(temporary) == [], "the exchange folder outlived its job"


def test_the_arrays_can_be_used_after_the_folder_is_gone(client: WorkerClient) -> None:
    (result,) = run(client, "quick").results
    assert int(result.labelmap.voxels.sum()) == 40


def test_the_second_job_finds_the_same_process(client: WorkerClient) -> None:
    pids = {run(client, "quick").results[0].provenance["pid"] for _ in range(3)}
    assert len(pids) == 1


def test_the_interface_is_free_while_the_job_runs(client: WorkerClient) -> None:
    ear = Ear()
    started = time.monotonic()
    client.start(request("slow"), ear)
    assert time.monotonic() - started < 1
    until(lambda: ear.events)
    client.cancel()
    until(lambda: ear.told)


def test_waiting_needs_no_event_loop(client: WorkerClient) -> None:
    ear, beats = Ear(), []
    client.start(request("short"), ear)
    client.wait(lambda: beats.append(time.monotonic()))
    assert len(ear.results) == 1
    assert len(beats) > 5


def test_a_second_job_at_once_is_refused(client: WorkerClient) -> None:
    ear = Ear()
    client.start(request("slow"), ear)
    with pytest.raises(WorkerError, match="is running"):
        client.start(request("quick"), Ear())
    client.cancel()
    until(lambda: ear.told)


def test_a_listener_may_start_the_next_job(client: WorkerClient) -> None:
    last = Ear()

    class Chain(Ear):
        def finished(self, result: SegmentationResult) -> None:
            super().finished(result)
            client.start(request("quick"), last)

    client.start(request("quick"), Chain())
    until(lambda: last.told)
    assert len(last.results) == 1


@pytest.mark.parametrize("behaviour", ["slow", "deaf", "mother"])
@pytest.mark.parametrize("loop", [True, False], ids=["event loop", "waiting"])
def test_cancel_is_answered_within_two_seconds(
    client: WorkerClient, temporary: Path, behaviour: str, loop: bool
) -> None:
    ear = Ear()
    client.start(request(behaviour), ear)
    until(lambda: ear.events and ear.events[-1].stage.startswith(LAST[behaviour]))
    started = time.monotonic()
    client.cancel()
    if loop:
        until(lambda: ear.told)
    else:
        client.wait()
    assert time.monotonic() - started < 2.5
    assert isinstance(only_error(ear), Cancelled)
    assert leftovers(temporary) == []
    assert len(run(client, "quick").results) == 1, "the next job does not work"


def test_a_cancelled_job_leaves_no_process_behind(client: WorkerClient) -> None:
    ear = Ear()
    client.start(request("mother"), ear)
    until(lambda: len(ear.events) > 1)
    child = int(ear.events[-1].stage.split()[1])
    client.cancel()
    until(lambda: ear.told)
    until(lambda: gone(child))


def test_cancel_before_the_process_is_ready(temporary: Path) -> None:
    client, ear = make_client("slow"), Ear()
    client.start(request("slow"), ear)
    client.cancel()
    until(lambda: ear.told)
    assert isinstance(only_error(ear), Cancelled)
    client.close()


def test_cancel_without_a_job_does_nothing(client: WorkerClient) -> None:
    client.cancel()
    assert len(run(client, "quick").results) == 1


def test_a_result_that_crosses_the_cancel_is_dropped(client: WorkerClient) -> None:
    ear = Ear()
    client.start(request("short"), ear)
    until(lambda: ear.events)
    time.sleep(1.2)  # the result waits in the pipe
    client.cancel()
    until(lambda: ear.told)
    assert isinstance(only_error(ear), Cancelled)


def test_an_error_of_the_engine_keeps_its_kind(client: WorkerClient) -> None:
    error = only_error(run(client, "refuse"))
    assert isinstance(error, DeviceError)
    assert str(error) == "The device cuda:7 is unknown."


def test_a_defect_leaves_its_traceback_in_the_log(client: WorkerClient) -> None:
    assert "ZeroDivisionError" in str(only_error(run(client, "defect")))
    until(lambda: "Traceback" in client.log)


@pytest.mark.parametrize(
    ("behaviour", "words"),
    [
        ("crash", "crashed"),
        ("out of memory", "memory ran out"),
        ("not json", "not JSON"),
    ],
)
def test_a_process_that_fails_is_told_once_and_the_next_job_works(
    client: WorkerClient, temporary: Path, behaviour: str, words: str
) -> None:
    error = only_error(run(client, behaviour))
    assert isinstance(error, WorkerError)
    assert words in str(error)
    assert not client.busy
    assert leftovers(temporary) == []
    assert len(run(client, "quick").results) == 1


def test_a_crash_comes_with_the_last_words_of_the_process(client: WorkerClient) -> None:
    assert "Segmentation fault" in str(only_error(run(client, "crash")))


def test_a_process_that_dies_at_the_start_is_told_with_its_reason() -> None:
    client = make_client("die")
    error = only_error(run(client, "quick"))
    assert isinstance(error, WorkerError)
    assert "there is no such package" in str(error)
    client.close()


def test_a_program_that_does_not_exist_is_told() -> None:
    client = make_client(command=["/nowhere/python", "-m", "medsegai.worker"])
    error = only_error(run(client, "quick"))
    assert isinstance(error, WorkerError)
    assert "/nowhere/python" in str(error)
    assert not client.busy
    client.close()


def test_a_program_that_is_no_worker_is_told() -> None:
    """It writes what is no JSON and ends: `echo` in place of a Python."""
    client = make_client(command=["echo", "hello"])
    assert "hello" in str(only_error(run(client, "quick")))
    client.close()


def test_a_process_that_stays_mute_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_client, "START_SECONDS", 0.5)
    client = make_client("mute")
    error = only_error(run(client, "quick"))
    assert "did not start" in str(error)
    client.close()


def test_what_python_says_before_the_worker_starts_does_no_harm() -> None:
    client = make_client("chatter")
    assert len(run(client, "quick").results) == 1
    assert "Welcome" in client.log
    client.close()


def test_a_worker_of_another_version_is_refused(tmp_path: Path) -> None:
    line = '{"type": "ready", "version": 99, "pid": 1, "leads_group": false}'
    script = tmp_path / "other.py"
    script.write_text(f"import sys, time\nprint({line!r}, flush=True)\nsys.stdin.readline()\n")
    client = make_client(command=[sys.executable, str(script)])
    assert "version 99" in str(only_error(run(client, "quick")))
    client.close()


@pytest.mark.parametrize("line", ['{"type": "ready"}', '{"type": "progress"}', '{"type": "error"}'])
def test_a_message_that_lacks_its_parts_is_told(tmp_path: Path, line: str) -> None:
    script = tmp_path / "other.py"
    script.write_text(f"import sys, time\nprint({line!r}, flush=True)\ntime.sleep(60)\n")
    client = make_client(command=[sys.executable, str(script)])
    assert "invalid message" in str(only_error(run(client, "quick")))
    client.close()


@pytest.mark.parametrize("behaviour", ["slow", "deaf", None])
def test_closing_ends_the_process_and_the_job(temporary: Path, behaviour: str | None) -> None:
    client, ear = make_client(), Ear()
    pid = run(client, "quick").results[0].provenance["pid"]
    if behaviour:
        client.start(request(behaviour), ear)
        until(lambda: ear.events)
    started = time.monotonic()
    client.close()
    assert time.monotonic() - started < 2.5
    assert gone(pid)
    assert leftovers(temporary) == []
    if behaviour:
        assert isinstance(only_error(ear), Cancelled)
    client.close()


def test_the_process_ends_with_slicer_even_if_slicer_is_killed(tmp_path: Path) -> None:
    """Another process starts a worker as Slicer would, and is killed in the middle of a job."""
    slicer = subprocess.Popen(
        [sys.executable, "-c", KILLED_SLICER, str(FAKE_WORKER)],
        env=os.environ | ENVIRONMENT | {"TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert slicer.stdout is not None
    pid = int(slicer.stdout.readline())
    slicer.kill()
    slicer.wait()
    until(lambda: gone(pid))
    assert leftovers(tmp_path) == [], "the worker left the scan of the dead process"


KILLED_SLICER = f"""
import sys
sys.path.insert(0, {str(REPOSITORY / "Testing" / "slicer")!r})
import pythonqt
pythonqt.install()
import worker_help as tests
client, ear = tests.WorkerClient([sys.executable, sys.argv[1]], tests.ENVIRONMENT), tests.Ear()
client.start(tests.request("deaf"), ear)
tests.until(lambda: ear.events)
print(client._hello["pid"], flush=True)
tests.until(lambda: False)
"""


# --- the temporary folder --------------------------------------------------------------------------


def test_a_temporary_folder_that_is_gone_is_an_output_error(
    client: WorkerClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(OutputError, match="gone"):
        client.start(request("quick"), Ear())
    assert not client.busy


@pytest.mark.skipif(sys.platform != "linux", reason="/sys takes no files, not even from root")
def test_a_read_only_temporary_folder_is_an_output_error(
    client: WorkerClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/sys")
    with pytest.raises(OutputError, match=r"temporary folder /sys.*TMPDIR"):
        client.start(request("quick"), Ear())
    assert not client.busy


def test_a_full_disk_is_an_output_error_and_leaves_no_folder(
    client: WorkerClient, monkeypatch: pytest.MonkeyPatch, temporary: Path
) -> None:
    def full(*_: object) -> None:
        raise OutputError("The disk is full.")

    monkeypatch.setattr(protocol, "pack_array", full)
    with pytest.raises(OutputError, match="full"):
        client.start(request("quick"), Ear())
    assert not client.busy
    assert leftovers(temporary) == []


# --- how the worker is started ---------------------------------------------------------------------


def test_the_command_runs_the_real_worker() -> None:
    """The real engine is not asked for anything: the job names a model that does not exist."""
    command = worker_command(sys.executable)
    client = WorkerClient(command, worker_environment(REPOSITORY / "MedSegAI"))
    error = only_error(run(client, "no such model"))
    assert "no such model" in str(error), error
    client.close()


def test_the_package_is_found_first_and_what_was_set_before_stays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PYTHONPATH", "/somewhere/else")
    path = worker_environment(Path("/module"))["PYTHONPATH"]
    assert path == os.pathsep.join(["/module", "/somewhere/else"])
    monkeypatch.delenv("PYTHONPATH")
    assert worker_environment(Path("/module"))["PYTHONPATH"] == "/module"


# --- the queue with a real worker ------------------------------------------------------------------


def test_the_queue_goes_on_after_a_crash_in_the_same_order(client: WorkerClient) -> None:
    queue = JobQueue(client)
    behaviours = ["quick", "crash", "refuse", "quick"]
    ears = [Ear() for _ in behaviours]
    for behaviour, ear in zip(behaviours, ears, strict=True):
        queue.add(behaviour, functools.partial(request, behaviour), ear)
    until(lambda: not queue.busy)
    assert [entry.state for entry in queue.entries] == ["done", "failed", "failed", "done"]
    assert [ear.told for ear in ears] == [1, 1, 1, 1]
    assert "crashed" in queue.entries[1].message


def test_cancelling_the_queue_leaves_nothing_under_way(
    client: WorkerClient, temporary: Path
) -> None:
    queue, ear = JobQueue(client), Ear()
    for behaviour in ("mother", "quick"):
        queue.add(behaviour, functools.partial(request, behaviour), ear)
    until(lambda: len(ear.events) > 1)
    started = time.monotonic()
    queue.cancel_all()
    until(lambda: not queue.busy)
    assert time.monotonic() - started < 2.5
    assert [type(error) for error in ear.errors] == [Cancelled, Cancelled]
    assert not client.busy
    assert leftovers(temporary) == []

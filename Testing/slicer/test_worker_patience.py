"""The client and time: workers that hang, stall, idle or are killed, and many jobs in a row."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import pythonqt
from medsegai.errors import Cancelled, WorkerError
from MedSegAILib.worker import client as worker_client
from MedSegAILib.worker import process as worker_process
from MedSegAILib.worker.client import WorkerClient
from MedSegAILib.worker.location import WorkerLocation
from worker_help import (
    ENVIRONMENT,
    FAKE_WORKER,
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


@pytest.fixture
def pid(client: WorkerClient) -> int:
    """Of the worker, which has done a job already."""
    return int(run(client, "quick").results[0].provenance["pid"])


def test_a_worker_that_hangs_is_ended_and_the_next_job_works(
    client: WorkerClient, pid: int, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_client, "SILENCE_SECONDS", 3.0)
    error = only_error(run(client, "stuck"))
    assert isinstance(error, WorkerError)
    assert "did not respond for 3 s" in str(error)
    assert gone(pid)
    assert leftovers(temporary) == []
    assert len(run(client, "quick").results) == 1


def test_a_worker_that_works_in_silence_is_left_alone(
    client: WorkerClient, pid: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long native call makes no progress, but the process says that it is alive."""
    monkeypatch.setattr(worker_client, "SILENCE_SECONDS", 3.0)
    ear = Ear()
    client.start(request("deaf"), ear)
    pythonqt.process_events(4500)
    assert not ear.told
    client.cancel()
    until(lambda: ear.told)


def test_an_interface_that_was_blocked_blames_nobody(
    client: WorkerClient, pid: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when Slicer loads a scene for minutes, or the computer slept."""
    monkeypatch.setattr(worker_client, "SILENCE_SECONDS", 1.5)
    ear = Ear()
    client.start(request("slow"), ear)
    until(lambda: ear.events)
    time.sleep(2.5)
    client._tick()
    assert not ear.told
    client.cancel()
    until(lambda: ear.told)
    assert isinstance(only_error(ear), Cancelled)


def test_a_job_that_makes_no_progress_is_told_once(client: WorkerClient, pid: int) -> None:
    client.stall_seconds = 0.5
    ear, warnings = Ear(), []
    client.stalled.connect(lambda: warnings.append(time.monotonic()))
    client.start(request("deaf"), ear)
    until(lambda: warnings)
    pythonqt.process_events(800)
    assert len(warnings) == 1
    assert not ear.told
    client.cancel()
    until(lambda: ear.told)


def test_warming_up_starts_the_process_before_there_is_a_job(client: WorkerClient) -> None:
    assert not client.warm
    client.warm_up()
    until(lambda: client._hello)
    assert client.warm
    assert not client.busy
    worker = client._hello["pid"]
    client.warm_up()
    assert run(client, "quick").results[0].provenance["pid"] == worker


def test_warming_up_what_does_not_exist_is_told_to_the_first_job() -> None:
    client = make_client(command=["/nowhere/python", "-m", "medsegai.worker"])
    client.warm_up()
    pythonqt.process_events(300)
    assert not client.warm
    assert "/nowhere/python" in str(only_error(run(client, "quick")))
    client.close()


def test_a_process_without_a_job_ends_after_a_while(client: WorkerClient, pid: int) -> None:
    client.idle_seconds = 0.6
    until(lambda: not client.warm)
    until(lambda: gone(pid))
    again = run(client, "quick").results[0].provenance["pid"]
    assert again != pid


def test_a_job_is_no_idling(client: WorkerClient, pid: int) -> None:
    client.idle_seconds = 0.5
    assert run(client, "short").results[0].provenance["pid"] == pid


def test_a_job_that_meets_the_end_of_idling_gets_a_new_process(
    client: WorkerClient, pid: int
) -> None:
    client.idle_seconds = 0.3
    until(lambda: client._leaving)
    client.idle_seconds = 1800
    assert run(client, "quick").results[0].provenance["pid"] != pid


def test_a_job_that_comes_while_the_process_is_told_to_end_goes_to_the_new_one(
    client: WorkerClient, pid: int
) -> None:
    """What tells that `quit` has left comes while the end is waited for; nothing else may leave then."""
    client._let_go()
    assert run(client, "quick").results[0].provenance["pid"] != pid


def test_a_process_that_does_not_die_in_time_holds_up_nobody(
    client: WorkerClient, pid: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A computer can stand still for seconds, and a killed process with it."""
    monkeypatch.setattr(worker_process, "END_SECONDS", 0.0)
    client._leaving = True  # its process is of no more use
    assert run(client, "quick").results[0].provenance["pid"] != pid
    until(lambda: gone(pid))
    assert run(client, "quick").results
    until(lambda: not client._process._dying)


def test_another_place_counts_from_the_next_job(client: WorkerClient, pid: int) -> None:
    there = WorkerLocation.running(
        [sys.executable, str(FAKE_WORKER)], ENVIRONMENT | {"MEDSEGAI_FAKE_START": "chatter"}
    )
    ear = Ear()
    client.start(request("short"), ear)
    client.set_place(there)
    until(lambda: ear.told)
    assert ear.results[0].provenance["pid"] == pid
    assert run(client, "quick").results[0].provenance["pid"] != pid
    assert "Welcome" in client.log
    assert gone(pid)


def test_choosing_another_place_ends_an_idle_process(client: WorkerClient, pid: int) -> None:
    client.set_place(WorkerLocation.other("/nowhere"))
    until(lambda: gone(pid))
    assert "No Python was found at /nowhere" in str(only_error(run(client, "quick")))
    assert not client.busy


@pytest.mark.parametrize("stage", ["read", "prepare", "predict", "labels", "refine"])
def test_a_process_that_the_system_ends_is_told_in_every_stage(temporary: Path, stage: str) -> None:
    place = WorkerLocation.running(
        [sys.executable, str(FAKE_WORKER)], ENVIRONMENT | {"MEDSEGAI_FAKE_DIE": stage}
    )
    client, freed = WorkerClient(place), []
    client.freed.connect(lambda: freed.append(client.busy))
    ear = run(client, "steps")
    assert "memory ran out" in str(only_error(ear))
    assert ear.events[-1].stage == stage
    assert freed == [False]
    assert leftovers(temporary) == []
    assert len(run(client, "quick").results) == 1
    client.close()


@pytest.mark.parametrize("stage", ["read", "prepare", "predict", "labels", "refine"])
def test_a_job_stops_in_every_stage_and_the_process_stays(
    client: WorkerClient, pid: int, stage: str
) -> None:
    ear = Ear()
    client.start(request("steps"), ear)
    until(lambda: ear.events and ear.events[-1].stage == stage)
    started = time.monotonic()
    client.cancel()
    until(lambda: ear.told)
    assert time.monotonic() - started < 2
    assert isinstance(only_error(ear), Cancelled)
    assert run(client, "quick").results[0].provenance["pid"] == pid


def open_files(process: int) -> int:
    return len(list(Path(f"/proc/{process}/fd").iterdir()))


def test_ten_jobs_in_a_row_leave_nothing_behind(
    client: WorkerClient, pid: int, temporary: Path
) -> None:
    run(client, "quick")
    before = open_files(pid), open_files(os.getpid())
    for _ in range(10):
        assert len(run(client, "quick").results) == 1
    assert (open_files(pid), open_files(os.getpid())) == before
    assert leftovers(temporary) == []


def test_failures_in_a_row_leave_nothing_behind(client: WorkerClient, temporary: Path) -> None:
    """New processes each time: neither files nor folders nor zombies stay."""
    only_error(run(client, "crash"))
    before = open_files(os.getpid())
    for behaviour in ("crash", "out of memory", "not json"):
        only_error(run(client, behaviour))
    assert open_files(os.getpid()) <= before
    assert leftovers(temporary) == []
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    assert all(Path(f"/proc/{child}/stat").exists() for child in children)
    assert not client.warm


@pytest.fixture
def two_clients() -> Iterator[tuple[WorkerClient, WorkerClient]]:
    clients = make_client(), make_client()
    yield clients
    for each in clients:
        each.close()


def test_two_clients_at_once_do_not_meet(
    two_clients: tuple[WorkerClient, WorkerClient], temporary: Path
) -> None:
    """As two Slicers: the crash of one worker, and the end of one client, leave the other alone."""
    first, second = two_clients
    slow, ear = Ear(), Ear()
    first.start(request("slow"), slow)
    second.start(request("quick"), ear)
    until(lambda: slow.events and ear.told)
    assert len(ear.results) == 1
    only_error(run(second, "crash"))
    count = len(slow.events)
    second.close()
    until(lambda: len(slow.events) > count)
    assert len(leftovers(temporary)) == 1
    first.cancel()
    until(lambda: slow.told)
    assert isinstance(only_error(slow), Cancelled)


def test_a_listener_that_fails_loses_no_later_message(client: WorkerClient) -> None:
    class Broken(Ear):
        def progressed(self, event: object) -> None:
            raise KeyError("a defect of the panel")

    ear = Broken()
    client.start(request("quick"), ear)
    until(lambda: ear.told)
    assert len(ear.results) == 1, ear.errors
    assert pythonqt.slot_errors
    pythonqt.slot_errors.clear()
    assert len(run(client, "quick").results) == 1


PYTHON_WITHOUT = """
import sys
sys.modules[{package!r}] = None
import runpy
runpy.run_module("medsegai.worker", run_name="__main__")
"""


@pytest.mark.parametrize(
    ("package", "words"), [("torch", "PyTorch extension"), ("numpy", "lacks the package numpy")]
)
def test_a_python_that_lacks_a_package_is_told_with_the_way_out(package: str, words: str) -> None:
    client = make_client(command=[sys.executable, "-c", PYTHON_WITHOUT.format(package=package)])
    error = only_error(run(client, "brain"))
    assert isinstance(error, WorkerError)
    assert words in str(error), error
    client.close()

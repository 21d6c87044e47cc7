"""A batch on several workers: what ends or is missing costs one case at most, and is reported."""

from __future__ import annotations

import contextlib
import csv
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Event, Thread
from types import SimpleNamespace
from typing import Any

import dask.config
import nibabel
import numpy as np
import psutil
import pytest
import trustme
from distributed import Client

import fake_engine
import fake_engine_preload
from medsegai import __version__
from medsegai.cli import main
from medsegai.commands.batch_workers import Rate
from medsegai.errors import Cancelled, InputError, MedSegAIError, RequestError, WorkerError
from medsegai.output.batch import Batch
from medsegai.output.cases import find_cases
from medsegai.output.cluster import connection, jobs, worker
from medsegai.output.layouts import BatchFiles
from medsegai.progress import Progress
from medsegai.request import SegmentationRequest

PRELOAD = fake_engine_preload.__file__
SOON = 45.0


def save(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    voxels = np.random.default_rng(seed).integers(0, 200, (9, 7, 8), dtype=np.int16)
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([1.0, 2.0, 3.0, 1.0])), path)
    return path


def scans(folder: Path, *names: str) -> Path:
    for seed, name in enumerate(names):
        save(folder / f"{name}.nii.gz", seed)
    return folder


def table(out: Path) -> dict[str, dict[str, str]]:
    with (out / "batch.csv").open(newline="") as file:
        return {row["case"]: row for row in csv.DictReader(file)}


def states(out: Path) -> dict[str, str]:
    return {name: row["state"] for name, row in table(out).items()}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """Of two workers with the made-up engine and its model."""
    models = tmp_path_factory.mktemp("models")
    fake_engine.write_model(models)
    with (
        pytest.MonkeyPatch.context() as patch,
        dask.config.set({"distributed.worker.preload": [PRELOAD]}),
    ):
        patch.setenv("MEDSEGAI_MODELS", str(models))
        with connection.local_workers(2) as client:
            yield client


@pytest.fixture
def batch(model: str, tmp_path: Path) -> Any:
    """Runs the scans of tmp_path/scans into tmp_path/out on a client's workers."""

    def run(client: Client, cancel: Event | None = None, told: list[str] | None = None) -> Batch:
        cases = find_cases(tmp_path / "scans", 1)
        request = SegmentationRequest(cases[0].inputs, models=(model,))
        made = Batch(cases, request, BatchFiles(tmp_path / "out"))
        made.check(resume=True, overwrite=False)
        tell = [] if told is None else told
        made.run(jobs.on_workers(client, cancel or Event(), tell.append))
        return made

    return run


# What workers do


def test_what_ends_a_worker_costs_no_other_case(client: Client, batch: Any, tmp_path: Path) -> None:
    """`killer` ends each worker that has it, `once` the first, `written` after its files were there."""
    folder = scans(tmp_path / "scans", "a", "b", "c", "d", "killer-x", "once-y", "written-z")
    (folder / "b.nii.gz").write_bytes(b"no image")
    batch(client)
    out = tmp_path / "out"
    failed = {name for name, state in states(out).items() if state == "failed"}
    assert failed == {"b", "killer-x"}
    assert set(states(out).values()) == {"done", "failed"}
    assert "Two workers ended" in table(out)["killer-x"]["message"]
    left = {path.name for path in out.iterdir()}
    done = {"a", "c", "d", "once-y", "written-z"}
    assert left == {f"{n}{e}" for n in done for e in (".seg.nrrd", ".json")} | {
        "batch.csv",
        "volumes.csv",
    }


def test_the_workers_are_of_one_case_each_and_reached_from_here_alone(client: Client) -> None:
    def inside() -> tuple[str | None, int]:
        return os.environ.get("OMP_NUM_THREADS"), os.getpid()

    client.wait_for_workers(2, timeout=SOON)  # a test before may have ended one
    found = client.run(inside)
    assert len(found) == 2
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, connection.usable_cores() // 2))
    assert {threads for threads, _ in found.values()} == {threads}
    assert set(client.nthreads().values()) == {1}
    assert {it["memory_limit"] for it in client.scheduler_info()["workers"].values()} == {0}
    mine = [psutil.Process(), *psutil.Process().children(recursive=True)]
    assert {pid for _, pid in found.values()} <= {process.pid for process in mine}
    open_to = {
        connected.laddr.ip
        for process in mine
        for connected in process.net_connections()
        if connected.status == psutil.CONN_LISTEN
    }
    assert open_to == {"127.0.0.1"}
    assert client.scheduler.address.startswith("tls://")
    with (
        pytest.raises((OSError, TypeError, TimeoutError)),
        Client(client.scheduler.address, timeout=2),
    ):
        pass  # another user of this computer, without the certificate


def test_ctrl_c_stops_the_cases_and_keeps_what_is_done(
    client: Client, batch: Any, tmp_path: Path
) -> None:
    scans(tmp_path / "scans", "a", "b", "slow-1", "slow-2", "slow-3")
    cancel = Event()
    out = tmp_path / "out"

    def watch() -> None:
        while not {"slow-1", "slow-2"} <= {n for n, s in states(out).items() if s == "running"}:
            time.sleep(0.05)
        cancel.set()

    out.mkdir()
    (out / "batch.csv").write_text("case,state\n")
    watching = Thread(target=watch, daemon=True)
    watching.start()
    with pytest.raises(Cancelled):
        batch(client, cancel)
    stopped = time.monotonic()
    assert states(out) == {
        "a": "done",
        "b": "done",
        **dict.fromkeys(("slow-1", "slow-2", "slow-3"), "waiting"),
    }
    while any(client.processing().values()):
        time.sleep(0.05)
        assert time.monotonic() - stopped < SOON / 3
    for scan in (tmp_path / "scans").glob("slow*"):
        scan.rename(scan.with_name(f"quick-{scan.name}"))
    batch(client)
    assert set(states(out).values()) == {"done"}


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("version", r"has MedSegAI .*, not 0\.0 as here"),
        ("folder", r"does not see the folder .*out"),
        ("model", "its model toy differs from the one here"),
    ],
)
def test_a_worker_that_cannot_do_the_cases_gets_none(
    what: str,
    said: str,
    client: Client,
    batch: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scans(tmp_path / "scans", "a")
    if what == "version":
        monkeypatch.setattr(jobs, "__version__", "0.0")
    elif what == "model":
        monkeypatch.setattr(jobs, "model_hash", lambda name: "0" * 64)
    else:
        token = jobs._token

        @contextlib.contextmanager
        def elsewhere(folder: Path) -> Iterator[tuple[Path, str]]:
            with token(folder) as (path, content):
                path.unlink()
                yield path, content

        monkeypatch.setattr(jobs, "_token", elsewhere)
    told: list[str] = []
    with pytest.raises(WorkerError, match=said):
        batch(client, told=told)
    assert len(told) == 2
    assert states(tmp_path / "out") == {"a": "waiting"}


def test_a_worker_that_cannot_read_a_scan_gets_no_more(
    client: Client, batch: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would fail one case after another, faster than a good worker does one."""
    scans(tmp_path / "scans", *"abcdefgh")
    monkeypatch.setattr(jobs, "do_case", fake_engine_preload.blind)
    told: list[str] = []
    batch(client, told=told)
    assert states(tmp_path / "out") == dict.fromkeys("abcdefgh", "done")
    assert len(told) == 1
    assert "is not used: it cannot read" in told[0]


def test_a_scan_that_no_computer_can_read_is_a_failed_case(
    client: Client, batch: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scans(tmp_path / "scans", *"ab")
    monkeypatch.setattr(jobs, "do_case", fake_engine_preload.removed)
    told: list[str] = []
    batch(client, told=told)
    assert states(tmp_path / "out") == dict.fromkeys("ab", "failed")
    assert "does not exist" in table(tmp_path / "out")["a"]["message"]
    assert told == []


def test_workers_that_end_while_they_start_are_not_waited_for(
    client: Client, batch: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scans(tmp_path / "scans", "a")
    monkeypatch.setattr(jobs, "MOST_STARTS", 2)
    monkeypatch.setattr(jobs, "look", fake_engine_preload.end_at_once)
    with pytest.raises(WorkerError, match="2 workers ended while they started"):
        batch(client)
    assert states(tmp_path / "out") == {"a": "waiting"}


def test_a_worker_of_several_threads_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    several = SimpleNamespace(state=SimpleNamespace(nthreads=4))
    monkeypatch.setattr(worker, "get_worker", lambda: several)
    plugin = worker.CaseWorker(
        "x",
        worker.Expected(__version__, {}, SegmentationRequest((tmp_path,)), (tmp_path / "t", "")),
    )
    assert "--nthreads 1" in plugin.problem()


def test_what_would_go_wrong_with_every_case_ends_the_batch(
    client: Client, batch: Any, tmp_path: Path
) -> None:
    scans(tmp_path / "scans", "a")
    made = find_cases(tmp_path / "scans", 1)
    request = SegmentationRequest(made[0].inputs, models=("gone",))
    with pytest.raises(MedSegAIError, match="gone"):
        Batch(made, request, BatchFiles(tmp_path / "out")).run(
            jobs.on_workers(client, Event(), print)
        )


# Which schedulers


@pytest.mark.parametrize(
    "address",
    [
        "tcp://127.0.0.1:8786",
        "127.0.0.1:8786",
        "tcp://[::1]:8786",
        "tls://cluster:8786",
        "localhost:1",
    ],
)
def test_loopback_and_what_is_encrypted_may_be_used(address: str) -> None:
    assert connection.check_address(address).endswith(address)


@pytest.mark.parametrize(
    "address",
    ["tcp://10.0.0.5:8786", "cluster:8786", "http://127.0.0.1:8787", "inproc://x", "tcp://"],
)
def test_no_other_may(address: str) -> None:
    with pytest.raises(RequestError, match=r"not encrypted|not the address"):
        connection.check_address(address)


@pytest.mark.parametrize("content", [None, "", "{", "[]", '{"id": 1}', "[" * 100_000])
def test_a_file_that_is_not_of_a_scheduler_is_named(content: str | None, tmp_path: Path) -> None:
    path = tmp_path / "scheduler.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=r"scheduler\.json"), connection.scheduler_at(str(path)):
        pass


@pytest.fixture
def web_server() -> Iterator[str]:
    """The address of a server that answers anything as a web server does, and keeps the connection."""
    with socket.create_server(("127.0.0.1", 0)) as server, contextlib.ExitStack() as kept:

        def answer() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _address = server.accept()
                    kept.callback(connection.close)
                    connection.sendall(b"HTTP/1.0 400 Bad request syntax" + b" " * 500)

        Thread(target=answer, daemon=True).start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)


def test_a_server_that_is_not_a_scheduler_is_not_waited_for(
    web_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "ANSWER_SECONDS", 0.5)
    monkeypatch.setattr(connection, "CLOSE_SECONDS", 0.5)
    with (
        pytest.raises(WorkerError, match=r"does not respond|not a Dask scheduler"),
        connection.scheduler_at(web_server),
    ):
        pass


def test_logs_with_a_level_of_their_own_are_silent_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dask's configuration gives `distributed.client` one, which printed a line when a scheduler died."""
    own = logging.getLogger("distributed.client")
    monkeypatch.setattr(own, "level", logging.WARNING)
    heard: list[bool] = []

    def fail(address: str, timeout: float) -> Client:
        heard.append(own.isEnabledFor(logging.ERROR))
        raise OSError("gone")

    monkeypatch.setattr(connection, "Client", fail)
    with pytest.raises(WorkerError), connection.scheduler_at("127.0.0.1:1"):
        pass
    assert heard == [False]
    assert own.level == logging.WARNING


def test_the_wait_for_a_scheduler_can_be_stopped(web_server: str) -> None:
    progress = Progress()
    progress.cancel.set()
    with pytest.raises(Cancelled), connection.scheduler_at(web_server, progress.check):
        pass


def test_cards_are_dealt_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, 3")
    assert connection.visible_gpus() == ["2", "3"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert connection.visible_gpus() == []
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    program = tmp_path / "nvidia-smi"
    program.write_text(
        "#!/bin/sh\necho 'GPU 0: NVIDIA H200 (UUID: x)'\necho 'GPU 1: NVIDIA H200'\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert connection.visible_gpus() == ["0", "1"]
    program.write_text("#!/bin/sh\nexit 9\n")
    assert connection.visible_gpus() == []


def test_rate_and_time_left_are_of_what_was_done_now() -> None:
    now = 0.0
    rate = Rate(10, 4, lambda: now)
    now = 120.0
    rate.one_more()
    event = rate.one_more()
    assert (event.stage, event.fraction, event.seconds_left) == ("6 of 10 cases, 60/h", 0.6, 240.0)


@pytest.mark.parametrize("number", ["0", "-2"])
def test_a_number_of_workers_that_makes_no_sense_is_refused(
    number: str, model: str, requests: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scans(tmp_path / "scans", "a")
    words = ["batch", f"{tmp_path}/scans", "-o", f"{tmp_path}/out", "--model", model]
    assert main([*words, "--workers", number]) == 2
    assert "at least 1" in capsys.readouterr().err


# Processes that end


@contextlib.contextmanager
def running(*command: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """A process in a separate group, which is ended with all that it started."""
    process = subprocess.Popen(
        [sys.executable, *command],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def wait_for(what: Any) -> None:
    end = time.monotonic() + SOON
    while not what():
        assert time.monotonic() < end
        time.sleep(0.05)


def until_running(process: subprocess.Popen[str], count: int) -> None:
    """Read events until so many cases are under way."""
    seen: set[str] = set()
    assert process.stdout is not None
    while len(seen) < count:
        event = json.loads(process.stdout.readline())
        if event.get("state") == "running":
            seen.add(event["case"])


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT], ids=["killed", "Ctrl-C"])
def test_a_driver_that_ends_takes_its_workers_with_it(
    how: signal.Signals, model: str, tmp_path: Path, requests: object
) -> None:
    scans(tmp_path / "scans", "a", "slow-1", "slow-2")
    out = tmp_path / "out"
    words = ["batch", f"{tmp_path}/scans", "-o", str(out), "--model", model, "--events"]
    started = [fake_engine.__file__, *words, "--workers", "2"]
    with running(*started, DASK_DISTRIBUTED__WORKER__PRELOAD=PRELOAD) as driver:
        until_running(driver, 3)
        children = psutil.Process(driver.pid).children(recursive=True)
        assert len(children) >= 2
        if how == signal.SIGKILL:
            os.kill(driver.pid, how)
        else:
            os.killpg(driver.pid, how)  # as a terminal does
        wait_for(
            lambda: not any(child.is_running() and child.status() != "zombie" for child in children)
        )
        code = driver.wait(timeout=SOON)
        assert driver.stderr is not None
        assert "Traceback" not in driver.stderr.read()
    assert code == (-signal.SIGKILL if how == signal.SIGKILL else 130)
    assert states(out)["a"] in {"done", "running"}
    for scan in (tmp_path / "scans").glob("slow*"):
        scan.rename(scan.with_name(f"quick-{scan.name}"))
    assert main([*words, "--resume"]) == 0
    assert set(states(out).values()) == {"done"}
    assert {path.suffix for path in out.iterdir()} == {".nrrd", ".json", ".csv"}


def test_ctrl_c_while_workers_start_ends_the_batch_as_later(
    model: str, tmp_path: Path, requests: object
) -> None:
    scans(tmp_path / "scans", "a")
    words = ["batch", f"{tmp_path}/scans", "-o", f"{tmp_path}/out", "--model", model, "-q"]
    with running(fake_engine.__file__, *words, "--workers", "2") as driver:
        wait_for((tmp_path / "out" / "batch.csv").exists)  # the workers start after it
        time.sleep(1.0)
        os.killpg(driver.pid, signal.SIGINT)
        code = driver.wait(timeout=SOON)
        assert driver.stderr is not None
        said = driver.stderr.read()
    assert code == 130
    assert "Traceback" not in said
    assert "did not start" not in said


@pytest.fixture
def certificates(tmp_path: Path) -> dict[str, str]:
    """Dask's configuration of TLS, as variables of the environment."""
    authority = trustme.CA()
    identity = authority.issue_cert("127.0.0.1")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    identity.private_key_and_cert_chain_pem.write_to_path(tmp_path / "me.pem")
    name = "DASK_DISTRIBUTED__COMM__TLS__"
    found = {f"{name}CA_FILE": f"{tmp_path}/ca.pem"}
    for role in ("SCHEDULER", "WORKER", "CLIENT"):
        found |= {
            f"{name}{role}__CERT": f"{tmp_path}/me.pem",
            f"{name}{role}__KEY": f"{tmp_path}/me.pem",
        }
    return found


def test_a_scheduler_that_is_gone_is_reported_and_no_name_stands_in_a_log(
    certificates: dict[str, str], model: str, tmp_path: Path
) -> None:
    """A scheduler and a worker as a cluster has them, encrypted, with all their logs and with clocks apart."""
    scans(tmp_path / "scans", "Meier-1", "Meier-2", "slow-Meier")
    (tmp_path / "scans" / "Meier-2.nii.gz").write_bytes(b"no image")
    out, file = tmp_path / "out", tmp_path / "scheduler.json"
    words = ["batch", f"{tmp_path}/scans", "-o", str(out), "--model", model, "--events"]
    where = ["--host", "127.0.0.1", "--scheduler-file", str(file)]
    alone = {**certificates, "DASK_DISTRIBUTED__LOGGING__DISTRIBUTED": "debug"}
    begin = ["-m", "dask", "scheduler", "--protocol", "tls", "--port", "0", *where]
    join = [
        "-c",
        "import time; now = time.time; time.time = lambda: now() + 2e5\n"  # two days ahead
        "from dask.__main__ import main; main()",
        "worker",
        "--nthreads",
        "1",
        "--no-dashboard",
        "--preload",
        PRELOAD,
        *where,
    ]
    with contextlib.ExitStack() as stack:
        scheduler = stack.enter_context(
            running(*begin, "--no-dashboard", "--dashboard-address", "127.0.0.1:0", **alone)
        )
        wait_for(file.exists)
        helper = stack.enter_context(running(*join, **alone))
        driver = stack.enter_context(
            running(fake_engine.__file__, *words, "--scheduler", str(file), **certificates)
        )
        until_running(driver, 3)
        os.kill(scheduler.pid, signal.SIGKILL)
        killed = time.monotonic()
        _, said = driver.communicate(timeout=60)
        assert time.monotonic() - killed < 60
        assert driver.returncode == WorkerError.exit_code, said
        assert "no longer responds" in said
        os.killpg(helper.pid, signal.SIGKILL)
        logs = "".join(part for it in (scheduler, helper) for part in it.communicate())
    assert len(logs) > 200
    assert "Meier" not in logs
    assert states(out) == {"Meier-1": "done", "Meier-2": "failed", "slow-Meier": "waiting"}

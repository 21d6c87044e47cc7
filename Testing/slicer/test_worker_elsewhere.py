"""The worker on another computer: a made-up ssh runs it here, with a separate temporary folder."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import pythonqt
from medsegai.engine import segment
from medsegai.errors import Cancelled, ModelError, OutputError, RequestError, WorkerError
from medsegai.request import SegmentationRequest
from medsegai.volume import Geometry, Volume
from medsegai.worker.array_transfer import BLOCK_BYTES, ExchangeFolder
from MedSegAILib.worker import client as worker_client
from MedSegAILib.worker import location as worker_place
from MedSegAILib.worker.client import WorkerClient
from MedSegAILib.worker.location import WorkerLocation
from tiny_quicknat import write_model
from worker_help import (
    FAKE_WORKER,
    LAST,
    REPOSITORY,
    Ear,
    leftovers,
    only_error,
    request,
    run,
    until,
    until_gone,
)

pytestmark = pytest.mark.usefixtures("temporary")

SSH = f"""#!/bin/sh
while [ "$1" != "--" ]; do shift; done
host=$2 command=$3
case $host in
gone) echo "ssh: connect to host gone port 22: No route to host" >&2; exit 255 ;;
stranger) echo "Host key verification failed." >&2; exit 255 ;;
cut) timeout 2 sh -c "$command"; echo "client_loop: send disconnect: Broken pipe" >&2; exit 255 ;;
esac
cd /
export TMPDIR="$MEDSEGAI_TEST_ELSEWHERE" PYTHONPATH={str(REPOSITORY / "MedSegAI")!r} OMP_NUM_THREADS=1
unset PYTHONSAFEPATH
echo "Welcome to $host" >&2
sh -c "$command"
"""
"""The shell between us and the worker stays, as the real ssh does: to kill it is not to kill the worker."""

FAKE = f"{sys.executable} {FAKE_WORKER} worker"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The temporary folder of the other computer."""
    folder = tmp_path_factory.mktemp("elsewhere")
    program = folder / "bin" / "ssh"
    program.parent.mkdir()
    program.write_text(SSH)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("MEDSEGAI_TEST_ELSEWHERE", str(folder))
    return folder


@pytest.fixture
def client() -> Iterator[WorkerClient]:
    client = WorkerClient(WorkerLocation.ssh("box", FAKE))
    yield client
    client.close()


def noise(blocks: int, behaviour: str = "quick") -> SegmentationRequest:
    """An image that does not compress, of so many blocks."""
    shape = (blocks, 1024, BLOCK_BYTES // 1024)
    block = np.random.default_rng(0).integers(0, 256, shape[1:]).astype(np.uint8)
    voxels = np.broadcast_to(block, shape).copy()
    volume = Volume(voxels, Geometry.from_spacing(shape, (1, 1, 1)), "head")
    return SegmentationRequest((volume,), models=(behaviour,))


def test_a_job_runs_elsewhere_and_its_arrays_come_back(
    client: WorkerClient, temporary: Path, elsewhere: Path
) -> None:
    ear, sent = Ear(), noise(3)
    client.start(sent, ear)
    until(lambda: ear.told)
    (result,) = ear.results
    image = sent.inputs[0].voxels  # type: ignore[union-attr]
    expected = (image > 100).astype(np.uint8) + (image > 200)
    np.testing.assert_array_equal(result.labelmap.voxels, expected)
    assert result.labelmap.geometry.matches(sent.inputs[0].geometry)  # type: ignore[union-attr]
    assert leftovers(temporary) == []
    assert leftovers(elsewhere) == []


def test_the_fraction_grows_from_the_first_block_to_the_last(client: WorkerClient) -> None:
    ear = Ear()
    client.start(noise(8), ear)
    until(lambda: ear.told)
    stages = list(dict.fromkeys(event.stage for event in ear.events))
    assert stages == ["send", "read", "predict", "receive"]
    fractions = [event.fraction for event in ear.events]
    assert fractions == sorted(fractions)
    assert fractions[0] < 0.02
    assert fractions[-1] == pytest.approx(1.0)
    assert len([event for event in ear.events if event.stage == "send"]) >= 8


def test_the_second_job_finds_the_same_process(client: WorkerClient) -> None:
    pids = {run(client, "quick").results[0].provenance["pid"] for _ in range(3)}
    assert len(pids) == 1


def test_what_waits_to_be_sent_is_a_few_blocks(client: WorkerClient) -> None:
    ear, most = Ear(), 0
    client.start(noise(40), ear)
    while not ear.told:
        most = max(most, client._process.unsent)
        pythonqt.process_events(1)
    assert 0 < most < 4 * BLOCK_BYTES
    assert len(ear.results) == 1


@pytest.mark.parametrize("behaviour", ["slow", "deaf", "mother"])
def test_cancel_is_answered_within_two_seconds_and_nothing_stays(
    client: WorkerClient, elsewhere: Path, behaviour: str
) -> None:
    ear = Ear()
    client.start(request(behaviour), ear)
    until(lambda: ear.events and ear.events[-1].stage.startswith(LAST[behaviour]))
    worker = client._hello["pid"]
    started = time.monotonic()
    client.cancel()
    until(lambda: ear.told)
    assert time.monotonic() - started < 2.5
    assert isinstance(only_error(ear), Cancelled)
    if behaviour != "slow":
        until_gone(worker)
    until(lambda: leftovers(elsewhere) == [])
    assert len(run(client, "quick").results) == 1


def test_cancel_while_arrays_are_sent(client: WorkerClient, elsewhere: Path) -> None:
    run(client, "quick")
    worker, ear = client._hello["pid"], Ear()
    client.start(noise(120), ear)
    until(lambda: len(ear.events) > 5)
    assert leftovers(elsewhere)
    started = time.monotonic()
    client.cancel()
    until(lambda: ear.told)
    assert time.monotonic() - started < 2.5
    assert isinstance(only_error(ear), Cancelled)
    assert ear.events[-1].stage == "send"
    until(lambda: leftovers(elsewhere) == [])
    assert run(client, "quick").results[0].provenance["pid"] == worker


def test_closing_ends_the_worker_elsewhere(client: WorkerClient, elsewhere: Path) -> None:
    ear = Ear()
    client.start(request("deaf"), ear)
    until(lambda: len(ear.events) > 1)
    worker = client._hello["pid"]
    client.close()
    assert isinstance(only_error(ear), Cancelled)
    until_gone(worker)
    until(lambda: leftovers(elsewhere) == [])


def test_what_a_crash_leaves_elsewhere_goes_with_the_next_job(
    client: WorkerClient, elsewhere: Path, temporary: Path
) -> None:
    assert "memory ran out" in str(only_error(run(client, "out of memory")))
    assert leftovers(elsewhere), "the test should leave a folder behind"
    assert leftovers(temporary) == []
    assert len(run(client, "quick").results) == 1
    assert leftovers(elsewhere) == []


@pytest.mark.parametrize(
    ("host", "program", "words"),
    [
        ("gone", FAKE, "No route to host"),
        ("gone", FAKE, "The computer gone cannot be reached"),
        ("stranger", FAKE, "Host key verification failed"),
        ("box", "/nowhere/medsegai worker", "The program /nowhere/medsegai was not found on box"),
    ],
)
def test_a_computer_that_cannot_do_it_is_told(
    host: str, program: str, words: str, temporary: Path
) -> None:
    client = WorkerClient(WorkerLocation.ssh(host, program))
    error = only_error(run(client, "quick"))
    assert isinstance(error, WorkerError)
    assert words in str(error), error
    assert leftovers(temporary) == []
    client.close()


def test_a_connection_that_breaks_in_the_middle_is_told(temporary: Path) -> None:
    """`timeout` ends the worker there, and ssh says what it says then."""
    program = f"env PYTHONPATH={REPOSITORY / 'MedSegAI'} {FAKE}"
    client = WorkerClient(WorkerLocation.ssh("cut", program))
    error = only_error(run(client, "slow"))
    assert "connection broke off" in str(error)
    assert "Broken pipe" in str(error)
    assert leftovers(temporary) == []
    client.close()


def test_an_error_says_on_which_computer(client: WorkerClient) -> None:
    assert str(only_error(run(client, "refuse"))) == "On box: The device cuda:7 is unknown."


def test_a_file_of_this_computer_is_refused_before_anything_is_sent(client: WorkerClient) -> None:
    with pytest.raises(RequestError, match="box cannot read"):
        client.start(SegmentationRequest((Path("head.nii.gz"),)), Ear())
    assert not client.busy
    assert not client.warm


def test_a_model_folder_goes_by_its_id(tmp_path: Path) -> None:
    card = write_model(tmp_path / "some where")
    sent = worker_place.for_elsewhere(
        SegmentationRequest(request("x").inputs, models=(str(card.folder), "brain")),
        WorkerLocation.ssh("box"),
    )
    assert sent.models == ("tiny", "brain")
    with pytest.raises(ModelError, match="gone"):
        worker_place.for_elsewhere(
            SegmentationRequest(sent.inputs, models=("/models/gone",)), WorkerLocation.ssh("box")
        )


def test_a_full_disk_elsewhere_is_told_and_the_next_job_works(
    client: WorkerClient, elsewhere: Path
) -> None:
    """The other temporary folder is a file system of 10 MB; made by a limit on the size of files."""
    limited = f"ulimit -f 4096; {FAKE}"
    client.set_place(WorkerLocation.ssh("box", limited))
    ear = Ear()
    client.start(noise(30), ear)
    until(lambda: ear.told)
    error = only_error(ear)
    assert isinstance(error, OutputError)
    assert "On box" in str(error)
    assert "Free space" in str(error)
    assert len(run(client, "quick").results) == 1
    assert leftovers(elsewhere) == []


def test_a_full_disk_here_while_arrays_come_back_is_told(
    client: WorkerClient, monkeypatch: pytest.MonkeyPatch, temporary: Path
) -> None:
    def full(*_: object) -> None:
        raise OutputError("The disk is full.")

    monkeypatch.setattr(worker_client, "take_block", full)
    assert isinstance(only_error(run(client, "quick")), OutputError)
    assert leftovers(temporary) == []
    monkeypatch.undo()


def test_the_real_worker_runs_elsewhere(elsewhere: Path) -> None:
    client = WorkerClient(WorkerLocation.ssh("box", f"{sys.executable} -m medsegai worker"))
    error = only_error(run(client, "no such model"))
    assert isinstance(error, ModelError)
    assert "On box: There is no model 'no such model'" in str(error)
    client.close()
    until(lambda: leftovers(elsewhere) == [])


def test_a_real_network_gives_the_same_labels_elsewhere(
    elsewhere: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model lies in a folder here, and is installed under its id there."""
    here = write_model(tmp_path / "tiny")
    write_model(elsewhere / "models" / "tiny")
    monkeypatch.setenv("MEDSEGAI_MODELS", str(elsewhere / "models"))
    k, j, i = np.ogrid[:40, :48, :44]
    ball = (k - 20) ** 2 + (j - 24) ** 2 + (i - 22) ** 2 < 17**2
    voxels = np.where(ball, 600 + 10 * k + 3 * i, 0).astype(np.int16)
    head = Volume(voxels, Geometry.from_spacing(voxels.shape, (2, 2, 2)), "head")
    sent = SegmentationRequest((head,), models=(str(here.folder),), device="cpu", uncertainty=True)
    client = WorkerClient(WorkerLocation.ssh("box", f"{sys.executable} -m medsegai worker"))
    ear = Ear()
    client.start(sent, ear)
    until(lambda: ear.told)
    client.close()
    assert ear.results, ear.errors
    expected = segment(sent)
    np.testing.assert_array_equal(ear.results[0].labelmap.voxels, expected.labelmap.voxels)
    assert expected.labelmap.voxels.any()
    assert ear.results[0].entropy is not None
    np.testing.assert_allclose(
        ear.results[0].entropy.voxels,
        expected.entropy.voxels,  # type: ignore[union-attr]
        atol=1e-4,
    )


def test_the_folders_of_both_sides_are_private(client: WorkerClient, elsewhere: Path) -> None:
    ear = Ear()
    client.start(request("short"), ear)
    until(lambda: len(ear.events) > 2)
    folders = list(elsewhere.glob("medsegai-*"))
    assert folders
    assert all(folder.stat().st_mode & 0o077 == 0 for folder in folders)
    until(lambda: ear.told)
    ExchangeFolder(elsewhere).remove()

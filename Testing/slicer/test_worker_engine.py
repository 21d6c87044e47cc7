"""The client with the real worker and the real engine, on a network small enough for a test."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from medsegai.errors import Cancelled
from medsegai.progress import ProgressEvent
from medsegai.request import SegmentationRequest
from medsegai.volume import Geometry, Volume
from MedSegAILib.worker import client as worker_client
from MedSegAILib.worker.client import WorkerClient
from MedSegAILib.worker.location import WorkerLocation
from tiny_quicknat import write_model
from worker_help import Ear, leftovers, only_error, until

pytestmark = pytest.mark.usefixtures("temporary")

STAGES = ["read", "prepare", "predict", "labels", "refine"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_model(tmp_path_factory.mktemp("models") / "tiny").folder)


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerClient]:
    """One process for all tests of this file, as in Slicer."""
    os.environ["OMP_NUM_THREADS"] = "1"
    client = WorkerClient(WorkerLocation.other(sys.executable))
    client.warm_up()
    yield client
    client.close()


def head(model: str, **options: object) -> SegmentationRequest:
    shape = (40, 48, 44)
    k, j, i = np.ogrid[: shape[0], : shape[1], : shape[2]]
    ball = (k - 20) ** 2 + (j - 24) ** 2 + (i - 22) ** 2 < 17**2
    voxels = np.where(ball, 600 + 10 * k + 3 * i, 0).astype(np.int16)
    volume = Volume(voxels, Geometry.from_spacing(shape, (2, 2, 2)), "head")
    return SegmentationRequest((volume,), models=(model,), device="cpu", **options)


def run(client: WorkerClient, request: SegmentationRequest) -> Ear:
    ear = Ear()
    client.start(request, ear)
    until(lambda: ear.told)
    assert ear.results, ear.errors
    return ear


def test_a_whole_job_tells_a_fraction_that_grows_to_the_end(
    warm: WorkerClient, model: str, temporary: Path
) -> None:
    ear = run(warm, head(model, uncertainty=True))
    stages = list(dict.fromkeys(event.stage for event in ear.events))
    assert stages == STAGES
    fractions = [event.fraction for event in ear.events]
    assert fractions == sorted(fractions)
    assert fractions[0] == 0
    assert fractions[-1] == pytest.approx(1.0)
    labels = next(event for event in ear.events if event.stage == "labels")
    assert labels.fraction == pytest.approx(0.91)  # read 2, prepare 4, predict 85
    (result,) = ear.results
    assert result.labelmap.voxels.any()
    assert result.entropy is not None
    assert leftovers(temporary) == []


class CancelsIn(Ear):
    """Presses Cancel at the first word of a stage."""

    def __init__(self, client: WorkerClient, stage: str) -> None:
        super().__init__()
        self._client, self._stage = client, stage
        self.cancelled = False

    def progressed(self, event: ProgressEvent) -> None:
        super().progressed(event)
        if event.stage == self._stage and not self.cancelled:
            self.cancelled = True
            self._client.cancel()


@pytest.mark.parametrize("stage", STAGES)
def test_a_job_stops_in_every_stage(
    warm: WorkerClient,
    model: str,
    temporary: Path,
    stage: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By itself, that is: the process stays. What does not stop is ended, which other tests show."""
    monkeypatch.setattr(worker_client, "CANCEL_SECONDS", 60.0)
    run(warm, head(model))
    worker, ear = warm._hello["pid"], CancelsIn(warm, stage)
    warm.start(head(model, dropout_passes=2, uncertainty=True), ear)
    until(lambda: ear.told)
    assert ear.cancelled
    assert isinstance(only_error(ear), Cancelled)
    assert leftovers(temporary) == []
    run(warm, head(model))
    assert warm._hello["pid"] == worker, "the job did not stop by itself"
    assert Path(f"/proc/{worker}/task/{worker}/children").read_text() == ""


def resident_mb(process: int) -> float:
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def test_ten_jobs_in_a_row_grow_nothing(warm: WorkerClient, model: str, temporary: Path) -> None:
    for _ in range(3):
        run(warm, head(model, uncertainty=True, probabilities=True))
    worker = warm._hello["pid"]
    memory, files = resident_mb(worker), len(os.listdir(f"/proc/{worker}/fd"))
    for _ in range(10):
        run(warm, head(model, uncertainty=True, probabilities=True))
    assert warm._hello["pid"] == worker
    assert len(os.listdir(f"/proc/{worker}/fd")) == files
    assert resident_mb(worker) - memory < 30
    assert leftovers(temporary) == []


def test_the_second_job_loads_nothing(warm: WorkerClient, model: str) -> None:
    run(warm, head(model))
    (result,) = run(warm, head(model)).results
    assert result.seconds["prepare"] < 1


def test_a_model_that_was_removed_while_its_job_waited_is_told(
    warm: WorkerClient, tmp_path: Path
) -> None:
    ear = Ear()
    warm.start(head(str(tmp_path / "removed")), ear)
    until(lambda: ear.told)
    assert "removed" in str(only_error(ear))
    assert "There is no model" in str(only_error(ear))


def test_a_client_that_is_closed_ends_the_real_worker(model: str, temporary: Path) -> None:
    client, ear = WorkerClient(WorkerLocation.other(sys.executable)), Ear()
    client.start(head(model, dropout_passes=200), ear)
    until(lambda: len(ear.events) > 5)
    worker = client._hello["pid"]
    client.close()
    assert not Path(f"/proc/{worker}").exists()
    assert isinstance(only_error(ear), Cancelled)
    assert leftovers(temporary) == []

"""Jobs of another kind than segmenting, with the real worker: here, elsewhere, stopped and refused."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medsegai.errors import Cancelled, RequestError, WorkerError
from medsegai.labels import Label
from medsegai.models.refinement import Refinement
from medsegai.progress import Progress
from medsegai.volume import Geometry, Volume
from medsegai.worker.measure_and_export_jobs import measure_segments
from medsegai.worker.refine_job import refine
from medsegai.worker.requests import (
    ExportRequest,
    MeasurementRequest,
    Part,
    RefinementRequest,
    RefinementResult,
)
from MedSegAILib.worker.client import WorkerClient
from MedSegAILib.worker.location import WorkerLocation
from test_worker_elsewhere import elsewhere
from worker_help import REPOSITORY, Ear, leftovers, only_error, until
from worker_help import request as segment_request

__all__ = ["elsewhere"]

PLACES = {
    "here": WorkerLocation.other(sys.executable),
    "elsewhere": WorkerLocation.ssh("box", f"{sys.executable} -m medsegai worker"),
}


@pytest.fixture(params=list(PLACES))
def client(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(REPOSITORY / "MedSegAI")]))
    client = WorkerClient(PLACES[request.param])
    yield client
    client.close()


def noisy(size: int, *refinements: Refinement, **more: Any) -> RefinementRequest:
    """A block of liver with speckles around it."""
    random = np.random.default_rng(1)
    voxels = (random.random((size, size + 3, size + 5)) < 0.1).astype(np.uint8)
    voxels[: size // 2] = 1
    labelmap = Volume(voxels, Geometry.from_spacing(voxels.shape, (1, 2, 3)), "Abdomen")
    return RefinementRequest(labelmap, (Label(1, "Liver", (9, 8, 7)),), refinements, **more)


def run(client: WorkerClient, request: Any) -> Ear:
    ear = Ear()
    client.start(request, ear)
    until(lambda: ear.told)
    return ear


def test_a_segmentation_is_refined_as_without_a_worker(
    client: WorkerClient, temporary: Path
) -> None:
    request = noisy(20, Refinement("islands", {"keep": 1}))
    ear = run(client, request)
    (result,) = ear.results
    expected = refine(request, Progress())
    assert isinstance(result, RefinementResult)
    assert np.array_equal(result.labelmap.voxels, expected.labelmap.voxels)
    assert result.labelmap.geometry.matches(request.labelmap.geometry)
    assert result.words == expected.words
    assert "Remove islands: " in result.words[0]
    assert ear.events[-1].fraction == 1.0 or ear.events[-1].stage == "receive"
    assert leftovers(temporary) == []


def test_segments_are_measured_as_without_a_worker(client: WorkerClient) -> None:
    case = noisy(20)
    image = Volume(np.arange(case.labelmap.voxels.size).reshape(20, 23, 25), case.labelmap.geometry)
    request = MeasurementRequest((Part(case.labelmap, case.labels),), image)
    (result,) = run(client, request).results
    assert result == measure_segments(request, Progress())
    assert result.rows[0]["voxels"] == np.count_nonzero(case.labelmap.voxels)


def test_files_are_written_here_and_not_elsewhere(client: WorkerClient, tmp_path: Path) -> None:
    case = noisy(12)
    request = ExportRequest(case.labelmap, case.labels, {"csv": str(tmp_path / "t.csv")})
    if client.place.shares_files:
        (result,) = run(client, request).results
        assert result.files == (str(tmp_path / "t.csv"),)
        assert (tmp_path / "t.csv").is_file()
    else:
        with pytest.raises(RequestError, match="box cannot write files on this computer"):
            client.start(request, Ear())
        assert not client.busy


def test_a_mistake_comes_back_as_what_it_is_and_the_next_job_works(client: WorkerClient) -> None:
    error = only_error(run(client, noisy(8, Refinement("polish"))))
    assert isinstance(error, RequestError)
    assert "no refinement 'polish'" in str(error)
    assert run(client, noisy(8, Refinement("holes"))).results


def test_it_can_be_stopped(client: WorkerClient, temporary: Path) -> None:
    ear = Ear()
    client.start(noisy(160, *[Refinement("smoothing", {"sigma_mm": 3.0})] * 20), ear)
    until(lambda: any(event.stage == "refine" for event in ear.events))
    client.cancel()
    until(lambda: ear.told)
    assert isinstance(only_error(ear), Cancelled)
    assert leftovers(temporary) == []


def test_what_is_no_job_is_refused_before_anything_starts() -> None:
    client = WorkerClient(PLACES["here"])
    with pytest.raises(WorkerError, match="not have a job for a str"):
        client.start("segment", Ear())
    assert not client.warm
    assert not client.busy


def test_a_worker_without_the_packages_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "import sys; sys.modules['scipy'] = None; from medsegai.worker.server import main; main()"
    )
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY / "MedSegAI"))
    client = WorkerClient([sys.executable, "-c", code])
    error = only_error(run(client, noisy(8, Refinement("islands"))))
    assert isinstance(error, WorkerError)
    assert "scipy" in str(error)
    assert run(client, segment_request("no such model")).errors
    client.close()

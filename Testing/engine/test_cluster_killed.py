"""Workers that are killed at any access to the folder of results: the cohort is that of one process."""

from __future__ import annotations

from pathlib import Path
from threading import Event

import dask.config
import nibabel
import numpy as np
import pytest

import fake_engine
import killed_worker_preload
from kill_points import tree
from medsegai.output.batch import Batch, Work, one_after_another
from medsegai.output.cases import find_cases
from medsegai.output.cluster import connection, jobs
from medsegai.output.layouts import BatchFiles
from medsegai.progress import Progress
from medsegai.request import SegmentationRequest

POINTS = range(0, 45, 5)
"""A case has about 45 accesses; what is beyond them ends nobody."""


def run(scans: Path, out: Path, work: Work) -> None:
    cases = find_cases(scans, 1)
    request = SegmentationRequest(cases[0].inputs, models=("toy",), uncertainty=True)
    batch = Batch(cases, request, BatchFiles(out, uncertainty=True, preview=True))
    batch.check(resume=True, overwrite=False)
    batch.run(work)


@pytest.mark.slow
def test_killed_workers_change_no_file(
    model: str, tmp_path: Path, requests: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    scans = tmp_path / "scans"
    scans.mkdir()
    for point in POINTS:
        voxels = np.random.default_rng(point).integers(0, 200, (9, 7, 8), dtype=np.int16)
        image = nibabel.Nifti1Image(voxels, np.diag([1.0, 2.0, 3.0, 1.0]))
        nibabel.save(image, scans / f"scan-{point}.nii.gz")
    whole, out = tmp_path / "alone" / "out", tmp_path / "workers" / "out"
    for folder in (whole, out):
        folder.parent.mkdir()
    run(scans, whole, one_after_another(fake_engine.segment, lambda name: Progress()))
    preload = {"distributed.worker.preload": [killed_worker_preload.__file__]}
    with dask.config.set(preload), connection.local_workers(2) as client:
        run(scans, out, jobs.on_workers(client, Event(), lambda words: None))
    assert len(list(scans.glob(".*.seen"))) == len(POINTS)
    found = {name: moved(content, "workers") for name, content in tree(out).items()}
    assert found == {name: moved(content, "alone") for name, content in tree(whole).items()}


def moved(content: object, folder: str) -> object:
    """The content of a file whose paths do not say which of the two folders it lies in."""
    return content.replace(f"/{folder}/", "/") if isinstance(content, str) else content

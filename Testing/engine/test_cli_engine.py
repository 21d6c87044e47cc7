"""The command line with the real engine and a small QuickNAT."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import slicerio
from PIL import Image

import tiny_quicknat
from medsegai.cli import main
from medsegai.engine import STAGES
from medsegai.output.result_files import WRITE_STAGE

ANNOUNCING = """
import sys
from medsegai import cli
from medsegai.progress import Progress

step = Progress.step
def announced(self, stage, done, total):
    if stage == sys.argv[1]:
        sys.argv[1] = ""
        sys.stderr.write(f"reached {stage}\\n")
        sys.stderr.flush()
        self.cancel.wait(60)
    step(self, stage, done, total)
Progress.step = announced
sys.exit(cli.main(sys.argv[2:]))
"""
"""The command, which waits for Ctrl-C where the stage named first begins."""


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    """An oblique, anisotropic head-like ball."""
    k, j, i = np.indices((30, 40, 44))
    distance = np.hypot(np.hypot((k - 15) / 10, (j - 20) / 15), (i - 22) / 18)
    noise = np.random.default_rng(3).normal(0, 20, distance.shape)
    voxels = np.where(distance < 1, 500 + 200 * np.cos(i / 3) + noise, 0).astype(np.int16)
    angle = np.radians(20)
    turn = np.array(
        [[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]]
    )
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([-2.0, 2.0, 2.5])
    path = tmp_path / "scan.nii.gz"
    nibabel.save(nibabel.Nifti1Image(voxels.T, affine), path)
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny_quicknat.write_model(tmp_path / "tiny").folder


def test_every_output_of_a_real_job(scan: Path, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    code = main(
        [
            *("segment", str(scan), "-o", str(out / "seg.seg.nrrd"), "--model", str(model)),
            *("--uncertainty", str(out / "entropy.nii.gz"), "--volumes", str(out / "v.csv")),
            *("--save-probabilities", str(out / "p.nii.gz"), "--preview", str(out / "p.png")),
            *("--report", str(out / "r.json"), "--device", "cpu", "--backend", "torch"),
        ]
    )
    assert code == 0
    read = slicerio.read_segmentation(str(out / "seg.seg.nrrd"))
    assert [item["name"] for item in read["segments"]] == ["Left part", "Right part", "Middle part"]
    values = read["voxels"]
    given = nibabel.load(scan)
    assert values.shape == given.shape
    to_ras = np.diag([-1.0, -1.0, 1.0, 1.0])
    assert np.allclose(to_ras @ read["ijkToLPS"], given.affine, atol=1e-4)
    probabilities = nibabel.load(out / "p.nii.gz")
    chances = probabilities.get_fdata()
    background = 1 - chances.sum(axis=3, keepdims=True)
    winners = np.concatenate([background, chances], axis=3).argmax(axis=3)
    labels = np.array([0, *(item["labelValue"] for item in read["segments"])])
    assert (labels[winners] == values).mean() > 0.995  # probabilities are rounded
    entropy = nibabel.load(out / "entropy.nii.gz")
    assert np.allclose(entropy.affine, given.affine, atol=1e-4)
    assert 0 <= entropy.get_fdata().min() < entropy.get_fdata().max() <= np.log(4) + 1e-3
    with (out / "v.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            count = int((values == int(row["value"])).sum())
            assert int(row["voxels"]) == count
            assert float(row["volume_ml"]) == pytest.approx(count * 0.01, rel=1e-4)
    report = json.loads((out / "r.json").read_text())
    assert set(report["provenance"]["models"][0]["weights_sha256"]) == set(tiny_quicknat.CLASSES)
    assert set(report["seconds"]) >= {"load", *STAGES}
    assert Image.open(out / "p.png").size[0] > 600


def test_views_can_be_chosen(scan: Path, model: Path, tmp_path: Path) -> None:
    words = [
        "segment",
        str(scan),
        "--model",
        str(model),
        "--device",
        "cpu",
        "--backend",
        "torch",
        "-q",
    ]
    for views in ("axial", "axial,coronal"):
        output = tmp_path / f"{views}.nii.gz"
        report = tmp_path / f"{views}.json"
        assert main([*words, "--views", views, "-o", str(output), "--report", str(report)]) == 0
        (used,) = json.loads(report.read_text())["provenance"]["models"]
        assert set(used["weights_sha256"]) == set(views.split(","))
    one, two = (
        np.asarray(nibabel.load(tmp_path / f"{views}.nii.gz").dataobj)
        for views in ("axial", "axial,coronal")
    )
    assert one.any()
    assert (one != two).any()


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize("stage", ["load", *STAGES, WRITE_STAGE])
def test_ctrl_c_in_every_stage_of_a_real_job_leaves_nothing(
    stage: str, scan: Path, model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    process = subprocess.Popen(
        [
            *(sys.executable, "-c", ANNOUNCING, stage, "segment", scan, "--model", model),
            *("-o", out / "seg.seg.nrrd", "--uncertainty", out / "entropy.nii.gz"),
            *("--preview", out / "p.png", "--device", "cpu", "--backend", "torch"),
        ],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    said = ""
    while f"reached {stage}" not in said:
        line = process.stderr.readline()
        assert line, f"ended before the stage {stage}: {said}"
        said += line
    process.send_signal(signal.SIGINT)
    said += process.communicate(timeout=60)[1]
    assert process.returncode == 130, said
    assert "Traceback" not in said
    assert not list(out.iterdir())

"""A batch that is resumed after scans were replaced under their names: these alone are segmented again."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK

import dicom_files
from medsegai.cli import main
from medsegai.output.batch import REPLACED
from medsegai.output.scan_state import ScanState, was_replaced
from medsegai.volume import Geometry, Volume

KINDS = ("a.nii.gz", "a.nii", "a.mha", "a.mhd", "a.nhdr", "series")


def voxels(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 200, (6, 7, 8), dtype=np.int16)


def save(path: Path, seed: int) -> Path:
    """Write a scan of any kind; all of one kind have the same size."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.name == "series":
        grid = Geometry.from_spacing((6, 7, 8), (1, 1, 2))
        dicom_files.write_series(path, Volume(voxels(seed), grid))
    elif ".nii" in path.suffixes:
        nibabel.save(nibabel.Nifti1Image(voxels(seed), np.diag([1.0, 2.0, 3.0, 1.0])), path)
    else:
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(voxels(seed)), str(path))
    return path


def touched(folder: Path) -> None:
    for path in (folder, *folder.rglob("*")):
        os.utime(path, ns=(1, 1))


@pytest.mark.parametrize("kind", KINDS)
def test_other_bytes_are_noticed_and_other_times_are_not(kind: str, tmp_path: Path) -> None:
    scan = save(tmp_path / kind, 1)
    before = json.loads(json.dumps(ScanState.of([scan]).to_dict()))
    assert not was_replaced([scan], before)
    touched(tmp_path)
    assert not was_replaced([scan], before)
    for path in tmp_path.rglob("*"):
        if path.is_file():
            path.unlink()
    save(scan, 2)
    touched(tmp_path)
    assert was_replaced([scan], before)


def test_notes_beside_slices_are_no_other_scan(tmp_path: Path) -> None:
    scan = save(tmp_path / "series", 1)
    before = ScanState.of([scan]).to_dict()
    (scan / "notes.txt").write_text("seen by a colleague")
    (scan / ".DS_Store").write_bytes(b"\0")
    assert not was_replaced([scan], before)


@pytest.mark.parametrize("before", [None, "text", {}])
def test_an_older_report_says_nothing(before: object, tmp_path: Path) -> None:
    assert not was_replaced([save(tmp_path / "a.nii", 1)], before)


Batch = Callable[..., int]


@pytest.fixture
def batch(model: str, requests: object, tmp_path: Path) -> Batch:
    for seed, name in enumerate("abc"):
        save(tmp_path / "scans" / f"{name}.nii.gz", seed)

    def run(*options: str) -> int:
        place = [f"{tmp_path}/scans", "-o", f"{tmp_path}/out"]
        return main(["batch", *place, "--model", model, "-q", *options])

    assert run() == 0
    return run


def messages(out: Path) -> dict[str, str]:
    with (out / "batch.csv").open(newline="") as file:
        return {row["case"]: f"{row['state']}: {row['message']}" for row in csv.DictReader(file)}


def test_what_was_replaced_is_segmented_again(
    batch: Batch, requests: list[object], tmp_path: Path
) -> None:
    kept, out = {}, tmp_path / "out"
    for name in "ac":
        kept[name] = (out / f"{name}.seg.nrrd").stat().st_mtime_ns
    save(tmp_path / "scans" / "b.nii.gz", 7)
    requests.clear()
    assert batch("--resume") == 0
    assert len(requests) == 1
    assert messages(out)["b"].startswith(f"done: {REPLACED}")
    assert {REPLACED in text for name, text in messages(out).items() if name != "b"} == {False}
    assert {name: (out / f"{name}.seg.nrrd").stat().st_mtime_ns for name in kept} == kept
    requests.clear()
    assert batch("--resume") == 0
    assert requests == []


def test_a_result_that_a_person_changed_stays_and_the_table_says_both(
    batch: Batch, requests: list[object], tmp_path: Path
) -> None:
    corrected = tmp_path / "out" / "b.seg.nrrd"
    corrected.write_text("corrected by hand")
    save(tmp_path / "scans" / "b.nii.gz", 7)
    requests.clear()
    assert batch("--resume") == 0
    assert requests == []
    assert corrected.read_text() == "corrected by hand"
    assert "kept as it is. Its scan was replaced since." in messages(tmp_path / "out")["b"]


def test_a_scan_that_is_not_here_now_was_not_replaced(
    batch: Batch, requests: list[object], tmp_path: Path
) -> None:
    """As after `datalad drop`, which leaves a link to nowhere."""
    scan = tmp_path / "scans" / "b.nii.gz"
    scan.unlink()
    scan.symlink_to(tmp_path / "annex" / "b.nii.gz")
    requests.clear()
    assert batch("--resume") == 0
    assert requests == []

"""Cases of the export: a scan as a DICOM series, labels drawn on it, and what the validator says."""

from __future__ import annotations

import os
import shutil
import subprocess
from functools import cache
from pathlib import Path

import numpy as np
import pydicom
import pytest

from dicom_files import write_series
from images import DIRECTIONS, ORIGIN_RAS, SPACING_MM
from medsegai.cli import main
from medsegai.io import write_segmentation
from medsegai.labels import Label, Terminology
from medsegai.volume import Geometry, Volume

ANATOMY = ("SCT", "123037004", "Anatomical Structure")
LEFT = ("SCT", "7771000", "Left")
LABELS = (
    Label(
        3, "Left kidney", (220, 30, 30), Terminology(ANATOMY, ("SCT", "64033007", "Kidney"), LEFT)
    ),
    Label(5, "Not there", (1, 2, 3)),
    Label(9, "Läsion № 2", (30, 200, 60)),
    Label(400, "Liver", (90, 80, 70), Terminology(ANATOMY, ("SCT", "10200004", "Liver"))),
)
SHAPE = (6, 11, 13)


@cache
def _dciodvfy() -> str:
    """The validator of Debian's dicom3tools. Skips without it; fails where CI is set."""
    found = shutil.which("dciodvfy")
    if found is None:
        reason = "no dciodvfy: apt-get install dicom3tools"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return found


def complaints(path: Path) -> list[str]:
    """The errors that dciodvfy finds in a file."""
    done = subprocess.run([_dciodvfy(), "-new", path], capture_output=True, text=True)
    return [line for line in done.stderr.splitlines() if line.startswith(("Error", "Abort"))]


def scan(name: str) -> Volume:
    geometry = Geometry.from_spacing(SHAPE, SPACING_MM, ORIGIN_RAS, DIRECTIONS[name])
    voxels = np.random.default_rng(2).integers(0, 900, SHAPE, dtype=np.int16)
    return Volume(voxels, geometry)


def drawn(name: str) -> Volume:
    """Labels with no symmetry, at the border, in one voxel, and with a gap between slices."""
    voxels = np.zeros(SHAPE, np.uint16)
    voxels[1:4, 2:5, 1:7], voxels[5, 2:4, 2], voxels[0, 10, 12], voxels[2:, 6:, 9:] = 3, 3, 9, 400
    return Volume(voxels, scan(name).geometry)


def described(head: pydicom.Dataset, _: int) -> None:
    """What dciodvfy asks of the scan and a segmentation takes over."""
    head.PatientSex, head.StudyDate, head.StudyTime = "F", "20200101", "101112"
    head.StudyID, head.AccessionNumber, head.ReferringPhysicianName = "1", "", ""
    head.PositionReferenceIndicator = ""


def exported(tmp_path: Path, name: str, *more: str) -> Path:
    """The DICOM SEG of `drawn`, by the command."""
    write_series(tmp_path / "series", scan(name), described)
    write_segmentation(tmp_path / "case.seg.nrrd", drawn(name), LABELS)
    out = tmp_path / "seg.dcm"
    arguments = ["export", str(tmp_path / "case.seg.nrrd"), "--dicom", str(tmp_path / "series")]
    assert main([*arguments, "--seg", str(out), "-q", *more]) == 0
    return out

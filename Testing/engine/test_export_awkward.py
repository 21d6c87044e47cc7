"""Segmentations that nobody wishes for, through `measure` and `export`: right, or refused in words."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray

from dicom_files import write_series
from export_cases import SHAPE, complaints, described, scan
from medsegai.cli import main
from medsegai.errors import GeometryError, InputError, RequestError
from medsegai.io import write_segmentation, write_volume
from medsegai.labels import Label
from medsegai.volume import Geometry, Volume

pytest.importorskip("highdicom")
trimesh = pytest.importorskip("trimesh")
pytest.importorskip("manifold3d")

GREY = (120, 120, 120)


def one_voxel_each() -> NDArray[np.uint16]:
    voxels = np.zeros(SHAPE, np.uint16)
    voxels[0, 0, 0], voxels[3, 4, 5], voxels[-1, -1, -1] = 1, 2, 3
    return voxels


def every_border() -> NDArray[np.uint16]:
    """One structure that fills the scan but for another in its middle, which fills a plane."""
    voxels = np.ones(SHAPE, np.uint16)
    voxels[:, 4:6, :] = 2
    return voxels


def three_hundred() -> NDArray[np.uint16]:
    voxels = np.zeros(SHAPE, np.uint16)
    voxels.ravel()[30:630] = np.repeat(np.arange(1, 301), 2)
    return voxels


AWKWARD = {
    "one voxel each": one_voxel_each(),
    "every border": every_border(),
    "three hundred": three_hundred(),
}


def written(folder: Path, voxels: NDArray[np.uint16], name: str = "oblique") -> list[str]:
    """A segmentation and its DICOM series; the first words of the command that exports them."""
    values = sorted(set(np.unique(voxels).tolist()) - {0}) or [1, 2]
    labels = [Label(value, f"Part {value}", GREY) for value in values]
    write_series(folder / "series", scan("oblique"), described)
    labelmap = Volume(voxels, scan(name).geometry)
    write_segmentation(folder / "case.seg.nrrd", labelmap, labels)
    return ["export", str(folder / "case.seg.nrrd"), "-q", "--dicom", str(folder / "series")]


@pytest.mark.parametrize(
    ("case", "encoding"), [*((case, "binary") for case in AWKWARD), ("every border", "labelmap")]
)
def test_everything_of_an_awkward_case(case: str, encoding: str, tmp_path: Path) -> None:
    voxels, out = AWKWARD[case], tmp_path / "out"
    command = written(tmp_path, voxels)
    out.mkdir()
    for flag, name in (("--seg", "seg.dcm"), ("--sr", "sr.dcm"), ("--report", "r.html"),
                       ("--csv", "t.csv"), ("--json", "t.json"), ("--surfaces", "parts")):  # fmt: skip
        command += [flag, str(out / name)]
    assert main([*command, "--encoding", encoding, "--formats", "stl,obj,glb"]) == 0
    values, counts = np.unique(voxels[voxels > 0], return_counts=True)
    rows = json.loads((out / "t.json").read_text())["structures"]
    assert [(row["value"], row["voxels"]) for row in rows] == list(
        zip(values.tolist(), counts.tolist(), strict=True)
    )
    assert all((row["sd"] is None) == (row["voxels"] == 1) for row in rows)
    for row in rows:
        where = np.argwhere(voxels == row["value"])
        at_border = (where.min(axis=0) == 0) | (where.max(axis=0) == np.array(SHAPE) - 1)
        assert row["at_border"] == at_border.any()
    dataset = pydicom.dcmread(out / "seg.dcm")
    numbers = [item.SegmentNumber for item in dataset.SegmentSequence]
    assert [number for number in numbers if number] == list(range(1, len(values) + 1))
    assert int(np.count_nonzero(dataset.pixel_array)) == int(counts.sum())
    if encoding == "binary":  # dciodvfy does not know that a labelmap is a segmentation
        assert complaints(out / "sr.dcm") == []
    voxel_ml = scan("oblique").geometry.voxel_volume_ml
    for value, count in list(zip(values, counts, strict=True))[::40]:
        for ending in ("stl", "obj", "glb"):
            mesh = trimesh.load_mesh(out / "parts" / f"{value}_part_{value}.{ending}")
            mesh.merge_vertices()
            assert mesh.is_watertight
            mm3 = mesh.volume * (1e9 if ending == "glb" else 1)  # glTF counts in metres
            assert mm3 == pytest.approx(count * voxel_ml * 1000, rel=1e-3)
    assert (out / "r.html").read_text().count("<tr>") == 1 + len(values)


def test_an_empty_prediction(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = written(tmp_path, np.zeros(SHAPE, np.uint16))
    aloud = [word for word in command if word not in ("-q", "--quiet")]
    table = tmp_path / "t.csv"
    assert main([*aloud, "--csv", str(table), "--report", str(tmp_path / "r.html")]) == 0
    with table.open(newline="") as file:
        assert [row["voxels"] for row in csv.DictReader(file)] == ["0", "0"]
    assert "Not found: Part 1, Part 2." in (tmp_path / "r.html").read_text()
    said = capsys.readouterr()
    assert "Not found: Part 1, Part 2." in said.err
    assert said.out == f"Written: {tmp_path / 'r.html'}, {table}\n"
    for part in (["--seg", str(tmp_path / "seg.dcm")], ["--surfaces", str(tmp_path / "parts")]):
        assert main([*command, *part]) == InputError.exit_code
        assert "the structures do not have voxels" in capsys.readouterr().err
        assert not Path(part[1]).exists()


def test_a_labelmap_without_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = Volume(np.zeros(SHAPE, np.uint8), scan("oblique").geometry)
    write_volume(tmp_path / "empty.nii.gz", empty)
    for command in (["measure"], ["export", "--csv", str(tmp_path / "t.csv")]):
        assert main([*command, str(tmp_path / "empty.nii.gz")]) == InputError.exit_code
        assert "empty.nii.gz is empty" in capsys.readouterr().err
    with_names = ["--model", "hippocampus", "--csv", str(tmp_path / "t.csv")]
    assert main(["export", str(tmp_path / "empty.nii.gz"), *with_names]) == 0
    assert (tmp_path / "t.csv").read_text().count("\n") == 3  # both structures, not found


def test_overlapping_segments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = written(tmp_path, every_border())
    labels = [Label(1, "Whole", GREY), Label(2, "Part", GREY)]
    regions = np.stack([every_border() > 0, every_border() == 2])
    labelmap = Volume(every_border(), scan("oblique").geometry)
    write_segmentation(tmp_path / "case.seg.nrrd", labelmap, labels, regions)
    assert main([*command, "--seg", str(tmp_path / "seg.dcm")]) == InputError.exit_code
    assert "overlaps" in capsys.readouterr().err
    assert not (tmp_path / "seg.dcm").exists()


@pytest.mark.parametrize("what", ["turned", "larger", "half a voxel off", "another spacing"])
def test_another_grid(what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = written(tmp_path, every_border())
    grid = scan("oblique").geometry
    moved = grid.ijk_to_ras.copy()
    moved[:3, 3] += moved[:3, 0] / 2
    shape = tuple(size + 2 for size in SHAPE) if what == "larger" else SHAPE
    grids = {
        "turned": scan("straight").geometry,
        "larger": Geometry(shape, grid.ijk_to_ras),
        "half a voxel off": Geometry(SHAPE, moved),
        "another spacing": Geometry(SHAPE, grid.ijk_to_ras @ np.diag([1.1, 1, 1, 1])),
    }
    labelmap = Volume(np.ones(shape, np.uint8), grids[what])
    write_volume(tmp_path / "other.nii.gz", labelmap)
    write_volume(tmp_path / "scan.nii.gz", scan("oblique"))
    other = str(tmp_path / "other.nii.gz")
    for arguments in (
        ["export", other, *command[2:], "--seg", str(tmp_path / "seg.dcm")],
        ["measure", other, "--image", str(tmp_path / "scan.nii.gz")],
    ):
        assert main(arguments) == GeometryError.exit_code
        assert "other.nii.gz" in capsys.readouterr().err
    assert not (tmp_path / "seg.dcm").exists()


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--tolerance", "-0.1"], "tolerance"),
        (["--tolerance", "inf"], "tolerance"),
        (["--formats", ""], "Surfaces must be"),
        (["--formats", "stl,ply"], "Surfaces must be"),
        (["--image", "scan.nii.gz"], "once"),
    ],
)
def test_options_out_of_range(
    options: list[str], word: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = written(tmp_path, one_voxel_each())
    parts = tmp_path / "parts"
    assert main([*command, "--surfaces", str(parts), *options]) == RequestError.exit_code
    assert word in capsys.readouterr().err
    assert not parts.exists()
    for wrong in (["--encoding", "fractional"], ["--space", "XYZ"], ["--tolerance", "much"]):
        with pytest.raises(SystemExit):
            main([*command, "--surfaces", str(parts), *wrong])

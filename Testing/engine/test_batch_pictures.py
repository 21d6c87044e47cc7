"""Batches of pictures with the bundled model of nuclei: which files are cases, and the objects of each and all."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medsegai.cli import main
from medsegai.commands.drawn_tissue import drawn_tissue
from medsegai.errors import InputError
from medsegai.io import read_labelmap
from medsegai.output.cases import find_pictures


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pictures, and the results of a batch with the bundled model of nuclei in a folder beside them."""
    folder = tmp_path_factory.mktemp("pictures") / "tiles"
    folder.mkdir()
    drawn = drawn_tissue()[0]
    for name, pixels in (
        ("IMG_0001.png", drawn[:64, :96]),
        ("IMG_0002.tif", drawn[60:124, 90:186]),
    ):
        Image.fromarray(pixels).save(folder / name)
    (folder / "notes.txt").write_text("not a picture")
    assert main(nuclei_in(folder, folder.parent / "out")) == 0
    return folder


def nuclei_in(source: Path, out: Path, *more: str) -> list[str]:
    words = ["batch", str(source), "--model", "nuclei", "-o", str(out), "--device", "cpu"]
    return [*words, "--no-mirroring", *more]


def test_a_folder_of_pictures_is_a_batch(tiles: Path, tmp_path: Path) -> None:
    """A camera's numbers are names, and not channels."""
    assert [case.name for case in find_pictures(tiles)] == ["IMG_0001", "IMG_0002"]
    for name in ("IMG_0001", "IMG_0002"):
        labels, _ = read_labelmap(tiles.parent / "out" / f"{name}.seg.nrrd")
        assert labels.voxels.shape == (1, 64, 96)
        assert labels.voxels.any()
    (tmp_path / "cases.csv").write_text(f"case,image\none,{tiles / 'IMG_0001.png'}\n")
    assert main(nuclei_in(tmp_path / "cases.csv", tmp_path / "b", "--layout", "bids")) == 0
    anat = tmp_path / "b" / "sub-one" / "anat" / "sub-one_space-orig_desc-medsegai_objects"
    numbers = read_labelmap(anat.with_suffix(".nii.gz"))[0].voxels
    counted = rows(tiles.parent / "out" / "IMG_0001_objects.csv")
    assert numbers.max() == len(counted)
    assert len(anat.with_suffix(".tsv").read_text().splitlines()) == 1 + len(counted)
    assert [row["case"] for row in rows(tmp_path / "b" / "objects.csv")] == ["one"] * len(counted)


def test_a_batch_writes_the_objects_that_the_model_separates(tiles: Path, tmp_path: Path) -> None:
    """Those of `medsegai segment`, of each case and of all together."""
    out, alone = tiles.parent / "out", tmp_path
    command = ["segment", str(tiles / "IMG_0002.tif"), "--model", "nuclei", "--device", "cpu"]
    command += ["--no-mirroring", "-o", str(alone / "labels.seg.nrrd")]
    command += ["--objects", str(alone / "map.nrrd"), "--object-table", str(alone / "objects.csv")]
    assert main(command) == 0
    found = read_labelmap(out / "IMG_0002_objects.nrrd")[0].voxels
    np.testing.assert_array_equal(found, read_labelmap(alone / "map.nrrd")[0].voxels)
    assert rows(out / "IMG_0002_objects.csv") == rows(alone / "objects.csv")
    tables = {name: rows(out / f"{name}_objects.csv") for name in ("IMG_0001", "IMG_0002")}
    assert all(tables.values())
    together = [{"case": name, **row} for name, table in tables.items() for row in table]
    assert rows(out / "objects.csv") == together
    cohort = {row["case"]: row for row in rows(out / "cohort.csv")}
    for name, table in tables.items():
        sizes = [int(row["pixels"]) for row in table]
        assert cohort[name]["objects"] == str(len(table))
        assert float(cohort[name]["objects_median_pixels"]) == np.median(sizes)
        assert cohort[name]["objects_median_area_mm2"] == "", "pixels of unknown size"


def test_two_workers_write_what_one_process_writes(tiles: Path, tmp_path: Path) -> None:
    """Tables of the objects of each case and of all, their maps, and the cohort's table."""
    assert main(nuclei_in(tiles, tmp_path / "out", "--workers", "2")) == 0
    alone = tiles.parent / "out"
    names = {path.name for path in alone.iterdir()}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    assert {name for name in names if "objects" in name} == {
        *(f"IMG_000{n}_objects{end}" for n in (1, 2) for end in (".csv", ".nrrd")),
        "objects.csv",
    }
    for name in names:
        here, there = alone / name, tmp_path / "out" / name
        if name.endswith(".csv") and name != "batch.csv":  # which has the seconds
            assert there.read_bytes() == here.read_bytes(), name
        elif name.endswith(".nrrd"):
            maps = [read_labelmap(path) for path in (here, there)]
            np.testing.assert_array_equal(maps[0][0].voxels, maps[1][0].voxels)
            assert maps[0][1] == maps[1][1]


def test_resume_makes_missing_objects_and_keeps_the_others(tiles: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(tiles.parent / "out", out)
    before = (out / "IMG_0001_objects.csv").read_bytes(), (out / "objects.csv").read_bytes()
    for name in ("IMG_0001_objects.csv", "objects.csv"):
        (out / name).unlink()
    kept = (out / "IMG_0002_objects.nrrd").stat().st_mtime_ns
    assert main(nuclei_in(tiles, out, "--resume")) == 0
    assert before == (
        (out / "IMG_0001_objects.csv").read_bytes(),
        (out / "objects.csv").read_bytes(),
    )
    assert (out / "IMG_0002_objects.nrrd").stat().st_mtime_ns == kept


def test_a_table_of_objects_that_somebody_spoiled_does_not_end_the_batch(
    tiles: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(tiles.parent / "out", out)
    (out / "IMG_0001_objects.csv").write_bytes(b"\xff\xfe\x00")
    assert main(nuclei_in(tiles, out, "--resume")) == 0
    assert {row["case"] for row in rows(out / "objects.csv")} == {"IMG_0002"}
    assert "was changed" in rows(out / "batch.csv")[0]["message"]


def test_a_picture_with_more_objects_than_a_file_can_number_is_a_case_that_fails(
    tiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medsegai.output.object_files.MOST_OBJECTS", 1)
    assert main(nuclei_in(tiles, tmp_path / "out")) == 1
    assert {row["state"] for row in rows(tmp_path / "out" / "batch.csv")} == {"failed"}
    assert rows(tmp_path / "out" / "objects.csv") == []


def test_pictures_that_cannot_be_told_apart_and_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not hold a picture"):
        find_pictures(tmp_path)
    for name in ("a.png", "a.jpg"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(InputError, match=r"a.jpg and a.png .*the same name"):
        find_pictures(tmp_path)
    with pytest.raises(InputError, match="not a folder"):
        find_pictures(tmp_path / "none")

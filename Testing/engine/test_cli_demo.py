"""`medsegai demo`: one folder with everything, and no edited result lost."""

from __future__ import annotations

import csv
import importlib.util
import json
import shutil
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import slicerio
from PIL import Image

import fake_engine
from medsegai.cli import main
from medsegai.commands.demo import FILES, OBJECT_FILES, PICTURE, nilearn_scan
from medsegai.commands.drawn_tissue import drawn_tissue
from medsegai.export import viewer
from medsegai.models import catalogue
from test_models_command import write_model

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    voxels = np.random.default_rng(2).integers(0, 200, (12, 10, 8), dtype=np.int16)
    path = tmp_path / "scan.nii.gz"
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([2.0, 2.0, 3.0, 1.0])), path)
    return path


@pytest.fixture
def demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that `medsegai demo` makes; a toy model stands in for the bundled one."""
    monkeypatch.setattr(catalogue, "BUNDLED_MODELS", tmp_path / "bundled")
    write_model(tmp_path / "bundled" / "brain", id="brain")
    monkeypatch.setitem(sys.modules, "medsegai.engine", fake_engine.as_module())
    monkeypatch.setattr(viewer, "NIIVUE", tmp_path / "niivue")
    (tmp_path / "niivue").mkdir()
    return tmp_path / "results" / "demo"


def test_it_writes_its_files_and_says_what_to_open(scan: Path, demo: Path, capsys: Capture) -> None:
    assert main(["demo", str(scan), "-o", str(demo)]) == 0
    assert sorted(path.name for path in demo.iterdir()) == sorted(FILES.values())
    out = capsys.readouterr().out
    for expected in (*FILES.values(), str(demo), str(scan), "3D Slicer", "Bright tissue", "IoU"):
        assert expected in out
    segments = slicerio.read_segmentation(str(demo / "segmentation.seg.nrrd"))["segments"]
    assert [segment["name"] for segment in segments] == [item.name for item in fake_engine.LABELS]
    assert nibabel.load(demo / "uncertainty.nii.gz").shape == (12, 10, 8)
    with (demo / "volumes.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == len(fake_engine.LABELS)
    outputs = json.loads((demo / "report.json").read_text())["outputs"]
    assert set(outputs) == set(FILES) - {"report"}


def test_its_page_has_a_viewer_where_niivue_is(
    scan: Path, demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (viewer.SCRIPT, viewer.LICENCE):
        (viewer.NIIVUE / name).write_text("drawn by this")
    assert main(["demo", str(scan), "-o", str(demo)]) == 0
    page = (demo / "index.html").read_text()
    assert "This page contains the scan" in page
    assert "<script>drawn by this</script>" in page
    assert page.count('data-layer="2"') == 1, "uncertainty is a layer of it"
    (viewer.NIIVUE / viewer.SCRIPT).unlink()
    assert main(["demo", str(scan), "-o", str(demo)]) == 0, "the page was not edited"
    assert "<script" not in (demo / "index.html").read_text()


def test_it_can_be_run_again(scan: Path, demo: Path) -> None:
    assert main(["demo", str(scan), "-o", str(demo)]) == 0
    assert main(["demo", str(scan), "-o", str(demo)]) == 0


@pytest.mark.parametrize("name", ["segmentation.seg.nrrd", "volumes.csv"])
def test_an_edited_result_is_not_replaced(
    scan: Path, demo: Path, name: str, capsys: Capture
) -> None:
    assert main(["demo", str(scan), "-o", str(demo)]) == 0
    (demo / name).write_bytes(b"edited")
    assert main(["demo", str(scan), "-o", str(demo)]) == 5
    assert "--overwrite" in capsys.readouterr().err
    assert (demo / name).read_bytes() == b"edited"
    assert main(["demo", str(scan), "-o", str(demo), "--overwrite"]) == 0


@pytest.mark.parametrize(
    "report", ["", "{}", "[]", '{"outputs": 5}', '{"outputs": {"preview": 1}}']
)
def test_a_report_that_says_nothing_protects_the_results(
    scan: Path, demo: Path, report: str
) -> None:
    assert main(["demo", str(scan), "-o", str(demo)]) == 0
    (demo / "report.json").write_text(report)
    assert main(["demo", str(scan), "-o", str(demo)]) == 5


def test_a_folder_that_cannot_be_made_exits_with_5(scan: Path, demo: Path, capsys: Capture) -> None:
    assert main(["demo", str(scan), "-o", str(scan / "demo")]) == 5
    assert str(scan / "demo") in capsys.readouterr().err


@pytest.fixture
def fake_nilearn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of that name whose import would fail: only its files are wanted."""
    package = tmp_path / "site" / "nilearn"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('must not be imported')")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.delitem(sys.modules, "nilearn", raising=False)
    importlib.invalidate_caches()
    return package


def test_the_scan_comes_from_nilearn_without_importing_it(
    fake_nilearn: Path, scan: Path, demo: Path, capsys: Capture
) -> None:
    carried = (
        fake_nilearn / "datasets" / "data" / "mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"
    )
    carried.parent.mkdir(parents=True)
    shutil.copy(scan, carried)
    assert main(["demo", "-o", str(demo)]) == 0
    assert str(carried) in capsys.readouterr().out


@pytest.mark.usefixtures("fake_nilearn")
def test_a_nilearn_without_the_scan_is_told(demo: Path, capsys: Capture) -> None:
    assert main(["demo", "-o", str(demo)]) == 3
    assert "medsegai demo INPUT" in capsys.readouterr().err
    assert not demo.exists()


def test_a_missing_nilearn_is_told(
    demo: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    assert main(["demo", "-o", str(demo)]) == 3
    assert "medsegai[demo]" in capsys.readouterr().err
    assert not demo.exists()


def test_the_installed_nilearn_carries_a_head_at_1_mm() -> None:
    pytest.importorskip("nilearn", reason="nilearn is not installed: pip install 'medsegai[demo]'")
    image = nibabel.load(nilearn_scan())
    assert image.shape == (197, 233, 189)
    assert nibabel.affines.voxel_sizes(image.affine) == pytest.approx([1, 1, 1])


def test_with_a_model_for_pictures_it_draws_one_and_counts(tmp_path: Path, capsys: Capture) -> None:
    """The bundled model finds about as many nuclei as were drawn; what was edited is kept."""
    folder = tmp_path / "demo2d"
    command = ["demo", "--model", "nuclei", "--device", "cpu", "-o", str(folder)]
    assert main(command) == 0
    drawn, count = drawn_tissue()
    np.testing.assert_array_equal(np.array(Image.open(folder / PICTURE)), drawn)
    table = folder / OBJECT_FILES["object_table"]
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    numbers = np.array(Image.open(folder / OBJECT_FILES["objects"]))
    assert numbers.shape == drawn.shape[:2]
    assert numbers.max() == len(rows) == pytest.approx(count, rel=0.1)
    assert f"{len(rows)} objects" in capsys.readouterr().out
    assert f"{len(rows)}, median " in (folder / FILES["page"]).read_text(encoding="utf-8")
    names = {*FILES.values(), PICTURE, *OBJECT_FILES.values()}
    assert {path.name for path in folder.iterdir()} == names
    table.write_text("number\n1\n")
    assert main(command) == 5
    assert table.read_text() == "number\n1\n"
    assert "manual corrections" in capsys.readouterr().err
    assert {path.name for path in folder.iterdir()} == names


def test_a_picture_of_ones_own_is_not_drawn_over(tmp_path: Path) -> None:
    (tmp_path / PICTURE).write_bytes(b"mine")
    assert main(["demo", "--model", "nuclei", "-o", str(tmp_path)]) == 5
    assert (tmp_path / PICTURE).read_bytes() == b"mine"

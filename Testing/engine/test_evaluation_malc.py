"""The MALC measurement, with a stand-in for the engine: it sees the scan, and its figures are right."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from medsegai.evaluation import read_mapping
from medsegai.io import read_labelmap, read_volume
from medsegai.models.catalogue import find_card
from medsegai.progress import Progress
from medsegai.request import SegmentationRequest, SegmentationResult

NAMES = {label.value: label.name for label in find_card("brain").labels}
HIPPOCAMPUS, CSF = NAMES[17], NAMES[24]
COMPARABLE = "mean without CSF, which is not comparable"
SCRIPT = Path(__file__).parents[1] / "bench" / "malc.py"


@pytest.fixture
def malc() -> ModuleType:
    spec = importlib.util.spec_from_file_location("malc", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def stand_in(request: SegmentationRequest, progress: Progress) -> SegmentationResult:
    """The mapped reference one voxel further up, and all that is no structure as CSF."""
    (path,) = request.inputs
    assert isinstance(path, Path)
    progress.step("predict", 1, 1)
    scan = read_volume(path)
    labels = path.with_name(path.name.replace("_SS", "_glm"))
    mapping = read_mapping(SCRIPT.with_name("neuromorphometrics_to_freesurfer.csv"))
    voxels = mapping.apply(read_labelmap(labels)[0]).voxels
    moved = np.roll(voxels, 1, 0)
    moved[(scan.voxels > 0) & (moved == 0)] = 24
    return SegmentationResult(scan.with_voxels(moved), find_card("brain").labels, ())


def test_figures_reach_the_table_and_the_card(
    malc: ModuleType,
    shared_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(malc, "segment", stand_in)
    table, figures = tmp_path / "malc.md", tmp_path / "malc.json"
    data = str(shared_data / "malc2012-train")
    options = ["--cases", "2", "--data", data, "--markdown", str(table), "--json", str(figures)]
    assert malc.main(options) == 0
    text, summary = table.read_text(), json.loads(figures.read_text())
    assert text in capsys.readouterr().out
    for said in ("Neuromorphometrics, Inc.", "OASIS", "evaluation only"):
        assert said in text
    assert summary["scans"] == ["1000", "1001"]
    _check_summary(summary)
    assert f"| {HIPPOCAMPUS} | {summary['structures'][HIPPOCAMPUS]['dice']:.3f} ± " in text
    assert f"**Mean of the comparable 31** | **{summary[COMPARABLE]['dice']:.3f} ± " in text


def _check_summary(summary: dict[str, Any]) -> None:
    """All 32 structures count once, and CSF only where it is said to."""
    dice = {name: item["dice"] for name, item in summary["structures"].items()}
    assert len(dice) == 32
    assert dice[CSF] < 0.1
    assert all(0.4 < value < 0.99 for name, value in dice.items() if name != CSF)
    assert summary["mean of all"]["structures"] == 32
    assert summary["mean of all"]["dice"] == pytest.approx(sum(dice.values()) / 32, abs=1e-3)
    assert summary[COMPARABLE]["structures"] == 31
    others = sum(dice.values()) - dice[CSF]
    assert summary[COMPARABLE]["dice"] == pytest.approx(others / 31, abs=1e-3)
    assert 0.8 < summary["structures"][HIPPOCAMPUS]["hd95_mm"] <= 2


def test_missing_scans_are_named(
    malc: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert malc.main(["--data", str(tmp_path)]) == 3
    assert "--data" in capsys.readouterr().err


def test_an_unwritable_table_is_found_before_the_work(
    malc: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(malc, "segment", lambda *_: pytest.fail("segmented"))
    assert malc.main(["--markdown", str(tmp_path / "nowhere" / "malc.md")]) == 5

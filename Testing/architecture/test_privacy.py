"""Nothing is sent anywhere. OpenVINO would report its use to Google Analytics when it is imported."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
MODULE = REPOSITORY / "MedSegAI"
REPORTS = "import sys; print(sys.modules.get('openvino_telemetry') is not None)"


def reports_after(statement: str, home: Path) -> bool:
    """Whether a fresh process has OpenVINO's reporting loaded after a statement."""
    environment = os.environ | {"HOME": str(home), "PYTHONPATH": str(MODULE), "CI": "true"}
    done = subprocess.run(
        [sys.executable, "-c", f"{statement}; {REPORTS}"],
        env=environment,  # CI, because OpenVINO then keeps silent even where it is imported as it is
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip() == "True"


def test_our_openvino_sends_no_reports(tmp_path: Path) -> None:
    pytest.importorskip("openvino_telemetry", reason="OpenVINO is not installed with its reports")
    ours = "from medsegai.networks.backends import import_openvino; import_openvino()"
    assert not reports_after(ours, tmp_path)
    assert not list(tmp_path.rglob("*ga_cid*"))


def test_reports_would_be_seen(tmp_path: Path) -> None:
    pytest.importorskip("openvino_telemetry", reason="OpenVINO is not installed with its reports")
    assert reports_after("import openvino", tmp_path)


def test_openvino_is_imported_in_one_place() -> None:
    found = [
        path.relative_to(MODULE).as_posix()
        for path in MODULE.rglob("*.py")
        for _ in re.finditer(r"^\s*(?:import|from) openvino\b", path.read_text(), re.MULTILINE)
    ]
    assert found == ["medsegai/networks/backends.py"]

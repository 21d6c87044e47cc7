"""Nothing is sent anywhere. OpenVINO would report its use to Google Analytics when it is imported."""

import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
MODULE = REPOSITORY / "MedSegAI"
REPORTS = "import sys; print(sys.modules.get('openvino_telemetry') is not None)"


needs_reports = pytest.mark.skipif(
    not any(metadata.distributions(name="openvino-telemetry")),
    reason="OpenVINO is not installed with its reports",
)
"""The package itself cannot be asked for: in this process the engine may have kept it out already."""


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


def importers_of_openvino() -> list[str]:
    """The modules of the engine that import OpenVINO."""
    statement = re.compile(r"^\s*(?:import|from) openvino\b", re.MULTILINE)
    files = [path for path in MODULE.rglob("*.py") if statement.search(path.read_text())]
    return [".".join(path.relative_to(MODULE).with_suffix("").parts) for path in files]


@needs_reports
def test_our_openvino_sends_no_reports(tmp_path: Path) -> None:
    (module,) = importers_of_openvino()  # one place, so that no other can forget
    ours = f"import {module}, sys; assert 'openvino' in sys.modules"
    assert not reports_after(ours, tmp_path)
    assert not list(tmp_path.rglob("*ga_cid*"))


@needs_reports
def test_reports_would_be_seen(tmp_path: Path) -> None:
    assert reports_after("import openvino", tmp_path)

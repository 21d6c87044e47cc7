"""The prepared GPU run, in small and on the CPU: it trains, exports and measures."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from medsegai.models.card import load_card

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_the_sprint_runs_in_small(tmp_path: Path, shared_data: Path) -> None:
    command = [sys.executable, str(REPOSITORY / "Testing" / "bench" / "gpu_sprint.py")]
    command += [
        str(shared_data / "brain-label-maps"),
        "-o",
        str(tmp_path),
        "--small",
        "--device",
        "cpu",
    ]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "MedSegAI")}
    subprocess.run([*command, "--minutes", "5"], env=environment, check=True, timeout=900)
    load_card(tmp_path / "run" / "model").verify()
    figures = json.loads((tmp_path / "times.json").read_text())
    assert figures["head"]["axial"]["labels_of_the_cpu"] > 0.99
    assert figures["ct25"]["labels_of_the_cpu"] > 0.99

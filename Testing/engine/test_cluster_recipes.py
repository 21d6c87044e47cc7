"""The recipes of docs/cluster.md, run as they stand there on this computer; `sbatch` and `ssh` are scripts."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import fake_engine
import fake_engine_preload
from test_cluster import scans, states

PAGE = Path(__file__).resolve().parents[2] / "docs" / "cluster.md"

PROGRAMS = {
    "dask": f"""[ "$1" = scheduler ] && set -- "$@" --host 127.0.0.1 --port 0
exec {sys.executable} -m dask "$@" """,
    "medsegai": f'exec {sys.executable} {fake_engine.__file__} "$@"',
    # The first two of the array, each with the cores that it asks for.
    "sbatch": """for word in "$@"; do script=$word; done
for task in 1 2; do SLURM_CPUS_PER_TASK=1 bash "$script" & done""",
    "ssh": 'shift; exec bash -c "$*"',
}


def blocks(heading: str) -> list[str]:
    """The code below a heading of the page."""
    text = PAGE.read_text(encoding="utf-8")
    section = text.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return re.findall(r"```\w*\n(.*?)```", section, re.DOTALL)


@pytest.fixture
def home(model: str, tmp_path: Path) -> Path:
    """The home of somebody who made certificates as the page says, with programs of a cluster."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl")
    for name, text in PROGRAMS.items():
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/bash\n{text}\n")
        program.chmod(0o755)
    certificates, configuration = blocks("Who can reach workers")
    run(certificates, tmp_path)
    folder = tmp_path / ".config" / "dask"
    folder.mkdir(parents=True)
    (folder / "medsegai.yaml").write_text(configuration.replace("/home/me", str(tmp_path)))
    scans(tmp_path / "data" / "scans", "a", "b", "c", "d")
    return tmp_path


def run(script: str, home: Path) -> None:
    """By bash, in a separate group that is ended with all that it started."""
    process = subprocess.Popen(
        ["bash", "-ec", script],
        cwd=home,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={
            **os.environ,
            "HOME": str(home),
            "PATH": f"{home}/bin:{os.environ['PATH']}",
            "DASK_CONFIG": f"{home}/.config/dask",
            "PYTHONPATH": str(Path(__file__).parent),
            "DASK_DISTRIBUTED__WORKER__PRELOAD": fake_engine_preload.__file__,
        },
    )
    code = None
    try:
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = process.wait(timeout=300)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        said, _ = process.communicate()
    assert code == 0, said


@pytest.mark.slow
@pytest.mark.parametrize("heading", ["Slurm", "Computers that you reach by ssh"])
def test_a_recipe_does_the_cases(heading: str, home: Path) -> None:
    script, *files = blocks(heading)
    for text in files:
        (home / "worker.sh").write_text(text)
    for there in ("/data/", "/shared/"):
        script = script.replace(there, f"{home}/data/")
    run(script.replace("medsegai batch", "medsegai batch --model toy"), home)
    assert states(home / "data" / "results") == dict.fromkeys("abcd", "done")


def test_workers_are_started_alike_in_all_recipes() -> None:
    """With the options without which they are refused, reachable by others, or ended too soon."""
    closed = (
        "--no-dashboard --dashboard-address 127.0.0.1:0"  # else pages without it stay reachable
    )
    wanted = {"--nthreads 1", "--memory-limit 0", closed}
    (pods,) = blocks("Kubernetes")
    texts = [" ".join(map(str, item["command"])) for item in commands(pods)]
    for heading in ("Slurm", "Computers that you reach by ssh"):
        text = " ".join(blocks(heading)).replace("\\\n", " ")
        texts += [" ".join(line.split()) for line in text.splitlines()]
    workers = [text for text in texts if "dask worker" in text]
    assert len(workers) == 3
    for text in workers:
        assert all(option in text for option in wanted), text
        assert "--protocol tls" in text or "tls://" in text
    schedulers = [text for text in texts if "dask scheduler" in text]
    assert len(schedulers) == 3
    assert all(f"--protocol tls {closed}" in text for text in schedulers)


CONTAINER = {
    "command",
    "args",
    "env",
    "envFrom",
    "image",
    "name",
    "resources",
    "volumeMounts",
    "workingDir",
}
"""The fields of a container in Kubernetes (core/v1) that a recipe may need."""

QUANTITY = re.compile(r"\d+(\.\d+)?(m|[kMGTPE]i?)?")


def test_containers_have_the_fields_of_kubernetes() -> None:
    """A number in the environment, or an option that YAML takes for a number, is refused there."""
    (text,) = blocks("Kubernetes")
    containers = commands(text)
    assert len(containers) == 3
    for container in containers:
        assert container.keys() <= CONTAINER
        assert container["command"]
        assert all(isinstance(word, str) for word in container["command"])
        for variable in container.get("env", ()):
            assert isinstance(variable, dict)
            assert variable.keys() == {"name", "value"}
            assert all(isinstance(value, str) for value in variable.values())
        resources = container.get("resources", {})
        assert isinstance(resources, dict)
        for part, quantities in resources.items():
            assert part in ("limits", "requests")
            assert all(QUANTITY.fullmatch(str(value)) for value in quantities.values())


def commands(text: str) -> list[dict[str, Any]]:
    """The containers of the recipe, which stand one below the other."""
    parts = re.split(r"^# .*\n", text, flags=re.MULTILINE)
    return [yaml.safe_load(part) for part in parts if part.strip()]

"""Where the worker runs: commands, environments and settings, and what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from medsegai.errors import WorkerError
from MedSegAILib.worker.location import WorkerLocation, startup_environment

MODULE_FOLDER = Path(__file__).resolve().parents[2] / "MedSegAI"
LAUNCHED = {
    "APPLAUNCHER_LEVEL": "1",
    "APPLAUNCHER_0_PATH": "/usr/bin",
    "APPLAUNCHER_0_PYTHONPATH": "/home/of/user/lib",
    "PATH": "/opt/Slicer/bin:/usr/bin",
    "LD_LIBRARY_PATH": "/opt/Slicer/lib",
    "PYTHONHOME": "/opt/Slicer/lib/Python",
    "PYTHONPATH": "/opt/Slicer/bin/Python",
}


@pytest.fixture
def fake_ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program ssh that writes its arguments down."""
    program = tmp_path / "bin" / "ssh"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    return program


def test_slicers_own_python_keeps_what_the_launcher_set() -> None:
    place = WorkerLocation.own("/opt/Slicer/bin/PythonSlicer")
    assert place.command() == ["/opt/Slicer/bin/PythonSlicer", "-m", "medsegai.worker"]
    environment = place.environment(LAUNCHED)
    assert environment["LD_LIBRARY_PATH"] == "/opt/Slicer/lib"
    assert environment["PYTHONPATH"] == f"{MODULE_FOLDER}{os.pathsep}/opt/Slicer/bin/Python"


def test_another_python_gets_nothing_of_slicers_launcher() -> None:
    environment = WorkerLocation.other(sys.executable).environment(LAUNCHED)
    assert environment["PATH"] == "/usr/bin"
    assert environment["PYTHONPATH"] == f"{MODULE_FOLDER}{os.pathsep}/home/of/user/lib"
    assert not environment.keys() & {"LD_LIBRARY_PATH", "PYTHONHOME", "APPLAUNCHER_LEVEL"}


def test_without_a_launcher_the_environment_is_what_it_is() -> None:
    assert startup_environment({"PATH": "/usr/bin", "LANG": "C"}) == {
        "PATH": "/usr/bin",
        "LANG": "C",
    }


@pytest.mark.parametrize("inside", ["bin/python", "bin/python3", "Scripts/python.exe"])
def test_the_folder_of_an_environment_stands_for_its_python(tmp_path: Path, inside: str) -> None:
    python = tmp_path / "my env" / inside
    python.parent.mkdir(parents=True)
    python.touch(0o755)
    assert WorkerLocation.other(tmp_path / "my env").command()[0] == str(python)


def test_a_python_that_is_not_there_is_refused_when_it_is_needed(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no program")
    for path in (tmp_path / "gone", tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(WorkerError, match="No Python was found at"):
            WorkerLocation.other(path).command()
    with pytest.raises(WorkerError, match="Name a Python"):
        WorkerLocation.other(" ")


def test_another_python_finds_the_package_and_not_that_of_the_current_folder(
    tmp_path: Path,
) -> None:
    (tmp_path / "medsegai.py").write_text("raise SystemExit('the wrong one')")
    place = WorkerLocation.other(sys.executable)
    code = "import medsegai, sys; sys.stdout.write(medsegai.__file__)"
    done = subprocess.run(
        [place.command()[0], "-c", code],
        env=place.environment(),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(done.stdout) == MODULE_FOLDER / "medsegai" / "__init__.py"


def test_ssh_asks_nothing_and_opens_nothing(fake_ssh: Path) -> None:
    command = WorkerLocation.ssh("gpu-box").command()
    assert command[0] == str(fake_ssh)
    heard = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert heard[-3:] == ["--", "gpu-box", "medsegai worker"]
    assert {"-oBatchMode=yes", "-oClearAllForwardings=yes", "-T"} <= set(heard)


def test_the_doctor_runs_where_the_worker_would(fake_ssh: Path) -> None:
    place = WorkerLocation.ssh("me@gpu-box", "/opt/my env/bin/medsegai worker")
    assert place.doctor_command()[-2:] == ["me@gpu-box", "/opt/my env/bin/medsegai doctor --json"]
    assert WorkerLocation.ssh("box", "python3 -m medsegai worker").doctor_command()[-1] == (
        "python3 -m medsegai doctor --json"
    )
    own = WorkerLocation.own("/opt/PythonSlicer").doctor_command()
    assert own == ["/opt/PythonSlicer", "-m", "medsegai.commands.doctor", "--json"]


@pytest.mark.parametrize(
    "host", ["box", "me@box", "gpu.example.org", "10.0.0.7", "fe80::1", "my_box-2", " box "]
)
def test_what_names_a_computer_is_taken(host: str) -> None:
    assert WorkerLocation.ssh(host).target == host.strip()


@pytest.mark.parametrize(
    "host",
    [
        "",
        "-oProxyCommand=touch x",
        "me@-oProxyCommand=x",
        "-box",
        "box; reboot",
        "box reboot",
        "$(reboot)",
        "`reboot`",
        "box\nreboot",
        "a@b@c",
        "%h",
        "box/x",
    ],
)
def test_what_could_be_more_than_a_name_is_refused(host: str) -> None:
    with pytest.raises(WorkerError, match="not the name of a computer"):
        WorkerLocation.ssh(host)


@pytest.mark.parametrize(
    "program", ["medsegai", "medsegai worker; reboot", "a\nworker", "worker x"]
)
def test_a_remote_program_that_is_no_worker_is_refused(program: str) -> None:
    with pytest.raises(WorkerError, match="word worker"):
        WorkerLocation.ssh("box", program)


def test_without_ssh_the_way_out_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(WorkerError, match="OpenSSH"):
        WorkerLocation.ssh("box").command()


@pytest.mark.parametrize(
    "place",
    [
        WorkerLocation.own("/opt/PythonSlicer"),
        WorkerLocation.other("/opt/my env: new/bin/python"),
        WorkerLocation.ssh("me@box"),
        WorkerLocation.ssh("box", "/opt/my env/bin/medsegai worker"),
    ],
)
def test_a_place_comes_back_from_settings(place: WorkerLocation) -> None:
    assert WorkerLocation.from_text(place.to_text(), "/opt/PythonSlicer") == place


def test_slicers_own_python_is_that_of_this_slicer() -> None:
    text = WorkerLocation.own("/opt/Slicer-5.12/PythonSlicer").to_text()
    assert (
        WorkerLocation.from_text(text, "/opt/Slicer-5.14/PythonSlicer")
        .command()[0]
        .startswith("/opt/Slicer-5.14")
    )
    assert WorkerLocation.from_text("", "/opt/PythonSlicer") == WorkerLocation.own(
        "/opt/PythonSlicer"
    )


@pytest.mark.parametrize(
    "text", ["nowhere", "python:", "ssh:", "ssh:-oProxyCommand=x", "command:x"]
)
def test_a_damaged_setting_is_refused(text: str) -> None:
    with pytest.raises(WorkerError):
        WorkerLocation.from_text(text, "/opt/PythonSlicer")


def test_only_another_computer_has_files_of_its_own() -> None:
    assert WorkerLocation.own("p").shares_files
    assert WorkerLocation.other("p").shares_files
    assert WorkerLocation.running(["p"]).shares_files
    assert not WorkerLocation.ssh("box").shares_files


def test_how_ssh_failed_is_told() -> None:
    place = WorkerLocation.ssh("box")
    assert "`ssh box` in a terminal" in str(place.explain(255))
    assert "The program medsegai was not found on box" in str(place.explain(127))
    assert place.explain(1) is None
    assert WorkerLocation.own("p").explain(255) is None


def test_the_doctor_answers_in_another_python() -> None:
    """The real doctor; what it finds is another test's affair."""
    place = WorkerLocation.other(Path(sys.executable).parent.parent)
    done = subprocess.run(place.doctor_command(), env=place.environment(), capture_output=True)
    assert "findings" in json.loads(done.stdout), done.stderr

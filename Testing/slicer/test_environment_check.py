"""The Test button: the real doctor in real processes, and places where there is none."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from MedSegAILib.worker import environment_check
from MedSegAILib.worker.environment_check import EnvironmentCheck, Report, read_report
from MedSegAILib.worker.location import WorkerLocation
from worker_help import until

PLACE = WorkerLocation.own(sys.executable)


def check_environment(place: WorkerLocation) -> Report:
    reports: list[Report] = []
    running = EnvironmentCheck(place, reports.append)
    running.start()
    until(lambda: reports)
    (report,) = reports
    return report


def python_that(folder: Path, script: str) -> WorkerLocation:
    """A place whose Python is a shell script."""
    program = folder / "bin" / "python"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return WorkerLocation.other(folder)


def test_this_python_is_ready_and_lists_its_devices() -> None:
    report = check_environment(WorkerLocation.other(sys.executable))
    assert report.ready, report.text()
    assert not report.trouble
    assert "cpu" in [device["name"] for device in report.devices]
    names = {finding["name"] for finding in report.findings}
    assert {"python", "torch", "ram", "brain", "temporary folder"} <= names
    assert report.text().startswith("Ready to segment.")


def test_a_python_that_lacks_nearly_everything_is_told_how_to_repair_it(tmp_path: Path) -> None:
    """`-S` leaves out all that pip installs, NumPy as well."""
    report = check_environment(python_that(tmp_path, f'exec {sys.executable} -S "$@"'))
    assert not report.ready
    assert not report.trouble
    health = {finding["name"]: finding["health"] for finding in report.findings}
    assert health["numpy"] == health["torch"] == health["scipy"] == "problem"
    pip = [step for step in report.repairs if "-m pip install" in step]
    assert len(pip) == 1
    assert "numpy scipy SimpleITK" in pip[0]
    assert "Not ready." in report.text()
    assert pip[0] in report.text()


def test_what_is_no_python_is_told_with_what_it_said(tmp_path: Path) -> None:
    report = check_environment(
        python_that(tmp_path, 'echo "cannot execute: wrong architecture" >&2; exit 3')
    )
    assert not report.ready
    assert "wrong architecture" in report.trouble
    assert "exit code 3" in report.trouble


def test_a_python_that_is_not_there_is_told() -> None:
    assert (
        "No Python was found at /nowhere"
        in check_environment(WorkerLocation.other("/nowhere")).trouble
    )
    assert check_environment(WorkerLocation.own("/nowhere/PythonSlicer")).trouble


def test_a_doctor_that_does_not_answer_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment_check, "DOCTOR_SECONDS", 0.5)
    report = check_environment(python_that(tmp_path, "exec sleep 60"))
    assert "did not respond within 0.5 s" in report.trouble


def test_what_was_cancelled_tells_nothing(tmp_path: Path) -> None:
    reports: list[Report] = []
    running = EnvironmentCheck(python_that(tmp_path, "exec sleep 60"), reports.append)
    running.start()
    running.cancel()
    assert reports == []


def test_a_computer_that_is_gone_is_told() -> None:
    report = read_report(WorkerLocation.ssh("gone"), b"", 255, "ssh: No route to host")
    assert "The computer gone cannot be reached" in report.trouble
    assert "No route to host" in report.trouble


def test_what_a_login_prints_before_the_report_does_no_harm() -> None:
    finding = {"topic": "device", "name": "cuda:0", "found": "Card", "health": "good"}
    printed = json.dumps({"ready": True, "findings": [finding], "repairs": []})
    report = read_report(PLACE, b"Welcome!\n" + printed.encode(), 0, "")
    assert report.ready
    assert [device["name"] for device in report.devices] == ["cuda:0"]


@pytest.mark.parametrize(
    "output",
    [b"", b"{}", b"{", b"[1]", b'{"findings": [{}], "ready": true, "repairs": []}', b"\xff{"],
)
def test_what_is_no_report_is_trouble(output: bytes) -> None:
    report = read_report(PLACE, output, 1, "its last words")
    assert not report.ready
    assert "its last words" in report.trouble

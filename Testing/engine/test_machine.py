"""Limits of containers, in made files of control groups: threads and the memory plan keep to them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import medsegai
from medsegai import doctor
from medsegai.io import files
from medsegai.networks import backends
from medsegai.system import machine

GIB = 2**30
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with 64 GiB, 32 of them available, whose control groups are a folder."""
    (tmp_path / "meminfo").write_text(
        f"MemTotal:  {64 * GIB // 1024} kB\nMemAvailable:  {32 * GIB // 1024} kB\n"
    )
    (tmp_path / "groups").mkdir()
    monkeypatch.setattr(machine, "MEMORY", tmp_path / "meminfo")
    monkeypatch.setattr(machine, "OWN_GROUPS", tmp_path / "own")
    monkeypatch.setattr(machine, "CONTROL_GROUPS", tmp_path / "groups")
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    if hasattr(os, "sched_getaffinity"):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    return tmp_path


def group(folder: Path, **values: object) -> None:
    """A control group with these files; an underscore stands for the dot of their names."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in values.items():
        (folder / name.replace("__", ".")).write_text(f"{value}\n")


def test_without_limits_the_machine_counts(system: Path) -> None:
    (system / "own").write_text("0::/user.slice\n")
    group(system / "groups" / "user.slice", cpu__max="max 100000", memory__max="max")
    assert machine.usable_cores() == 16
    assert machine.total_memory() == 64 * GIB
    assert machine.available_memory() == 32 * GIB


@pytest.mark.parametrize(
    ("quota", "cores"), [("200000 100000", 2), ("150000 100000", 2), ("5000 100000", 1)]
)
def test_the_processors_of_a_container(quota: str, cores: int, system: Path) -> None:
    (system / "own").write_text("0::/\n")
    group(system / "groups", cpu__max=quota)
    assert machine.usable_cores() == cores


def test_the_tightest_of_all_groups_above_counts(system: Path) -> None:
    (system / "own").write_text("0::/a/b/c\n")
    group(
        system / "groups" / "a", cpu__max="300000 100000", memory__max=8 * GIB, memory__current=GIB
    )
    group(
        system / "groups" / "a/b",
        cpu__max="400000 100000",
        memory__max=4 * GIB,
        memory__current=GIB // 2,
    )
    group(system / "groups" / "a/b/c", cpu__max="max 100000", memory__max="max", memory__current=0)
    assert machine.usable_cores() == 3
    assert machine.total_memory() == 4 * GIB
    assert machine.available_memory() == 4 * GIB - GIB // 2


def test_what_is_only_cached_is_available(system: Path) -> None:
    (system / "own").write_text("0::/\n")
    group(
        system / "groups",
        memory__max=4 * GIB,
        memory__current=3 * GIB,
        memory__stat=f"anon {GIB}\ninactive_file {2 * GIB}",
    )
    assert machine.available_memory() == 3 * GIB


def test_the_first_version_of_control_groups(system: Path) -> None:
    (system / "own").write_text("4:memory:/docker/1\n1:cpu,cpuacct:/docker/1\n0::/\n")
    group(
        system / "groups" / "memory" / "docker/1",
        memory__limit_in_bytes=2 * GIB,
        memory__usage_in_bytes=GIB // 2,
        memory__stat=f"total_inactive_file {GIB // 4}",
    )
    group(
        system
        / "groups"
        / "cpu,cpuacct",  # the group of the host is not there: limits stand at the root
        cpu__cfs_quota_us=400000,
        cpu__cfs_period_us=100000,
    )
    assert machine.usable_cores() == 4
    assert machine.total_memory() == 2 * GIB
    assert machine.available_memory() == 2 * GIB - GIB // 4


def test_without_a_quota_the_first_version_says_minus_one(system: Path) -> None:
    (system / "own").write_text("1:cpu:/\n4:memory:/\n")
    group(system / "groups" / "cpu", cpu__cfs_quota_us=-1, cpu__cfs_period_us=100000)
    group(
        system / "groups" / "memory",
        memory__limit_in_bytes=9223372036854771712,
        memory__usage_in_bytes=GIB,
    )
    assert machine.usable_cores() == 16
    assert machine.total_memory() == 64 * GIB


@pytest.mark.parametrize("text", ["", "nonsense", "max"])
def test_files_that_say_nothing_are_no_limit(text: str, system: Path) -> None:
    (system / "own").write_text("0::/\n")
    group(system / "groups", cpu__max=text, memory__max=text, memory__current=text)
    assert machine.usable_cores() == 16
    assert machine.available_memory() == 32 * GIB


def test_readers_the_doctor_and_networks_keep_to_the_limits(
    system: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (system / "own").write_text("0::/\n")
    group(system / "groups", cpu__max="100000 100000", memory__max=GIB, memory__current=0)
    with pytest.raises(files.InputError, match=r"1\.07 GB free"):
        files.check_memory(Path("scan.nii"), 2 * GIB)
    memory = next(finding for finding in doctor.check_environment() if finding.name == "ram")
    assert memory.free_bytes == GIB
    processor = next(finding for finding in doctor.check_environment() if finding.name == "cpu")
    assert "1 core" in processor.found
    threads: list[int] = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    backends.choose_compute("cpu", "torch", "fp32")
    assert threads == [1]


def test_threads_are_left_alone_where_the_machine_has_them(
    system: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody may have chosen fewer, with OMP_NUM_THREADS or in a program of theirs."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: pytest.fail("they were changed"))
    backends.choose_compute("cpu", "torch", "fp32")


COMMAND = "from medsegai.cli import main; main(['models', 'list'])"
WORKER = "from medsegai.worker.server import main; main()"


@pytest.mark.skipif(sys.platform != "linux", reason="the OpenMP of GCC tells how it is set")
@pytest.mark.parametrize("program", [COMMAND, WORKER])
@pytest.mark.parametrize(
    ("set_by_user", "expected"),
    [
        ({}, ("OMP_WAIT_POLICY = 'PASSIVE'", "GOMP_SPINCOUNT = '1000'")),
        ({"GOMP_SPINCOUNT": "5"}, ("OMP_WAIT_POLICY = 'PASSIVE'", "GOMP_SPINCOUNT = '5'")),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, ("OMP_WAIT_POLICY = 'ACTIVE'",)),
    ],
)
def test_threads_sleep_while_they_wait_unless_the_user_chose_otherwise(
    program: str, set_by_user: dict[str, str], expected: tuple[str, ...]
) -> None:
    """On processors that other programs use, threads that spin make a head take more than twice as long."""
    choices = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    environment = {name: value for name, value in os.environ.items() if name not in choices}
    environment |= {"OMP_DISPLAY_ENV": "VERBOSE", **set_by_user}
    done = subprocess.run(
        [sys.executable, "-c", f"{program}; import torch"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
        env=environment | {"PYTHONPATH": str(Path(medsegai.__file__).parents[1])},
    )
    assert [line for line in expected if line not in done.stderr] == []

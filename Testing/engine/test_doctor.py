"""`medsegai doctor`: it finds what is there, and each problem comes with what to do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from medsegai import doctor
from medsegai.cli import main
from medsegai.doctor import Finding, Health, can_segment, check_environment, repairs
from medsegai.models import catalogue
from medsegai.system.machine import available_memory
from test_models_command import write_model

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One good model of the user's own, none bundled."""
    monkeypatch.setattr(catalogue, "BUNDLED_MODELS", tmp_path / "bundled")
    monkeypatch.setenv("MEDSEGAI_MODELS", str(tmp_path / "own"))
    write_model(tmp_path / "own" / "toy")
    return tmp_path / "own"


def finding(name: str) -> Finding:
    (found,) = [item for item in check_environment() if item.name == name]
    return found


@pytest.fixture
def fails_to_load(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Exception], None]:
    def break_module(name: str, error: Exception) -> None:
        real = doctor.importlib.import_module

        def load(wanted: str) -> ModuleType:
            if wanted == name:
                raise error
            return real(wanted)

        monkeypatch.setattr(doctor.importlib, "import_module", load)

    return break_module


def test_here_the_main_job_can_run(capsys: Capture) -> None:
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "Ready to segment." in out
    for name in ("python", "torch", "SimpleITK", "nibabel", "slicerio", "cpu", "ram", "toy"):
        assert f" {name} " in out


def test_the_findings_as_json(capsys: Capture) -> None:
    assert main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["ready"] is True
    found = {item["name"]: item["found"] for item in report["findings"]}
    assert found["python"].split(".")[:2] == [str(part) for part in sys.version_info[:2]]
    assert found["torch"] == sys.modules["torch"].__version__


def test_all_that_is_not_good_has_a_cure(own: Path) -> None:
    (own / "toy" / "net.safetensors").unlink()
    findings = check_environment()
    assert any(item.health is not Health.GOOD for item in findings)
    assert all(bool(item.cure) == (item.health is not Health.GOOD) for item in findings)


@pytest.mark.parametrize(
    ("error", "word"),
    [(ModuleNotFoundError("No module named 'torch'"), "not installed"), (OSError("no c10"), "c10")],
)
def test_a_torch_that_does_not_load_is_a_problem_with_a_cure(
    fails_to_load: Callable[[str, Exception], None], error: Exception, word: str, capsys: Capture
) -> None:
    fails_to_load("torch", error)
    assert main(["doctor"]) == 6
    out = capsys.readouterr().out
    (line,) = [line for line in out.splitlines() if line.startswith(" X torch")]
    assert word in line
    assert "PyTorch extension" in out
    assert "Not ready" in out


def test_a_missing_package_is_a_problem(
    fails_to_load: Callable[[str, Exception], None],
) -> None:
    fails_to_load("slicerio", ModuleNotFoundError("No module named 'slicerio'"))
    found = finding("slicerio")
    assert found.health is Health.PROBLEM
    assert found.cure == "pip install --upgrade slicerio"


def test_an_old_python_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "OLDEST_PYTHON", (99, 0))
    assert finding("python").health is Health.PROBLEM


def test_without_any_usable_model_it_is_not_ready(own: Path, capsys: Capture) -> None:
    (own / "toy" / "net.safetensors").write_bytes(b"damaged")
    assert main(["doctor"]) == 6
    out = capsys.readouterr().out
    assert "SHA-256" in out
    assert "medsegai models import" in out


def test_a_broken_model_beside_a_good_one_is_only_advice(own: Path) -> None:
    write_model(own / "worn", surprise=True)
    assert finding("worn").health is Health.ADVICE
    assert "surprise" in finding("worn").found
    assert can_segment(check_environment())


def test_too_little_memory_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "available_memory", lambda: 300_000_000)
    found = finding("ram")
    assert found.health is Health.ADVICE
    assert "0.3 GB" in found.found


@pytest.mark.skipif(sys.platform != "linux", reason="sysconf tells the memory on Linux")
def test_the_available_memory_lies_between_free_and_all() -> None:
    page = os.sysconf("SC_PAGE_SIZE")
    available = available_memory()
    assert available is not None
    assert 0.5 * os.sysconf("SC_AVPHYS_PAGES") * page < available
    assert available < os.sysconf("SC_PHYS_PAGES") * page


def test_a_full_disk_for_models_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = SimpleNamespace(total=10**12, used=10**12 - 10**6, free=10**6)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _path: usage)
    found = finding("models folder")
    assert found.health is Health.ADVICE
    assert "MEDSEGAI_MODELS" in found.cure


def fake_torch(cards: int, error: str = "", cuda: str | None = "12.6") -> ModuleType:
    """A torch on a machine with graphics cards, as far as the doctor looks."""

    class Tensor:
        def add_(self, _value: int) -> Tensor:
            if error:
                raise RuntimeError(error)
            return self

        def cpu(self) -> Tensor:
            return self

    torch = ModuleType("torch")
    torch.__dict__.update(
        __version__="2.10.0",
        ones=lambda _count, device: Tensor(),
        version=SimpleNamespace(cuda=cuda),
        cpu=SimpleNamespace(get_capabilities=lambda: {"avx2": True, "amx_bf16": False}),
        cuda=SimpleNamespace(
            device_count=lambda: cards,
            is_available=lambda: cards > 0,
            get_device_name=lambda index: f"Card {index}",
            mem_get_info=lambda index: (3_000_000_000, 8_000_000_000),
        ),
    )
    return torch


@pytest.mark.parametrize(
    ("version", "sound"),
    [("2.9.1+cu128", False), ("1.13", False), ("?", False), ("2.10.0", True), ("3.0a0", True)],
)
def test_a_torch_that_a_checkpoint_can_harm_is_told(
    version: str, sound: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = fake_torch(0)
    torch.__version__ = version
    monkeypatch.setitem(sys.modules, "torch", torch)
    (found,) = (f for f in doctor._torch(torch) if f.name == "torch")
    assert (found.health is Health.GOOD) == sound
    assert ("CVE-2026-24747" in found.found) != sound


def test_each_graphics_card_is_listed_with_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", fake_torch(2))
    assert finding("cuda:1").found == "Card 1, 3.0 GB free of 8.0 GB"
    assert finding("cpu").found.endswith("avx2")
    assert "openvino" not in [
        item.name for item in check_environment() if item.health is not Health.GOOD
    ]


def test_a_card_without_kernels_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    error = "CUDA error: no kernel image is available\nmore lines"
    monkeypatch.setitem(sys.modules, "torch", fake_torch(1, error))
    found = finding("cuda:0")
    assert found.health is Health.ADVICE
    assert found.found == "Card 0: CUDA error: no kernel image is available"
    assert "--device cpu" in found.cure


def test_a_card_that_this_torch_cannot_use_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", fake_torch(0, cuda=None))
    monkeypatch.setattr(doctor.shutil, "which", lambda name: f"/usr/bin/{name}")
    assert finding("cuda").health is Health.ADVICE


def test_a_graphics_card_tells_its_memory_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", fake_torch(1))
    found = finding("cuda:0").to_dict()
    assert (found["free_bytes"], found["total_bytes"]) == (3_000_000_000, 8_000_000_000)


def test_where_all_is_well_nothing_is_to_be_repaired() -> None:
    assert repairs([item for item in check_environment() if item.health is Health.GOOD]) == []


def test_missing_packages_are_one_step_of_repair(
    fails_to_load: Callable[[str, Exception], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    monkeypatch.delenv("SLICER_HOME", raising=False)
    missing = ModuleNotFoundError("No module named this")
    for name in ("slicerio", "PIL", "torch"):
        fails_to_load(name, missing)
    steps = repairs(check_environment())
    assert f'"{sys.executable}" -m pip install --upgrade slicerio pillow' in steps
    assert doctor.GET_TORCH in steps
    assert main(["doctor"]) == 6
    out = capsys.readouterr().out
    assert all(f"  {step}\n" in out for step in steps)
    main(["doctor", "--json"])
    assert json.loads(capsys.readouterr().out)["repairs"] == steps


def test_inside_slicer_the_module_installs_what_is_missing(
    fails_to_load: Callable[[str, Exception], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """pip alone could replace what Slicer brings."""
    monkeypatch.setenv("SLICER_HOME", "/opt/Slicer")
    fails_to_load("slicerio", ModuleNotFoundError("No module named 'slicerio'"))
    (step,) = repairs([item for item in check_environment() if item.name == "slicerio"])
    assert "press Segment" in step
    assert "pip" not in step


def test_a_temporary_folder_that_can_be_written_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    found = finding("temporary folder")
    assert found.health is Health.GOOD
    assert str(tmp_path) in found.found
    assert list(tmp_path.glob("medsegai-*")) == []


def test_a_temporary_folder_that_cannot_be_written_is_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    found = finding("temporary folder")
    assert found.health is Health.PROBLEM
    assert "TMPDIR" in found.cure
    assert not can_segment([found])


def test_the_doctor_needs_no_numpy() -> None:
    """As in the Python of an environment that was made a minute ago."""
    done = subprocess.run(
        [sys.executable, "-S", "-m", "medsegai.commands.doctor", "--json"],
        env=os.environ | {"PYTHONPATH": str(Path(doctor.__file__).parents[1])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 6, done.stderr
    missing = {
        item["name"] for item in json.loads(done.stdout)["findings"] if item["health"] == "problem"
    }
    assert {"numpy", "torch"} <= missing


def test_what_slides_are_read_with_is_named_and_missed_without_a_problem(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = finding("slides")
    assert whole.health is Health.GOOD
    assert "openslide-bin" in whole.found
    monkeypatch.setitem(sys.modules, "openslide_bin", None)
    part = finding("slides")
    assert part.health is Health.ADVICE
    assert "without openslide-bin" in part.found
    for module in doctor.FOR_SLIDES.values():
        monkeypatch.setitem(sys.modules, module, None)
    none = finding("slides")
    assert none.health is Health.GOOD
    assert "medsegai[slides]" in none.found

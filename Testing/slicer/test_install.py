"""What is installed when, with a made-up Slicer: nothing here touches this Python's packages."""

from __future__ import annotations

import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import slicer

from medsegai.errors import WorkerError
from MedSegAILib import install

ALL = {
    "torch": "2.9.0",
    "numpy": "2.4.0",
    "SimpleITK": "2.5.0",
    "scipy": "1.16.0",
    "pillow": "12.0",
    **{requirement.name: "99.0" for requirement in install._requirements()},
}


class Slicer:
    """Installed packages, and what was asked of pip and of the PyTorch extension."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._patch = patch
        self.installed = dict(ALL)
        self.calls: list[dict[str, Any]] = []
        self.constraints: list[str] = []
        self.torch_calls: list[dict[str, Any]] = []
        patch.setattr(install.metadata, "version", self._version)

    def _version(self, name: str) -> str:
        if name not in self.installed:
            raise install.metadata.PackageNotFoundError(name)
        return self.installed[name]

    def give_packaging(self, error: Exception | None = None) -> None:
        """A Slicer that has `slicer.packaging`."""

        def pip_ensure(requirements: list[str], constraints: Path, **options: Any) -> None:
            self.constraints = constraints.read_text().split()
            self.calls.append({"requirements": requirements, **options})
            if error:
                raise error

        module = types.ModuleType("slicer.packaging")
        module.pip_ensure = pip_ensure  # type: ignore[attr-defined]
        self._patch.setitem(sys.modules, "slicer.packaging", module)
        self._patch.setattr(slicer, "packaging", module, raising=False)

    def give_old_pip(self, answer: bool = True, error: Exception | None = None) -> None:
        """A Slicer of before `slicer.packaging`."""

        def pip_install(arguments: list[str]) -> None:
            self.constraints = Path(arguments[-1]).read_text().split()
            self.calls.append({"arguments": arguments[:-1]})
            if error:
                raise error

        def confirm(text: str, title: str) -> bool:
            self.calls.append({"question": text})
            return answer

        self._patch.delitem(sys.modules, "slicer.packaging", raising=False)
        self._patch.delattr(slicer, "packaging", raising=False)
        self._patch.setattr(slicer.util, "pip_install", pip_install)
        self._patch.setattr(slicer.util, "confirmOkCancelDisplay", confirm, raising=False)

    def give_torch_extension(self, install_torch: Callable[[], Any]) -> None:
        made = self.torch_calls

        class PyTorchUtilsLogic:
            def installTorch(self, **options: Any) -> Any:
                made.append(options)
                return install_torch()

        module = types.ModuleType("PyTorchUtils")
        module.PyTorchUtilsLogic = PyTorchUtilsLogic  # type: ignore[attr-defined]
        self._patch.setitem(sys.modules, "PyTorchUtils", module)


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Slicer:
    host = Slicer(monkeypatch)
    host.give_packaging()
    return host


def test_where_nothing_is_missing_nothing_is_done(host: Slicer) -> None:
    install.ensure(interactive=True)
    assert host.calls == []
    assert host.torch_calls == []


def test_what_is_missing_is_installed_through_slicer(host: Slicer) -> None:
    del host.installed["slicerio"]
    host.installed["nibabel"] = "4.0"
    install.ensure(interactive=True)
    (call,) = host.calls
    assert sorted(call["requirements"]) == ["nibabel>=5.2", "slicerio>=1.1"]
    assert call["prompt_install"] is True
    assert call["requester"] == "MedSegAI"


def test_without_a_window_nobody_is_asked(host: Slicer) -> None:
    del host.installed["slicerio"]
    install.ensure(interactive=False)
    (call,) = host.calls
    assert call["prompt_install"] is False
    assert call["prompt_restart"] is False


def test_what_slicer_brings_is_held_at_its_version(host: Slicer) -> None:
    """pip must not replace Slicer's SimpleITK or numpy, whatever a package asks for."""
    del host.installed["slicerio"]
    install.ensure(interactive=False)
    assert {"numpy==2.4.0", "SimpleITK==2.5.0", "torch==2.9.0"} <= set(host.constraints)
    assert not [line for line in host.constraints if line.startswith("vtk")], "not installed here"


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("User declined package installation"),
        subprocess.CalledProcessError(1, "pip install"),
        OSError("No space left on device"),
    ],
)
def test_an_installation_that_fails_is_told_with_the_way_out(
    host: Slicer, error: Exception
) -> None:
    host.give_packaging(error)
    del host.installed["slicerio"]
    with pytest.raises(WorkerError, match=r"slicerio>=1\.1 could not be installed.*wheels"):
        install.ensure(interactive=True)


def test_an_older_slicer_uses_its_own_pip(host: Slicer) -> None:
    host.give_old_pip()
    del host.installed["slicerio"]
    install.ensure(interactive=True)
    question, call = host.calls
    assert "slicerio>=1.1" in question["question"]
    assert call["arguments"] == ["slicerio>=1.1", "--constraint"]
    assert "numpy==2.4.0" in host.constraints


def test_an_older_slicer_installs_nothing_that_was_declined(host: Slicer) -> None:
    host.give_old_pip(answer=False)
    del host.installed["slicerio"]
    with pytest.raises(WorkerError, match="declined"):
        install.ensure(interactive=True)
    assert [list(call) for call in host.calls] == [["question"]]


def test_an_older_slicer_without_a_window_does_not_ask(host: Slicer) -> None:
    host.give_old_pip()
    del host.installed["slicerio"]
    install.ensure(interactive=False)
    assert [list(call) for call in host.calls] == [["arguments"]]


def test_pytorch_comes_from_its_extension_and_never_from_pip(host: Slicer) -> None:
    del host.installed["torch"]
    host.give_torch_extension(lambda: "torch")
    install.ensure(interactive=True)
    assert host.torch_calls == [{"askConfirmation": True, "torchVersionRequirement": ">=2.6"}]
    assert host.calls == []


def test_a_missing_pytorch_extension_is_named(
    host: Slicer, monkeypatch: pytest.MonkeyPatch
) -> None:
    del host.installed["torch"]
    monkeypatch.setitem(sys.modules, "PyTorchUtils", None)
    with pytest.raises(WorkerError, match=r"PyTorch extension.*Extensions Manager"):
        install.ensure(interactive=True)


def test_pytorch_that_was_declined_is_told(host: Slicer) -> None:
    del host.installed["torch"]
    host.give_torch_extension(lambda: None)
    with pytest.raises(WorkerError, match="cannot run without PyTorch"):
        install.ensure(interactive=True)


def test_pytorch_that_cannot_be_installed_is_told(host: Slicer) -> None:
    def fail() -> None:
        raise subprocess.CalledProcessError(2, "ltt install")

    del host.installed["torch"]
    host.give_torch_extension(fail)
    with pytest.raises(WorkerError, match="PyTorch could not be installed"):
        install.ensure(interactive=True)


@pytest.mark.parametrize("version", ["1.13.1", "2.5.1+cu121"])
def test_an_old_pytorch_is_told_and_not_replaced(host: Slicer, version: str) -> None:
    host.installed["torch"] = version
    with pytest.raises(WorkerError, match=r"too old.*PyTorch Utils"):
        install.ensure(interactive=True)


@pytest.mark.parametrize("version", ["2.6.0", "2.9.1+cu128", "3.0.0.dev20270101"])
def test_a_new_pytorch_is_taken_whatever_its_build(host: Slicer, version: str) -> None:
    host.installed["torch"] = version
    install.ensure(interactive=True)
    assert host.torch_calls == []


def test_the_requirements_file_is_the_list() -> None:
    names = {requirement.name for requirement in install._requirements()}
    assert {"nibabel", "safetensors", "slicerio"} <= names
    assert not names & set(install.PROTECTED)

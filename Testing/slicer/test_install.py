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
from stand_ins import heard, put, put_module

ALL = {
    "torch": "2.11.0",
    "numpy": "2.4.0",
    "SimpleITK": "2.5.0",
    "scipy": "1.16.0",
    "pillow": "12.0",
    **{requirement.name: "99.0" for requirement in install._requirements()},
}


def agree(plan: install.Plan) -> install.Consent:
    """A user who says yes."""
    return install.Consent()


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

        def pip_ensure(given: dict[str, Any]) -> None:
            self.constraints = given.pop("constraints").read_text().split()
            self.calls.append(given)
            if error:
                raise error

        module = put_module(self._patch, "slicer.packaging", {})
        vars(module)["pip_ensure"] = heard("slicer.packaging.pip_ensure", pip_ensure)

    def give_old_pip(self, error: Exception | None = None) -> None:
        """A Slicer of before `slicer.packaging`."""

        def pip_install(arguments: list[str]) -> None:
            self.constraints = Path(arguments[-1]).read_text().split()
            self.calls.append({"arguments": arguments[:-1]})
            if error:
                raise error

        self._patch.delitem(sys.modules, "slicer.packaging", raising=False)
        self._patch.delattr(slicer, "packaging", raising=False)
        put(self._patch, "slicer.util.pip_install", pip_install)

    def give_torch_extension(self, install_torch: Callable[[], Any]) -> None:
        made = self.torch_calls

        def install_and_note(given: dict[str, Any]) -> Any:
            made.append(given)
            return install_torch()

        def new_logic() -> Any:
            path = "PyTorchUtils.PyTorchUtilsLogic.installTorch"
            return types.SimpleNamespace(installTorch=heard(path, install_and_note))

        put_module(self._patch, "PyTorchUtils", {"PyTorchUtilsLogic": new_logic})


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Slicer:
    host = Slicer(monkeypatch)
    host.give_packaging()
    return host


def test_where_nothing_is_missing_nothing_is_done(host: Slicer) -> None:
    install.ensure(agree)
    assert host.calls == []
    assert host.torch_calls == []


def test_what_is_missing_is_installed_through_slicer(host: Slicer) -> None:
    del host.installed["slicerio"]
    host.installed["nibabel"] = "4.0"
    install.ensure(agree)
    (call,) = host.calls
    assert sorted(call["requirements"]) == ["nibabel>=5.2", "slicerio>=1.1"]
    assert call["prompt_install"] is False, "our dialog has asked, and once is enough"
    assert call["prompt_restart"] is True
    assert call["requester"] == "MedSegAI"


def test_what_an_export_needs_is_asked_for_when_it_is_wanted(host: Slicer) -> None:
    install.ensure(agree)
    assert host.calls == []
    install.ensure(agree, ["export"])
    (call,) = host.calls
    assert sorted(call["requirements"]) == ["highdicom>=0.25", "manifold3d>=3.1"]


def test_what_a_model_of_monai_needs_is_named_in_the_question(host: Slicer) -> None:
    plans: list[install.Plan] = []

    def ask(plan: install.Plan) -> install.Consent:
        plans.append(plan)
        return install.Consent()

    install.ensure(ask, ["monai"])
    (plan,) = plans
    assert [line[0] for line in plan.lines()] == ["monai>=1.5", "PyYAML>=6.0"]


def test_without_a_window_nobody_is_asked(host: Slicer) -> None:
    del host.installed["slicerio"]
    install.ensure(None)
    (call,) = host.calls
    assert call["prompt_install"] is False
    assert call["prompt_restart"] is False


def test_one_question_says_everything_that_will_be_installed(host: Slicer) -> None:
    del host.installed["slicerio"]
    del host.installed["torch"]
    host.give_torch_extension(lambda: "torch")
    plans: list[install.Plan] = []

    def ask(plan: install.Plan) -> install.Consent:
        plans.append(plan)
        return install.Consent()

    install.ensure(ask)
    (plan,) = plans
    assert [str(package) for package in plan.packages] == ["torch>=2.10", "slicerio>=1.1"]
    assert plan.needs_torch
    assert plan.folder.is_dir()
    assert plan.lines()[0] == ("torch>=2.10", "the PyTorch extension", "0.2 to 3 GB")


def test_a_no_installs_nothing(host: Slicer) -> None:
    del host.installed["slicerio"]
    with pytest.raises(WorkerError, match=r"Nothing was installed.*slicerio>=1\.1"):
        install.ensure(lambda plan: None)
    assert host.calls == host.torch_calls == []


def test_a_folder_of_wheels_is_enough_and_no_network_is_touched(
    host: Slicer, tmp_path: Path
) -> None:
    host.give_old_pip()
    del host.installed["slicerio"]
    del host.installed["torch"]
    (tmp_path / "slicerio-1.4.0-py3-none-any.whl").touch()
    install.ensure(lambda plan: install.Consent(tmp_path))
    (call,) = host.calls
    assert call["arguments"] == [
        "torch>=2.10",
        "slicerio>=1.1",
        "--no-index",
        "--find-links",
        str(tmp_path),
        "--constraint",
    ]
    assert "numpy==2.4.0" in host.constraints
    assert host.torch_calls == [], "the PyTorch extension would need the network"


def test_a_folder_without_wheels_is_told(host: Slicer, tmp_path: Path) -> None:
    del host.installed["slicerio"]
    with pytest.raises(WorkerError, match="does not contain wheels"):
        install.ensure(lambda plan: install.Consent(tmp_path))


def test_wheels_that_do_not_fit_are_told(host: Slicer, tmp_path: Path) -> None:
    host.give_old_pip(error=subprocess.CalledProcessError(1, "pip install"))
    del host.installed["slicerio"]
    (tmp_path / "slicerio-1.4.0-py3-none-any.whl").touch()
    with pytest.raises(WorkerError, match="could not be installed"):
        install.ensure(lambda plan: install.Consent(tmp_path))


def test_what_slicer_brings_is_held_at_its_version(host: Slicer) -> None:
    """pip must not replace Slicer's SimpleITK or numpy, whatever a package asks for."""
    del host.installed["slicerio"]
    install.ensure(None)
    assert {"numpy==2.4.0", "SimpleITK==2.5.0", "torch==2.11.0"} <= set(host.constraints)
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
        install.ensure(agree)


def test_an_older_slicer_uses_its_own_pip(host: Slicer) -> None:
    host.give_old_pip()
    del host.installed["slicerio"]
    install.ensure(agree)
    (call,) = host.calls
    assert call["arguments"] == ["slicerio>=1.1", "--constraint"]
    assert "numpy==2.4.0" in host.constraints


def test_pytorch_comes_from_its_extension_and_never_from_pip(host: Slicer) -> None:
    del host.installed["torch"]
    host.give_torch_extension(lambda: "torch")
    install.ensure(agree)
    assert host.torch_calls == [{"askConfirmation": False, "torchVersionRequirement": ">=2.10"}]
    assert host.calls == []


def test_a_missing_pytorch_extension_is_named(
    host: Slicer, monkeypatch: pytest.MonkeyPatch
) -> None:
    del host.installed["torch"]
    monkeypatch.setitem(sys.modules, "PyTorchUtils", None)
    with pytest.raises(WorkerError, match=r"PyTorch extension.*Extensions Manager"):
        install.ensure(agree)


def test_pytorch_that_was_declined_is_told(host: Slicer) -> None:
    del host.installed["torch"]
    host.give_torch_extension(lambda: None)
    with pytest.raises(WorkerError, match="cannot run without PyTorch"):
        install.ensure(agree)


def test_pytorch_that_cannot_be_installed_is_told(host: Slicer) -> None:
    def fail() -> None:
        raise subprocess.CalledProcessError(2, "ltt install")

    del host.installed["torch"]
    host.give_torch_extension(fail)
    with pytest.raises(WorkerError, match="PyTorch could not be installed"):
        install.ensure(agree)


@pytest.mark.parametrize("version", ["1.13.1", "2.5.1+cu121", "2.9.1+cu128"])
def test_an_old_pytorch_is_told_and_not_replaced(host: Slicer, version: str) -> None:
    host.installed["torch"] = version
    with pytest.raises(WorkerError, match=r"too old.*PyTorch Utils"):
        install.ensure(agree)


@pytest.mark.parametrize("version", ["2.10.0", "2.13.0+cu128", "3.0.0.dev20270101"])
def test_a_new_pytorch_is_taken_whatever_its_build(host: Slicer, version: str) -> None:
    host.installed["torch"] = version
    install.ensure(agree)
    assert host.torch_calls == []


def test_the_requirements_file_is_the_list() -> None:
    names = {requirement.name for requirement in install._requirements()}
    assert {"nibabel", "safetensors", "slicerio"} <= names
    assert not names & set(install.PROTECTED)

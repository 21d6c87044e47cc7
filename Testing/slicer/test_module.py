"""The module's entry as Slicer runs it: start, reload and end, and the self-test of the application."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import slicer

import segment_editor
from medsegai.system import private_folders
from MedSegAILib import self_test as self_tests
from slicer_application import MODULE_FOLDER
from stand_ins import heard, put, put_module


def test_the_self_test_asks_nobody_and_installs_nothing(
    fresh_module: Any, application: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in a Slicer that somebody uses, where packages are missing."""
    from MedSegAILib import install
    from MedSegAILib.host import can_ask, is_test, unattended

    def ensure(ask: Any, extras: Sequence[str]) -> None:
        raise AssertionError("the user would have to answer")

    monkeypatch.setattr(install, "ensure", ensure)
    put(monkeypatch, "slicer.util.mainWindow", lambda: "window")
    assert can_ask()
    with unattended():
        assert not can_ask()
        fresh_module.install_what_is_missing()
    assert not is_test()


@pytest.mark.parametrize(
    ("window", "testing", "asked"),
    [(None, False, [False]), ("window", False, [True]), ("window", True, [])],
)
def test_installing_asks_only_where_somebody_can_answer(
    application: Any,
    fresh_module: Any,
    monkeypatch: pytest.MonkeyPatch,
    window: Any,
    testing: bool,
    asked: list[bool],
) -> None:
    from MedSegAILib import install

    heard: list[bool] = []
    wanted: list[Sequence[str]] = []

    def ensure(ask: Any, extras: Sequence[str]) -> None:
        heard.append(ask is not None)
        wanted.append(extras)

    monkeypatch.setattr(install, "ensure", ensure)
    put(monkeypatch, "slicer.util.mainWindow", lambda: window)
    application.testing = testing
    fresh_module.install_what_is_missing()
    fresh_module.install_what_is_missing(["export"])
    assert heard == asked * 2
    assert wanted == ([(), ["export"]] if asked else [])


def test_quitting_slicer_ends_the_worker(
    module: Any, application: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    module.close_worker()
    monkeypatch.setenv("PATH", "")
    client = module.worker()
    assert client is module.worker(), "one worker for all"
    application.quit()
    assert module._worker is None


def test_cleaning_up_ends_the_worker_and_the_observations(module: Any) -> None:
    page = module.MedSegAIWidget()
    page.cleanup()
    assert module._worker is None
    slicer.mrmlScene.Clear(0)


def test_reloading_reads_every_file_again(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = [name for name in sys.modules if name.split(".")[0] in ("MedSegAILib", "medsegai")]
    for name in ours:  # put back afterwards
        monkeypatch.setitem(sys.modules, name, sys.modules[name])
    page = module.MedSegAIWidget()
    page.onReload()
    assert page.reloaded
    left = [name for name in sys.modules if name.split(".")[0] in ("MedSegAILib", "medsegai")]
    assert left == []


def test_the_module_tells_what_it_is(module: Any) -> None:
    class Parent:
        pass

    parent: Any = Parent()
    module.MedSegAI(parent)
    assert parent.title == "MedSegAI"
    assert parent.categories == ["Segmentation"]
    assert "not for diagnostic use" in parent.helpText
    assert parent.acknowledgementText


def test_opening_slicer_loads_nothing_of_ours_but_the_entry(application: Any) -> None:
    """Slicer runs MedSegAI.py at every start: not even numpy is asked for there."""
    source = (MODULE_FOLDER / "MedSegAI.py").read_text()
    code = compile(source, "MedSegAI.py", "exec")
    before = {name for name in sys.modules if name.startswith(("medsegai", "MedSegAILib"))}
    saved = {name: sys.modules.pop(name) for name in before}
    try:
        exec(code, {"__name__": "MedSegAI", "__file__": str(MODULE_FOLDER / "MedSegAI.py")})
        loaded = [name for name in sys.modules if name.startswith(("medsegai", "MedSegAILib"))]
    finally:
        sys.modules.update(saved)
    assert loaded == []


def test_the_place_of_the_worker_is_a_setting(module: Any, application: Any) -> None:
    module.close_worker()
    application.settings.setValue("MedSegAI/place", "ssh:server medsegai worker")
    assert module.worker().place.target == "server"
    module.close_worker()
    application.settings.setValue("MedSegAI/place", "nonsense")
    assert module.worker().place.kind == "own"


class Parent:
    """The qSlicerScriptedLoadableModule of the module."""


def sample_data(patch: pytest.MonkeyPatch, hear: Callable[[dict[str, Any]], None]) -> None:
    """The module SampleData, which tells what is registered."""
    sources: dict[str, list[Any]] = {}

    def register(given: dict[str, Any]) -> None:
        sources.setdefault(given["category"], []).append(SimpleNamespace(**given))
        hear(given)

    register_path = "SampleDataLogic.registerCustomSampleDataSource"
    by_category = "SampleDataLogic.sampleDataSourcesByCategory"
    module = put_module(
        patch, "SampleData", {by_category: lambda category: sources.get(category, [])}
    )
    logic = module.SampleDataLogic
    logic.registerCustomSampleDataSource = staticmethod(
        heard(f"SampleData.{register_path}", register)
    )


def effects() -> list[str]:
    factory = slicer.qSlicerSegmentEditorEffectFactory.instance()
    return [effect.name for effect in factory.registeredEffects()]


def test_when_slicer_has_started_data_and_effect_are_registered(
    fresh_module: Any, application: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    registered: list[dict[str, Any]] = []
    sample_data(monkeypatch, registered.append)
    segment_editor.start(monkeypatch)
    fresh_module.MedSegAI(Parent())
    application.start()
    (source,) = registered
    digest = source["checksums"].removeprefix("SHA256:")
    assert source["uris"].endswith(digest)
    assert len(digest) == 64
    assert Path(source["thumbnailFileName"]).is_file()
    assert effects() == ["AI correct"]


def test_when_slicer_has_started_what_a_killed_one_left_is_gone(
    fresh_module: Any, application: Any, temporary: Path
) -> None:
    code = "import os; print(os.getpid())"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    left, ours = (
        temporary / f"medsegai-exchange-{number}.{private_folders._numbering()}-scan"
        for number in (int(ended.stdout), os.getpid())
    )
    for folder in (left, ours):
        folder.mkdir()
        (folder / "scan.npy").write_bytes(b"voxels")
    fresh_module.MedSegAI(Parent())
    application.start()
    assert not left.exists()
    assert ours.exists()


@pytest.mark.parametrize("broken", ["SampleData", "qSlicerSegmentationsEditorEffectsPythonQt"])
def test_what_fails_at_the_start_costs_nothing_else(
    fresh_module: Any,
    application: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    broken: str,
) -> None:
    registered: list[dict[str, Any]] = []
    sample_data(monkeypatch, registered.append)
    segment_editor.start(monkeypatch)
    monkeypatch.setitem(sys.modules, broken, None)
    fresh_module.MedSegAI(Parent())
    application.start()
    assert len(registered) + len(effects()) == 1
    assert "failed when Slicer had started" in caplog.text


@pytest.fixture
def self_test(module: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The self-test with the real engine behind the worker, as in the application."""
    from MedSegAILib import correction

    ours = [name for name in sys.modules if name.split(".")[0] in ("MedSegAILib", "medsegai")]
    for name in ours:  # put back after the module was reloaded
        monkeypatch.setitem(sys.modules, name, sys.modules[name])
    module.close_worker()
    monkeypatch.setenv("PATH", "")  # no PythonSlicer here: this Python stands in for it
    monkeypatch.setattr("shutil.which", lambda name: None)
    factory = segment_editor.start(monkeypatch)
    correction.register()
    sequences = slicer.vtkSlicerSequencesLogic()
    sequences.SetMRMLScene(slicer.mrmlScene)
    sample_data(monkeypatch, lambda given: None)
    module.register_sample_data()
    page = module.MedSegAIWidget()
    pages = {
        "MedSegAI": page,
        "SegmentEditor": segment_editor.EditorModule(slicer.mrmlScene, factory),
    }
    put(monkeypatch, "slicer.util.getModuleWidget", lambda module: pages[module])
    yield self_tests.SelfTest
    page.cleanup()


SLOW = ("test_brain_model_runs", "test_segmentation_is_refined_and_handed_over")
NAMES = [name for name in dir(self_tests.SelfTest) if name.startswith("test_")]


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in NAMES]
)
def test_the_self_test_passes(self_test: Any, name: str) -> None:
    self_test(name).debug()


def test_the_self_test_runs_on_and_names_what_failed(
    module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []
    for name in NAMES:
        monkeypatch.setattr(self_tests.SelfTest, name, _mark(ran, name, name == NAMES[1]))
    said: list[str] = []
    assert self_tests.run(said.append) == [NAMES[1]]
    assert ran == sorted(NAMES, key=lambda name: name == "test_module_reloads")
    assert said[-1] == f"{len(NAMES) - 1} of {len(NAMES)} tests passed"
    with pytest.raises(AssertionError, match=NAMES[1]):
        module.MedSegAITest("runTest").runTest()


def _mark(ran: list[str], name: str, fails: bool) -> Any:
    def test(_self: Any) -> None:
        ran.append(name)
        assert not fails

    test.__name__ = name
    return test

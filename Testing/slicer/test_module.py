"""The module's entry as Slicer runs it: start, reload and end, and the self-test of the application."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import slicer

from slicer_application import MODULE_FOLDER


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
    wanted: list[bool] = []

    def ensure(ask: Any, handover: bool) -> None:
        heard.append(ask is not None)
        wanted.append(handover)

    monkeypatch.setattr(install, "ensure", ensure)
    monkeypatch.setattr(slicer.util, "mainWindow", lambda: window)
    application.testing = testing
    fresh_module.install_what_is_missing()
    fresh_module.install_what_is_missing(True)
    assert heard == asked * 2
    assert wanted == ([False, True] if asked else [])


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


def test_when_slicer_has_started_data_and_effect_are_registered(
    fresh_module: Any, application: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import types

    registered: list[dict[str, Any]] = []
    effects: list[bool] = []

    class SampleDataLogic:
        @staticmethod
        def registerCustomSampleDataSource(**source: Any) -> None:
            registered.append(source)

    sample_data = types.ModuleType("SampleData")
    sample_data.SampleDataLogic = SampleDataLogic  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "SampleData", sample_data)
    monkeypatch.setattr("MedSegAILib.correction.register", lambda: effects.append(True))

    class Parent:
        pass

    fresh_module.MedSegAI(Parent())
    application.start()
    (source,) = registered
    digest = source["checksums"].removeprefix("SHA256:")
    assert source["uris"].endswith(digest)
    assert len(digest) == 64
    assert Path(source["thumbnailFileName"]).is_file()
    assert effects == [True]


@pytest.fixture
def self_test(module: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`MedSegAITest` with the real engine behind the worker, as in the application."""
    module.close_worker()
    monkeypatch.setenv("PATH", "")  # no PythonSlicer here: this Python stands in for it
    monkeypatch.setattr("shutil.which", lambda name: None)
    page = module.MedSegAIWidget()
    monkeypatch.setattr(slicer.util, "getModuleWidget", lambda name: page)
    return module.MedSegAITest()


@pytest.mark.parametrize(
    "name",
    [
        "test_voxels_and_segments_lie_at_one_place",
        "test_segments_can_be_edited_at_once",
        "test_bad_input_is_refused",
        "test_panel_follows_the_scene",
        "test_every_part_of_the_panel_works",
        "test_results_are_listed_and_reviewed",
        "test_effect_is_in_the_segment_editor",
        "test_worker_process_answers",
        pytest.param("test_brain_model_runs", marks=pytest.mark.slow),
    ],
)
def test_the_self_test_passes(self_test: Any, name: str) -> None:
    self_test.setUp()
    getattr(self_test, name)()


def test_the_self_test_runs_all_of_its_tests(self_test: Any, monkeypatch: Any) -> None:
    ran: list[str] = []
    names = [name for name in dir(self_test) if name.startswith("test_")]
    for name in names:
        monkeypatch.setattr(self_test, name, _mark(ran, name))
    self_test.runTest()
    assert sorted(ran) == sorted(names)


def _mark(ran: list[str], name: str) -> Any:
    def test() -> None:
        ran.append(name)

    test.__name__ = name
    return test

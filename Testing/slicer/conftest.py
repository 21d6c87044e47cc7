"""What the tests of the Slicer side share: PythonQt's manners, and a scene."""

from __future__ import annotations

import importlib.util
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import pythonqt

pythonqt.install()

MODULE_FOLDER = Path(__file__).resolve().parents[2] / "MedSegAI"
FAKE_WORKER = Path(__file__).resolve().parents[1] / "engine" / "fake_worker.py"


@pytest.fixture(autouse=True)
def no_slot_fails() -> Iterator[None]:
    """An exception in a slot fails the test, although Qt goes on."""
    pythonqt.slot_errors.clear()
    yield
    assert not pythonqt.slot_errors, pythonqt.slot_errors


@pytest.fixture(autouse=True)
def qt_ends_with_the_test(no_slot_fails: None) -> Iterator[None]:
    """Ends what a test made, because Qt tells every window that is left of each change of the style, and more."""
    there = pythonqt.alive()
    yield
    pythonqt.end(pythonqt.alive() - there)


@pytest.fixture
def mrml() -> Iterator[Any]:
    """A real scene with the logics that segmentations need."""
    import slicer

    scene = slicer.vtkMRMLScene()
    application = slicer.vtkSlicerApplicationLogic()
    application.SetMRMLScene(scene)
    segmentations = slicer.vtkSlicerSegmentationsModuleLogic()
    segmentations.SetMRMLApplicationLogic(application)
    segmentations.SetMRMLScene(scene)
    yield scene
    scene.Clear(1)
    forget_doubled_rules()


def forget_doubled_rules() -> None:
    """Leave one of each rule that converts segmentations.

    The logic of each scene registers all of them again, for the whole process, and a segmentation that is copied
    compares each with each: after 200 scenes a copy took a tenth of a second. Slicer has one logic.
    """
    import slicer

    factory = slicer.vtkSegmentationConverterFactory.GetInstance()
    known: set[str] = set()
    for rule in factory.GetConverterRules():
        if rule.GetClassName() in known:
            factory.UnregisterConverterRule(rule)
        known.add(rule.GetClassName())


@pytest.fixture
def application(mrml: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module `slicer` as the application has it."""
    import slicer_application

    return slicer_application.start(mrml, monkeypatch)


@pytest.fixture
def fresh_module(application: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`MedSegAI.py`, run anew as at the start of Slicer."""
    spec = importlib.util.spec_from_file_location("MedSegAI", MODULE_FOLDER / "MedSegAI.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "MedSegAI", module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def module(fresh_module: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The same, its worker a real process with a made-up engine, and nothing to install."""
    from MedSegAILib.worker.client import WorkerClient, worker_environment

    environment = worker_environment(MODULE_FOLDER) | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(FAKE_WORKER)]
    fresh_module._worker = WorkerClient(command, environment)
    monkeypatch.setattr(fresh_module, "install_what_is_missing", lambda *_: None)
    yield fresh_module
    fresh_module.close_worker()


@pytest.fixture
def page(module: Any) -> Iterator[Any]:
    page = module.MedSegAIWidget()
    yield page
    page.cleanup()


@pytest.fixture
def fake_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A card in the user's folder; its folder's name is what the made-up engine is told."""
    monkeypatch.setenv("MEDSEGAI_MODELS", str(tmp_path / "models"))
    folder = tmp_path / "models" / "quick"
    folder.mkdir(parents=True)
    source = MODULE_FOLDER / "medsegai" / "models" / "bundled" / "brain" / "card.json"
    (folder / "card.json").write_text(json.dumps(json.loads(source.read_text()) | {"id": "quick"}))
    return folder


@pytest.fixture
def editing(mrml: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A scan that an AI segmented, in the Segment Editor with the effect AI correct."""
    from correction_help import bench

    made = bench(mrml, monkeypatch)
    yield made
    made.panel.cleanup()


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A temporary folder of the test's own, so that leftovers show."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.fixture
def client(temporary: Path) -> Iterator[Any]:
    """A worker client whose worker has a made-up engine."""
    from worker_help import make_client

    client = make_client()
    yield client
    client.close()

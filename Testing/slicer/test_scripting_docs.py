"""The examples of docs/scripting.md run as they stand, with a made-up engine behind the worker."""

from __future__ import annotations

import inspect
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import nrrd
import numpy as np
import pytest
import SimpleITK as sitk
import slicer

from stand_ins import put

REPOSITORY = Path(__file__).resolve().parents[2]
TEXT = (REPOSITORY / "docs" / "scripting.md").read_text()
(SLICER_SECTION,) = re.findall(r"^## Slicer\n(.*?)(?=^## |\Z)", TEXT, re.M | re.S)
EXAMPLES = re.findall(r"^### (.+?)$.*?^```python\n(.*?)^```", SLICER_SECTION, re.M | re.S)


def load_volume(filename: str) -> Any:
    """What `slicer.util.loadVolume` does, without the application's readers."""
    logic = slicer.vtkSlicerVolumesLogic()
    logic.SetMRMLScene(slicer.mrmlScene)
    node = logic.AddArchetypeVolume(filename, "head", 0)
    assert node is not None, filename
    return node


def save_node(node: Any, filename: str) -> bool:
    storage = slicer.vtkMRMLSegmentationStorageNode()
    slicer.mrmlScene.AddNode(storage)
    storage.SetFileName(filename)
    return bool(storage.WriteData(node))


@pytest.fixture
def console(module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A folder with scans, and Slicer's Python console in it."""
    monkeypatch.chdir(tmp_path)
    put(monkeypatch, "slicer.util.loadVolume", load_volume)
    put(monkeypatch, "slicer.util.saveNode", save_node)
    image = np.zeros((4, 5, 10), np.int16)
    image[1:] = 150
    sitk.WriteImage(sitk.GetImageFromArray(image), "head.nii.gz")
    Path("scans").mkdir()
    for name in ("scans/a", "scans/b", "flair"):
        shutil.copy("head.nii.gz", f"{name}.nii.gz")
    return {"__name__": "__main__"}


def run(code: str, console: dict[str, Any]) -> None:
    exec(compile(code, "docs/scripting.md", "exec"), console)


CODE = dict(EXAMPLES)
FIRST, FOLDER = "Segment a volume", "A folder, without a window"


def test_every_example_is_found() -> None:
    assert len(CODE) == SLICER_SECTION.count("\n### ") == 14
    assert next(iter(CODE)) == FIRST
    assert FOLDER in CODE


@pytest.mark.parametrize("title", [title for title in CODE if title not in (FIRST, FOLDER)])
def test_an_example_runs_after_the_first(title: str, console: dict[str, Any]) -> None:
    run(CODE[FIRST], console)
    run(CODE[title], console)
    assert slicer.mrmlScene.IsNodePresent(console["segmentation"])


def test_the_first_example_writes_its_file(console: dict[str, Any]) -> None:
    run(CODE[FIRST], console)
    assert nrrd.read_header("head.seg.nrrd")["Segment0_Name"] == "Left hippocampus"


def test_the_example_of_options_gets_its_entropy(console: dict[str, Any]) -> None:
    run(CODE[FIRST], console)
    run(CODE["Choose model and options"], console)
    assert console["entropy"].GetName() == "head uncertainty"


def test_the_example_that_refines_changes_what_it_names(
    console: dict[str, Any], module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    real = inspect.signature(module.MedSegAILogic.refine)

    def refine(*values: Any, **named: Any) -> tuple[str, ...]:
        asked.append(real.bind(*values, **named).arguments)
        return ()

    monkeypatch.setattr(module.MedSegAILogic, "refine", refine)
    run(CODE[FIRST], console)
    run(CODE["Refine an existing segmentation"], console)
    assert asked[1]["volumeNode"] is console["volume"]
    names = {
        segment.GetName()
        for segment in map(
            console["segmentation"].GetSegmentation().GetNthSegment,
            range(console["segmentation"].GetSegmentation().GetNumberOfSegments()),
        )
    }
    assert set(asked[1]["segments"]) <= names


def test_the_examples_ask_for_what_they_say(
    console: dict[str, Any], module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    start = module.worker().start

    def spy(request: Any, listener: Any) -> None:
        asked.append(request)
        start(request, listener)

    monkeypatch.setattr(module.worker(), "start", spy)
    run(CODE[FIRST], console)
    for title in ("Several channels", "An ensemble", "Refinement"):
        run(CODE[title], console)
    assert [item.source for item in asked[1].inputs] == ["head", "head_1"]
    assert asked[2].models == ("brain", "my-brain")
    assert [request.refine for request in asked[3:]] == [False, True]
    before = console["segmentation"]
    run(CODE["Update a part of an existing segmentation"], console)
    assert asked[-1].region == (-8.0, -2.0, -4.0, 0.0, 1.0, 5.0)
    assert console["segmentation"] is before, "updated, not made anew"


def test_the_example_of_waiting_gets_one_result_per_volume(console: dict[str, Any]) -> None:
    run(CODE[FIRST], console)
    load_volume("flair.nii.gz")
    run(CODE["Start now, wait later"], console)
    assert len(console["segmentations"]) == 2


def test_the_loop_over_segments_runs(console: dict[str, Any], capsys: Any) -> None:
    run(CODE[FIRST], console)
    (code,) = re.findall(r"^```python\n(segments = .*?)^```", SLICER_SECTION, re.M | re.S)
    run(code, console)
    assert "001_Left_hippocampus Left hippocampus 150" in capsys.readouterr().out


def test_the_script_without_a_window_works_through_its_folder(console: dict[str, Any]) -> None:
    with pytest.raises(SystemExit) as ended:
        run(CODE[FOLDER], console)
    assert ended.value.code == 0
    assert sorted(path.name for path in Path("scans").glob("*.seg.nrrd")) == [
        "a.seg.nrrd",
        "b.seg.nrrd",
    ]


def test_the_script_without_a_window_ends_with_the_code_of_the_error(
    console: dict[str, Any], capsys: Any
) -> None:
    code = CODE[FOLDER].replace("segment(volume)", "segment(volume, model='refuse')")
    with pytest.raises(SystemExit) as ended:
        run(code, console)
    assert ended.value.code == 6
    assert "The device cuda:7 is unknown." in capsys.readouterr().err
    assert sys.exc_info() == (None, None, None)

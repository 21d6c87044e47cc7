"""The panel's choices in saved scenes: the page, the panel and MRML are real."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import slicer
from hypothesis import given, settings
from hypothesis import strategies as st

import pythonqt
from medsegai.request import request_from_options, request_options
from MedSegAILib.kept_choices import LONGEST, TEXTS, KeptChoices, from_texts, to_texts
from MedSegAILib.output_choice import OutputMode
from MedSegAILib.panel_values import DeviceChoice
from MedSegAILib.scene import Scene
from module_help import head, model_called, node_count, press, until
from panel_help import find

KIND = "vtkMRMLScriptedModuleNode"


@pytest.fixture
def pair(fake_model: Path) -> str:
    """A model of two channels, one of them optional, beside the bundled ones."""
    file = fake_model / "card.json"
    channels = [
        {"name": "T1; w:1", "modality": "MR"},
        {"name": "FLAIR", "modality": "MR", "required": False},
    ]
    changed = {"id": "pair", "name": "Pair", "channels": channels}
    file.write_text(json.dumps(json.loads(file.read_text()) | changed))
    return "pair"


@pytest.fixture
def scene(application: Any, tmp_path: Path) -> Any:
    """The application's scene, which can unpack bundles."""
    cache, io = slicer.vtkCacheManager(), slicer.vtkDataIOManager()
    cache.SetRemoteCacheDirectory(str(tmp_path / "cache"))
    slicer.mrmlScene.SetCacheManager(cache)
    io.SetCacheManager(cache)
    slicer.mrmlScene.SetDataIOManager(io)
    return slicer.mrmlScene


def choose_model(page: Any, name: str) -> None:
    selector = find(page.parent, "modelSelector")
    selector.setCurrentIndex([card.id for card in page.panel._cards].index(name))


def choose(page: Any, name: str, key: str, value: Any) -> None:
    """Let a user set a property of a widget."""
    assert find(page.parent, name).setProperty(key, value), (name, key)


def segmentation(name: str = "Atlas") -> Any:
    return slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", name)


def segment_two(page: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Segment the volumes One and Two."""
    model_called(monkeypatch, "quick")
    for name in ("One", "Two"):
        page.panel.choose_input(head(name))
        press(page, "segmentButton")
        until(lambda: not page.controller.jobs._running)


def choose_everything(page: Any) -> None:
    """Every choice is another than by default."""
    first, second, third = head("One"), head("Two"), head("Three")
    choose_model(page, "pair")
    page.panel.choose_input(second)
    find(page.parent, "channel1Selector").setCurrentNode(third)
    box = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsROINode", "Box")
    box.SetSize(9, 9, 9)
    page.panel.choose_region(box)
    page.panel.choose_output(OutputMode.UPDATE, segmentation())
    choose(page, "lockedCheck", "checked", True)
    choose(page, "paintedCheck", "checked", True)
    choose(page, "speedSelector", "currentIndex", 1)
    choose(page, "uncertaintyOption", "checked", False)
    choose(page, "tile_stepOption", "value", 0.25)
    choose(page, "dropout_passesOption", "value", 12)
    choose(page, "fusionOption", "currentIndex", 1)
    choose(page, "deviceOption", "currentText", "cpu – the processor")
    page.panel._options._members._boxes["sagittal"].checked = False
    choose(page, "refinementNames", "currentIndex", 1)
    press(page, "addRefinementButton")
    choose(page, "refinementSelector", "currentIndex", 2)
    assert first is not second


def shown(page: Any) -> tuple[Any, ...]:
    """All choices as a person reads them on the page, with the names of nodes."""
    choice, refine = page.panel.choice(), page.panel.refine.choice()

    def name(node: Any) -> str:
        return "" if node is None else str(node.GetName())

    nodes = {channel: name(node) for channel, node in choice.nodes.items()}
    output = (choice.output.mode, name(choice.output.node))
    flags = (choice.output.change_locked, choice.output.change_painted)
    cards = [card.id for card in choice.cards]
    options, region = dict(choice.options), name(choice.region)
    return nodes, cards, options, output, flags, region, choice.every_frame, refine.refinement


def save(path: Path) -> Path:
    scene = slicer.mrmlScene
    if path.suffix == ".mrb":
        assert scene.WriteToMRB(str(path))
    else:
        path.parent.mkdir(exist_ok=True)
        scene.SetRootDirectory(str(path.parent))
        for volume in slicer.util.getNodesByClass("vtkMRMLVolumeNode"):
            volume.AddDefaultStorageNode()
            volume.GetStorageNode().SetFileName(str(path.with_name(f"{volume.GetID()}.nrrd")))
            assert volume.GetStorageNode().WriteData(volume)
        assert scene.Commit(str(path))
    return path


def load(path: Path, add: bool = False) -> None:
    """Open a scene, or add it to the present one, and let the page follow."""
    scene = slicer.mrmlScene
    if path.suffix == ".mrb":
        assert scene.ReadFromMRB(str(path), not add)
    else:
        scene.SetURL(str(path))
        assert scene.Import() if add else scene.Connect()
    settle()


def settle() -> None:
    for _ in range(5):
        pythonqt.process_events(1)


def kept_node() -> Any:
    return slicer.mrmlScene.GetSingletonNode("MedSegAI", KIND)


@pytest.mark.parametrize("name", ["case.mrb", "scene/case.mrml"])
def test_a_scene_that_is_opened_again_shows_the_choices_it_was_saved_with(
    pair: str, scene: Any, page: Any, tmp_path: Path, name: str
) -> None:
    default = shown(page)
    choose_everything(page)
    chosen = shown(page)
    assert all(now != before for now, before in zip(chosen[:6], default[:6], strict=True))
    assert {"members", "refinements", "dropout_passes"} <= page.panel.kept().options.keys()
    path = save(tmp_path / name)
    scene.Clear(0)
    settle()
    assert shown(page)[2:] != chosen[2:]
    load(path)
    assert shown(page) == chosen
    assert not find(page.parent, "channelsNote").isVisibleTo(pythonqt.real(page.parent))


def test_choices_survive_another_number_of_their_nodes(
    pair: str, scene: Any, page: Any, tmp_path: Path
) -> None:
    """Added to a scene of other nodes, to which nobody chose anything: all ids are taken."""
    choose_everything(page)
    chosen, path = shown(page), save(tmp_path / "case.mrb")
    old = page.panel.choice().node.GetID()
    scene.Clear(0)
    for number in range(4):
        head(f"Other {number}")
        segmentation(f"Other {number}")
    load(path, add=True)
    assert shown(page) == chosen
    assert page.panel.choice().node.GetID() != old


def test_a_scene_that_is_added_leaves_the_choices_of_the_open_one(
    pair: str, scene: Any, page: Any, tmp_path: Path
) -> None:
    choose_everything(page)
    path = save(tmp_path / "case.mrb")
    scene.Clear(0)
    settle()
    choose_model(page, "hippocampus")
    page.panel.choose_input(head("Mine"))
    page.panel.choose_output(OutputMode.ADD, segmentation("My own"))
    chosen = shown(page)
    load(path, add=True)
    assert shown(page) == chosen
    assert kept_node().GetNodeReference("segmentation").GetName() == "My own"
    both = save(tmp_path / "both.mrb")
    scene.Clear(0)
    load(both)
    assert shown(page) == chosen


def test_scenes_one_after_another_do_not_mix_their_choices(
    pair: str, scene: Any, page: Any, tmp_path: Path
) -> None:
    """The third was saved without the module, so it has the defaults, with the model that was used last."""
    default = shown(page)
    head("Alone")
    plain = save(tmp_path / "plain.mrb")
    choose_everything(page)
    first, first_file = shown(page), save(tmp_path / "first.mrb")
    scene.Clear(0)
    settle()
    page.panel.choose_input(head("Late"))
    choose_model(page, "hippocampus")
    choose(page, "tile_stepOption", "value", 0.75)
    second, second_file = shown(page), save(tmp_path / "second.mrb")
    for path, expected in ((first_file, first), (second_file, second), (first_file, first)):
        load(path)
        assert shown(page) == expected
    load(plain)
    assert kept_node() is None
    cards, options = shown(page)[1:3]
    assert cards == ["pair"]
    assert options == default[2] | {"device": "cpu"}
    assert shown(page)[3:] == default[3:]


def test_a_scene_that_is_only_looked_at_stays_as_it_is(
    scene: Any, page: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    head("One")
    second = head("Two")
    page.enter()
    press(page, "modelsButton")
    settle()
    assert kept_node() is None
    page.panel.choose_input(second)
    assert kept_node().GetAttribute("ModuleName") == "MedSegAI"
    assert kept_node().GetHideFromEditors()
    scene.Clear(0)
    settle()
    assert kept_node() is None
    model_called(monkeypatch, "quick")
    head("Three")
    assert kept_node() is None
    press(page, "segmentButton")
    until(lambda: node_count() == 1)
    assert kept_node().GetNodeReference("input0").GetName() == "Three"
    assert kept_node().GetNodeReference("result") is page.controller.results.node


def test_the_result_in_the_table_is_shown_again(
    scene: Any, page: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    segment_two(page, monkeypatch)
    assert node_count() == 2
    find(page.parent, "resultSelector").setCurrentNode(slicer.util.getNode("One segmentation"))
    load(save(tmp_path / "case.mrb"))
    assert page.controller.results.node.GetName() == "One segmentation"


def test_the_section_refine_is_shown_again(
    scene: Any, page: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if it was about another segmentation than the table."""
    segment_two(page, monkeypatch)
    find(page.parent, "refineSelector").setCurrentNode(slicer.util.getNode("One segmentation"))
    find(page.parent, "refineImageSelector").setCurrentNode(slicer.util.getNode("Two"))
    choose(page, "refinementSelector", "currentIndex", 1)
    choose(page, "refineSegmentsSelector", "currentIndex", 1)
    find(page.parent, "refineSegments").item(1).setCheckState(pythonqt.QtCore.Qt.Checked)
    before = refine_names(page)
    assert before[3] == ("002_Brain_Stem",)
    path = save(tmp_path / "case.mrb")
    scene.Clear(0)
    settle()
    default = refine_names(page)
    assert all(now != was for now, was in zip(default, before, strict=True))
    load(path)
    assert refine_names(page) == before
    assert page.controller.results.node.GetName() == "Two segmentation"
    load(save(tmp_path / "again.mrb"))
    assert refine_names(page) == before


def refine_names(page: Any) -> tuple[Any, ...]:
    choice = page.panel.refine.choice()
    nodes = [each and each.GetName() for each in (choice.segmentation, choice.image)]
    return (*nodes, choice.every, choice.segments, choice.refinement)


def test_a_page_that_is_reloaded_shows_the_choices_of_the_scene(
    pair: str, scene: Any, page: Any, module: Any
) -> None:
    choose_everything(page)
    chosen = shown(page)
    page.cleanup()
    again = module.MedSegAIWidget()
    try:
        assert shown(again) == chosen
    finally:
        again.cleanup()


def test_every_frame_of_a_sequence_is_chosen_again(
    scene: Any, page: Any, module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from test_scene_sequences import Cine

    head("Still")
    page.panel.choose_input(Cine(scene).proxy)
    choose(page, "framesSelector", "currentIndex", 1)
    chosen = shown(page)
    page.cleanup()
    again = module.MedSegAIWidget()
    try:
        assert shown(again) == chosen
        assert again.panel.choice().every_frame
    finally:
        again.cleanup()


def test_a_device_of_the_scene_is_chosen_when_the_doctor_has_found_it(
    scene: Any, page: Any
) -> None:
    """Devices are not known before the doctor has run; one that the user chose meanwhile stays."""
    head()
    found = [DeviceChoice("auto", ""), DeviceChoice("cpu", ""), DeviceChoice("cuda:1", "Card")]
    for meanwhile, expected in (("", "cuda:1"), ("cpu", "cpu")):
        choose(page, "deviceOption", "currentText", "auto")
        page.panel.show_devices(found[:2])
        scene.Clear(0)
        head()
        choose(page, "tile_stepOption", "value", 0.25)
        kept_node().SetParameter("options", '{"device": "cuda:1"}')
        page.controller.scene_opened()
        assert page.panel.choice().options["device"] == "auto"
        choose(page, "tile_stepOption", "value", 0.75)
        assert '"cuda:1"' in kept_node().GetParameter("options"), "it is not forgotten"
        if meanwhile:
            choose(page, "deviceOption", "currentText", meanwhile)
        page.panel.show_devices(found)
        assert page.panel.choice().options["device"] == expected
        assert page.panel.kept().options["device"] == expected


def test_models_that_run_together_are_chosen_again(
    fake_model: Path, scene: Any, page: Any, tmp_path: Path
) -> None:
    """The choice of others is read after the models were found, and one that is not here is left out."""
    head()
    box = page.panel._options._others._boxes["Brain structures (quick)"]
    box.checked = True
    chosen = shown(page)
    assert chosen[1] == ["brain", "quick"]
    path = save(tmp_path / "case.mrb")
    scene.Clear(0)
    settle()
    assert shown(page)[1] == ["brain"]
    load(path)
    assert shown(page) == chosen
    kept_node().SetParameter("others", '["gone", "quick"]')
    page.controller.choices.follow()
    assert shown(page)[1] == ["brain", "quick"]


def test_a_channel_that_was_left_out_between_two_others_is_left_out_again(
    scene: Any, page: Any
) -> None:
    volumes = [head("One"), head("Three")]
    kept = KeptChoices("brain", inputs=(volumes[0], None, volumes[1]))
    keeper = Scene(scene)
    keeper.keep_choices(KeptChoices("brain", inputs=(*volumes, *volumes)))
    keeper.keep_choices(kept)
    scene.SetSaveToXMLString(1)
    scene.Commit()
    other = slicer.vtkMRMLScene()
    other.SetLoadFromXMLString(1)
    other.SetSceneXMLString(scene.GetSceneXMLString())
    assert other.Import()
    found = Scene(other).kept_choices()
    assert found is not None
    assert [each and each.GetName() for each in found.inputs] == ["One", None, "Three"]


def test_an_import_that_ends_after_the_page_is_no_matter(scene: Any, page: Any) -> None:
    head()
    scene.InvokeEvent(scene.EndImportEvent)
    page.cleanup()
    settle()


def test_a_scene_is_followed_when_the_last_of_several_was_read(scene: Any, page: Any) -> None:
    """A file that is loaded shows its progress, so events are processed before it is complete."""
    scene.StartState(scene.ImportState)
    scene.EndState(scene.ImportState)
    scene.StartState(scene.ImportState)
    settle()
    head("One")
    page.panel.choose_input(head("Two"))
    assert kept_node() is None, "the scene is not complete"
    scene.EndState(scene.ImportState)
    settle()
    choose(page, "tile_stepOption", "value", 0.25)
    assert kept_node() is not None


def test_undo_leaves_the_choices(scene: Any, page: Any) -> None:
    scene.SetUndoOn()
    volumes = [head("One"), head("Two")]
    for volume in volumes:
        volume.SetUndoEnabled(True)
    scene.SaveStateForUndo()
    page.panel.choose_input(volumes[1])
    choose(page, "tile_stepOption", "value", 0.25)
    chosen = shown(page)
    scene.Undo()
    scene.Redo()
    assert shown(page) == chosen
    assert kept_node().GetNodeReference("input0").GetName() == "Two"
    scene.SetUndoOff()


# --- scenes of strangers ---------------------------------------------------------------------------

DAMAGED: dict[str, list[str]] = {
    "model": ['"no such model"', "7", "brain", '["brain"]', "null", '"\\ud800"'],
    "others": ['["no such model"]', '"brain"', "[[]]", "{}"],
    "fast": ['"yes"', "1"],
    "every_frame": ["true", "2"],
    "output": ['"everything"', "null", '"NEW"'],
    "change_locked": ["1", '"true"'],
    "options": [
        "[]",
        '{"tile_step": 7.0}',
        '{"tile_step": 1e999}',
        '{"tile_step": "0.5"}',
        '{"dropout_passes": -1}',
        '{"dropout_passes": 1e3}',
        '{"seed": 4000000000}',
        '{"fusion": "none"}',
        '{"uncertainty": 1}',
        '{"members": ["no such network"]}',
        '{"members": [1, {}]}',
        '{"device": "cuda:77"}',
        '{"refinements": ["no such refinement"]}',
        '{"refinements": ["islands:smallest_ml=-1"]}',
        '{"refinements": ["islands:labels=4711"]}',
        '{"refinements": [{"name": "islands"}]}',
        '{"__class__": "os.system"}',
        '{"models": ["/etc"], "region": [0, 1, 0, 1, 0, 1], "inputs": []}',
    ],
    "every_segment": ["1", '"yes"'],
    "segments": ["7", '[["a"]]'],
    "refinement": ['"no such refinement"', '"islands:keep"', "{}", '"level_set:__init__=1"'],
}
UNREADABLE = ["", "{", "NaN", "__import__('os')", "[" * 5000, '"' + "x" * LONGEST + '"', "\x01"]
CASES = [(name, text) for name, texts in DAMAGED.items() for text in texts] + [
    (name, text) for name in TEXTS for text in UNREADABLE
]


def test_damaged_choices_are_as_by_default(
    scene: Any, page: Any, module: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """One after another in a page that has other choices; nothing is raised, and no job starts."""
    head()
    default = shown(page)
    for name, text in CASES:
        choose(page, "tile_stepOption", "value", 0.25)
        node = kept_node()
        node.SetParameter(name, text)
        if name != "options":
            node.SetParameter("options", "{}")
        caplog.clear()
        page.controller.scene_opened()
        assert shown(page) == default, (name, text[:80])
        assert caplog.records or text in ("", "true"), (name, text[:80])
        assert all(record.levelno == logging.WARNING for record in caplog.records), text[:80]
    assert not module.queue().entries


def test_a_damaged_scene_file_shows_what_is_left(
    pair: str, scene: Any, page: Any, tmp_path: Path
) -> None:
    choose_everything(page)
    chosen, path = shown(page), save(tmp_path / "scene" / "case.mrml")
    volume = page.panel.choice().node.GetID()
    text = path.read_text()
    assert f"input0:{volume};" in text
    text = text.replace(f"input0:{volume};", "input0:vtkMRMLScalarVolumeNode99;")
    path.write_text(text.replace("&quot;tile_step&quot;: 0.25", "&quot;tile_step&quot;: 25"))
    load(path)
    assert shown(page)[1] == ["pair"]
    assert shown(page)[2] == chosen[2] | {"tile_step": 0.5}
    assert shown(page)[3:] == chosen[3:]
    assert page.panel.choice().node.GetName() == "One", "the selector's own choice"


texts = st.dictionaries(
    st.sampled_from(TEXTS),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from([o.name for o in request_options()]), inner, max_size=3
            )
        ),
        max_leaves=6,
    ).map(json.dumps)
    | st.text(max_size=30),
)


@settings(max_examples=200, deadline=None)
@given(texts)
def test_any_texts_become_choices_that_a_request_takes(texts: dict[str, str]) -> None:
    kept = from_texts(texts, {})
    request_from_options((Path("scan"),), kept.options)
    OutputMode(kept.output)
    assert isinstance(kept.fast, bool)
    assert all(isinstance(name, str) for name in (kept.model, *kept.others))
    assert from_texts(to_texts(kept), {}) == kept


def test_nodes_of_another_kind_or_gone_are_not_chosen(scene: Any, page: Any) -> None:
    volume, hidden = head("Head"), head("Hidden")
    hidden.SetHideFromEditors(True)
    region = segmentation("Not a region")
    page.panel.choose_output(OutputMode.UPDATE, region)
    node = kept_node()
    node.SetNodeReferenceID("region", region.GetID())
    node.SetNodeReferenceID("segmentation", volume.GetID())
    node.SetNodeReferenceID("result", volume.GetID())
    node.SetNodeReferenceID("input0", hidden.GetID())
    node.SetNodeReferenceID("input1", volume.GetID())
    page.controller.choices.follow()
    choice = page.panel.choice()
    assert choice.node is volume
    assert choice.region is None
    assert choice.output.node is None
    assert page.controller.results.node is None
    scene.RemoveNode(volume)
    scene.RemoveNode(region)
    page.controller.choices.follow()
    assert page.panel.choice().region is None


def test_an_unknown_model_leaves_the_channels_of_another_alone(
    pair: str, scene: Any, page: Any
) -> None:
    choose_everything(page)
    node = kept_node()
    node.SetParameter("model", '"gone"')
    third = head("Third")
    find(page.parent, "channel1Selector").setCurrentNode(None)
    node.SetParameter("model", '"gone"')
    node.SetNodeReferenceID("input0", third.GetID())
    node.SetNodeReferenceID("input1", third.GetID())
    page.controller.choices.follow()
    assert [card.id for card in page.panel.choice().cards] == ["pair"]
    assert list(page.panel.choice().nodes.values()) == [third, None]


def test_whether_to_segment_an_unsuitable_scan_is_asked_again() -> None:
    """Neither a saved scene nor one of a stranger answers for a scan that nobody looked at."""
    options = {"anyway": True, "uncertainty": False}
    assert json.loads(to_texts(KeptChoices(options=options))["options"]) == {"uncertainty": False}
    assert from_texts({"options": json.dumps(options)}, {}).options == {"uncertainty": False}


def test_texts_are_read_back_as_they_were_written() -> None:
    options = {"tile_step": 0.1, "members": ("axial; <b>", 'é漢"'), "seed": 3}
    kept = KeptChoices(
        "a model", ("b",), True, True, "add", True, True, options, "holes", False, ("1",)
    )
    assert from_texts(to_texts(kept), {}) == kept
    assert from_texts({}, {}) == KeptChoices()

"""What a result leaves in a scene: what belongs to it lies below it and goes with it; nothing is drawn twice."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import slicer

from medsegai.request import Candidates
from MedSegAILib.output_choice import OutputChoice, OutputMode
from MedSegAILib.scene import CANDIDATES_REFERENCE, ENTROPY_REFERENCE, Scene
from MedSegAILib.scene.marks import CHANGES, Marks, remove_orphans
from MedSegAILib.scene.tidying import follow
from MedSegAILib.uncertain_regions import UNCERTAINTY
from module_help import head, model_called, node_count, press, until
from scene_images import PLACES, add_volume, result_for, two_blocks

VOLUMES = ("vtkMRMLScalarVolumeNode", "vtkMRMLVectorVolumeNode")


def uncertain_result(scene: Scene, volume: Any) -> Any:
    """With entropy and candidates."""
    image = scene.read(volume)
    result = result_for(image, two_blocks(), entropy=True)
    first = result.labelmap.voxels.astype(np.uint16)
    steps = np.full(first.shape, 200, np.uint8)
    candidates = Candidates(first, np.zeros_like(first), steps, 255 - steps)
    return dataclasses.replace(result, candidates=candidates)


def write(mrml: Any, volume: Any, output: OutputChoice | None = None) -> Any:
    scene = Scene(mrml)
    return scene.write(volume, uncertain_result(scene, volume), output)


def volumes(mrml: Any, shown_only: bool = False) -> list[str]:
    nodes = [
        mrml.GetNthNodeByClass(number, kind)
        for kind in VOLUMES
        for number in range(mrml.GetNumberOfNodesByClass(kind))
    ]
    found = {n.GetName() for n in nodes if not (shown_only and n.GetHideFromEditors())}
    return sorted(found)


def displays(mrml: Any) -> int:
    return int(mrml.GetNumberOfNodesByClass("vtkMRMLVolumeDisplayNode"))


@pytest.fixture
def volume(mrml: Any) -> Any:
    """In the tree, as the application has it."""
    tree = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(mrml)
    node = add_volume(mrml, PLACES["LPS"])
    tree.CreateItem(tree.GetSceneItemID(), node)
    return node


# --- what belongs to a result ----------------------------------------------------------------------


def test_it_lies_below_its_segmentation_and_in_no_list_of_volumes(mrml: Any, volume: Any) -> None:
    segmentation = write(mrml, volume)
    tree = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(mrml)
    item = tree.GetItemByDataNode(segmentation)
    for role in (ENTROPY_REFERENCE, CANDIDATES_REFERENCE):
        node = segmentation.GetNodeReference(role)
        assert tree.GetItemParent(tree.GetItemByDataNode(node)) == item
    assert volumes(mrml, shown_only=True) == ["Head"]
    assert Scene(mrml).volumes() == [volume]


@pytest.mark.parametrize("mode", [OutputMode.UPDATE, OutputMode.PREVIEW])
def test_an_update_leaves_no_second_of_it(mrml: Any, volume: Any, mode: OutputMode) -> None:
    segmentation = write(mrml, volume)
    known = volumes(mrml)
    if mode is OutputMode.UPDATE:
        write(mrml, volume, OutputChoice(mode, segmentation))
    else:
        scene = Scene(mrml)
        result = uncertain_result(scene, volume)
        scene.preview(volume, result, OutputChoice(mode, segmentation)).reject()
    assert volumes(mrml) == known


def test_it_goes_when_the_segmentation_goes(mrml: Any, volume: Any) -> None:
    follow(mrml)
    before = volumes(mrml), displays(mrml)
    segmentation = write(mrml, volume)
    Scene(mrml).show_overlay(segmentation, UNCERTAINTY)
    assert len(volumes(mrml)) == 3
    mrml.RemoveNode(segmentation)
    assert (volumes(mrml), displays(mrml)) == before


def test_what_another_segmentation_refers_to_stays(mrml: Any, volume: Any) -> None:
    follow(mrml)
    segmentation = write(mrml, volume)
    entropy = segmentation.GetNodeReferenceID(ENTROPY_REFERENCE)
    copy = mrml.AddNewNodeByClass("vtkMRMLSegmentationNode", "Copy")
    copy.SetNodeReferenceID(ENTROPY_REFERENCE, entropy)
    mrml.RemoveNode(segmentation)
    assert mrml.GetNodeByID(entropy) is not None
    mrml.RemoveNode(copy)
    assert mrml.GetNodeByID(entropy) is None


@pytest.mark.parametrize("way", ["Import", "Connect"])
def test_marks_leave_nothing_in_a_scene_that_is_saved_while_they_are_shown(
    mrml: Any, volume: Any, tmp_path: Path, way: str
) -> None:
    """The effect AI correct has marks as long as it is open, and so has a preview."""
    read: list[str] = []
    follow(mrml, lambda: read.append(way))
    marks = Marks(mrml, "Strokes", CHANGES)
    marks.prepare()
    mrml.SetURL(str(tmp_path / "scene.mrml"))
    assert mrml.Commit()
    marks.remove()
    tree = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(mrml)
    assert not tree.GetItemByName("Strokes")
    assert getattr(mrml, way)()
    assert read == [way]
    remove_orphans(mrml)
    tree = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(mrml)
    assert not tree.GetItemByName("Strokes")
    assert tree.GetItemByName("Head")


def test_a_closing_scene_is_left_alone(mrml: Any, volume: Any) -> None:
    follow(mrml)
    write(mrml, volume)
    mrml.Clear(0)
    assert volumes(mrml) == []


def test_a_start_of_slicer_sees_to_it(fresh_module: Any, mrml: Any, volume: Any) -> None:
    """Whether the page was ever opened or not, and whatever else failed at the start."""
    fresh_module.when_slicer_has_started()
    segmentation = write(mrml, volume)
    assert len(volumes(mrml)) == 3
    mrml.RemoveNode(segmentation)
    assert volumes(mrml) == ["Head"]


def test_what_is_hidden_is_saved_with_the_scene_all_the_same(
    mrml: Any, volume: Any, tmp_path: Path
) -> None:
    """Slicer's dialog does not list it; the scene writes it by itself, into a separate folder."""
    entropy = write(mrml, volume).GetNodeReference(ENTROPY_REFERENCE)
    voxels = slicer.util.arrayFromVolume(entropy).copy()
    mrml.SetURL(str(tmp_path / "scene.mrml"))
    mrml.SetRootDirectory(str(tmp_path))
    assert mrml.Commit()
    again = slicer.vtkMRMLScene()
    application = slicer.vtkSlicerApplicationLogic()
    application.SetMRMLScene(again)
    segmentations = slicer.vtkSlicerSegmentationsModuleLogic()
    segmentations.SetMRMLApplicationLogic(application)
    segmentations.SetMRMLScene(again)
    again.SetURL(mrml.GetURL())
    again.Connect()
    found = again.GetFirstNodeByName("Head uncertainty")
    assert found.GetHideFromEditors()
    np.testing.assert_array_equal(slicer.util.arrayFromVolume(found), voxels)


# --- what is drawn ---------------------------------------------------------------------------------


def drawn(*segmentations: Any) -> list[bool]:
    return [bool(node.GetDisplayNode().GetVisibility()) for node in segmentations]


def test_an_older_segmentation_is_not_left_drawn_beneath_a_new_one(mrml: Any, volume: Any) -> None:
    scene = Scene(mrml)
    first = scene.write(volume, uncertain_result(scene, volume))
    assert scene.notes == ()
    second = scene.write(volume, uncertain_result(scene, volume))
    assert drawn(first, second) == [False, True]
    assert scene.notes == (
        "No longer displayed, because the new result shows the same structures: Head segmentation.",
    )
    scene.draw_alone(first)
    assert drawn(first, second) == [True, False]


def test_what_shows_something_else_stays_drawn(mrml: Any, volume: Any) -> None:
    scene = Scene(mrml)
    result = uncertain_result(scene, volume)
    first = scene.write(volume, result)
    mine = mrml.AddNewNodeByClass("vtkMRMLSegmentationNode", "Mine")
    mine.GetSegmentation().DeepCopy(first.GetSegmentation())
    mine.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    mine.CreateDefaultDisplayNodes()
    elsewhere = scene.write(add_volume(mrml, PLACES["LPS"]), result)
    others = [scene.write(volume, result)]
    for name in others[0].GetSegmentation().GetSegmentIDs():
        others[0].GetSegmentation().GetSegment(name).SetName(f"Tumour {name}")
    newest = scene.write(volume, result)
    assert drawn(first, mine, elsewhere, *others, newest) == [False, True, True, True, True]


def test_a_rejected_preview_gives_back_what_it_was_drawn_in_place_of(
    mrml: Any, volume: Any
) -> None:
    scene = Scene(mrml)
    first = scene.write(volume, uncertain_result(scene, volume))
    preview = scene.preview(
        volume, uncertain_result(scene, volume), OutputChoice(OutputMode.PREVIEW)
    )
    assert drawn(first) == [False]
    preview.reject()
    assert drawn(first) == [True]
    assert len(volumes(mrml)) == 3


# --- a scene that is opened ------------------------------------------------------------------------


def saved(mrml: Any, folder: Path) -> str:
    """The scene with all its data in a folder, as .mrml."""
    path = folder / "scene.mrml"
    for number in range(mrml.GetNumberOfNodesByClass("vtkMRMLStorableNode")):
        node = mrml.GetNthNodeByClass(number, "vtkMRMLStorableNode")
        if node.GetSaveWithScene() and (node.GetStorageNode() or node.AddDefaultStorageNode()):
            ending = ".seg.nrrd" if node.IsA("vtkMRMLSegmentationNode") else ".nrrd"
            node.GetStorageNode().SetFileName(str(folder / f"{node.GetID()}{ending}"))
            assert node.GetStorageNode().WriteData(node)
    mrml.SetURL(str(path))
    mrml.SetRootDirectory(str(folder))
    assert mrml.Commit()
    return str(path)


def test_a_scene_that_is_opened_shows_its_one_result(
    page: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model_called(monkeypatch, "quick")
    page.panel.choose_input(head())
    press(page, "segmentButton")
    until(lambda: node_count() == 1)
    until(lambda: page.controller.results.node is not None)
    path = saved(slicer.mrmlScene, tmp_path)
    slicer.mrmlScene.Clear(0)
    assert page.controller.results.node is None
    slicer.mrmlScene.SetURL(path)
    assert slicer.mrmlScene.Connect()
    until(lambda: page.controller.results.node is not None)
    assert page.controller.results.node is slicer.mrmlScene.GetFirstNodeByClass(
        "vtkMRMLSegmentationNode"
    )
    assert page.panel.results._ui.resultSelector.currentNode() is page.controller.results.node


def test_of_several_results_the_one_that_is_drawn_is_shown(mrml: Any, volume: Any) -> None:
    scene = Scene(mrml)
    assert scene.only_result() is None
    mrml.AddNewNodeByClass("vtkMRMLSegmentationNode", "A person's")
    assert scene.only_result() is None
    first, second = write(mrml, volume), write(mrml, volume)
    assert scene.only_result() is second
    scene.draw_alone(first)
    assert scene.only_result() is first
    second.GetDisplayNode().SetVisibility(True)
    assert scene.only_result() is None, "nobody can tell which"


def test_a_scene_that_is_read_into_slicer_loses_the_items_of_marks(
    fresh_module: Any, mrml: Any, volume: Any, tmp_path: Path
) -> None:
    fresh_module.keep_scene_tidy()
    marks = Marks(mrml, "Strokes", CHANGES)
    marks.prepare()
    mrml.SetURL(str(tmp_path / "scene.mrml"))
    assert mrml.Commit()
    assert mrml.Connect()

    def tree() -> Any:
        return slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(mrml)

    assert tree().GetItemByName("Strokes")
    until(lambda: not tree().GetItemByName("Strokes"))
    assert tree().GetItemByName("Head")

"""What tests of the effect AI correct share: a scan that an AI segmented, the Segment Editor, and a mouse."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import slicer
from slicer.util import updateVolumeFromArray, vtkMatrixFromArray
from vtk.util import numpy_support

import segment_editor
from medsegai.labels import Label
from medsegai.request import Candidates, SegmentationResult, StructureMeasures
from MedSegAILib.correction import register
from MedSegAILib.scene import Scene, segment_id
from scene_images import MOVED, PLACES, add_transform, world_of

SHAPE = (16, 22, 26)  # k, j, i
LEFT, RIGHT = Label(3, "Left", (220, 20, 20)), Label(300, "Right", (20, 20, 220))
LEFT_BOX = (slice(5, 11), slice(6, 14), slice(5, 12))
DOUBT = (
    slice(5, 11),
    slice(6, 14),
    slice(12, 17),
)  # the AI took it for background, but was in doubt
RIGHT_BOX = (slice(5, 11), slice(6, 14), slice(17, 23))


@dataclass
class Bench:
    """A scan that an AI segmented, in the Segment Editor with the effect, and the mouse over a slice view."""

    scene: Any
    source: Any
    segmentation: Any
    logic: Any
    effect: Any
    view: segment_editor.SliceView
    mouse: segment_editor.Mouse

    @property
    def panel(self) -> Any:
        return self.effect.self()

    @property
    def tool(self) -> Any:
        return self.panel.tool

    @property
    def message(self) -> str:
        return str(self.panel._message.text)

    def at(self, i: int, j: int, k: int) -> np.ndarray:
        return world_of(self.source, i, j, k)

    def show_slice(self, k: int) -> None:
        """Show the voxel plane k in the view, as Slicer does with 'rotate to volume plane'."""
        right = self.at(1, 0, k) - self.at(0, 0, k)
        up = self.at(0, 1, k) - self.at(0, 0, k)
        center = self.at(SHAPE[2] // 2, SHAPE[1] // 2, k)
        self.view.show_plane(center, right / np.linalg.norm(right), up / np.linalg.norm(up))

    def mask(self, label: Label = LEFT) -> np.ndarray:
        return mask_of(self.segmentation, segment_id(label))

    def select(self, label: Label) -> None:
        self.logic.GetSegmentEditorNode().SetSelectedSegmentID(segment_id(label))
        self.panel.updateGUIFromMRML()

    def nodes(self) -> list[str]:
        return [self.scene.GetNthNode(n).GetID() for n in range(self.scene.GetNumberOfNodes())]

    def preview(self) -> Any:
        found = self.scene.GetNodesByClass("vtkMRMLSegmentationNode")
        found.UnRegister(None)
        nodes = [found.GetItemAsObject(n) for n in range(found.GetNumberOfItems())]
        others = [node for node in nodes if node is not self.segmentation]
        assert len(others) < 2
        return others[0] if others else None


def mask_of(segmentation: Any, name: str) -> np.ndarray:
    """A segment on the grid of the scan, from its extent."""
    image = slicer.vtkOrientedImageData()
    segmentation.GetBinaryLabelmapRepresentation(name, image)
    out = np.zeros(SHAPE, bool)
    if image.GetPointData().GetScalars() is not None and 0 not in image.GetDimensions():
        i0, i1, j0, j1, k0, k1 = image.GetExtent()
        values = numpy_support.vtk_to_numpy(image.GetPointData().GetScalars())
        out[k0 : k1 + 1, j0 : j1 + 1, i0 : i1 + 1] = values.reshape(
            image.GetDimensions()[::-1]
        ).astype(bool)
    return out


def box_mask(*boxes: Any) -> np.ndarray:
    mask = np.zeros(SHAPE, bool)
    for box in boxes:
        mask[box] = True
    return mask


def scan(mrml: Any, place: np.ndarray, moved: np.ndarray | None) -> Any:
    node = mrml.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "Head")
    noise = np.random.default_rng(0).normal(100, 2, SHAPE)
    noise[box_mask(LEFT_BOX, DOUBT)] += 60
    updateVolumeFromArray(node, noise.astype(np.int16))
    node.SetIJKToRASMatrix(vtkMatrixFromArray(place))
    if moved is not None:
        node.SetAndObserveTransformNodeID(add_transform(mrml, moved).GetID())
    return node


def answer(scene: Scene, source: Any, known: bool) -> SegmentationResult:
    labelmap = np.zeros(SHAPE, np.uint16)
    labelmap[LEFT_BOX], labelmap[RIGHT_BOX] = LEFT.value, RIGHT.value
    second = np.zeros_like(labelmap)
    p_first, p_second = np.full(SHAPE, 255, np.uint8), np.zeros(SHAPE, np.uint8)
    second[DOUBT], p_first[DOUBT], p_second[DOUBT] = LEFT.value, 140, 115
    counts = {label: int((labelmap == label.value).sum()) for label in (LEFT, RIGHT)}
    return SegmentationResult(
        scene.read(source).with_voxels(labelmap),
        (LEFT, RIGHT),
        tuple(StructureMeasures(label, count, count / 1000) for label, count in counts.items()),
        candidates=Candidates(labelmap, second, p_first, p_second) if known else None,
    )


def bench(
    mrml: Any,
    patch: pytest.MonkeyPatch,
    place: str = "plain",
    moved: str = "no transform",
    known: bool = True,
) -> Bench:
    source = scan(mrml, PLACES[place], MOVED[moved])
    scene = Scene(mrml)
    made = opened(mrml, patch, source, scene.write(source, answer(scene, source, known)))
    made.show_slice(8)
    return made


def opened(mrml: Any, patch: pytest.MonkeyPatch, source: Any, segmentation: Any) -> Bench:
    """Open the Segment Editor with the effect; no view shows a slice yet."""
    editor = mrml.AddNewNodeByClass("vtkMRMLSegmentEditorNode")
    editor.SetAndObserveSegmentationNode(segmentation)
    editor.SetAndObserveSourceVolumeNode(source)
    editor.SetSelectedSegmentID(segment_id(LEFT))
    logic = slicer.vtkSlicerSegmentEditorLogic()
    logic.SetMRMLScene(mrml)
    logic.SetSegmentEditorNode(editor)
    effect = segment_editor.open_editor(register, segment_editor.start(patch), logic)
    view = segment_editor.SliceView(mrml)
    mouse = segment_editor.Mouse(effect.self(), view)
    return Bench(mrml, source, segmentation, logic, effect, view, mouse)


def paint_doubt(editing: Bench) -> None:
    """A stroke through the middle of what the AI doubted."""
    editing.mouse.stroke(editing.at(14, 8, 8), editing.at(14, 10, 8), editing.at(14, 11, 8))

"""A copy of a segmentation that shows what it would become, instead of the original."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol
from weakref import WeakKeyDictionary, WeakSet

import slicer

from MedSegAILib.scene.changes import ShownChange
from MedSegAILib.scene.layers import EMPTY, boxes, layers_of, voxels_of
from MedSegAILib.scene.merging import Plan, carry_out
from MedSegAILib.scene.nodes import nodes_of, referred, remove
from MedSegAILib.scene.segments import Looks, digests, looks_of, set_looks
from MedSegAILib.scene.surfaces import MakeSurfaces
from MedSegAILib.scene.visibility import show_as_the_card_says
from MedSegAILib.slicer_types import MRMLScene, SegmentationNode, VolumeNode, VTKObject
from MedSegAILib.translation import tr as _

PREVIEW_OF = "MedSegAI.preview"
"""The role in which a preview refers to its original, while it waits for a decision."""

_waiting: WeakSet[SegmentationNode] = WeakSet()
"""The previews that this process shows."""


class CopyWriter(Protocol):
    """See `writing.Writer`."""

    @property
    def make_surfaces(self) -> MakeSurfaces: ...

    def add_beside(self, node: SegmentationNode, source: VolumeNode) -> None: ...


@dataclass(frozen=True)
class Edits:
    """A person's changes of a copy.

    Attributes:
        images: the voxels of segments that were painted or added, as vtkOrientedImageData, by id.
        looks: the name, colour, codes and review state of segments where one of them was changed, by id.
        removed: the ids of segments that were removed.
    """

    images: Mapping[str, VTKObject]
    looks: Mapping[str, Looks]
    removed: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.images or self.looks or self.removed)


class ShownCopy:
    """A copy of the original with a plan carried out; the original is hidden meanwhile.

    Differences are marked in the slice views.

    Args:
        original: the segmentation node.
        plan: the plan to show.
        source: the volume of a plan for an empty segmentation; see `carry_out`.
        writer: the writer that adds the copy to the scene, and its surfaces: see `Writer`.

    Attributes:
        node: the copy. It can be edited.
        place: the position of the largest difference, R, A, S in mm of the world; None if there is none.
    """

    def __init__(
        self, original: SegmentationNode, plan: Plan, source: VolumeNode, writer: CopyWriter
    ) -> None:
        self.node = _copy_of(original)
        had_surfaces = bool(plan.layers) and carry_out(self.node, plan, source)
        writer.add_beside(self.node, original)
        role = original.GetReferenceImageGeometryReferenceRole()
        reference = original.GetNodeReferenceID(role) or (source.GetID() if source else None)
        self.node.SetNodeReferenceID(role, reference)
        _display_alike(original, self.node)
        show_as_the_card_says(self.node, plan.new_segments)
        if had_surfaces:
            writer.make_surfaces(self.node)
        self.node.SetNodeReferenceID(PREVIEW_OF, original.GetID())
        _waiting.add(self.node)
        self._original, self._scene = original, original.GetScene()
        self._change = ShownChange(original, self.node)
        self.place = self._change.place
        self._shown = _contents(self.node)
        self._looks = _looks(self.node)
        _cover(original)

    def edits(self) -> Edits:
        """Return the user's changes of the copy since it is shown."""
        looks, contents = _looks(self.node), _contents(self.node)
        painted = [name for name, content in contents.items() if self._shown.get(name) != content]
        return Edits(
            {name: _image_of(self.node, name) for name in painted},
            {name: each for name, each in looks.items() if self._looks.get(name) != each},
            tuple(name for name in self._looks if name not in looks),
        )

    def give(self, edits: Edits) -> None:
        """Make the same changes of the original."""
        logic = slicer.vtkSlicerSegmentationsModuleLogic
        segments = self._original.GetSegmentation()
        for name in {**edits.images, **edits.looks}:
            if segments.GetSegment(name) is None:
                segments.AddEmptySegment(name)
                set_looks(segments.GetSegment(name), _looks(self.node)[name])
        for name, image in edits.images.items():
            if boxes(voxels_of(image)):
                logic.SetBinaryLabelmapToSegment(image, self._original, name, logic.MODE_REPLACE)
            else:
                logic.ClearSegment(self._original, name)
        for name, looks in edits.looks.items():
            set_looks(segments.GetSegment(name), looks)
        for name in edits.removed:
            segments.RemoveSegment(name)

    def keep(self) -> None:
        """Make the copy a segmentation of its own: remove the marks, and show the original again."""
        self._change.remove()
        self.node.RemoveNodeReferenceIDs(PREVIEW_OF)
        self._uncover()

    def close(self) -> None:
        """Remove copy and marks, and show the original again, if it exists and was shown before."""
        self._change.remove()
        remove(self._scene, self.node)
        self._uncover()

    def _uncover(self) -> None:
        if self._scene.IsNodePresent(self._original):
            _uncover(self._original)


def settled(scene: MRMLScene) -> list[tuple[str, str]]:
    """Make the previews that a scene was saved with segmentations of their own, hidden, and show the originals.

    What would have been done with them is not saved, so they can neither be accepted nor rejected.

    Returns:
        The names of each preview and of its original.
    """
    names = []
    for node in nodes_of(scene, "vtkMRMLSegmentationNode"):
        original = referred(node, PREVIEW_OF, "vtkMRMLSegmentationNode")
        if original is None or node in _waiting:
            continue
        node.RemoveNodeReferenceIDs(PREVIEW_OF)
        for each, visible in ((node, False), (original, True)):
            each.CreateDefaultDisplayNodes()
            each.GetDisplayNode().SetVisibility(visible)
        names.append((node.GetName(), original.GetName()))
    return names


@dataclass
class _Cover:
    """How many copies are shown instead of an original, and whether it was visible before the first."""

    was_visible: bool
    copies: int = 0


_covers: WeakKeyDictionary[SegmentationNode, _Cover] = WeakKeyDictionary()
"""The originals that are hidden, as long as a copy refers to them."""


def _cover(original: SegmentationNode) -> None:
    """Hide an original, because another copy is shown instead."""
    display = original.GetDisplayNode()
    was_visible = display is None or bool(display.GetVisibility())
    _covers.setdefault(original, _Cover(was_visible)).copies += 1
    if display is not None:
        display.SetVisibility(False)


def _uncover(original: SegmentationNode) -> None:
    """Show an original again, if no other copy is shown instead."""
    cover = _covers.get(original)
    if cover is None:
        return
    cover.copies -= 1
    if not cover.copies:
        del _covers[original]
        if original.GetDisplayNode() is not None:
            original.GetDisplayNode().SetVisibility(cover.was_visible)


def _display_alike(original: SegmentationNode, copy: SegmentationNode) -> None:
    """Show a copy as the original is shown, with the same segments hidden."""
    copy.CreateDefaultDisplayNodes()
    if original.GetDisplayNode() is not None:
        copy.GetDisplayNode().Copy(original.GetDisplayNode())
    copy.GetDisplayNode().SetVisibility(True)


def _contents(segmentation: SegmentationNode) -> dict[str, str]:
    """Return the digest of each segment, also of those that are in no label map."""
    known = digests(layers_of(segmentation))
    return {name: known.get(name, EMPTY) for name in segmentation.GetSegmentation().GetSegmentIDs()}


def _looks(segmentation: SegmentationNode) -> dict[str, Looks]:
    segments = segmentation.GetSegmentation()
    return {name: looks_of(segments.GetSegment(name)) for name in segments.GetSegmentIDs()}


def _image_of(segmentation: SegmentationNode, name: str) -> VTKObject:
    image = slicer.vtkOrientedImageData()
    segmentation.GetBinaryLabelmapRepresentation(name, image)
    return image


def kept_copy(original: SegmentationNode) -> SegmentationNode:
    """Return a hidden copy of a segmentation in the scene, which shows what it was before a change."""
    scene, node = original.GetScene(), _copy_of(original)
    node.SetName(scene.GenerateUniqueName(_("{name} before").format(name=original.GetName())))
    scene.AddNode(node)
    node.SetAndObserveTransformNodeID(original.GetTransformNodeID())
    role = original.GetReferenceImageGeometryReferenceRole()
    node.SetNodeReferenceID(role, original.GetNodeReferenceID(role))
    _display_alike(original, node)
    node.GetDisplayNode().SetVisibility(False)
    return node


def _copy_of(original: SegmentationNode) -> SegmentationNode:
    node = original.GetScene().CreateNodeByClass("vtkMRMLSegmentationNode")
    node.UnRegister(None)
    node.SetName(original.GetName())
    node.GetSegmentation().DeepCopy(original.GetSegmentation())
    return node

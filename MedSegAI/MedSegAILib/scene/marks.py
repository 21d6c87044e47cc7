"""Temporary marks in the slice views: strokes, and the additions and removals of a change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import slicer
import vtk

from MedSegAILib.scene.layers import labelmap_name
from MedSegAILib.scene.nodes import modifying, nodes_of
from MedSegAILib.slicer_types import MRMLScene, Node, QtValue, Segment, VTKObject

Color = tuple[float, float, float]
ADDED, REMOVED, MOVED = (0.2, 0.85, 0.3), (0.95, 0.25, 0.2), (0.95, 0.85, 0.2)
"""The colours of voxels that are added, removed, or moved from one segment to another."""


@dataclass(frozen=True)
class Mark:
    """A kind of mark: its name, its colour, and its opacity inside the outline."""

    title: str
    color: Color
    opacity: float = 0.45


CHANGES = {"added": Mark("added", ADDED), "removed": Mark("removed", REMOVED)}
"""The marks of a change, which all previews share."""


TEMPORARY = "MedSegAI.temporary"
"""Attribute of the item of marks in the subject hierarchy, which Slicer saves even without their node."""


class Marks:
    """A segmentation node that shows marks until it is removed.

    It is hidden in lists, shown only in slice views, and not saved with the scene.

    Args:
        scene: the vtkMRMLScene.
        title: the name of the node.
        kinds: the kinds of marks, by their names for `show`.
    """

    def __init__(self, scene: MRMLScene, title: str, kinds: Mapping[str, Mark]) -> None:
        self._scene, self._title, self._kinds = scene, title, kinds
        self._node: Node = None

    def prepare(self) -> None:
        """Add the empty node to the scene, so that the first marks are shown as fast as later ones."""
        if self._node is None or not self._scene.IsNodePresent(self._node):
            self._add_node()

    def show(self, images: Mapping[str, VTKObject], transform_id: str | None) -> None:
        """Show other marks of some kinds.

        Args:
            images: a vtkOrientedImageData of 0 and 1 for each kind that changes.
            transform_id: the id of the parent transform of the images, if there is one.
        """
        self.prepare()
        self._node.SetAndObserveTransformNodeID(transform_id)
        with modifying(self._node):
            for name, image in images.items():
                segment = self._node.GetSegmentation().GetSegment(name)
                segment.RemoveRepresentation(labelmap_name())
                segment.AddRepresentation(labelmap_name(), image)
                segment.SetLabelValue(1)
        self._node.Modified()

    def clear(self) -> None:
        """Remove all marks; the node stays."""
        if self._node is not None and self._scene.IsNodePresent(self._node):
            self.show({name: slicer.vtkOrientedImageData() for name in self._kinds}, None)

    def set_color(self, name: str, color: Color) -> None:
        """Give one kind another colour."""
        self._node.GetSegmentation().GetSegment(name).SetColor(*color)

    def remove(self) -> None:
        """Remove the node from the scene."""
        if self._node is not None and self._scene.IsNodePresent(self._node):
            tree, item = self._item()
            if item:
                tree.RemoveItem(item, False, True)
            for number in reversed(range(self._node.GetNumberOfDisplayNodes())):
                self._scene.RemoveNode(self._node.GetNthDisplayNode(number))
            self._scene.RemoveNode(self._node)
        self._node = None

    def _add_node(self) -> None:
        node = self._scene.CreateNodeByClass("vtkMRMLSegmentationNode")
        node.UnRegister(None)
        node.SetName(self._scene.GenerateUniqueName(self._title))
        node.SetHideFromEditors(True)
        node.SetSaveWithScene(False)
        segments = node.GetSegmentation()
        segments.SetSourceRepresentationName(labelmap_name())
        for name, mark in self._kinds.items():
            segments.AddSegment(_empty_segment(mark), name)
        self._node = self._scene.AddNode(node)
        _hide_from_3d(node)
        tree, item = self._item()
        if tree is not None and not item:  # otherwise Slicer writes an error for every change
            item = tree.CreateItem(tree.GetSceneItemID(), node)
        if tree is not None:
            tree.SetItemAttribute(item, TEMPORARY, "yes")
        node.CreateDefaultDisplayNodes()
        self._show_in_slices(node.GetDisplayNode())

    def _show_in_slices(self, display: Node) -> None:
        display.SetSaveWithScene(False)
        display.SetVisibility3D(False)
        for name, mark in self._kinds.items():
            display.SetSegmentOpacity2DFill(name, mark.opacity)
            display.SetSegmentOpacity2DOutline(name, 1.0)
            display.SetSegmentVisibility3D(name, False)

    def _item(self) -> tuple[QtValue, int]:
        """Return the subject hierarchy and the node's item in it, which a hidden node also has."""
        tree = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(self._scene)
        return tree, 0 if tree is None else int(tree.GetItemByDataNode(self._node))


def remove_orphans(scene: MRMLScene) -> None:
    """Remove the items of marks that were shown when a scene was saved."""
    for tree in nodes_of(scene, "vtkMRMLSubjectHierarchyNode"):
        items = vtk.vtkIdList()
        tree.GetItemChildren(tree.GetSceneItemID(), items, True)
        for item in [items.GetId(number) for number in range(items.GetNumberOfIds())]:
            if tree.GetItemAttribute(item, TEMPORARY) and tree.GetItemDataNode(item) is None:
                tree.RemoveItem(item, False, False)


def _hide_from_3d(node: Node) -> None:
    """Keep 3D views from being notified of changes of a node.

    Each change would make the view draw all surfaces of the scene again, which takes a second without a graphics
    card, although it does not show the node.
    """
    broker = slicer.vtkEventBroker.GetInstance()
    found = broker.GetObservationsForSubject(node)
    found.UnRegister(None)
    for number in range(found.GetNumberOfItems()):
        observer = found.GetItemAsObject(number).GetObserver()
        if observer is not None and observer.IsA("vtkMRMLAbstractThreeDViewDisplayableManager"):
            broker.RemoveObservation(found.GetItemAsObject(number))


def _empty_segment(mark: Mark) -> Segment:
    segment = slicer.vtkSegment()
    segment.SetName(mark.title)
    segment.SetColor(*mark.color)
    segment.AddRepresentation(labelmap_name(), slicer.vtkOrientedImageData())
    return segment

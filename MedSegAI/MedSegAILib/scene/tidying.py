"""What follows a segmentation: its hidden volumes, and its map in the views; and what a scene need not keep."""

from __future__ import annotations

from collections.abc import Callable

import vtk

from MedSegAILib.scene import overlay
from MedSegAILib.scene.attachments import NAMES, remove_of, volume_of
from MedSegAILib.scene.nodes import nodes_of
from MedSegAILib.slicer_types import MRMLScene, Node, SegmentationNode


def follow(scene: MRMLScene, was_read: Callable[[], None] = lambda: None) -> tuple[int, int, int]:
    """Let what belongs to a segmentation follow it: its transforms, and its removal.

    Args:
        scene: the scene.
        was_read: the function that is called when a scene was read. Its tree is not complete before the present
            event is over; then `remove_orphans` removes what was saved of marks.

    Returns:
        The tags of the observations of the scene.
    """

    def on_addition(_scene: MRMLScene, _event: str, node: Node) -> None:
        _watch(node)

    def on_removal(_scene: MRMLScene, _event: str, node: Node) -> None:
        if node is not None and node.IsA("vtkMRMLSegmentationNode") and not scene.IsClosing():
            if overlay.shown(scene, node):
                overlay.show(scene, node, "")
            remove_of(scene, node)

    for callback in (on_addition, on_removal):
        vars(callback)["CallDataType"] = vtk.VTK_OBJECT  # VTK passes the node
    for node in nodes_of(scene, "vtkMRMLSegmentationNode"):
        _watch(node)
    return (
        int(scene.AddObserver(scene.NodeAddedEvent, on_addition)),
        int(scene.AddObserver(scene.NodeAboutToBeRemovedEvent, on_removal)),
        int(scene.AddObserver(scene.EndImportEvent, lambda *_: was_read())),
    )


def _watch(node: Node) -> None:
    """Observe a segmentation, whose volumes follow it."""
    if node is not None and node.IsA("vtkMRMLSegmentationNode"):
        node.AddObserver(node.TransformModifiedEvent, _on_move)


def _on_move(segmentation: SegmentationNode, _event: str) -> None:
    scene = segmentation.GetScene()
    if scene is not None and not scene.IsBatchProcessing():
        for role in NAMES:
            volume_of(segmentation, role)

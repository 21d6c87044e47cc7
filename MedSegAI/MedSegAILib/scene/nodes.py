"""Finding nodes in a scene that may not be the application's own."""

from __future__ import annotations

from MedSegAILib.slicer_types import MRMLScene, Node


def nodes_of(scene: MRMLScene, kind: str) -> list[Node]:
    """All nodes of a class. (`slicer.util.getNodesByClass` asks the application's scene, whichever is given.)"""
    return [scene.GetNthNodeByClass(n, kind) for n in range(scene.GetNumberOfNodesByClass(kind))]


def remove(scene: MRMLScene, node: Node) -> None:
    """Take a node out of the scene, if it is there, with the nodes that show and store it alone."""
    if node is None or not scene.IsNodePresent(node):
        return
    own = []
    if node.IsA("vtkMRMLDisplayableNode"):
        own += [node.GetNthDisplayNode(n) for n in range(node.GetNumberOfDisplayNodes())]
    if node.IsA("vtkMRMLStorableNode"):
        own += [node.GetNthStorageNode(n) for n in range(node.GetNumberOfStorageNodes())]
    for each in (node, *own):
        if each is not None and scene.IsNodePresent(each):
            scene.RemoveNode(each)

"""Finding nodes in a scene that may not be the application's own."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

from medsegai.errors import InputError
from MedSegAILib.slicer_types import MRMLScene, Node
from MedSegAILib.translation import tr as _


def nodes_of(scene: MRMLScene, kind: str) -> list[Node]:
    """Return all nodes of a class. (`slicer.util.getNodesByClass` always uses the application's scene.)"""
    return [scene.GetNthNodeByClass(n, kind) for n in range(scene.GetNumberOfNodesByClass(kind))]


def referred(node: Node, role: str, *kinds: str) -> Node:
    """Return the node to which a node refers in a role; None if there is none, or it is of another class.

    A scene may come from anyone, so a reference may lead anywhere.
    """
    found = node.GetNodeReference(role)
    return found if found is not None and any(map(found.IsA, kinds)) else None


def own_reference(node: Node, role: str, *kinds: str) -> Node:
    """Return the node of these classes to which only this node refers in a role; None if a clone shares it."""
    found = referred(node, role, *kinds)
    if found is None:
        return None
    others = nodes_of(node.GetScene(), node.GetClassName())
    shared = any(each.GetNodeReference(role) is found for each in others if each is not node)
    return None if shared else found


def stored_number(text: str, low: float = -math.inf, high: float = math.inf) -> float | None:
    """Return a number that a node or segment stores as text; None if it is not one from `low` to `high`.

    A scene may come from anyone, and other software may have changed it.
    """
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and low <= value <= high else None


def unique_name(node: Node, what: str, scene: MRMLScene) -> str:
    """Return a name that no node of the scene has: that of `node`, if it has one, and what is made from it."""
    return str(scene.GenerateUniqueName(" ".join(filter(None, (node.GetName(), what)))))


def check_segmentation(node: Node) -> None:
    """Raises:
    InputError: the node is None, or not a segmentation.
    """
    if node is None:
        raise InputError(_("There is no segmentation. Choose one."))
    if not node.IsA("vtkMRMLSegmentationNode"):
        raise InputError(_("{name} is not a segmentation. Choose one.").format(name=node.GetName()))


@contextlib.contextmanager
def modifying(node: Node) -> Iterator[None]:
    """Join the events of all changes of a node within the block to one."""
    before = node.StartModify()
    try:
        yield
    finally:
        node.EndModify(before)


def remove(scene: MRMLScene, node: Node) -> None:
    """Remove a node from the scene, with the display and storage nodes that only it uses."""
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

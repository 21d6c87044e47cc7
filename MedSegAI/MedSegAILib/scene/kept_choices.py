"""The panel's choices as a node of the scene, which is saved with it.

Slicer's own modules keep their parameters in such a node: one for a module, found by its singleton tag. Nodes are
references, because Slicer gives nodes other numbers when scenes are merged.
"""

from __future__ import annotations

import re

from MedSegAILib.kept_choices import TEXTS, KeptChoices, from_texts, to_texts
from MedSegAILib.scene.nodes import modifying, referred
from MedSegAILib.slicer_types import MRMLScene, Node

MODULE = "MedSegAI"
KIND = "vtkMRMLScriptedModuleNode"

INPUT = "input"
"""The references to volumes are this word and the number of the channel, whose name may hold any character."""

_INPUT_ROLE = re.compile(INPUT + r"(\d{1,2})")
ROLES = {
    "region": "vtkMRMLMarkupsROINode",
    "segmentation": "vtkMRMLSegmentationNode",
    "result": "vtkMRMLSegmentationNode",
    "refined": "vtkMRMLSegmentationNode",
    "refined_image": "vtkMRMLScalarVolumeNode",
}
"""The references to other nodes, and their classes. They are called as the fields of `KeptChoices`."""


def are_kept(scene: MRMLScene) -> bool:
    """Whether a scene has choices. Slicer empties the node of a scene that is closed, but leaves it."""
    node = _node(scene)
    return node is not None and any(map(node.HasParameter, TEXTS))


def kept_choices(scene: MRMLScene) -> KeptChoices | None:
    """Return the choices of a scene, None if it has none. Damaged ones are logged and as by default."""
    if not are_kept(scene):
        return None
    node = _node(scene)
    numbered = filter(None, map(_INPUT_ROLE.fullmatch, _roles(node)))
    count = max((int(found[1]) + 1 for found in numbered), default=0)
    channels = [f"{INPUT}{number}" for number in range(count)]
    nodes = {role: referred(node, role, kind) for role, kind in ROLES.items()}
    texts = {name: str(node.GetParameter(name) or "") for name in TEXTS}
    return from_texts(texts, nodes | {"inputs": tuple(map(node.GetNodeReference, channels))})


def keep_choices(scene: MRMLScene, kept: KeptChoices) -> None:
    """Write choices into the scene instead of earlier ones."""
    node = _node(scene) or _add_node(scene)
    nodes = dict.fromkeys(_roles(node)) | {role: getattr(kept, role) for role in ROLES}
    nodes |= {f"{INPUT}{number}": volume for number, volume in enumerate(kept.inputs)}
    with modifying(node):
        node.SetAttribute("ModuleName", MODULE)  # which Slicer removes when a scene is closed
        for name, text in to_texts(kept).items():
            node.SetParameter(name, text)
        for role, other in nodes.items():
            node.SetNodeReferenceID(role, None if other is None else other.GetID())


def forget_choices(scene: MRMLScene) -> None:
    """Remove the choices of a scene."""
    node = _node(scene)
    if node is not None:
        scene.RemoveNode(node)


def _node(scene: MRMLScene) -> Node:
    return scene.GetSingletonNode(MODULE, KIND)


def _add_node(scene: MRMLScene) -> Node:
    """Add the node as `ScriptedLoadableModuleLogic.createParameterNode` makes it."""
    node = scene.CreateNodeByClass(KIND)
    node.UnRegister(None)
    node.SetSingletonTag(MODULE)
    node.SetAttribute("ModuleName", MODULE)
    node.SetName(scene.GenerateUniqueName(MODULE))
    return scene.AddNode(node)


def _roles(node: Node) -> list[str]:
    count = node.GetNumberOfNodeReferenceRoles()
    return [node.GetNthNodeReferenceRole(number) for number in range(count)]

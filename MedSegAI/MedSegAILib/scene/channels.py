"""Assignment of volumes to the channels of a model: by names and DICOM tags, and as noted with a result.

A wrong channel gives a wrong segmentation that looks right, so nothing is guessed at random: a channel gets a
volume only if a single volume fits, and the user confirms it.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping, Sequence

import slicer

from medsegai.errors import ModelError
from medsegai.models.card import Channel, ModelCard
from medsegai.models.catalogue import find_card
from MedSegAILib.slicer_types import Node, SegmentationNode, VolumeNode

CHANNELS_ATTRIBUTE = "MedSegAI.channels"
"""The attribute of a segmentation with the names of the channels from which it was made, as JSON."""

# Kinds of images, the more special ones first: "T1 post contrast" is not T1, "T2 FLAIR" is not T2.
_KINDS = (
    ("flair", r"(t2)?flair|t2f|t2fl|darkfluid"),
    (
        "t1c",
        r"t1w?(c|ce|gd|km|post)|t1\w*(gad\w*|[ck]ontrast|postcon\w*|postgd)",
    ),
    ("adc", r"adc|apparentdiffusion\w*"),
    ("dwi", r"dwi|diffusion|ep2ddiff\w*|b\d{3,4}"),
    ("swi", r"swi|swan"),
    ("pd", r"pd(w)?|protondensity"),
    ("t2", r"t2(w|wi|tse|fse|star)?"),
    ("t1", r"t1(w|wi|mprage|spgr|bravo|tfe|vibe|native|n|pre)?|mprage|mp2rage|spgr|bravo"),
    ("pet", r"pet|pt|suv\w*|fdg"),
    ("ct", r"ct|cta|cect|ncct|hu"),
    ("mr", r"mr|mri"),
)
_CONTRAST = re.compile(r"ce|gd|gad\w*|contrast|post(con\w*|gd|gad\w*|km)?|km|enhanced|kontrast")
_IS_MR = frozenset({"flair", "t1c", "adc", "dwi", "swi", "pd", "t2", "t1", "mr"})
_TAGS = ("DICOM.SeriesDescription", "DICOM.ProtocolName")


def channels_of_model(model: str, nodes: Sequence[Node]) -> dict[str, Node]:
    """Return the volumes of a model by the names of its channels; none for a model that only the worker has."""
    try:
        card = find_card(model)
    except ModelError:
        return {}
    return dict(zip((channel.name for channel in card.channels), nodes, strict=False))


def note(segmentation: SegmentationNode, nodes: Mapping[str, Node]) -> None:
    """Note from which volumes a segmentation was made, so that it can be computed again from all of them.

    Args:
        segmentation: the segmentation. Nothing is noted unless its reference image is the first volume.
        nodes: the volume of each channel by the channel's name.
    """
    first = next(iter(nodes.values()), None)
    if first is None or first is not _image_of(segmentation):
        return
    segmentation.SetAttribute(CHANNELS_ATTRIBUTE, json.dumps(list(nodes)))
    for number, node in enumerate(nodes.values()):
        is_present = node is not None and segmentation.GetScene().IsNodePresent(node)
        segmentation.SetNodeReferenceID(_role(number), node.GetID() if is_present else None)


def noted(segmentation: SegmentationNode) -> dict[str, Node]:
    """Return the volume of each channel from which a segmentation was made, by the channel's name.

    A volume that has left the scene is None. Without a note, or with a damaged one, there are no channels.
    """
    try:
        names = json.loads(segmentation.GetAttribute(CHANNELS_ATTRIBUTE) or "[]")
    except (ValueError, RecursionError):
        return {}
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return {}
    return {name: segmentation.GetNodeReference(_role(number)) for number, name in enumerate(names)}


def _role(number: int) -> str:
    """Return the role of a channel's volume; a name may hold characters that roles cannot."""
    return f"MedSegAI.channel{number}"


def _image_of(segmentation: SegmentationNode) -> VolumeNode:
    return segmentation.GetNodeReference(segmentation.GetReferenceImageGeometryReferenceRole())


def guess(card: ModelCard, nodes: Sequence[Node]) -> dict[str, Node]:
    """Return the volume of each channel by the channel's name, None if not exactly one volume fits.

    A volume fits a channel if its name or its DICOM tags contain the channel's name, or name the same kind of
    image. A model with one channel takes the only volume, unless its modality differs.
    """
    fitting = {
        channel.name: _best([(_fit(channel, node), node) for node in nodes])
        for channel in card.channels
    }
    chosen: dict[str, Node] = {}
    for name, found in fitting.items():
        shared = [other for other, theirs in fitting.items() if other != name and theirs is found]
        chosen[name] = None if shared else found
    (first, *more) = card.channels
    if not more and len(nodes) == 1 and chosen[first.name] is None:
        chosen[first.name] = None if _other_modality(first, nodes[0]) else nodes[0]
    return chosen


def _best(scored: list[tuple[int, Node]]) -> Node:
    """Return the node that fits best; None if none or several do."""
    top = max((score for score, _ in scored), default=0)
    best = [node for score, node in scored if score == top]
    return best[0] if top > 0 and len(best) == 1 else None


def _fit(channel: Channel, node: Node) -> int:
    """Return 3 for the channel's name, 2 for its kind, 1 for its modality, 0 for nothing, -1 for another one."""
    if _other_modality(channel, node):
        return -1
    texts = [node.GetName() or "", *(_tag(node, name) for name in _TAGS)]
    kind, modality = _kind(channel.name), _kind(channel.modality)
    wanted = kind if kind not in ("", "mr") else modality
    found = {each for each in map(_kind, texts) if each}
    if wanted not in ("", "mr", "ct", "pet"):
        return 2 if wanted in found else -1
    if any(_squeezed(channel.name) in _words(text) for text in texts):
        return 3
    tag = _kind(_tag(node, "DICOM.Modality"))
    return 1 if wanted and wanted in found | {tag} else 0


def _other_modality(channel: Channel, node: Node) -> bool:
    """Whether the DICOM tag contradicts the channel, such as CT for MR."""
    tag = _kind(_tag(node, "DICOM.Modality"))
    wanted = _kind(channel.modality) or _kind(channel.name)
    return bool(tag and wanted) and _family(tag) != _family(wanted)


def _family(kind: str) -> str:
    return "mr" if kind in _IS_MR else kind


def _kind(text: str) -> str:
    """Return the kind of image in a name; "" if there is none."""
    words = _words(text)
    pairs = {a + b for a, b in itertools.pairwise(words) if len(b) > 1}
    for kind, pattern in _KINDS:
        if any(re.fullmatch(pattern, word) for word in pairs | set(words)):
            if kind == "t1" and any(_CONTRAST.fullmatch(word) for word in words):
                return "t1c"
            return kind
    return ""


def _words(text: str) -> list[str]:
    """Return the words of a name, including "+C", which means contrast."""
    text = re.sub(r"\+\s?(c|gd|km)\b", " contrast ", text.lower())
    return [word for word in re.split(r"[^0-9a-z]+", text) if word]


def _squeezed(text: str) -> str:
    return re.sub(r"[^0-9a-z]+", "", text.lower())


def _tag(node: Node, name: str) -> str:
    """Return a DICOM tag of the node or of its subject hierarchy item."""
    value = node.GetAttribute(name)
    scene = node.GetScene()
    if value is None and scene is not None:
        tree = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
        item = 0 if tree is None else tree.GetItemByDataNode(node)
        value = tree.GetItemAttribute(item, name) if item else None
    return str(value or "")

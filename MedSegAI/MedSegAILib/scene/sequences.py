"""Sequences: images of several times that one volume node shows in turn.

A sequence keeps a data node per frame outside the scene; a browser copies that of the present frame into a node of
the scene, its proxy. Frames are read from the data nodes, so the browser does not move.
"""

from __future__ import annotations

import numpy as np
import slicer
import slicer.util
import vtk
from numpy.typing import NDArray

from medsegai.errors import GeometryError, InputError
from medsegai.volume import Volume
from MedSegAILib.scene.inputs import check_image, image_at, transform_to_world
from MedSegAILib.scene.layers import array_of, labelmap_name
from MedSegAILib.scene.nodes import nodes_of
from MedSegAILib.slicer_types import (
    Node,
    SegmentationNode,
    SequenceBrowserNode,
    VolumeNode,
    VTKObject,
)
from MedSegAILib.translation import tr as _


def browser_of(node: Node) -> SequenceBrowserNode:
    """Return the sequence browser of a proxy node; None if the node is not a proxy."""
    scene = None if node is None else node.GetScene()
    if scene is None:
        return None
    browsers = nodes_of(scene, "vtkMRMLSequenceBrowserNode")
    return next((each for each in browsers if each.IsProxyNodeID(node.GetID())), None)


def frames(node: Node) -> range:
    """Return the frame numbers of a volume node, from 0; empty if it is not a proxy of a sequence."""
    browser = browser_of(node)
    return range(0) if browser is None else range(browser.GetNumberOfItems())


def current_frame(node: Node) -> int | None:
    """Return the shown frame; None if the node is not a proxy of a sequence, or no frame is shown."""
    browser = browser_of(node)
    shown = -1 if browser is None else browser.GetSelectedItemNumber()
    return shown if shown >= 0 else None


def read_frame(node: Node, number: int) -> Volume:
    """Read one frame of a volume node in world coordinates; the browser does not move.

    Raises:
        InputError: the frame does not exist, or does not hold an image with one value per voxel.
        GeometryError: it has a parent transform that is not linear, or its axes are sheared.
    """
    browser, value = _at(node, number)
    data = browser.GetSequenceNode(node).GetDataNodeAtValue(value)
    if data is None:
        text = _("{name} does not have an image at frame {number} ({value}).")
        raise InputError(text.format(name=node.GetName(), number=number + 1, value=value))
    check_image(data)
    return image_at(data, _transform_at(node, browser, value), f"{node.GetName()} ({value})")


def add_frame(
    proxy: SegmentationNode, source: VolumeNode, number: int, filled: SegmentationNode
) -> Node:
    """Put a segmentation, or a volume that belongs to one, into a sequence that follows the source's.

    Args:
        proxy: the node that shows the sequence; None starts a new sequence.
        filled: a node outside the scene, which is copied.

    Returns:
        The proxy.
    """
    browser, value = _at(source, number)
    is_new = proxy is None
    sequence = _new_sequence(browser, source, filled) if is_new else browser.GetSequenceNode(proxy)
    sequence.SetDataNodeAtValue(filled, value)
    if is_new:
        if browser.GetProxyNode(sequence) is None:  # the logic of the Sequences module was faster
            browser.AddProxyNode(filled, sequence, True)
        proxy = browser.GetProxyNode(sequence)
        proxy.SetHideFromEditors(filled.GetHideFromEditors())
    if browser.GetSelectedItemNumber() == number:
        _show(proxy, sequence.GetDataNodeAtValue(value))
    if is_new and filled.IsA("vtkMRMLSegmentationNode"):
        browser.SetSaveChanges(sequence, True)  # edits stay with their frame
    return proxy


def _show(proxy: SegmentationNode, data: Node) -> None:
    """Make a proxy show the data of the sequence, without sharing them."""
    if proxy is data:
        return
    if proxy.IsA("vtkMRMLVolumeNode"):
        proxy.CopyContent(data, True)
    elif proxy.GetSegmentation() is not data.GetSegmentation():  # otherwise it is shown already
        proxy.GetSegmentation().DeepCopy(data.GetSegmentation())


def check_proxy(proxy: SegmentationNode, source: VolumeNode, number: int) -> None:
    """Raises:
    InputError: the source is not a sequence with this frame, or `proxy` does not follow it.
    """
    _at(source, number)
    if proxy is not None and not goes_along(proxy, source):
        text = _("{name} does not belong to the sequence of {source}. Choose a new segmentation.")
        raise InputError(text.format(name=proxy.GetName(), source=source.GetName()))


def check_shown(node: Node, frame: int | None) -> None:
    """Raises:
    InputError: a node of a sequence does not show this frame.
    """
    if frame is not None and current_frame(node) != frame:
        text = _("{name} shows another frame. Go to frame {number}, and try it again.")
        raise InputError(text.format(name=node.GetName(), number=frame + 1))


def goes_along(node: Node, source: VolumeNode) -> bool:
    """Whether a node shows a sequence of the browser that shows the source."""
    browser = browser_of(source)
    return browser is not None and browser.GetSequenceNode(node) is not None


def frame_image(node: Node, number: int) -> VTKObject:
    """Return the volume node with a frame's image, outside the scene and without its parent transform."""
    browser, value = _at(node, number)
    return browser.GetSequenceNode(node).GetDataNodeAtValue(value) or node


def _new_sequence(
    browser: SequenceBrowserNode, source: VolumeNode, filled: SegmentationNode
) -> Node:
    scene = source.GetScene()
    of_source = browser.GetSequenceNode(source)
    sequence = scene.AddNewNodeByClass("vtkMRMLSequenceNode", filled.GetName())
    sequence.CopySequenceIndex(of_source)
    sequence.RemoveAllDataNodes()
    browser.AddSynchronizedSequenceNode(sequence)
    browser.SetMissingItemMode(sequence, browser.MissingItemDisplayHidden)
    return sequence


def empty_segmentation(name: str) -> SegmentationNode:
    """Return a segmentation node outside any scene."""
    node = slicer.vtkMRMLSegmentationNode()
    node.SetName(name)
    node.GetSegmentation().SetSourceRepresentationName(labelmap_name())
    return node


def _at(node: Node, number: int) -> tuple[Node, str]:
    """Return the browser of a node, and the index value of a frame."""
    browser = browser_of(node)
    if browser is None:
        text = _("{name} is not an image of a sequence. Segment it as a single volume.")
        name = _("The chosen volume") if node is None else node.GetName()
        raise InputError(text.format(name=name))
    if not 0 <= number < browser.GetNumberOfItems():
        text = _("{name} does not have a frame {number}. Its last frame is {last}.")
        raise InputError(
            text.format(name=node.GetName(), number=number + 1, last=browser.GetNumberOfItems())
        )
    return browser, str(browser.GetMasterSequenceNode().GetNthIndexValue(number))


def _transform_at(node: Node, browser: SequenceBrowserNode, value: str) -> NDArray[np.float64]:
    """Return all parent transforms of a node, each at the frame if the browser also moves it."""
    out = np.eye(4)
    transform = node.GetParentTransformNode()
    if transform is not None:
        transform_to_world(node)  # refuses nonlinear transforms
    while transform is not None:
        sequence = browser.GetSequenceNode(transform)
        data = None if sequence is None else sequence.GetDataNodeAtValue(value)
        out = _to_parent(transform if data is None else data) @ out
        transform = transform.GetParentTransformNode()
    return out


def _to_parent(transform: VTKObject) -> NDArray[np.float64]:
    if not transform.IsLinear():
        text = _(
            "A frame has a parent transform that is not linear ({transform}). "
            "Remove the volume from the transform."
        )
        raise GeometryError(text.format(transform=transform.GetName()))
    matrix = vtk.vtkMatrix4x4()
    transform.GetMatrixTransformToParent(matrix)
    return array_of(matrix)

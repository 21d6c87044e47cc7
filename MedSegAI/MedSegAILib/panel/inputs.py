"""The inputs: the volumes of the model's channels, the frames of a sequence, and the region."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import qt

from medsegai.models.card import ModelCard
from medsegai.system.outside_text import label_text
from MedSegAILib.panel.style import narrow, quiet_style
from MedSegAILib.panel.wrapping import say
from MedSegAILib.slicer_types import Node, Widget
from MedSegAILib.translation import tr as _

_SCALARS, _VECTORS = "vtkMRMLScalarVolumeNode", "vtkMRMLVectorVolumeNode"
"""The classes of images with one value per voxel, and of images with several, such as colour pictures."""


def choose_node(selector: Widget, node: Node) -> None:
    """Choose a node; one that is not offered becomes None, or the present one where None is not offered."""
    before = None if selector.noneEnabled else selector.currentNode()
    selector.setCurrentNode(node)
    if selector.currentNode() is not node:
        selector.setCurrentNode(before)


class InputWidgets:
    """The first channel uses the selector of the .ui file; a selector is made for each further channel.

    Args:
        ui: the named widgets.
        new_selector: the function that makes a qMRMLNodeComboBox.
        changed: the function that is called after each change by the user or the scene.
    """

    def __init__(
        self, ui: Widget, new_selector: Callable[[], Widget], changed: Callable[[], None]
    ) -> None:
        self._ui, self._new_selector, self._changed = ui, new_selector, changed
        self._channels: tuple[str, ...] = ("",)
        self._takes_picture = False
        self._further: list[tuple[Widget, Widget]] = []
        self._frames = 0
        self._filling = False
        ui.channelsArea.visible = False
        ui.channelsNote.visible = False
        ui.inputSelector.connect("currentNodeChanged(vtkMRMLNode*)", self._on_node_changed)
        ui.regionSelector.connect("currentNodeChanged(vtkMRMLNode*)", self._on_node_changed)
        ui.framesSelector.connect("currentIndexChanged(int)", self._on_frames_changed)
        self.show_frames(0)

    def nodes(self) -> dict[str, Node]:
        """Return the chosen node of each channel."""
        selectors = [self._ui.inputSelector, *(selector for _label, selector in self._further)]
        return {
            name: selector.currentNode()
            for name, selector in zip(self._channels, selectors, strict=True)
        }

    def region(self) -> Node:
        """Return the chosen box; None for the whole scan."""
        return self._ui.regionSelector.currentNode()

    def every_frame(self) -> bool:
        """Return whether every frame of a sequence is to be segmented."""
        return self._frames > 0 and self._ui.framesSelector.currentIndex == 1

    def choose(self, node: Node) -> None:
        """Choose this node for the first channel, as a user would."""
        self._ui.inputSelector.setCurrentNode(node)

    def restore(self, nodes: Sequence[Node], region: Node) -> None:
        """Choose these nodes for the channels in their order, and this box, as far as they are offered.

        A volume that is None stays as the selector chose it.
        """
        selectors = [self._ui.inputSelector, *(selector for _label, selector in self._further)]
        for selector, node in zip(selectors, nodes, strict=False):
            if node is not None:
                choose_node(selector, node)
        choose_node(self._ui.regionSelector, region)
        self._ui.channelsNote.visible = False

    def choose_every_frame(self, every: bool) -> None:
        """Choose every frame of a sequence, or the current one."""
        self._ui.framesSelector.currentIndex = int(every)

    def choose_region(self, node: Node) -> None:
        """Choose this box, as a user would."""
        self._ui.regionSelector.setCurrentNode(node)

    def set_channels(self, card: ModelCard | None) -> None:
        """Show one selector for each channel of the model; a single one for the colours of a picture."""
        channels = ("",) if card is None else tuple(channel.name for channel in card.channels)
        takes_picture = card is not None and card.takes_one_picture
        if takes_picture:
            channels = channels[:1]
        if (channels, takes_picture) == (self._channels, self._takes_picture):
            return
        self._channels, self._takes_picture = channels, takes_picture
        self._ui.inputSelector.nodeTypes = [_SCALARS, *[_VECTORS] * takes_picture]
        self._remove_further()
        several = len(channels) > 1
        alone = _("Picture:") if takes_picture else _("Volume:")
        self._ui.inputLabel.text = label_text(f"{channels[0]}:") if several else alone
        for number, name in enumerate(channels[1:], start=1):
            assert card is not None
            self._add_channel(number, name, card.channels[number].required)
        self._ui.channelsArea.visible = several
        self._ui.channelsNote.visible = False

    def _remove_further(self) -> None:
        for label, selector in self._further:
            for widget in (label, selector):
                self._ui.channelsArea.layout().removeWidget(widget)
                widget.hide()
                widget.deleteLater()
        self._further = []

    def show_guess(self, nodes: Mapping[str, Node]) -> None:
        """Choose these nodes for the channels, and ask the user to check them."""
        self._filling = True
        selectors = [self._ui.inputSelector, *(selector for _label, selector in self._further)]
        for name, selector in zip(self._channels, selectors, strict=True):
            if nodes.get(name) is not None:
                selector.setCurrentNode(nodes[name])
        self._filling = False
        words = _(
            "The channels were guessed from names and DICOM tags. Please check them before you "
            "press Segment."
        )
        note = self._ui.channelsNote
        say(note, words if len(self._channels) > 1 else "", quiet_style(note))
        self._changed()

    def show_frames(self, count: int) -> None:
        """Offer the frames of a sequence; without frames the choice is hidden."""
        if count == self._frames and count:
            return
        self._frames = count
        selector = self._ui.framesSelector
        selector.blockSignals(True)
        selector.clear()
        selector.addItem(_("The current frame"))
        selector.addItem(_("Every frame ({count})").format(count=count))
        selector.blockSignals(False)
        self._ui.framesLabel.visible = selector.visible = count > 0

    def _add_channel(self, number: int, name: str, required: bool) -> None:
        selector = self._new_selector()
        selector.objectName = f"channel{number}Selector"
        narrow(selector)
        selector.nodeTypes = [_SCALARS]
        selector.showChildNodeTypes = False
        selector.noneEnabled = True
        selector.noneDisplay = _("Choose …") if required else _("None (optional)")
        selector.addEnabled = selector.removeEnabled = False
        selector.toolTip = label_text(
            _("The image for the channel {name} of the model.").format(name=name)
        )
        scene = self._ui.inputSelector.mrmlScene()
        if scene is not None:
            selector.setMRMLScene(scene)
        selector.connect("currentNodeChanged(vtkMRMLNode*)", self._on_node_changed)
        label = qt.QLabel(label_text(f"{name}:"))
        self._ui.channelsArea.layout().addRow(label, selector)
        self._further.append((label, selector))

    def _on_node_changed(self, _node: Node) -> None:
        if not self._filling:
            self._changed()

    def _on_frames_changed(self, _index: int) -> None:
        self._changed()

"""Stand-ins for the widgets of Slicer and CTK: their properties, signals and manners, on plain Qt."""

from __future__ import annotations

from typing import Any, ClassVar

from PySide6.QtCore import Property, QChildEvent, QRect, QSize, Qt, Signal
from PySide6.QtGui import QMouseEvent, QPainter, QPaintEvent
from PySide6.QtWidgets import QComboBox, QStyle, QStyleOptionButton, QVBoxLayout, QWidget


class qMRMLWidget(QWidget):
    """A widget that hands its scene on."""

    mrmlSceneChanged = Signal(object)
    cpp_signals: ClassVar[dict[str, str]] = {
        "mrmlSceneChanged(vtkMRMLScene*)": "mrmlSceneChanged(PyObject)"
    }

    def setMRMLScene(self, scene: Any) -> None:
        self._scene = scene
        self.mrmlSceneChanged.emit(scene)

    def mrmlScene(self) -> Any:
        return self._scene


def _stored(kind: type, name: str, default: Any) -> Any:
    def read(widget: Any) -> Any:
        return widget._values.get(name, default)

    def write(widget: Any, value: Any) -> None:
        widget._values[name] = value
        widget._refresh()

    return Property(kind, read, write)


class qMRMLNodeComboBox(QWidget):
    """Shows the scene's nodes of some classes; without a None entry it selects the first by itself."""

    currentNodeChanged = Signal(object)
    cpp_signals: ClassVar[dict[str, str]] = {
        "currentNodeChanged(vtkMRMLNode*)": "currentNodeChanged(PyObject)"
    }

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._values: dict[str, Any] = {}
        self._scene: Any = None
        self._nodes: list[Any] = []
        self._observers: list[int] = []
        self._box = QComboBox(self)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._box)
        self._box.currentIndexChanged.connect(lambda _: self._tell())

    nodeTypes = _stored("QStringList", "nodeTypes", [])
    showChildNodeTypes = _stored(bool, "showChildNodeTypes", True)
    showHidden = _stored(bool, "showHidden", False)
    noneEnabled = _stored(bool, "noneEnabled", False)
    noneDisplay = _stored(str, "noneDisplay", "None")
    addEnabled = _stored(bool, "addEnabled", True)
    removeEnabled = _stored(bool, "removeEnabled", True)
    editEnabled = _stored(bool, "editEnabled", False)
    renameEnabled = _stored(bool, "renameEnabled", False)
    selectNodeUponCreation = _stored(bool, "selectNodeUponCreation", True)

    def _size_policy(self) -> int:
        return int(self._box.sizeAdjustPolicy().value)

    def _set_size_policy(self, policy: int) -> None:
        self._box.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy(policy))

    sizeAdjustPolicy = Property(int, _size_policy, _set_size_policy)

    def _node_id(self) -> str:
        node = self.currentNode()
        return "" if node is None else str(node.GetID())

    currentNodeID = Property(str, _node_id)

    def setMRMLScene(self, scene: Any) -> None:
        for tag in self._observers:
            self._scene.RemoveObserver(tag)
        self._scene, self._observers = scene, []
        if scene is None:
            self._nodes = []
            self._box.blockSignals(True)
            self._box.clear()
            self._box.blockSignals(False)
            return
        events = (scene.NodeAddedEvent, scene.NodeRemovedEvent, scene.EndCloseEvent)
        self._observers = [scene.AddObserver(event, self._on_scene_event) for event in events]
        self._refresh()

    def mrmlScene(self) -> Any:
        return self._scene

    def currentNode(self) -> Any:
        index = self._box.currentIndex() - int(bool(self.noneEnabled))
        return self._nodes[index] if 0 <= index < len(self._nodes) else None

    def setCurrentNode(self, node: Any) -> None:
        position = self._nodes.index(node) if node in self._nodes else -1
        self._box.setCurrentIndex(position + int(bool(self.noneEnabled)))

    def _on_scene_event(self, *_: Any) -> None:
        self._refresh()

    def _refresh(self) -> None:
        if self._scene is None:
            return
        current = self.currentNode()
        self._box.blockSignals(True)
        self._nodes = [node for kind in self.nodeTypes for node in self._of_class(kind)]
        self._box.clear()
        if self.noneEnabled:
            self._box.addItem(self.noneDisplay)
        self._box.addItems([node.GetName() for node in self._nodes])
        self.setCurrentNode(current if current in self._nodes else self._first())
        self._box.blockSignals(False)
        if self.currentNode() is not current:
            self._tell()

    def _of_class(self, kind: str) -> list[Any]:
        count = self._scene.GetNumberOfNodesByClass(kind)
        nodes = [self._scene.GetNthNodeByClass(index, kind) for index in range(count)]
        exact = not self.showChildNodeTypes
        found = [node for node in nodes if not exact or node.GetClassName() == kind]
        return [node for node in found if self.showHidden or not node.GetHideFromEditors()]

    def _first(self) -> Any:
        return None if self.noneEnabled or not self._nodes else self._nodes[0]

    def _tell(self) -> None:
        self.currentNodeChanged.emit(self.currentNode())


class ctkCollapsibleButton(QWidget):
    """A bar with a title; a click on it hides or shows the children."""

    HEIGHT = 24
    contentsCollapsed = Signal(bool)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._text, self._collapsed = "", False
        self.setContentsMargins(0, self.HEIGHT, 0, 0)

    def _get_text(self) -> str:
        return self._text

    def _set_text(self, text: str) -> None:
        self._text = text
        self.update()

    def _get_collapsed(self) -> bool:
        return self._collapsed

    def _set_collapsed(self, collapsed: bool) -> None:
        changed, self._collapsed = collapsed != self._collapsed, collapsed
        self.setMaximumHeight(self.HEIGHT if collapsed else 16_777_215)
        for child in self.findChildren(QWidget, options=Qt.FindChildOption.FindDirectChildrenOnly):
            child.setVisible(not collapsed)
        if changed:
            self.contentsCollapsed.emit(collapsed)

    def childEvent(self, event: QChildEvent) -> None:
        """A child that comes later is shown or hidden like the others."""
        super().childEvent(event)
        if event.added() and isinstance(event.child(), QWidget) and self._collapsed:
            event.child().setVisible(False)

    text = Property(str, _get_text, _set_text)
    collapsed = Property(bool, _get_collapsed, _set_collapsed)

    def minimumSizeHint(self) -> QSize:
        return QSize(60, self.HEIGHT) if self._collapsed else super().minimumSizeHint()

    def mousePressEvent(self, event: QMouseEvent) -> None:
        if event.position().y() < self.HEIGHT:
            self._set_collapsed(not self._collapsed)

    def paintEvent(self, event: QPaintEvent) -> None:
        option = QStyleOptionButton()
        option.initFrom(self)
        option.rect = QRect(0, 0, self.width(), self.HEIGHT)
        option.text = f"{'▸' if self._collapsed else '▾'}  {self._text}"
        self.style().drawControl(QStyle.ControlElement.CE_PushButton, option, QPainter(self), self)


STAND_INS = (qMRMLWidget, qMRMLNodeComboBox, ctkCollapsibleButton)

"""The Segment Editor effect *AI correct*: widgets and mouse; its actions are in `correction.tool`.

Slicer loads this file by its path, makes one object of the class of the same name for each editor, and calls it by
the names below.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import qt
import slicer
import slicer.util
import vtk
from SegmentEditorEffects import AbstractScriptedSegmentEditorEffect

from medsegai.correction import REACH_MM
from MedSegAILib.correction import EFFECT_NAME, preview
from MedSegAILib.correction.close_guard import CloseGuard
from MedSegAILib.correction.painting import Brush
from MedSegAILib.correction.tool import CorrectionTool
from MedSegAILib.scene.layers import array_of
from MedSegAILib.scene.uncertainty import walk_within, within
from MedSegAILib.slicer_types import QtValue, SegmentationNode, VTKObject, Widget
from MedSegAILib.translation import tr as _
from MedSegAILib.uncertain_regions import HEAT

RADIUS_MM = 2.0
RADIUS, REACH, OUTSIDE = "BrushRadiusMm", "ReachMm", "PaintOutside"
"""The parameters that the editor stores with the scene."""

OUTLINE_POINTS = 36

KEYS = (
    ("N", "nextPlaceButton", _("Apply, and go to the next uncertain region.")),
    ("Shift+N", "previousPlaceButton", _("Apply, and go to the previous uncertain region.")),
    ("A", "applyButton", _("Write the shown change into the segment, as one undo step.")),
    ("X", "takeBackButton", _("Discard the last stroke.")),
    ("C", "cancelButton", _("Discard all strokes.")),
    (
        "U",
        "uncertaintyButton",
        _("Show over the image where the AI is uncertain, or the heat map."),
    ),
)
"""The keys of the buttons, and what the buttons do."""


class EffectEditor:
    """The Segment Editor, as an effect sees it."""

    def __init__(self, effect: QtValue) -> None:
        self._effect = effect

    def segmentation(self) -> SegmentationNode:
        """Return the segmentation node of the editor."""
        node = self._effect.parameterSetNode()
        return None if node is None else node.GetSegmentationNode()

    def segment_id(self) -> str:
        """Return the id of the segment that is edited."""
        node = self._effect.parameterSetNode()
        return "" if node is None else node.GetSelectedSegmentID() or ""

    def source_image(self) -> VTKObject:
        """Return the source image as the editor resampled it."""
        node = self._effect.parameterSetNode()
        if node is None or node.GetSourceVolumeNode() is None:
            return None
        return self._effect.sourceVolumeImageData()

    def select(self, segment_id: str) -> None:
        """Select another segment."""
        self._effect.parameterSetNode().SetSelectedSegmentID(segment_id)

    def mask_image(self) -> VTKObject:
        everywhere = slicer.vtkMRMLSegmentationNode.EditAllowedEverywhere
        if self._effect.parameterSetNode().GetMaskMode() == everywhere:
            return None
        return self._effect.maskLabelmap()

    def change(self, segment_id: str, added: VTKObject, removed: VTKObject) -> None:
        modes, segmentation = slicer.qSlicerSegmentEditorAbstractEffect, self.segmentation()
        self._effect.saveStateForUndo()
        for image, mode in (
            (added, modes.ModificationModeAdd),
            (removed, modes.ModificationModeRemove),
        ):
            if image is not None:
                self._effect.modifySegmentByLabelmap(segmentation, segment_id, image, mode)


class BrushOutline:
    """A circle as large as the brush, in one slice view."""

    def __init__(self, effect: QtValue, view: Widget) -> None:
        self._effect, self._view = effect, view
        self._circle = vtk.vtkRegularPolygonSource()
        self._circle.SetNumberOfSides(OUTLINE_POINTS)
        self._circle.GeneratePolygonOff()
        mapper = vtk.vtkPolyDataMapper2D()
        mapper.SetInputConnection(self._circle.GetOutputPort())
        self._actor = vtk.vtkActor2D()
        self._actor.SetMapper(mapper)
        effect.addActor2D(view, self._actor)

    def show(self, position: QtValue, radius_mm: float, inside: bool) -> None:
        """Show the circle around a position in the view, in pixels."""
        to_ras = array_of(self._view.mrmlSliceNode().GetXYToRAS())
        self._circle.SetRadius(radius_mm / float(np.linalg.norm(to_ras[:3, 0])))
        self._circle.SetCenter(position[0], position[1], 0)
        self._actor.GetProperty().SetColor(*(preview.INSIDE if inside else preview.OUTSIDE))
        self._effect.scheduleRender(self._view)

    def remove(self) -> None:
        self._effect.removeActor2D(self._view, self._actor)


class MedSegAICorrectEffect(AbstractScriptedSegmentEditorEffect):
    """Corrects a segment around a few strokes inside or outside it."""

    def __init__(self, scriptedEffect: QtValue) -> None:
        scriptedEffect.name = EFFECT_NAME  # never translated, because effects are found by it
        scriptedEffect.title = _("AI correct")
        AbstractScriptedSegmentEditorEffect.__init__(self, scriptedEffect)
        self.tool = CorrectionTool(
            EffectEditor(scriptedEffect), scriptedEffect.scene, self.showMessage, _may_apply
        )
        self._guard = CloseGuard(self.tool, _may_save)
        self._outlines: dict[Widget, BrushOutline] = {}
        self._message: Widget | None = None

    def clone(self) -> QtValue:
        """Return a copy of the effect, as the editor asks for one."""
        import qSlicerSegmentationsEditorEffectsPythonQt as effects

        cloned = effects.qSlicerSegmentEditorScriptedEffect(None)
        cloned.setPythonSource(Path(__file__).as_posix())
        return cloned

    def icon(self) -> QtValue:
        """Return the picture on the button of the effect."""
        path = Path(__file__).resolve().parents[3] / "Resources" / "Icons" / "MedSegAI.png"
        return qt.QIcon(str(path)) if path.exists() else qt.QIcon()

    def helpText(self) -> str:
        """Return the help that the editor shows."""
        return "<html>" + _(
            "Corrects the selected segment by a few strokes, from the AI's probabilities and "
            "the image.<br><p><ul style='margin: 0'><li><b>Left button:</b> paint what "
            "belongs to the segment (or, with <i>Outside</i>, what does not).<li><b>Ctrl + "
            "left button:</b> paint the other kind.<li><b>N:</b> apply, and go to the next "
            "uncertain region. <b>Shift+N:</b> to the previous one.<li><b>X:</b> take back "
            "the last stroke. <b>A</b> or <b>Enter:</b> apply. <b>C:</b> "
            "cancel.<li><b>O:</b> switch the kind that the left button paints.<li><b>Esc</b> "
            "is Slicer's own key: it leaves the effect, and you are asked about pending "
            "strokes.</ul><p>Green is added, red is removed. Nothing is written before it is "
            "applied, as one undo step."
        )

    # widgets

    def setupOptionsFrame(self) -> None:
        """Make the widgets of the effect."""
        effect = self.scriptedEffect
        self.insideButton, self.outsideButton = (
            qt.QRadioButton(_("Inside")),
            qt.QRadioButton(_("Outside")),
        )
        self.insideButton.toolTip = _("Strokes show what belongs to the segment.")
        self.outsideButton.toolTip = _("Strokes show what does not belong to the segment.")
        effect.addLabeledOptionsWidget(_("Strokes:"), _row(self.insideButton, self.outsideButton))
        self.radiusBox = _millimetres(0.1, 50.0, _("Radius of the brush."))
        effect.addLabeledOptionsWidget(_("Brush radius:"), self.radiusBox)
        self.reachBox = _millimetres(
            0.5,
            50.0,
            _(
                "The largest distance at which a stroke acts. Edges and voxels of which the AI "
                "is certain shorten it."
            ),
        )
        effect.addLabeledOptionsWidget(_("Reach:"), self.reachBox)
        self.takeBackButton = qt.QPushButton(_("Take back stroke"))
        self.cancelButton = qt.QPushButton(_("Cancel"))
        self.applyButton = qt.QPushButton(_("Apply"))
        effect.addOptionsWidget(_row(self.takeBackButton, self.cancelButton, self.applyButton))
        self._set_up_places()
        self._set_up_message()
        self.insideButton.checked = True
        self.outsideButton.connect("toggled(bool)", self.onOutsideToggled)
        self.radiusBox.connect("valueChanged(double)", self.onRadiusChanged)
        self.reachBox.connect("valueChanged(double)", self.onReachChanged)
        self.takeBackButton.connect("clicked()", self.onTakeBack)
        self.cancelButton.connect("clicked()", self.onCancel)
        self.applyButton.connect("clicked()", self.onApply)
        self._add_keys()
        self._enable_buttons()

    def _set_up_message(self) -> None:
        """Make a label whose text does not widen Slicer's column."""
        # late, because it imports the panel's other files
        from MedSegAILib.panel.wrapping import WrappedLabels

        self._message = qt.QLabel("")
        self._wrapped = WrappedLabels()
        self._wrapped.watch([self._message])
        self.scriptedEffect.addOptionsWidget(self._message)

    def _set_up_places(self) -> None:
        """Make the widgets of the walk through the uncertain regions, as on the page of MedSegAI."""
        self.previousPlaceButton = qt.QPushButton(_("Previous region"))
        self.nextPlaceButton = qt.QPushButton(_("Next region"))
        self.placesBox = qt.QComboBox()
        self.placesBox.minimumContentsLength = 8
        self.placesBox.sizeAdjustPolicy = qt.QComboBox.AdjustToMinimumContentsLengthWithIcon
        self.placesBox.toolTip = _(
            "Walk the uncertain regions of all structures that can be corrected, or of one "
            "structure."
        )
        self.scriptedEffect.addLabeledOptionsWidget(_("Uncertain regions:"), self.placesBox)
        self.uncertaintyButton = qt.QPushButton(_("Uncertainty"))
        self.uncertaintyButton.checkable = True
        places = _row(self.previousPlaceButton, self.nextPlaceButton, self.uncertaintyButton)
        self.scriptedEffect.addOptionsWidget(places)
        self.placesBox.connect("activated(int)", self.onPlacesWithin)
        self.previousPlaceButton.connect("clicked()", self.onPreviousPlace)
        self.nextPlaceButton.connect("clicked()", self.onNextPlace)
        self.uncertaintyButton.connect("clicked(bool)", self.onUncertainty)

    def _add_keys(self) -> None:
        """Add keys for the buttons, which work while the effect is shown and no text field has the focus."""
        for key, name, help_text in KEYS:
            button = getattr(self, name)
            button.toolTip = f"{help_text} ({key})"
            _add_key(key, button, button.click)
        _add_key("O", self.outsideButton, self.onOtherKind)

    def showMessage(self, text: str) -> None:
        """Show the data on which the correction is based, or why it is impossible."""
        if self._message is not None:
            from MedSegAILib.panel.wrapping import say

            say(self._message, text)

    def onOutsideToggled(self, outside: bool) -> None:
        """Choose whether strokes are inside or outside the structure."""
        self.scriptedEffect.setParameter(OUTSIDE, int(outside))

    def onRadiusChanged(self, radius_mm: float) -> None:
        """Store another radius of the brush."""
        self.scriptedEffect.setParameter(RADIUS, radius_mm)

    def onReachChanged(self, reach_mm: float) -> None:
        """Store another range of corrections."""
        self.scriptedEffect.setParameter(REACH, reach_mm)
        self.tool.reach_mm = reach_mm

    def onOtherKind(self) -> None:
        (self.insideButton if self.outsideButton.checked else self.outsideButton).click()

    def onPlacesWithin(self, index: int) -> None:
        segmentation = self.tool.segmentation
        if segmentation is not None:
            walk_within(segmentation, str(self.placesBox.itemData(index) or ""))

    def onNextPlace(self) -> None:
        """Go to the next uncertain region."""
        self.tool.go_to_place()
        self._enable_buttons()

    def onPreviousPlace(self) -> None:
        """Go to the previous uncertain region."""
        self.tool.go_to_place(-1)
        self._enable_buttons()

    def onUncertainty(self, shown: bool) -> None:
        """Show or hide the uncertainty, or the heat map."""
        self.tool.show_map(shown)
        self._enable_buttons()

    def onTakeBack(self) -> None:
        """Take back the last stroke."""
        self.tool.take_back()
        self._enable_buttons()

    def onCancel(self) -> None:
        """Discard the strokes that are not yet applied."""
        self.tool.cancel()
        self._enable_buttons()

    def onApply(self) -> None:
        """Apply the correction that is shown."""
        self.tool.apply()
        self._enable_buttons()

    def _enable_buttons(self) -> None:
        for button in (self.takeBackButton, self.cancelButton, self.applyButton):
            button.enabled = self.tool.strokes > 0
        kind = self.tool.walked_map
        for widget in (
            self.previousPlaceButton,
            self.nextPlaceButton,
            self.placesBox,
            self.uncertaintyButton,
        ):
            widget.enabled = bool(kind)
        self.uncertaintyButton.text = _("Heat map") if kind == HEAT else _("Uncertainty")
        self.uncertaintyButton.checked = self.tool.map_is_shown

    def _offer_places(self) -> None:
        """Offer the structures of the segmentation, with the walked one selected."""
        segmentation = self.tool.segmentation
        offered = [("", _("in all structures"))]
        if segmentation is not None:
            segments = segmentation.GetSegmentation()
            for name in segments.GetSegmentIDs():
                title = _("in {name}").format(name=segments.GetSegment(name).GetName())
                offered.append((name, title))
        box = self.placesBox
        if offered != [(box.itemData(n), box.itemText(n)) for n in range(box.count)]:
            box.clear()
            for name, title in offered:
                box.addItem(title, name)
        box.setCurrentIndex(
            0 if segmentation is None else max(box.findData(within(segmentation)), 0)
        )

    # methods that the editor calls

    def setMRMLDefaults(self) -> None:
        """Set the parameters that the scene does not have yet."""
        self.scriptedEffect.setParameterDefault(RADIUS, RADIUS_MM)
        self.scriptedEffect.setParameterDefault(REACH, REACH_MM)
        self.scriptedEffect.setParameterDefault(OUTSIDE, 0)

    def updateGUIFromMRML(self) -> None:
        """Show the parameters of the scene in the widgets."""
        effect = self.scriptedEffect
        for box, name in ((self.radiusBox, RADIUS), (self.reachBox, REACH)):
            if effect.doubleParameter(name) > 0:
                was_blocked = box.blockSignals(True)
                box.value = effect.doubleParameter(name)
                box.blockSignals(was_blocked)
        self.tool.reach_mm = self.reachBox.value
        outside = effect.integerParameter(OUTSIDE) != 0
        (self.outsideButton if outside else self.insideButton).checked = True
        self.tool.follow_selection()
        self._offer_places()
        self._enable_buttons()

    def updateMRMLFromGUI(self) -> None:
        """Write what the widgets show into the parameters of the scene."""
        self.onOutsideToggled(self.outsideButton.checked)
        self.onRadiusChanged(self.radiusBox.value)
        self.onReachChanged(self.reachBox.value)

    def createCursor(self, _view: Widget) -> QtValue:
        """Return the cursor over a view."""
        return qt.QCursor(qt.Qt.CrossCursor)

    def activate(self) -> None:
        """Start with the chosen segment."""
        self.tool.open()
        self._guard.watch(self.scriptedEffect.scene(), slicer.util.mainWindow())
        self._enable_buttons()

    def deactivate(self) -> None:
        """Leave the effect, also with Slicer's own key Esc."""
        self._guard.release()
        self.tool.close()
        self._enable_buttons()
        self._remove_outlines()

    def cleanup(self) -> None:
        """Remove everything when the application ends."""
        self._guard.release()
        self.tool.cancel()
        self.tool.close()
        self._remove_outlines()

    def referenceGeometryChanged(self) -> None:
        """Start again, because the grid of the segmentation has changed."""
        self.tool.give_up(_("the voxels of the segmentation were changed"))
        self._enable_buttons()

    def sourceVolumeNodeChanged(self) -> None:
        """Start again, because the image under the segmentation has changed."""
        self.tool.give_up(_("another image was chosen"))
        self._enable_buttons()

    def layoutChanged(self) -> None:
        """Follow the views, because their layout has changed."""
        self._remove_outlines()

    def processInteractionEvents(self, interactor: VTKObject, event: int, view: Widget) -> bool:
        """Paint in slice views; True keeps the event from others."""
        if view.className() != "qMRMLSliceWidget":
            return False
        if event == vtk.vtkCommand.KeyPressEvent:
            return self._on_key(interactor.GetKeySym())
        position = interactor.GetEventPosition()
        inside = self.insideButton.checked != bool(interactor.GetControlKey())
        if event == vtk.vtkCommand.LeaveEvent:
            self._remove_outlines()
            return False
        if event in (vtk.vtkCommand.MouseMoveEvent, vtk.vtkCommand.LeftButtonPressEvent):
            self._outline(view).show(position, self.radiusBox.value, inside)
        if event == vtk.vtkCommand.LeftButtonPressEvent:
            return self._on_press(interactor, view, inside)
        return self.tool.painting and self._on_stroke(event, self.xyToRas(position, view))

    def _on_stroke(self, event: int, position: Sequence[float]) -> bool:
        """Continue or end a stroke."""
        if event == vtk.vtkCommand.MouseMoveEvent:
            self.tool.move(position)
        elif event == vtk.vtkCommand.LeftButtonReleaseEvent:
            self.tool.release()
            self._enable_buttons()
        else:
            return False
        return True

    def _on_press(self, interactor: VTKObject, view: Widget, inside: bool) -> bool:
        if interactor.GetShiftKey() or interactor.GetAltKey():
            return False
        effect = self.scriptedEffect
        if effect.confirmCurrentSegmentVisible() != effect.ConfirmedWithoutDialog:
            return True  # the dialog received the release of the button
        normal = array_of(view.mrmlSliceNode().GetSliceToRAS())[:3, 2]
        brush = Brush(self.radiusBox.value, normal / np.linalg.norm(normal))
        self.tool.press(self.xyToRas(interactor.GetEventPosition(), view), brush, inside)
        return True

    def _on_key(self, key: str) -> bool:
        actions = {"x": self.onTakeBack, "Return": self.onApply, "KP_Enter": self.onApply}
        if key not in actions or self.tool.strokes == 0:
            return False
        actions[key]()
        return True

    def _outline(self, view: Widget) -> BrushOutline:
        if view not in self._outlines:
            self._outlines[view] = BrushOutline(self.scriptedEffect, view)
        return self._outlines[view]

    def _remove_outlines(self) -> None:
        for outline in self._outlines.values():
            outline.remove()
        self._outlines = {}


def _may_apply(pending: str) -> bool:
    """Ask whether to apply strokes before the user leaves them; yes if nobody can answer."""
    question = _("Apply them before you continue? One undo step reverts this.")
    return _decide(f"{pending} {question}", _("Apply"), True)


def _may_save(pending: str) -> bool:
    """Ask whether to apply strokes and save the scene before it closes; no if nobody can answer."""
    question = _("The scene is being closed. Apply them, and save the scene before it closes?")
    return _decide(f"{pending} {question}", _("Apply and save"), False)


def _decide(question: str, accept: str, unanswered: bool) -> bool:
    from MedSegAILib.host import can_ask  # late, because Slicer loads this file at its start
    from MedSegAILib.panel import dialogs

    if not can_ask():
        return unanswered
    return dialogs.decide(slicer.util.mainWindow(), question, accept, _("Forget"), True)


def _add_key(key: str, shown: Callable[[], bool], action: Callable[[], None]) -> None:
    """Add a key that works while a widget is visible, whatever has the focus."""
    shortcut = qt.QShortcut(qt.QKeySequence(key), shown)
    shortcut.setContext(qt.Qt.ApplicationShortcut)
    shortcut.connect("activated()", action)


def _row(*widgets: Widget) -> Widget:
    row = qt.QWidget()
    layout = qt.QHBoxLayout(row)
    layout.setContentsMargins(0, 0, 0, 0)
    for widget in widgets:
        layout.addWidget(widget)
    return row


def _millimetres(least: float, most: float, help_text: str) -> Widget:
    box = qt.QDoubleSpinBox()
    box.minimum, box.maximum = least, most
    box.singleStep, box.decimals, box.suffix = 0.5, 1, " mm"
    box.toolTip = help_text
    return box

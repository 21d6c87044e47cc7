"""The dialog of an export, with a check box for each output, and the folder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import qt

from MedSegAILib.panel import dialogs
from MedSegAILib.panel.style import check_box
from MedSegAILib.panel_values import ExportChoice
from MedSegAILib.slicer_types import Widget
from MedSegAILib.translation import tr as _

PARTS = {
    "report": (
        _("Report (HTML)"),
        _("Pictures, table, warnings and provenance on a page that prints as A4."),
    ),
    "csv": (
        _("Table (CSV)"),
        _("Volume, surface, grey values, position and asymmetry of each segment."),
    ),
    "json": (_("Table (JSON)"), _("The same table for programs.")),
    "seg": (
        _("DICOM segmentation"),
        _("Into the patient, study and frame of reference of the series."),
    ),
    "sr": (
        _("DICOM structured report"),
        _("The measurements, referring to the DICOM segmentation."),
    ),
    "rtstruct": (_("DICOM contours"), _("An RT Structure Set for radiotherapy, on the series.")),
    "surfaces": (_("Surfaces"), _("A closed surface of each segment in mm, ready to print.")),
}
DICOM = ("seg", "sr", "rtstruct")
ENCODINGS = {
    "binary": _("binary, which every viewer reads"),
    "labelmap": _("labelmap, newer and smaller"),
}
FORMATS = {".stl": "STL", ".obj": "OBJ", ".glb": "GLB"}
SPACES = {"LPS": _("LPS, as 3D Slicer and DICOM"), "RAS": "RAS"}
LARGEST_TOLERANCE = 5.0
NOTICE = _("Not for diagnostic use.")


def ask(parent: Widget, name: str, reason: str, choice: ExportChoice) -> ExportChoice | None:
    """Show the dialog and wait for the answer; None if the user cancelled."""
    return ExportDialog(parent, name, reason, choice).answer()


class ExportDialog:
    """The dialog, without waiting for it.

    Args:
        parent: the widget whose window it belongs to.
        name: the name of the segmentation.
        reason: the reason why DICOM cannot be written; "" if it can.
        choice: the initial choice.
    """

    def __init__(self, parent: Widget, name: str, reason: str, choice: ExportChoice) -> None:
        self._reason = reason
        self.dialog = qt.QDialog(parent)
        self.dialog.objectName = "exportDialog"
        self.dialog.windowTitle = _("MedSegAI: export {name}").format(name=name)
        self.dialog.resize(520, 520 if reason else 400)
        layout = qt.QVBoxLayout(self.dialog)
        self._parts = {part: self._tick(part, *PARTS[part]) for part in PARTS}
        for part, tick in self._parts.items():
            tick.checked = part in choice.parts and not (reason and part in DICOM)
        layout.addWidget(self._box(_("Tables and pictures"), ("report", "csv", "json")))
        layout.addWidget(self._dicom_box(choice))
        layout.addWidget(self._surfaces_box(choice))
        layout.addLayout(self._folder_row(choice.folder))
        layout.addLayout(self._buttons())
        for widget in (*self._parts.values(), *self._formats.values()):
            widget.connect("toggled(bool)", self._update)
        self._folder.connect("textChanged(QString)", self._update)
        self._update()

    def answer(self) -> ExportChoice | None:
        """Wait for the user."""
        run = getattr(self.dialog, "exec_", None) or self.dialog.exec
        chosen = self.choice() if run() else None
        self.dialog.deleteLater()
        return chosen

    def choice(self) -> ExportChoice:
        """Return the present choice."""
        return ExportChoice(
            self._folder.text.strip(),
            tuple(part for part, tick in self._parts.items() if tick.checked and tick.enabled),
            list(ENCODINGS)[self._encoding.currentIndex],
            tuple(ending for ending, tick in self._formats.items() if tick.checked),
            float(self._tolerance.value),
            list(SPACES)[self._space.currentIndex],
        )

    def _tick(self, part: str, title: str, help_text: str) -> Widget:
        tick = check_box(title)
        tick.objectName = f"{part}Tick"
        tick.toolTip = help_text
        return tick

    def _box(self, title: str, parts: tuple[str, ...]) -> Widget:
        box = qt.QGroupBox(title)
        layout = qt.QVBoxLayout(box)
        for part in parts:
            layout.addWidget(self._parts[part])
        return box

    def _dicom_box(self, choice: ExportChoice) -> Widget:
        box = self._box(_("DICOM"), DICOM)
        if self._reason:
            label = qt.QLabel(self._reason)
            label.objectName = "dicomReason"
            label.wordWrap = True
            box.layout().addWidget(label)
        self._encoding = _combo("encodingSelector", ENCODINGS, choice.encoding)
        form = qt.QFormLayout()
        form.addRow(_("Encoding"), self._encoding)
        box.layout().addLayout(form)
        return box

    def _surfaces_box(self, choice: ExportChoice) -> Widget:
        box = self._box(_("Surfaces"), ("surfaces",))
        row = qt.QHBoxLayout()
        self._formats: dict[str, Widget] = {}
        for ending, title in FORMATS.items():
            tick = check_box(title)
            tick.objectName = f"{title.lower()}Tick"
            tick.checked = ending in choice.formats
            self._formats[ending] = tick
            row.addWidget(tick)
        row.addStretch(1)
        self._tolerance = qt.QDoubleSpinBox()
        self._tolerance.objectName = "toleranceBox"
        self._tolerance.setRange(0.0, LARGEST_TOLERANCE)
        self._tolerance.singleStep = 0.05
        self._tolerance.suffix = " mm"
        self._tolerance.value = choice.tolerance_mm
        self._tolerance.toolTip = _("How far the surface may move when points are removed.")
        self._space = _combo("spaceSelector", SPACES, choice.space)
        form = qt.QFormLayout()
        form.addRow(_("Files"), row)
        form.addRow(_("Tolerance"), self._tolerance)
        form.addRow(_("World"), self._space)
        box.layout().addLayout(form)
        return box

    def _folder_row(self, folder: str) -> Widget:
        layout = qt.QHBoxLayout()
        layout.addWidget(qt.QLabel(_("Folder")))
        self._folder = qt.QLineEdit()
        self._folder.objectName = "exportFolder"
        self._folder.text = folder
        self._folder.placeholderText = _("Where the files go")
        layout.addWidget(self._folder)
        layout.addWidget(_button("exportFolderButton", _("Choose…"), self._choose_folder))
        return layout

    def _choose_folder(self) -> None:
        folder = dialogs.open_folder(self.dialog, _("Folder for the export"))
        if folder:
            self._folder.text = folder

    def _buttons(self) -> Widget:
        layout = qt.QHBoxLayout()
        layout.addWidget(qt.QLabel(NOTICE))
        layout.addStretch(1)
        layout.addWidget(_button("exportCancelButton", _("Cancel"), self.dialog.reject))
        self._write = _button("exportWriteButton", _("Write"), self.dialog.accept)
        layout.addWidget(self._write)
        return layout

    def _update(self, *_changed: Any) -> None:
        """Enable the widgets that can be used with the present choice."""
        possible = not self._reason
        segmentation = possible and bool(self._parts["seg"].checked)
        self._parts["seg"].enabled = self._parts["rtstruct"].enabled = possible
        self._parts["sr"].enabled = self._encoding.enabled = segmentation
        surfaces = bool(self._parts["surfaces"].checked)
        for widget in (*self._formats.values(), self._tolerance, self._space):
            widget.enabled = surfaces
        chosen = self.choice()
        self._write.enabled = bool(
            chosen.folder and chosen.parts and (chosen.formats or not surfaces)
        )


def _combo(name: str, items: dict[str, str], chosen: str) -> Widget:
    combo = qt.QComboBox()
    combo.objectName = name
    for text in items.values():
        combo.addItem(text)
    combo.currentIndex = list(items).index(chosen)
    return combo


def _button(name: str, text: str, act: Callable[[], None]) -> Widget:
    button = qt.QPushButton(text)
    button.objectName = name
    button.autoDefault = False  # Enter in the folder's field must not press a button
    button.connect("clicked()", act)
    return button

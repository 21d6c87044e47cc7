"""The question on the first run: what is installed, where, and how large it is."""

from __future__ import annotations

from pathlib import Path

import qt

from MedSegAILib.install import Consent, Plan
from MedSegAILib.panel import dialogs
from MedSegAILib.panel.style import check_box, lay_out_table, quiet_style, text_item
from MedSegAILib.slicer_types import Widget
from MedSegAILib.translation import tr as _


def ask(plan: Plan) -> Consent | None:
    """Show the plan and wait for the answer; None if the user declined."""
    return InstallDialog(plan).answer()


NEEDED = _(
    "To run networks, MedSegAI needs these packages in Slicer's Python. No other packages "
    "are installed, and packages of Slicer (numpy, SimpleITK …) are not replaced."
)


class InstallDialog:
    """The dialog, without waiting for it."""

    def __init__(self, plan: Plan) -> None:
        self.dialog = qt.QDialog()
        self.dialog.objectName = "installDialog"
        self.dialog.windowTitle = _("MedSegAI: first use")
        self.dialog.resize(520, 380)
        layout = qt.QVBoxLayout(self.dialog)
        layout.addWidget(_label(NEEDED))
        layout.addWidget(_table(plan))
        where = _("They are installed into {folder}.").format(folder=plan.folder)
        layout.addWidget(_label(where, quiet=True))
        layout.addLayout(self._offline())
        buttons = qt.QHBoxLayout()
        self._install = _button("installButton", _("Install"))
        self._install.connect("clicked()", self.dialog.accept)
        refuse = _button("refuseButton", _("Not now"))
        refuse.connect("clicked()", self.dialog.reject)
        buttons.addStretch(1)
        buttons.addWidget(refuse)
        buttons.addWidget(self._install)
        layout.addLayout(buttons)

    def answer(self) -> Consent | None:
        """Wait for the user."""
        run = getattr(self.dialog, "exec_", None) or self.dialog.exec
        if not run():
            return None
        return self.consent()

    def consent(self) -> Consent:
        """Return the consent that the present choice means."""
        folder = self._folder.text.strip() if self._from_folder.checked else ""
        return Consent(Path(folder) if folder else None)

    def _offline(self) -> Widget:
        layout = qt.QHBoxLayout()
        self._from_folder = check_box(_("Without network, from a folder of wheels:"))
        self._from_folder.objectName = "fromFolderCheck"
        self._folder = qt.QLineEdit()
        self._folder.objectName = "wheelsEdit"
        self._folder.enabled = False
        browse = _button("wheelsButton", "…")
        browse.connect("clicked()", self._browse)
        self._from_folder.connect("toggled(bool)", self._folder.setEnabled)
        for widget in (self._from_folder, self._folder, browse):
            layout.addWidget(widget)
        return layout

    def _browse(self) -> None:
        folder = dialogs.open_folder(self.dialog, _("Folder of wheels"))
        if folder:
            self._from_folder.checked = True
            self._folder.text = folder


def _table(plan: Plan) -> Widget:
    lines = plan.lines()
    table = qt.QTableWidget(len(lines), 3)
    table.objectName = "packagesTable"
    table.setHorizontalHeaderLabels([_("Package"), _("From"), _("Download")])
    for row, line in enumerate(lines):
        for column, text in enumerate(line):
            table.setItem(row, column, text_item(text))
    lay_out_table(table, 0)
    return table


def _label(text: str, quiet: bool = False) -> Widget:
    label = qt.QLabel(text)
    label.wordWrap = True
    if quiet:
        label.styleSheet = quiet_style(label)
    return label


def _button(name: str, text: str) -> Widget:
    button = qt.QPushButton(text)
    button.objectName = name
    button.autoDefault = False  # Enter in the folder's field must not press a button
    return button

"""The application for the controller: settings, questions, programs, and Slicer's own windows."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import slicer
import slicer.util

from medsegai.errors import InputError, ModelError, WorkerError
from MedSegAILib.guarding import guarded
from MedSegAILib.panel_values import Choice, SeriesRow
from MedSegAILib.recent_log import RecentLog
from MedSegAILib.scene.dicom_database import folder_of, series_of, source_of
from MedSegAILib.scene.plotting import CHART_REFERENCE, StatisticsLayout
from MedSegAILib.scene.undo import kept_beside, no_undo, undo_in
from MedSegAILib.slicer_types import QtValue, SegmentationNode, TableNode, VolumeNode
from MedSegAILib.translation import tr as _
from MedSegAILib.worker.location import WorkerLocation

if TYPE_CHECKING:
    from MedSegAILib.panel.process import Finished, Programs
    from MedSegAILib.worker.client import WorkerClient
    from MedSegAILib.worker.environment_check import EnvironmentCheck, Report

SLAB_VIEW = "vtkMRMLSliceNodeRed"

STATUS_MS = 5000
"""The milliseconds for which a message stays in the status bar."""

SETTINGS = "MedSegAI/"
"""The group of our settings in Slicer's user settings."""


def own_python() -> str:
    """Slicer's own Python."""
    return shutil.which("PythonSlicer") or sys.executable


def setting(name: str) -> str:
    """Return a setting of the user; "" if it was not set."""
    return str(slicer.app.userSettings().value(SETTINGS + name) or "")


def chosen_place() -> WorkerLocation:
    """Return the location of the worker from the settings; a damaged setting means Slicer's own Python."""
    try:
        return WorkerLocation.from_text(setting("place"), own_python())
    except WorkerError:
        return WorkerLocation.own(own_python())


_unattended = False


@contextmanager
def unattended() -> Iterator[None]:
    """Run a test in an application in use: within the block, questions and installations are disabled."""
    global _unattended
    _unattended = True
    try:
        yield
    finally:
        _unattended = False


def is_test() -> bool:
    """Whether a test runs, Slicer's or ours."""
    return _unattended or bool(slicer.app.testingEnabled())


def can_ask() -> bool:
    """Whether a user can answer a question; a test must never wait for one."""
    return slicer.util.mainWindow() is not None and not is_test()


def save_undo(segmentation: SegmentationNode) -> str:
    """Keep the state of a segmentation for undo: see `scene.undo.SaveUndo`."""
    if slicer.util.mainWindow() is None:
        return no_undo(segmentation)
    page = slicer.util.getModuleWidget("SegmentEditor")
    if page.editor.mrmlSegmentEditorNode() is None:
        page.selectParameterNode()
    is_in_use = slicer.util.selectedModule() == "SegmentEditor"
    if is_in_use and page.editor.segmentationNode() not in (None, segmentation):
        return kept_beside(page.editor)(segmentation)
    return undo_in(page.editor)(segmentation)


class Host:
    """The application.

    Args:
        client: the function that returns the worker client.
        prepare: the function that installs missing packages.
        programs: the programs, see `panel.process.Programs`.
        dialogs: the dialogs for files and folders, see `panel.dialogs`.
    """

    def __init__(
        self,
        client: Callable[[], WorkerClient],
        prepare: Callable[..., None],
        programs: Programs,
        dialogs: Any,
    ) -> None:
        self._client, self._programs, self._dialogs = client, programs, dialogs
        self._environment_check: EnvironmentCheck | None = None
        self._statistics_layout = StatisticsLayout()
        self.prepare = prepare
        self._defects = RecentLog()
        self._defects.attach()

    def setting(self, name: str) -> str:
        """Return a setting of the application as text; "" if it was never set."""
        return setting(name)

    def set_setting(self, name: str, value: str) -> None:
        """Save a setting of the application."""
        slicer.app.userSettings().setValue(SETTINGS + name, value)

    def own_python(self) -> str:
        """Return Slicer's own Python."""
        return own_python()

    def place(self) -> WorkerLocation:
        """Return the location of the worker from the settings."""
        return self._client().place

    def set_place(self, place: WorkerLocation) -> None:
        """Save the location of the worker."""
        place.command()  # finds errors before a job does
        self._client().set_place(place)

    def check_environment(self, place: WorkerLocation, told: Callable[[Report], None]) -> None:
        """Run the doctor there in the background; an earlier run is ended."""
        from MedSegAILib.worker.environment_check import EnvironmentCheck

        if self._environment_check is not None:
            self._environment_check.cancel()
        self._environment_check = EnvironmentCheck(place, told)
        self._environment_check.start()

    def close(self) -> None:
        """End all background programs."""
        if self._environment_check is not None:
            self._environment_check.cancel()
        self._programs.close()
        self._defects.detach()

    def log(self) -> str:
        """Return the last output of the worker, and the last errors on this side."""
        return "\n\n".join(filter(None, (str(self._client().log), self._defects.text)))

    def run(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        done: Callable[[Finished], None],
        heard: Callable[[str], None] | None = None,
        given: str = "",
    ) -> QtValue:
        """Start a program beside the application."""
        return self._programs.run(command, environment, done, heard, given)

    def dicom_series(self) -> list[SeriesRow]:
        """Return the series of Slicer's DICOM database; see `scene.dicom_database`."""
        return series_of(getattr(slicer, "dicomDatabase", None))

    def dicom_folder(self, row: SeriesRow) -> str:
        """Return the folder of the files of a series."""
        return folder_of(slicer.dicomDatabase, row)

    def dicom_source(self, volume: VolumeNode) -> tuple[str, str]:
        """Return folder and UID of the DICOM series of a volume; see `scene.dicom_database.source_of`."""
        return source_of(getattr(slicer, "dicomDatabase", None), volume)

    def stop(self, program: QtValue) -> None:
        """End a program that `run` started."""
        self._programs.stop(program)

    def show_text(self, title: str, text: str) -> None:
        """Show a long text in a window that can be scrolled."""
        slicer.util.infoDisplay(
            _("The end of the log is below."),
            windowTitle=title,
            detailedText=text or _("It is empty."),
        )

    def ask_save_file(self, title: str, name: str) -> str:
        """Let the user name a file; "" if they cancel."""
        return str(self._dialogs.save_file(slicer.util.mainWindow(), title, name, "CSV (*.csv)"))

    def load_sample(self, name: str) -> VolumeNode:
        """Return a scan of the module Sample Data as a volume node, downloaded if necessary.

        Raises:
            InputError: the scan cannot be downloaded.
        """
        import SampleData

        failures: list[Exception] = []
        with guarded(failures.append, "The sample %s was not loaded", name):
            node = SampleData.downloadSample(name)
            if node is not None:
                return node
        reasons = [f"{type(failure).__name__}: {failure}" for failure in failures]
        reason = reasons[0] if reasons else _("nothing came")
        raise InputError(
            _(
                "The sample {name} was not loaded ({reason}). Check the network, or load your own scan."
            ).format(name=name, reason=reason)
        )

    def show_table(self, table: TableNode) -> None:
        """Show a table and its plot beside the slices."""
        if slicer.util.mainWindow() is None:
            return
        self._statistics_layout.show(slicer.mrmlScene)
        logic = slicer.app.applicationLogic()
        logic.GetSelectionNode().SetActiveTableID(table.GetID())
        logic.PropagateTableSelection()
        chart = table.GetNodeReference(CHART_REFERENCE)
        if chart is not None:
            slicer.modules.plots.logic().ShowChartInLayout(chart)

    def hide_table(self) -> None:
        """Restore the layout before the table."""
        self._statistics_layout.hide(slicer.mrmlScene)

    def show_status(self, text: str) -> None:
        """Show the progress of a job in the status bar, while another module is open."""
        if slicer.util.mainWindow() is not None and slicer.util.selectedModule() != "MedSegAI":
            slicer.util.showStatusMessage(text, STATUS_MS)

    def open_editor(self, segmentation: SegmentationNode, source: VolumeNode, segment: str) -> None:
        """Open the Segment Editor on a segmentation and its image, with the effect AI correct.

        Args:
            segment: the id of the segment to correct; if "", the editor chooses.
        """
        from MedSegAILib.correction import EFFECT_NAME

        if slicer.util.mainWindow() is None:
            return
        slicer.util.selectModule("SegmentEditor")
        editor = slicer.util.getModuleWidget("SegmentEditor").editor
        editor.setSegmentationNode(segmentation)
        if source is not None:
            editor.setSourceVolumeNode(source)
        if segment:
            editor.setCurrentSegmentID(segment)
        editor.setActiveEffectByName(EFFECT_NAME)

    def slab(self, volume: VolumeNode) -> tuple[float, ...]:
        """Return the box around the slice of a volume that the red view shows.

        Raises:
            MedSegAIError: the view does not show the volume.
        """
        from MedSegAILib.correction.region import region_of_slab

        view = slicer.mrmlScene.GetNodeByID(SLAB_VIEW)
        if view is None:
            raise InputError(_("There is no red slice view. Choose a layout that has one."))
        return region_of_slab(view, volume)

    def keep_case(self, choice: Choice, segmentation: SegmentationNode) -> str:
        """Keep a corrected case for training, if the user agrees.

        Returns:
            What was kept where; "" if the user did not agree or did not choose a folder.

        Raises:
            MedSegAIError: the case does not fit the model, or cannot be written.
        """
        from MedSegAILib.correction.corrected_cases import CONSENT, keep_case

        if choice.card is None:
            raise ModelError(_("Choose the model with which the segmentation was made."))
        window = slicer.util.mainWindow()
        if not can_ask() or not self._dialogs.decide(
            window, CONSENT, _("Keep it"), _("Do not keep it"), False
        ):
            return ""
        folder = self._dialogs.open_folder(window, _("Folder of corrected cases"))
        if not folder:
            return ""
        nodes = [node for node in choice.nodes.values() if node is not None]
        kept = keep_case(Path(folder), choice.card, nodes, segmentation, consent=True)
        text = _("Kept as {name} in {folder}; `medsegai train` takes that folder.")
        return "\n".join([text.format(name=kept.name, folder=kept.dataset), *kept.notes])

    def confirm(self, question: str, safe: bool = False) -> bool:
        """Ask a yes-no question; the answer is yes if nobody can answer.

        Args:
            safe: the answer that Enter gives. It is False if a yes would disclose images or destroy something.
        """
        return not can_ask() or self._dialogs.decide(
            slicer.util.mainWindow(), question, _("Yes"), _("No"), safe
        )

"""Pictures of the running panel, for a person to look at: light, dark, narrow, and at work.

They are written to Testing/output/panel, which git does not know; the tutorial shows some of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PySide6 import QtCore, QtGui, QtWidgets

import pythonqt
from medsegai.models.card import load_card
from medsegai.models.catalogue import BUNDLED_MODELS
from medsegai.progress import ProgressEvent
from medsegai.refinements import title
from MedSegAILib.controller import texts
from MedSegAILib.output_choice import OutputMode
from MedSegAILib.panel import Panel
from MedSegAILib.panel.export_dialog import ExportDialog
from MedSegAILib.panel.series_dialog import SeriesDialog
from MedSegAILib.panel_values import (
    DeviceChoice,
    ExportChoice,
    SegmentRow,
    SeriesRow,
    StructureRow,
)
from MedSegAILib.uncertain_regions import HEAT, UNCERTAINTY
from panel_help import REPOSITORY, UI, add_volume, card, click, find, new_panel, palette

OUTPUT = REPOSITORY / "Testing" / "output" / "panel"
BRAIN = load_card(BUNDLED_MODELS / "brain")
PLAN = (
    "Runs axial, coronal, sagittal on cuda:0 (NVIDIA RTX 4070, 9.1 GB free of 12.0 GB); needs about 1.5 GB "
    "and about 12 s."
)
REPORT = {
    "structures": [{"name": label.name, "voxels": 5} for label in BRAIN.labels],
    "warnings": [
        "Left pallidum, Right pallidum: poor quality is expected, because the networks disagree.",
        "Left putamen: 9.1 ml, more than the 3.1 to 6.9 ml that are plausible.",
    ],
    "seconds": {"predict": 11.8},
    "provenance": {"device": "cuda:0"},
}
REFINED = (
    "This is a preview: Apply makes it the segmentation, Cancel removes it.\n"
    "Move borders to edges: 212 voxels changed, 0.212 ml: Left hippocampus -61 +151 voxels (0.212 ml around "
    "R -26, A -21, S -14 mm).\n"
    "Not changed, because their review is completed: Brain stem."
)


@pytest.fixture(params=["light", "dark"])
def style(request: pytest.FixtureRequest) -> Iterator[str]:
    application = QtWidgets.QApplication.instance()
    assert isinstance(application, QtWidgets.QApplication)
    before, name = application.palette(), application.style().objectName()
    application.setStyle("Fusion")
    application.setPalette(palette(request.param == "dark"))
    yield request.param
    application.setPalette(before)
    application.setStyle(name)


class Scenery:
    """The page with a volume and the bundled model, of a chosen width."""

    def __init__(self, mrml: Any, width: int, height: int = 760) -> None:
        self.mrml = mrml
        self.widget = pythonqt.load_ui(UI)
        self.panel: Panel = new_panel(self.widget)
        pythonqt.real(self.widget).resize(width, height)
        pythonqt.real(self.widget).setMRMLScene(mrml)
        self.volume = add_volume(mrml, "MRHead")
        self.panel.show_models([BRAIN, card("abdomen", "fold_0", labels=BRAIN.labels[:3])])
        self.panel.show_plan(PLAN, True)
        pythonqt.real(self.widget).show()

    def show_results(self) -> None:
        segmentation = self.mrml.AddNewNodeByClass("vtkMRMLSegmentationNode", "MRHead segmentation")
        self.panel.results.choose(segmentation)
        self.panel.results.show(rows(), (UNCERTAINTY,))
        self.panel.results.show_verdict(texts.verdict(rows(), REPORT))

    def picture(self, name: str, widget: Any = None) -> QtGui.QImage:
        pythonqt.process_events(20)
        shown = pythonqt.real(self.widget) if widget is None else widget
        image = shown.grab().toImage()
        OUTPUT.mkdir(parents=True, exist_ok=True)
        assert image.save(str(OUTPUT / f"{name}.png"))
        return image


@pytest.fixture
def scenery(mrml: Any) -> Iterator[Any]:
    made: list[Scenery] = []

    def make(width: int = 400, height: int = 760) -> Scenery:
        made.append(Scenery(mrml, width, height))
        return made[-1]

    yield make
    for item in made:
        pythonqt.real(item.panel.browser.dialog).close()
        pythonqt.real(item.widget).close()


def rows() -> list[StructureRow]:
    shown = []
    for number, label in enumerate(BRAIN.labels):
        quality = ("good", "good", "good", "check", "good", "poor", "good")[number % 7]
        state = "notstarted" if quality == "good" else "flagged"
        if number < 8:
            state = ("completed", "inprogress", "notstarted", "flagged")[number % 4]
        volume = 2.1 + 37.7 * ((number * 7) % 11)
        shown.append(
            StructureRow(
                str(label.value), label.name, label.color, volume, quality, "", state, number != 5
            )
        )
    return shown


def entry(title: str, state: str, **more: Any) -> SimpleNamespace:
    values = {"fraction": 0.0, "seconds_left": None, "stage": "", "message": "", "stopping": False}
    return SimpleNamespace(title=title, state=state, **(values | more))


def contrast(image: QtGui.QImage) -> int:
    """Brightest less darkest of a picture: nothing can be read where it is small."""
    gray = image.convertToFormat(QtGui.QImage.Format.Format_Grayscale8)
    rows = np.frombuffer(gray.constBits(), np.uint8).reshape(gray.height(), gray.bytesPerLine())
    return int(np.ptp(rows[::2, : gray.width() : 2]))


def test_before_the_first_run(scenery: Any, style: str) -> None:
    image = scenery().picture(f"start-{style}")
    assert contrast(image) > 120


def test_at_work(scenery: Any, style: str) -> None:
    scene = scenery()
    scene.panel.show_running()
    scene.panel.show_progress(ProgressEvent("predict", 0.42, 7.0))
    scene.panel.queue.show(
        [
            entry("MRHead: Brain structures", "running", fraction=0.42, seconds_left=7.0),
            entry("MRHead 2: Brain structures", "waiting"),
            entry("Abdomen: Organs", "failed", message="The device cuda:7 is unknown."),
        ]
    )
    find(scene.widget, "queueButton").setProperty("collapsed", False)
    image = scene.picture(f"running-{style}")
    assert contrast(image) > 120
    assert find(scene.widget, "segmentButton").text() == "Add to the queue"


def test_after_the_run(scenery: Any, style: str) -> None:
    scene = scenery(400, 900)
    scene.show_results()
    image = scene.picture(f"results-{style}")
    assert contrast(image) > 120


def test_a_model_of_pictures(scenery: Any, style: str) -> None:
    """The bundled model of nuclei, with a picture in colours in the one field for its three channels."""
    scene = scenery()
    tile = scene.mrml.AddNewNodeByClass("vtkMRMLVectorVolumeNode", "Stained tile")
    nuclei = load_card(BUNDLED_MODELS / "nuclei")
    scene.panel.show_models([BRAIN, nuclei])
    scene.panel.choose_model(nuclei)
    scene.panel.choose_input(tile)
    image = scene.picture(f"pictures-{style}")
    assert scene.panel.choice().node is tile
    assert contrast(image) > 120


def test_an_error_and_a_preview(scenery: Any, style: str) -> None:
    scene = scenery()
    scene.panel.choose_output(OutputMode.PREVIEW)
    scene.panel.preview.show("MRHead segmentation")
    scene.panel.show_error(
        "The worker was ended by the system, most likely because memory ran out. Close other programs, "
        "crop the volume, or choose fewer models or networks.",
        log=True,
    )
    image = scene.picture(f"error-{style}")
    assert contrast(image) > 120


def working(scene: Scenery) -> None:
    scene.panel.show_running()
    scene.panel.show_progress(ProgressEvent("predict", 0.42, 7.0))
    scene.panel.queue.show([entry("MRHead: Brain structures", "running", fraction=0.42)])
    find(scene.widget, "queueButton").setProperty("collapsed", False)


def told(scene: Scenery) -> None:
    scene.show_results()
    find(scene.widget, "detailsButton").setChecked(True)
    scene.panel.show_message("Not changed, because they were painted by hand: Left putamen.")


def pressed(scene: Scenery) -> None:
    scene.show_results()
    scene.panel.results.show_overlay(UNCERTAINTY, 0.6)
    scene.panel.results.show_statistics(True)
    find(scene.widget, "resultStateSelector").setCurrentText("To check")


def heated(scene: Scenery) -> None:
    scene.show_results()
    scene.panel.results.show(rows()[:4], (HEAT, UNCERTAINTY))
    scene.panel.results.show_overlay(HEAT, 0.6)


def refused(scene: Scenery) -> None:
    scene.panel.choose_output(OutputMode.PREVIEW)
    scene.panel.preview.show("MRHead segmentation")
    scene.panel.show_error(
        "MedSegAI was ended by the system, most likely because memory ran out. Close other programs, "
        "crop the volume, or choose fewer models.",
        log=True,
    )


def refining(scene: Scenery) -> None:
    scene.show_results()
    for name, folded in (("inputsButton", True), ("resultsButton", True), ("refineButton", False)):
        find(scene.widget, name).setProperty("collapsed", folded)
    show_refinement(scene)


STATES = {
    "start": lambda scene: None,
    "working": working,
    "results": Scenery.show_results,
    "told": told,
    "pressed": pressed,
    "heated": heated,
    "refused": refused,
    "refining": refining,
}


@pytest.mark.parametrize("width", [300, 500])
@pytest.mark.parametrize("state", STATES)
def test_every_state_narrow_and_wide(scenery: Any, style: str, state: str, width: int) -> None:
    """As high as Slicer's module column, so that what has to be scrolled for is seen to be cut off."""
    scene = scenery(width, 850)
    STATES[state](scene)
    pythonqt.process_events(10)
    pythonqt.real(scene.widget).resize(width, 850)
    image = scene.picture(f"{state}-{width}-{style}")
    assert contrast(image) > 120
    assert image.width() <= width * image.devicePixelRatio()


def test_everything_unfolded_in_a_narrow_column(scenery: Any, style: str) -> None:
    """Slicer's module column can be 300 pixels wide: nothing may be cut off."""
    scene = scenery(300, 3100)
    flair = card("tumour", "fold_0", channels=("T1", "T1 with contrast", "T2", "FLAIR?"))
    scene.panel.show_models([flair, BRAIN])
    scene.panel.choose_output(OutputMode.UPDATE)
    scene.panel.show_devices(
        [DeviceChoice("auto", "the fastest one"), DeviceChoice("cuda:0", "NVIDIA RTX 4070")]
    )
    scene.show_results()
    scene.panel.queue.show([entry("MRHead: Brain structures", "done")])
    find(scene.widget, "queueButton").setProperty("collapsed", False)
    for name in ("refineButton", "advancedButton", "batchButton", "settingsButton"):
        find(scene.widget, name).setProperty("collapsed", False)
    show_refinement(scene)
    find(scene.widget, "refinementNames").setCurrentText(title("level_set"))
    click(scene.widget, "addRefinementButton")
    find(scene.widget, "batchSourceSelector").setCurrentIndex(1)
    find(scene.widget, "placeSelector").setCurrentIndex(2)
    scene.panel.settings.show_answer("✓ torch: 2.9.0")
    scene.picture(f"narrow-{style}")
    assert pythonqt.real(scene.widget).minimumSizeHint().width() <= 300
    for child in pythonqt.real(scene.widget).findChildren(QtWidgets.QWidget):
        if child.isVisible() and child.parentWidget() is not None:
            right = child.mapTo(pythonqt.real(scene.widget), QtCore.QPoint(child.width(), 0)).x()
            viewport = child.parentWidget().parentWidget()
            inside_table = isinstance(viewport, QtWidgets.QAbstractItemView)
            assert right <= 300 or inside_table, f"{child.objectName()} ends at {right}"


def show_refinement(scene: Scenery) -> None:
    """The section with a preview of the refinement that has most options, for a few segments."""
    node = scene.mrml.GetFirstNodeByClass("vtkMRMLSegmentationNode")
    scene.panel.refine.choose(node)
    scene.panel.refine.choose_image(scene.volume)
    scene.panel.refine.show_segments(
        [SegmentRow(str(n), row.name, row.color, n == 1) for n, row in enumerate(rows())]
    )
    find(scene.widget, "refineSegmentsSelector").setCurrentIndex(1)
    find(scene.widget, "refineSegments").item(3).setCheckState(QtCore.Qt.CheckState.Checked)
    find(scene.widget, "refinementSelector").setCurrentText(title("level_set"))
    scene.panel.refine.show_state(running=False, previewing=True)
    scene.panel.refine.show_message(REFINED)


def test_a_refinement_that_is_previewed(scenery: Any, style: str) -> None:
    scene = scenery(400, 1100)
    scene.show_results()
    find(scene.widget, "resultsButton").setProperty("collapsed", True)
    find(scene.widget, "inputsButton").setProperty("collapsed", True)
    find(scene.widget, "refineButton").setProperty("collapsed", False)
    show_refinement(scene)
    image = scene.picture(f"refine-{style}")
    assert contrast(image) > 120


def test_refinements_of_a_run(scenery: Any, style: str) -> None:
    scene = scenery(400, 1300)
    find(scene.widget, "inputsButton").setProperty("collapsed", True)
    find(scene.widget, "advancedButton").setProperty("collapsed", False)
    for name in ("islands", "smoothing", "snap"):
        find(scene.widget, "refinementNames").setCurrentText(title(name))
        click(scene.widget, "addRefinementButton")
    find(scene.widget, "refinementList").setCurrentRow(0)
    find(scene.widget, "refinement_smallest_ml").setValue(0.1)
    find(scene.widget, "refinement_labels").item(2).setCheckState(QtCore.Qt.CheckState.Checked)
    image = scene.picture(f"refinements-{style}")
    assert contrast(image) > 120


def test_the_series_of_the_database(scenery: Any, style: str) -> None:
    scene = scenery()
    shown = [
        SeriesRow(patient, study, series, f"1.2.{number}")
        for number, (patient, study, series) in enumerate(
            (
                ("Doe^Jane", "Head 2026-03-02", "T1 MPRAGE"),
                ("Doe^Jane", "Head 2026-03-02", "T2 FLAIR"),
                ("Doe^Jane", "Abdomen 2025-11-20", ""),
                ("Roe^Max", "Head 2026-01-15", "T1 MPRAGE"),
            )
        )
    ]
    dialog = SeriesDialog(scene.widget, shown, shown[:1]).dialog
    pythonqt.real(dialog).show()
    image = scene.picture(f"series-{style}", pythonqt.real(dialog))
    assert contrast(image) > 120


@pytest.mark.parametrize(
    "reason",
    [
        "",
        "MRHead was not loaded by the module DICOM. A DICOM SEG or SR "
        "needs the patient, study and frame of reference of a DICOM series.",
    ],
)
def test_the_dialog_of_the_hand_over(scenery: Any, style: str, reason: str) -> None:
    scene = scenery()
    parts = ("report", "csv", "surfaces") if reason else ("report", "seg", "sr", "surfaces")
    choice = ExportChoice("/home/me/hand-over", parts, formats=(".stl", ".glb"))
    dialog = ExportDialog(scene.widget, "MRHead segmentation", reason, choice).dialog
    pythonqt.real(dialog).show()
    name = f"hand-over{'-no-dicom' if reason else ''}-{style}"
    assert contrast(scene.picture(name, pythonqt.real(dialog))) > 120


def test_the_model_browser(scenery: Any, style: str) -> None:
    scene = scenery()
    scene.panel.browser.expectation = lambda shown: "About 12 s. Memory: about 1.5 GB."
    scene.panel.browser.open()
    scene.panel.browser.select(BRAIN)
    image = scene.picture(f"models-{style}", pythonqt.real(scene.panel.browser.dialog))
    assert contrast(image) > 120

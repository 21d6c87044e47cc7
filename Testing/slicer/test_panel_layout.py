"""The panel in Slicer's module column: it neither widens the column, nor do its parts lie over one another."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from PySide6 import QtCore, QtWidgets

import pythonqt
from medsegai.models.card import load_card
from medsegai.models.catalogue import BUNDLED_MODELS
from MedSegAILib.output_choice import OutputMode
from MedSegAILib.panel import WRAPPED, Panel
from MedSegAILib.panel_values import CaseRow, StructureRow, Verdict
from MedSegAILib.uncertain_regions import UNCERTAINTY
from panel_help import UI, add_volume, card, find, new_panel

BRAIN = load_card(BUNDLED_MODELS / "brain")
WIDEST = 360
"""Of the page's size hint, which Slicer makes the least width of its column; in pixels."""

COLUMN = 850
"""Height of the module column on a screen of 1200 pixels."""

LONG = (
    "The volume 3: T1 MPRAGE sagittal isotropic of a patient with a very long series description changed its size "
    "during the job, so its segmentation was dropped, and nothing that was painted by hand was changed. Run "
    "it again, or choose another volume, another model or another region.\n"
) * 4
SECTIONS = (
    "resultsButton",
    "refineButton",
    "queueButton",
    "advancedButton",
    "batchButton",
    "settingsButton",
)


class Column:
    """The page as Slicer's module panel holds it.

    Its height is that of the column or of its minimum size hint, whichever is more. Slicer does not ask for the
    height that it needs at its width, as a scroll area of Qt alone would.
    """

    def __init__(self, mrml: Any) -> None:
        self.widget = pythonqt.load_ui(UI)
        self.page = pythonqt.real(self.widget)
        self.panel: Panel = new_panel(self.widget)
        self.page.setMRMLScene(mrml)
        self.area = QtWidgets.QWidget()
        self.page.setParent(self.area)
        self.panel.show_models([BRAIN, card("tumour", "fold_0", channels=("T1", "T2", "FLAIR?"))])
        self.node = mrml.AddNewNodeByClass("vtkMRMLSegmentationNode", "Result")
        self.panel.results.choose(self.node)
        rows = [
            StructureRow(str(n), label.name, label.color, 1.0, "poor", LONG, "flagged")
            for n, label in enumerate(BRAIN.labels)
        ]
        self.panel.results.show(rows, (UNCERTAINTY,))

    def show(self, width: int) -> None:
        self.area.resize(width, COLUMN)
        self.area.show()
        for _ in range(3):  # labels hear of their width, and the page of their height
            height = max(COLUMN, self.page.minimumSizeHint().height())
            self.page.setGeometry(0, 0, width, height)
            pythonqt.process_events(10)


@pytest.fixture
def column(mrml: Any) -> Iterator[Column]:
    application = QtWidgets.QApplication.instance()
    assert isinstance(application, QtWidgets.QApplication)
    before = application.style().objectName()
    application.setStyle("Fusion")
    made = Column(mrml)
    yield made
    made.page.setMRMLScene(None)
    made.area.close()
    application.setStyle(before)


CASE = CaseRow(LONG.splitlines()[0], "failed", message=LONG)


def unfold_details(panel: Panel) -> None:
    panel.results.show_verdict(Verdict(LONG, "problem", LONG))
    panel._ui.detailsButton.checked = True


SAYINGS: dict[str, Callable[[Panel], object]] = {
    "plan": lambda panel: panel.show_plan(LONG, False),
    "message": lambda panel: panel.show_message(LONG),
    "error": lambda panel: panel.show_error(LONG, log=True),
    "preview": lambda panel: panel.preview.show(LONG),
    "verdict": unfold_details,
    "refinement": lambda panel: panel.refine.show_message(LONG, problem=True),
    "batch": lambda panel: panel.batch.show_message(LONG),
    "case": lambda panel: (panel.batch.clear(), panel.batch.show_case(CASE)),
    "doctor": lambda panel: panel.settings.show_answer(LONG),
    "guess": lambda panel: (panel.choose_model(panel._cards[1]), panel.show_guess({})),
    "output": lambda panel: panel.choose_output(OutputMode.PREVIEW),
}


def test_no_message_widens_the_column(column: Column) -> None:
    """Of each kind, with every section unfolded; one after the other, and so all together at last."""
    for section in SECTIONS:
        find(column.widget, section).setProperty("collapsed", False)
    for kind, tell in SAYINGS.items():
        tell(column.panel)
        column.show(WIDEST + 20)
        assert column.page.sizeHint().width() < WIDEST, kind


def test_no_name_widens_the_column(column: Column, mrml: Any) -> None:
    volume = add_volume(mrml, LONG.splitlines()[0])
    column.node.SetName(LONG.splitlines()[0])
    region = mrml.AddNewNodeByClass("vtkMRMLMarkupsROINode", LONG.splitlines()[0])
    column.panel.choose_input(volume)
    column.panel.choose_region(region)
    column.panel.show_models([replace(BRAIN, name=LONG[:200])])
    for section in SECTIONS:
        find(column.widget, section).setProperty("collapsed", False)
    column.show(WIDEST + 20)
    assert column.page.sizeHint().width() < WIDEST


def test_every_wrapped_label_keeps_its_height_for_its_width(column: Column) -> None:
    labels = [
        label
        for label in column.page.findChildren(QtWidgets.QLabel)
        if label.wordWrap() and not label.window().isModal() and label.objectName() != "modelStatus"
    ]
    assert {label.objectName() for label in labels} == set(WRAPPED)
    for label in labels:
        policy = label.sizePolicy()
        assert policy.horizontalPolicy() == QtWidgets.QSizePolicy.Policy.Ignored
        assert policy.hasHeightForWidth(), label.objectName()


@pytest.mark.parametrize("width", [300, 500])
def test_nothing_lies_over_its_neighbour(column: Column, width: int) -> None:
    """On a page as high as the column, with a message of each kind; then wider, and as narrow as before."""
    column.show(width)
    for tell in SAYINGS.values():
        tell(column.panel)
        column.show(width)
        check_apart(column)
    column.show(width + 60)
    column.show(width)
    check_apart(column)


def check_apart(column: Column) -> None:
    table, buttons = (find(column.widget, name) for name in ("resultTable", "resultActions"))
    assert bottom(table, column) < top(buttons, column), "the table lies over its buttons"
    for name in WRAPPED:
        label = find(column.widget, name)
        if label.isVisible():
            assert label.height() >= label.heightForWidth(label.width()), f"{name} is cut off"
    for layout in column.page.findChildren(QtWidgets.QVBoxLayout):
        if layout.parentWidget().isVisible():
            items = [layout.itemAt(number) for number in range(layout.count())]
            boxes = [item.geometry() for item in items if not item.isEmpty()]
            for above, below in itertools.pairwise(boxes):
                assert above.bottom() < below.top(), layout.objectName()


def top(widget: Any, column: Column) -> int:
    return int(widget.mapTo(column.page, QtCore.QPoint(0, 0)).y())


def bottom(widget: Any, column: Column) -> int:
    return top(widget, column) + int(widget.height()) - 1


def test_the_page_with_a_result_fits_the_column(column: Column) -> None:
    """Of what is seen after a run nothing has to be scrolled for, also with a plan of three lines."""
    column.panel.show_plan(
        "Runs axial, coronal and sagittal on the processor; needs about 1.5 GB. " * 2, True
    )
    column.panel.results.show_verdict(Verdict("32 structures, 5 to check", "doubt", LONG))
    column.show(WIDEST)
    column.show(WIDEST)
    assert column.page.minimumSizeHint().height() <= COLUMN
    assert bottom(find(column.widget, "settingsButton"), column) <= COLUMN
    assert find(column.widget, "resultTable").height() >= 130
